"""The rules of functions that work entry by entry: their inverses, and inequalities where they are not one to one."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule

INF = math.inf


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


def _between(place: Place) -> tuple[float, float]:
    """The ends of a clamp, where they are numbers."""
    low, high = place.option("min", 0), place.option("max", 1)
    return low if isinstance(low, (int, float)) else -INF, high if isinstance(high, (int, float)) else INF


@rule(torch.clamp, torch.clip, "clamp", "clip", range=_between)
def clamp(place: Place, output: Interval) -> Interval:
    """Equations between the ends that are given, numbers or tensors, inequalities at them."""
    low, high = place.option("min", 0), place.option("max", 1)
    return _clipped(output, -INF if low is None else low, INF if high is None else high)


@rule(torch.clamp_min, "clamp_min")
def clamp_min(place: Place, output: Interval) -> Interval:
    """Equations above the end, inequalities at it."""
    return _clipped(output, place.option("min", 0), INF)


@rule(torch.clamp_max, "clamp_max")
def clamp_max(place: Place, output: Interval) -> Interval:
    """Equations below the end, inequalities at it."""
    return _clipped(output, -INF, place.option("max", 0))


def _clipped(output: Interval, low: float | Tensor, high: float | Tensor) -> Interval:
    """Equations between the ends, inequalities at them."""
    return Interval(
        torch.where(output.lower > low, output.lower.clamp_max(high), -INF),
        torch.where(output.upper < high, output.upper.clamp_min(low), INF),
    )


def _leaky_range(place: Place) -> tuple[float, float]:
    """Nothing below zero where the slope is not positive."""
    return (-INF if float(place.option("negative_slope", 0, 0.01)) > 0 else 0.0), INF


def _prelu_range(place: Place) -> tuple[float, float]:
    """Nothing below zero where no slope is positive."""
    slope = place.option("weight", 0)
    return (-INF if slope is None or bool((slope > 0).any()) else 0.0), INF


@rule(nn.LeakyReLU, F.leaky_relu, range=_leaky_range)
def leaky_relu(place: Place, output: Interval) -> Interval:
    """Values below zero divided by the slope; exact where that is positive."""
    return _bent(output, output.lower.new_tensor(float(place.option("negative_slope", 0, 0.01))))


@rule(nn.RReLU, F.rrelu, torch.rrelu)
def randomised_relu(place: Place, output: Interval) -> Interval:
    """In eval mode the leaky ReLU of the mean slope."""
    slope = (place.option("lower", 0, 1 / 8) + place.option("upper", 1, 1 / 3)) / 2
    return _bent(output, output.lower.new_tensor(float(slope)))


@rule(nn.PReLU, F.prelu, torch.prelu, range=_prelu_range)
def prelu(place: Place, output: Interval) -> Interval:
    """Values below zero divided by the slope of their channel; exact where that is positive."""
    slope = place.option("weight", 0).detach()
    return _bent(output, slope.view(1, -1, *(1,) * (len(place.shape) - 2)))


def _bent(output: Interval, slope: Tensor) -> Interval:
    """The x with y = x above zero and slope x below: the interval between both where the slope is below zero."""
    if bool((slope > 0).all()):
        return output.map(lambda y: torch.where(y < 0, y / slope, y))
    above = output.upper.clamp_min(0)
    least = torch.where(slope < 0, above / torch.where(slope < 0, slope, -1), -INF)
    flat = torch.where((output.lower > 0) & (slope == 0), output.lower, least)
    rising = torch.where(output.lower < 0, output.lower / slope, output.lower)
    return Interval(
        torch.where(slope > 0, rising, flat),
        torch.where(
            (slope > 0) & (output.upper < 0), output.upper / slope, torch.where(slope > 0, output.upper, above)
        ),
    )


def _asymptote(place: Place) -> tuple[float, float]:
    """Minus alpha where that is negative, else zero."""
    return -max(float(place.option("alpha", 0, 1.0)), 0.0), INF


@rule(nn.ELU, F.elu, range=_asymptote)
def elu(place: Place, output: Interval) -> Interval:
    """A logarithm below zero; exact but where it has reached its asymptote, or where a negative alpha turns it up."""
    alpha = float(place.option("alpha", 0, 1.0))
    if alpha > 0:
        return _exponential(output, 1.0, alpha, 1.0)
    if alpha == 0:
        return relu(place, output)
    return Interval(torch.log1p((output.upper / alpha).clamp(-1, 0)), output.upper.clamp_min(0))


@rule(nn.SELU, F.selu, torch.selu, range=(-1.7581, INF))
def selu(_place: Place, output: Interval) -> Interval:
    """ELU of fixed scales (Klambauer et al. 2017)."""
    return _exponential(output, 1.0507009873554804934193349852946, 1.6732632423543772848170429916717, 1.0)


def _celu_range(place: Place) -> tuple[float, float]:
    """Above minus alpha where that is positive, else everything."""
    alpha = float(place.option("alpha", 0, 1.0))
    return (-alpha if alpha > 0 else -INF), INF


@rule(nn.CELU, F.celu, torch.celu, range=_celu_range)
def celu(place: Place, output: Interval) -> Interval:
    """ELU with a slope that does not jump at zero: alpha (exp(x / alpha) - 1) below it; rising for any alpha."""
    alpha = float(place.option("alpha", 0, 1.0))
    return _exponential(output, 1.0, alpha, alpha)


def _exponential(output: Interval, scale: float, alpha: float, width: float) -> Interval:
    """The x with y = scale x above zero, and scale alpha (exp(x / width) - 1) below."""
    steep = scale * alpha

    def inverse(y: Tensor) -> Tensor:
        below = width * torch.log1p((y / steep).clamp_min(-1))
        return torch.where(y < 0, below, y / scale)

    return output.before(inverse, -steep if alpha > 0 else -INF)


@rule(nn.Sigmoid, torch.sigmoid, F.sigmoid, "sigmoid", range=(0, 1))
def sigmoid(_place: Place, output: Interval) -> Interval:
    """The logit."""
    return output.before(torch.logit, 0.0, 1.0)


@rule(nn.Tanh, torch.tanh, F.tanh, "tanh", range=(-1, 1))
def tanh(_place: Place, output: Interval) -> Interval:
    """The inverse hyperbolic tangent."""
    return output.before(torch.atanh, -1.0, 1.0)


@rule(nn.Softsign, F.softsign, range=(-1, 1))
def softsign(_place: Place, output: Interval) -> Interval:
    """y / (1 - |y|)."""
    return output.before(lambda y: y / (1 - y.abs()), -1.0, 1.0)


@rule(nn.LogSigmoid, F.logsigmoid, range=(-INF, 0))
def log_sigmoid(_place: Place, output: Interval) -> Interval:
    """Softplus with a beta of -1."""
    return output.before(lambda y: y - torch.log(-torch.expm1(y)), -INF, 0.0)


@rule(nn.Tanhshrink, F.tanhshrink)
def tanhshrink(place: Place, output: Interval) -> Interval:
    """x - tanh x rises everywhere: found between y - 1 and y + 1 by bisection; flat at zero, where digits are lost."""
    return output.map(lambda y: _bisect(place.function, y, y - 1, y + 1))


def _softplus_range(place: Place) -> tuple[float, float]:
    """Above zero, or below for a negative beta."""
    return (0.0, INF) if float(place.option("beta", 0, 1.0)) > 0 else (-INF, 0.0)


@rule(nn.Softplus, F.softplus, range=_softplus_range)
def softplus(place: Place, output: Interval) -> Interval:
    """log(exp(beta y) - 1) / beta, written so that it neither overflows nor cancels; y itself beyond the threshold.

    There the function falls a little: for values that it takes twice, the interval between the two.
    """
    beta, threshold = float(place.option("beta", 0, 1.0)), float(place.option("threshold", 1, 20.0))
    curved = output.before(lambda y: y + torch.log(-torch.expm1(-beta * y)) / beta, *_softplus_range(place))
    lower = torch.where(beta * curved.lower > threshold, output.lower, curved.lower)
    upper = torch.where(beta * output.upper > threshold, output.upper, curved.upper)
    return Interval(torch.minimum(lower, upper), torch.maximum(lower, upper))


@rule(nn.Hardsigmoid, F.hardsigmoid, range=(0, 1))
def hardsigmoid(_place: Place, output: Interval) -> Interval:
    """Equations between 0 and 1, inequalities at both."""
    return _clipped(output, 0.0, 1.0).map(lambda y: 6 * y - 3)


@rule(nn.GELU, nn.SiLU, F.gelu, F.silu, range=(-0.2785, INF))
@rule(nn.Hardswish, F.hardswish, range=(-0.375, INF))
@rule(nn.Mish, F.mish, range=(-0.3089, INF))
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


# -- functions with a gap or a jump --------------------------------------------------------------------------------


@rule(nn.Hardshrink, F.hardshrink, torch.hardshrink)
def hardshrink(place: Place, output: Interval) -> Interval:
    """Equations but at zero, which everything between -lambda and lambda is set to."""
    width = max(float(place.option("lambd", 0, 0.5)), 0.0)
    low, high = output.lower, output.upper
    return Interval(
        torch.where(low > 0, low.clamp_min(width), torch.where(low < -width, low, -width)),
        torch.where(high < 0, high.clamp_max(-width), torch.where(high > width, high, width)),
    )


@rule(nn.Softshrink, F.softshrink)
def softshrink(place: Place, output: Interval) -> Interval:
    """Moved back by lambda; at zero, everything between -lambda and lambda."""
    width = float(place.option("lambd", 0, 0.5))
    low, high = output.lower, output.upper
    return Interval(
        torch.where(low > 0, low + width, low - width),
        torch.where(high < 0, high - width, high + width),
    )


@rule(nn.Threshold, F.threshold, torch.threshold)
def threshold(place: Place, output: Interval) -> Interval:
    """Equations but at the value that everything up to the threshold is set to."""
    least, value = float(place.option("threshold", 0)), float(place.option("value", 1))
    cut = (output.lower <= value) & (value <= output.upper)
    return Interval(
        torch.where(cut, -INF, output.lower.clamp_min(least)),
        torch.where(cut, output.upper.clamp_min(least), output.upper),
    )
