"""The convolution as a sum over its taps: each a product with the flattened image, moved, of which nothing is copied.

On a CPU, PyTorch unfolds the images of a float64 convolution, and those of few channels in float32: k * k copies of
each, which fit into no cache and at last not into memory.
With the image in the lines of the padded one, what wraps round at the end of a line is cut off:

    y = sum_t K_t x_(. + t),      x = sum_t K_t' y_(. - t),      dK_t = y x_(. + t)'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from invconv.engine.windows import crop
from invconv.geometry import Geometry, Size
from invconv.linear import is_transformed

UNFOLDED = 2**22
"""Bytes of an unfolded image from which a product for each tap is faster than PyTorch's convolution.

Speed only, and memory: both ways are the same sum.
"""

THIN = 4
"""How much larger it has to be where products are thin, of fewer than `FEW` inputs.  Speed only.

They wait for memory, and with more than `WIDE` outputs for each of their inputs the sum over taps waits longer.
"""

FEW, WIDE = 8, 2
"""See `THIN`.  Speed only."""


def pays(weight: Tensor, geometry: Geometry, size: Size, *images: Tensor) -> bool:
    """Whether the sum over taps takes less time than PyTorch's convolution.

    Args:
        weight: the kernel.
        geometry: its geometry.
        size: of the padded image.
        images: what it is applied to.
    """
    if any(t.device.type != "cpu" or is_transformed(t) for t in (weight, *images)):  # which has no sum in place
        return False
    if any(s != 1 for s in geometry.stride):
        return False
    outputs, inputs = weight.shape[0] // geometry.groups, weight.shape[1]
    unfolded = weight.element_size() * inputs * math.prod(size) * math.prod(geometry.kernel_size)
    if inputs < FEW:
        return outputs <= WIDE * inputs and unfolded >= THIN * UNFOLDED
    return weight.dtype == torch.float64 and unfolded >= UNFOLDED


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A x for a padded x, by the taps of a kernel of stride 1.

    At 32 channels and 128 x 128 in a third of the time of PyTorch's, at 3 and 512 x 512 in a sixth.
    """
    size = tuple(x.shape[2:])
    image = _flat(x, geometry)
    y = x.new_zeros(image.shape[0], weight.shape[0] // geometry.groups, image.shape[2])
    reach, starts = _moves(geometry, size)
    for matrix, start in zip(_matrices(weight, geometry, x.shape[0]), starts, strict=True):
        y[..., :reach].baddbmm_(matrix, image[..., start : start + reach])
    return crop(y.view(x.shape[0], weight.shape[0], *size), _outputs(geometry, size))


def adjoint(y: Tensor, weight: Tensor, geometry: Geometry, size: Size) -> Tensor:
    """A' y, as a padded image of this size."""
    y = _in_lines(y, geometry, size)
    x = y.new_zeros(y.shape[0], weight.shape[1], math.prod(size))
    reach, starts = _moves(geometry, size)
    batch = y.shape[0] // geometry.groups
    for matrix, start in zip(_matrices(weight, geometry, batch), starts, strict=True):
        x[..., start : start + reach].baddbmm_(matrix.mT, y[..., :reach])
    return x.view(batch, weight.shape[1] * geometry.groups, *size)


def weight_gradient(x: Tensor, z: Tensor, geometry: Geometry) -> Tensor:
    """d <z, A x> / d K for a padded x."""
    size = tuple(x.shape[2:])
    image, z = _flat(x, geometry), _in_lines(z, geometry, size)
    reach, starts = _moves(geometry, size)
    taps = [z[..., :reach] @ image[..., start : start + reach].mT for start in starts]
    shape = z.shape[0] // geometry.groups, geometry.groups * z.shape[1], image.shape[1], *geometry.kernel_size
    gradient: Tensor = torch.stack(taps, -1).view(shape).sum(0)
    return gradient


def _flat(x: Tensor, geometry: Geometry) -> Tensor:
    """Images of a group's channels, each in one line."""
    return x.reshape(x.shape[0] * geometry.groups, x.shape[1] // geometry.groups, math.prod(x.shape[2:]))


def _in_lines(y: Tensor, geometry: Geometry, size: Size) -> Tensor:
    """Outputs in the lines of the padded image, zero at their ends."""
    rest = [(0, n - m) for n, m in zip(size, y.shape[2:], strict=True)]
    return _flat(F.pad(y, [r for pair in reversed(rest) for r in pair]), geometry)


def _outputs(geometry: Geometry, size: Size) -> Size:
    """Places that a padded image of this size gives."""
    return tuple(n - e + 1 for n, e in zip(size, geometry.extent, strict=True))


def _moves(geometry: Geometry, size: Size) -> tuple[int, list[int]]:
    """How far the outputs reach in the flattened image, and where each tap begins to read."""
    steps = [math.prod(size[d + 1 :]) for d in range(len(size))]
    reach = 1 + sum((m - 1) * step for m, step in zip(_outputs(geometry, size), steps, strict=True))
    places = itertools.product(*map(range, geometry.kernel_size))
    return reach, [sum(u * d * s for u, d, s in zip(place, geometry.dilation, steps, strict=True)) for place in places]


def _matrices(weight: Tensor, geometry: Geometry, batch: int) -> Iterator[Tensor]:
    """The matrix of each tap, for each image and group."""
    taps = weight.reshape(geometry.groups, -1, *weight.shape[1:]).flatten(3)
    for index in range(taps.shape[-1]):
        yield taps[..., index].expand(batch, *taps.shape[:3]).flatten(0, 1)
