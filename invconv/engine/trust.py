"""How far to trust a solver: images that are known are sent through the layer and back.

y = A x,    x_hat = A^+ y:      the residual |A x_hat - y| / |y|,    the error |x_hat - x| / |x|.

A log-volume grows by log t for each place of a channel that is multiplied by t.  With G its gradient by the kernel,

    sum over the taps of channel c of  K G = places,

whose defect is what rounding has made of G there, and summed over channels what it has made of the log-volume: of
A^-1 = B + E the trace of E A.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.elimination import judge as judge_volume
from invconv.engine.inverse_gradient import Gradients, gradients
from invconv.engine.precision import DOUBTFUL, HOPELESS
from invconv.engine.solvers.base import Solver, Volume
from invconv.engine.solvers.ring import OnTorus
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


LOSSY = 1e7
"""Growth of rounding errors from which a log-volume is judged by its gradient.  Speed only: less is no loss."""


def pseudo_inverse_gradient(solver: Solver, y: Tensor, x: Tensor, grad: Tensor) -> Gradients:
    """Gradients of <g, A^+ y>, see `inverse_gradient`, that by the weight judged by its rounding errors.

    Warns:
        IllConditionedWarning: where fewer than two digits of the gradient by the weight can be trusted.
    """
    found = gradients(solver, y, x, grad)
    if not found.error < DOUBTFUL:
        rows, columns = solver.conv.shape
        trusted = "fewer than two digits" if found.error < HOPELESS else "no digit"
        warn(
            f"the gradient of the inverse by the weight may have a relative error of {min(found.error, 1.0):.0e}, "
            f"{trusted} can be trusted: what the {rows} x {columns} layer leaves of its outputs, or does not see, is "
            "rounding that the square of its inverse enlarges. Use float64, damping or a better conditioned kernel"
        )
    return found


def log_volume(volume: Volume, conv: Convolution) -> Tensor:
    """The log-volume of a map; judged by its gradient where rounding errors grow far.

    Warns:
        IllConditionedWarning: where it may be off by more than a hundredth of a nat.

    Raises:
        SingularMapError: where the layer cannot be told from a singular one.
    """
    value = volume.log_volume
    if isinstance(volume, OnTorus) and not volume.growth < LOSSY:
        nats = abs(float(_defects(volume.log_volume_gradient, conv).sum()))
        rows, columns = conv.shape
        what = f"in the {rows} x {columns} layer rounding errors grow about {volume.growth:.0e} times"
        judge_volume(nats, what, volume.outputs)
    return value


def log_volume_gradient(volume: Volume, conv: Convolution) -> Tensor:
    """The gradient of the log-volume of a map by its kernel, judged by what it has to be along each channel.

    Warns:
        IllConditionedWarning: where fewer than two digits can be trusted.

    Raises:
        SingularMapError: where no digit can be trusted.
    """
    gradient = volume.log_volume_gradient
    defects, kernel = _defects(gradient, conv), conv.weight.double()
    # Errors are white noise, of which each channel shows what lies along its kernel.
    error = float(defects.norm() * math.sqrt(kernel.numel()) / (kernel.norm() * gradient.double().norm()))
    if error < DOUBTFUL:
        return gradient
    rows, columns = conv.shape
    text = f"the gradient of the log-determinant of this {rows} x {columns} layer has a relative error of {error:.0e}"
    if not error < HOPELESS:
        raise SingularMapError(f"{text}; no digit can be trusted. Use float64 or a better conditioned kernel")
    warn(f"{text}; use float64 or a better conditioned kernel")
    return gradient


def _defects(gradient: Tensor, conv: Convolution) -> Tensor:
    """How far K G, summed over each channel, is from the places of the channel; (groups, channels), float64."""
    products = (gradient.double() * conv.weight.double()).flatten(2).sum(2).unflatten(0, (conv.geometry.groups, -1))
    rows, columns = conv.shape
    # The volume of a tall map is another one if its outputs are scaled, that of a wide one if its inputs are.
    by_output = rows <= columns
    sums: Tensor = products.sum(2 if by_output else 1)
    return sums - math.prod(conv.output_size if by_output else conv.input_size)


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
