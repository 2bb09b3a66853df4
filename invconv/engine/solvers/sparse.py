"""Square layers that the torus cannot invert, and damped ones: SciPy's SuperLU on a sparse matrix, with row pivoting.

Random kernels of few channels are an example: their rings grow exponentially with the image, though A itself has a
condition number that float64 can carry.  The factors fill in, about as a banded matrix does, and that sets the limit.

With damping d, of A of any shape, it is not A that is factored but

    M = [ d   A ]        M [ q ] = [ y ]        x = (A'A + d^2)^-1 (A'y - d b),
        [ A' -d ],         [ x ]   [ b ],       q = (AA' + d^2)^-1 (d y + A b),

whose singular values are those of A, each as the hypotenuse with d: unlike that of A'A + d^2 the condition is not
squared.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from scipy.sparse import bmat, coo_matrix, csc_matrix, identity
from scipy.sparse.linalg import LinearOperator, SuperLU, onenormest, splu
from torch import Tensor
from torch.nn import functional as F

from invconv.engine import cost, known, memory
from invconv.engine.banded import banded_cost, banded_gradient
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.tried import Tried
from invconv.errors import SingularMapError
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property, one_blas_thread

MOST_FILL = 160_000_000
"""Entries that the factors may have, as foreseen: 20 seconds and 3 GB for 12 channels at 64 x 64."""

ENTRY = 24
"""Bytes that an entry of the factors takes at the peak: its value, its row, and room to grow."""

VOLUME_UP_TO = 1e-3
"""Relative error of known images up to which the factors of A are taken for its log-volume, if A is damped.

