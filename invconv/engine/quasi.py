"""Symmetric matrices whose first part is positive and whose last part is negative definite, by Cholesky's method.

    [ P    X ]       P = L L',      N + X'P^-1 X = M M'.
    [ X'  -N ]

A matrix that commutes with a reflection falls apart: into one of the even and one of the odd vectors, each of half the
size and factored in an eighth of the time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

ROOT_HALF = math.sqrt(0.5)


class Reflection(NamedTuple):
    """A permutation of the places that is its own inverse."""

    of: Tensor
    """Where each place goes."""
    first: Tensor
    """Of each pair of places that change with each other, one: a mask that the other reflections leave as it is."""


class QuasiDefinite:
    """The factors of a matrix, which is overwritten.

    Args:
        matrix: symmetric, of which X is not read; where there are reflections, the rows of the first one's places.
        positive: how many places, the first ones, its positive definite part has.
        reflections: what the matrix commutes with; they keep the two parts, and commute with each other.
        rows: the row of `matrix` that each place has; None where it has all.
    """

    def __init__(
        self, matrix: Tensor, positive: int, reflections: list[Reflection], rows: Tensor | None = None
    ) -> None:
        self._halves: list[QuasiDefinite] = []
        self._positive = positive
        if reflections:
            self._split(matrix, rows, *reflections)
            return
        self._upper, failed = torch.linalg.cholesky_ex(matrix[:positive, :positive])
        self._across = torch.linalg.solve_triangular(self._upper, matrix[positive:, :positive].mT, upper=False)
        rest = torch.addmm(matrix[positive:, positive:], self._across.mT, self._across, beta=-1)
        self._lower, failed_too = torch.linalg.cholesky_ex(rest)
        self.failed = bool(failed or failed_too)

    def _split(self, matrix: Tensor, rows: Tensor | None, reflection: Reflection, *others: Reflection) -> None:
        """Factor the even and the odd half of a reflection."""
        places = torch.arange(matrix.shape[1], device=matrix.device)
        rows = places if rows is None else rows
        still = reflection.of == places
        even, odd = places[reflection.first | still], places[reflection.first]
        self._kept = [(even, reflection.of[even], 1.0), (odd, reflection.of[odd], -1.0)]
        self._scale = torch.where(still, ROOT_HALF, 1.0).to(matrix)[even, None]
        for kept, mirrored, sign in self._kept:
            half = matrix.index_select(1, kept).add_(matrix.index_select(1, mirrored), alpha=sign)
            half = half.index_select(0, rows[kept])
            if sign > 0:
                half *= self._scale * self._scale.mT
            index = torch.full_like(places, -1).scatter(0, kept, torch.arange(len(kept), device=matrix.device))
            along = [Reflection(index[other.of[kept]], other.first[kept]) for other in others]
            self._halves.append(QuasiDefinite(half, int((kept < self._positive).sum()), along))
        self.failed = any(half.failed for half in self._halves)

    def solve(self, right: Tensor) -> Tensor:
        """The solution for each column."""
        if not self._halves:
            return self._solve(right)
        solution = torch.zeros_like(right)
        for (kept, mirrored, sign), half in zip(self._kept, self._halves, strict=True):
            scale = ROOT_HALF * (self._scale if sign > 0 else 1.0)
            part = half.solve(scale * (right[kept] + sign * right[mirrored])) * scale
            solution.index_add_(0, kept, part).index_add_(0, mirrored, part, alpha=sign)
        return solution

    def _solve(self, right: Tensor) -> Tensor:
        above, below = right.split([self._positive, len(right) - self._positive])
        above = torch.linalg.solve_triangular(self._upper, above, upper=False)
        below = -torch.cholesky_solve(below - self._across.mT @ above, self._lower)
        above = torch.linalg.solve_triangular(self._upper.mT, above - self._across @ below, upper=True)
        return torch.cat([above, below])

    @property
    def bytes(self) -> int:
        """Memory that the factors hold."""
        if self._halves:
            return sum(half.bytes for half in self._halves)
        return sum(int(factor.nbytes) for factor in (self._upper, self._across, self._lower))
