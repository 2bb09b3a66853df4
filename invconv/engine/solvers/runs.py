"""LSMR's answers for one map and one preconditioner, each run again for what it has left until that is small.

tall A:  x = L z,  min |A L z - y|,        wide A:  min |x|  with  L'A x = L'y.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invconv.engine.augmented import Augmented
from invconv.engine.convolution import Convolution
from invconv.engine.lsmr import Run, run_lsmr, until_small
from invconv.engine.preconditioner import NO_ROOT, Root
from invconv.engine.solvers.base import Solver
from invconv.errors import warn
from invconv.geometry import Size
from invconv.options import DEFAULTS, Options

STEPS_AN_UNKNOWN = 20
"""Iterations for each unknown, unless `max_iter` says otherwise: rounding errors make LSMR find a direction again."""

MOST_ITERATIONS = 2_000
"""Most iterations unless `max_iter` says otherwise; a layer that needs more has lost most of its digits."""


class Runs(Solver):
    """The pseudo-inverse by LSMR; float64 inside.

    Args:
        conv: the map, in float64.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one; 0 where none was.
    """

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.damping = options.damping
        self.tol = options.tolerance(self.outputs)
        self._steepness = 1.0

    @property
    @abstractmethod
    def _root(self) -> tuple[Root | None, bool]:
        """L and its transpose, None where they are no help; and whether A has full rank."""

    @property
    def _tall(self) -> bool:
        """Whether A has at least as many outputs as inputs, those of the damping counted."""
        return self.tall or self.damping > 0

    def _least_squares(self, right: Tensor, forward: bool, below: Tensor | None = None) -> Tensor:
        """The minimiser of |A x - right| (of |A' y - right| if not `forward`) of least norm, image by image.

        `below`, for damped maps: of |A x - right|^2 + |d x - below|^2.
        """
        none = right.new_zeros(0, *(self.conv.x_shape if forward else self.conv.y_shape))
        under = [None] * len(right) if below is None else [d[None] for d in below]
        return torch.cat([none, *(self._refined(b[None], forward, d) for b, d in zip(right, under, strict=True))])

    def _refined(self, right: Tensor, forward: bool, below: Tensor | None) -> Tensor:
        """One image's answer, and what its residual adds to it, until that is below the tolerance."""
        apply = self.conv.forward if forward else self.conv.adjoint
        # What stands on the left of a map without an exact solution would change which answer is the nearest.
        root = self._root[0] if forward or below is None else None

        def run(answer: Tensor | None) -> Run:
            if answer is None:
                return self._lsmr(right, forward, below, root)
            left = None if below is None else below - self.damping * answer
            return self._lsmr(right - apply(answer), forward, left, root)

        return self._until_small(run)

    def _least_norm(self, right: Tensor, forward: bool) -> tuple[Tensor, Tensor]:
        """The z and t of least norm for which A'z + d t is `right` (A z + d t, if `forward`), image by image."""
        root = (None if forward else self._root[0]) or NO_ROOT
        matrix = Augmented.of(self.conv, self.damping, forward, root)
        rows = [right.new_zeros(0, *matrix.solution)]
        for b in right.split(1) if len(right) else ():
            rows.append(self._until_small(lambda w, b=b: self._run(*matrix.problem(b, w))))  # type: ignore[misc]
        return matrix.split(torch.cat(rows))

    def _until_small(self, run: Callable[[Tensor | None], Run]) -> Tensor:
        """The answer of runs for what those before have left."""
        answer, said = until_small(run, self.tol, self._most_steps, torch.finfo(self.outputs).eps)
        if said:
            warn(f"{said}; raise max_iter, or use damping")
        return answer

    @property
    def _most_steps(self) -> int:
        """Iterations of one run at most."""
        unknowns = math.prod(self.conv.x_shape) if self.damping else self.full_rank
        return self.options.max_iter or min(STEPS_AN_UNKNOWN * unknowns, MOST_ITERATIONS)

    def _lsmr(
        self, right: Tensor, forward: bool, below: Tensor | None, root: Root | None, most: int | None = None
    ) -> Run:
        """One run for one image: z of  A L z = b  or of  L'A x = L'b, and d L z below."""
        conv = self.conv
        apply, transposed = (conv.forward, conv.adjoint) if forward else (conv.adjoint, conv.forward)
        on_right, on_right_adjoint = root if root is not None and self._tall == forward else NO_ROOT
        on_left_adjoint, on_left = root if root is not None and self._tall != forward else NO_ROOT

        def there(z: Tensor) -> list[Tensor]:
            x = on_right(z)
            above = on_left(apply(x))
            return [above] if below is None else [above, self.damping * x]

        def back(parts: Sequence[Tensor]) -> Tensor:
            x = transposed(on_left_adjoint(parts[0]))
            return on_right_adjoint(x if below is None else x + self.damping * parts[1])

        target = [on_left(right)] if below is None else [on_left(right), below]
        solution = self.conv.x_shape if forward else self.conv.y_shape
        run = self._run(there, back, target, solution, most)
        return replace(run, answer=on_right(run.answer))

    def _run(self, there: Any, back: Any, right: Any, solution: Size, most: int | None = None) -> Run:
        """A run with tolerances that follow the condition number, as far as it has been seen."""
        least = 0.1 * self.tol / self._steepness
        return run_lsmr(there, back, right, solution, (least / self._steepness, least), most or self._most_steps)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        below = y.new_zeros(len(y), *self.conv.x_shape) if self.damping else None
        return self._least_squares(y, True, below)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x, or A (A'A + d^2)^-1 x."""
        if self.damping and self.tall:
            return self._least_norm(x, False)[0]
        # Of a wide A, z = A u is next to nothing beside t = d u; it is the inverse of A' that is damped.
        return self._least_squares(x, False, x.new_zeros(len(x), *self.conv.y_shape) if self.damping else None)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if not (self.damping and self.tall):
            return super().gram_inverse(x)
        # The inverse of B'B, B = A on top of d, by B and by B' in turn.
        z, t = self._least_norm(x, False)
        return self._least_squares(z, True, t)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        if self.tall or not self.damping:
            return super().dual_gram_inverse(y)
        z, t = self._least_norm(y, True)
        return self._least_squares(z, False, t)
