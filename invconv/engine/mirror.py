"""Symmetric kernels at reflecting borders: the cosine transform takes the layer apart but for weights at its borders.

A reflected image is even, and stays so under a kernel that is symmetric along each axis.  With the orthogonal type-I
cosine transform Q = Q' and W, 1/2 at the first and the last place of an axis and 1 between them,

    A = W^-1/2 Q diag(s) Q W^1/2,      L = W^-1/2 Q diag(s^2 + d^2)^-1/2 Q.

L'(A'A + d^2) L lies between 1 and 2 for each axis, which is 4 in two dimensions:
a condition number of 2, whatever s is.
"""

from __future__ import annotations

import math

import torch
from scipy.fft import dctn
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.preconditioner import Root

ROUNDINGS = 16
"""How far a kernel may be from a symmetric one, in eps and its largest tap.  Speed only: L need not be exact."""

STEEP = 1e10
"""Condition number of s up to which L is formed without damping; beyond, its rounding errors are what is solved for."""


def mirror_root(conv: Convolution, unit: float, damping: float) -> Root | None:
    """L and its transpose; None where the layer is of another kind or nearly singular.

    Args:
        conv: the map, in float64.
        unit: eps of the dtype in which the kernel was told.
        damping: d.
    """
    if not is_mirrored(conv, unit):
        return None
    values = _values(conv)
    sizes = values.abs()
    if not damping and not sizes.amin() * STEEP > sizes.amax():
        return None
    gain = torch.hypot(values, values.new_tensor(damping)).reciprocal()
    weights = _border_weights(conv).to(conv.device)
    axes = tuple(range(2, 2 + conv.geometry.dims))

    def transform(x: Tensor) -> Tensor:
        return torch.from_numpy(dctn(x.cpu().numpy(), type=1, axes=axes, norm="ortho")).to(x)

    def middle(x: Tensor) -> Tensor:
        return transform(gain * transform(x))

    return lambda z: weights * middle(z), lambda x: middle(weights * x)


def is_mirrored(conv: Convolution, unit: float) -> bool:
    """Whether each channel is blurred by itself, by a symmetric kernel, and reflected at its borders."""
    geometry, weight = conv.geometry, conv.weight
    if geometry.padding_mode != "reflect" or weight.shape[1] != 1 or len(weight) != geometry.groups:
        return False
    centred = all(
        e % 2 and (e // 2, e // 2) == tuple(p) for e, p in zip(geometry.extent, geometry.padding, strict=True)
    )
    if not centred or any(s != 1 for s in geometry.stride) or min(conv.input_size) < 2:
        return False
    flips = [weight.flip(axis) - weight for axis in range(2, weight.dim())]
    return all(bool(rest.abs().amax() <= ROUNDINGS * unit * weight.abs().amax()) for rest in flips)


def _values(conv: Convolution) -> Tensor:
    """The eigenvalues s: (1, channels, *size)."""
    values = conv.weight[:, 0]
    for n, k, dilation in zip(conv.input_size, conv.geometry.kernel_size, conv.geometry.dilation, strict=True):
        taps = dilation * (torch.arange(k, dtype=torch.float64) - k // 2)
        table = torch.cos(math.pi / (n - 1) * taps[:, None] * torch.arange(n, dtype=torch.float64))
        values = torch.tensordot(values, table.to(values), ([1], [0]))  # the axis goes last, the next comes first
    return values[None]


def _border_weights(conv: Convolution) -> Tensor:
    """The diagonal of W^-1/2, as an image."""
    weights = torch.ones(conv.input_size, dtype=torch.float64)
    for axis in range(weights.dim()):
        for end in (0, -1):
            weights.select(axis, end).mul_(math.sqrt(2))
    return weights
