"""Kernel <-> one matrix per frequency, on the half spectrum.

With taps u of shift a(u) and phase p(u) (see `Geometry.taps`), the block at frequency f of a grid of size m is

    K_f[:, (i, p)] = sum over taps u of phase p:  K[:, i, u] exp(2 pi i f . a(u) / m),

of a small kernel a product with a small table, so that the blocks come out frequency by frequency, as the matrix
routines want them, without a transform of the zero-padded kernel and without a transposition.  A large kernel, or one
of few channels on a large image, is folded onto the torus, tap u to the place -a(u), and transformed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from invconv.engine.spectrum import Grid, irfft, multiplicity, outside_inference, rfft
from invconv.geometry import Size

FOLD_ABOVE_TAPS = 64
"""Taps from which a kernel is large: folded onto the torus and transformed, which needs no table.

Speed only, and memory: at 11 x 11 and 256 x 256 a hundredth of the time for one channel, twice the time for 16.
"""

FOLD_ABOVE_CHANNELS = 4
"""Taps for each channel from which it is folded, too: spectra of many channels have to be turned round.  Speed only."""

FOLD_ABOVE_PLACES = 2**13
"""Frequencies from which a kernel of few channels is folded, whose table would be larger than its blocks.

Speed only, and memory: at 512 x 512, one channel and 3 x 3, a third of the time there and a thirtieth back.
"""

CHUNK = 2**14
"""Frequencies of a table that are computed at once.  Speed only, and memory."""


@outside_inference
def _table(grid: Grid, dtype: torch.dtype, device: torch.device) -> Tensor:
    """exp(2 pi i f . a(u) / m) where tap u has phase p, else 0: (count * phases, taps); real ones if pointwise."""
    shifts, phases = zip(*grid.geometry.taps(), strict=True)
    frequencies = torch.cartesian_prod(*(torch.arange(m) for m in grid.half_size)).view(-1, len(grid.size))
    flat = [sum(p * math.prod(grid.geometry.stride[d + 1 :]) for d, p in enumerate(phase)) for phase in phases]
    at = torch.nn.functional.one_hot(torch.tensor(flat), grid.phases).T.to(torch.float64)
    parts = (_turned(part, grid, shifts) for part in frequencies[: grid.count].split(CHUNK))
    tables = ((part[:, None, :] * at).flatten(0, 1) for part in parts)
    return torch.cat([(t.real.to(dtype) if grid.pointwise else t.to(dtype.to_complex())) for t in tables]).to(device)


def _turned(frequencies: Tensor, grid: Grid, shifts: Sequence[Size]) -> Tensor:
    """exp(2 pi i f . a(u) / m): (frequencies, taps).

    Turns are counted in integers, modulo the size, so that large grids lose no digits.
    """
    turns = torch.zeros(len(frequencies), len(shifts), dtype=torch.float64)
    for d, m in enumerate(grid.size):
        turns += (frequencies[:, d, None] * torch.tensor([shift[d] for shift in shifts]) % m).double() / m
    return torch.polar(torch.ones_like(turns), 2 * math.pi * turns)


def _folds(grid: Grid, channels: int) -> bool:
    """Whether the blocks, whose larger side has so many channels, come from an FFT."""
    taps = math.prod(grid.geometry.kernel_size)
    few = taps > channels**2 and grid.count >= FOLD_ABOVE_PLACES
    return (few or taps >= max(FOLD_ABOVE_TAPS, FOLD_ABOVE_CHANNELS * channels)) and not grid.pointwise


@outside_inference
def _folded(grid: Grid, device: torch.device) -> Tensor:
    """Where each tap comes to lie among the phases * places of the torus: at -a(u), (taps,)."""
    shifts, phases = (torch.tensor(each) for each in zip(*grid.geometry.taps(), strict=True))
    flat = torch.zeros(len(shifts), dtype=torch.long)
    for values, sizes in ((phases, grid.geometry.stride), (-shifts, grid.size)):
        for d, m in enumerate(sizes):
            flat = flat * m + values[:, d] % m
    return flat.to(device)


def kernel_to_blocks(weight: Tensor, grid: Grid) -> Tensor:
    """K_f. weight: (out, in/groups, *kernel) -> (groups, count, out/groups, in/groups * phases), real if pointwise."""
    groups = grid.geometry.groups
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    if _folds(grid, max(rows, columns * grid.phases)):
        folded = weight.new_zeros(len(weight), columns, grid.phases * math.prod(grid.size))
        folded = folded.index_add(2, _folded(grid, weight.device), weight.flatten(2))
        spectrum = rfft(folded.view(groups, rows * columns * grid.phases, *grid.size), grid)
        return spectrum.mT.contiguous().view(groups, grid.count, rows, columns * grid.phases)
    table = _table(grid, weight.dtype, weight.device)
    taps = weight.reshape(groups, rows * columns, -1).mT.to(table.dtype)
    blocks = (table @ taps).view(groups, grid.count, grid.phases, rows, columns)
    return blocks.permute(0, 1, 3, 4, 2).reshape(groups, grid.count, rows, columns * grid.phases)


def blocks_to_kernel(blocks: Tensor, weight_size: torch.Size, grid: Grid) -> Tensor:
    """The adjoint of `kernel_to_blocks` over the full spectrum: sum_f Re tr(G_f^H dK_f) = <result, dK>.

    blocks: G_f, shaped as K_f -> weight_size.
    """
    groups, count, _, _ = blocks.shape
    if _folds(grid, max(blocks.shape[2:])):
        spectrum = blocks.flatten(2).mT
        folded = irfft(spectrum, grid) * math.prod(grid.size)
        return folded.reshape(*weight_size[:2], -1).index_select(2, _folded(grid, blocks.device)).view(weight_size)
    dtype = blocks.real.dtype if blocks.is_complex() else blocks.dtype
    table = _table(grid, dtype, blocks.device).reshape(count, -1) * multiplicity(grid, blocks.device).to(dtype)[:, None]
    blocks = blocks.unflatten(3, (-1, grid.phases)).permute(0, 1, 4, 2, 3)
    taps = table.reshape(count * grid.phases, -1).mH @ blocks.reshape(groups, count * grid.phases, -1)
    return (taps.real if taps.is_complex() else taps).mT.reshape(weight_size)
