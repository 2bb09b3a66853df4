"""Flow layers one after the other:  log |det d(f_n o ... o f_1)/dx| = sum_i log |det df_i|."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from invconv.flows.base import FlowLayer, no_volume
from invconv.flows.context import Composite, Context
from invconv.layers.conv import InvertibleConv
from invconv.layers.record import Recorded


class Chain(Recorded, Composite, FlowLayer):
    r"""`f_n o ... o f_1`: the log-determinants add up.

    Those of the convolutions, and their kernels, are computed together (see `invconv.flows.context`): by the chain, or
    by the composite that it is part of.

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
        self.layers: Any = nn.ModuleList(layers)

    def recorded(self) -> dict[str, Any]:
        """The order of the layers, some of which may have no tensors."""
        return {"layers": [type(layer).__name__ for layer in self.layers]}

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The convolutions of all layers, in their order."""
        return [conv for layer in self.layers for conv in layer.convolutions]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x: (batch, channels, height, width)` to `(z, log_det)`."""
        shared = self._shared(context)
        log_det = no_volume(x)
        for layer in self.layers:
            x, more = layer(x, shared)
            log_det = log_det + more
        return x, self._complete(log_det, shared, context)

    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `z`, as `forward` gave it, to `(x, log_det)`."""
        shared = self._shared(context)
        log_det = no_volume(z)
        for layer in reversed(self.layers):
            z, more = layer.inverse(z, shared)
            log_det = log_det + more
        return z, self._complete(log_det, shared, context)

    def _shared(self, context: Context | None) -> Context:
        """The context of the layers: one that gathers their convolutions, unless that which is handed in does."""
        context = context or Context()
        return context if context.gathers else Context(context.y, context.generator, self.convolutions)

    def _complete(self, log_det: Tensor, shared: Context, context: Context | None) -> Tensor:
        """The log-determinant with what this chain, as maker of the context of its layers, has to add."""
        return log_det if shared is context else log_det + self._log_abs_det(shared)
