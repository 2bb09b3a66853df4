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


def switches(place: Place, x: Tensor) -> Tensor:
    """Where the maxima of a pooling layer are in its input, as `return_indices` gives them."""
    pool = F.max_pool1d if x.dim() == 3 else F.max_pool2d
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    defaults = (None, None, 0, 1, False)
    options = {n: place.option(n, i, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))}
    return pool(x, **options, return_indices=True)[1]


@rule(nn.MaxPool1d, nn.MaxPool2d, F.max_pool2d, F.max_pool1d, torch.max_pool2d, range=None, keep=switches)
def max_pool(place: Place, output: Interval) -> Interval:
    """No entry is above the maxima over it; those at the switches (Zeiler and Fergus 2014) are equal to them.

    Without switches every entry is set to the least maximum over it, which is right on flat ground only.
    """
    batch, channels, *size = place.shape
    images = batch * channels  # each channel is pooled by itself
    maxima = output.upper.reshape(images, 1, -1)
    windows = _windows(place, output.upper.shape[2:])
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
    stride = stride or kernel
    if len(size) == 1:  # a row of height one
        kernel, stride, padding, dilation = (1, *kernel), (1, *stride), (0, *padding), (1, *dilation)
    height, width = (1, *size)[-2:]
    rows, columns = (1, *positions)[-2:]
    need = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((rows, columns), stride, dilation, kernel, strict=True)]
    right = [max(0, n - (have + 2 * p)) + p for n, have, p in zip(need, (height, width), padding, strict=True)]
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64, device=place.like.device)
    numbers = F.pad(numbers.view(1, 1, height, width), (padding[1], right[1], padding[0], right[0]))
    return F.unfold(numbers[..., : need[0], : need[1]], kernel, dilation, 0, stride).long()


def _per_dimension(value: Any, dims: int) -> tuple[int, ...]:
    """One number for each dimension; none where nothing is set."""
    if value is None or value == ():
        return ()
    return (value,) * dims if isinstance(value, int) else tuple(value)
