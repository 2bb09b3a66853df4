"""One matrix for each frequency: a map from image to image, and batches of small matrices factored.

    map(x) = F^-1 (X_f F(x)_f),      F the FFT over the places of a torus, X_f the block at frequency f.

A stride makes several channels, its phases, of each one; the map splits them before and merges them after.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine.kernels import blocks_to_kernel
from invconv.engine.spectrum import (
    Grid,
    frequency_to_image,
    halves,
    image_to_frequency,
    merge_phases,
    split_phases,
)
from invconv.geometry import Size

ONCE_UP_TO_WIDTH = 16
"""Widest torus on which it pays to leave out what stands twice in the half spectrum.  Speed only."""

BATCH_UP_TO_ROWS = 128
"""The largest matrices of which a batch goes to `torch.linalg.lu_factor_ex` as a whole on the CPU."""


class Factors(NamedTuple):
    """What one factorisation of the blocks gives."""

    inverse: Tensor
    """K_f^+ if K_f has full rank, else not to be trusted."""
    log_volume: Tensor
    """1/2 log det(K_f^H K_f), or of K_f K_f^H for wide blocks: (groups, count), float64."""


def factor(blocks: Tensor) -> Factors:
    """LU of square blocks; QR of the tall side of the others, which unlike their Gram matrix keeps all digits."""
    rows, columns = blocks.shape[-2:]
    if rows < columns:
        wide = factor(blocks.mH)
        return Factors(wide.inverse.mH.resolve_conj(), wide.log_volume)
    if rows == columns:
        # LAPACK reads and writes columns: of the transpose, nothing has to be copied.
        lu, pivots = lu_factor(blocks.mT)
        identity = torch.eye(rows, dtype=blocks.dtype, device=blocks.device).expand_as(blocks)
        return Factors(torch.linalg.lu_solve(lu, pivots, identity).mT, _log_diagonal(lu))
    q, r = torch.linalg.qr(blocks)
    return Factors(torch.linalg.solve_triangular(r, q.mH, upper=True).contiguous(), _log_diagonal(r))


def factor_damped(blocks: Tensor, damping: float) -> Factors:
    """Factors of the blocks stacked on `damping` times the identity: those of K^H K + d^2."""
    columns = blocks.shape[-1]
    identity = torch.eye(columns, dtype=blocks.dtype, device=blocks.device)
    return factor(torch.cat([blocks, (damping * identity).expand(*blocks.shape[:2], columns, columns)], dim=-2))


def _log_diagonal(triangle: Tensor) -> Tensor:
    """Sum of log |t_ii| of each triangular matrix, float64."""
    return triangle.diagonal(dim1=-2, dim2=-1).abs().double().log().sum(-1)


def frobenius(blocks: Tensor) -> Tensor:
    """||K_f||_F: (groups, count).

    The real view is summed, which is five times as fast as the complex numbers.
    """
    real = torch.view_as_real(blocks).flatten(-2) if blocks.is_complex() else blocks
    norms: Tensor = torch.linalg.vector_norm(real.flatten(2), dim=2)
    return norms


SQUARINGS = 4
"""How often a Gram matrix is squared to find its largest eigenvalue: n rows bring it n^(1/64) too high at most."""


def norm_bound(blocks: Tensor) -> float:
    """max_f ||K_f||_2 from above, by ||(K_f^H K_f)^16||_F^(1/32); infinite or NaN as the blocks are."""
    rows, columns = blocks.shape[-2:]
    norms = frobenius(blocks).flatten()
    largest = norms.max()
    if not (math.isfinite(largest) and largest > 0):
        return largest.item()
    # The largest singular value of all lies where ||K_f||_F reaches the least that it can be.
    few = blocks.flatten(0, 1)[norms >= largest / math.sqrt(min(rows, columns))] / largest
    power = few.mH @ few if rows > columns else few @ few.mH
    log = power.new_zeros(len(power), dtype=torch.float64)
    for squared in range(SQUARINGS + 1):
        power = power @ power if squared else power
        norms = torch.linalg.matrix_norm(power)
        power = power / norms[:, None, None]
        log = 2 * log + norms.double().log()
    return float(largest * (log / 2 ** (SQUARINGS + 1)).max().exp())


def truncate(blocks: Tensor, inverse: Tensor, doubtful: Tensor, rtol: float) -> tuple[Tensor, Tensor]:
    """The inverse blocks with singular values below rtol * sigma_max cut off, and how many: (groups, count).

    Args:
        blocks: K_f.
        inverse: K_f^+ where nothing has to be cut.
        doubtful: the blocks where that is not known.
        rtol: what counts as zero.
    """
    norms = frobenius(blocks)
    # Only where ||K_f||_F reaches the best lower bound can the largest singular value of all be found.
    lower = norms.max() / math.sqrt(min(blocks.shape[-2:]))
    largest = torch.linalg.svdvals(blocks[norms >= lower]).max()
    u, s, vh = torch.linalg.svd(blocks[doubtful], full_matrices=False)
    kept = s > rtol * largest
    reciprocal = torch.where(kept, s, 1).reciprocal() * kept
    inverse, cut = inverse.clone(), torch.zeros_like(norms, dtype=torch.float64)
    inverse[doubtful] = (vh.mH * reciprocal.unsqueeze(-2)) @ u.mH
    cut[doubtful] = (~kept).sum(-1).double()
    return inverse, cut


@dataclass(frozen=True, eq=False)
class TorusMap:
    """Blocks at every frequency of a torus, as a map from image to image.

    Args:
        blocks: (groups, count, rows, columns).
        grid: the torus and its frequencies.
        stride_in: phases into which an image that goes in is split.
        stride_out: phases of which an image that comes out is merged.
    """

    blocks: Tensor
    grid: Grid
    stride_in: Size
    stride_out: Size

    def map(self, x: Tensor) -> Tensor:
        """X x. x: (batch, channels, *grid.size * stride_in)."""
        spectrum = image_to_frequency(split_phases(x, self.stride_in), self.grid)
        # Row vectors are faster for the few columns of a small batch: 2 to 4 times up to 3, 1.4 times for 4 of 96 rows.
        # An exported program is for batches of all sizes.
        few = not torch.compiler.is_compiling() and spectrum.shape[-1] < max(4, spectrum.shape[-2] // 16)
        spectrum = (spectrum.mT @ self.blocks.mT).mT if few else self.blocks @ spectrum
        return merge_phases(frequency_to_image(spectrum, self.grid), self.stride_out)

    def adjoint(self, x: Tensor) -> Tensor:
        """X' x; the small side is conjugated, not the large one."""
        spectrum = image_to_frequency(split_phases(x, self.stride_out), self.grid)
        return merge_phases(frequency_to_image((spectrum.mH @ self.blocks).mH, self.grid), self.stride_in)

    def factor(self) -> Factors:
        """Factors of all blocks; on small tori each frequency once and real ones as such.

        That leaves the work of 7 complex blocks of 12 on a torus of 4 x 4, of 31 of 40 on one of 8 x 8.
        """
        blocks, grid = self.blocks, self.grid
        if grid.pointwise or grid.size[-1] > ONCE_UP_TO_WIDTH:
            return factor(blocks)
        parts = halves(grid, blocks.device)
        inverse = blocks.new_empty(*blocks.shape[:2], *blocks.shape[:1:-1])
        log_volume = blocks.new_empty(blocks.shape[:2], dtype=torch.float64)
        for index, part in ((parts.complex, blocks[:, parts.complex]), (parts.real, blocks[:, parts.real].real)):
            factors = factor(part)
            inverse[:, index], log_volume[:, index] = factors.inverse.to(inverse.dtype), factors.log_volume
        inverse[:, parts.mirrored] = inverse[:, parts.mirrors].conj()
        log_volume[:, parts.mirrored] = log_volume[:, parts.mirrors]
        return Factors(inverse, log_volume)

    def kernel_gradient(self, weight_size: torch.Size) -> Tensor:
        """The gradient by the kernel of sum_f Re tr(X_f^H K_f) over the full spectrum: (weight_size)."""
        return blocks_to_kernel(self.blocks, weight_size, self.grid)


def lu_factor(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """LU and pivots as `torch.linalg.lu_solve` takes them; no error where a matrix is singular.

    After `torch.set_num_threads`, PyTorch factors the matrices of a batch in threads of its own, in which MKL is not
    safe: from 150 rows on the factors are wrong without a word (pytorch/pytorch#142815 and #141358, in 2.5 to 2.14).
    One at a time large ones are right, and take a quarter longer at 192 rows.
    """
    batch = matrices.shape[:-2]
    if matrices.device.type != "cpu" or matrices.shape[-1] <= BATCH_UP_TO_ROWS or math.prod(batch) <= 1:
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return lu, pivots
    parts = [torch.linalg.lu_factor_ex(matrix) for matrix in matrices.flatten(0, -3)]
    lu = torch.stack([part.LU.mT for part in parts]).mT  # by columns, as LAPACK has them
    return lu.unflatten(0, batch), torch.stack([part.pivots for part in parts]).unflatten(0, batch)
