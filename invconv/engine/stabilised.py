"""Stabilised bi-conjugate gradients for one image after the other: M x = b, with what nearly inverts M before it.

Two products with M a step, and no memory of the steps before (van der Vorst 1992), by SciPy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, bicgstab
from torch import Tensor

from invconv.threads import few_threads

Map = Callable[[Tensor], Tensor]


def stabilised(apply: Map, nearly: Map, right: Tensor, tol: float, most: int) -> Tensor:
    """x with ||M x - b|| <= tol ||b||, as nearly as so many steps get there.

    Args:
        apply: M, from images to images of the same shape.
        nearly: what is close to its inverse.
        right: (batch, ...), b.
        tol: relative residual.
        most: most steps for each image.
    """
    return torch.cat([_one(apply, nearly, b, tol, most) for b in right.split(1)]) if len(right) else right.clone()


def _one(apply: Map, nearly: Map, right: Tensor, tol: float, most: int) -> Tensor:
    """The same for one image."""

    def on_columns(function: Map) -> Callable[[np.ndarray], np.ndarray]:
        return lambda v: column(function(image(v)))

    def column(x: Tensor) -> np.ndarray:
        values: np.ndarray = x.flatten().cpu().numpy()
        return values

    def image(values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).view_as(right).to(right)

    target = column(right)
    size = float(abs(target).max()) or 1.0  # squares of what is near one neither overflow nor vanish
    shape = (right.numel(), right.numel())
    operator, before = (LinearOperator(shape, on_columns(f), dtype=target.dtype) for f in (apply, nearly))
    with few_threads(right.numel()):
        x, _ = bicgstab(operator, target / size, rtol=tol, atol=0.0, maxiter=most, M=before)
    return image(x) * size
