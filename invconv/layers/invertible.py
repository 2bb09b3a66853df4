"""What a layer with an inverse is asked, whatever its map A is:  x = A^+ (y - bias),  log |det A|."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn
from typing_extensions import Self

from invconv import autograd, functional
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.geometry import Size
from invconv.layers import diagonal
from invconv.layers.cache import OperatorCache
from invconv.layers.eager import eager
from invconv.layers.init import near_isometry_
from invconv.layers.kernel import effective_weight
from invconv.layers.plain import from_plain, to_conv
from invconv.layers.restoring import Restoring
from invconv.layers.values import SpectralVerbs
from invconv.operator import ConvOperator


class InvertibleLayer(SpectralVerbs, Restoring):
    """The verbs of `invconv.InvertibleConv` and `invconv.InvertibleConvTranspose`; each adds a layer of PyTorch."""

    if TYPE_CHECKING:  # TorchScript reads annotations
        in_channels: int
        out_channels: int
        kernel_size: Any
        weight: Any
        bias: Any
        _cache: OperatorCache

    @abstractmethod
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The map of this layer with a kernel that is at hand."""

    def reset_parameters(self) -> None:
        """Start near an isometry (condition number about 2) and with no bias."""
        near_isometry_(self.weight, self.geometry)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def from_conv(cls, module: nn.Module, **options: Any) -> Self:
        """A layer of this class with the hyper-parameters of `module` that shares its weight and bias.

        Parametrizations, pruning and the older norms of `torch.nn.utils` are shared as well. A module with hooks or a
        forward of its own is run on small random images, and taken if it computes what the layer computes.

        Args:
            module: a convolution of this dimension, or a transposed one for `InvertibleConvTranspose1d` to `3d`.
            options: rtol, damping, solver, tol, max_iter, volume_tol, answers.

        Raises:
            InputError: if `module` is no convolution of this dimension, has no weight yet, or computes something else
                than the convolution by its weight, as weight standardisation and "same" padding with a stride do.

        Example:
            >>> from torch import nn
            >>> from invconv import InvertibleConv2d
            >>> plain = nn.Conv2d(3, 3, 1)
            >>> conv = InvertibleConv2d.from_conv(plain)
            >>> conv.weight is plain.weight
            True
        """
        return cast(Self, from_plain(cls, module, options))

    def to_conv(self) -> Any:
        """A plain layer, `torch.nn.Conv2d` or the like, with copies of the weight used now, and of the bias."""
        return to_conv(cast(Any, self))

    def effective_weight(self) -> Tensor:
        """The weight that a forward would use now; one that is sharded is put together in all processes at once.

        Pruning and the older norms of `torch.nn.utils` update `self.weight` in a hook of forward only; here it is done.
        """
        return effective_weight(self)

    # -- the operator ----------------------------------------------------------------------------------------------

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

    def _asked(
        self, input_size: Sequence[int], weight: Tensor | None, outputs: Size | None = None
    ) -> tuple[Tensor, Operators]:
        """The weight that a verb is asked of, and what gives its operator, with outputs of this size if it is open."""
        weight, size = self.effective_weight() if weight is None else weight, self._size(input_size)
        geometry = self.geometry if outputs is None else self.geometry.between(size, outputs)
        return weight, Operators(weight, geometry, size, self.options, self._cache.get)

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
            >>> from invconv import InvertibleConv2d
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
        outputs = tuple(y.shape[-geometry.dims :])
        size = geometry.input_size(outputs) if output_size is None else output_size
        weight, operators = self._asked(size, weight, outputs)
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
            >>> from invconv import InvertibleConv2d
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
