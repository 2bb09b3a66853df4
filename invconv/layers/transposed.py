"""Drop-in transposed convolutions that can be run backwards:  y = A' x + bias,  x = (A^+)' (y - bias)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from invconv.errors import InputError
from invconv.functional import spatial_size
from invconv.layers.cache import OperatorCache
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.keywords import names_itself
from invconv.layers.plain import TRANSPOSED
from invconv.options import DEFAULTS, Options
from invconv.scalars import as_python
from invconv.transposed import TransposedGeometry

if TYPE_CHECKING:  # the class that comes next in the method resolution order is of this kind
    from torch.nn import ConvTranspose2d as _ConvTranspose
else:
    from torch.nn.modules.conv import _ConvTransposeNd as _ConvTranspose

_FORWARD = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class InvertibleConvTranspose(InvertibleLayer, _ConvTranspose):
    """The abstract base of the three layers: a transposed convolution with all the verbs of `InvertibleConv`.

    A subclass adds `torch.nn.ConvTranspose1d`, `ConvTranspose2d` or `ConvTranspose3d`. The layer is A' plus a bias,
    with A the convolution that goes back, and what is said of its map, inverse and singular values is said of A'.

    Attributes:
        options: how the inverse is computed, as in `InvertibleConv`.

    Raises:
        TypeError: if it is instantiated itself.
        InputError: if an option, `output_padding` or `padding_mode` is out of range.
    """

    @names_itself
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        padding_mode: Any = "zeros",
        device: Any = None,
        dtype: Any = None,
        *,
        rtol: float | None = None,
        damping: float = 0.0,
        solver: str = "auto",
        tol: float | None = None,
        max_iter: int | None = None,
        volume_tol: float | None = None,
        answers: int = DEFAULTS.answers,
    ):
        if not isinstance(self, TRANSPOSED):
            name = "InvertibleConvTranspose"
            raise TypeError(f"{type(self).__name__} is abstract: use {name}1d, {name}2d or 3d")
        if padding_mode != "zeros":
            raise InputError(f"padding_mode of a transposed convolution must be 'zeros', got {padding_mode!r}")
        sizes: Any = map(as_python, (in_channels, out_channels, kernel_size, stride, padding, output_padding, groups))
        super().__init__(*sizes, bias, as_python(dilation), padding_mode, device, dtype)  # type: ignore[call-arg, misc, unused-ignore]
        self.options = Options(rtol, damping, solver, tol, max_iter, volume_tol, answers)
        self._cache = OperatorCache()
        _ = self.geometry  # which complains of what PyTorch would of the first image

    def convolve(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, output_size: Sequence[int] | None = None
    ) -> Tensor:
        r"""The transposed convolution of this layer with a kernel that is at hand: `effective_weight()`, or any other.

        Args:
            x: (batch, in_channels, \*size) or unbatched.
            weight: (in_channels, any number of channels, \*kernel_size).
            bias: what is added to each channel; None for nothing.
            output_size: spatial size of what is made, or its shape; None for that of `output_padding`.
        """
        geometry = self.geometry
        if output_size is not None:
            geometry = geometry.between(x.shape[-geometry.dims :], spatial_size(output_size, geometry.dims))
        extra = cast(Any, geometry.output_padding)
        conv = cast(Any, _FORWARD[geometry.dims])
        return cast(Tensor, conv(x, weight, bias, self.stride, self.padding, extra, self.groups, self.dilation))

    @property
    def geometry(self) -> TransposedGeometry:
        """Stride, padding, output padding, dilation and groups, as the operator reads them."""
        geometry = TransposedGeometry.of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return geometry.enlarged(self.output_padding)


class InvertibleConvTranspose1d(InvertibleConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` with an inverse: see `InvertibleConvTranspose2d`."""


class InvertibleConvTranspose2d(InvertibleConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` with an inverse: same arguments, attributes and `state_dict`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, output_padding, groups, bias: as in
            `torch.nn.ConvTranspose2d`.
        dilation, padding_mode, device, dtype: as there.
        rtol, damping, solver, tol, max_iter, volume_tol, answers: how the inverse is computed: see `invconv.Options`.

    It differs from its parent where it starts: near an isometry, with a condition number of about 2.

    Example:
        >>> import torch
        >>> up, x = InvertibleConvTranspose2d(8, 4, 4, stride=2, padding=1), torch.randn(1, 8, 16, 16)
        >>> up(x).shape, torch.allclose(up.inverse(up(x)), x, atol=1e-4)
        (torch.Size([1, 4, 32, 32]), True)
    """


class InvertibleConvTranspose3d(InvertibleConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` with an inverse: see `InvertibleConvTranspose2d`."""
