"""What a rule may ask of the place that its layer has in a network."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from invconv.inversion.interval import Interval


@runtime_checkable
class Place(Protocol):
    """One layer of a network while it is inverted: what its rule may know of it, and the solver that it may call.

    Rules are written against these names only. `invconv.inversion.Site` is what they are given.

    Example:
        >>> def undo_softsign(place: Place, output: Interval) -> Interval:
        ...     place.note = f"{place.unknowns} entries of {place.name}"
        ...     return output.map(lambda y: y / (1 - y.abs()))
    """

    note: str
    """What was lost, or how the layer was solved: the rule writes it, the report prints it."""
    residual: float
    """What the input that was solved for leaves of the equations and inequalities, relative."""

    @property
    def name(self) -> str:
        """Name of the layer, as in `named_modules`; of a function, that of the module around it."""

    @property
    def module(self) -> Any:
        """The layer; None for a function."""

    @property
    def args(self) -> tuple[Any, ...]:
        """What the layer is called with after its input, by position; None for what depends on the image."""

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the layer is called with by name."""

    @property
    def shape(self) -> torch.Size:
        """(batch, ...) of the layer's input."""

    @property
    def unknowns(self) -> int:
        """How many numbers the input has for one image."""

    @property
    def like(self) -> Tensor:
        """An empty tensor of the network's dtype and device."""

    @property
    def usual(self) -> Tensor:
        """What the layer is given for a picture of noise: where unknowns stay that no equation determines."""

    @property
    def kept(self) -> Tensor | None:
        """What the rule's `keep` returned on the forward pass; None where there was no image, or it is turned off."""

    @property
    def box(self) -> Interval:
        """What values the layer's input can have, given the layer below."""

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of a function, by name or by position after the input, or an attribute of a module."""

    def function(self, x: Tensor) -> Tensor:
        """The layer, for one that works entry by entry and so on any shape."""

    def apply(self, x: Tensor) -> Tensor:
        """The layer on an input of its shape, the batch aside; differentiable."""

    def solve(self, output: Interval, start: Tensor | None = None, affine: bool = False) -> Interval:
        """Least squares for the input: equations where the output is known, inequalities where it is bounded.

        Args:
            output: what is known of the output.
            start: where to begin; `usual` within the box if there is none.
            affine: the layer is linear but for a constant, which needs fewer derivatives.

        Returns:
            The solution, as an interval of one point.
        """
