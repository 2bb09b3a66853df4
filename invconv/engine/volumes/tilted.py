"""The determinant of a tilted layer, exact where the layer's direct way to it is lost.

A square layer with borders of zeros has the determinant of any tilted one (see `tilt`), up to a known factor, and one
of those may be well conditioned: [1, 1.5] is triangular, loses its inverse exponentially, and has a log-determinant of
zero at any length.
"""

from __future__ import annotations

import math
from itertools import product

import torch

from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.ring import BENIGN, Ring
from invconv.engine.tilt import Tilt

LOSSY = 1e7
"""Growth of rounding errors up to which a tilted ring is taken."""

WORTH_UP_TO_UNKNOWNS = 2_000
"""The largest ring for which the attempt is made.  Speed only: beyond it, attempts are dear."""

RATIOS = (1.0, 0.5, 2.0, 0.25, 4.0)
"""Ratios r by which a kernel is tilted, in each dimension."""


def tilted(solver: Solver) -> Ring | None:
    """The least tilted ring that keeps its digits; None where the layer has no use for one."""
    conv = solver.conv
    square = conv.shape[0] == conv.shape[1] and conv.block_shape[0] == conv.block_shape[1]
    if not square or conv.geometry.padding_mode != "zeros":
        return None
    if isinstance(solver, Ring) and solver.unknowns > WORTH_UP_TO_UNKNOWNS:
        return None
    tilts = sorted(product(RATIOS, repeat=conv.geometry.dims), key=lambda r: sum(abs(math.log(t)) for t in r))
    for ratios in tilts[1:]:
        ring = Ring(conv.to(torch.float64), solver.options, solver.outputs, tilt=Tilt(ratios))
        if ring.torus.growth < BENIGN and ring.growth < LOSSY:
            return ring
    return None
