"""Flow layers one after the other."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from invconv.flows.base import FlowLayer


class Chain(FlowLayer):
    r"""``f_n o ... o f_1``: the log-determinants add up.

    Args:
        layers: flow layers from one tensor to one tensor, in the order from data to latent.

    Example:
        >>> import torch
        >>> from invconv.flows import ActNorm, Squeeze
        >>> z, log_det = Chain(Squeeze(), ActNorm(12))(torch.rand(2, 3, 4, 4))
        >>> z.shape, log_det.shape
        (torch.Size([2, 12, 2, 2]), torch.Size([2]))
    """

    def __init__(self, *layers: FlowLayer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x: (batch, channels, height, width)`` to ``(z, log_det)``."""
        log_det = x.new_zeros(len(x))
        for layer in self.layers:
            x, more = layer(x)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` as ``forward`` gave it, to ``(x, log_det)``."""
        log_det = z.new_zeros(len(z))
        for layer in reversed(self.layers):
            z, more = cast(FlowLayer, layer).inverse(z)
            log_det = log_det + more
        return z, log_det
