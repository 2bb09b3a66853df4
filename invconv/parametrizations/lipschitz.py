r"""Kernels of a given norm:  weight = K bound / sigma(K),  sigma the norm of the map at its real borders.

The norm depends on the image: with borders of zeros it grows with it, up to the supremum of the kernel's symbol, which
`certified=True` takes in its place.  The length of K decides nothing, and the gradient is orthogonal to it:

    d weight = bound / sigma (dK - K <dK, G> / sigma),        G = d sigma / d K,  from the singular vectors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from invconv import autograd
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.functional import spatial_size
from invconv.geometry import Geometry, Size
from invconv.layers.cache import OperatorCache
from invconv.layers.eager import eager
from invconv.layers.plain import PLAIN
from invconv.layers.record import Recorded
from invconv.options import DEFAULTS, Options
from invconv.parametrizations.registration import check_free, register
from invconv.scalars import real_number

Conv = TypeVar("Conv", bound=nn.Conv1d | nn.Conv2d | nn.Conv3d)

TOLERANCE = Options(tol=1e-3)
"""Of the squared norm, in float32 and below: norms that training has brought together need not be told apart."""


class Lipschitz(Recorded):
    """The function weight = K bound / sigma(K).

    The `state_dict` has the bound, the image size and the geometry in it, and is loaded by a function of the same ones
    only.  The norms of the latest kernels are kept, and nobody else is given them.
    """

    def __init__(self, geometry: Geometry, bound: float, input_size: Size | None) -> None:
        super().__init__()
        self.geometry = geometry
        self.bound = bound
        self.input_size = input_size
        self._cache = OperatorCache()

    @property
    def certified(self) -> bool:
        """Whether the bound holds for images of every size."""
        return self.input_size is None

    def recorded(self) -> dict[str, Any]:
        """What decides the kernel, and the map that it is."""
        return {"bound": self.bound, "input_size": self.input_size, **asdict(self.geometry)}

    def extra_repr(self) -> str:
        return f"bound={self.bound:g}, " + ("certified" if self.certified else f"input_size={self.input_size}")

    @eager
    def norm(self, weight: Tensor) -> Tensor:
        """The norm of the map of a kernel on images of the size, or a bound of it for all sizes; differentiable."""
        if self.input_size is None:
            # What the product with the factor rounds is at most this, of all taps together.
            rows, columns, *taps = weight.shape
            entries = min(rows, columns * math.prod(taps)) * math.prod(taps)
            return autograd.norm_bound(weight, self.geometry) * (1 + math.sqrt(entries) * torch.finfo(weight.dtype).eps)
        options = DEFAULTS if weight.dtype == torch.float64 else TOLERANCE
        return autograd.spectral_norm(
            weight, Operators(weight, self.geometry, self.input_size, options, self._cache.get)
        )

    def forward(self, kernel: Tensor) -> Tensor:
        """The weight, of a kernel of any length; a kernel of zeros stays one."""
        norm = self.norm(kernel)
        return kernel * (self.bound / norm.clamp_min(torch.finfo(norm.dtype).tiny)).to(kernel.dtype)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The kernel that gives a weight of this norm: itself."""
        return weight


def lipschitz(
    conv: Conv, bound: float = 1.0, input_size: Sequence[int] | None = None, *, certified: bool = False
) -> Conv:
    r"""Hold the norm of a convolution at a bound, at its real borders:  weight = K bound / sigma(K).

    The norm is the bound to 5e-4, relative, in float32, and to rounding in float64. A layer of norm 1 is 1-Lipschitz:
    it moves no two images further apart. `spectral_norm` of `torch.nn.utils.parametrizations` looks at the flattened
    kernel instead, whose norm is a third too low or more.

    Args:
        conv: an invertible convolution, or a plain `torch.nn.Conv1d`, `Conv2d` or `Conv3d`.
        bound: the norm that it is to have.
        input_size: spatial size of its images, or their shape.
        certified: hold the bound for images of every size, by `functional.conv_norm_bound`; the norm then lies below it
            by as much as that lies above the norm.

    Returns:
        conv, its weight parametrized as by `torch.nn.utils.parametrize`: `conv.weight` is what is used,
        `conv.parametrizations.weight.original` is K.  `to_conv(conv)` gives a plain layer of that weight.

    Raises:
        InputError: if the bound is no positive number, there is neither a size nor `certified`, or both, or the weight
            is parametrized already or set by a hook.

    Example:
        >>> from torch import nn
        >>> conv = lipschitz(nn.Conv2d(3, 3, 3, padding=1), 1.0, (8, 8))
        >>> norm = conv.parametrizations.weight[0].norm(conv.weight)
        >>> bool(abs(norm - 1) < 1e-4)
        True
    """
    real_number("bound", bound, "be a positive number", lambda v: 0 < v < math.inf, optional=False)
    check_free(conv, "lipschitz", "hold its norm", PLAIN)
    if (input_size is None) != bool(certified):
        raise InputError(
            "give input_size, for which the norm is to be held, or certified=True for images of every size, "
            f"got input_size={input_size!r} and certified={certified!r}"
        )
    geometry = Geometry.of(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    size = None
    if input_size is not None:
        size = geometry.check_input_size(spatial_size(input_size, geometry.dims, conv.in_channels))
    register(conv, Lipschitz(geometry, float(bound), size))
    return conv
