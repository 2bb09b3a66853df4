"""The rule of max pooling: no entry is above the maxima over it, and those at the switches are equal to them."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule

INF = math.inf


POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
ADAPTIVE = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


def switches(place: Place, x: Tensor) -> Tensor:
    """Where the maxima of a pooling layer are in its input, as `return_indices` gives them."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    defaults = (None, None, 0, 1, False)
    options = {n: place.option(n, i, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))}
    return POOLS[x.dim() - 2](x, **options, return_indices=True)[1]


def adaptive_switches(place: Place, x: Tensor) -> Tensor:
    """Where the maxima of a pooling layer to a given size are in its input."""
    return ADAPTIVE[x.dim() - 2](x, place.option("output_size", 0), return_indices=True)[1]


@rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, range=None, keep=switches)
@rule(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, range=None, keep=switches)
@rule(torch.max_pool3d, range=None, keep=switches)
def max_pool(place: Place, output: Interval) -> Interval:
    """No entry is above the maxima over it; those at the switches (Zeiler and Fergus 2014) are equal to them.

    Without switches every entry is set to the least maximum over it, which is right on flat ground only.
    """
    return _maxima(place, output, _windows(place, output.upper.shape[2:]))


@rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, range=None, keep=adaptive_switches)
@rule(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d, range=None, keep=adaptive_switches)
def adaptive_max_pool(place: Place, output: Interval) -> Interval:
    """Likewise, over windows of different sizes, which may overlap."""
    axes = []
    for size, count in zip(place.shape[2:], output.upper.shape[2:], strict=True):
        first, last = (torch.arange(count) * size // count), -(torch.arange(1, count + 1) * -size // count)
        places = first[:, None] + torch.arange(int((last - first).max()))
        axes.append(torch.where(places < last[:, None], places, -1))
    return _maxima(place, output, _entries(place, axes))


def _maxima(place: Place, output: Interval, windows: Tensor) -> Interval:
    """What maxima over windows, (1, kernel, positions) of entries counted from 1, tell about the entries."""
    batch, channels, *size = place.shape
    images = batch * channels  # each channel is pooled by itself
    maxima = output.upper.reshape(images, 1, -1)
    index = windows.expand(images, -1, -1).reshape(images, -1)
    over = maxima.expand(-1, windows.shape[1], -1).reshape(images, -1)
    upper = maxima.new_full((images, math.prod(size) + 1), INF)
    upper = upper.scatter_reduce(1, index, over, "amin")[:, 1:].reshape(place.shape)
    if place.kept is None:
        place.note = "no switches: each entry taken for the least maximum over it"
        return Interval(torch.where(upper.isfinite(), upper, -INF), upper)
    lower = maxima.new_full((images, math.prod(size)), -INF)
    lower = lower.scatter_reduce(1, place.kept.reshape(images, -1), output.lower.reshape(images, -1), "amax")
    place.note = "switches kept: where the maxima are is told by the image, not by the features"
    return Interval(torch.minimum(lower.reshape(place.shape), upper), upper)


def _windows(place: Place, positions: torch.Size) -> Tensor:
    """(1, kernel, positions): the entries in each pooling window, counted from 1; 0 stands for the padding."""
    size = place.shape[2:]
    kernel, stride, padding, dilation = (
        _per_dimension(place.option(name, i, default), len(size))
        for i, (name, default) in enumerate((("kernel_size", 1), ("stride", None), ("padding", 0), ("dilation", 1)))
    )
    axes = []
    for n, count, k, s, p, d in zip(size, positions, kernel, stride or kernel, padding, dilation, strict=True):
        places = s * torch.arange(count)[:, None] + d * torch.arange(k) - p
        axes.append(torch.where((places >= 0) & (places < n), places, -1))
    return _entries(place, axes)


def _entries(place: Place, axes: list[Tensor]) -> Tensor:
    """(1, kernel, positions): entries counted from 1, given those along each axis, (positions, kernel); 0 for none."""
    numbers = torch.ones(1, 1, dtype=torch.long)
    for size, axis in zip(place.shape[2:], axes, strict=True):
        joined = (numbers[:, None, :, None] - 1) * size + axis[None, :, None, :] + 1
        outside = (numbers[:, None, :, None] == 0) | (axis[None, :, None, :] < 0)
        numbers = joined.masked_fill(outside, 0).flatten(0, 1).flatten(1)
    return numbers.T[None].to(place.like.device)


def _per_dimension(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension; none where nothing is set."""
    if value is None or value == ():
        return ()
    return (value,) * dims if isinstance(value, int) else tuple(value)
