"""A lazy transform of zuko, for `zuko.flows.Flow`."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from invconv.errors import needs
from invconv.interop.directions import check_layer
from invconv.interop.distributions import ConvTransform
from invconv.layers import InvertibleLayer

with needs("zuko"):
    from zuko.lazy import LazyTransform


class LazyConv(LazyTransform):
    """`LazyConv(conv)(c)` is `ConvTransform(conv)`, whatever the context c: from data to latent.

    Args:
        conv: an `InvertibleConv1d`, `2d` or `3d` whose outputs are as many as its inputs.

    Raises:
        InputError: if `conv` is no such layer, or images have another shape than it takes.
        NotSquareError: if `conv` has no determinant.

    Example:
        >>> import torch, zuko
        >>> from invconv import InvertibleConv2d
        >>> mean, scale = torch.zeros(4, 8, 8), torch.ones(4, 8, 8)
        >>> base = zuko.lazy.UnconditionalDistribution(zuko.distributions.DiagNormal, mean, scale, buffer=True)
        >>> flow = zuko.lazy.Flow(LazyConv(InvertibleConv2d(4, 4, 3, padding=1)), base)
        >>> x = flow().sample((2,))
        >>> x.shape, flow().log_prob(x).shape
        (torch.Size([2, 4, 8, 8]), torch.Size([2]))
    """

    def __init__(self, conv: InvertibleLayer) -> None:
        super().__init__()
        self.conv = check_layer(conv)

    @override
    def forward(self, c: Any = None) -> ConvTransform:
        """The transform with the present weight of the layer, whatever the context."""
        return ConvTransform(self.conv)
