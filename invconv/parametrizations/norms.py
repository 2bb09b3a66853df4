"""Kernels inside a ball, smoothly:  E <- E rho tanh(n / rho) / n,  n >= ||E||."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from invconv.errors import InputError

Bound = Callable[[Tensor], Tensor]
"""Gives n for each group of a kernel with a largest entry of about 1: (groups, ...) to (groups, 1, 1, 1)."""


def check_rho(rho: Any) -> float:
    """The bound of a norm as a float; raises InputError unless it lies in (0, 1)."""
    if not isinstance(rho, Real) or not 0 < float(rho) < 1:
        raise InputError(f"rho must lie in (0, 1), got {rho!r}")
    return float(rho)


def norm_bound(matrices: Tensor) -> Tensor:
    """An upper bound of ||E|| for every image size and border, with a gradient wherever E is not zero.

    For any weights w_a of sum 1 (Cauchy-Schwarz; x_a, the image as the taps of shift a read it, has each place of
    the image once at most, or r_a times in borders that repeat it, which is in E_a already as a factor sqrt(r_a))

        ||E x||^2 = || sum over shifts a of E_a x_a ||^2 <= sum_a ||E_a x_a||^2 / w_a <= ||V||^2 ||x||^2,

    V being all E_a / sqrt(w_a), one above the other. Here w_a ~ ||E_a||_F, and the Schatten norm ||V||_S16 >= ||V||
    stands for the largest singular value: three products and no SVD. Of random kernels it is twice the norm.

    Args:
        matrices: the E_a, (groups, shifts, rows, columns), with a largest entry of about 1.
    """
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


def inside(e: Tensor, bound: Bound, rho: float) -> Tensor:
    """The kernel E of norm below rho that a parameter of any size stands for: (groups, rows, columns, taps)."""
    shape, unit = _scaled(e)
    norm = bound(shape)
    return shape * (rho * torch.tanh(norm * unit / rho) / norm)


def parameter_of(e: Tensor, bound: Bound, rho: float, most: float) -> Tensor:
    """The parameter that gives E, or as much of it as has a norm of `most` times rho."""
    shape, unit = _scaled(e)
    norm = bound(shape)
    held = (norm * unit).clamp_max(most * rho)
    return shape / norm * rho * torch.atanh(held / rho)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """What to compute in: float16 has no number for the constants of the bound, and too few digits for its powers."""
    return torch.promote_types(dtype, torch.float32)


def _scaled(e: Tensor) -> tuple[Tensor, Tensor]:
    """E with a largest entry of 1 in each group, and what to multiply it with: no square of it under- or overflows."""
    unit = e.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    return e / unit, unit
