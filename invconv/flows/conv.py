"""The invertible convolution as a flow layer:  z = K * x,  log_det = log |det A|."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv.flows.base import FlowLayer, check_images
from invconv.flows.context import Context
from invconv.layers.conv import InvertibleConv, InvertibleConv2d
from invconv.layers.record import Recorded
from invconv.parametrizations import bounded


class ConvFlow(Recorded, FlowLayer):
    r"""`z = K * x`, with `log_det = sum over frequencies of log |det K_f|`.

    A dense convolution of all channels. With `kernel_size=1` it is Glow's 1 x 1 layer; larger
    kernels mix space too, and are kept well conditioned by the bounded parametrization: condition
    at most `cond(W) * (1 + rho) / (1 - rho)`, `W` being the kernel's mixing matrix.

    Kingma and Dhariwal, *Glow* (2018), section 3.2; Hoogeboom, van den Berg and Welling, *Emerging
    convolutions* (2019), section 3.2.

    Args:
        channels: channels of `x` and `z`.
        kernel_size: side of the kernel.
        padding_mode: as in `torch.nn.Conv2d`.
        rho: bound of the off-centre part, between 0 and 1 (the examples train with 0.9); `None`
            for a free kernel. A 1 x 1 kernel has no such part and stays free.
        volume_tol: `None` for exact log-determinants, else see `invconv.Options`.

    Raises:
        InputError: on another number of channels.

    Example:
        >>> import torch
        >>> layer = ConvFlow(4)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> z, log_det = layer(x)
        >>> x_hat, _ = layer.inverse(z)
        >>> log_det.shape, torch.allclose(x_hat, x, atol=1e-5)
        (torch.Size([2]), True)
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        padding_mode: str = "circular",
        rho: float | None = 0.5,
        volume_tol: float | None = None,
    ) -> None:
        super().__init__()
        self.conv = InvertibleConv2d(
            channels,
            channels,
            kernel_size,
            padding="same",
            padding_mode=padding_mode,
            bias=False,
            volume_tol=volume_tol,
        )
        if rho is not None and kernel_size > 1:
            bounded(self.conv, rho=rho)

    @override
    def recorded(self) -> dict[str, Any]:
        # A kernel of one tap reads no border.
        return {"padding_mode": self.conv.padding_mode if max(self.conv.kernel_size) > 1 else None}

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The one convolution of this layer."""
        return [self.conv]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, channels, height, width)` to `(z, log_det)`."""
        check_images(x, self.conv.in_channels)
        context = context or Context()
        weight = context.kernel(self.conv)  # once for both
        z = self.conv.convolve(x, weight, self.conv.bias)
        return z, context.log_abs_det(self.conv, weight, tuple(x.shape[2:])).expand(len(x))

    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to `(x, log_det)`."""
        check_images(z, self.conv.out_channels, name="z")
        context = context or Context()
        weight = context.kernel(self.conv)
        x = self.conv.inverse(z, weight=weight)
        return x, context.log_abs_det(self.conv, weight, tuple(z.shape[2:]), sign=-1).expand(len(z))
