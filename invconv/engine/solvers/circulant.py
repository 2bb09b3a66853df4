"""Cyclic layers: block-diagonal under the FFT, so every question is answered one small matrix at a time."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine.lu import lu_factor
from invconv.engine.spectrum import (
    Grid,
    blocks_to_kernel,
    frequency_to_image,
    halves,
    image_to_frequency,
    kernel_to_blocks,
    merge_phases,
    multiplicity,
    split_phases,
)
from invconv.errors import IllConditionedWarning, SingularMapError, warn_cut_off
from invconv.geometry import Geometry, Size

SMALL = 16
"""Widest torus on which it pays to leave out what stands twice in the half spectrum."""


class Factors(NamedTuple):
    """What one factorisation of the blocks gives."""

    inverse: Tensor  # K_f^+ if K_f has full rank, else not to be trusted
    log_volume: Tensor  # 1/2 log det(K_f^H K_f), or of K_f K_f^H: (groups, count)


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


def factor_torus(blocks: Tensor, grid: Grid) -> Factors:
    """`factor` of all blocks; on small tori each frequency once and real ones as such.

    That leaves the work of 7 complex blocks of 12 on a torus of 4 x 4, of 31 of 40 on one of 8 x 8.
    """
    if grid.pointwise or grid.size[-1] > SMALL:
        return factor(blocks)
    parts = halves(grid, blocks.device)
    inverse = blocks.new_empty(*blocks.shape[:2], *blocks.shape[:1:-1])
    log_volume = blocks.new_empty(blocks.shape[:2], dtype=torch.float64)
    for index, part in ((parts.complex, blocks[:, parts.complex]), (parts.real, blocks[:, parts.real].real)):
        found = factor(part)
        inverse[:, index], log_volume[:, index] = found.inverse.to(inverse.dtype), found.log_volume
    inverse[:, parts.mirrored] = inverse[:, parts.mirrors].conj()
    log_volume[:, parts.mirrored] = log_volume[:, parts.mirrors]
    return Factors(inverse, log_volume)


def _log_diagonal(triangle: Tensor) -> Tensor:
    return triangle.diagonal(dim1=-2, dim2=-1).abs().double().log().sum(-1)


def frobenius(blocks: Tensor) -> Tensor:
    """||K_f||_F: (groups, count).  Of the real view, which is five times as fast as of the complex numbers."""
    real = torch.view_as_real(blocks).flatten(-2) if blocks.is_complex() else blocks
    return torch.linalg.vector_norm(real.flatten(2), dim=2)


def multiply(blocks: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """The map of these blocks, applied to an image split by phase."""
    spectrum = image_to_frequency(x, grid)
    # Row vectors are faster for the few columns of a small batch: 2 to 4 times up to 3, 1.4 times for 4 of 96 rows.
    few = spectrum.shape[-1] < max(4, spectrum.shape[-2] // 16)
    return frequency_to_image((spectrum.mT @ blocks.mT).mT if few else blocks @ spectrum, grid)


def multiply_adjoint(blocks: Tensor, x: Tensor, grid: Grid) -> Tensor:
    """Its transpose; the small side is conjugated, not the large one."""
    spectrum = image_to_frequency(x, grid)
    return frequency_to_image((spectrum.mH @ blocks).mH, grid)


class Circulant:
    """C, block-circulant, and its pseudo-inverse C^+; what is asked for is computed once and kept.

    Singular values below `rtol` times the largest count as zero.  With `damping` = d the pseudo-inverse is
    (C'C + d^2)^-1 C' (Tikhonov), that is the first columns of the pseudo-inverse of C stacked on d times the identity.
    """

    solver = "fft"

    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size, rtol: float | None, damping: float):
        self.weight = weight
        self.grid = Grid(geometry, input_size)
        rows, columns = weight.shape[0] // geometry.groups, weight.shape[1] * self.grid.phases
        self.eps = torch.finfo(weight.dtype).eps * max(rows, columns)
        self.rtol = self.eps if rtol is None else rtol
        self.damping = damping
        self.full_rank = min(rows, columns) * geometry.groups * math.prod(self.grid.size)

    def split(self, count: int) -> list[Circulant]:
        """`count` maps, each of an equal share of the groups and with its part of the factors."""
        geometry = replace(self.grid.geometry, groups=self.grid.geometry.groups // count)
        parts = []
        shares = (t.chunk(count) for t in (self.weight, self.blocks, *self._factors))
        for weight, blocks, inverse, log_volume in zip(*shares, strict=True):
            part = Circulant(weight, geometry, self.grid.input_size, self.rtol, self.damping)
            vars(part).update(blocks=blocks, _factors=Factors(inverse, log_volume))
            parts.append(part)
        return parts

    # -- the map ---------------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> Tensor:
        """K_f: (groups, count, rows, columns)."""
        return kernel_to_blocks(self.weight, self.grid)

    def drop_blocks(self) -> None:
        """Free them once the factors are there; they are computed again if they are asked for."""
        vars(self).pop("blocks", None)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """C^+ y."""
        return merge_phases(multiply(self.inverse_blocks, y, self.grid), self.grid.geometry.stride)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(C^+)' x."""
        return multiply_adjoint(self.inverse_blocks, split_phases(x, self.grid.geometry.stride), self.grid)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(C'C)^+ x, or (C'C + d^2)^-1 x."""
        if not self.damping:
            return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))
        damped = self._damped.inverse[..., self.blocks.shape[-2] :] / self.damping
        stride = self.grid.geometry.stride
        return merge_phases(multiply(damped, split_phases(x, stride), self.grid), stride)

    # -- factors ---------------------------------------------------------------------------------------------------

    @cached_property
    def _factors(self) -> Factors:
        return factor_torus(self.blocks, self.grid)

    @cached_property
    def _damped(self) -> Factors:
        columns = self.blocks.shape[-1]
        identity = torch.eye(columns, dtype=self.blocks.dtype, device=self.blocks.device)
        shift = (self.damping * identity).expand(*self.blocks.shape[:2], columns, columns)
        return factor(torch.cat([self.blocks, shift], dim=-2))

    @cached_property
    def _inverse_norm(self) -> Tensor:
        """||K_f^+||_F, an upper bound of 1 / sigma_min(K_f), infinite or NaN where K_f is singular."""
        return frobenius(self._factors.inverse).double()

    @cached_property
    def _norm(self) -> float:
        """max_f ||K_f||_F, an upper bound of sigma_max."""
        return frobenius(self.blocks).max().item()

    @cached_property
    def condition_bound(self) -> float:
        """An upper bound of the condition number, at most min(rows, columns) times it, without an SVD."""
        bound = self._norm * self._inverse_norm.max().item()
        return bound if bound == bound else math.inf

    @property
    def full_inverse(self) -> Tensor:
        """K_f^+ with no singular value cut off."""
        return self._factors.inverse

    @property
    def full_log_volume(self) -> Tensor:
        """`log_volume`, whatever it is worth."""
        return (self._factors.log_volume * multiplicity(self.grid, self.weight.device)).sum()

    @cached_property
    def inverse_gain(self) -> float:
        """The root mean square gain of K_f^+ at the frequency where it is largest."""
        return (self._inverse_norm.max() / math.sqrt(self.full_inverse.shape[-1])).item()

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about: the root mean square gains of C and C^+, multiplied."""
        growth = self.inverse_gain * self._norm / math.sqrt(self.full_inverse.shape[-2])
        return growth if growth == growth else math.inf

    @property
    def condition(self) -> float:
        """An upper bound of the condition number."""
        return self.condition_bound

    @cached_property
    def _truncated(self) -> tuple[Tensor, int]:
        """K_f^+ with singular values below rtol * sigma_max cut off, and the rank of C.

        An SVD is taken only at the frequencies where a cheap bound cannot exclude that there is something to cut.
        """
        inverse = self._factors.inverse
        doubtful = ~(self._inverse_norm * self._norm * self.rtol < 1)
        if not doubtful.any():
            return inverse, self.full_rank
        norms = frobenius(self.blocks)
        # Only where ||K_f||_F reaches the best lower bound can the largest singular value of all be found.
        lower = norms.max() / math.sqrt(min(self.blocks.shape[-2:]))
        largest = torch.linalg.svdvals(self.blocks[norms >= lower]).max()
        u, s, vh = torch.linalg.svd(self.blocks[doubtful], full_matrices=False)
        kept = s > self.rtol * largest
        reciprocal = torch.where(kept, s, 1).reciprocal() * kept
        inverse = inverse.clone()
        inverse[doubtful] = (vh.mH * reciprocal.unsqueeze(-2)) @ u.mH
        weights = multiplicity(self.grid, self.blocks.device).expand(doubtful.shape)[doubtful]
        lost = round(((~kept).sum(-1) * weights).sum().item())
        return inverse, self.full_rank - lost

    @property
    def rank(self) -> int:
        """Number of singular values that are kept."""
        return self.full_rank if self.damping else self._truncated[1]

    @cached_property
    def inverse_blocks(self) -> Tensor:
        """The blocks that `pseudo_inverse` multiplies by: (groups, count, columns, rows)."""
        if self.damping:
            return self._damped.inverse[..., : self.blocks.shape[-2]].contiguous()
        if self.rank < self.full_rank:
            warn_cut_off(self.rank, self.full_rank, self.rtol)
        elif self.condition_bound * self.eps > 1e-2:
            warnings.warn(
                f"condition number of up to {self.condition_bound:.1e} in {self.weight.dtype}: "
                f"the inverse may have a relative error of {self.condition_bound * self.eps:.0e}; "
                "use float64, damping or rtol",
                IllConditionedWarning,
                stacklevel=2,
            )
        return self._truncated[0]

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        self.inverse_blocks  # noqa: B018

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """Sum over the full spectrum of 1/2 log det(K_f^H K_f), float64."""
        worst = int(torch.nan_to_num(self._inverse_norm, nan=math.inf).flatten().argmax())
        if not self._norm * self._inverse_norm.flatten()[worst] * self.eps < 1:
            group, index = divmod(worst, self.grid.count)
            values = torch.linalg.svdvals(self.blocks[group, index]).tolist()
            raise SingularMapError(
                f"the log-determinant is minus infinity: the kernel is singular to working precision at frequency "
                f"{self.grid.frequency(index)} of the {self.grid.size} torus, where its singular values go from "
                f"{values[0]:.1e} down to {values[-1]:.1e} ({self.weight.dtype})"
            )
        return self.full_log_volume

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K = the transposed inverse, read at the taps."""
        return blocks_to_kernel(self._factors.inverse.mH, self.weight.shape, self.grid)

    @cached_property
    def singular_values(self) -> Tensor:
        """All of them, descending."""
        per_block = torch.linalg.svdvals(self.blocks)
        copies = multiplicity(self.grid, self.blocks.device).long().repeat(self.blocks.shape[0])
        return per_block.flatten(0, 1).repeat_interleave(copies, dim=0).flatten().sort(descending=True).values

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        tensors = [v for v in vars(self).values() if isinstance(v, Tensor)]
        tensors += [t for v in vars(self).values() if isinstance(v, tuple) for t in v if isinstance(t, Tensor)]
        return sum({t.data_ptr(): t.nbytes for t in tensors}.values())  # of its own part where the storage is shared