It is that at which `choice` gives a way up.
"""

CHUNK = 64
"""Unit images that are solved for at once, for the gradient of the log-determinant.  Speed only."""


class SparseLU(Tried):
    """A = P'LUQ' in float64, each solution refined once."""

    name = "sparse lu"
    exports = False

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for the factors at their peak, as foreseen from the band of A."""
        if not options.damping:
            if conv.shape[0] != conv.shape[1]:
                return "the layer is not square"
            if conv.blind_spots:
                return conv.blind_spots
            if options.rtol is not None:
                return "it does not take rtol"
        fill, _ = foreseen_fill(conv, options.damping > 0)
        if not fill < MOST_FILL:
            return f"its factors would have about {fill:.0e} entries, above {MOST_FILL:.0e}"
        peak = ENTRY * fill + 60 * conv.shape[0] * conv.weight.shape[1] * math.prod(conv.geometry.kernel_size)
        peak += known.bytes_for(conv)
        short = memory.shortage(torch.device("cpu"), peak, "the sparse LU", 0.8)
        return short or Plan(cls.name, 0, peak, "its factors fill in little")

    def cost(self) -> cost.Cost:
        """As many eliminations as there are entries, along the band; and known images."""
        fill, band = foreseen_fill(self.conv, self.options.damping > 0)
        answer = 5 * cost.CALL + 6 * cost.BYTE * fill
        return cost.Cost(50 * cost.CALL + cost.SPARSE * fill * band + 4 * answer, answer)

    def volume_cost(self) -> float:
        """The factors, and the gradient by bands or from all of the inverse."""
        factors, answer = self.cost()
        return factors + min(banded_cost(self.conv), self.full_rank * answer)

    @cached_property
    def matrix(self) -> csc_matrix:
        """The sparse matrix that is factored: that of A, or M."""
        a, d = to_sparse(self.conv), self.options.damping
        if not d:
            return a
        rows, columns = a.shape
        return bmat([[d * identity(rows), a], [a.T, -d * identity(columns)]], format="csc")

    @cached_property
    def _factors(self) -> SuperLU | None:
        """L and U as SuperLU has them; None where a pivot is zero.

        Channels that repeat others are kept from SuperLU, which goes on after many zero pivots until BLAS complains on
        the terminal.
        """
        if not self.options.damping and has_dependent_channels(self.conv):
            return None
        try:
            with one_blas_thread():
                return splu(self.matrix)
        except RuntimeError:  # "Factor is exactly singular"
            return None

    @property
    def has_factors(self) -> bool:
        """Whether no pivot is zero."""
        return self._factors is not None

    def _solve(self, right: Tensor, trans: str = "N") -> Tensor:
        """The solution for each row, refined once; of the transposed matrix if `trans` is "T"."""
        assert self._factors is not None, "a singular layer is not asked for its inverse"
        matrix = self.matrix if trans == "N" else self.matrix.T
        b = right.T.cpu().numpy()
        with one_blas_thread():
            x = self._factors.solve(b, trans)
            x += self._factors.solve(b - matrix @ x, trans)
        return torch.from_numpy(np.ascontiguousarray(x.T)).to(right.device)

    def _solve_damped(self, right: Tensor, above: int, below: int) -> tuple[Tensor, Tensor]:
        """The q and the x of M, for right-hand sides with so many zeros above or below."""
        q, x = self._solve(F.pad(right.flatten(1), (above, below))).split(self.conv.shape, 1)
        return q.view(-1, *self.conv.y_shape), x.view(-1, *self.conv.x_shape)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y, or (A'A + d^2)^-1 A' y."""
        if self.options.damping:
            return self._solve_damped(y, 0, self.conv.shape[1])[1]
        return self._solve(y.flatten(1)).view(-1, *self.conv.x_shape)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x, or A (A'A + d^2)^-1 x."""
        if self.options.damping:
            return self._solve_damped(x, self.conv.shape[0], 0)[0]
        return self._solve(x.flatten(1), "T").view(-1, *self.conv.y_shape)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^-1 x, or (A'A + d^2)^-1 x."""
        damping = self.options.damping
        return self._solve_damped(x, self.conv.shape[0], 0)[1] / -damping if damping else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^-1 y, or (AA' + d^2)^-1 y."""
        damping = self.options.damping
        return self._solve_damped(y, 0, self.conv.shape[1])[0] / damping if damping else super().dual_gram_inverse(y)

    @cached_property
    def condition(self) -> float:
        """|A| |A^-1| in the 1-norm, or |M| |M^-1|, the latter by Higham and Tisseur's estimate (2000)."""
        factors = self._factors
        if factors is None:
            return math.inf
        inverse = LinearOperator(
            factors.shape,
            matvec=factors.solve,
            rmatvec=lambda v: factors.solve(v, "T"),
            matmat=factors.solve,
            rmatmat=lambda v: factors.solve(v, "T"),
            dtype=np.float64,
        )
        with one_blas_thread():
            # More than one column at once would be drawn from the random state that all threads share.
            return float(abs(self.matrix).sum(axis=0).max() * onenormest(inverse, t=1))

    @cached_property
    def _undamped(self) -> SparseLU:
        """The solver that factors A itself, of which the log-volume is, damped or not.

        Raises:
            SingularMapError: where it has no factors.
        """
        options = replace(self.options, damping=0.0, rtol=None)
        solver, plan = SparseLU(self.conv, options, self.outputs), SparseLU.plan(self.conv, options)
        if isinstance(plan, str) or not solver.keeps(VOLUME_UP_TO):
            why = plan if isinstance(plan, str) else "it is singular, or nearly so"
            raise SingularMapError(f"the log-volume is that of A undamped, which has no sparse factors: {why}")
        return solver

    @property
    def log_volume(self) -> Tensor:
        """log |det A| = sum of log |u_ii|."""
        if self.options.damping:
            return self._undamped.log_volume
        assert self._factors is not None
        pivots = torch.from_numpy(self._factors.U.diagonal())
        return pivots.abs().log().sum().to(self.conv.device)

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K, from tr(A^-1 dA): by bands, or as the sum over unit images e of <e, dA A^-1 e>.

        The latter takes as many solutions as there are unknowns.
        """
        if self.options.damping:
            return self._undamped.log_volume_gradient
        banded = banded_gradient(self.conv, self.full_rank * self.cost().answer)
        return self._gradient_by_unit_images() if banded is None else banded

    def _gradient_by_unit_images(self) -> Tensor:
        """The gradient of the log-determinant from all of the inverse, a few columns at a time."""
        gradient = torch.zeros_like(self.conv.weight)
        for start in range(0, self.full_rank, CHUNK):
            rows = torch.arange(start, min(start + CHUNK, self.full_rank), device=self.conv.device)
            units = torch.zeros(len(rows), self.full_rank, dtype=torch.float64, device=self.conv.device)
            units[torch.arange(len(rows)), rows] = 1
            units = units.view(-1, *self.conv.y_shape)
            images = self.pseudo_inverse(units)
            gradient += self.conv.weight_gradient(images, units)
        return gradient

    @property
    def bytes(self) -> int:
        """Memory held by the factors' values and rows, and by the matrix; 0 before there are factors."""
        factors = self.__dict__.get("_factors")
        return 0 if factors is None else 12 * (factors.nnz + self.matrix.nnz)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseLU:
        return SparseLU(self.conv, self.options, self.outputs, self.lost)

    def __reduce__(self) -> tuple[type[SparseLU], tuple[Any, ...]]:
        return SparseLU, (self.conv, self.options, self.outputs, self.lost)


def foreseen_fill(conv: Convolution, damped: bool) -> tuple[int, int]:
    """Entries of the factors, about: those of a matrix banded along the longest side of the image; and its band."""
    geometry, input_size = conv.geometry, conv.input_size
    longest = max(range(geometry.dims), key=lambda axis: input_size[axis])
    lines = input_size[longest]
    # M has as many unknowns again for the outputs.
    unknowns = (sum(conv.shape) if damped else conv.shape[1]) // geometry.groups
    band = unknowns * math.prod(geometry.stride) // lines * max(1, geometry.extent[longest] - 1)
    return 2 * unknowns * geometry.groups * band, band


def has_dependent_channels(conv: Convolution) -> bool:
    """Whether some channels of a square map are combinations of others, whatever their scales: A is singular."""
    for kernel in conv.weight.detach().flatten(2).chunk(conv.geometry.groups):
        for _ in range(2):
            kernel = kernel / kernel.abs().amax((1, 2), keepdim=True).clamp_min(torch.finfo(kernel.dtype).tiny)
            kernel = kernel.transpose(0, 1)
        for side in (kernel, kernel.transpose(0, 1)):
            if torch.linalg.matrix_rank(side.flatten(1)) < len(side):
                return True
    return False


def to_sparse(conv: Convolution) -> csc_matrix:
    """The matrix of A: an entry for each output, input channel and tap that does not read a zero of the border."""
    weight, geometry, places = conv.weight, conv.geometry, math.prod(conv.input_size)
    source = conv.sources()
    outs, ins = weight.shape[:2]
    first = torch.arange(outs).div(outs // geometry.groups, rounding_mode="floor") * ins
    channels = first[:, None] + torch.arange(ins)  # (outs, ins)
    rows = torch.arange(outs)[:, None, None, None] * source.shape[1] + torch.arange(source.shape[1])
    columns = channels[:, :, None, None] * places + source
    values = weight.detach().cpu().flatten(2)[..., None].expand(columns.shape)
    inside = (source >= 0).expand(columns.shape)
    entries = [t.expand(columns.shape)[inside].numpy() for t in (values, rows, columns)]
    shape = (outs * source.shape[1], ins * geometry.groups * places)
    return coo_matrix((entries[0], (entries[1], entries[2])), shape=shape).tocsc()
