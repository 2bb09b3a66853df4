"""A flow of normflows, whose `forward` goes from latent to data."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv import layers
from invconv.errors import needs
from invconv.interop.directions import check_layer, decode, encode

with needs("normflows"):
    from normflows.flows import Flow


class InvertibleConv(Flow):
    r"""`forward(z) = A^-1 (z - bias)` and `inverse(x) = conv(x)`: where `Invertible1x1Conv` stands, and k x k.

    normflows calls from latent to data forward. Each direction gives its own log-determinants, (batch,), in nats:
    `-log |det A|` forward, `log |det A|` in inverse.

    Args:
        conv: an `InvertibleConv1d`, `2d` or `3d` whose outputs are as many as its inputs.

    Raises:
        InputError: if `conv` is no such layer, or images have another shape than it takes.
        NotSquareError: if `conv` has no determinant.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> flow = InvertibleConv(InvertibleConv2d(4, 4, 3, padding=1))
        >>> z = torch.randn(2, 4, 8, 8)
        >>> x, log_det = flow(z)
        >>> z_hat, back = flow.inverse(x)
        >>> torch.allclose(z_hat, z, atol=1e-5), torch.equal(back, -log_det), log_det.shape
        (True, True, torch.Size([2]))
    """

    def __init__(self, conv: layers.InvertibleLayer) -> None:
        super().__init__()
        self.conv = check_layer(conv)

    @override
    def forward(self, z: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        r"""Map `z: (batch, out_channels, \*size)` to `(x, log |det dx/dz|)`."""
        return decode(self.conv, z)

    @override
    def inverse(self, x: Tensor, context: Any = None) -> tuple[Tensor, Tensor]:
        r"""Map `x: (batch, in_channels, \*size)` to `(z, log |det dz/dx|)`."""
        return encode(self.conv, x)
