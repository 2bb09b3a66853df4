"""Symmetric kernels at reflecting borders: the cosine transform takes the layer apart but for weights at its borders.

A reflected image is even, and stays so under a kernel that is symmetric along each axis.  With the orthogonal type-I
cosine transform Q = Q', a block K_f of the channels at each of its frequencies f, and W, 1/2 at the first and the last
place of an axis and 1 between them,

    A = W^-1/2 Q K Q W^1/2,      and for channels that do not mix      L = W^-1/2 Q (K^2 + d^2)^-1/2 Q.

L'(A'A + d^2) L lies between 1 and 2 for each axis, which is 4 in two dimensions:
a condition number of 2, whatever K is.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.preconditioner import Root
from invconv.geometry import Size

ROUNDINGS = 4
"""How far a kernel may be from a symmetric one, in eps and its largest tap: sums of a few taps in another order."""

STEEP = 1e10
"""Condition number of K up to which L is formed without damping; beyond, its rounding errors are what is solved for."""

TABLE = 1024
"""Places of an axis up to which its transform is a product with a matrix, 8 MiB; beyond, an FFT.  Speed only."""


def why_not_mirrored(conv: Convolution, unit: float) -> str:
    """Why the cosine transform does not take a layer apart; empty where it does.

    Args:
        conv: the map.
        unit: eps of the dtype in which the kernel was told.
    """
    geometry, weight = conv.geometry, conv.weight
    if geometry.padding_mode != "reflect" or any(s != 1 for s in geometry.stride) or min(conv.input_size) < 2:
        return "its borders do not reflect, or it has a stride"
    if not all(e % 2 and (e // 2, e // 2) == tuple(p) for e, p in zip(geometry.extent, geometry.padding, strict=True)):
        return "its kernel has no middle, or the padding is not half of it"
    flips = [weight.flip(axis) - weight for axis in range(2, weight.dim())]
    if not all(bool(rest.abs().amax() <= ROUNDINGS * unit * weight.abs().amax()) for rest in flips):
        return "its kernel is not symmetric along each axis"
    return ""


def mirror_root(conv: Convolution, unit: float, damping: float) -> Root | None:
    """L and its transpose; None where the layer is of another kind or nearly singular.

    Args:
        conv: the map, in float64.
        unit: eps of the dtype in which the kernel was told.
        damping: d.
    """
    if conv.block_shape != (1, 1) or why_not_mirrored(conv, unit):
        return None
    values = mirror_blocks(conv).view(1, *conv.x_shape)
    sizes = values.abs()
    if not damping and not sizes.amin() * STEEP > sizes.amax():
        return None
    gain = torch.hypot(values, values.new_tensor(damping)).reciprocal()
    root, cosine = weight_root(conv.input_size).to(values), transform(conv.input_size, values)

    def middle(x: Tensor) -> Tensor:
        return cosine(gain * cosine(x))

    return lambda z: middle(z) / root, lambda x: middle(x / root)


def mirror_blocks(conv: Convolution) -> Tensor:
    """K_f: (groups, places, outputs, inputs), real."""
    values: Tensor = conv.weight
    for table in _cosines(conv):
        values = torch.tensordot(values, table, ([2], [0]))  # the axis goes last, the next comes first
    blocks: Tensor = values.flatten(2).unflatten(0, (conv.geometry.groups, -1)).movedim(-1, 1).contiguous()
    return blocks


def mirror_gradient(blocks: Tensor, conv: Convolution) -> Tensor:
    """The gradient by the kernel of sum_f tr(G_f' K_f).  blocks: G_f, as K_f."""
    values: Tensor = blocks.movedim(1, -1).flatten(0, 1).unflatten(-1, conv.input_size)
    for table in _cosines(conv):
        values = torch.tensordot(values, table, ([2], [1]))
    return values


def _cosines(conv: Convolution) -> list[Tensor]:
    """What each tap of an axis is at each frequency: (taps, places)."""
    tables = []
    for n, k, dilation in zip(conv.input_size, conv.geometry.kernel_size, conv.geometry.dilation, strict=True):
        taps = dilation * (torch.arange(k) - k // 2)
        tables.append(_cosine(taps, n).to(conv.weight))
    return tables


def _cosine(places: Tensor, n: int) -> Tensor:
    """cos(pi i j / (n - 1)) for these i and all j of an axis; i j is taken modulo a turn, which rounds nothing."""
    turns = torch.remainder(places[:, None] * torch.arange(n), 2 * (n - 1))
    return torch.cos(math.pi / (n - 1) * turns.double())


def edges(n: int) -> Tensor:
    """The first and the last column of Q: (n, 2)."""
    ends = torch.tensor([0, n - 1])
    return _cosine(ends, n).mT * _line_root(n)[:, None] * _line_root(n)[ends] * math.sqrt(2 / (n - 1))


def transform(size: Size, like: Tensor) -> Callable[[Tensor], Tensor]:
    """Q for images of this size: real, symmetric, its own inverse."""
    roots = [_line_root(n).to(like) for n in size]
    tables = [
        (_cosine(torch.arange(n), n).to(like) * root * root[:, None]) * math.sqrt(2 / (n - 1)) if n <= TABLE else None
        for n, root in zip(size, roots, strict=True)
    ]

    def cosine(x: Tensor) -> Tensor:
        for axis, (table, root) in enumerate(zip(tables, roots, strict=True), start=2):
            lines = x.movedim(axis, -1)
            x = (lines @ table if table is not None else _by_fft(lines, root)).movedim(-1, axis)
        return x

    return cosine


def _by_fft(lines: Tensor, root: Tensor) -> Tensor:
    """Q along the last axis, by the FFT of the even extension.  root: W^1/2."""
    n = len(root)
    lines = lines / root
    even = torch.cat([lines, lines[..., 1:-1].flip(-1)], -1)
    spectrum: Tensor = torch.fft.rfft(even).real
    return spectrum * root * math.sqrt(0.5 / (n - 1))


def weight_root(size: Size) -> Tensor:
    """The diagonal of W^1/2, as an image."""
    root = torch.ones((), dtype=torch.float64)
    for n in size:
        root = root[..., None] * _line_root(n)
    return root


def _line_root(n: int) -> Tensor:
    """The diagonal of W^1/2 along an axis."""
    root = torch.ones(n, dtype=torch.float64)
    root[0] = root[-1] = math.sqrt(0.5)
    return root
