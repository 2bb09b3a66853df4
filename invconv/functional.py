r"""Differentiable functions of a weight, for those who hold no module: each a twin of a method of the layers.

$A x = \mathrm{conv}(x, K), \quad A^+ y, \quad v + (A'A + d^2)^{-1} A' (y - A v), \quad \log |\det A|, \quad \sigma(A)$

All take the arguments of `torch.nn.functional.conv1d`, `conv2d` or `conv3d` (which one, the weight's shape tells),
`padding_mode`, and the fields of `invconv.Options`.  They factor at each call; a layer does it once for each value of
its weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from invconv.arguments import Arguments, Geometric, operators_of, parse, size_of, spatial_size, without_bias
from invconv.autograd import (
    condition_number,
    log_abs_det,
    log_volume,
    norm_bound,
    pseudo_inverse,
    singular_values,
    smallest_singular_value,
    spectral_norm,
)
from invconv.checks import check_weight
from invconv.damped import Damping, damping_value
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.operator import ConvOperator
from invconv.proximal import project, restoring
from invconv.upsampling import conv_transpose_inverse, conv_transpose_operator

__all__ = [
    "conv_back_project",
    "conv_choose_damping",
    "conv_condition_number",
    "conv_inverse",
    "conv_log_abs_det",
    "conv_log_volume",
    "conv_norm_bound",
    "conv_operator",
    "conv_proximal",
    "conv_singular_values",
    "conv_smallest_singular_value",
    "conv_spectral_norm",
    "conv_transpose_inverse",
    "conv_transpose_operator",
    "log_volume",
    "pseudo_inverse",
    "spatial_size",
]


def conv_operator(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> ConvOperator:
    """The map x -> conv(x, weight) on images of spatial size `input_size` (a full shape is taken too)."""
    geometry, options = parse("conv_operator", weight, dict(arguments))
    return ConvOperator(weight, geometry, size_of(weight, input_size, geometry), options)


def conv_inverse(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output_size: Sequence[int] | None = None,
    **arguments: Unpack[Arguments],
) -> Tensor:
    r"""The image x of least norm among those that minimise ||conv(x, weight) + bias - y||: A^+ (y - bias).

    Args:
        y: (batch, out_channels, \*output size of the convolution).
        weight: (out_channels, in_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        output_size: spatial size of x; None for y's times the stride.
        arguments: stride, padding, dilation, groups, padding_mode; rtol, damping, solver, tol, max_iter, volume_tol,
            answers.

    Returns:
        x: (batch, in_channels, \*output_size), in the dtype of y; differentiable in y, weight and bias.

    Raises:
        InputError: if y or bias has another shape than the convolution gives or takes.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(1, 2, 8, 8), torch.randn(4, 2, 3, 3)
        >>> y = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), weight)
        >>> torch.allclose(conv_inverse(y, weight, padding=1, padding_mode="circular"), x, atol=1e-3)
        True
    """
    geometry, options = parse("conv_inverse", weight, dict(arguments))
    if not isinstance(y, Tensor):
        raise InputError(f"y must be a tensor, got {type(y).__name__}")
    size = (
        geometry.input_size(y.shape[-geometry.dims :])
        if output_size is None
        else spatial_size(output_size, geometry.dims, weight.shape[1] * geometry.groups)
    )
    operators = Operators(weight, geometry, size, options)
    # Checked before the bias is taken off, which could broadcast a wrong shape into a right one.
    operators.check_output(y)
    return pseudo_inverse(without_bias(y, len(weight), bias, geometry), weight, operators)


def conv_proximal(
    y: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    damping: Damping,
    **arguments: Unpack[Geometric],
) -> Tensor:
    r"""The image x that minimises ||conv(x, weight) + bias - y||^2 + d^2 ||x - v||^2.

    That is v + (A'A + d^2)^-1 A' (y - bias - A v), the proximal operator of ||A x + bias - y||^2 / (2 d^2) at v.

    Args:
        y: (batch, out_channels, \*output size of the convolution).
        v: (batch, in_channels, \*size), whose size is that of x.
        weight: (out_channels, in_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        damping: d, positive, in units of singular values; a number, or a tensor of one number to differentiate by.
        arguments: stride, padding, dilation, groups, padding_mode; the other fields of `invconv.Options`.

    Returns:
        x: (batch, in_channels, \*size), in the dtype of y; differentiable in y, v, weight, bias and damping.

    Raises:
        InputError: if d is not positive, or a tensor has another shape than the convolution gives or takes.

    Example:
        >>> import torch
        >>> x, weight = torch.rand(1, 1, 12, 12), torch.ones(1, 1, 5, 5) / 25
        >>> y = torch.nn.functional.conv2d(x, weight)
        >>> conv_proximal(y, x, weight, damping=0.1).sub(x).abs().max().item() < 1e-5
        True
    """
    return _drawn("conv_proximal", y, v, weight, bias, damping, {**arguments, "damping": damping_value(damping)})


def conv_back_project(
    y: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None = None, **arguments: Unpack[Geometric]
) -> Tensor:
    r"""The image nearest to v of those that minimise ||conv(x, weight) + bias - y||: v + A^+ (y - bias - A v).

    Args:
        y: (batch, out_channels, \*output size of the convolution).
        v: (batch, in_channels, \*size), whose size is that of x.
        weight: (out_channels, in_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        arguments: stride, padding, dilation, groups, padding_mode; the fields of `invconv.Options` besides damping.

    Returns:
        x: (batch, in_channels, \*size), in the dtype of y; differentiable in y, v, weight and bias.

    Raises:
        InputError: if a tensor has another shape than the convolution gives or takes.
    """
    return _drawn("conv_back_project", y, v, weight, bias, 0.0, dict(arguments))


def conv_choose_damping(
    y: Tensor,
    v: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    method: str = "gcv",
    noise: float | None = None,
    **arguments: Unpack[Geometric],
) -> float:
    r"""A damping for `conv_proximal`, by "discrepancy", "gcv" or "l-curve": `ConvOperator.choose_damping`.

    Args:
        y: (batch, out_channels, \*output size of the convolution).
        v: (batch, in_channels, \*size), that x is drawn to.
        weight: (out_channels, in_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        method: the rule.
        noise: standard deviation of the noise of y, which "discrepancy" needs.
        arguments: stride, padding, dilation, groups, padding_mode; the fields of `invconv.Options` besides damping.

    Returns:
        d: in units of singular values.

    Raises:
        InputError: for another method; if noise is missing, or no d leaves so much or so little.
    """
    y, operators = restoring(y, v, weight, bias, *parse("conv_choose_damping", weight, dict(arguments)))
    return operators(weight).choose_damping(y, method, noise, v)


def conv_log_abs_det(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The log-determinant log |det A| for one image of spatial size `input_size`, in nats; square maps only.

    It is that of the convolution itself: damping and rtol change the inverse only.

    Example:
        >>> import torch
        >>> conv_log_abs_det(2 * torch.eye(3).view(3, 3, 1, 1), (4, 4)) / (3 * 4 * 4)  # log 2
        tensor(0.6931)
    """
    return log_abs_det(weight, operators_of("conv_log_abs_det", weight, input_size, arguments))


def conv_log_volume(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The log-volume 1/2 log det(A'A) of a tall map, 1/2 log det(AA') of a wide one, for one image, in nats.

    It is that of the convolution itself: damping and rtol change the inverse only.
    """
    return log_volume(weight, operators_of("conv_log_volume", weight, input_size, arguments))


def conv_singular_values(
    weight: Tensor, input_size: Sequence[int], k: int | None = None, **arguments: Unpack[Arguments]
) -> Tensor:
    """All singular values of A on one image, descending, or the k largest and k smallest.

    Those of cyclic and small maps, which can be had all at once, are differentiable, and for k = 1 those of all.
    """
    return singular_values(weight, operators_of("conv_singular_values", weight, input_size, arguments), k)


def conv_condition_number(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The ratio sigma_max / sigma_min of A: a solution loses up to log10 of it in digits.

    It is differentiable whatever the geometry, as `conv_spectral_norm` is.

    Raises:
        SingularMapError: of a large map of which no inverse tells it.
    """
    return condition_number(weight, operators_of("conv_condition_number", weight, input_size, arguments))


def conv_spectral_norm(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    r"""The norm of A, its largest singular value, for images of spatial size `input_size`, at their real borders.

    It is differentiable whatever the geometry: $d \sigma = u^T dA\, v$ with the singular vectors, which have converged
    to `tol` (1e-5 in float32, 1e-12 in float64).

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 1, 3)  # a sum of three neighbours: below three where the border is of zeros
        >>> conv_spectral_norm(ones, (7,), padding=1)  # 1 + 2 cos(pi / 8)
        tensor(2.8478)
    """
    return spectral_norm(weight, operators_of("conv_spectral_norm", weight, input_size, arguments))


def conv_norm_bound(weight: Tensor, **arguments: Unpack[Arguments]) -> Tensor:
    """An upper bound of `conv_spectral_norm` that holds for images of every size; differentiable, needs no image.

    It is the supremum over all frequencies of the norm of the kernel's symbol, at most half a percent above that in
    two dimensions, which large images with borders of zeros come up to; times the square root of how often a pixel is
    read where a border repeats it.

    Example:
        >>> import torch
        >>> ones = torch.ones(1, 1, 3)
        >>> bool(3 <= conv_norm_bound(ones, padding=1) < 3.01)
        True
    """
    geometry, _ = parse("conv_norm_bound", weight, dict(arguments))
    check_weight(weight, geometry, visible=False)
    return norm_bound(weight, geometry)


def conv_smallest_singular_value(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The smallest of the min(shape) singular values of A: by 1 / it grows what `conv_inverse` makes of noise, at most.

    It is differentiable whatever the geometry, as `conv_spectral_norm` is.

    Raises:
        SingularMapError: of a large map of which no inverse tells it.
    """
    operators = operators_of("conv_smallest_singular_value", weight, input_size, arguments)
    return smallest_singular_value(weight, operators)


def _drawn(
    function: str, y: Tensor, v: Tensor, weight: Tensor, bias: Tensor | None, damping: Damping, arguments: Any
) -> Tensor:
    """The answer that is drawn to v."""
    y, operators = restoring(y, v, weight, bias, *parse(function, weight, arguments))
    return project(y, v, weight, operators, damping)
