"""The rules: what the output of a layer tells about its input."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invconv.errors import IllConditionedWarning, InputError, SingularMapError
from invconv.inversion.interval import Interval
from invconv.inversion.registry import rule
from invconv.inversion.site import Site
from invconv.layers import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d

INF = float("inf")
MOST_RING = 1500
"""Unknowns of a ring that is factored for the sake of one picture."""

# -- linear layers: least squares ---------------------------------------------------------------------------------


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, solves=True)
def convolution(site: Site, known: Interval) -> Interval:
    """The pseudo-inverse where all outputs are known and a small ring allows it; else masked least squares."""
    start = None
    if bool(known.exact.all()):
        with warnings.catch_warnings(), contextlib.suppress(SingularMapError, IllConditionedWarning):
            # What the pseudo-inverse cannot be trusted with, damped least squares find.
            warnings.simplefilter("error", IllConditionedWarning)
            start = _pseudo_inverse(site.module, known.lower, tuple(site.shape[2:]))
    found = site.solve(known, start, affine=True)
    if start is not None:
        site.note = "; ".join(filter(None, ["pseudo-inverse", site.note]))
    return found


def _pseudo_inverse(conv: Any, y: Tensor, size: tuple[int, ...]) -> Tensor | None:
    cls: Any = {1: InvertibleConv1d, 2: InvertibleConv2d, 3: InvertibleConv3d}[len(size)]
    layer = cls.from_conv(conv)
    plan = layer.operator(size).plan()
    cheap = plan.solver == "fft" or 0 < plan.unknowns <= MOST_RING
    return layer.inverse(y, size).detach() if cheap else None


@rule(nn.Linear, F.linear, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, solves=True)
@rule(F.avg_pool2d, F.adaptive_avg_pool2d, "mean", torch.mean, solves=True)
def linear(site: Site, known: Interval) -> Interval:
    """The solution of least norm."""
    return site.solve(known, affine=True)


@rule(operator.mul, operator.truediv, operator.add, operator.sub, operator.neg, torch.mul, torch.add, solves=True)
@rule("mul", "add", "div", "sub", operator.getitem, solves=True)
def arithmetic(site: Site, known: Interval) -> Interval:
    """With constants."""
    return site.solve(known, affine=True)


@rule(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm, F.layer_norm, solves=True, joins=True)
@rule(F.group_norm, F.normalize, F.softmax, nn.Softmax, solves=True, joins=True)
def norm(site: Site, known: Interval) -> Interval:
    """Divides by what it is given: solved with the layer below it, which leaves the scale of noise."""
    site.note = "mean and scale are lost"
    return site.solve(known)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(site: Site, known: Interval) -> Interval:
    """Affine in eval mode, channel by channel; exact."""
    bn, shape = site.module, (1, -1, *(1,) * (len(site.shape) - 2))
    if bn.running_mean is None:
        return norm(site, known)
    weight = torch.ones_like(bn.running_var) if bn.weight is None else bn.weight.detach()
    bias = torch.zeros_like(bn.running_mean) if bn.bias is None else bn.bias.detach()
    scale = weight / torch.sqrt(bn.running_var + bn.eps)
    dead = (scale == 0).view(shape)
    safe = torch.where(scale == 0, 1.0, scale)
    found = known.scaled((1 / safe).view(shape), (bn.running_mean - bias / safe).view(shape))
    if not dead.any():
        return found
    site.note = f"{int(dead.sum())} channels are scaled by zero and lost"
    return Interval(found.lower.masked_fill(dead, -INF), found.upper.masked_fill(dead, INF))


# -- entry by entry ------------------------------------------------------------------------------------------------


@rule(nn.ReLU, F.relu, torch.relu, "relu", range=(0, INF))
def relu(site: Site, known: Interval) -> Interval:
    """An equation where it is positive, an inequality where it is zero."""
    return Interval(torch.where(known.lower > 0, known.lower, -INF), known.upper.clamp_min(0))


@rule(nn.ReLU6, F.relu6, range=(0, 6))
def relu6(site: Site, known: Interval) -> Interval:
    return _clipped(known, 0.0, 6.0)


@rule(nn.Hardtanh, F.hardtanh, range=(-1, 1))
def hardtanh(site: Site, known: Interval) -> Interval:
    return _clipped(known, float(site.option("min_val", 0, -1.0)), float(site.option("max_val", 1, 1.0)))


def _clipped(known: Interval, low: float, high: float) -> Interval:
    """Equations between the ends, inequalities at them."""
    return Interval(
        torch.where(known.lower > low, known.lower.clamp_max(high), -INF),
        torch.where(known.upper < high, known.upper.clamp_min(low), INF),
    )


@rule(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(site: Site, known: Interval) -> Interval:
    slope = float(site.option("negative_slope", 0, 0.01))
    if slope <= 0:
        raise InputError(f"leaky ReLU at {site.segment.name!r} has slope {slope}: only positive ones can be undone")
    return known.map(lambda y: torch.where(y < 0, y / slope, y))


@rule(nn.PReLU)
def prelu(site: Site, known: Interval) -> Interval:
    slope = site.module.weight.detach()
    if bool((slope <= 0).any()):
        raise InputError(
            f"PReLU at {site.segment.name!r} has slope {slope.min():.2g}: only positive ones can be undone"
        )
    slope = slope.view(1, -1, *(1,) * (len(site.shape) - 2))
    return known.map(lambda y: torch.where(y < 0, y / slope, y))


@rule(nn.ELU, F.elu, range=(-INF, INF))
def elu(site: Site, known: Interval) -> Interval:
    alpha = float(site.option("alpha", 0, 1.0))
    return known.map(lambda y: torch.where(y < 0, torch.log1p((y / alpha).clamp_min(-1)), y))


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", range=(0, 1))
def sigmoid(site: Site, known: Interval) -> Interval:
    return known.map(lambda y: torch.logit(y.clamp(0, 1)))


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh", range=(-1, 1))
def tanh(site: Site, known: Interval) -> Interval:
    return known.map(lambda y: torch.atanh(y.clamp(-1, 1)))


@rule(nn.Softplus, F.softplus, range=(0, INF))
def softplus(site: Site, known: Interval) -> Interval:
    beta = float(site.option("beta", 0, 1.0))
    return known.map(lambda y: y + torch.log(-torch.expm1(-beta * y.clamp_min(0))) / beta)


@rule(nn.Hardsigmoid, F.hardsigmoid, range=(0, 1))
def hardsigmoid(site: Site, known: Interval) -> Interval:
    return _clipped(known, 0.0, 1.0).map(lambda y: 6 * y - 3)


@rule(nn.GELU, nn.SiLU, F.gelu, F.silu, range=(-0.2785, INF))
@rule(nn.Hardswish, F.hardswish, range=(-0.375, INF))
def valley(site: Site, known: Interval) -> Interval:
    """Functions that fall, then rise: an equation above zero, below it an interval between the two sides."""
    function = site.function
    low, high = known.lower.new_tensor(-3.0), known.lower.new_tensor(0.0)
    for _ in range(4):  # the bottom, ever nearer
        grid = low + (high - low) * torch.linspace(0, 1, 1001, dtype=known.lower.dtype, device=known.lower.device)
        i = int(function(grid).argmin())
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, 1000)]
    bottom = (low + high) / 2
    least = function(bottom)
    right = _bisect(function, known.upper.clamp_min(least), bottom, known.upper.clamp_min(0) + 4)
    left = _bisect(lambda x: -function(x), -known.upper.clamp_max(0).clamp_min(least), bottom - 30, bottom)
    lower = _bisect(function, known.lower.clamp_min(least), bottom, known.lower.clamp_min(0) + 4)
    rising = known.lower > 0
    lower = torch.where(known.exact, right, lower)
    return Interval(torch.where(rising, lower, torch.where(known.upper < 0, left, -INF)), right)


def _bisect(function: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x with function(x) = y, between low and high, where the function rises."""
    low, high = low.expand_as(y).clone(), high.expand_as(y).clone()
    for _ in range(50):
        middle = (low + high) / 2
        above = function(middle) > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


