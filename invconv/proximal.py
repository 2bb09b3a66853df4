r"""Answers drawn to an image v, differentiable in all that they are made of: y, v, the weight and the damping.

$\mathrm{prox}(y, v) = v + (A'A + d^2)^{-1} A' (y - A v), \qquad \mathrm{back}(y, v) = v + A^+ (y - A v)$

The derivatives by y, v and the weight are those of the pseudo-inverse and of the convolution (`invconv.autograd`), that
by d is closed (`invconv.damped`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invconv.arguments import without_bias
from invconv.autograd import one_by_one, pseudo_inverse
from invconv.checks import check_image, compute_dtype
from invconv.damped import Damping
from invconv.engine.precision import exactly
from invconv.errors import InputError
from invconv.formulas import Inverses, Operators
from invconv.geometry import Geometry
from invconv.linear import folded, is_differentiated, is_transformed
from invconv.operator import ConvOperator
from invconv.options import Options


def restoring(
    y: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    options: Options,
    get: Callable[..., ConvOperator] | None = None,
) -> tuple[Tensor, Operators]:
    """The outputs less a bias, and what gives the operator, for images and outputs of the sizes of v and y.

    Raises:
        InputError: for images, outputs or a bias that do not fit.
    """
    for name, images in {"v": v, "y": y}.items():
        if not isinstance(images, Tensor) or images.dim() != geometry.dims + 2:
            got = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
            raise InputError(f"{name} must be a batch of images of {geometry.dims} axes, got {got}")
    size = v.shape[2:]
    operators = Operators(weight, geometry.between(size, y.shape[2:]), size, options, get)
    operators.check_output(y)  # before the bias is taken off, which could broadcast a wrong shape into a right one
    return without_bias(y, operators.map.out_channels, bias, geometry), operators


def project(y: Tensor, v: Tensor | None, weight: Tensor, operators: Operators, damping: Damping = 0.0) -> Tensor:
    """The image v + P (y - A v), P being what inverts A by the options of `operators`; in y's dtype.

    Args:
        y: outputs of A.
        v: inputs of A; None for zero.
        weight: the kernel, which `operators` are of.
        operators: with the damping that is the value of `damping`.
        damping: d, for derivatives by it; 0 where P is the pseudo-inverse.
    """
    operators.outputs, dtype, kernel = y.dtype, y.dtype, weight.to(compute_dtype(weight.dtype))
    y = operators.check_output(y)
    conv = replace(operators.map, weight=kernel)
    if v is not None:
        v = check_image("v", v, conv.in_channels, conv.input_size, kernel)
        with exactly(y.device):
            y = y - conv.forward(v)
    if isinstance(damping, Tensor) and is_differentiated(damping):
        x = _damped(y, kernel, damping, operators, False)
    else:
        x = pseudo_inverse(y, kernel, operators)
    return (x if v is None else v + x).to(dtype)


class _Damped(torch.autograd.Function):
    """The function x = (A'A + d^2)^-1 A' y, or its transpose if it is turned round."""

    @staticmethod
    def forward(y: Tensor, weight: Tensor, damping: Tensor, operators: Operators, turned: bool) -> Tensor:  # noqa: ARG004
        return operators.inverse(y, weight, turned).data

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, operators, ctx.turned = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.operators = operators if is_transformed(output) else operators.fixed()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, weight, damping = ctx.saved_tensors
        turned, (_, by_weight, by_damping, *_) = ctx.turned, ctx.needs_input_grad
        grad_y = _damped(grad, weight, damping, ctx.operators, not turned)
        grad_weight = grad_damping = None
        if by_weight:
            grad_weight = _by_weight(ctx, y, grad)
        if by_damping:
            slope = _slope(y, weight, damping, ctx.operators, turned)
            grad_damping = (grad * slope).sum().to(damping.dtype).view(damping.shape)
        return grad_y, grad_weight, grad_damping, None, None

    @staticmethod
    def jvp(ctx: Any, y_tangent: Any, weight_tangent: Any, damping_tangent: Any, *_: None) -> Tensor:
        y, weight, damping = ctx.saved_tensors
        operators, turned, changes = ctx.operators, ctx.turned, []
        with exactly(y.device):
            if y_tangent is not None:
                changes.append(_damped(y_tangent, weight, damping, operators, turned))
            if weight_tangent is not None:
                changes.append(_inverses(weight, damping, operators).change(y, weight_tangent, turned))
            if damping_tangent is not None:
                changes.append(damping_tangent.to(y.dtype) * _slope(y, weight, damping, operators, turned))
        return sum(changes[1:], changes[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, y: Tensor, *rest: Any) -> tuple[Tensor, int]:
        if in_dims[1] is not None or in_dims[2] is not None:
            return one_by_one(_Damped, info, in_dims, y, *rest)
        return folded(y, in_dims[0], lambda images: _damped(images, *rest)), 0


def _damped(y: Tensor, weight: Tensor, damping: Tensor, operators: Operators, turned: bool) -> Tensor:
    """(A'A + d^2)^-1 A' y, or its transpose, differentiable in all three; `operators` have the value of d."""
    if not is_differentiated(y, weight, damping):
        return operators.inverse(y, weight, turned)
    x: Tensor = _Damped.apply(y, weight, damping, operators, turned)
    return x


def _by_weight(ctx: Any, y: Tensor, grad: Tensor) -> Tensor:
    """The gradient of <grad, x> by the kernel: by the factors, or where it is to be differentiated by formulas."""
    _, weight, damping = ctx.saved_tensors
    pair = (y, grad) if ctx.turned else (grad, y)
    if is_differentiated(grad, y, weight, damping):
        with exactly(y.device):
            return _inverses(weight, damping, ctx.operators).by_weight(*pair)
    gradient: Tensor = ctx.operators.gradients(pair[1], None, pair[0], weight)[1]
    return gradient


def _slope(y: Tensor, weight: Tensor, damping: Tensor, operators: Operators, turned: bool) -> Tensor:
    """What x changes by along d: -2 d (A'A + d^2)^-1 x, or with AA' if it is turned round."""
    x = _damped(y, weight, damping, operators, turned)
    if is_differentiated(y, weight, damping):
        inverses = _inverses(weight, damping, operators)
        with exactly(y.device):
            gram = inverses.D(x) if turned else inverses.G(x)
    else:
        operator = operators(weight)
        gram = operator.dual_gram_inverse(x) if turned else operator.gram_inverse(x)
    return -2 * damping.to(x.dtype) * gram


def _inverses(weight: Tensor, damping: Tensor, operators: Operators) -> Inverses:
    """The four maps of this weight, differentiable by d as well."""

    def inverse(y: Tensor, weight: Tensor, operators: Operators, turned: bool) -> Tensor:
        return _damped(y, weight, damping, operators, turned)

    return Inverses(inverse, weight, operators, damping)
