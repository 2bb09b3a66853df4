"""A torus as the preconditioner of a layer with real borders: the inverse root of its Gram matrix, in the windows.

LL' = (C'C + d^2)^-1,  or (CC')^-1 where A is wide:      Cholesky factors, a block for each frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invconv.engine import cost, memory
from invconv.engine.blocks import TorusMap
from invconv.engine.convolution import Convolution
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.spectrum import Grid
from invconv.engine.windows import crop, embed, smallest_torus

WORTH = 1e3
"""Condition number of the torus up to which it is used as a preconditioner; any where damping bounds it."""

CHUNK = 4096
"""Frequencies that are factored at once.  Memory and speed only."""

Linear = Callable[[Tensor], Tensor]
Root = tuple[Linear, Linear]


def torus_root(conv: Convolution, tall: bool, damping: float) -> Root | None:
    """L and its transpose; None where the torus is too badly conditioned, or memory short.

    Args:
        conv: the map, in float64.
        tall: whether L stands on the side of x.
        damping: d.
    """
    if root_bytes(conv, tall) > 0.8 * memory.available_memory(conv.device):
        return None
    grid = Grid(conv.geometry, smallest_torus(conv.geometry, conv.input_size))
    blocks = kernel_to_blocks(conv.weight, grid)
    blocks = blocks if tall else blocks.mH
    rows, columns = blocks.shape[-2:]
    if rows < columns and not damping:
        return None
    root = blocks.new_empty(*blocks.shape[:2], columns, columns)
    gains = []
    identity = torch.eye(columns, dtype=blocks.dtype, device=blocks.device)
    for part, out in zip(blocks.split(CHUNK, 1), root.split(CHUNK, 1), strict=True):
        lower, failed = torch.linalg.cholesky_ex(part.mH @ part + damping**2 * identity)
        torch.linalg.solve_triangular(lower.mH, identity.expand_as(lower), upper=True, out=out)
        gains.append(torch.stack([g.abs().square().sum((-2, -1)).max() for g in (lower, out)]))
        if failed.any():
            return None
    if not damping and not torch.stack(gains).amax(0).prod() < (WORTH * columns) ** 2:
        return None
    stride = conv.geometry.stride if tall else (1,) * conv.geometry.dims
    size = grid.input_size if tall else grid.size
    on_torus = TorusMap(root, grid, stride, stride)

    def windowed(image: Tensor, product: Linear) -> Tensor:
        return crop(product(embed(image, size)), image.shape[2:])

    return lambda z: windowed(z, on_torus.map), lambda x: windowed(x, on_torus.adjoint)


def root_bytes(conv: Convolution, tall: bool) -> int:
    """Memory that the preconditioner takes at its peak: the blocks of C and of the root, in complex128, twice."""
    places, (rows, columns), side = _shape(conv, tall)
    return 16 * conv.geometry.groups * places * (rows * columns + side**2)


def root_cost(conv: Convolution, tall: bool) -> cost.Cost:
    """The blocks of C and their roots, and one image sent through these."""
    places, _, side = _shape(conv, tall)
    groups = conv.geometry.groups
    answer = cost.transforms(places, 2 * groups * side) + cost.BYTE * 8 * groups * places * side**2
    return cost.Cost(cost.torus(conv, smallest_torus(conv.geometry, conv.input_size)).factors, 3 * cost.CALL + answer)


def _shape(conv: Convolution, tall: bool) -> tuple[int, tuple[int, int], int]:
    """Places of the torus, the shape of a block of C, and the side of one of the root."""
    rows, columns = conv.block_shape
    places = math.prod(smallest_torus(conv.geometry, conv.input_size)) // math.prod(conv.geometry.stride)
    return places, (rows, columns), columns if tall else rows


def _same(image: Tensor) -> Tensor:
    """The image itself."""
    return image


NO_ROOT: Root = (_same, _same)
"""The identity and its transpose, where there is no preconditioner."""
