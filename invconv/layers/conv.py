"""Drop-in convolution layers that can be run backwards:  y = A x + bias,  x = A^+ (y - bias)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from invconv import autograd, functional
from invconv.engine import convolution, padding, spectral
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.geometry import Geometry, Size
from invconv.layers import diagonal
from invconv.layers.cache import OperatorCache
from invconv.layers.eager import eager, is_eager, read_as
from invconv.layers.init import near_isometry_
from invconv.layers.kernel import effective_weight
from invconv.layers.keywords import names_itself
from invconv.layers.plain import PLAIN, from_plain, to_conv
from invconv.layers.restoring import Restoring
from invconv.layers.values import SpectralVerbs
from invconv.operator import ConvOperator
from invconv.options import DEFAULTS, Options
from invconv.scalars import as_python

if TYPE_CHECKING:  # the class that comes next in the method resolution order is of this kind
    from torch.nn import Conv2d as _Conv
else:
    from torch.nn.modules.conv import _ConvNd as _Conv


class InvertibleConv(SpectralVerbs, Restoring, _Conv):
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
        if not isinstance(self, PLAIN):
            raise TypeError(f"{type(self).__name__} is abstract: use InvertibleConv1d, InvertibleConv2d or 3d")
        sizes: Any = map(as_python, (in_channels, out_channels, kernel_size, stride, padding, dilation, groups))
        super().__init__(*sizes, bias, padding_mode, device, dtype)  # type: ignore[call-arg, misc, unused-ignore]
        self.options = Options(rtol, damping, solver, tol, max_iter, volume_tol, answers)
        self._cache = OperatorCache()

    def reset_parameters(self) -> None:
        """Start near an isometry (condition number about 2) and with no bias."""
        near_isometry_(self.weight, self.geometry)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_conv(cls, module: Any, **options: Any) -> Any:
        """An invertible layer with the hyper-parameters of `module` that shares its weight and bias.

        Parametrizations, pruning and the older norms of `torch.nn.utils` are shared as well. A module with hooks or a
        forward of its own is run on small random images, and taken if it computes what the layer computes.

        Args:
            module: a convolution of this dimension.
            options: rtol, damping, solver, tol, max_iter, volume_tol, answers.

        Raises:
            InputError: if `module` is no convolution of this dimension, has no weight yet, or computes something else
                than the convolution by its weight, as weight standardisation and "same" padding with a stride do.

        Example:
            >>> from torch import nn
            >>> plain = nn.Conv2d(3, 3, 1)
            >>> conv = InvertibleConv2d.from_conv(plain)
            >>> conv.weight is plain.weight
            True
        """
        return from_plain(cls, module, options)

    def to_conv(self) -> Any:
        """A plain `torch.nn.Conv1d`, `Conv2d` or `Conv3d` with copies of the weight used now, and of the bias."""
        return to_conv(self)

    def effective_weight(self) -> Tensor:
        """The weight that a forward would use now; one that is sharded is put together in all processes at once.

        Pruning and the older norms of `torch.nn.utils` update `self.weight` in a hook of forward only; here it is done.
        """
        return effective_weight(self)

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

    # -- the operator ----------------------------------------------------------------------------------------------

    @property
    def geometry(self) -> Geometry:
        """Stride, padding, dilation, groups and padding mode, as the operator reads them."""
        return Geometry.of(self.kernel_size, self.stride, self.padding, self.dilation, self.groups, self.padding_mode)

    @eager
    def operator(self, input_size: Sequence[int], weight: Tensor | None = None) -> ConvOperator:
        """The linear map A of this layer, without its bias, on images of spatial size `input_size`.

        It holds a copy of the weight, `effective_weight()` unless another is given, and never changes; the layer keeps
        it for as long as its weight is the same.
        """
        weight = self.effective_weight() if weight is None else weight
        return self._cache.get(weight, self.geometry, self._size(input_size), self.options)

    def _size(self, input_size: Sequence[int]) -> Size:
        return functional.spatial_size(input_size, len(self.kernel_size), self.in_channels)

    def _asked(self, input_size: Sequence[int], weight: Tensor | None) -> tuple[Tensor, Operators]:
        """The weight that a verb is asked of, and what gives its operator."""
        weight = self.effective_weight() if weight is None else weight
        return weight, Operators(weight, self.geometry, self._size(input_size), self.options, self._cache.get)

    def input_sizes(self) -> list[Size]:
        """The image sizes that were asked for, the latest first; four of them are remembered."""
        return self._cache.sizes()

    def prepared_sizes(self) -> list[Size]:
        """The image sizes, of those that were asked for, that an inverse was computed for."""
        return self._cache.sizes(prepared=True)

    def adopt(self, operator: ConvOperator) -> None:
        """Keep an operator of this layer that was made elsewhere; it is used while it is one of the present weight."""
        self._cache.adopt(operator)

    @eager
    def refresh(self, input_size: Sequence[int] | None = None) -> None:
        """Compute now what is stale: for one image size, or all that was computed for those asked for before.

        Never needed for right answers, which are always those of the present weight; it chooses when to pay for them.
        """
        weight = self.effective_weight()
        if input_size is not None:
            self.operator(input_size, weight).prepare()
            return
        # Sizes, not operators, so that the memory of the old ones is free before the new ones are factored.
        stale = [(old.input_size, old.ready, old.has_volume) for old in self._cache.stale(weight)]
        for size, inverse, volume in stale:
            operator = self.operator(size, weight)
            # Training by log-determinants alone need not prepare an inverse: 7 % of a step with borders of zeros.
            if inverse or not volume:
                operator.prepare()
            if volume:
                operator.log_volume()

    # -- the verbs: `torch.compile` leaves them as they are, each one break in its graph -----------------------------

    @eager
    def inverse(self, y: Tensor, output_size: Sequence[int] | None = None, weight: Tensor | None = None) -> Tensor:
        r"""The answer x = A^+ (y - bias): the one of least norm among those that minimise ||conv(x) - y||.

        Args:
            y: (batch, out_channels, \*size) or unbatched; what hooks or a forward of one's own add is not undone.
            output_size: spatial size of x where the stride leaves it open; None for the multiple of the stride.
            weight: `effective_weight()`, from those who have it at hand.

        Returns:
            x: (batch, in_channels, \*output_size), in the dtype of y; differentiable in y, weight and bias.

        Raises:
            InputError: if y has another shape than an output of the layer.

        Warns:
            IllConditionedWarning: when singular values are cut off or fewer than two digits can be trusted.

        Example:
            >>> import torch
            >>> conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode="circular")
            >>> x = torch.randn(2, 4, 8, 8)
            >>> torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)
            True
        """
        geometry = self.geometry
        batched = y.dim() == geometry.dims + 2
        if not batched and y.dim() != geometry.dims + 1:
            expected = f"(batch, {self.out_channels}, {geometry.dims} sizes)"
            raise InputError(f"y has shape {tuple(y.shape)}, expected {expected}")
        size = geometry.input_size(y.shape[-geometry.dims :]) if output_size is None else output_size
        weight, operators = self._asked(size, weight)
        images = y if batched else y.unsqueeze(0)
        # Checked before the bias is taken off, which could broadcast a wrong shape into a right one.
        operators.check_output(images)
        x = autograd.pseudo_inverse(self._without_bias(images), weight, operators)
        return x if batched else x.squeeze(0)

    @eager
    def log_abs_det(self, input_size: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """The log-determinant log |det A| in nats for one image, differentiable (float32 for half-precision weights).

        Damping and rtol do not change it. `weight` is `effective_weight()`, from those who have it at hand.

        Raises:
            NotSquareError: if A is not square; `log_volume` is its counterpart.
            SingularMapError: if it is minus infinity, or cannot be told from it.

        Example:
            >>> InvertibleConv2d(2, 2, 3, padding=1, padding_mode="circular").log_abs_det((8, 8)).shape
            torch.Size([])
        """
        if weight is None and diagonal.is_diagonal(self):
            return diagonal.log_abs_det([(self, self.effective_weight(), self._size(input_size))])
        return autograd.log_abs_det(*self._asked(input_size, weight))

    @eager
    def log_volume(self, input_size: Sequence[int], weight: Tensor | None = None) -> Tensor:
        """The log-volume 1/2 log det(A'A) of a tall A, 1/2 log det(AA') of a wide one, in nats, whatever damping is."""
        return autograd.log_volume(*self._asked(input_size, weight))


class InvertibleConv1d(InvertibleConv, nn.Conv1d):
    """`torch.nn.Conv1d` with an inverse: see `InvertibleConv2d`."""


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


class InvertibleConv3d(InvertibleConv, nn.Conv3d):
    """`torch.nn.Conv3d` with an inverse: see `InvertibleConv2d`."""
