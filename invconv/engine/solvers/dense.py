"""Small layers that are no circulant: the explicit matrix of A and its singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import sizes
from invconv.engine.solvers.explicit import Explicit
from invconv.errors import warn_cut_off
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

MOST_ENTRIES = 2**22
"""The largest matrix that is factored: 2,048 squared, a few seconds of SVD."""


class Dense(Explicit):
    """A as a matrix and its singular value decomposition, A = U diag(s) V'.

    Args:
        conv: the map, in the precision of the factors.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one.
    """

    name = "svd"

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.eps = torch.finfo(conv.dtype).eps * max(conv.shape)
        self.rtol = self.eps if options.rtol is None else options.rtol
        self.damping = options.damping

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:  # noqa: ARG003
        """Plan for five matrices in float64: A, its factors, and what LAPACK needs besides."""
        entries = conv.shape[0] * conv.shape[1]
        if entries > MOST_ENTRIES:
            return f"its matrix has {entries} entries, above the {MOST_ENTRIES} that are factored"
        peak = 40 * entries + 10 * conv.weight.nbytes + known.bytes_for(conv)
        return memory.shortage(conv.device, peak, "its matrix") or Plan(cls.name, 0, peak, "the layer is small")

    def cost(self) -> cost.Cost:
        """The SVD, and a product with each of its factors."""
        rows, columns = self.conv.shape
        svd = cost.SVD * rows * columns * min(rows, columns)
        return cost.Cost(10 * cost.CALL + svd, 5 * cost.CALL + 4 * cost.BYTE * (rows + columns) * min(rows, columns))

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        """U, s and V'."""
        u, s, vh = torch.linalg.svd(self.conv.to_dense(), full_matrices=False)
        return u, s, vh

    @cached_property
    def rank(self) -> int:
        """Singular values above rtol; all of them with damping."""
        s = self._svd[1]
        return self.full_rank if self.damping else int((s > self.rtol * s[0]).sum())

    @cached_property
    def _filter(self) -> Tensor:
        """1 / s, zero where cut off, or s / (s^2 + damping^2)."""
        s = self._svd[1]
        if self.damping:
            return s / (s**2 + self.damping**2)
        if self.rank < self.full_rank:
            warn_cut_off(self.rank, self.full_rank, self.rtol)
        return torch.cat([s[: self.rank].reciprocal(), s.new_zeros(len(s) - self.rank)])

    def prepare(self) -> None:
        """Factor now, and find out on known images what the inverse is worth."""
        self._filter  # noqa: B018
        self.error = self.trial(self.outputs)

    def _spectral(self, left: Tensor, diagonal: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """left' diag(diagonal) right' applied to each image of x, as rows."""
        return ((x.flatten(1) @ right) * diagonal) @ left

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        u, _, vh = self._svd
        return self._spectral(vh, self._filter, u, y).view(-1, *self.conv.x_shape)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        u, _, vh = self._svd
        return self._spectral(u.mT, self._filter, vh.mT, x).view(-1, *self.conv.y_shape)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        return self._damped_gram(self._svd[2], x) if self.damping and self.tall else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        if self.damping and not self.tall:
            return self._damped_gram(self._svd[0].mT, y)
        return super().dual_gram_inverse(y)

    def residual(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002  (which may be far larger than y)
        """y - A A^+ y, and the norm of each y."""
        return self._left(self._svd[0].mT, y)

    def unseen(self, grad: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        """g - A^+ A g, and the norm of each g."""
        return self._left(self._svd[2], grad)

    def _left(self, basis: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """What s / (s^2 + d^2) s leaves of x, in a basis whose vectors are rows."""
        kept = self._spectral(basis, self._svd[1] * self._filter, basis.mT, x)
        return x - kept.view_as(x), sizes(x)

    def _damped_gram(self, basis: Tensor, x: Tensor) -> Tensor:
        """1 / (s^2 + d^2) in a basis of all of the space, whose vectors are rows."""
        damped = (self._svd[1] ** 2 + self.damping**2).reciprocal()
        return self._spectral(basis, damped, basis.mT, x).view_as(x)

    @property
    def condition(self) -> float:
        """The condition number."""
        s = self._svd[1]
        return (s[0] / s[-1].abs()).item()  # a zero may come out of LAPACK as -0

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        factors = self.__dict__.get("_svd", ())
        return sum(t.untyped_storage().nbytes() for t in factors)
