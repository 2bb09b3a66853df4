"""The extreme singular values of a large layer, by SciPy's Lanczos method on A and on its inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from threadpoolctl import threadpool_limits
from torch import Tensor

if TYPE_CHECKING:
    from invconv.operator import ConvOperator

TOLERANCE = 1e-6
"""Relative accuracy of the squares that is asked for."""


def extreme_singular_values(operator: ConvOperator, k: int) -> Tensor:
    """The k largest and the k smallest singular values, descending: (2 k,), float64 on the CPU.

    The largest are those of A'A; the smallest come from A^+ (A^+)', because Lanczos' method finds the ends of a
    spectrum that stand apart, and the small singular values do so only in the inverse.
    """
    rows, columns = operator.shape
    if rows >= columns:
        shape = (operator.in_channels, *operator.input_size)
        gram = _eigenvalues(lambda x: operator.adjoint(operator.forward(x)), shape, k, operator)
        inverse = _eigenvalues(
            lambda x: operator.pseudo_inverse(operator.pseudo_inverse_adjoint(x)), shape, k, operator
        )
    else:
        shape = (operator.out_channels, *operator.output_size)
        gram = _eigenvalues(lambda y: operator.forward(operator.adjoint(y)), shape, k, operator)
        inverse = _eigenvalues(
            lambda y: operator.pseudo_inverse_adjoint(operator.pseudo_inverse(y)), shape, k, operator
        )
    return torch.cat([gram.sqrt(), inverse.flip(0).rsqrt()])


def _eigenvalues(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...], k: int, operator: ConvOperator) -> Tensor:
    """The k largest of a symmetric map on images, descending."""
    weight, count = operator.weight, math.prod(shape)

    def matvec(v: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(v)).view(1, *shape).to(weight)
        return apply(image).flatten().double().cpu().numpy()

    start = np.random.default_rng(0).standard_normal(count)
    tolerance = max(TOLERANCE, 100 * torch.finfo(weight.dtype).eps)
    linear = LinearOperator((count, count), matvec, dtype=np.float64)
    with threadpool_limits(1, "blas"):  # see `invconv.engine.solvers.krylov`
        values = eigsh(linear, k=k, which="LM", return_eigenvectors=False, v0=start, tol=tolerance)
    return torch.from_numpy(np.sort(values)[::-1].copy())
