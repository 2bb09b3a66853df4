"""One part of the channels scales and shifts the other:  (a, b) to (a, (b + t(a)) s(a))."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from invconv.flows.base import FlowLayer, check_images, soft_clamp, sum_per_image
from invconv.flows.context import Context
from invconv.layers.record import Recorded
from invconv.scalars import whole_number


class AffineCoupling(Recorded, FlowLayer):
    r"""`x = (a, b)` to `(a, (b + t(a)) * s(a))`, with `log_det = sum log s(a)`.

    `t` and `log s` come from a 3 x 3, a 1 x 1 and a 3 x 3 convolution, of which the last starts
    at zero: a new layer is the identity. `|log s|` is bounded smoothly, so that a deep stack of
    couplings is still reversed in float32.

    Dinh et al., *Real NVP* (2017), section 3.2; Kingma and Dhariwal, *Glow* (2018), section 3.3.

    Args:
        channels: channels of `x`, at least 2; `a` is the first `channels // 2`.
        hidden: width of the network.
        max_log_scale: bound on `|log s|`, in nats.

    Raises:
        InputError: on another number of channels.

    Example:
        >>> layer = AffineCoupling(4, hidden=8)
        >>> x = torch.randn(2, 4, 6, 6)
        >>> z, log_det = layer(x)
        >>> torch.equal(z, x), log_det.tolist()
        (True, [0.0, 0.0])
    """

    def __init__(self, channels: int, hidden: int = 64, max_log_scale: float = 2.0) -> None:
        super().__init__()
        self.channels = channels = whole_number("channels", channels, least=2)
        hidden = whole_number("hidden", hidden)
        self.max_log_scale = max_log_scale
        self.passed = channels // 2
        last = nn.Conv2d(hidden, 2 * (channels - self.passed), 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.net = nn.Sequential(
            nn.Conv2d(self.passed, hidden, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, hidden, 1),
            nn.ReLU(inplace=True),
            last,
        )

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, channels, height, width)` to `(z, log_det)`."""
        check_images(x, self.channels)
        a, b = x[:, : self.passed], x[:, self.passed :]
        shift, log_scale = self._coefficients(a)
        z = torch.cat([a, (b + shift) * log_scale.exp()], 1)
        return z, sum_per_image(log_scale)

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to `(x, log_det)`."""
        check_images(z, self.channels, name="z")
        a, b = z[:, : self.passed], z[:, self.passed :]
        shift, log_scale = self._coefficients(a)
        x = torch.cat([a, b * (-log_scale).exp() - shift], 1)
        return x, -sum_per_image(log_scale)

    def _coefficients(self, a: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self.net(a).chunk(2, 1)
        return shift, soft_clamp(log_scale, self.max_log_scale)

    @override
    def recorded(self) -> dict[str, Any]:
        return {"max_log_scale": self.max_log_scale}

    def extra_repr(self) -> str:
        return f"channels={self.channels}, max_log_scale={self.max_log_scale}"
