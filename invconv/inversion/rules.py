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

from invconv.errors import IllConditionedWarning, InputError, InvconvError
from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule
from invconv.layers import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d

INF = float("inf")
MOST_RING = 1500
"""Unknowns of a ring that is factored for the sake of one picture."""

# -- linear layers: least squares ---------------------------------------------------------------------------------


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, solves=True)
@rule(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, solves=True)
def convolution(place: Place, output: Interval) -> Interval:
    """The pseudo-inverse where all outputs are known and a small ring allows it; else masked least squares."""
    start = None
    if bool(output.exact.all()):
        with warnings.catch_warnings(), contextlib.suppress(InvconvError, IllConditionedWarning):
            # What the pseudo-inverse cannot take, or be trusted with, damped least squares find.
            warnings.simplefilter("error", IllConditionedWarning)
            start = _pseudo_inverse(place, output.lower, tuple(place.shape[2:]))
    solution = place.solve(output, start, affine=True)
    if start is not None:
        place.note = "; ".join(filter(None, ["pseudo-inverse", place.note]))
    return solution


def _pseudo_inverse(place: Place, y: Tensor, size: tuple[int, ...]) -> Tensor | None:
    """The pseudo-inverse of a convolution; None where its factors are not worth one picture."""
    layer = _layer(place)
    plan = layer.operator(size).plan()
    cheap = plan.solver not in ("lsmr", "sparse lu") and plan.unknowns <= MOST_RING
    return layer.inverse(y, size).detach() if cheap else None


def _layer(place: Place) -> Any:
    """The invertible layer of a convolution, module or function."""
    cls: Any = {1: InvertibleConv1d, 2: InvertibleConv2d, 3: InvertibleConv3d}[len(place.shape) - 2]
    if place.module is not None:
        return cls.from_conv(place.module)
    weight, bias = place.option("weight", 0).detach(), place.option("bias", 1)
    names = ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)
    options = {name: place.option(name, i, default) for i, (name, default) in enumerate(names, 2)}
    channels = weight.shape[1] * options["groups"]
    layer = cls(channels, len(weight), tuple(weight.shape[2:]), bias=bias is not None, device="meta", **options)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias.detach())
    return layer


@rule(nn.Linear, F.linear, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, solves=True)
@rule(F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, "mean", torch.mean, solves=True)
@rule(F.pad, solves=True)
def linear(place: Place, output: Interval) -> Interval:
    """The least-squares solution nearest to the start."""
    return place.solve(output, affine=True)


@rule(operator.mul, operator.truediv, operator.add, operator.sub, operator.neg, torch.mul, torch.add, solves=True)
@rule(torch.sub, torch.div, torch.neg, "mul", "add", "div", "sub", "neg", solves=True)
def arithmetic(place: Place, output: Interval) -> Interval:
    """Divided by a constant and shifted back, entry by entry; squares and reciprocals by least squares."""
    zero = torch.zeros_like(place.usual)
    shift, one, two = place.apply(zero), place.apply(zero + 1), place.apply(zero + 2)
    scale = one - shift
    if shift.shape != place.shape or not torch.allclose(two - one, scale, rtol=1e-3) or bool((scale == 0).any()):
        return place.solve(output)
    return output.scaled(1 / scale, -shift / scale)


@rule(operator.getitem, solves=True)
def indexing(place: Place, output: Interval) -> Interval:
    """The least-squares solution: what is left out stays open."""
    return place.solve(output, affine=True)


@rule(nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm2d, nn.LocalResponseNorm, F.layer_norm, solves=True, joins=True)
@rule(F.group_norm, F.instance_norm, F.normalize, F.softmax, nn.Softmax, solves=True, joins=True)
def norm(place: Place, output: Interval) -> Interval:
    """Solved with the layer below it, since it divides by what it is given; the scale of noise is left."""
    place.note = "mean and scale are lost"
    return place.solve(output)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm)
