r"""How strongly to damp: by the noise that is known, or by the outputs alone.

$x_d = (A'A + d^2)^{-1} A' y, \qquad r_d = y - A x_d$

As d grows, the residual grows with it and the answer shrinks.  All three rules look at no more than answers of a few d,
whatever the map and its borders.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.power import largest_eigenvalue
from invconv.engine.precision import exactly
from invconv.errors import InputError
from invconv.scalars import real_number

Inverse = Callable[[Tensor], Tensor]

METHODS = ("discrepancy", "gcv", "l-curve")
FARTHEST = 1e5
"""Largest singular value over d, and d over it, where the search for a discrepancy gives up."""
STEP = 8.0
"""Factor from one d to the next while the search has not yet passed the noise.  Speed only."""
NEAR = 0.03
"""Width of log d at which a discrepancy has been found: residuals hardly tell a d from one that is 3 % off."""
GRID, SPAN = 9, 1e-4
"""How many d are looked at first for a least value, and the smallest of them over the largest singular value.

Half a decade apart: the curves are smooth in log d, their minima about a decade wide.
"""
PROBED = 4096
"""Random signs by which a trace is estimated, at least: of 100 outputs, one image of them put d 30 % off."""
ROUNDING = 8
"""Norm of y - A v, in units of the rounding of y, up to which v explains all of y: sums over taps leave 1 or 2."""
GOLDEN_STEPS = 6
"""Steps of a golden section between neighbours of the best, which leave 10 % of d."""


def choose(
    conv: Convolution, inverse_of: Callable[[float], Inverse], y: Tensor, method: str, noise: float | None, least: float
) -> float:
    """The damping by one of `METHODS`.

    Args:
        conv: A.
        inverse_of: d -> (y -> (A'A + d^2)^-1 A' y).
        y: what v leaves of the outputs.
        method: the rule.
        noise: standard deviation of an entry of y.
        least: norm of what rounding may leave of the outputs.
    """
    if method not in METHODS:
        raise InputError(f"method must be one of {METHODS}, got {method!r}")
    if not torch.isfinite(y).all():
        raise InputError("y and v have to be finite for a damping to be chosen by them: y - A v is not")
    if _norm(y) <= least:
        raise InputError(
            f"||y - A v|| is {_norm(y):.1e}, no more than the rounding of y, {least:.1e}: whatever the damping, the "
            "answer is v, or zero where there is none"
        )
    with torch.no_grad(), exactly(y.device):
        start = torch.randn(1, *conv.x_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        gain = math.sqrt(largest_eigenvalue(lambda x: conv.adjoint(conv.forward(x)), start.to(y)))
        if not gain:
            raise InputError("the kernel is zero: no damping makes an answer of it")
        if method == "discrepancy":
            return _discrepancy(conv, inverse_of, y, noise, gain)
        value = {"gcv": _gcv, "l-curve": _corner}[method]
        return _least(lambda d: value(conv, inverse_of(d), y, d), gain, method == "l-curve")


def _discrepancy(
    conv: Convolution, inverse_of: Callable[[float], Inverse], y: Tensor, noise: Any, gain: float
) -> float:
    """The d that leaves just the noise, by the method of false position on log d and log of the residual."""
    noise = real_number("noise", noise, "be a finite number above 0", lambda v: 0 < v < math.inf)
    if noise is None:
        raise InputError("method='discrepancy' needs noise, the standard deviation of an entry of y")
    aim, size = noise * math.sqrt(y.numel()), _norm(y)
    if aim >= size:
        raise InputError(f"noise {noise:g} explains all of y, whose entries are {size / math.sqrt(y.numel()):g}")

    def excess(log_d: float) -> float:
        return math.log(max(_norm(y - conv.forward(inverse_of(math.exp(log_d))(y))), 1e-300) / aim)

    middle = math.log(gain * min(max(aim / size, 1 / FARTHEST), 1.0))
    value = excess(middle)
    step = -math.copysign(math.log(STEP), value)
    below, above = (middle, value), (middle, value)
    while above[1] * value > 0:
        below, there = above, above[0] + step
        if abs(there - math.log(gain)) > math.log(FARTHEST):
            side = "least" if step < 0 else "most"
            left = aim * math.exp(above[1]) / math.sqrt(y.numel())
            raise InputError(f"no damping leaves the noise of {noise:g}: the {side} that was tried leaves {left:g}")
        above = (there, excess(there))
    return math.exp(_root(excess, below, above))


def _root(excess: Callable[[float], float], a: tuple[float, float], b: tuple[float, float]) -> float:
    """A zero between two places of other signs: false position, Illinois; b is the latest."""
    while abs(b[0] - a[0]) > NEAR and abs(b[1]) > 1e-4:
        there = b[0] - b[1] * (b[0] - a[0]) / (b[1] - a[1])
        value = excess(there)
        a = b if value * b[1] < 0 else (a[0], a[1] / 2)
        moved, b = abs(there - b[0]), (there, value)
        if moved < NEAR / 2:
            break
    return b[0]


def _least(value: Callable[[float], float], gain: float, cornered: bool) -> float:
    """Where a function of d is least: the best of a grid in log d, then a golden section between its neighbours."""
    step = -math.log(SPAN) / (GRID - 1)
    places = [math.log(gain) - step * i for i in range(GRID)]
    values = [value(math.exp(place)) for place in places]
    lowest = min(range(GRID), key=values.__getitem__)
    if cornered and (lowest in (0, GRID - 1) or values[lowest] >= 0):
        raise InputError(
            f"the L-curve has no corner between damping {math.exp(places[-1]):.1e} and {math.exp(places[0]):.1e}: use "
            "method='gcv', or 'discrepancy' where the noise is known"
        )
    best = places[lowest]
    low, high, ratio = best - step, best + step, (math.sqrt(5) - 1) / 2
    inner = [high - ratio * (high - low), low + ratio * (high - low)]
    heights = [value(math.exp(place)) for place in inner]
    for _ in range(GOLDEN_STEPS - 2):
        if heights[0] < heights[1]:
            high, inner[1], heights[1] = inner[1], inner[0], heights[0]
            inner[0] = high - ratio * (high - low)
            heights[0] = value(math.exp(inner[0]))
        else:
            low, inner[0], heights[0] = inner[0], inner[1], heights[1]
            inner[1] = low + ratio * (high - low)
            heights[1] = value(math.exp(inner[1]))
    return math.exp(inner[0] if heights[0] < heights[1] else inner[1])


def _gcv(conv: Convolution, inverse: Inverse, y: Tensor, _: float) -> float:
    """The logarithm of ||r||^2 / tr(I - A P)^2, the trace by images of signs."""
    generator, probes = torch.Generator().manual_seed(1), max(1, PROBED // y[0].numel())
    signs = torch.randint(0, 2, (probes, *y.shape[1:]), generator=generator).to(y) * 2 - 1
    rest = torch.cat([y, signs])
    rest = rest - conv.forward(inverse(rest))
    trace = float((rest[-probes:] * signs).sum())  # positive, as I - A P is
    return 2 * math.log(max(_norm(rest[:-probes]), 1e-300)) - 2 * math.log(max(trace, 1e-300))


def _corner(conv: Convolution, inverse: Inverse, y: Tensor, d: float) -> float:
    """Less the curvature of the L-curve, by one more answer.

    With rho = ||r||^2 and eta = ||x||^2, whose derivatives are rho' = -d^2 eta' and eta' = -4 / d <x, P r>, and
    m = d^2 eta / rho, minus the steepness of the curve, it is  2 eta m' / (|eta'| (1 + m^2)^1.5).
    """
    x = inverse(y)
    rest = y - conv.forward(x)
    rho, eta = _norm(rest) ** 2, _norm(x) ** 2
    slope = -4 / d * float((x * inverse(rest)).double().sum())
    if not (rho and eta and slope):
        return math.inf
    m = d**2 * eta / rho
    turn = 2 * m / d + d**2 * slope / rho * (1 + m)
    steepness: float = (1 + m**2) ** 1.5
    return -2 * eta * turn / (abs(slope) * steepness)


def _norm(images: Tensor) -> float:
    return float(images.double().norm())
