"""What every flow layer promises:  z = f(x) with log |det df/dx|, both ways; and the checks they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.flows.context import Context
from invconv.layers.conv import InvertibleConv


class FlowLayer(nn.Module, ABC):
    r"""A bijection that knows its volume: `z = f(x)` with `log |det df/dx|`.

    `forward` goes from data to latent, `inverse` from latent to data. Both return the mapped tensor and a
    log-determinant of shape `(batch,)` in nats, that of the direction in which they went: the two sum to zero along a
    round trip. Only what the context has noted is left out of it, because the maker of the context adds that.
    """

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The convolutions whose kernels and log-determinants the layer leaves to its context; none, if not named."""
        return []

    if TYPE_CHECKING:  # what `torch.nn.Module` leaves open
        __call__: Callable[..., tuple[Any, Tensor]]

    @abstractmethod
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Any, Tensor]:
        """Map data `x: (batch, channels, height, width)` to `(z, log_det)`.

        Args:
            x: the images.
            context: what the call of a whole flow hands to its layers; None for a layer that is called by itself.
        """

    @abstractmethod
    def inverse(self, z: Any, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map latents `z`, as `forward` gave them, to `(x, log_det)`.

        Args:
            z: the latents.
            context: what the call of a whole flow hands to its layers; None for a layer that is called by itself.
        """


def check_images(x: Tensor, channels: int | None = None, name: str = "x") -> None:
    """Raise InputError unless `x` is a real floating batch `(batch, channels, height, width)`."""
    if x.ndim != 4:
        raise InputError(
            f"{name} must have shape (batch, channels, height, width), got {tuple(x.shape)}; "
            "a single image needs a batch dimension: x[None]"
        )
    if not x.is_floating_point():
        raise InputError(
            f"{name} must be real floating point, got {x.dtype} of shape {tuple(x.shape)}; "
            "integer images pass through Dequantize first"
        )
    if channels is not None and x.shape[1] != channels:
        raise InputError(f"{name} must have {channels} channels, got shape {tuple(x.shape)}")


def volume_dtype(x: Tensor) -> torch.dtype:
    """What log-determinants of the images `x` are summed in: float32 at least.

    Of a few thousand nats bfloat16 has no digit behind the tens, and beyond 65504 float16 has nothing at all.
    """
    return torch.promote_types(x.dtype, torch.float32)


def sum_per_image(x: Tensor) -> Tensor:
    """Sum each image: `(batch, ...)` to `(batch,)`, in `volume_dtype`."""
    return x.flatten(1).sum(1, dtype=volume_dtype(x))


def no_volume(x: Tensor) -> Tensor:
    """The log-determinant of a permutation of the images `x`: zeros (batch,), in `volume_dtype`."""
    return x.new_zeros(len(x), dtype=volume_dtype(x))


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    """Clamp smoothly, `bound * tanh(x / bound)`: the identity near zero, never beyond `bound`."""
    return bound * torch.tanh(x / bound)
