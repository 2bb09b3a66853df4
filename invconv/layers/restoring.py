"""The verbs of a layer that restoration asks for: answers drawn to an image, and how strongly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from invconv.arguments import without_bias
from invconv.damped import Damping, damping_value
from invconv.formulas import Operators
from invconv.layers.eager import eager
from invconv.layers.kernel import effective_weight, whole
from invconv.layers.options import HoldsOptions
from invconv.proximal import project, restoring

if TYPE_CHECKING:
    from invconv.geometry import Geometry
    from invconv.layers.cache import OperatorCache


class Restoring(HoldsOptions):
    """Proximal operator and back-projection of a convolution, and the choice of their damping."""

    if TYPE_CHECKING:
        bias: Tensor | None
        _cache: OperatorCache

        @property
        def geometry(self) -> Geometry: ...

    @eager
    def proximal(self, y: Tensor, v: Tensor, damping: Damping | None = None, weight: Tensor | None = None) -> Tensor:
        r"""The x that minimises ||conv(x) - y||^2 + d^2 ||x - v||^2: v + (A'A + d^2)^-1 A' (y - conv(v)).

        It is the proximal operator of the data term ||conv(x) - y||^2 / (2 d^2), at the borders that the layer has.

        Args:
            y: (batch, out_channels, \*output size).
            v: (batch, in_channels, \*size), whose size is that of x: a first estimate, or what a denoiser made of one.
            damping: d, in units of singular values; None for the layer's. Each other value takes factors of its own,
                of which the latest few are kept.
            weight: `effective_weight()`, from those who have it at hand.

        Returns:
            x: (batch, in_channels, \*size), in the dtype of y; differentiable in y, v, weight, bias, and in a damping
                that is a tensor of one number.

        Raises:
            InputError: if d is not positive, or images have another shape than the layer takes and gives.

        Example:
            >>> import torch
            >>> from invconv import InvertibleConv2d
            >>> conv, x = InvertibleConv2d(3, 3, 5, padding=2), torch.rand(1, 3, 16, 16)
            >>> bool((conv.proximal(conv(x), x, damping=0.1) - x).abs().max() < 1e-5)
            True
        """
        damping = self.options.damping if damping is None else damping
        return self._drawn(y, v, damping, damping_value(damping), weight)

    @eager
    def back_project(self, y: Tensor, v: Tensor, weight: Tensor | None = None) -> Tensor:
        r"""The image nearest to v of those that minimise ||conv(x) - y||: v + A^+ (y - conv(v)), whatever damping is.

        Args:
            y: (batch, out_channels, \*output size).
            v: (batch, in_channels, \*size), whose size is that of x.
            weight: `effective_weight()`, from those who have it at hand.

        Returns:
            x: (batch, in_channels, \*size), in the dtype of y; differentiable in y, v, weight and bias.

        Raises:
            InputError: if images have another shape than the layer takes and gives.
            SingularMapError: where no digit can be trusted: `proximal` is what blurs take.
        """
        return self._drawn(y, v, 0.0, 0.0, weight)

    @eager
    def choose_damping(self, y: Tensor, v: Tensor, method: str = "gcv", noise: float | None = None) -> float:
        r"""A damping for `proximal(y, v)`, by "discrepancy", "gcv" or "l-curve": `ConvOperator.choose_damping`.

        Args:
            y: (batch, out_channels, \*output size).
            v: (batch, in_channels, \*size), that x is drawn to.
            method: the rule.
            noise: standard deviation of the noise of y, which "discrepancy" needs.
        """
        y, weight, operators = self._restoring(y, v, self.options.damping, None)
        return operators(weight).choose_damping(y, method, noise, v)

    def _drawn(self, y: Tensor, v: Tensor, damping: Damping, value: float, weight: Tensor | None) -> Tensor:
        y, weight, operators = self._restoring(y, v, value, weight)
        return project(y, v, weight, operators, damping)

    def _restoring(self, y: Tensor, v: Tensor, value: float, weight: Tensor | None) -> tuple[Tensor, Tensor, Operators]:
        """The outputs less the bias, the weight, and what gives its operator with this damping."""
        weight = effective_weight(self) if weight is None else weight
        bias, options = None if self.bias is None else whole(self.bias), replace(self.options, damping=value)
        y, operators = restoring(y, v, weight, bias, self.geometry, options, self._cache.get)
        return y, weight, operators

    def _without_bias(self, y: Tensor) -> Tensor:
        bias = None if self.bias is None else whole(self.bias)
        return y if bias is None else without_bias(y, len(bias), bias, self.geometry)
