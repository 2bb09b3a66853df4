"""The convolution as a linear map A: forward, adjoint, and the gradient of <z, A x> by the kernel.

Padding is a gather (each padded place reads one place of the image, or none), so its adjoint is a scatter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from invconv.geometry import Geometry, Size

FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_WEIGHT = {1: conv_grad.conv1d_weight, 2: conv_grad.conv2d_weight, 3: conv_grad.conv3d_weight}


def wrap(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """The last axes, continued periodically: by copies of slices, in two thirds of the time of `F.pad`."""
    for axis, (left, right) in enumerate(padding, start=-len(padding)):
        n = x.shape[axis]
        if left or right:
            x = torch.cat([x.narrow(axis, n - left, left), x, x.narrow(axis, 0, right)], axis)
    return x


def pad(x: Tensor, geometry: Geometry) -> Tensor:
    """E x: the image with its borders filled in as `padding_mode` says."""
    amounts = [p for pair in reversed(geometry.padding) for p in pair]
    if not any(amounts):
        return x
    if geometry.padding_mode == "circular":
        return wrap(x, geometry.padding)
    mode = {"zeros": "constant"}.get(geometry.padding_mode, geometry.padding_mode)
    return F.pad(x, amounts, mode=mode)


def pad_adjoint(z: Tensor, geometry: Geometry, input_size: Size) -> Tensor:
    """E' z: what lies on the border goes back to the places it was read from."""
    for axis, (n, (left, right)) in enumerate(zip(input_size, geometry.padding, strict=True)):
        if left == right == 0:
            continue
        dim = axis - geometry.dims
        if geometry.padding_mode == "zeros":
            z = z.narrow(dim, left, n)
            continue
        line = torch.arange(n, dtype=torch.float64).view(1, 1, n)
        source = F.pad(line, (left, right), mode=geometry.padding_mode).flatten().long().to(z.device)
        shape = list(z.shape)
        shape[dim] = n
        z = z.new_zeros(shape).index_add(dim, source, z)
    return z


def forward(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """A x. x: (batch, in_channels, *size)."""
    x = pad(x, geometry)
    if _pays_by_taps(x, weight, geometry):
        return _by_taps(x, weight, geometry)
    return FORWARD[geometry.dims](x, weight, None, geometry.stride, 0, geometry.dilation, geometry.groups)


def adjoint(y: Tensor, weight: Tensor, geometry: Geometry, input_size: Size) -> Tensor:
    """A' y. y: (batch, out_channels, *output_size)."""
    padded = [n + left + right for n, (left, right) in zip(input_size, geometry.padding, strict=True)]
    # A stride may leave places at the end that no output reads: they get zeros.
    reached = [(m - 1) * s + e for m, s, e in zip(y.shape[2:], geometry.stride, geometry.extent, strict=True)]
    conv = _ADJOINT[geometry.dims]
    z = conv(y, weight, None, geometry.stride, 0, 0, geometry.groups, geometry.dilation)
    rest = [r for p, q in zip(reversed(padded), reversed(reached), strict=True) for r in (0, p - q)]
    return pad_adjoint(F.pad(z, rest), geometry, input_size)


UNFOLDED = 2**22
"""Bytes of an unfolded image in float64 from which a product for each tap is faster than PyTorch's convolution."""


def _pays_by_taps(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """In float64 on a CPU, PyTorch unfolds the image: k * k copies of it, which may not fit into the cache."""
    slow = x.dtype == torch.float64 and x.device.type == "cpu" and all(s == 1 for s in geometry.stride)
    slow = slow and weight.shape[1] >= 8  # else the products are too thin
    return slow and x.shape[1:].numel() // geometry.groups * math.prod(geometry.kernel_size) * 8 >= UNFOLDED


def _by_taps(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of stride 1 as a sum over its taps, each a product with the flattened image, moved.

    At 32 channels and 128 x 128 in a third of the time.  What wraps round at the end of a line is cut off.
    """
    groups, size = geometry.groups, x.shape[2:]
    steps = [math.prod(size[d + 1 :]) for d in range(len(size))]
    outputs = [n - e + 1 for n, e in zip(size, geometry.extent, strict=True)]
    reach = 1 + sum((m - 1) * step for m, step in zip(outputs, steps, strict=True))
    flat = x.reshape(len(x) * groups, weight.shape[1], math.prod(size))
    taps = weight.reshape(groups, -1, *weight.shape[1:]).flatten(3)
    y = x.new_zeros(len(flat), taps.shape[1], flat.shape[2])
    for index, place in enumerate(itertools.product(*map(range, geometry.kernel_size))):
        start = sum(u * d * step for u, d, step in zip(place, geometry.dilation, steps, strict=True))
        matrix = taps[..., index].expand(len(x), *taps.shape[:3]).flatten(0, 1)
        y[..., :reach].baddbmm_(matrix, flat[..., start : start + reach])
    y = y.view(len(x), len(weight), *size)
    for axis, m in enumerate(outputs, start=2):
        y = y.narrow(axis, 0, m)
    return y


def weight_gradient(x: Tensor, z: Tensor, weight_size: torch.Size, geometry: Geometry) -> Tensor:
    """d <z, A x> / d K, summed over the batch. x: an input, z: an output."""
    if x.shape[0] == 0:
        return x.new_zeros(weight_size)
    gradient = _WEIGHT[geometry.dims]
    return gradient(pad(x, geometry), weight_size, z, geometry.stride, 0, geometry.dilation, geometry.groups)


def unit_images(channels: int, input_size: Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The identity, each row an image: (channels * prod(size), channels, *size)."""
    count = channels * math.prod(input_size)
    return torch.eye(count, dtype=dtype, device=device).view(count, channels, *input_size)


def to_dense(weight: Tensor, geometry: Geometry, input_size: Size) -> Tensor:
    """The explicit matrix of A: (out_channels * prod(output_size), in_channels * prod(input_size))."""
    images = unit_images(weight.shape[1] * geometry.groups, input_size, weight.dtype, weight.device)
    return forward(images, weight, geometry).flatten(1).mT
