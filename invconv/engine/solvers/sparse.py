"""Square layers that the torus cannot invert: SciPy's SuperLU on the sparse matrix of A, with row pivoting.

Random kernels of few channels are an example: their rings grow exponentially with the image, though A itself has a
condition number that float64 can carry.  The factors fill in, about as a banded matrix does, and that sets the limit.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.linalg import LinearOperator, SuperLU, onenormest, splu
from torch import Tensor

from invconv.engine import memory
from invconv.engine.convolution import Convolution, pad
from invconv.engine.solvers.base import Solver
from invconv.geometry import Size
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property, one_blas_thread

MOST_FILL = 160_000_000
"""Entries that the factors may have, as foreseen: 20 seconds and 3 GB for 12 channels at 64 x 64."""

ENTRY = 24
"""Bytes that an entry of the factors takes at the peak: its value, its row, and room to grow."""

CHUNK = 64
"""Unit images that are solved for at once, for the gradient of the log-determinant.  Speed only."""


class SparseLU(Solver):
    """A = P'LUQ' in float64, each solution refined once."""

    name = "sparse lu"

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for the factors at their peak, as foreseen from the band of A."""
        if conv.shape[0] != conv.shape[1]:
            return "the layer is not square"
        if conv.blind_spots:
            return conv.blind_spots
        if options.damping or options.rtol is not None:
            return "it takes neither damping nor rtol"
        fill = foreseen_fill(conv)
        if not fill < MOST_FILL:
            return f"its factors would have about {fill:.0e} entries, above {MOST_FILL:.0e}"
        free = memory.available_memory(torch.device("cpu"))
        if not ENTRY * fill < 0.8 * free:
            return f"its factors need about {ENTRY * fill / 2**30:.1f} GiB, of which {free / 2**30:.1f} are free"
        return Plan(cls.name, 0, ENTRY * fill, "the layer is square and its factors fill in little")

    def keeps(self, error: float) -> bool:
        """Whether a known image comes back with less than `error`."""
        return self.trial_error < error

    @cached_property
    def matrix(self) -> csc_matrix:
        """The matrix of A, sparse."""
        return to_sparse(self.conv)

    @cached_property
    def _factors(self) -> SuperLU | None:
        """L and U as SuperLU has them; None where a pivot is zero."""
        try:
            with one_blas_thread():
                return splu(self.matrix)
        except RuntimeError:  # "Factor is exactly singular"
            return None

    @cached_property
    def trial_error(self) -> float:
        """Relative error of a known image, its outputs in float64; infinite where there are no factors."""
        if self._factors is None:
            return math.inf
        error = self.trial(self.conv.dtype)
        return error if math.isfinite(error) else math.inf

    def prepare(self) -> None:
        """Factor now; where the caller's outputs are rounded to fewer digits, find out what that costs."""
        self.error = self.trial_error
        if self.outputs != self.conv.dtype and math.isfinite(self.error):
            self.error = max(self.error, self.trial(self.outputs))

    def _solve(self, right: Tensor, shape: Size, trans: str) -> Tensor:
        """A^-1 b, or (A^-1)' b if `trans` is "T", refined once: images of this shape."""
        assert self._factors is not None, "a singular layer is not asked for its inverse"
        matrix = self.matrix if trans == "N" else self.matrix.T
        b = right.flatten(1).T.cpu().numpy()
        with one_blas_thread():
            x = self._factors.solve(b, trans)
            x += self._factors.solve(b - matrix @ x, trans)
        return torch.from_numpy(np.ascontiguousarray(x.T)).view(-1, *shape).to(right.device)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y."""
        return self._solve(y, self.conv.x_shape, "N")

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x."""
        return self._solve(x, self.conv.y_shape, "T")

    @cached_property
    def condition(self) -> float:
        """|A| |A^-1| in the 1-norm, the latter by Hager's estimate (1984)."""
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

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about: seen on a known image."""
        return max(1.0, self.trial_error / torch.finfo(torch.float64).eps)

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A| = sum of log |u_ii|."""
        assert self._factors is not None
        pivots = torch.from_numpy(self._factors.U.diagonal())
        return pivots.abs().log().sum().to(self.conv.device)

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K, from tr(A^-1 dA), the sum over unit images e of <e, dA A^-1 e>.

        It takes as many solutions as there are unknowns.
        """
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


def foreseen_fill(conv: Convolution) -> int:
    """Entries of the factors, about: those of a matrix banded along the longest side of the image, twice over."""
    weight, geometry, input_size = conv.weight, conv.geometry, conv.input_size
    channels = weight.shape[1] * math.prod(geometry.stride)
    longest = max(range(geometry.dims), key=lambda axis: input_size[axis])
    places = math.prod(input_size)
    band = channels * places // input_size[longest] * max(1, geometry.extent[longest] - 1)
    return 2 * weight.shape[1] * geometry.groups * places * band


def to_sparse(conv: Convolution) -> csc_matrix:
    """The matrix of A: an entry for each output, input channel and tap that does not read a zero of the border."""
    weight, geometry, input_size = conv.weight, conv.geometry, conv.input_size
    places = math.prod(input_size)
    line = torch.arange(1, places + 1, dtype=torch.float64).view(1, 1, *input_size)
    read = pad(line, geometry)[0, 0].long()  # which place of the image, counted from 1; 0 for none
    slices = [
        [slice(u * d, u * d + (m - 1) * s + 1, s) for u in range(k)]
        for k, d, s, m in zip(geometry.kernel_size, geometry.dilation, geometry.stride, conv.output_size, strict=True)
    ]
    source = torch.stack([read[tap].flatten() for tap in product(*slices)]) - 1  # (taps, outputs)
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
