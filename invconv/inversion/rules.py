"""The rules of linear layers, and of norms: equations that are solved for the input."""

from __future__ import annotations

import contextlib
import operator
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from invconv.errors import IllConditionedWarning, InvconvError
from invconv.inversion.interval import Interval
from invconv.inversion.place import Place
from invconv.inversion.registry import rule
from invconv.layers import (
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
)
from invconv.operator import ConvOperator
from invconv.options import Options
from invconv.transposed import TransposedGeometry

INF = float("inf")
MOST_RING = 1500
"""Unknowns of a ring that is factored for the sake of one picture."""

# -- linear layers: least squares ---------------------------------------------------------------------------------


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, solves=True, affine=True)
@rule(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, solves=True, affine=True)
def convolution(place: Place, output: Interval) -> Interval:
    """The pseudo-inverse where all outputs are known and a small ring allows it; else masked least squares."""
    return _convolved(place, output, _pseudo_inverse)


def _convolved(place: Place, output: Interval, invert: Callable[[Place, Tensor], Tensor | None]) -> Interval:
    """Least squares from the pseudo-inverse on, where there is one."""
    start = None
    if bool(output.exact.all()):
        with warnings.catch_warnings(), contextlib.suppress(InvconvError, IllConditionedWarning):
            # What the pseudo-inverse cannot take, or be trusted with, damped least squares find.
            warnings.simplefilter("error", IllConditionedWarning)
            start = invert(place, output.lower)
    solution = place.solve(output, start, affine=True)
    if start is not None:
        place.note = "; ".join(filter(None, ["pseudo-inverse", place.note]))
    return solution


def _pseudo_inverse(place: Place, y: Tensor) -> Tensor | None:
    """The pseudo-inverse of a convolution; None where its factors are not worth one picture."""
    layer, size = _layer(place), tuple(place.shape[2:])
    return layer.inverse(y, size).detach() if _is_cheap(layer.operator(size)) else None


def _is_cheap(conv: ConvOperator) -> bool:
    """Whether the factors of a convolution are worth one picture."""
    plan = conv.plan()
    return plan.solver != "sparse lu" and plan.unknowns <= MOST_RING


def _layer(place: Place) -> Any:
    """The invertible layer of a convolution, module or function."""
    if place.module is not None:
        return _kind(place).from_conv(place.module, solver="direct")
    weight, bias = place.option("weight", 0).detach(), place.option("bias", 1)
    names = ("stride", 1), ("padding", 0), ("dilation", 1), ("groups", 1)
    options = {name: place.option(name, i, default) for i, (name, default) in enumerate(names, 2)}
    return _invertible(place, weight, bias, options)


def _kind(place: Place) -> Any:
    """The class of invertible layers of as many dimensions."""
    return {1: InvertibleConv1d, 2: InvertibleConv2d, 3: InvertibleConv3d}[len(place.shape) - 2]


def _invertible(place: Place, weight: Tensor, bias: Tensor | None, options: dict[str, Any]) -> Any:
    """The invertible layer of this weight, which is not copied."""
    channels, sizes = weight.shape[1] * options["groups"], tuple(weight.shape[2:])
    layer = _kind(place)(channels, len(weight), sizes, bias=bias is not None, device="meta", solver="direct", **options)
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias.detach())
    return layer


@rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, solves=True, affine=True)
@rule(InvertibleConvTranspose1d, InvertibleConvTranspose2d, InvertibleConvTranspose3d, solves=True, affine=True)
@rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, solves=True, affine=True)
@rule(torch.conv_transpose1d, torch.conv_transpose2d, torch.conv_transpose3d, solves=True, affine=True)
def transposed_convolution(place: Place, output: Interval) -> Interval:
    """As of a convolution, with the pseudo-inverse of the transposed one."""
    return _convolved(place, output, _transposed_pseudo_inverse)


def _transposed_pseudo_inverse(place: Place, y: Tensor) -> Tensor | None:
    """The pseudo-inverse of a transposed convolution; None where its factors are not worth one picture."""
    names = ("stride", 2, 1), ("padding", 3, 0), ("groups", 5, 1), ("dilation", 6, 1)
    options = {name: place.option(name, i, default) for name, i, default in names}
    weight, bias = place.option("weight", 0).detach(), place.option("bias", 1)
    geometry = TransposedGeometry.of(tuple(weight.shape[2:]), **options).between(place.shape[2:], y.shape[2:])
    conv = ConvOperator(weight, geometry, tuple(place.shape[2:]), Options(solver="direct"))
    if not _is_cheap(conv):
        return None
    shifted = y if bias is None else y - bias.detach().view(-1, *(1,) * (y.dim() - 2))
    return conv.pseudo_inverse(shifted).detach()


@rule(nn.Linear, F.linear, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, solves=True, affine=True)
@rule(nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.UpsamplingBilinear2d, nn.Fold, solves=True, affine=True)
@rule(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, solves=True, affine=True)
@rule(F.adaptive_avg_pool3d, F.fold, F.grid_sample, torch.mean, "mean", torch.sum, "sum", solves=True, affine=True)
@rule(
    torch.cumsum, "cumsum", torch.diff, "diff", torch.einsum, torch.tensordot, operator.matmul, solves=True, affine=True
)
@rule(torch.matmul, "matmul", torch.bmm, "bmm", torch.mm, "mm", torch.addmm, torch.baddbmm, solves=True, affine=True)
def linear(place: Place, output: Interval) -> Interval:
    """The least-squares solution nearest to the start; products of what depends on the image with itself likewise."""
    return place.solve(output, affine=True)


@rule(operator.mul, operator.truediv, operator.add, operator.sub, operator.neg, torch.mul, torch.add, solves=True)
@rule(torch.sub, torch.div, torch.neg, "mul", "add", "div", "sub", "neg", torch.rsub, torch.subtract, solves=True)
@rule(torch.multiply, torch.divide, torch.true_divide, "multiply", "divide", "subtract", "true_divide", solves=True)
def arithmetic(place: Place, output: Interval) -> Interval:
    """Divided by a constant and shifted back, entry by entry; squares and reciprocals by least squares."""
    zero = torch.zeros_like(place.usual)
    shift, one, two = place.apply(zero), place.apply(zero + 1), place.apply(zero + 2)
    scale = one - shift
    if shift.shape != place.shape or not torch.allclose(two - one, scale, rtol=1e-3) or bool((scale == 0).any()):
        return place.solve(output)
    return output.scaled(1 / scale, -shift / scale)


@rule(
    nn.LayerNorm,
    nn.RMSNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    solves=True,
    joins=True,
)
@rule(
    nn.LocalResponseNorm, F.layer_norm, F.rms_norm, F.group_norm, F.instance_norm, F.normalize, solves=True, joins=True
)
@rule(
    F.local_response_norm,
    nn.Softmax,
    nn.Softmin,
    nn.Softmax2d,
    nn.LogSoftmax,
    F.softmax,
    F.softmin,
    solves=True,
    joins=True,
)
@rule(F.log_softmax, torch.softmax, torch.log_softmax, "softmax", "log_softmax", solves=True, joins=True)
def norm(place: Place, output: Interval) -> Interval:
    """Solved with the layer below it, since it divides by what it is given; the scale of noise is left."""
    place.note = "mean and scale are lost"
    return place.solve(output)


@rule(nn.GLU, F.glu, solves=True)
def gated(place: Place, output: Interval) -> Interval:
    """One half times the sigmoid of the other, by least squares."""
    place.note = "two unknowns for each equation"
    return place.solve(output)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, F.batch_norm, affine=True)
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