def batch_norm(place: Place, output: Interval) -> Interval:
    """Affine in eval mode, channel by channel; exact."""
    names = ("running_mean", None), ("running_var", None), ("weight", None), ("bias", None), ("training", False)
    mean, var, weight, bias, training = (place.option(name, i, default) for i, (name, default) in enumerate(names))
    if training or mean is None or var is None:
        return norm(place, output)
    shape = (1, -1, *(1,) * (len(place.shape) - 2))
    scale = (1.0 if weight is None else weight.detach()) / torch.sqrt(var + place.option("eps", 6, 1e-5))
    shift = torch.zeros_like(mean) if bias is None else bias.detach()
    dead = (scale == 0).view(shape)
    safe = torch.where(scale == 0, 1.0, scale)
    x = output.scaled((1 / safe).view(shape), (mean - shift / safe).view(shape))
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


def _ends(place: Place) -> tuple[float, float]:
    """The two ends of a hard tanh."""
    return float(place.option("min_val", 0, -1.0)), float(place.option("max_val", 1, 1.0))


@rule(nn.Hardtanh, F.hardtanh, range=_ends)
def hardtanh(place: Place, output: Interval) -> Interval:
    """Equations between its two ends, inequalities at them."""
    return _clipped(output, *_ends(place))


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


@rule(nn.PReLU, F.prelu)
def prelu(place: Place, output: Interval) -> Interval:
    """Values below zero divided by the slope of their channel; exact."""
    slope = place.option("weight", 0).detach()
    if bool((slope <= 0).any()):
        raise InputError(f"PReLU at {place.name!r} has slope {slope.min():.2g}: only positive ones can be undone")
    slope = slope.view(1, -1, *(1,) * (len(place.shape) - 2))
    return output.map(lambda y: torch.where(y < 0, y / slope, y))


def _rising(output: Interval, inverse: Callable[[Tensor], Tensor], low: float, high: float = INF) -> Interval:
    """The inverse of a function that rises towards `low` and `high`: inequalities where rounding has reached them."""
    least, most = (torch.full((), end, dtype=output.lower.dtype, device=output.lower.device) for end in (low, high))
    inside, within = torch.nextafter(least, most), torch.nextafter(most, least)
    lower = torch.where(output.lower > least, inverse(output.lower.clamp(inside, within)), -INF)
    upper = torch.where(output.upper < most, inverse(output.upper.clamp(inside, within)), INF)
    return Interval(lower, upper)


@rule(nn.ELU, F.elu, range=(-INF, INF))
def elu(place: Place, output: Interval) -> Interval:
    """A logarithm below zero; exact but where it has reached its asymptote."""
    alpha = float(place.option("alpha", 0, 1.0))
    if alpha <= 0:
        raise InputError(f"ELU at {place.name!r} has alpha {alpha}: only positive ones can be undone")
    return _rising(output, lambda y: torch.where(y < 0, torch.log1p((y / alpha).clamp_min(-1)), y), -alpha)


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", range=(0, 1))
def sigmoid(_place: Place, output: Interval) -> Interval:
    """The logit."""
    return _rising(output, torch.logit, 0.0, 1.0)


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh", range=(-1, 1))
def tanh(_place: Place, output: Interval) -> Interval:
    """The inverse hyperbolic tangent."""
    return _rising(output, torch.atanh, -1.0, 1.0)


@rule(nn.Softplus, F.softplus, range=(0, INF))
def softplus(place: Place, output: Interval) -> Interval:
    """log(exp(y) - 1), written so that it neither overflows nor cancels; y itself beyond the threshold.

    There the function falls a little: for values that it takes twice, the interval between the two.
    """
    beta, threshold = float(place.option("beta", 0, 1.0)), float(place.option("threshold", 1, 20.0))
    if beta <= 0:
        raise InputError(f"softplus at {place.name!r} has beta {beta}: only positive ones can be undone")
    curved = _rising(output, lambda y: y + torch.log(-torch.expm1(-beta * y)) / beta, 0.0)
    lower = torch.where(beta * curved.lower > threshold, output.lower, curved.lower)
    upper = torch.where(beta * output.upper > threshold, output.upper, curved.upper)
    return Interval(lower, upper)


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
    count = place.shape.numel()  # of the whole batch, which may be moved as well
    numbers = torch.arange(count, dtype=torch.float64, device=output.lower.device).view(place.shape)
    order = place.apply(numbers).reshape(-1).long()
    origin = torch.empty_like(order)
    origin[order] = torch.arange(count, device=order.device)
    return output.map(lambda y: y.reshape(-1)[origin].view(place.shape))
