"""Log-volumes of small matrices by elimination, each with the rounding error that it may have.

LU of A leaves  P A + E = L U  with  |E| < c eps |L| |U|  entry by entry, QR  ||E_j|| < c eps ||A_j||  column by column
(Higham 2002, theorems 9.3 and 19.4).  To first order the log-volume moves by

    |tr(A^+ E)|  <=  sum_ij |A^+|_ij |E|_ji,

which no scale of a row or a column changes.  It is c eps n for a triangular A, whatever its condition number: a
determinant keeps its digits where an inverse has long lost them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine.blocks import lu_factor
from invconv.errors import SingularMapError, warn

LEAST_CONSTANT = 4.0
"""c for the smallest matrices; the square root of their side for larger ones, as rounding errors are of any sign."""

DOUBTFUL, LOST = 1e-2, 0.5
"""Errors in nats from which a log-volume is warned of, and refused: at one, the matrix may as well be singular.

They are bounds, a hundred times the errors of matrices of condition 1e12; singular matrices reach 2.5 and more.
"""


MOST_EXPONENT = 1000
"""The largest power of two by which a row or a column is scaled: 2^1023 is the largest that there is."""


class Elimination(NamedTuple):
    """What one elimination of a batch of matrices gives."""

    inverse: Tensor
    """A^+: (..., columns, rows)."""
    log_volume: Tensor
    """1/2 log det(A'A), or of AA' for wide A: (...)."""
    error: Tensor
    """By how many nats rounding may have moved each log-volume; infinite where A is singular: (...)."""


def eliminate(a: Tensor) -> Elimination:
    """LU of balanced square matrices, QR of the tall side of the others.  a: (..., rows, columns), float64."""
    rows, columns = a.shape[-2:]
    if rows < columns:
        inverse, log_volume, error = eliminate(a.mH.resolve_conj())
        return Elimination(inverse.mH.resolve_conj(), log_volume, error)
    constant = torch.finfo(a.dtype).eps * max(LEAST_CONSTANT, math.sqrt(columns))
    # Powers of two, which round nothing. The volume of a tall A is another one when its rows are scaled.
    by_row = exponents_of(a.abs().amax(-1)) if rows == columns else a.new_zeros(a.shape[:-1], dtype=torch.long)
    a = times_two_to(a, -by_row.unsqueeze(-1))
    by_column = exponents_of(a.abs().amax(-2))
    a = times_two_to(a, -by_column.unsqueeze(-2))
    if rows == columns:
        inverse, log_volume, error = _lu(a)
    else:
        inverse, log_volume, error = _qr(a)
    log_volume = log_volume + math.log(2) * (by_row.sum(-1) + by_column.sum(-1)).double()
    inverse = times_two_to(times_two_to(inverse, -by_column.unsqueeze(-1)), -by_row.unsqueeze(-2))
    return Elimination(inverse, log_volume, torch.nan_to_num(constant * error, nan=math.inf, posinf=math.inf))


def judge(error: float, what: str, dtype: torch.dtype, worst: float | None = None) -> None:
    """Judge a log-volume by the error that it may have.

    Args:
        error: in nats.
        what: of which matrix it is.
        dtype: of the weight.
        worst: the largest error of its terms; None where it is one term.

    Warns:
        IllConditionedWarning: where it may be off by more than a hundredth of a nat.

    Raises:
        SingularMapError: where the matrix cannot be told from a singular one.
    """
    better = "a better conditioned kernel" if dtype == torch.float64 else "float64 or a better conditioned kernel"
    if not (error if worst is None else worst) < LOST:
        raise SingularMapError(
            f"the log-determinant is minus infinity, or cannot be told from it: {what}. Use {better}"
        )
    if error > DOUBTFUL:
        warn(f"the log-determinant may be off by up to {error:.0e} nats: {what}; use {better}")


def judge_with_taps(error: float, movement: Callable[[], Tensor], what: str, dtype: torch.dtype) -> None:
    """Judge a log-volume by the error of its factors, and where the taps may have fewer digits, by theirs.

    Args:
        error: of the factors, in nats.
        movement: by how much the log-volume moves, in nats, when each tap is moved by its own size.
        what: of which matrix it is.
        dtype: that the taps are rounded to.
    """
    taps = error * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps
    if error < LOST <= taps:  # the factors have digits: do the taps?
        taps = torch.finfo(dtype).eps * movement().item()
    judge(error if taps < LOST else max(error, taps), what, dtype)


def _lu(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse, log |det| and sum_ij |A^-1|_ij (|L| |U|)_ji of square matrices."""
    lu, pivots = lu_factor(a)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    inverse = torch.linalg.lu_solve(lu, pivots, identity)
    p, lower, upper = torch.lu_unpack(lu, pivots)
    rounded = p.abs() @ (lower.abs() @ upper.abs())
    return inverse, _log_diagonal(lu), (inverse.abs().mT * rounded).sum((-2, -1))


def _qr(a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A^+, the log-volume and sum_j ||(A^+)_j|| ||A_j|| of tall matrices."""
    q, r = torch.linalg.qr(a)
    inverse = torch.linalg.solve_triangular(r, q.mH, upper=True)
    error = (torch.linalg.vector_norm(inverse, dim=-1) * torch.linalg.vector_norm(a, dim=-2)).sum(-1)
    return inverse, _log_diagonal(r), error


def _log_diagonal(triangle: Tensor) -> Tensor:
    """Sum of log |t_ii| of each triangular matrix."""
    return triangle.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)


def exponents_of(x: Tensor, most: int = MOST_EXPONENT) -> Tensor:
    """The n with 2^(n-1) <= x < 2^n, at most `most` of either sign; 0 for 0."""
    return torch.frexp(x).exponent.long().clamp(-most, most)


def times_two_to(a: Tensor, exponents: Tensor) -> Tensor:
    """a 2^n, exactly: the powers are written bit by bit, as `torch.ldexp` has them in float32."""
    return a * ((exponents + 1023) << 52).view(torch.float64)
