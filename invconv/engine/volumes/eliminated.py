"""The determinant of a small layer from its explicit matrix, where the torus has lost its digits.

A ring may grow where the layer itself is benign, and then the gradient of its log-determinant, D - D_Q M^-1 N D, is a
small difference of large numbers.
"""

from __future__ import annotations

import torch

from invconv.engine import memory
from invconv.engine.elimination import DOUBTFUL
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.dense import MOST_ENTRIES, Dense


def eliminated(solver: Solver) -> Dense | None:
    """The matrix, if it may be factored, is small enough, and keeps its digits."""
    conv = solver.conv
    if solver.options.solver == "iterative":
        return None
    entries = conv.shape[0] * conv.shape[1]
    if entries > MOST_ENTRIES or not 40 * entries < 0.9 * memory.available_memory(conv.device):
        return None
    dense = Dense(conv.to(torch.float64), solver.options, solver.outputs)
    return dense if dense.elimination.error < DOUBTFUL else None
