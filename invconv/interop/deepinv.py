"""A forward model of deepinv, y = A x, with exact pseudo-inverse and proximal operator where deepinv iterates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.nn.utils import parametrize
from typing_extensions import override

from invconv.autograd import pseudo_inverse
from invconv.checks import check_image
from invconv.damped import damping_value
from invconv.errors import InputError, needs
from invconv.formulas import Operators
from invconv.functional import spatial_size
from invconv.interop.directions import check_layer
from invconv.layers import InvertibleLayer
from invconv.operator import ConvOperator
from invconv.proximal import project

with needs("deepinv"):
    from deepinv.physics import LinearPhysics


class ConvPhysics(LinearPhysics):
    r"""`A(x) = conv(x)` without its bias, `A_adjoint(y) = A' y`, `A_dagger(y) = A^+ y`, and `prox_l2`.

    All four are differentiable in the images and in the layer's weight, which may be trained.

    Args:
        conv: an `InvertibleConv1d`, `2d` or `3d`, square or not.
        img_size: (in_channels, \*size) of x, needed where the stride leaves it open; None for the multiple of it.
        physics: what else `LinearPhysics` takes: noise_model, sensor_model.

    Raises:
        InputError: if `conv` is no such layer, or images have another shape than it takes.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> physics = ConvPhysics(InvertibleConv2d(3, 6, 3, padding=1, dtype=torch.float64))
        >>> x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
        >>> torch.allclose(physics.A_dagger(physics.A(x)), x, atol=1e-12)
        True
        >>> bool(physics.adjointness_test(x) < 1e-10)
        True
    """

    def __init__(self, conv: InvertibleLayer, img_size: Sequence[int] | None = None, **physics: Any) -> None:
        weight = check_layer(conv).weight
        size = None if img_size is None else tuple(img_size)
        super().__init__(img_size=size, **{"device": weight.device, **physics})
        self.conv = conv

    @override
    def A(self, x: Tensor, **_: Any) -> Tensor:
        r"""The image A x of x: (batch, in_channels, \*size)."""
        with parametrize.cached():
            weight, dims = self.conv.effective_weight(), self.conv.geometry.dims
            size = spatial_size(self.img_size or x.shape, dims, self.conv.in_channels)
            check_image("x", x, self.conv.in_channels, size, weight)
            return self.conv.convolve(x, weight)

    @override
    def A_adjoint(self, y: Tensor, **_: Any) -> Tensor:
        r"""The adjoint A' y of y: (batch, out_channels, \*output size)."""
        with parametrize.cached():
            return replace(self._operator(y).conv, weight=self.conv.effective_weight()).adjoint(y)

    @override
    def A_dagger(self, y: Tensor, **_: Any) -> Tensor:
        """The pseudo-inverse A^+ y, whatever damping the layer has: `prox_l2` is the damped inverse.

        The arguments solver, tol and max_iter, which deepinv hands to iterations, are not needed.
        """
        with parametrize.cached():
            return pseudo_inverse(y, self.conv.effective_weight(), self._operator(y).damped(0.0))

    @override
    def prox_l2(self, z: Tensor, y: Tensor, gamma: float | Tensor, **_: Any) -> Tensor:
        r"""The x that minimises gamma / 2 ||A x - y||^2 + 1/2 ||x - z||^2: `proximal` with damping 1 / sqrt(gamma).

        Args:
            z: (batch, in_channels, \*size).
            y: (batch, out_channels, \*output size).
            gamma: one positive number, or a tensor of it to differentiate by.
        """
        if not (gamma > 0 if isinstance(gamma, (int, float)) else gamma.numel() == 1 and gamma.item() > 0):
            raise InputError(f"gamma must be one positive number, got {gamma!r}")
        damping = gamma**-0.5 if isinstance(gamma, Tensor) else float(gamma) ** -0.5
        with parametrize.cached():
            weight, operator = self.conv.effective_weight(), self._operator(y).damped(damping_value(damping))
            return project(y, z, weight, Operators.of(operator), damping)

    def _operator(self, y: Tensor) -> ConvOperator:
        """The map that y comes from."""
        geometry = self.conv.geometry
        operator = self.conv.operator(self.img_size or geometry.input_size(y.shape[-geometry.dims :]))
        operator.check_output(y)
        return operator
