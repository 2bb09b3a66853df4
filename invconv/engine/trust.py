"""How far to trust a solver: images that are known are sent through the layer and back.

y = A x,    x_hat = A^+ y:      the residual |A x_hat - y| / |y|,    the error |x_hat - x| / |x|.
"""

from __future__ import annotations

import torch

from invconv.engine.convolution import Convolution
from invconv.engine.precision import DOUBTFUL, HOPELESS
from invconv.engine.solvers.base import Solver
from invconv.errors import SingularMapError, warn
from invconv.report import Report


def judge(solver: Solver, dtype: torch.dtype, error: float) -> None:
    """Judge a solver by the error with which known images came back.

    Args:
        solver: what is judged, prepared.
        dtype: of the outputs, to which those of the known images were rounded.
        error: with which they came back.

    Warns:
        IllConditionedWarning: where fewer than two digits can be trusted.

    Raises:
        SingularMapError: where no digit can be trusted.
    """
    if error < DOUBTFUL:
        return
    rows, columns = solver.conv.shape
    text = (
        f"{solver.name} gives random images back with a relative error of {error:.0e} in {dtype}: "
        f"rounding errors grow about {solver.growth:.0e} times in this {rows} x {columns} layer"
    )
    if not error < HOPELESS:
        wider = "" if dtype == torch.float64 else "float64, "
        raise SingularMapError(f"{text}; no digit can be trusted. Use {wider}damping or a better conditioned kernel")
    warn(f"{text}; use {solver.advice}")


def report(conv: Convolution, solver: Solver, seconds: float) -> Report:
    """Residual, condition, rank, solver, time and memory of a solver that is prepared.

    Args:
        conv: the map in the precision of the caller.
        solver: its pseudo-inverse, in the precision of the factors.
        seconds: time that the factorisation took.
    """
    trip = solver.round_trip(conv.dtype)
    return Report(
        shape=conv.shape,
        solver=solver.name,
        unknowns=solver.unknowns,
        dtype=solver.conv.dtype,
        rank=solver.rank,
        condition=solver.condition,
        torus_growth=solver.torus_growth,
        growth=solver.growth,
        relative_residual=trip.residual,
        relative_error=max(trip.error, solver.error),
        bias=trip.bias,
        seconds=seconds,
        bytes=solver.bytes,
    )
