"""The extreme singular values of a large layer, by SciPy's Lanczos method on A and on its inverse.

The largest are those of A'A.  The smallest come from A^+ (A^+)', because Lanczos' method finds the ends of a spectrum
that stand apart, and the small singular values do so only in the inverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.solvers import dense
from invconv.errors import InputError
from invconv.threads import one_blas_thread

TOLERANCE = 1e-6
"""Relative accuracy of the squared singular values."""

Linear = Callable[[Tensor], Tensor]


def all_in_reach(conv: Convolution) -> bool:
    """Whether all singular values can be had: those of a cyclic layer, or of a small matrix."""
    return conv.is_cyclic or conv.shape[0] * conv.shape[1] <= dense.MOST_ENTRIES


def check_count(conv: Convolution, k: int | None) -> None:
    """Raise InputError unless the k largest and the k smallest singular values, or all for None, can be had."""
    rows, columns = conv.shape
    count = min(conv.shape)
    if k is not None and not 1 <= k <= count // 2:
        raise InputError(f"k must lie between 1 and {count // 2}, half the {count} singular values, got {k}")
    if k is None and not all_in_reach(conv):
        raise InputError(
            f"all {count} singular values of a {rows} x {columns} layer with real borders are too many "
            f"(up to {dense.MOST_ENTRIES} matrix entries): give k= for the largest and the smallest"
        )


def extreme_singular_values(conv: Convolution, inverse: Linear, inverse_adjoint: Linear, k: int) -> Tensor:
    """The k largest and the k smallest singular values, descending: (2 k,), float64 on the CPU.

    Args:
        conv: the map A.
        inverse: y -> A^+ y.
        inverse_adjoint: x -> (A^+)' x.
        k: how many of each end.
    """
    rows, columns = conv.shape
    if rows >= columns:
        squares = _eigenvalues(lambda x: conv.adjoint(conv.forward(x)), conv.x_shape, k, conv)
        reciprocals = _eigenvalues(lambda x: inverse(inverse_adjoint(x)), conv.x_shape, k, conv)
    else:
        squares = _eigenvalues(lambda y: conv.forward(conv.adjoint(y)), conv.y_shape, k, conv)
        reciprocals = _eigenvalues(lambda y: inverse_adjoint(inverse(y)), conv.y_shape, k, conv)
    return torch.cat([squares.sqrt(), reciprocals.flip(0).rsqrt()])


def _eigenvalues(apply: Linear, shape: tuple[int, ...], k: int, conv: Convolution) -> Tensor:
    """The k largest eigenvalues of a symmetric map on images, descending."""
    count = math.prod(shape)

    def matvec(v: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(np.ascontiguousarray(v)).view(1, *shape).to(conv.weight)
        return apply(image).flatten().double().cpu().numpy()

    start = np.random.default_rng(0).standard_normal(count)
    tolerance = max(TOLERANCE, 100 * torch.finfo(conv.dtype).eps)
    linear = LinearOperator((count, count), matvec, dtype=np.float64)
    with one_blas_thread():  # see `invconv.engine.solvers.krylov`
        values = eigsh(linear, k=k, which="LM", return_eigenvectors=False, v0=start, tol=tolerance)
    return torch.from_numpy(np.sort(values)[::-1].copy())
