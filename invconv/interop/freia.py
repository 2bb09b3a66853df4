"""An invertible module of FrEIA, for `SequenceINN` and `GraphINN`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from invconv import layers
from invconv.errors import InputError, needs
from invconv.interop.directions import check_layer, decode, encode

with needs("freia"):
    from FrEIA.modules import InvertibleModule


class InvertibleConv(InvertibleModule):
    r"""`z = conv(x)`, with `rev` `x = A^+ (z - bias)`: where `Fixed1x1Conv` stands, trained, and k x k.

    Each direction gives its own log-determinants, (batch,), in nats. A layer that is not square has none; it passes
    with `jac=False`, its way back being the least-squares solution.

    Args:
        dims_in: shape of the one input, `[(in_channels, *size)]`, as FrEIA gives it.
        dims_c: shapes of conditions; the layer has no use for them.
        conv: an `InvertibleConv1d`, `2d` or `3d`.

    Raises:
        InputError: if `conv` is no such layer, or does not fit `dims_in`.
        NotSquareError: if the log-determinant is asked of a layer that has none.

    Example:
        >>> import torch
        >>> from FrEIA.framework import SequenceINN
        >>> from invconv import InvertibleConv2d
        >>> inn = SequenceINN(4, 8, 8)
        >>> inn.append(InvertibleConv, conv=InvertibleConv2d(4, 4, 3, padding=1))
        >>> x = torch.randn(2, 4, 8, 8)
        >>> z, log_det = inn(x)
        >>> x_hat, back = inn(z, rev=True)
        >>> torch.allclose(x_hat, x, atol=1e-5), torch.equal(back, -log_det), log_det.shape
        (True, True, torch.Size([2]))
    """

    def __init__(
        self,
        dims_in: Iterable[Sequence[int]],
        dims_c: Iterable[Sequence[int]] | None = None,
        *,
        conv: layers.InvertibleLayer,
    ) -> None:
        super().__init__(dims_in, dims_c)
        self.conv = check_layer(conv)
        self.output_dims(self.dims_in)

    @override
    def forward(
        self, x_or_z: Iterable[Tensor], c: Any = None, rev: bool = False, jac: bool = True
    ) -> tuple[tuple[Tensor], Tensor]:
        r"""Map `(x,)` to `((z,), log |det dz/dx|)`, with `rev` `(z,)` to `((x,), log |det dx/dz|)`."""
        (images,) = x_or_z
        if jac:
            result, log_det = (decode if rev else encode)(self.conv, images)
            return (result,), log_det
        result = self.conv.inverse(images, self.dims_in[0][1:]) if rev else self.conv(images)
        return (result,), result.new_zeros(len(result))  # SequenceINN adds it up, asked for or not

    def output_dims(self, input_dims: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
        """Map shapes `[(in_channels, *size)]` to `[(out_channels, *output size)]`."""
        geometry = self.conv.geometry
        shapes = [tuple(shape) for shape in input_dims]
        if len(shapes) != 1 or len(shapes[0]) != geometry.dims + 1 or shapes[0][0] != self.conv.in_channels:
            raise InputError(
                f"the layer takes one input of shape ({self.conv.in_channels}, {geometry.dims} sizes), got {shapes}"
            )
        return [(self.conv.out_channels, *geometry.output_size(geometry.check_input_size(shapes[0][1:])))]
