"""Kernels that stay well conditioned by construction:  weight = W o (delta + E),  ||E|| < rho."""

from __future__ import annotations

import math
from collections.abc import Hashable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from invconv.errors import InputError
from invconv.geometry import Geometry
from invconv.layers import InvertibleConv
from invconv.layers.init import centre_taps
from invconv.layers.kernel import SharedKernel


class Bounded(SharedKernel):
    """The function weight = W o (delta + E):  delta reads each pixel once, ||E|| < rho, W mixes channels.

    `forward(W, E)` gives the weight, `right_inverse(weight)` the pair.  With s = prod(stride):

        W: (groups, out/groups, in/groups * s)      E: (groups, in/groups * s, in/groups, taps)
    """

    delta: Tensor
    slots: Tensor | None

    def __init__(self, geometry: Geometry, columns: int, rho: float):
        super().__init__()
        self.rho = rho
        self.kernel_size = geometry.kernel_size
        self.groups = geometry.groups
        self.phases = math.prod(geometry.stride)
        self.centre = centre_taps(geometry)
        taps = geometry.taps()
        square = columns * self.phases
        delta = torch.zeros(square, columns, len(taps))
        delta[:, :, self.centre] = torch.eye(square).view(square, columns, self.phases)
        self.register_buffer("delta", delta, persistent=False)
        # Taps of one shift see disjoint phases: together they are one matrix, `slots` says where each tap belongs.
        shifts = sorted({shift for shift, _ in taps})
        phases = sorted({phase for _, phase in taps})
        self.shifts = len(shifts)
        slots = [shifts.index(shift) * self.phases + phases.index(phase) for shift, phase in taps]
        self.register_buffer("slots", torch.tensor(slots) if self.phases > 1 else None, persistent=False)
        # That it is there tells a state_dict from those of version 0.1.0.
        self.register_buffer("version", torch.tensor(2.0))

    @property
    def kind(self) -> Hashable:
        """The bound, all else being read from the geometry."""
        return self.rho

    def extra_repr(self) -> str:
        return f"rho={self.rho}"

    def _matrices(self, e: Tensor) -> Tensor:
        """The matrices E_a for each shift a: (groups, shifts, in/groups * s, in/groups * s)."""
        if self.slots is None:
            return e.permute(0, 3, 1, 2)
        empty = e.new_zeros(*e.shape[:-1], self.shifts * self.phases)
        e = empty.index_copy(-1, self.slots, e).unflatten(-1, (self.shifts, self.phases))
        return e.permute(0, 3, 1, 2, 4).flatten(3)

    def _norm_bound(self, e: Tensor) -> Tensor:
        """An upper bound of ||E|| for every image size and border, with a gradient wherever E is not zero.

        For any weights of sum 1 (Cauchy-Schwarz; the shifts only move or drop the terms of the last sum)

            ||E x||^2 = || sum over shifts a of E_a x_a ||^2 <= sum_a ||E_a x_a||^2 / w_a <= ||V||^2 ||x||^2,

        V being all E_a / sqrt(w_a), one above the other. Here w_a ~ ||E_a||_F, and the Schatten norm ||V||_S16 >= ||V||
        stands for the largest singular value: three products and no SVD. Of random kernels it is twice the norm.
        """
        matrices = self._matrices(e)
        norms = (matrices.square().sum(dim=(-2, -1), keepdim=True) + 1e-28).sqrt()
        stacked = (matrices * (norms.sum(dim=1, keepdim=True) / norms).sqrt()).flatten(1, 2)
        # Scaled to singular values below 1, because the sixteenth powers of others overflow.
        scale = torch.linalg.matrix_norm(stacked.detach(), keepdim=True).clamp_min(1e-14)
        stacked = stacked / scale
        gram = stacked.mT @ stacked
        gram = gram @ gram
        sixteenth = (gram @ gram).square().sum(dim=(-2, -1), keepdim=True)
        bound: Tensor = (sixteenth.clamp_min(1e-30) ** (1 / 16) * scale).unsqueeze(1)
        return bound

    def forward(self, mixing: Tensor, e: Tensor) -> Tensor:
        """The weight, of the pair W and E."""
        # Not in the precision of autocast: the weight must be the same inside it and outside.
        kind = e.device.type  # "meta" knows no autocast
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            norm = self._norm_bound(e)
            kernel = e * (self.rho * torch.tanh(norm / self.rho) / norm) + self.delta
            return (mixing @ kernel.flatten(2)).reshape(-1, e.shape[2], *self.kernel_size)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """W from the centre taps, E from the rest; kernels beyond the bound are drawn back inside."""
        rows, columns = weight.shape[0] // self.groups, weight.shape[1]
        kernel = weight.detach().reshape(self.groups, rows, columns, -1)
        mixing = kernel[..., self.centre].flatten(2)
        square = columns * self.phases
        rest = kernel.clone()
        rest[..., self.centre] = 0
        e = (torch.linalg.pinv(mixing) @ rest.flatten(2)).view(self.groups, square, columns, -1)
        return mixing, self._unbounded(e, 0.95)

    def _unbounded(self, e: Tensor, most: float) -> Tensor:
        """The parameter that gives E, or as much of it as has a norm of `most` times rho."""
        norm = self._norm_bound(e)
        inside = norm.clamp_max(most * self.rho)
        return e / norm * self.rho * torch.atanh(inside / self.rho)

    def of_version_1(self, e: Tensor) -> Tensor:
        """The parameter that gives now what `e` gave when the bound was the sum over shifts of ||E_a||_S8."""
        matrices = self._matrices(e)
        scale = matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-14)
        matrices = matrices / scale
        gram = matrices.mT @ matrices
        eighth = (gram @ gram).square().sum(dim=(-2, -1), keepdim=True)
        norm = (eighth.clamp_min(1e-30) ** 0.125 * scale).sum(dim=1, keepdim=True)
        return self._unbounded(e * (self.rho * torch.tanh(norm / self.rho) / norm), 1 - 1e-7)


