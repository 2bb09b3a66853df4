"""The rules: what the output of a layer tells about its input. Those of pooling are in `pooling`."""

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
from invconv.inversion.place import Place
from invconv.inversion.registry import rule
from invconv.layers import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d

INF = float("inf")
MOST_RING = 1500
"""Unknowns of a ring that is factored for the sake of one picture."""

# -- linear layers: least squares ---------------------------------------------------------------------------------


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, solves=True)
def convolution(place: Place, output: Interval) -> Interval:
    """The pseudo-inverse where all outputs are known and a small ring allows it; else masked least squares."""
    start = None
    if bool(output.exact.all()):
        with warnings.catch_warnings(), contextlib.suppress(SingularMapError, IllConditionedWarning):
            # What the pseudo-inverse cannot be trusted with, damped least squares find.
            warnings.simplefilter("error", IllConditionedWarning)
            start = _pseudo_inverse(place.module, output.lower, tuple(place.shape[2:]))
    solution = place.solve(output, start, affine=True)
    if start is not None:
        place.note = "; ".join(filter(None, ["pseudo-inverse", place.note]))
    return solution


def _pseudo_inverse(conv: Any, y: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """The pseudo-inverse of a convolution; None where its factors are not worth one picture."""
    cls: Any = {1: InvertibleConv1d, 2: InvertibleConv2d, 3: InvertibleConv3d}[len(size)]
    layer = cls.from_conv(conv)
    plan = layer.operator(size).plan()
    cheap = plan.solver == "fft" or 0 < plan.unknowns <= MOST_RING
    return layer.inverse(y, size).detach() if cheap else None


@rule(nn.Linear, F.linear, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, solves=True)
@rule(F.avg_pool2d, F.adaptive_avg_pool2d, "mean", torch.mean, solves=True)
def linear(place: Place, output: Interval) -> Interval:
    """The least-squares solution nearest to the start."""
    return place.solve(output, affine=True)


@rule(operator.mul, operator.truediv, operator.add, operator.sub, operator.neg, torch.mul, torch.add, solves=True)
@rule("mul", "add", "div", "sub", operator.getitem, solves=True)
def arithmetic(place: Place, output: Interval) -> Interval:
    """The least-squares solution, for sums and products with constants."""
    return place.solve(output, affine=True)


@rule(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm, F.layer_norm, solves=True, joins=True)
@rule(F.group_norm, F.normalize, F.softmax, nn.Softmax, solves=True, joins=True)
def norm(place: Place, output: Interval) -> Interval:
    """Solved with the layer below it, since it divides by what it is given; the scale of noise is left."""
    place.note = "mean and scale are lost"
    return place.solve(output)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
def batch_norm(place: Place, output: Interval) -> Interval:
    """Affine in eval mode, channel by channel; exact."""
    bn, shape = place.module, (1, -1, *(1,) * (len(place.shape) - 2))
    if bn.running_mean is None:
        return norm(place, output)
    weight = torch.ones_like(bn.running_var) if bn.weight is None else bn.weight.detach()
    bias = torch.zeros_like(bn.running_mean) if bn.bias is None else bn.bias.detach()
    scale = weight / torch.sqrt(bn.running_var + bn.eps)
    dead = (scale == 0).view(shape)
    safe = torch.where(scale == 0, 1.0, scale)
    x = output.scaled((1 / safe).view(shape), (bn.running_mean - bias / safe).view(shape))
    if not dead.any():
        return x
    place.note = f"{int(dead.sum())} channels are scaled by zero and lost"
    return Interval(x.lower.masked_fill(dead, -INF), x.upper.masked_fill(dead, INF))


# -- entry by entry ------------------------------------------------------------------------------------------------


@rule(nn.ReLU, F.relu, torch.relu, "relu", range=(0, INF))
def relu(_place: Place, output: Interval) -> Interval:
    """An equation where it is positive, an inequality where it is zero."""
    return Interval(torch.where(output.lower > 0, output.lower, -INF), output.upper.clamp_min(0))


@rule(nn.ReLU6, F.relu6, range=(0, 6))
def relu6(_place: Place, output: Interval) -> Interval:
    """Equations between 0 and 6, inequalities at both."""
    return _clipped(output, 0.0, 6.0)


@rule(nn.Hardtanh, F.hardtanh, range=(-1, 1))
def hardtanh(place: Place, output: Interval) -> Interval:
    """Equations between its two ends, inequalities at them."""
    return _clipped(output, float(place.option("min_val", 0, -1.0)), float(place.option("max_val", 1, 1.0)))


def _clipped(output: Interval, low: float, high: float) -> Interval:
    """Equations between the ends, inequalities at them."""
    return Interval(
        torch.where(output.lower > low, output.lower.clamp_max(high), -INF),
        torch.where(output.upper < high, output.upper.clamp_min(low), INF),
    )


@rule(nn.LeakyReLU, F.leaky_relu)
def leaky_relu(place: Place, output: Interval) -> Interval:
    """Values below zero divided by the slope; exact."""
    slope = float(place.option("negative_slope", 0, 0.01))
    if slope <= 0:
        raise InputError(f"leaky ReLU at {place.name!r} has slope {slope}: only positive ones can be undone")
    return output.map(lambda y: torch.where(y < 0, y / slope, y))


@rule(nn.PReLU)
def prelu(place: Place, output: Interval) -> Interval:
    """Values below zero divided by the slope of their channel; exact."""
    slope = place.module.weight.detach()
    if bool((slope <= 0).any()):
        raise InputError(f"PReLU at {place.name!r} has slope {slope.min():.2g}: only positive ones can be undone")
    slope = slope.view(1, -1, *(1,) * (len(place.shape) - 2))
    return output.map(lambda y: torch.where(y < 0, y / slope, y))


@rule(nn.ELU, F.elu, range=(-INF, INF))
def elu(place: Place, output: Interval) -> Interval:
    """A logarithm below zero; exact."""
    alpha = float(place.option("alpha", 0, 1.0))
    return output.map(lambda y: torch.where(y < 0, torch.log1p((y / alpha).clamp_min(-1)), y))


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", range=(0, 1))
def sigmoid(_place: Place, output: Interval) -> Interval:
    """The logit."""
    return output.map(lambda y: torch.logit(y.clamp(0, 1)))


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh", range=(-1, 1))
def tanh(_place: Place, output: Interval) -> Interval:
    """The inverse hyperbolic tangent."""
    return output.map(lambda y: torch.atanh(y.clamp(-1, 1)))


@rule(nn.Softplus, F.softplus, range=(0, INF))
def softplus(place: Place, output: Interval) -> Interval:
    """log(exp(y) - 1), written so that it neither overflows nor cancels."""
    beta = float(place.option("beta", 0, 1.0))
    return output.map(lambda y: y + torch.log(-torch.expm1(-beta * y.clamp_min(0))) / beta)


@rule(nn.Hardsigmoid, F.hardsigmoid, range=(0, 1))
def hardsigmoid(_place: Place, output: Interval) -> Interval:
    """Equations between 0 and 1, inequalities at both."""
    return _clipped(output, 0.0, 1.0).map(lambda y: 6 * y - 3)


@rule(nn.GELU, nn.SiLU, F.gelu, F.silu, range=(-0.2785, INF))
@rule(nn.Hardswish, F.hardswish, range=(-0.375, INF))
def valley(place: Place, output: Interval) -> Interval:
    """An equation above zero, below it an interval between the two sides of a function that falls, then rises."""
    function = place.function
    low, high = output.lower.new_tensor(-3.0), output.lower.new_tensor(0.0)
    for _ in range(4):  # the bottom, ever nearer
        grid = low + (high - low) * torch.linspace(0, 1, 1001, dtype=output.lower.dtype, device=output.lower.device)
        i = int(function(grid).argmin())
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, 1000)]
    bottom = (low + high) / 2
    least = function(bottom)
    right = _bisect(function, output.upper.clamp_min(least), bottom, output.upper.clamp_min(0) + 4)
    left = _bisect(lambda x: -function(x), -output.upper.clamp_max(0).clamp_min(least), bottom - 30, bottom)
    lower = _bisect(function, output.lower.clamp_min(least), bottom, output.lower.clamp_min(0) + 4)
    rising = output.lower > 0
    lower = torch.where(output.exact, right, lower)
    return Interval(torch.where(rising, lower, torch.where(output.upper < 0, left, -INF)), right)


