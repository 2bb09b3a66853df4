"""A scale and a shift for each channel, started from the data:  z = exp(log_scale) (x - shift)."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn
from typing_extensions import override

from invconv.flows.base import FlowLayer, check_images, volume_dtype
from invconv.flows.context import Context
from invconv.scalars import whole_number


class ActNorm(FlowLayer):
    r"""`z = exp(log_scale) * (x - shift)`, `log_det = height * width * sum log_scale`.

    The first non-empty batch seen in training mode sets both so that `z` has mean 0 and variance
    1 in each channel; from then on they are ordinary parameters. With several processes the
    statistics are those of the batch of all of them. The buffer `initialized` says that this
    happened and is part of the `state_dict`: later batches, accumulated gradients, evaluation
    and loaded checkpoints start nothing anew.

    Kingma and Dhariwal, *Glow* (2018), section 3.1.

    Args:
        channels: channels of `x`.
        eps: added to the standard deviation at the start.

    Raises:
        InputError: on another number of channels.

    Example:
        >>> layer = ActNorm(3)
        >>> z, log_det = layer(5 + 2 * torch.randn(16, 3, 8, 8))
        >>> z.mean().abs().item() < 1e-5, round(z.std().item(), 2), layer.initialized.item()
        (True, 1.0, True)
    """

    initialized: Tensor

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.channels = channels = whole_number("channels", channels)
        self.eps = eps
        self.shift = nn.Parameter(torch.zeros(channels))
        self.log_scale = nn.Parameter(torch.zeros(channels))
        self.register_buffer("initialized", torch.tensor(False))
        # Reading a buffer waits for the GPU: once seen true, it is not read again.
        self._seen_initialized = False

    @override
    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, channels, height, width)` to `(z, log_det)`."""
        check_images(x, self.channels)
        if self.training and not self._seen_initialized:
            if not self.initialized:
                self._initialize(x)
            self._seen_initialized = bool(self.initialized)
        z = (x - self.shift[:, None, None]) * self.log_scale.exp()[:, None, None]
        return z, self._log_det(x)

    @override
    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z: (batch, channels, height, width)` to `(x, log_det)`."""
        check_images(z, self.channels, name="z")
        x = z * (-self.log_scale).exp()[:, None, None] + self.shift[:, None, None]
        return x, -self._log_det(z)

    def _log_det(self, x: Tensor) -> Tensor:
        return (x.shape[2] * x.shape[3] * self.log_scale.sum(dtype=volume_dtype(self.log_scale))).expand(len(x))

    @torch.no_grad()
    def _initialize(self, x: Tensor) -> None:
        values = x.detach().transpose(0, 1).flatten(1).double()
        count = values.new_tensor([values.shape[1]])
        total = _sum_over_processes(torch.cat([values.sum(1), count]))
        if total[-1] == 0:
            return
        mean = total[:-1] / total[-1]
        # Centred before squaring: the mean may be large against the deviation.
        squares = _sum_over_processes((values - mean[:, None]).square().sum(1))
        self.shift.copy_(mean)
        self.log_scale.copy_(-((squares / total[-1]).sqrt() + self.eps).log())
        self.initialized.fill_(True)

    def _load_from_state_dict(self, *args, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super()._load_from_state_dict(*args, **kwargs)
        self._seen_initialized = False

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def _sum_over_processes(x: Tensor) -> Tensor:
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
    return x
