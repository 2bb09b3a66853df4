r"""A bound of the norm for images of every size: the supremum of the symbol, from above.

    K(w) = sum over taps u of  K_u exp(i <w, shift(u)>),        ||A|| <= sqrt(copies) sup_w ||K(w)||:

an image with borders of zeros is one on an endless lattice, of which some outputs are left out; other borders read an
image in which a pixel stands `copies` times at most. Of the supremum a few values tell: for the best vector a,
f(w) = |K(w) a|^2 is a nonnegative trigonometric polynomial, of degree n_j along axis j. Along the line from its
maximum f* to a point that is no farther than d_j along each axis it falls no faster than a cosine does (M. Riesz):

    f >= f* cos^2(s / 2),        s = sum_j n_j d_j < pi.

So the supremum lies below any ||K(w)|| / cos(s / 2) of the cell that it is in. Cells that this leaves out are dropped,
all others halved.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from invconv.geometry import Geometry

CELLS = 8
"""Cells along an axis at first, in units of the degree.  Speed only."""

HALVINGS = 2
"""Until the bound is cos(pi / 32 * axes / 2) tight: half a percent in two dimensions.  Speed and tightness only."""

ROUNDING = 64
"""Units of eps that are added to the bound, for what its own computation rounds."""

CHUNK = 2**22
"""Entries of blocks that are looked at at once.  Memory and speed only."""

_MODES = {"reflect": "reflect", "replicate": "edge"}


def supremum(weight: Tensor, geometry: Geometry) -> Tensor:
    """An upper bound of the norm of the layer on images of every size, float64; differentiable in the weight."""
    if geometry.padding_mode == "circular" and any(map(any, geometry.padding)):
        # Sides need not be multiples of the stride: then what is left out are outputs of the layer without it.
        geometry = replace(geometry, stride=(1,) * geometry.dims)
    shifts, taps = _shifts(geometry)
    kernel = _by_shift(weight.double(), geometry, taps, len(shifts))
    places = torch.tensor(shifts, dtype=torch.float64, device=weight.device)
    degrees = places.amax(0)
    with torch.no_grad():
        group, best, half = _largest(kernel.detach(), places, degrees)
    block = _symbol(kernel[group : group + 1], places, best[None])[0, 0]
    norm: Tensor = torch.linalg.svdvals(block)[0]
    rows, columns = block.shape
    rounding = 1 + ROUNDING * torch.finfo(torch.float64).eps * math.sqrt(rows + columns)
    return norm * (math.sqrt(_copies(geometry)) / math.cos(float((degrees * half).sum()) / 2) * rounding)


def _shifts(geometry: Geometry) -> tuple[list[tuple[int, ...]], list[tuple[int, int]]]:
    """Shifts, from zero and with no common divisor; of each tap which of these it has, and its phase."""
    taps = geometry.taps()
    axes = []
    for values in zip(*(shift for shift, _ in taps), strict=True):
        least = min(values)
        divisor = math.gcd(*(value - least for value in values)) or 1
        axes.append([(value - least) // divisor for value in values])
    places = list(zip(*axes, strict=True))
    shifts = sorted(set(places))
    phases = [int(np.ravel_multi_index(phase, geometry.stride)) for _, phase in taps]
    return shifts, [(shifts.index(place), phase) for place, phase in zip(places, phases, strict=True)]


def _by_shift(weight: Tensor, geometry: Geometry, taps: Sequence[tuple[int, int]], count: int) -> Tensor:
    """The matrices of the shifts: (groups, shifts, rows, columns * phases)."""
    phases = math.prod(geometry.stride)
    rows, columns = weight.shape[0] // geometry.groups, weight.shape[1]
    slots = torch.tensor([shift * phases + phase for shift, phase in taps], device=weight.device)
    empty = weight.new_zeros(geometry.groups, rows, columns, count * phases)
    kernel = empty.index_add(3, slots, weight.reshape(geometry.groups, rows, columns, -1))
    matrices: Tensor = kernel.unflatten(3, (count, phases)).permute(0, 3, 1, 2, 4).flatten(3)
    return matrices


def _symbol(kernel: Tensor, places: Tensor, frequencies: Tensor) -> Tensor:
    """K(w) at some frequencies, (points, axes): (groups, points, rows, columns)."""
    angles = frequencies @ places.T
    waves = torch.complex(angles.cos(), angles.sin())
    product: Tensor = (waves @ kernel.flatten(2).to(waves.dtype)).unflatten(2, kernel.shape[2:])
    return product


def _norms(kernel: Tensor, places: Tensor, frequencies: Tensor) -> Tensor:
    """The norms ||K(w)|| at some frequencies: (groups, points)."""
    norms = []
    for part in frequencies.split(max(1, CHUNK // kernel[:, 0].numel())):
        blocks = _symbol(kernel, places, part)
        gram = blocks.mH @ blocks if blocks.shape[-2] > blocks.shape[-1] else blocks @ blocks.mH
        norms.append(torch.linalg.eigvalsh(gram)[..., -1].clamp_min(0).sqrt())
    return torch.cat(norms, 1)


def _largest(kernel: Tensor, places: Tensor, degrees: Tensor) -> tuple[int, Tensor, Tensor]:
    """The group and the frequency of the largest norm among the cells that are left; half their sides."""
    counts = [CELLS * int(degree) or 1 for degree in degrees]
    half = torch.tensor([math.pi / count for count in counts], dtype=torch.float64, device=kernel.device)
    half = torch.where(degrees > 0, half, 0.0)
    # Of opposite frequencies, whose blocks are conjugates, one is enough.
    first = next((axis for axis, count in enumerate(counts) if count > 1), None)
    lines = [torch.arange(count // 2 + 1 if axis == first else count) for axis, count in enumerate(counts)]
    cells = torch.cartesian_prod(*lines).view(-1, len(lines)).to(half) * (2 * half)
    corners = torch.tensor(list(itertools.product((-0.5, 0.5), repeat=len(counts))), dtype=torch.float64).to(half)
    norms = _norms(kernel, places, cells)
    for _ in range(HALVINGS):
        tops = norms.amax(0)
        cells = cells[tops >= tops.max() * math.cos(float((degrees * half).sum()) / 2)]
        cells = torch.unique((cells[:, None] + corners * half).flatten(0, 1), dim=0)
        half = half / 2
        norms = _norms(kernel, places, cells)
    group, point = divmod(int(norms.argmax()), len(cells))
    return group, cells[point], half


def _copies(geometry: Geometry) -> int:
    """How often a pixel is read, or an output given, by a border that repeats them, on images of every size."""
    copies = 1
    for (left, right), extent in zip(geometry.padding, geometry.extent, strict=True):
        if geometry.padding_mode == "circular":
            least = max(left, right, 1)
            copies *= max(1, math.ceil((least + left + right - extent + 1) / least))
        elif geometry.padding_mode in _MODES:
            reflects = geometry.padding_mode == "reflect" and max(left, right)
            least = max(max(left, right) + 1 if reflects else 1, extent - left - right)
            copies *= max(
                int(np.bincount(np.pad(np.arange(n), (left, right), mode=_MODES[geometry.padding_mode])).max())  # type: ignore[call-overload]
                for n in range(least, max(least, left + right) + 2)
            )
    return copies
