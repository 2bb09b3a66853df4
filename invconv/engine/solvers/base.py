"""What every way to invert a convolution promises: A, factored once, and four questions that it answers.

    A^+ y,      (A^+)' x,      (A'A)^+ x,      1/2 log det(A'A) and its gradient by the kernel.

A solver is asked for its `plan` before anything is computed; it is built from a `Convolution` in the precision that it
is to be factored in, and computes what it needs when it is first asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.precision import exactly
from invconv.options import DEFAULTS, Options
from invconv.report import Plan


class Volume(ABC):
    """What gives a log-volume: of A itself, whatever damping or cut-off its inverse has."""

    @property
    @abstractmethod
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A, in nats for one image; a float64 scalar."""

    @property
    @abstractmethod
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K."""


class Solver(Volume):
    """A, factored: the pseudo-inverse, its transpose, the log-volume, and what they are worth.

    Args:
        conv: the map, in the precision of the factors.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y, whose rounding no factors can undo; None for that of `conv`.
        lost: growth of rounding errors in the ways that were given up for this one; 0 where none was.
    """

    name: ClassVar[str]
    """As `Plan` and `Report` print it."""
    serves: ClassVar[tuple[str, ...]] = ("auto", "direct")
    """Values of `Options.solver` that allow it."""
    joins: ClassVar[bool] = False
    """Whether layers of one shape may be groups of one layer."""
    gives_volume: ClassVar[bool] = True
    """Whether it has a log-volume."""

    error: float = 0.0
    """Relative error with which a known image came back, as far as `prepare` has found out."""

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        self.conv = conv
        self.options = options
        self.outputs = outputs or conv.dtype
        self.lost = lost

    # -- before ----------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """The plan of this solver, or why it is no way for this map."""

    def keeps(self, error: float) -> bool:  # noqa: ARG002
        """Whether rounding errors stay below `error`, found out as cheaply as can be."""
        return True

    # -- the pseudo-inverse ----------------------------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs, and find out what it is worth."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, or (A'A + d^2)^-1 A' y with damping d."""

    @abstractmethod
    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x with damping d."""
        return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))

    # -- what they are worth ---------------------------------------------------------------------------------------

    @property
    def full_rank(self) -> int:
        """The largest rank that A can have."""
        return min(self.conv.shape)

    @property
    def rank(self) -> int | None:
        """Singular values that the pseudo-inverse keeps; None where they are not counted."""
        return self.full_rank

    @property
    @abstractmethod
    def condition(self) -> float:
        """The condition number of A: see `Report.condition` for what kind of number each solver gives."""

    @property
    def growth(self) -> float:
        """Factor by which rounding errors grow, about; infinite where nothing is left."""
        return self.condition

    @property
    def torus_growth(self) -> float:
        """The part of `growth` that the torus has; all of it where there is none."""
        return self.growth

    @property
    def unknowns(self) -> int:
        """Size of the dense system, for each group of channels; 0 where there is none."""
        return 0

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""

    def round_trip(self, outputs: torch.dtype) -> tuple[float, float]:
        """Relative residual, and relative error of a known image that is sent through the layer and back.

        Args:
            outputs: the caller's dtype: image, outputs and answer are rounded to it.
        """
        conv = self.conv.to(outputs)

        def back(y: Tensor) -> Tensor:
            return self.pseudo_inverse(y.to(self.conv.dtype)).to(outputs)

        x = torch.randn(1, *conv.x_shape, generator=torch.Generator().manual_seed(0), dtype=outputs)
        with exactly(conv.device, keep=True):
            x = x.to(conv.device)
            rows, columns = conv.shape
            if rows < columns or conv.blind_spots or (self.rank is not None and self.rank < self.full_rank):
                x = back(conv.forward(x))  # only what A sees can come back
            y = conv.forward(x)
            x_hat = back(y)
            return _relative(conv.forward(x_hat) - y, y), _relative(x_hat - x, x)

    def trial(self, outputs: torch.dtype) -> float:
        """The error of `round_trip`."""
        return self.round_trip(outputs)[1]

    def singular_values(self) -> Tensor:
        """All singular values of A, descending."""
        values: Tensor = torch.linalg.svdvals(self.conv.to_dense())
        return values

    def split(self, count: int) -> Sequence[Solver]:  # noqa: ARG002
        """Solvers for `count` equal shares of the groups, with their parts of the factors; none where it is no gain."""
        return ()


def _relative(error: Tensor, to: Tensor) -> float:
    """||error|| / ||to||; zero of zero is nothing lost."""
    norm = float(error.norm())
    return norm and norm / float(to.norm())
