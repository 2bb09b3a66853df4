"""The rules of powers, roots, absolute values, exponentials and logarithms, entry by entry."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule

INF = math.inf


@rule(torch.exp, "exp", range=(0, INF))
def exp(_place: Place, output: Interval) -> Interval:
    """The logarithm."""
    return output.before(torch.log, 0.0)


@rule(torch.log, "log")
def log(_place: Place, output: Interval) -> Interval:
    """The exponential."""
    return output.map(torch.exp)


@rule(torch.expm1, "expm1", range=(-1, INF))
def expm1(_place: Place, output: Interval) -> Interval:
    """log(1 + y)."""
    return output.before(torch.log1p, -1.0)


@rule(torch.log1p, "log1p")
def log1p(_place: Place, output: Interval) -> Interval:
    """exp(y) - 1."""
    return output.map(torch.expm1)


@rule(torch.abs, torch.absolute, operator.abs, "abs", "absolute", range=(0, INF))
def absolute(place: Place, output: Interval) -> Interval:
    """The value itself above zero; where the layer below may give both signs, the interval between the two."""
    return _power(place, output, 1.0, folds=True)


@rule(torch.square, "square", range=(0, INF))
def square(place: Place, output: Interval) -> Interval:
    """The root; where the layer below may give both signs, the interval between the two."""
    return _power(place, output, 2.0, folds=True)


@rule(torch.sqrt, "sqrt", range=(0, INF))
def root(place: Place, output: Interval) -> Interval:
    """The square."""
    return _power(place, output, 0.5, folds=False)


@rule(torch.rsqrt, "rsqrt", range=(0, INF))
def reciprocal_root(place: Place, output: Interval) -> Interval:
    """The reciprocal of the square."""
    return _power(place, output, -0.5, folds=False)


@rule(torch.reciprocal, "reciprocal")
def reciprocal(place: Place, output: Interval) -> Interval:
    """The reciprocal, where the layer below gives but one sign; else by least squares."""
    return _power(place, output, -1.0, folds=False)


def _powers(place: Place) -> tuple[float, float]:
    """Whatever odd powers give; none below zero of others."""
    exponent = place.option("exponent", 0)
    return (-INF, INF) if not isinstance(exponent, (int, float)) or exponent % 2 == 1 else (0.0, INF)


@rule(operator.pow, torch.pow, "pow", range=_powers)
def power(place: Place, output: Interval) -> Interval:
    """The root; of even powers the interval between the two, unless the layer below gives but one sign."""
    exponent = place.option("exponent", 0)
    if not isinstance(exponent, (int, float)) or exponent == 0:
        place.note = "exponents that are no number: solved numerically"
        return place.solve(output)
    return _power(place, output, float(exponent), folds=exponent % 2 == 0)


def _power(place: Place, output: Interval, exponent: float, *, folds: bool) -> Interval:
    """The x with x^exponent, or the power of |x| where it folds, in the interval."""
    whole = exponent % 1 == 0

    def inverse(y: Tensor) -> Tensor:
        return y.clamp_min(0) ** (1 / exponent)

    if not whole or bool((place.box.lower >= 0).all()):
        ends = output.map(inverse)
        return ends if exponent > 0 else Interval(ends.upper, ends.lower)
    if exponent < 0:
        place.note = "reciprocals of both signs: solved numerically"
        return place.solve(output)
    if folds:
        most = inverse(output.upper)
        return Interval(-most, most)
    return output.map(lambda y: y.sign() * y.abs() ** (1 / exponent))
