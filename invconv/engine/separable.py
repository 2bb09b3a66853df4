"""Kernels that are outer products: the layer is one matrix for the channels and one for each axis.

    K[o, i, u, v] = M[o, i] a[u] b[v]    =>    A = M (x) A_1 (x) A_2,

A_d the matrix of a convolution along axis d alone, since borders are filled in one axis after the other.  Blurs by a
box, by a Gaussian or by motion along an axis are such; each group of channels has factors of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.threads import cached_property

ROUNDINGS = 16
"""How far a kernel may be from an outer product, in eps and the largest tap between its two channels.

Products of three or four factors that were rounded, scaled twice and rounded again reach 4, Gaussians 3.
"""


NEARLY = 1e-3
"""How far products of two taps may be apart, relative, for all to be looked at.  Speed only: rounding is far below."""


def along_axes(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """The Kronecker product of these matrices, applied to images.

    Args:
        x: (groups, batch, *columns), one axis for each matrix.
        matrices: (groups, rows, columns) each, or (1, rows, columns) for all groups.
    """
    for matrix in reversed(matrices):  # of the last axis, which then becomes the first
        by = matrix[0] if len(matrix) == 1 else matrix
        lines: Tensor = x.flatten(1, -2) @ by.mT
        x = lines.view(*x.shape[:-1], -1).movedim(-1, 2)
    return x


def is_separable(conv: Convolution, unit: float) -> bool:
    """Whether the kernel is an outer product but for rounding errors of size `unit`."""
    if not _corners_agree(conv.weight[: conv.out_channels // conv.geometry.groups]):
        return False
    kernel = _kernel(conv)
    rest = kernel - _product(_cross(kernel))
    most = kernel.abs().flatten(3).amax(3)
    return bool((rest.abs().flatten(3).amax(3) <= ROUNDINGS * unit * most).all())


def _corners_agree(weight: Tensor) -> bool:
    """Whether K_p K_q = K_r K_s in one group, p and q the first and the last tap, r and s those with one axis changed.

    Where they do not, which is nearly always, no other tap need be looked at.
    """
    axis = next((d for d, k in enumerate(weight.shape) if d > 1 and k > 1), None)
    if axis is None:
        return True
    first, last = ([end] * weight.dim() for end in (0, -1))
    crossed = [[*a[:axis], b[axis], *a[axis + 1 :]] for a, b in ((first, last), (last, first))]
    p, q, r, s = torch.stack([weight[tuple(place)] for place in (first, last, *crossed)]).tolist()
    return bool(abs(p * q - r * s) <= NEARLY * (abs(p * q) + abs(r * s)))


def _kernel(conv: Convolution) -> Tensor:
    """The kernel in float64: (groups, outputs, inputs, *kernel_size)."""
    weight = conv.weight.detach().double()
    return weight.view(conv.geometry.groups, -1, *weight.shape[1:])


def _product(factors: Sequence[Tensor]) -> Tensor:
    """The outer product of factors that are shaped for it."""
    product = factors[0]
    for factor in factors[1:]:
        product = product * factor
    return product


def _cross(kernel: Tensor) -> list[Tensor]:
    """The lines through the largest tap of each group, for the channels and for each axis, that multiply to a kernel.

    Shapes are those of the kernel, with 1 for the axes of the others.
    """
    groups = torch.arange(len(kernel), device=kernel.device)
    flat = kernel.flatten(1)
    largest = flat.abs().argmax(1)
    pivot = flat[groups, largest]
    pivot = torch.where(pivot == 0, 1.0, pivot)
    outputs, inputs, *taps = torch.unravel_index(largest, kernel.shape[1:])
    whole: Any = slice(None)
    factors = [kernel[(groups, whole, whole, *taps)][(..., *[None] * len(taps))]]
    for axis in range(len(taps)):
        line = kernel[(groups, outputs, inputs, *taps[:axis], whole, *taps[axis + 1 :])]
        shape = [len(kernel), 1, 1, *[1] * len(taps)]
        shape[3 + axis] = -1
        factors.append((line / pivot[:, None]).view(shape))
    return factors


@dataclass(frozen=True, eq=False)
class Separable(Convolution):
    """The map of the outer product that is nearest to a kernel, applied one axis after the other."""

    @classmethod
    def of(cls, conv: Convolution) -> Separable:
        """A map whose kernel is an outer product but for rounding, in float64."""
        return cls(conv.weight.double(), conv.geometry, conv.input_size)

    @cached_property
    def factors(self) -> list[Tensor]:
        """M and the taps along each axis, shaped as the kernel with 1 for the other axes: least squares, one sweep.

        Each is a mean over all taps that tell of it, and so loses less to their rounding than one line of them.
        """
        kernel = _kernel(self)
        factors = _cross(kernel)
        for index, factor in enumerate(factors):
            others = _product(factors[:index] + factors[index + 1 :])
            axes = [d for d in range(1, factor.dim()) if factor.shape[d] == 1]
            size = others.square().sum(axes, keepdim=True)
            factors[index] = (kernel * others).sum(axes, keepdim=True) / torch.where(size == 0, 1.0, size)
        return factors

    @cached_property
    def rest(self) -> Tensor:
        """Root mean square of what the kernel is besides, for each output of a group: (groups,)."""
        kernel = _kernel(self)
        rest = kernel - _product(self.factors)
        norms: Tensor = torch.linalg.vector_norm(rest.flatten(1), dim=1)
        return norms / math.sqrt(kernel.shape[1])

    @cached_property
    def axes(self) -> list[Convolution]:
        """The convolution along each axis, from one channel to one for each group, or to one where all are the same."""
        geometry, maps = self.geometry, []
        for d, taps in enumerate(self.factors[1:]):
            taps = taps.flatten(1)[:, None]
            taps = taps[:1] if bool((taps == taps[:1]).all()) else taps
            line = replace(
                geometry,
                kernel_size=geometry.kernel_size[d : d + 1],
                stride=geometry.stride[d : d + 1],
                padding=geometry.padding[d : d + 1],
                dilation=geometry.dilation[d : d + 1],
                groups=1,
            )
            maps.append(Convolution(taps, line, self.input_size[d : d + 1]))
        return maps

    @cached_property
    def matrices(self) -> list[Tensor]:
        """M, A_1, A_2, ...: (groups, rows, columns) each, or (1, rows, columns) where all groups have the same."""
        lines = [line.to_dense().view(len(line.weight), -1, *line.input_size) for line in self.axes]
        return [self.factors[0].flatten(2), *lines]

    def map(self, matrices: Sequence[Tensor], x: Tensor, diagonal: Tensor | None = None) -> Tensor:
        """A Kronecker product of matrices applied to images (batch, channels, *size), then perhaps a diagonal one."""
        x = x.unflatten(1, (self.geometry.groups, -1)).transpose(0, 1)
        x = along_axes(x, matrices)
        return (x if diagonal is None else x * diagonal[:, None]).transpose(0, 1).flatten(1, 2)

    def to(self, dtype: torch.dtype) -> Convolution:  # noqa: ARG002
        """This map, which is float64 whatever is asked for."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """A x. x: (batch, in_channels, *size)."""
        return self.map(self.matrices, x)

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y. y: (batch, out_channels, *output_size)."""
        return self.map([m.mT for m in self.matrices], y)
