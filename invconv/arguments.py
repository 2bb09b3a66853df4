"""What the functions of `invconv.functional` are called with: how an image is read, and `invconv.Options`."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import fields
from typing import Any

from torch import Tensor
from typing_extensions import TypedDict

from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.geometry import Geometry, Padding, as_tuple
from invconv.options import Options


class Geometric(TypedDict, total=False):
    """The keyword arguments of all functions below but damping: how an image is read, and `invconv.Options`."""

    stride: int | Sequence[int]
    padding: Padding
    dilation: int | Sequence[int]
    groups: int
    padding_mode: str
    rtol: float | None
    solver: str
    tol: float | None
    max_iter: int | None
    volume_tol: float | None
    answers: int


class Arguments(Geometric, total=False):
    """The keyword arguments of all functions below: how an image is read, and `invconv.Options`."""

    damping: float


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


def without_bias(y: Tensor, channels: int, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The outputs less a bias, which has to have one number for each channel."""
    if bias is None:
        return y
    if not isinstance(bias, Tensor) or tuple(bias.shape) != (channels,):
        got = f"shape {tuple(bias.shape)}" if isinstance(bias, Tensor) else type(bias).__name__
        raise InputError(f"bias must be a tensor of shape ({channels},), one number for each channel, got {got}")
    return y - bias.to(y.dtype).view(1, -1, *(1,) * geometry.dims)


def operators_of(function: str, weight: Tensor, input_size: Sequence[int], arguments: Any) -> Operators:
    """What gives the operator that the arguments of a function describe."""
    geometry, options = parse(function, weight, arguments)
    return Operators(weight, geometry, size_of(weight, input_size, geometry), options)


def size_of(weight: Tensor, input_size: Sequence[int], geometry: Geometry) -> tuple[int, ...]:
    """The spatial size of images of this size or shape, checked."""
    return spatial_size(input_size, geometry.dims, weight.shape[1] * geometry.groups)


def parse(function: str, weight: Tensor, arguments: dict[str, Any]) -> tuple[Geometry, Options]:
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
