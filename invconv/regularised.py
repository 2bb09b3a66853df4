r"""What restoration asks of an operator: answers drawn to an image v, and how strongly.

$\mathrm{prox}(y, v) = \arg\min_x \|A x - y\|^2 + d^2 \|x - v\|^2 = v + (A'A + d^2)^{-1} A' (y - A v)$

$\mathrm{back}(y, v) = v + A^+ (y - A v)$: of those that minimise $\|A x - y\|$ the one that is nearest to v

Both are a change of variable away from the pseudo-inverse, damped or not: its factors, its borders, its digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from typing_extensions import Self

from invconv.choosing import ROUNDING, choose
from invconv.damped import Damping, Maps, damped, damping_value
from invconv.engine.convolution import Convolution
from invconv.engine.precision import exactly
from invconv.engine.scale import Scale
from invconv.engine.solvers.base import Solver
from invconv.geometry import Geometry, Size
from invconv.linear import is_differentiated, linear
from invconv.options import Options

MOST = 4
"""How many twins with another damping an operator keeps.  Speed and memory only."""


class Regularised(ABC):
    """The verbs of `invconv.ConvOperator` that draw an answer to an image."""

    source: Tensor
    conv: Convolution
    options: Options
    scale: Scale

    @abstractmethod
    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> None: ...

    @property
    @abstractmethod
    def solver(self) -> Solver:
        """The way that was chosen, with its factors."""

    @abstractmethod
    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """A x."""

    @abstractmethod
    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""

    @abstractmethod
    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""

    @abstractmethod
    def check_input(self, x: Tensor) -> Tensor:
        """`x`, if A can be applied to it."""

    @abstractmethod
    def check_output(self, y: Tensor) -> Tensor:
        """`y`, if A^+ can be applied to it."""

    def damped(self, damping: float) -> Self:
        """The operator of the same weight and image size with another damping, 0 for none; the latest are kept."""
        if damping == self.options.damping:
            return self
        twins: dict[float, Self] = vars(self).setdefault("_twins", {})
        options = replace(self.options, damping=damping)
        twin = twins.pop(damping, None) or type(self)(self.source, self.conv.geometry, self.conv.input_size, options)
        while len(twins) >= MOST:
            twins.pop(next(iter(twins)), None)
        twins[damping] = twin
        return twin

    def gram_inverse(self, x: Tensor) -> Tensor:
        r"""The image (A'A + d^2)^-1 x, or (A'A)^+ x without damping. x: (batch, in_channels, \*input_size)."""
        inverse = partial(self._squared, lambda solver, images: solver.gram_inverse(images))
        return linear(self.check_input(x), inverse, inverse)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        r"""The outputs (AA' + d^2)^-1 y, or (AA')^+ y without damping. y: (batch, out_channels, \*output_size)."""
        inverse = partial(self._squared, lambda solver, images: solver.dual_gram_inverse(images))
        return linear(self.check_output(y), inverse, inverse)

    def _squared(self, solve: Callable[[Solver, Tensor], Tensor], images: Tensor) -> Tensor:
        """What the solver's inverse of A'A or AA' makes of images."""
        self.prepare()
        with exactly(images.device):
            answer = solve(self.solver, images.to(self.solver.conv.dtype))
            return self.scale.times(answer, -2).to(self.conv.dtype)

    def proximal(self, y: Tensor, v: Tensor | None = None, damping: Damping | None = None) -> Tensor:
        r"""The x that minimises ||A x - y||^2 + d^2 ||x - v||^2: v + (A'A + d^2)^-1 A' (y - A v).

        Args:
            y: (batch, out_channels, \*output_size).
            v: (batch, in_channels, \*input_size); None for zero, which is the damped inverse.
            damping: d, in units of singular values; None for that of `options`. Each other value takes factors of its
                own, of which the latest four are kept.

        Returns:
            x: differentiable in y, in v, and in a damping that is a tensor of one number.

        Raises:
            InputError: if d is not positive, or images have another shape than A takes and gives.

        Example:
            >>> import torch
            >>> from invconv import functional
            >>> op = functional.conv_operator(torch.ones(1, 1, 5, 5) / 25, (12, 12), padding=2)
            >>> x = torch.rand(1, 1, 12, 12)
            >>> bool((op.proximal(op.forward(x), x, damping=0.1) - x).abs().max() < 1e-5)
            True
        """
        damping = self.options.damping if damping is None else damping
        twin, rest = self.damped(damping_value(damping)), self._rest(y, v)
        if isinstance(damping, Tensor) and is_differentiated(damping):
            x = damped(rest, damping, twin.maps, "P")
        else:
            x = twin.pseudo_inverse(rest)
        return x if v is None else self.check_input(v) + x

    @property
    def maps(self) -> Maps:
        """What is needed of a damped operator for derivatives by its damping."""
        return Maps(self.pseudo_inverse, self.pseudo_inverse_adjoint, self.gram_inverse, self.dual_gram_inverse)

    def back_project(self, y: Tensor, v: Tensor) -> Tensor:
        r"""The image nearest to v of those that minimise ||A x - y||: v + A^+ (y - A v), whatever damping is.

        Args:
            y: (batch, out_channels, \*output_size).
            v: (batch, in_channels, \*input_size).

        Returns:
            x: differentiable in y and in v.

        Raises:
            InputError: if images have another shape than A takes and gives.
            SingularMapError: where no digit can be trusted: `proximal` is what blurs take.
        """
        return self.check_input(v) + self.damped(0.0).pseudo_inverse(self._rest(y, v))

    def choose_damping(
        self, y: Tensor, method: str = "gcv", noise: float | None = None, v: Tensor | None = None
    ) -> float:
        r"""A damping d for `proximal(y, v, d)`, one for all images of a batch.

        - "discrepancy" asks what is left to be noise: ||A x_d - y|| = noise sqrt(entries of y) (Morozov 1966). It takes
          4 to 9 factorisations, about.
        - "gcv" asks for the least ||A x_d - y||^2 / tr(I - A (A'A + d^2)^-1 A')^2 (Golub, Heath and Wahba 1979), the
          trace by random images (Girard 1989). It takes 15.
        - "l-curve" asks for the sharpest corner of log ||x_d - v|| against log ||A x_d - y|| (Hansen 2001), by 15
          factorisations; photographs that are blurred a little have none, which is said.

        Each d that is tried takes factors of its own: milliseconds where the map is circular or an outer product, else
        what `plan().seconds` of `damped(d)` says. A crop of the image tells about the same d for less.

        Args:
            y: (batch, out_channels, \*output_size).
            method: of the table.
            noise: standard deviation of the noise of y, which "discrepancy" needs and the others do not know.
            v: the image that x is drawn to; None for zero.

        Returns:
            d: in units of singular values, to about 3 % for "discrepancy" and 10 % for the others.

        Raises:
            InputError: for another method; if noise is missing, or no d leaves so much or so little; if y is A v.
        """
        rest = self._rest(y, v).detach()
        least = ROUNDING * torch.finfo(y.dtype).eps * float(y.detach().double().norm())
        return choose(self.conv, lambda d: self.damped(d).pseudo_inverse, rest, method, noise, least)

    def _rest(self, y: Tensor, v: Tensor | None) -> Tensor:
        """What v leaves of y."""
        y = self.check_output(y)
        return y if v is None else y - self.forward(v)
