"""Flow layers one after the other."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from invconv.flows.base import FlowLayer
from invconv.flows.conv import ConvFlow
from invconv.geometry import Size
from invconv.layers import InvertibleConv, InvertibleConv2d
from invconv.layers.together import LogDets, kernels


class Pending(NamedTuple):
    """Convolutions whose log-determinants are still to be taken."""

    weights: list[Tensor]
    sizes: list[Size]


class Chain(FlowLayer):
    r"""``f_n o ... o f_1``: the log-determinants add up.

    Those of the convolutions, and their kernels, are computed together (see ``invconv.layers.together``).

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
        self._log_dets = LogDets()

    def forward(self, x: Tensor, defer: bool = False) -> Any:
        """``x: (batch, channels, height, width)`` to ``(z, log_det)``.

        With ``defer`` to ``(z, log_det, pending)``: the convolutions' part is still to be added, by ``settle``.
        """
        log_det, sizes, weights = x.new_zeros(len(x)), [], self._weights()
        for layer in self.layers:
            if isinstance(layer, ConvFlow):
                sizes.append(tuple(x.shape[2:]))
                x = layer.convolve(x, weights[len(sizes) - 1])
            else:
                x, more = layer(x)
                log_det = log_det + more
        pending = Pending(weights, sizes)
        return (x, log_det, pending) if defer else (x, log_det + self.settle(pending))

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` as ``forward`` gave it, to ``(x, log_det)``."""
        log_det, sizes, weights = z.new_zeros(len(z)), [], self._weights()
        for layer in reversed(self.layers):
            if isinstance(layer, ConvFlow):
                sizes.append(tuple(z.shape[2:]))
                z = layer.deconvolve(z, weights[-len(sizes)])
            else:
                z, more = cast(FlowLayer, layer).inverse(z)
                log_det = log_det + more
        return z, log_det - self.settle(Pending(weights, sizes[::-1]))

    def settle(self, pending: Pending) -> Tensor | float:
        """The sum of the log-determinants of the convolutions, nats for one image."""
        return self._log_dets.log_abs_det(self._convs, *pending) if pending.weights else 0.0

    def refresh(self) -> list[InvertibleConv]:
        """Compute now what is stale, for the image sizes that were last seen; called by ``invconv.keep_fresh``.

        Returns the convolutions that were asked for at no other size.
        """
        return self._log_dets.refresh(self._convs)

    @property
    def _convs(self) -> list[InvertibleConv2d]:
        return [layer.conv for layer in self.layers if isinstance(layer, ConvFlow)]

    def _weights(self) -> list[Tensor]:
        return kernels(self._convs)
