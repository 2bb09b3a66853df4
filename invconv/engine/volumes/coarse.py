"""A log-determinant from fewer frequencies, where they are enough.

(1/N) log |det C| is the mean of an analytic function over the N frequencies of a torus.  The mean over a coarser grid
differs from it by its aliases, which fall geometrically with the side of the grid (Szegő 1915; Trefethen and Weideman
2014, theorem 2.1).  Two things have to hold for a grid of side M to be taken:

- Between its frequencies the kernel is as far from singular as at them.  A frequency w is at most pi / M from one of
  the grid, f, in each dimension, so that with shifts a(u) of the taps

      ||K_f^-1|| ||K_w - K_f||  <=  ||K_f^-1|| sum_u ||K_u|| |a(u)|_1 pi / M,

  which has to be below 1.  It also keeps the grid finer than the pattern of any kernel: one in powers of z^k has
  K_w - K_f k times as large.
- The mean over a grid of side M / 2 + 1, which has no divisor in common with M and thus other aliases, larger ones as
  it is coarser, agrees to the tolerance.
"""

from __future__ import annotations

import math
from itertools import product

import torch
from torch import Tensor

from invconv.engine.blocks import frobenius
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.spectrum import Grid, multiplicity
from invconv.geometry import Size
from invconv.threads import cached_property

LEAST = 4
"""Side of the coarsest grid that is tried; each next one has twice the side."""


SAFETY = 4
"""How many times nearer than the tolerance the means have to be.

Of 16,000 grids of random, sparse, long and nearly singular kernels, 5 were 3.5 to 21 times as far off as that.
"""


def coarse(solver: Solver) -> Coarse | None:
    """The coarsest grid that is known to be right to `volume_tol` nats an unknown; None if only all frequencies are."""
    tol, conv = solver.options.volume_tol, solver.conv
    if tol is None or not conv.is_cyclic:
        return None
    whole, side = Grid(conv.geometry, conv.input_size), LEAST
    shifts = [shift for shift, _ in conv.geometry.taps()]
    reach = max(max(along) - min(along) for along in zip(*shifts, strict=True))
    while not whole.pointwise and 2 * side <= max(whole.size):
        if side > reach:
            candidate = Coarse(solver, tuple(side if 2 * side <= m else m for m in whole.size))
            if candidate.variation < 1 and candidate.disagreement < tol / SAFETY:
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
        super().__init__(_on(conv, size), solver.options, solver.outputs)
        self.reduced = [m < n for m, n in zip(size, whole.size, strict=True)]
        self.share = math.prod(whole.size) / math.prod(size)

    @cached_property
    def variation(self) -> float:
        """||K_f^+|| ||K_w - K_f|| at most, w between the frequencies: below 1, the kernel is not singular there."""
        gram = self.factors.inverse.mH @ self.factors.inverse
        gains = frobenius(gram @ gram).double().amax(1) ** 0.25  # an upper bound of the norm: the root of a trace
        shifts, phases = zip(*self.conv.geometry.taps(), strict=True)
        taps = self.conv.weight.double().unflatten(0, (self.conv.geometry.groups, -1)).flatten(3).movedim(3, 1)
        norms = torch.linalg.matrix_norm(taps, 2)  # (groups, taps)
        turns = torch.zeros_like(norms)
        for u, (shift, phase) in enumerate(zip(shifts, phases, strict=True)):
            # Where an image is counted from changes no determinant: from the largest tap of the phase.
            alike = [v for v, other in enumerate(phases) if other == phase]
            origin = shifts[alike[int(norms[:, alike].amax(0).argmax())]]
            steps = zip(shift, origin, self.grid.size, self.reduced, strict=True)
            turns[:, u] = sum(abs(a - b) * math.pi / m for a, b, m, reduced in steps if reduced)
        variation = (gains * (norms * turns.clamp(max=2)).sum(1)).max().item()
        return variation if variation == variation else math.inf

    @cached_property
    def disagreement(self) -> float:
        """How far the means over the coarser grids lie from this one's, nats for each unknown."""
        means = torch.stack([self._mean_on_a_coprime_grid(), *self._means_on_halves()])
        spread = (means - self.mean).abs().max().item()
        return spread if spread == spread else math.inf

    def _mean_on_a_coprime_grid(self) -> Tensor:
        """The mean over a grid of side M / 2 + 1: (groups,)."""
        size = tuple(m // 2 + 1 if less else m for m, less in zip(self.grid.size, self.reduced, strict=True))
        return Circulant(_on(self.conv, size), self.options, self.outputs).mean

    def _means_on_halves(self) -> list[Tensor]:
        """The means over every second frequency of each dimension that is reduced: (groups,)."""
        counts = multiplicity(self.grid, self.conv.device)
        cycles = torch.cartesian_prod(*(torch.arange(m) for m in self.grid.half_size)).view(len(counts), -1)
        odd = (cycles % 2).to(counts.device)
        means = []
        for parity in product(*((0, 1) if reduced else (None,) for reduced in self.reduced)):
            chosen = counts.clone()
            for d, wanted in enumerate(parity):
                if wanted is not None:
                    chosen *= odd[:, d] == wanted
            means.append(self.mean_over(chosen))
        return means

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(C'C) on the larger torus, in nats."""
        return super().log_volume * self.share

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, of the larger torus."""
        return super().log_volume_gradient * self.share


def _on(conv: Convolution, size: Size) -> Convolution:
    """This kernel on a torus of so many places after the stride."""
    return conv.on(tuple(m * s for m, s in zip(size, conv.geometry.stride, strict=True)))
