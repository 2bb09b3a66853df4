"""A log-determinant from fewer frequencies, where they are enough.

(1/N) log |det C| is the mean of an analytic function over the N frequencies of a torus.  The mean over a coarser grid
differs from it by its aliases, which fall geometrically with the side of the grid (Szegő 1915; Trefethen and Weideman
2014, theorem 2.1).  The coarser grid bears witness against itself: the means over every second frequency of each
dimension, which are grids of half its side, must agree.  How far they do not shows the aliases of that side, whose
squares, about, are those of the grid itself.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.spectrum import Grid, multiplicity
from invconv.geometry import Size
from invconv.threads import cached_property

LEAST = 4
"""Side of the coarsest grid that is tried; each next one has twice the side."""


def coarse(solver: Solver) -> Coarse | None:
    """The coarsest grid whose halves agree to `volume_tol` nats an unknown; None if only all frequencies will do."""
    tol, conv = solver.options.volume_tol, solver.conv
    if tol is None or not conv.is_cyclic:
        return None
    whole, side = Grid(conv.geometry, conv.input_size), LEAST
    while not whole.pointwise and side < max(whole.size):
        candidate = Coarse(solver, tuple(min(side, m) for m in whole.size))
        if candidate.disagreement < tol:
            return candidate
        side *= 2
    return None


class Coarse(Circulant):
    """The log-volume of a larger torus, and its gradient, from a smaller one.

    Args:
        solver: the one of the larger torus.
        size: places of the smaller torus, after the stride.
    """

    def __init__(self, solver: Solver, size: Size) -> None:
        conv = solver.conv
        whole = Grid(conv.geometry, conv.input_size)
        smaller = conv.on(tuple(m * s for m, s in zip(size, conv.geometry.stride, strict=True)))
        super().__init__(smaller, solver.options)
        self.reduced = [m < n for m, n in zip(size, whole.size, strict=True)]
        self.share = math.prod(whole.size) / math.prod(size)

    @cached_property
    def disagreement(self) -> float:
        """How far the means over the grids of half the side lie from the mean of all, nats for each unknown."""
        values = self.factors.log_volume / min(self.blocks.shape[-2:])
        counts = multiplicity(self.grid, values.device)
        cycles = torch.cartesian_prod(*(torch.arange(m) for m in self.grid.half_size)).view(len(counts), -1)
        odd = (cycles % 2).to(values.device)
        means = [(values * counts).sum(-1) / counts.sum()]
        for parity in product(*((0, 1) if reduced else (None,) for reduced in self.reduced)):
            chosen = counts.clone()
            for d, wanted in enumerate(parity):
                if wanted is not None:
                    chosen *= odd[:, d] == wanted
            means.append((values * chosen).sum(-1) / chosen.sum())
        spread = (torch.stack(means[1:]) - means[0]).abs().max().item()
        return spread if spread == spread else math.inf

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(C'C) on the larger torus, in nats."""
        return super().log_volume * self.share

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, of the larger torus."""
        return super().log_volume_gradient * self.share
