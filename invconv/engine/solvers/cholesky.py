"""Layers whose matrix can be written down, but not decomposed soon: Cholesky's factor of the smaller Gram matrix.

    tall A:  A'A + d^2 = L L',  A^+ y = (L L')^-1 A'y,        wide A:  AA' + d^2 = L L',  A^+ y = A'(L L')^-1 y,

a sixth to a tenth of what the singular value decomposition takes.  Squared condition numbers cost digits, which steps
of refinement with the residual give back; where they would not, the layer is left to others.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.power import largest_eigenvalue
from invconv.engine.solvers.explicit import Explicit
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

MOST_ENTRIES = 2**24
"""The largest matrix that is written down: 134 MB."""

CONTRACTION = 1e-3
"""What a step of refinement leaves of an error at most, as foreseen from the squared condition number."""

REFINEMENTS = 2
"""Steps of refinement; after the first, what is left is rounding times the condition number."""


class Cholesky(Explicit):
    """A as a matrix, and the triangle of its Gram matrix; float64."""

    name = "cholesky"

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for the matrix, and the Gram matrix, its triangle and what LAPACK needs besides."""
        rows, columns = conv.shape
        if rows == columns and not options.damping:
            return "it would square the condition of a square layer"
        if options.rtol is not None:
            return "it cuts no singular values off"
        if rows * columns > MOST_ENTRIES:
            return f"its matrix has {rows * columns} entries, above the {MOST_ENTRIES} that are written down"
        if conv.blind_spots and not options.damping:
            return "the layer has no full rank"
        peak = 16 * rows * columns + 24 * min(rows, columns) ** 2 + 10 * conv.weight.nbytes + known.bytes_for(conv)
        plan = Plan(cls.name, 0, peak, "the matrix can be written down")
        return memory.shortage(conv.device, peak, "its matrix") or plan

    def cost(self) -> cost.Cost:
        """The Gram matrix and its triangle; products with A, and triangles, for each step of refinement."""
        rows, columns = self.conv.shape
        smaller = min(rows, columns)
        factors = 20 * cost.CALL + 2 * smaller**2 * max(rows, columns) + smaller**3
        return cost.Cost(factors, 5 * cost.CALL + 4 * cost.BYTE * (rows + columns) * smaller)

    def volume_cost(self) -> float:
        """The explicit pseudo-inverse by QR."""
        rows, columns = self.conv.shape
        return 20 * cost.CALL + 20 * rows * columns * min(rows, columns)

    # -- factors of the tall matrix S, which is A, or A' if A is wide ----------------------------------------------

    @cached_property
    def _matrix(self) -> Tensor:
        """S."""
        a = self.conv.to_dense()
        return a if self.tall else a.mT.contiguous()

    @cached_property
    def _triangle(self) -> Tensor | None:
        """L, with S'S + d^2 = L L'; None where that is not positive definite to rounding."""
        gram = self._matrix.mT @ self._matrix
        gram.diagonal().add_(self.options.damping**2)
        triangle, failed = torch.linalg.cholesky_ex(gram)
        return None if failed else triangle

    @cached_property
    def condition(self) -> float:
        """The condition number of A, or of A on top of d times the identity, by power iterations: from below."""
        triangle = self._triangle
        if triangle is None:
            return math.inf
        start = self.known_images((len(triangle),))
        largest = largest_eigenvalue(lambda x: x @ triangle @ triangle.mT, start)
        return math.sqrt(largest * largest_eigenvalue(self._solve, start))

    def keeps(self, error: float) -> bool:  # noqa: ARG002
        """Whether refinement converges."""
        rounding = torch.finfo(torch.float64).eps * math.sqrt(max(self.conv.shape))
        return rounding * self.condition**2 < CONTRACTION

    def prepare(self) -> None:
        """Factor now, and find out on known images what the inverse is worth."""
        self.error = self.trial(self.outputs)

    # -- answers, each image a row ---------------------------------------------------------------------------------

    def _solve(self, b: Tensor) -> Tensor:
        """(S'S + d^2)^-1 b."""
        assert self._triangle is not None
        return torch.cholesky_solve(b.mT, self._triangle).mT

    def _gram_inverse(self, b: Tensor) -> Tensor:
        """The same, refined."""
        s, square, x = self._matrix, self.options.damping**2, self._solve(b)
        for _ in range(REFINEMENTS):
            x = x + self._solve(b - (x @ s.mT) @ s - square * x)
        return x

    def _least_squares(self, b: Tensor) -> Tensor:
        """(S'S + d^2)^-1 S'b, refined by the residual: S'b itself has lost digits."""
        s, square, x = self._matrix, self.options.damping**2, self._solve(b @ self._matrix)
        for _ in range(REFINEMENTS):
            x = x + self._solve((b - x @ s.mT) @ s - square * x)
        return x

    def _least_norm(self, b: Tensor) -> Tensor:
        """S (S'S + d^2)^-1 b."""
        return self._gram_inverse(b) @ self._matrix.mT

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, or (A'A + d^2)^-1 A'y."""
        inverse = self._least_squares if self.tall else self._least_norm
        return inverse(y.flatten(1)).view(-1, *self.conv.x_shape)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        inverse = self._least_norm if self.tall else self._least_squares
        return inverse(x.flatten(1)).view(-1, *self.conv.y_shape)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        return self._gram_inverse(x.flatten(1)).view_as(x) if self.tall else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        return super().dual_gram_inverse(y) if self.tall else self._gram_inverse(y.flatten(1)).view_as(y)

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        held = (self.__dict__.get(name) for name in ("_matrix", "_triangle"))
        return sum(t.untyped_storage().nbytes() for t in held if t is not None)