def bounded(conv: InvertibleConv, rho: float = 0.5) -> InvertibleConv:
    r"""Keep a layer's kernel well conditioned by construction:  weight = W o (delta + E),  ||E|| < rho.

    The condition number stays below cond(W) (1 + rho) / (1 - rho), for every image size and for zero borders too.
    The norm is bounded smoothly: E is scaled by rho tanh(n / rho) / n, where n is an upper bound of its norm.

    Args:
        conv: an invertible convolution whose taps reach every pixel (kernel at least as large as the stride).
        rho: bound of the norm of E, in (0, 1).

    Returns:
        conv, its weight parametrized as by `torch.nn.utils.parametrize`: `conv.weight` is what is used, W and E are
        `conv.parametrizations.weight.original0` and `original1`.  The kernel it had is kept if it is within the bound,
        else drawn back inside.

    Raises:
        InputError: if rho is out of range, or some pixels are never read.

    Example:
        >>> from invconv import InvertibleConv2d
        >>> conv = bounded(InvertibleConv2d(8, 8, 3, padding=1, padding_mode="circular"), rho=0.5)
        >>> conv.parametrizations.weight.original1.data.normal_()  # doctest: +ELLIPSIS
        tensor(...)
        >>> bool(conv.condition_number((16, 16)) < 3.1)
        True
    """
    if not 0 < rho < 1:
        raise InputError(f"rho must lie in (0, 1), got {rho}")
    geometry = conv.geometry
    reached = len(centre_taps(geometry))
    if reached < math.prod(geometry.stride):
        raise InputError(
            f"kernel size {geometry.kernel_size} with stride {geometry.stride} and dilation {geometry.dilation} reads "
            f"only {reached} of {math.prod(geometry.stride)} pixels: the layer cannot be invertible"
        )
    weight = conv.weight
    function = Bounded(geometry, weight.shape[1], rho).to(device=weight.device, dtype=weight.dtype)
    parametrize.register_parametrization(conv, "weight", function)
    parametrizations: Any = conv.parametrizations
    parametrizations.weight.register_load_state_dict_pre_hook(_convert)
    return conv


def _convert(parametrization: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Convert a state_dict of version 0.1.0 before it is loaded, so that it gives the kernel that it gave."""
    if f"{prefix}original1" in state and f"{prefix}0.version" not in state:
        function, parameter = parametrization[0], parametrization.original1
        e = function.of_version_1(state[f"{prefix}original1"].to(function.delta.device, torch.float64))
        state[f"{prefix}original1"] = e.to(parameter.dtype)
        state[f"{prefix}0.version"] = function.version
