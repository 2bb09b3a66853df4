"""The borders of an image, filled in: each padded place reads one of the image or none. The adjoint is a scatter."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from invconv.geometry import Geometry, Size


def wrap(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """The image continued periodically along its last axes: copies of slices, in two thirds of the time of `F.pad`."""
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
