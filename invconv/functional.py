r"""Differentiable functions of a weight, for those who hold no module: each a twin of a method of the layers.

$A x = \mathrm{conv}(x, K), \qquad A^+ y, \qquad \log |\det A|, \qquad \sigma(A)$

All take the arguments of `torch.nn.functional.conv1d`, `conv2d` or `conv3d` (which one, the weight's shape tells),
`padding_mode`, and the fields of `invconv.Options`.  They factor at each call; a layer does it once for each value of
its weight.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import fields
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict, Unpack

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
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.geometry import Geometry, Padding, as_tuple
from invconv.operator import ConvOperator
from invconv.options import Options

__all__ = [
    "conv_condition_number",
    "conv_inverse",
    "conv_log_abs_det",
    "conv_log_volume",
    "conv_norm_bound",
    "conv_operator",
    "conv_singular_values",
    "conv_smallest_singular_value",
    "conv_spectral_norm",
    "log_volume",
    "pseudo_inverse",
    "spatial_size",
]


class Arguments(TypedDict, total=False):
    """The keyword arguments of all functions below: how the convolution reads its image, and `invconv.Options`."""

    stride: int | Sequence[int]
    padding: Padding
    dilation: int | Sequence[int]
    groups: int
    padding_mode: str
    rtol: float | None
    damping: float
    solver: str
    tol: float | None
    max_iter: int | None
    volume_tol: float | None
    answers: int


def conv_operator(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> ConvOperator:
    """The map x -> conv(x, weight) on images of spatial size `input_size` (a full shape is taken too)."""
    geometry, options = _parse("conv_operator", weight, dict(arguments))
    return ConvOperator(weight, geometry, _size(weight, input_size, geometry), options)


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
    geometry, options = _parse("conv_inverse", weight, dict(arguments))
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
    if bias is not None:
        if not isinstance(bias, Tensor) or bias.shape != weight.shape[:1]:
            got = f"shape {tuple(bias.shape)}" if isinstance(bias, Tensor) else type(bias).__name__
            raise InputError(f"bias must be a tensor of shape ({len(weight)},), one number for each channel, got {got}")
        y = y - bias.to(y.dtype).view(1, -1, *(1,) * geometry.dims)
    return pseudo_inverse(y, weight, operators)


def conv_log_abs_det(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The log-determinant log |det A| for one image of spatial size `input_size`, in nats; square maps only.

    It is that of the convolution itself: damping and rtol change the inverse only.

    Example:
        >>> import torch
        >>> conv_log_abs_det(2 * torch.eye(3).view(3, 3, 1, 1), (4, 4)) / (3 * 4 * 4)  # log 2
        tensor(0.6931)
    """
    return log_abs_det(weight, _operators("conv_log_abs_det", weight, input_size, arguments))


def conv_log_volume(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The log-volume 1/2 log det(A'A) of a tall map, 1/2 log det(AA') of a wide one, for one image, in nats.

    It is that of the convolution itself: damping and rtol change the inverse only.
    """
    return log_volume(weight, _operators("conv_log_volume", weight, input_size, arguments))


def conv_singular_values(
    weight: Tensor, input_size: Sequence[int], k: int | None = None, **arguments: Unpack[Arguments]
) -> Tensor:
    """All singular values of A on one image, descending, or the k largest and k smallest.

    Those of cyclic and small maps, which can be had all at once, are differentiable.
    """
    return singular_values(weight, _operators("conv_singular_values", weight, input_size, arguments), k)


def conv_condition_number(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The ratio sigma_max / sigma_min of A: a solution loses up to log10 of it in digits.

    It is differentiable where the singular values are.
    """
    return condition_number(weight, _operators("conv_condition_number", weight, input_size, arguments))


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
    return spectral_norm(weight, _operators("conv_spectral_norm", weight, input_size, arguments))


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
    geometry, _ = _parse("conv_norm_bound", weight, dict(arguments))
    check_weight(weight, geometry, visible=False)
    return norm_bound(weight, geometry)


def conv_smallest_singular_value(weight: Tensor, input_size: Sequence[int], **arguments: Unpack[Arguments]) -> Tensor:
    """The smallest of the min(shape) singular values of A: by 1 / it grows what `conv_inverse` makes of noise, at most.

    It is differentiable whatever the geometry, as `conv_spectral_norm` is.

    Raises:
        SingularMapError: of a large map of which no inverse tells it.
    """
    operators = _operators("conv_smallest_singular_value", weight, input_size, arguments)
    return smallest_singular_value(weight, operators)


def spatial_size(size: Sequence[int], dims: int, channels: int | None = None) -> tuple[int, ...]:
    """The spatial sizes (H, W) of (H, W), (C, H, W) or (N, C, H, W), in as many dimensions as the layer has.

    Args:
        size: of the image, or its shape; one integer for all dimensions.
        dims: of the layer.
        channels: that C has to be; None for any number.
    """
    if not isinstance(size, Sized):
        return as_tuple("input_size", size, dims)
    if isinstance(size, (str, bytes, Tensor)) or len(size) not in (dims, dims + 1, dims + 2):
        kind = f"a tensor: give its shape, {tuple(size.shape)}" if isinstance(size, Tensor) else repr(size)
        raise InputError(f"input_size must be the {dims} spatial sizes of x or the shape of x, got {kind}")
    if channels is not None and len(size) > dims and size[-dims - 1] != channels:
        raise InputError(f"input_size {tuple(size)} has {size[-dims - 1]} channels, the layer takes {channels}")
    return as_tuple("input_size", tuple(size)[-dims:], dims)


def _operators(function: str, weight: Tensor, input_size: Sequence[int], arguments: Any) -> Operators:
    """What gives the operator that the arguments of a function describe."""
    geometry, options = _parse(function, weight, arguments)
    return Operators(weight, geometry, _size(weight, input_size, geometry), options)


def _size(weight: Tensor, input_size: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    return spatial_size(input_size, geometry.dims, weight.shape[1] * geometry.groups)


def _parse(function: str, weight: Tensor, arguments: dict[str, Any]) -> tuple[Geometry, Options]:
    """What the arguments of a function say of the geometry, and of the options."""
    for name in arguments:
        if name not in Arguments.__annotations__:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
    if not isinstance(weight, Tensor):
        raise InputError(f"the weight must be a tensor, got {type(weight).__name__}")
    names = {field.name for field in fields(Options)}
    options = {name: value for name, value in arguments.items() if name in names}
    geometry = {name: value for name, value in arguments.items() if name not in names}
    return Geometry.of(tuple(weight.shape[2:]), **geometry), Options(**options)