# -- entries moved about -------------------------------------------------------------------------------------------


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, range=None)
@rule(F.dropout, F.dropout2d, "contiguous", "clone", "detach", "float", "stochastic_depth", range=None)
def identity(site: Site, known: Interval) -> Interval:
    """Nothing to undo in eval mode."""
    return known


@rule(nn.Flatten, nn.Unflatten, torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze", range=None)
@rule("unsqueeze", torch.squeeze, torch.unsqueeze, range=None)
def reshape(site: Site, known: Interval) -> Interval:
    return known.map(lambda y: y.reshape(site.shape))


@rule("permute", torch.permute, "transpose", torch.transpose, nn.PixelShuffle, nn.PixelUnshuffle, range=None)
@rule(nn.ChannelShuffle, F.pixel_shuffle, F.pixel_unshuffle, "roll", torch.roll, range=None)
def rearrange(site: Site, known: Interval) -> Interval:
    """Which entry went where, the layer tells when it is given their numbers."""
    count = site.segment.unknowns
    numbers = torch.arange(count, dtype=torch.float64, device=known.lower.device).view(1, *site.shape[1:])
    order = site.apply(numbers).reshape(-1).long()
    place = torch.empty_like(order)
    place[order] = torch.arange(count, device=order.device)
    return known.map(lambda y: y.reshape(len(y), -1)[:, place].view(site.shape))


@rule(nn.MaxPool1d, nn.MaxPool2d, F.max_pool2d, F.max_pool1d, torch.max_pool2d, range=None)
def max_pool(site: Site, known: Interval) -> Interval:
    """No entry is above the maxima over it; those at the switches are equal to them.

    Without switches every entry is set to the least maximum over it, which is right on flat ground only.
    """
    batch, channels, *size = site.shape
    kernel, stride, padding, dilation = (
        _pair(site.option(name, i, default), len(size))
        for i, (name, default) in enumerate((("kernel_size", 1), ("stride", None), ("padding", 0), ("dilation", 1)))
    )
    if len(size) == 1:  # a row of height one
        size, kernel, padding = [1, *size], (1, *kernel), (0, *padding)
        stride, dilation = (1, *(stride or kernel[1:])), (1, *dilation)
    stride = stride or kernel
    height, width = size
    # Places are counted from 1; 0 stands for the padding.
    places = torch.arange(1, height * width + 1, dtype=torch.float64, device=site.like.device).view(1, 1, height, width)
    maxima = known.upper.reshape(batch, channels, *known.upper.shape[-2:] if len(site.shape) == 4 else (1, -1))
    rows, columns = maxima.shape[-2:]
    need = [(n - 1) * s + d * (k - 1) + 1 for n, s, d, k in zip((rows, columns), stride, dilation, kernel, strict=True)]
    right = [max(0, n - (have + 2 * p)) + p for n, have, p in zip(need, size, padding, strict=True)]
    places = F.pad(places, (padding[1], right[1], padding[0], right[0]))[..., : need[0], : need[1]]
    windows = F.unfold(places, kernel, dilation, 0, stride).long()  # (1, kernel, positions)
    index = windows.expand(batch * channels, -1, -1).reshape(batch * channels, -1)
    spread = maxima.reshape(batch * channels, 1, -1).expand(-1, windows.shape[1], -1).reshape(batch * channels, -1)
    upper = maxima.new_full((batch * channels, height * width + 1), INF)
    upper = upper.scatter_reduce(1, index, spread, "amin")[:, 1:].reshape(site.shape)
    if site.switches is None:
        site.note = "no switches: each entry taken for the least maximum over it"
        seen = upper.isfinite()
        return Interval(torch.where(seen, upper, -INF), upper)
    lower = maxima.new_full((batch * channels, height * width), -INF)
    lower = lower.scatter_reduce(
        1, site.switches.reshape(batch * channels, -1), known.lower.reshape(batch * channels, -1), "amax"
    ).reshape(site.shape)
    site.note = "switches kept"
    return Interval(torch.minimum(lower, upper), upper)


def _pair(value: Any, dims: int) -> tuple[int, ...]:
    if value is None or value == ():
        return ()
    return (value,) * dims if isinstance(value, int) else tuple(value)
