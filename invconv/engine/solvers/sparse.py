"""Square layers that the torus cannot invert: SciPy's SuperLU on the sparse matrix of A, with row pivoting.

Random kernels of few channels are an example: their rings grow exponentially with the image, though A itself has a
condition number that float64 can carry.  The factors fill in, about as a banded matrix does, and that sets the limit.
"""

from __future__ import annotations

import math
from functools import cached_property
from itertools import product

import numpy as np
import torch
from scipy.sparse import coo_matrix, csc_matrix
from scipy.sparse.linalg import LinearOperator, SuperLU, onenormest, splu
from threadpoolctl import threadpool_limits
from torch import Tensor

from invconv.engine import convolution
from invconv.geometry import Geometry, Size

MOST_FILL = 160_000_000
"""Entries that the factors may have, as foreseen: 20 seconds and 3 GB for 12 channels at 64 x 64."""

ENTRY = 24
"""Bytes that one takes at the peak: its value, its row, and room to grow."""

CHUNK = 64
"""Unit images that are solved for at once, for the gradient of the log-determinant."""


class SparseLU:
    """A = P'LUQ' in float64, each solution refined once, with the verbs of `Circulant`."""

    solver = "sparse lu"

    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size):
        self.weight = weight
        self.geometry = geometry
        self.input_size = input_size
        self.output_size = geometry.output_size(input_size)
        self.x_shape = (weight.shape[1] * geometry.groups, *input_size)
        self.y_shape = (weight.shape[0], *self.output_size)
        self.rank = math.prod(self.x_shape)

    @cached_property
    def matrix(self) -> csc_matrix:
        return to_sparse(self.weight, self.geometry, self.input_size)

    @cached_property
    def _factors(self) -> SuperLU | None:
        """None where a pivot is zero."""
        try:
            with threadpool_limits(1, "blas"):
                return splu(self.matrix)
        except RuntimeError:  # "Factor is exactly singular"
            return None

    @cached_property
    def error(self) -> float:
        """Relative, of a random image that is sent through the layer and back; infinite where there are no factors."""
        if self._factors is None:
            return math.inf
        x = torch.randn(1, *self.x_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x = x.to(self.weight)
        found = self.pseudo_inverse(convolution.forward(x, self.weight, self.geometry))
        error = ((found - x).norm() / x.norm()).item()
        return error if math.isfinite(error) else math.inf

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        self.error  # noqa: B018

    def _solve(self, right: Tensor, shape: Size, trans: str) -> Tensor:
        assert self._factors is not None, "a singular layer is not asked for its inverse"
        matrix = self.matrix if trans == "N" else self.matrix.T
        b = right.flatten(1).T.cpu().numpy()
        with threadpool_limits(1, "blas"):
            x = self._factors.solve(b, trans)
            x += self._factors.solve(b - matrix @ x, trans)
        return torch.from_numpy(np.ascontiguousarray(x.T)).view(-1, *shape).to(right.device)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y."""
        return self._solve(y, self.x_shape, "N")

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x."""
        return self._solve(x, self.y_shape, "T")

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^-1 x."""
        return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))

    @cached_property
    def condition(self) -> float:
        """|A| |A^-1| in the 1-norm, the latter by Higham and Tisseur's estimate (2000)."""
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
        with threadpool_limits(1, "blas"):
            return float(abs(self.matrix).sum(axis=0).max() * onenormest(inverse))

    @property
    def growth(self) -> float:
        return max(1.0, self.error / torch.finfo(torch.float64).eps)

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A| = sum of log |u_ii|."""
        assert self._factors is not None
        pivots = torch.from_numpy(self._factors.U.diagonal())
        return pivots.abs().log().sum().to(self.weight.device)

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """tr(A^-1 dA) = sum over unit images e of <e, dA A^-1 e>: as many solutions as there are unknowns."""
        gradient = torch.zeros_like(self.weight)
        for start in range(0, self.rank, CHUNK):
            rows = torch.arange(start, min(start + CHUNK, self.rank), device=self.weight.device)
            units = torch.zeros(len(rows), self.rank, dtype=torch.float64, device=self.weight.device)
            units[torch.arange(len(rows)), rows] = 1
            units = units.view(-1, *self.y_shape)
            images = self.pseudo_inverse(units)
            gradient += convolution.weight_gradient(images, units, self.weight.shape, self.geometry)
        return gradient

    @property
    def bytes(self) -> int:
        """The factors' values and rows, and the matrix."""
        factors = vars(self).get("_factors")
        return 0 if factors is None else 12 * (factors.nnz + self.matrix.nnz)

    def __deepcopy__(self, memo: dict) -> SparseLU:
        return SparseLU(self.weight, self.geometry, self.input_size)

    def __reduce__(self) -> tuple:
        return SparseLU, (self.weight, self.geometry, self.input_size)


def foreseen_fill(weight: Tensor, geometry: Geometry, input_size: Size) -> int:
    """Entries of the factors, about: those of a matrix banded along the longest side of the image, twice over."""
    channels = weight.shape[1] * math.prod(geometry.stride)
    longest = max(range(geometry.dims), key=lambda axis: input_size[axis])
    places = math.prod(input_size)
    band = channels * places // input_size[longest] * max(1, geometry.extent[longest] - 1)
    return 2 * weight.shape[1] * geometry.groups * places * band


def to_sparse(weight: Tensor, geometry: Geometry, input_size: Size) -> csc_matrix:
    """The matrix of A: an entry for each output, input channel and tap that does not read a zero of the border."""
    places = math.prod(input_size)
    line = torch.arange(1, places + 1, dtype=torch.float64).view(1, 1, *input_size)
    read = convolution.pad(line, geometry)[0, 0].long()  # which place of the image, counted from 1; 0 for none
    output_size = geometry.output_size(input_size)
    slices = [
        [slice(u * d, u * d + (m - 1) * s + 1, s) for u in range(k)]
        for k, d, s, m in zip(geometry.kernel_size, geometry.dilation, geometry.stride, output_size, strict=True)
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
