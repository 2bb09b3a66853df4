"""Drop-in convolution layers that can be run backwards:  y = A x + bias,  x = A^+ (y - bias)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from invconv.engine import convolution, padding, spectral
from invconv.geometry import Geometry
from invconv.layers.cache import OperatorCache
from invconv.layers.eager import is_eager, read_as
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.keywords import names_itself
from invconv.layers.plain import CONVOLUTIONS
from invconv.options import DEFAULTS, Options
from invconv.scalars import as_python

if TYPE_CHECKING:  # the class that comes next in the method resolution order is of this kind
    from torch.nn import Conv2d as _Conv
else:
    from torch.nn.modules.conv import _ConvNd as _Conv


class InvertibleConv(InvertibleLayer, _Conv):
    """The abstract base of the three layers: a convolution with an inverse, a determinant and singular values.

    A subclass adds `torch.nn.Conv1d`, `Conv2d` or `Conv3d`, as in `class InvertibleConv2d(InvertibleConv, nn.Conv2d)`.
    Code that takes layers of any dimension asks `isinstance(layer, InvertibleConv)`.

    Attributes:
        options: how the inverse is computed, `invconv.Options`, held once: `conv.damping` and the other fields are read
            from it, and `conv.damping = 0.2` replaces it.

    Raises:
        TypeError: if it is instantiated itself.
        InputError: if an option is out of range, when the layer is made or the option is set.
    """

    @names_itself
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
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
        if not isinstance(self, CONVOLUTIONS):
            raise TypeError(f"{type(self).__name__} is abstract: use InvertibleConv1d, InvertibleConv2d or 3d")
        sizes: Any = map(as_python, (in_channels, out_channels, kernel_size, stride, padding, dilation, groups))
        super().__init__(*sizes, bias, padding_mode, device, dtype)  # type: ignore[call-arg, misc, unused-ignore]
        self.options = Options(rtol, damping, solver, tol, max_iter, volume_tol, answers)
        self._cache = OperatorCache()

    @read_as(nn.Conv2d.forward)
    def forward(self, input: Tensor, weight: Tensor | None = None) -> Tensor:
        """The convolution; `weight` is `effective_weight()`, from those who have it at hand."""
        return self.convolve(input, self.weight if weight is None else weight, self.bias)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        r"""The convolution of this layer with a kernel that is at hand: `effective_weight()`, or any other.

        Args:
            x: (batch, in_channels, \*size) or unbatched.
            weight: (any number of channels, in_channels/groups, \*kernel_size).
            bias: what is added to each channel; None for nothing.
        """
        if is_eager(x) and spectral.is_large(self.kernel_size) and spectral.pays_once(x, weight, self.geometry):
            return spectral.convolve(x, weight, bias, self.geometry)
        if self.padding_mode == "circular" and is_eager(x):
            self.geometry.check_input_size(x.shape[-len(self.kernel_size) :])
            if torch.is_grad_enabled() and x.requires_grad:  # else PyTorch's own is faster
                x, conv = padding.wrap(x, self.geometry.padding), convolution.FORWARD[len(self.kernel_size)]
                return conv(x, weight, bias, self.stride, 0, self.dilation, self.groups)
        return cast(Tensor, self._conv_forward(x, weight, bias))

    @property
    def geometry(self) -> Geometry:
        """Stride, padding, dilation, groups and padding mode, as the operator reads them."""
        return Geometry.of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)


class InvertibleConv1d(InvertibleConv, nn.Conv1d):
    """`torch.nn.Conv1d` with an inverse: see `InvertibleConv2d`."""

    if TYPE_CHECKING:
        to_conv: Callable[[], nn.Conv1d]


class InvertibleConv2d(InvertibleConv, nn.Conv2d):
    """`torch.nn.Conv2d` with an inverse: same arguments, attributes and `state_dict`.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype:
            as in `torch.nn.Conv2d`.
        rtol, damping, solver, tol, max_iter, volume_tol, answers: how the inverse is computed: see `invconv.Options`.

    It differs from its parent where it starts: near an isometry, with a condition number of about 2.

    Example:
        >>> import torch
        >>> conv, x = InvertibleConv2d(3, 12, 2, stride=2, padding_mode="circular"), torch.randn(1, 3, 32, 32)
        >>> torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)
        True
    """

    if TYPE_CHECKING:
        to_conv: Callable[[], nn.Conv2d]


class InvertibleConv3d(InvertibleConv, nn.Conv3d):
    """`torch.nn.Conv3d` with an inverse: see `InvertibleConv2d`."""

    if TYPE_CHECKING:
        to_conv: Callable[[], nn.Conv3d]
