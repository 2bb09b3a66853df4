"""What every way to invert a convolution promises: A, factored once, and four questions that it answers.

    A^+ y,      (A^+)' x,      (A'A)^+ x,      1/2 log det(A'A) and its gradient by the kernel.

A solver is asked for its `plan` before anything is computed; it is built from a `Convolution` in the precision that it
is to be factored in, and computes what it needs when it is first asked.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from invconv.engine import known
from invconv.engine.convolution import Convolution
from invconv.engine.cost import Cost
from invconv.engine.precision import exactly
from invconv.engine.scale import Scale
from invconv.errors import unsaid
from invconv.options import DEFAULTS, Options
from invconv.report import Plan

MEASURE_ABOVE = 1e-3
"""Relative error of the inverse, as foreseen from its gain, from which it is measured.  Speed only."""


class Trip(NamedTuple):
    """What known images x tell that are sent through the layer, y = A x, and back, x_hat; root mean squares."""

    residual: float
    """||A x_hat - y|| / ||y||."""
    error: float
    """||x_hat - x|| / ||x||, where the exact answer takes the place of x if that is another."""
    bias: float
    """||x - x_d|| / ||x||: how far damping takes the exact answer from the image that was sent; 0 without."""


class Volume(ABC):
    """What gives a log-volume: of A itself, whatever damping or cut-off its inverse has."""

    joins: ClassVar[bool] = False
    """Whether layers of one shape may be groups of one layer."""

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
    advice: ClassVar[str] = "float64, damping or rtol"
    """What to do where digits are lost."""
    exports: bool = True
    """Whether `torch.export` can follow it: what it does to an image is all PyTorch, and depends on no value."""
    gives_volume: ClassVar[bool] = True
    """Whether it has a log-volume."""
    explicit: ClassVar[bool] = False
    """Whether it multiplies by the inverse itself, of which residuals are larger than rounding by its condition."""

    error: float = 0.0
    """Relative error with which known images came back, as far as `prepare` has found out."""
    shortfall: str = ""
    """Why it did not keep its digits, where there is more to say than how far rounding errors grow."""
    scale: Scale = Scale()
    """By which the caller's outputs exceed those of `conv`, which matters where they are next to nothing."""

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        self.conv, self.options = conv, options
        self.outputs = outputs or conv.dtype
        self.lost = lost

    @property
    def map(self) -> Convolution:
        """A, as this way applies it: `conv`, or what is faster and the same."""
        return self.conv

    @classmethod
    @abstractmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """The plan of this solver, or why it is no way for this map."""

    @abstractmethod
    def cost(self) -> Cost:
        """What it takes, about, where it has a plan."""

    def volume_cost(self) -> float:
        """Operations that a log-volume takes, with its gradient, about."""
        return self.cost().factors

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

    @property
    def tall(self) -> bool:
        """Whether A'A is the smaller Gram matrix, rather than AA'."""
        rows, columns = self.conv.shape
        return rows >= columns

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x with damping d, to all digits only if A is tall."""
        damping = self.options.damping
        if damping:
            return (x - self.pseudo_inverse(self.map.forward(x))) / damping**2
        return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y with damping d, to all digits only if A is not tall."""
        damping = self.options.damping
        if damping:
            return (y - self.map.forward(self.pseudo_inverse(y))) / damping**2
        return self.pseudo_inverse_adjoint(self.pseudo_inverse(y))

    def residual(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """y - A x for x = A^+ y, and for each image the size of what it is a difference of."""
        (rows, columns), weight = self.conv.shape, self.conv.weight
        gain = weight.norm() * math.sqrt(rows / (columns * len(weight)))  # of A, root mean square
        rest = y - self.conv.forward(x)
        if self.explicit:
            rest = rest - self.conv.forward(self.damped_correction(x, rest).to(rest))
        return rest, sizes(y) + gain * sizes(x)

    def unseen(self, grad: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        """g - A' v for v = (A^+)' g, and for each image the size of what it is a difference of."""
        gain = self.conv.weight.norm() / math.sqrt(len(self.conv.weight))
        rest, damping = grad - self.map.adjoint(grad_y), self.options.damping
        if self.explicit:
            pull = damping**2 * self.dual_gram_inverse(grad_y) if damping else 0
            rest = rest - self.map.adjoint(self.pseudo_inverse_adjoint(rest) - pull)
        return rest, sizes(grad) + gain * sizes(grad_y)

    @property
    def terms(self) -> tuple[bool, bool]:
        """Whether the gradient by the kernel has its second and its third term."""
        if self.options.damping:
            return self.tall, not self.tall
        rank, (rows, columns) = 0 if self.rank is None else self.rank, self.conv.shape
        return rank < rows, rank < columns

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

    def known_images(self, side: tuple[int, ...], seed: int = 0) -> Tensor:
        """White noise in float64, as images of this shape: see `known`."""
        return known.images(side, seed).to(self.conv.device)

    def round_trip(self, outputs: torch.dtype) -> Trip:
        """What known images tell.

        Where A sees all of an image, the image is what has to come back.  Else the exact answer is not known, and its
        distance is what the solver makes of the residual, and of the part of its answer that A does not see.

        Args:
            outputs: the caller's dtype: outputs and answer are rounded to it.
        """
        conv = self.map.to(torch.float64)
        with exactly(conv.device, keep=True), unsaid():
            parts = self.known_images(conv.x_shape).split(known.at_once(conv.shape))
            residual, error, bias = map(_mean, zip(*(self._trip(conv, x, outputs) for x in parts), strict=True))
            if self.options.damping:  # what no x explains is everyday work
                parts = self.known_images(conv.y_shape, seed=2).split(known.at_once(conv.shape))
                error = max(error, _mean(self._error_for(conv, y) for y in parts))
            return Trip(residual, error, bias)

    def _trip(self, conv: Convolution, x: Tensor, outputs: torch.dtype) -> Trip:
        """What a few images tell; `conv` is the map in float64."""
        y = conv.forward(x)
        x_hat = self.double_inverse(self.as_told(y, outputs)).to(outputs).double()
        rest = y - conv.forward(x_hat)
        residual = _relative(rest, y)
        if self.options.damping:
            return Trip(residual, _relative(self.damped_correction(x_hat, rest), x_hat), _relative(x_hat - x, x))
        if self.rank == conv.shape[1]:
            return Trip(residual, _relative(x_hat - x, x), 0.0)
        unseen = x_hat - self.double_inverse(conv.forward(x_hat))
        error = math.hypot(_relative(self.double_inverse(rest), x_hat, x), _relative(unseen, x_hat, x))
        return Trip(residual, error, 0.0)

    def as_told(self, y: Tensor, outputs: torch.dtype) -> Tensor:
        """Outputs as the caller holds them, rounded to his dtype at the size that they have for him; in float64."""
        return self.scale.times(self.scale.times(y.double(), 1).to(outputs).double(), -1)

    def _error_for(self, conv: Convolution, y: Tensor) -> float:
        """||x_d - x|| / ||x|| of the answers for any outputs, damped."""
        x = self.double_inverse(y)
        return _relative(self.damped_correction(x, y - conv.forward(x)), x)

    def damped_correction(self, x: Tensor, rest: Tensor) -> Tensor:
        """What an answer x lacks of the exact one:  x_d - x = (A'A + d^2)^-1 (A' r - d^2 x),  r = y - A x."""
        damping = self.options.damping
        pull = damping**2 * self.gram_inverse(x.to(self.conv.dtype)).double() if damping else 0
        return self.double_inverse(rest) - pull

    def double_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, in float64 as it comes from the factors."""
        return self.pseudo_inverse(y.to(self.conv.dtype)).double()

    def double_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x, in float64 as it comes from the factors."""
        return self.pseudo_inverse_adjoint(x.to(self.conv.dtype)).double()

    def trial(self, outputs: torch.dtype) -> float:
        """The error of `round_trip`."""
        return self.round_trip(outputs).error

    def split(self, count: int) -> Sequence[Solver]:  # noqa: ARG002
        """Solvers for `count` equal shares of the groups, with their parts of the factors; none where it is no gain."""
        return ()


def sizes(images: Tensor) -> Tensor:
    """The norm of each image."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms


def _relative(error: Tensor, *to: Tensor) -> float:
    """||error|| / ||to||, the least of several; zero of zero is nothing lost."""
    norm = float(error.norm())
    return norm and norm / min(float(images.norm()) for images in to)


def _mean(errors: Iterable[float]) -> float:
    """The root mean square."""
    squares = [error**2 for error in errors]
    return math.sqrt(sum(squares) / len(squares))
