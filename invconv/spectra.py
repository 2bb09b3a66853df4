"""Singular values of an operator: all of them, or the two ends with their gradients."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from torch import Tensor

from invconv.engine import choice
from invconv.engine.convolution import Convolution
from invconv.engine.norms import SingularValues, Triplet
from invconv.engine.precision import exactly
from invconv.engine.scale import Scale
from invconv.engine.solvers.base import Solver
from invconv.options import Options

T = TypeVar("T")


class HasSingularValues:
    """The questions to an operator that its singular values answer; see `invconv.ConvOperator`."""

    weight: Tensor
    options: Options
    scale: Scale
    reduced: tuple[Convolution, Options]
    _values: SingularValues
    _lock: Any
    _factors: Callable[[], Solver]

    def singular_values(self, k: int | None = None) -> Tensor:
        """All min(shape) singular values, descending; or the k largest and the k smallest, 2 k values.

        Exact for cyclic layers and small ones; others need k, and take Lanczos' method.

        Raises:
            SingularMapError: where Lanczos' method is needed, and there is no inverse for it to take.
        """
        return self.scale.times(self._asked(partial(self._values, k)), 1).to(self.weight, copy=True)

    def condition_number(self) -> Tensor:
        """The ratio of `spectral_norm` and `smallest_singular_value`, of which it raises the errors.

        Each of the two is computed once, whichever of the three is asked for.
        """
        return self._ratio().to(self.weight)

    def spectral_norm(self) -> Tensor:
        """The norm of A, its largest singular value, at its real borders; to the relative accuracy of `options.tol`.

        That of cyclic layers is the largest of their blocks', that of small ones of their matrix; others take Lanczos'
        method on A'A.
        """
        return self._end(self._largest())

    def smallest_singular_value(self) -> Tensor:
        """The smallest of the min(shape) singular values of A, which is zero where A has no full rank.

        Raises:
            SingularMapError: of a large A of which no inverse tells it.
        """
        return self._end(self._smallest())

    def spectral_norm_gradient(self) -> Tensor:
        """d spectral_norm / d weight: of <u, A v>, from the singular vectors."""
        return self._end_gradient(self._largest())

    def smallest_singular_value_gradient(self) -> Tensor:
        """d smallest_singular_value / d weight: of <u, A v>, from the singular vectors."""
        return self._end_gradient(self._smallest())

    def condition_number_gradient(self) -> Tensor:
        """d condition_number / d weight, from the singular vectors of both ends."""
        top, bottom = (self._end_gradient(end).double() for end in (self._largest(), self._smallest()))
        gradient = (top - self._ratio() * bottom) / self._smallest().value.to(bottom)
        return self.scale.times(gradient, -1).to(self.weight)

    def _ratio(self) -> Tensor:
        smallest = self._smallest().value  # first: with it may come the largest
        return self._largest().value.to(smallest) / smallest

    def _largest(self) -> Triplet:
        return self._asked(lambda _: self._values.largest())

    def _smallest(self) -> Triplet:
        return self._asked(self._values.smallest)

    def _end(self, triplet: Triplet) -> Tensor:
        return self.scale.times(triplet.value, 1).to(self.weight, copy=True)

    def _end_gradient(self, triplet: Triplet) -> Tensor:
        with exactly(self.weight.device, keep=True):
            conv = self.reduced[0].to(triplet.v.dtype)
            return conv.weight_gradient(triplet.v, triplet.u.to(conv.dtype)).to(self.weight)

    def _asked(self, ask: Callable[[Callable[[], Solver]], T]) -> T:
        """What is asked of the map of order one, with what gives a solver of it."""
        with self._lock, exactly(self.weight.device, keep=True):
            return ask(lambda: choice.for_values(*self.reduced, self._factors()))
