"""A layer run backwards:  z = f^-1(x),  so that what is cheap in one direction is cheap in the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv.flows.base import FlowLayer
from invconv.flows.context import Context
from invconv.layers.conv import InvertibleConv
from invconv.layers.record import Recorded


class Reversed(Recorded, FlowLayer):
    r"""`z = f^-1(x)`, with `log_det = -log |det df/dz|` at `z`.

    The flow is trained through the inverse of the layer, and sampled through its forward: with a convolution, samples
    then cost no more than convolutions. A layer that starts from its first batch, as `ActNorm` does, is not started by
    its inverse.

    Args:
        layer: a layer from one tensor to one tensor.

    Example:
        >>> import torch
        >>> from invconv.flows import PairFlow
        >>> layer = PairFlow(4)
        >>> x = torch.randn(2, 4, 8, 8)
        >>> z, log_det = Reversed(layer)(x)
        >>> x_hat, back = layer(z)
        >>> torch.allclose(x_hat, x, atol=1e-5), torch.equal(back, -log_det)
        (True, True)
    """

    def __init__(self, layer: FlowLayer) -> None:
        super().__init__()
        self.layer = layer

    @override
    def recorded(self) -> dict[str, Any]:
        return {"layer": type(self.layer).__name__}

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        """The convolutions of the layer."""
        return self.layer.convolutions

    def forward(self, x: Any, context: Context | None = None) -> tuple[Tensor, Tensor]:
        """Map `x`, of what the layer gives, to `(z, log_det)`."""
        return self.layer.inverse(x, context)

    def inverse(self, z: Tensor, context: Context | None = None) -> tuple[Any, Tensor]:
        """Map `z`, of what the layer takes, to `(x, log_det)`."""
        x, log_det = self.layer(z, context)
        return x, log_det
