"""A convolution both ways, with the log-determinant of each image: what every flow library asks for."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.utils import parametrize

from invconv.errors import InputError
from invconv.layers import InvertibleLayer


def encode(conv: InvertibleLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    r"""Map data to latent:  z = conv(x),  log |det dz/dx|.

    Args:
        conv: an invertible layer.
        x: (batch, in_channels, \*size).

    Returns:
        z: (batch, out_channels, \*output size), and the log-determinants in nats, (batch,).

    Raises:
        InputError: if x is no batch of images.
        NotSquareError: if z has not as many entries as x.
    """
    check_batch("x", x, conv.in_channels, conv)
    with parametrize.cached():  # a parametrized kernel is computed once for both
        return conv(x), conv.log_abs_det(x.shape).repeat(len(x))


def decode(conv: InvertibleLayer, z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Map latent to data:  x = A^+ (z - bias),  log |det dx/dz|.

    Args:
        conv: an invertible layer.
        z: (batch, out_channels, \*output size).

    Returns:
        x: (batch, in_channels, \*size), and the log-determinants in nats, (batch,).

    Raises:
        InputError: if z is no batch of images.
        NotSquareError: if z has not as many entries as x.
    """
    check_batch("z", z, conv.out_channels, conv)
    with parametrize.cached():
        x = conv.inverse(z)
        return x, -conv.log_abs_det(x.shape).repeat(len(x))


def check_layer(conv: Any) -> InvertibleLayer:
    """Return `conv` if it is one of our layers.

    Raises:
        InputError: if it is anything else.
    """
    if not isinstance(conv, InvertibleLayer):
        raise InputError(
            f"expected an InvertibleConv1d, 2d or 3d, or InvertibleConvTranspose1d to 3d, got {type(conv).__name__}; "
            "their from_conv makes one of a plain convolution"
        )
    return conv


def check_batch(name: str, images: Tensor, channels: int, conv: InvertibleLayer) -> None:
    """Check that `images` is a batch with so many channels, for `conv`.

    Raises:
        InputError: if it has another shape; the text calls it `name`.
    """
    dims = conv.geometry.dims
    if images.dim() != dims + 2 or images.shape[1] != channels:
        raise InputError(f"{name} must have shape (batch, {channels}, {dims} sizes), got {tuple(images.shape)}")
