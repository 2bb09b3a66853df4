"""The log-volume of a small matrix in a hundred digits."""

from __future__ import annotations

import math

import mpmath
from torch import Tensor

MOST = 64
"""The largest matrix, which takes a second."""
DIGITS = 100
ZERO = mpmath.mpf(10) ** -60
"""Pivots below it, of a matrix of order one, are zero."""


def exact_log_det(matrix: Tensor) -> float:
    """log |det A|, or 1/2 log det A'A; minus infinity where A is singular; NaN where it is too large."""
    rows, columns = matrix.shape
    if min(rows, columns) > MOST:
        return math.nan
    with mpmath.workdps(DIGITS):
        entries = [[mpmath.mpf(value) for value in row] for row in matrix.tolist()]
        if rows == columns:
            return _log_det(entries)
        long = entries if rows < columns else [list(column) for column in zip(*entries, strict=True)]
        gram = [[mpmath.fdot(a, b) for b in long] for a in long]
        return _log_det(gram) / 2


def _log_det(a: list[list[mpmath.mpf]]) -> float:
    """By elimination with the largest pivot of each column."""
    total, count = 0.0, len(a)
    for k in range(count):
        best = max(range(k, count), key=lambda i: abs(a[i][k]))
        a[k], a[best] = a[best], a[k]
        pivot = a[k][k]
        if abs(pivot) < ZERO:
            return -math.inf
        total += float(mpmath.log(abs(pivot)))
        for row in a[k + 1 :]:
            if row[k]:
                factor = row[k] / pivot
                for j in range(k + 1, count):
                    row[j] -= factor * a[k][j]
    return total
