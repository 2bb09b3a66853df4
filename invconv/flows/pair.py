"""A pair of masked convolutions in opposite orders:  z = W o (delta + E2) o (delta + E1) x."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from invconv.errors import InputError
from invconv.flows.base import FlowLayer, check_images
from invconv.flows.context import Context
from invconv.layers.conv import InvertibleConv, InvertibleConv2d
from invconv.layers.record import ChecksRecords
from invconv.parametrizations import causal
from invconv.parametrizations.raster import opposite
from invconv.scalars import whole_number

ORDER = "right-down"
"""In which the first of the two reads its pixels."""


class PairFlow(ChecksRecords, FlowLayer):
    r"""`z = W o (delta + E2) o (delta + E1) x`, with `log_det = height * width * log |det W|`.

    E1 reads the pixels on the right and below, E2 those on the left and above: both are triangular, cost nothing but
    their convolutions, and together see all of `kernel_size x kernel_size`. W mixes the channels of each pixel, as a
    1 x 1 convolution does. With `||E1||, ||E2|| < rho` the condition number is at most
    `cond(W) * ((1 + rho) / (1 - rho))**2`; borders are zeros. The inverse is substitution, block by block.

    Hoogeboom, van den Berg and Welling, *Emerging convolutions for generative normalizing flows* (2019), section 3.1,
    whose kernels are masked within a pixel as well, and not bounded.

    Args:
        channels: channels of `x` and `z`.
        kernel_size: side of what the pair sees, odd.
        rho: bound of both E, between 0 and 1; `None` for kernels that are masked and nothing else.
        support: "quarter" for kernels of the pixels on the right and below; "half" for those of all later lines too,
            each as wide as `kernel_size` (see `invconv.parametrizations.causal`).

    Raises:
        InputError: on another number of channels; if `kernel_size` is even, or 1.

    Example:
        >>> import torch
        >>> layer = PairFlow(4)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> z, log_det = layer(x)
        >>> x_hat, _ = layer.inverse(z)
        >>> log_det.shape, torch.allclose(x_hat, x, atol=1e-5)
        (torch.Size([2]), True)
    """

    def __init__(self, channels: int, kernel_size: int = 3, rho: float | None = 0.9, support: str = "quarter") -> None:
        super().__init__()
        channels, kernel_size = whole_number("channels", channels), whole_number("kernel_size", kernel_size, least=3)
        if kernel_size % 2 == 0:
            raise InputError(f"the kernel_size of a pair must be odd, got {kernel_size}: use {kernel_size + 1}")

        def masked(order: str, mixing: bool) -> InvertibleConv:
            conv = InvertibleConv2d(channels, channels, kernel_size, padding="same", bias=False)
            return causal(conv, order, rho, support, mixing)

        self.first = masked(ORDER, mixing=False)
        self.second = masked(opposite(ORDER), mixing=True)
        reach = kernel_size // 2
        self._across = reach if support == "half" else 0  # how far a kernel reads against its order along a line

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The two convolutions, in the order from data to latent."""
        return [self.first, self.second]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, channels, height, width)` to `(z, log_det)`."""
        check_images(x, self.first.in_channels)
        context = context or Context()
        first, second = (context.kernel(conv) for conv in self.convolutions)
        # Only the taps that the masks leave are convolved: the last lines of the first kernel, the first of the second.
        reach, across = first.shape[-1] // 2, self._across
        inner = reach - across
        h = F.conv2d(F.pad(x, (across, reach, 0, reach)), first[:, :, reach:, inner:])
        z = F.conv2d(F.pad(h, (reach, across, reach, 0)), second[:, :, : reach + 1, : reach + across + 1])
        return z, context.log_abs_det(self.second, second, tuple(x.shape[2:])).expand(len(x))

    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to `(x, log_det)`."""
        check_images(z, self.second.out_channels, name="z")
        context = context or Context()
        first, second = (context.kernel(conv) for conv in self.convolutions)
        x = self.first.inverse(self.second.inverse(z, weight=second), weight=first)
        return x, context.log_abs_det(self.second, second, tuple(z.shape[2:]), sign=-1).expand(len(z))
