"""The power method: the norm of a map from below, by a few products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEPS = 12
"""Products with a random start: n unknowns leave the norm n^(1/24) too low at most, on average."""


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """The largest eigenvalue of a symmetric semidefinite map on images, from below, from these to start with."""
    shape, rows, value = images.shape, images.flatten(1), 0.0
    for _ in range(STEPS):
        rows = rows / rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
        rows = apply(rows.view(shape)).flatten(1)
        value = max(value, rows.norm(dim=1).max().item())
    return value
