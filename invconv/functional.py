"""Differentiable functions of a weight, for those who hold no module: each a twin of a method of the layers.

All take the arguments of `torch.nn.functional.conv1d`, `conv2d` or `conv3d` (which one, the weight's shape tells),
`padding_mode`, and `rtol`, `damping`, `solver`, `tol`, `max_iter` (see `invconv.Options`).  They factor at each call; a
layer does it once for each value of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from invconv.errors import InputError
from invconv.geometry import Geometry, as_tuple
from invconv.operator import ConvOperator
from invconv.options import Options


class _Once(torch.autograd.Function):
    """A gradient that knows what it depends on, so that a second derivative is refused rather than left out."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, *causes: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> Any:
        raise NotImplementedError(
            "the inverse and the log-determinant of a convolution have no second derivatives here: "
            "do not differentiate through their gradients (create_graph=True), or detach these"
        )


class _PseudoInverse(torch.autograd.Function):
    """x = A^+ y; the weight is passed for its gradient, its values are the operator's."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, operator: ConvOperator) -> Tensor:
        x = operator.pseudo_inverse(y)
        ctx.operator = operator
        ctx.save_for_backward(y, weight, x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, weight, x = ctx.saved_tensors
        operator: ConvOperator = ctx.operator
        grad_weight = None
        with torch.no_grad():
            if ctx.needs_input_grad[1]:
                grad_y, grad_weight = operator.pseudo_inverse_gradient(y, x, grad)
            else:
                grad_y = operator.pseudo_inverse_adjoint(grad)
        if torch.is_grad_enabled():
            grad_y = _Once.apply(grad_y, grad, weight)
            grad_weight = None if grad_weight is None else _Once.apply(grad_weight, grad, y, weight)
        return grad_y, grad_weight, None


class _LogVolume(torch.autograd.Function):
    """log volume of A; its gradient is the pseudo-inverse, which the operator keeps for `inverse` as well."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: ConvOperator) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(weight)
        return operator.log_volume()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.no_grad():
            gradient = grad * ctx.operator.log_volume_gradient()
        return _Once.apply(gradient, grad, *ctx.saved_tensors) if torch.is_grad_enabled() else gradient, None


def pseudo_inverse(y: Tensor, weight: Tensor, operator: ConvOperator) -> Tensor:
    """A^+ y, differentiable in y and in the weight that `operator` was made from; in the dtype of y."""
    dtype = y.dtype
    # The casts are outside the function, so that autograd turns them round.
    return _PseudoInverse.apply(operator.check_output(y), weight.to(operator.dtype), operator).to(dtype)


def log_volume(weight: Tensor, operator: ConvOperator) -> Tensor:
    """1/2 log det(A'A), or of AA', in nats: a scalar, differentiable in the weight that `operator` was made from."""
    return _LogVolume.apply(weight.to(operator.dtype), operator)


def conv_operator(weight: Tensor, input_size: Sequence[int], **arguments: Any) -> ConvOperator:
    """The map x -> conv(x, weight) on images of spatial size `input_size` (a full shape is taken too)."""
    geometry, options = _parse(weight, arguments)
    return ConvOperator(weight, geometry, spatial_size(input_size, geometry.dims), options)


def _parse(weight: Tensor, arguments: dict[str, Any]) -> tuple[Geometry, Options]:
    """Options by their names; what is left is geometry."""
    names = {field.name for field in fields(Options)}
    options = {name: value for name, value in arguments.items() if name in names}
    geometry = {name: value for name, value in arguments.items() if name not in names}
    return Geometry.of(tuple(weight.shape[2:]), **geometry), Options(**options)


def conv_inverse(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output_size: Sequence[int] | None = None,
    **arguments: Any,
) -> Tensor:
    r"""The x of least norm among those that minimise ||conv(x, weight) + bias - y||: A^+ (y - bias).

    Arguments:
        y: (batch, out_channels, \*output size of the convolution).
        weight: (out_channels, in_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        output_size: spatial size of x; None for y's times the stride.
        arguments: stride, padding, dilation, groups, padding_mode; rtol, damping, solver, tol, max_iter.

    Returns:
        x: (batch, in_channels, \*output_size), differentiable in y, weight and bias.

    Example:
        >>> x, weight = torch.randn(1, 2, 8, 8), torch.randn(4, 2, 3, 3)
        >>> y = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), weight)
        >>> torch.allclose(conv_inverse(y, weight, padding=1, padding_mode="circular"), x, atol=1e-3)
        True
    """
    geometry, options = _parse(weight, arguments)
    size = geometry.input_size(y.shape[2:]) if output_size is None else spatial_size(output_size, geometry.dims)
    if bias is not None:
        y = y - bias.view(1, -1, *(1,) * geometry.dims)
    return pseudo_inverse(y, weight, ConvOperator(weight, geometry, size, options))


def conv_log_abs_det(weight: Tensor, input_size: Sequence[int], **options: Any) -> Tensor:
    """log |det A| for one image of spatial size `input_size`, in nats; square maps only.

    Example:
        >>> conv_log_abs_det(2 * torch.eye(3).view(3, 3, 1, 1), (4, 4)) / (3 * 4 * 4)  # log 2
        tensor(0.6931)
    """
    operator = conv_operator(weight, input_size, **options)
    operator.check_square()
    return log_volume(weight, operator)


def conv_log_volume(weight: Tensor, input_size: Sequence[int], **options: Any) -> Tensor:
    """1/2 log det(A'A) of a tall map, 1/2 log det(AA') of a wide one, for one image, in nats."""
    return log_volume(weight, conv_operator(weight, input_size, **options))


def conv_singular_values(weight: Tensor, input_size: Sequence[int], k: int | None = None, **options: Any) -> Tensor:
    """All singular values of A on one image, descending, or the k largest and k smallest; not differentiable."""
    return conv_operator(weight, input_size, **options).singular_values(k)


def conv_condition_number(weight: Tensor, input_size: Sequence[int], **options: Any) -> Tensor:
    """sigma_max / sigma_min of A: a solution loses up to log10 of it in digits; not differentiable."""
    return conv_operator(weight, input_size, **options).condition_number()


def spatial_size(size: Sequence[int], dims: int) -> tuple[int, ...]:
    """(H, W) from (H, W), (C, H, W) or (N, C, H, W), in as many dimensions as the layer has."""
    if isinstance(size, int):
        return as_tuple("input_size", size, dims)
    if len(size) not in (dims, dims + 1, dims + 2):
        raise InputError(f"input_size must be the {dims} spatial sizes of x or the shape of x, got {tuple(size)}")
    return as_tuple("input_size", tuple(size)[-dims:], dims)
