"""A transform of nflows, whose `forward` goes from data to latent."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv import layers
from invconv.errors import needs
from invconv.interop.directions import check_layer, decode, encode

with needs("nflows"):
    from nflows.transforms.base import Transform


class InvertibleConv(Transform):
    r"""`forward(x) = conv(x)` and `inverse(z) = A^-1 (z - bias)`: where `OneByOneConvolution` stands, and k x k.

    Each direction gives its own log-determinants, (batch,), in nats. There is no `using_cache` to switch on or off:
    the layer keeps its factors for as long as its weight is the same, in training and in evaluation.

    Args:
        conv: an `InvertibleConv1d`, `2d` or `3d` whose outputs are as many as its inputs.

    Raises:
        InputError: if `conv` is no such layer, or images have another shape than it takes.
        NotSquareError: if `conv` has no determinant.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> transform = InvertibleConv(InvertibleConv2d(4, 4, 3, padding=1))
        >>> x = torch.randn(2, 4, 8, 8)
        >>> z, log_det = transform(x)
        >>> x_hat, back = transform.inverse(z)
        >>> torch.allclose(x_hat, x, atol=1e-5), torch.equal(back, -log_det), log_det.shape
        (True, True, torch.Size([2]))
    """

    def __init__(self, conv: layers.InvertibleLayer) -> None:
        super().__init__()
        self.conv = check_layer(conv)

    @override
    def forward(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        r"""Map `x: (batch, in_channels, \*size)` to `(z, log |det dz/dx|)`."""
        return encode(self.conv, inputs)

    @override
    def inverse(self, inputs: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        r"""Map `z: (batch, out_channels, \*size)` to `(x, log |det dx/dz|)`."""
        return decode(self.conv, inputs)
