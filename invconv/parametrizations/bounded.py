"""Kernels that stay well conditioned by construction:  weight = W o (delta + E),  ||E|| < rho."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from invconv.engine.precision import without_autocast
from invconv.errors import warn
from invconv.geometry import Geometry
from invconv.layers.init import centre_taps
from invconv.layers.kernel import SharedKernel
from invconv.layers.record import Recorded
from invconv.parametrizations.isometry import check_isometry, reads
from invconv.parametrizations.norms import at_least_float32, check_rho, inside, norm_bound, parameter_of
from invconv.parametrizations.registration import Layer, check_free, register


class Bounded(Recorded, SharedKernel):
    """The function weight = W o (delta + E):  delta reads each pixel once, ||E|| < rho, W mixes channels.

    `forward(W, E)` gives the weight, `right_inverse(weight)` the pair; both compute in float32 at least.  With
    s = prod(stride):

        W: (groups, out/groups, in/groups * s)      E: (groups, in/groups * s, in/groups, taps)

    The `state_dict` has rho and the geometry in it, and is loaded by a function of the same ones only.
    """

    delta: Tensor
    slots: Tensor | None
    repeats: Tensor | None
    version: Tensor

    def __init__(self, geometry: Geometry, columns: int, rho: float):
        super().__init__()
        self.rho = float(rho)
        self.geometry = geometry
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
        # In borders that repeat pixels a tap reads some of them several times.
        repeats = torch.tensor([float(reads(geometry, shift)) for shift, _ in taps])
        self.register_buffer("repeats", repeats.view(-1, 1, 1) if repeats.max() > 1 else None, persistent=False)
        # That it is there tells a state_dict from those of version 0.1.0; up to 2 the repeats were not counted.
        self.register_buffer("version", torch.tensor(3.0))
        self.counts_repeats = True

    @property
    def kind(self) -> Hashable:
        """The bound, all else being read from the geometry."""
        return self.rho, self.counts_repeats

    def recorded(self) -> dict[str, Any]:
        """What decides the kernel, and the map that it is."""
        return {"rho": self.rho, **asdict(self.geometry)}

    def extra_repr(self) -> str:
        return f"rho={self.rho}"

    def _matrices(self, e: Tensor) -> Tensor:
        """The matrices E_a for each shift a: (groups, shifts, in/groups * s, in/groups * s).

        Where borders repeat pixels those of one phase stand for those of another. Each tap then has a matrix of its
        own, (in/groups * s, in/groups), times the root of how often it reads a pixel.
        """
        if self.repeats is not None and self.counts_repeats:
            return e.permute(0, 3, 1, 2) * self.repeats.to(e.dtype).sqrt()
        if self.slots is None:
            return e.permute(0, 3, 1, 2)
        empty = e.new_zeros(*e.shape[:-1], self.shifts * self.phases)
        e = empty.index_copy(-1, self.slots, e).unflatten(-1, (self.shifts, self.phases))
        return e.permute(0, 3, 1, 2, 4).flatten(3)

    def _norm_bound(self, e: Tensor) -> Tensor:
        """An upper bound of ||E||: see `norm_bound`."""
        return norm_bound(self._matrices(e))

    def forward(self, mixing: Tensor, e: Tensor) -> Tensor:
        """The weight, of the pair W and E."""
        # Not in the precision of autocast: the weight must be the same inside it and outside.
        with without_autocast(e.device.type):
            wide = at_least_float32(e.dtype)
            kernel = inside(e.to(wide), self._norm_bound, self.rho) + self.delta.to(wide)
            weight = mixing.to(wide) @ kernel.flatten(2)
            return weight.to(e.dtype).reshape(-1, e.shape[2], *self.kernel_size)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """W from the centre taps, E from the rest; kernels beyond the bound are drawn back inside."""
        rows, columns = weight.shape[0] // self.groups, weight.shape[1]
        kernel = weight.detach().to(at_least_float32(weight.dtype)).reshape(self.groups, rows, columns, -1)
        mixing = kernel[..., self.centre].flatten(2)
        square = columns * self.phases
        rest = kernel.clone()
        rest[..., self.centre] = 0
        e = (torch.linalg.pinv(mixing) @ rest.flatten(2)).view(self.groups, square, columns, -1)
        return mixing.to(weight.dtype), parameter_of(e, self._norm_bound, self.rho, 0.95).to(weight.dtype)

    def of_version_1(self, e: Tensor) -> Tensor:
        """The parameter of version 2 that gives what `e` gave when the bound was the sum over shifts of ||E_a||_S8."""
        self.counts_repeats = self.repeats is None  # as what is loaded next will have it
        matrices = self._matrices(e)
        scale = matrices.abs().amax(dim=(-2, -1), keepdim=True).clamp_min(1e-14)
        matrices = matrices / scale
        gram = matrices.mT @ matrices
        eighth = (gram @ gram).square().sum(dim=(-2, -1), keepdim=True)
        norm = (eighth.clamp_min(1e-30) ** 0.125 * scale).sum(dim=1, keepdim=True)
        return parameter_of(e * (self.rho * torch.tanh(norm / self.rho) / norm), self._norm_bound, self.rho, 1 - 1e-7)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        version = state_dict.get(prefix + "version")
        if self.repeats is not None and version is not None and not version.is_meta:
            # Kernels of earlier versions stay what they were.
            self.counts_repeats = float(version) >= 3
            if not self.counts_repeats:
                warn(
                    f"a bounded kernel of an earlier version, with padding_mode={self.geometry.padding_mode!r}: it is "
                    f"what it was, but its off-centre part may have a norm above rho = {self.rho:g} at that border",
                    UserWarning,
                )


def bounded(conv: Layer, rho: float = 0.5) -> Layer:
    r"""Keep a layer's kernel well conditioned by construction:  weight = W o (delta + E),  ||E|| < rho.

    The condition number stays below cond(W) (1 + rho) / (1 - rho), for every border and every image whose sides are
    multiples of the stride; `invconv.parametrizations.isometry` has the proof.  It needs a geometry in which delta, the
    centre taps, reads each pixel once (out_channels >= in_channels * prod(stride)), or no pixel twice and nothing else
    (<=): with padding="same" and an odd kernel it always does.  Others are refused.
    The norm is bounded smoothly: E is scaled by rho tanh(n / rho) / n, where n is an upper bound of its norm.

    Args:
        conv: an invertible convolution whose taps reach every pixel (kernel at least as large as the stride).
        rho: bound of the norm of E, in (0, 1).

    Returns:
        conv, its weight parametrized as by `torch.nn.utils.parametrize`: `conv.weight` is what is used, W and E are
        `conv.parametrizations.weight.original0` and `original1`.  The kernel it had is kept if it is within the bound,
        else drawn back inside.  The `state_dict` carries rho and the geometry, and is refused by a layer of others.

    Raises:
        InputError: if rho is out of range, the weight is parametrized already or set by a hook, or the geometry allows
            no bound.

    Example:
        >>> from invconv import InvertibleConv2d
        >>> conv = bounded(InvertibleConv2d(8, 8, 3, padding=1, padding_mode="circular"), rho=0.5)
        >>> conv.parametrizations.weight.original1.data.normal_()  # doctest: +ELLIPSIS
        tensor(...)
        >>> bool(conv.condition_number((16, 16)) < 3.1)
        True
    """
    rho = check_rho(rho)
    check_free(conv, "bounded", "bound")
    geometry, weight = conv.geometry, conv.weight
    check_isometry(geometry, weight.shape[0] // geometry.groups, weight.shape[1])
    register(conv, Bounded(geometry, weight.shape[1], rho))
    parametrizations: Any = conv.parametrizations
    parametrizations.weight.register_load_state_dict_pre_hook(_convert)
    return conv


def _convert(parametrization: Any, state: dict[str, Any], prefix: str, *_: object) -> None:
    """Convert a state_dict of version 0.1.0 before it is loaded, so that it gives the kernel that it gave."""
    if f"{prefix}original1" in state and f"{prefix}0.version" not in state:
        function, parameter = parametrization[0], parametrization.original1
        e = function.of_version_1(state[f"{prefix}original1"].to(function.delta.device, torch.float64))
        state[f"{prefix}original1"] = e.to(parameter.dtype)
        state[f"{prefix}0.version"] = torch.full_like(function.version, 2.0)
