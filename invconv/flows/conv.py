"""The invertible convolution as a flow layer."""

from __future__ import annotations

from torch import Tensor

from invconv.flows.base import FlowLayer, check_images
from invconv.layers import InvertibleConv2d
from invconv.parametrizations import bounded


class ConvFlow(FlowLayer):
    r"""``z = K * x``, with ``log_det = sum over frequencies of log |det K_f|``.

    A dense convolution of all channels. With ``kernel_size=1`` it is Glow's 1 x 1 layer; larger
    kernels mix space too, and are kept well conditioned by the bounded parametrization: condition
    at most ``cond(W) * (1 + rho) / (1 - rho)``, ``W`` being the kernel's mixing matrix.

    Kingma and Dhariwal, *Glow* (2018), section 3.2; Hoogeboom, van den Berg and Welling, *Emerging
    convolutions* (2019), section 3.2.

    Args:
        channels: channels of ``x`` and ``z``.
        kernel_size: side of the kernel.
        padding_mode: as in ``torch.nn.Conv2d``.
        rho: bound of the off-centre part, between 0 and 1 (the examples train with 0.9); ``None``
            for a free kernel. A 1 x 1 kernel has no such part and stays free.
        volume_tol: ``None`` for exact log-determinants, else see ``invconv.Options``.

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

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x: (batch, channels, height, width)`` to ``(z, log_det)``."""
        weight = self.conv.effective_weight()  # the bounded kernel is computed once for both
        return self.convolve(x, weight), self._log_det(x, weight)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z: (batch, channels, height, width)`` to ``(x, log_det)``."""
        weight = self.conv.effective_weight()
        return self.deconvolve(z, weight), -self._log_det(z, weight)

    def convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        """z alone, for a chain, which takes the log-determinants of its layers together."""
        check_images(x, self.conv.in_channels)
        return self.conv(x, weight=weight)

    def deconvolve(self, z: Tensor, weight: Tensor) -> Tensor:
        """x alone."""
        check_images(z, self.conv.out_channels, name="z")
        return self.conv.inverse(z, weight=weight)

    def _log_det(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.conv.log_abs_det(x.shape[2:], weight=weight).expand(len(x))