def _bisect(function: Callable[[Tensor], Tensor], y: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The x with function(x) = y, between low and high, where the function rises."""
    low, high = low.expand_as(y).clone(), high.expand_as(y).clone()
    for _ in range(50):
        middle = (low + high) / 2
        above = function(middle) > y
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low + high) / 2


# -- entries moved about -------------------------------------------------------------------------------------------


@rule(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, range=None)
@rule(F.dropout, F.dropout2d, "contiguous", "clone", "detach", "float", "stochastic_depth", range=None)
def identity(_place: Place, output: Interval) -> Interval:
    """The output itself: in eval mode there is nothing to undo."""
    return output


@rule(nn.Flatten, nn.Unflatten, torch.flatten, "flatten", "view", "reshape", torch.reshape, "squeeze", range=None)
@rule("unsqueeze", torch.squeeze, torch.unsqueeze, range=None)
def reshape(place: Place, output: Interval) -> Interval:
    """Entries in the same order, in the shape of the input."""
    return output.map(lambda y: y.reshape(place.shape))


@rule("permute", torch.permute, "transpose", torch.transpose, nn.PixelShuffle, nn.PixelUnshuffle, range=None)
@rule(nn.ChannelShuffle, F.pixel_shuffle, F.pixel_unshuffle, "roll", torch.roll, range=None)
def rearrange(place: Place, output: Interval) -> Interval:
    """Each entry moved back: where it went, the layer tells when it is given the numbers of the entries."""
    count = place.unknowns
    numbers = torch.arange(count, dtype=torch.float64, device=output.lower.device).view(1, *place.shape[1:])
    order = place.apply(numbers).reshape(-1).long()
    origin = torch.empty_like(order)
    origin[order] = torch.arange(count, device=order.device)
    return output.map(lambda y: y.reshape(len(y), -1)[:, origin].view(place.shape))
