"""Half of the channels leaves the flow, whitened by what stays:  (h, t) to (h, (t - mu(h)) / sigma(h))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from invconv.flows.base import FlowLayer, check_images, soft_clamp, sum_per_image
from invconv.flows.context import Context
from invconv.layers.record import Recorded
from invconv.scalars import whole_number


class Split(Recorded, FlowLayer):
    r"""`x = (h, t)` to `(h, (t - mu(h)) / sigma(h))`, with `log_det = -sum log sigma(h)`.

    The factored-out half has the learned prior `t ~ N(mu(h), sigma(h)**2)`. It leaves as standard
    normal noise, so that all latents of a flow are on one scale and a sampling temperature is one
    factor. `mu` and `log sigma` come from one 3 x 3 convolution that starts at zero.

    Kingma and Dhariwal, *Glow* (2018), section 3.6; code of that paper, `split2d`.

    Args:
        channels: channels of `x`, at least 2; `h` keeps the first `channels // 2`.
        max_log_scale: bound on `|log sigma|`, in nats.

    Raises:
        InputError: on another number of channels.

    Example:
        >>> (h, z), log_det = Split(8)(torch.randn(5, 8, 4, 4))
        >>> h.shape, z.shape, log_det.shape
        (torch.Size([5, 4, 4, 4]), torch.Size([5, 4, 4, 4]), torch.Size([5]))
    """

    def __init__(self, channels: int, max_log_scale: float = 4.0) -> None:
        super().__init__()
        self.channels = channels = whole_number("channels", channels, least=2)
        self.max_log_scale = max_log_scale
        self.kept = channels // 2
        self.prior = nn.Conv2d(self.kept, 2 * (channels - self.kept), 3, padding=1)
        nn.init.zeros_(self.prior.weight)
        nn.init.zeros_(self.prior.bias)  # type: ignore[arg-type]

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Map `x: (batch, channels, height, width)` to `((h, z), log_det)`."""
        check_images(x, self.channels)
        h, t = x[:, : self.kept], x[:, self.kept :]
        mean, log_std = self._moments(h)
        return (h, (t - mean) * torch.exp(-log_std)), -sum_per_image(log_std)

    @override
    def inverse(self, z: tuple[Tensor, Tensor], context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `(h, z)` to `(x, log_det)`."""
        h, noise = z
        check_images(h, self.kept, name="h")
        check_images(noise, self.channels - self.kept, name="z")
        mean, log_std = self._moments(h)
        return torch.cat([h, mean + noise * torch.exp(log_std)], 1), sum_per_image(log_std)

    def _moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.prior(h).chunk(2, 1)
        return mean, soft_clamp(log_std, self.max_log_scale)

    @override
    def recorded(self) -> dict[str, Any]:
        return {"max_log_scale": self.max_log_scale}

    def extra_repr(self) -> str:
        return f"channels={self.channels}, max_log_scale={self.max_log_scale}"
