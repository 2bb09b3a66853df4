"""How long LSMR will take, by how many iterations it takes on a small image.

The singular values of a large image fill the same range as those of a small one, with the same kernel and the same
borders: the more pixels, the more of them there are, but a Krylov method goes by their range.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.lsmr import RESTARTS
from invconv.engine.preconditioner import root_cost
from invconv.geometry import Size

LOOK = 200
"""Iterations on a small image from which a layer counts as one that LSMR is slow for.  Speed only."""

BEFORE = 4
"""Answers that it takes to find out what the preconditioner and the others are worth, about.  Speed only."""

RUNS = 3
"""Runs of iterations that a look takes: without a preconditioner and with either.  Speed only."""

DEAR = 1e10
"""Operations that a look at a small image may take: it is taken for slow where it would be more.  Speed only."""


def foreseen_cost(
    conv: Convolution,
    tall: bool,
    most: int,
    bound: float,
    look: Callable[[Convolution, int], tuple[int, bool]],
    worth: float,
) -> cost.Cost:
    """Operations of the preconditioner and of the iterations.

    A look goes on for as many iterations as are worth it: no longer than what it is a look for.

    Args:
        conv: the map.
        tall: whether the preconditioner stands on the side of x.
        most: iterations of a run at most.
        bound: iterations that the condition number of a damped map lets through; infinite where it is not known.
        look: gives the iterations for a small map, of at most so many, and whether a preconditioner takes part.
        worth: operations of the iterations of an answer above which nobody wants to know how many there are.
    """
    small = conv.on(_small_size(conv))
    plain = cost.CALL + 2 * cost.convolution(conv)
    enough = int(max(1, min(LOOK, worth / (RUNS * plain))))
    steps, preconditioned = look(small, enough) if enough * cost.convolution(small) < DEAR else (enough, False)
    iterations = float(steps)
    if steps >= enough:
        iterations, preconditioned = min(most * (1 + RESTARTS), bound), bound < math.inf
    root = root_cost(conv, tall)
    step = plain + (2 * root.answer if preconditioned else 0)
    return cost.Cost(root.factors + BEFORE * iterations * step, iterations * step)


def _small_size(conv: Convolution) -> Size:
    """A few extents of the kernel."""
    sides = zip(conv.input_size, conv.geometry.extent, conv.geometry.stride, strict=True)
    return tuple(min(n, max(2 * e + s, 8 * s)) for n, e, s in sides)
