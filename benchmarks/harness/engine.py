"""The one place where benchmarks reach below the public API: for work that is never done by itself there.

- `Torus`: the blocks of a circular layer and their factorisation, alone.
- `log_dets_together`: the log-determinants of several layers in one call, as a flow takes them.
- `without_log_dets`: a flow that leaves them out.
- `log_det_by_factors`: a log-determinant by the factors of the whole image, whatever else would give it.
- `ways`: each way to invert a layer, whether `solver="auto"` would take it or not.

All other files of this folder import what any user can import.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from invconv import ConvOperator, Geometry, InvertibleConv2d, Plan
from invconv.engine import choice
from invconv.engine.blocks import TorusMap
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.precision import exactly
from invconv.engine.solvers.base import Solver
from invconv.engine.spectrum import Grid, halves
from invconv.engine.ways import WAYS
from invconv.flows import MultiScaleFlow
from invconv.layers.together import LogDets, kernels


class Factors(NamedTuple):
    """One factorisation of blocks: their inverses, and the logarithm of each |det|."""

    inverse: Tensor
    log_volume: Tensor


class Torus:
    """Circular 3 x 3 layers of one shape side by side, on square images: one matrix for each layer and frequency.

    Args:
        count: how many layers.
        side: of the images, in pixels.
    """

    def __init__(self, count: int, side: int) -> None:
        geometry = Geometry.of((3, 3), padding=1, padding_mode="circular", groups=count)
        self._grid = Grid(geometry, (side, side))
        self.side = side

    def blocks(self, weights: Sequence[Tensor]) -> Tensor:
        """K_f of all kernels: (count, frequencies, c, c), complex."""
        return kernel_to_blocks(torch.cat([weight.detach() for weight in weights]), self._grid)

    def factor(self, blocks: Tensor) -> Factors:
        """LU of all blocks, and the inverses from it."""
        return Factors(*TorusMap(blocks, self._grid, (1, 1), (1, 1)).factor())

    def distinct(self) -> Tensor:
        """The frequencies whose blocks are factored; all others are conjugates of these."""
        parts = halves(self._grid, torch.device("cpu"))
        return torch.cat([parts.complex, parts.real])


def log_dets_together() -> Callable[[Sequence[InvertibleConv2d], tuple[int, int]], Tensor]:
    """A function of layers and an image size: the sum of their log-determinants, layers of one shape in one call."""
    log_dets = LogDets()
    return lambda convs, size: log_dets.log_abs_det(convs, kernels(convs), [size] * len(convs))


def without_log_dets(flow: MultiScaleFlow) -> MultiScaleFlow:
    """The flow with 0 in place of its convolutions' log-determinants: what no faster ones could go below."""
    setattr(flow, "_log_abs_det", lambda *_: 0.0)  # noqa: B010  (it is no method of this name to mypy)
    return flow


def log_det_by_factors(conv: InvertibleConv2d, size: Sequence[int]) -> Tensor:
    """The log-determinant, float64, by the solver that would give the inverse."""
    operator = conv.operator(size)
    with torch.no_grad():
        solver, _ = choice.choose(operator.conv.to(torch.float64), operator.options, factored=True)
        return solver.log_volume


@dataclass(frozen=True)
class Taken:
    """What an inverse took, in seconds of the processor, and what it was worth."""

    factors: float
    answer: float
    error: float
    """Of known images."""
    enough: float
    """That was asked for."""

    def time_for(self, answers: int) -> float:
        """Seconds for so many answers."""
        return self.factors + answers * self.answer


def ways(conv: InvertibleConv2d, size: Sequence[int]) -> dict[str, tuple[Plan, Callable[[], Taken]]]:
    """The plan of each way that has one, with the seconds that it foresees, and a call that takes it."""
    operator = conv.operator(size)
    convolution, options = operator.reduced
    found: dict[str, tuple[Plan, Callable[[], Taken]]] = {}
    for way in WAYS:
        plan = way.plan(convolution, options)
        if way.haste or isinstance(plan, str):
            continue
        solver = way.build(convolution, options, 0.0)
        name = solver.name + (" in float64" if way.double and convolution.dtype != torch.float64 else "")
        found[name] = choice.timed(solver, plan), partial(_taken_by, solver, options.tolerance(convolution.dtype))
    return found


def taken_by(operator: ConvOperator) -> tuple[Taken, Plan]:
    """What an operator takes that chooses by itself, failed attempts included; and its plan."""
    start = time.process_time()
    operator.prepare()
    seconds = time.process_time() - start
    taken = _taken_by(operator.solver, operator.options.tolerance(operator.dtype))
    return replace(taken, factors=seconds), operator.plan()


def _taken_by(solver: Solver, enough: float) -> Taken:
    start = time.process_time()
    with exactly(solver.conv.device, keep=True):
        solver.prepare()
        factors = time.process_time() - start
        y = solver.conv.forward(solver.known_images(solver.conv.x_shape, seed=3)[:1].to(solver.conv.dtype))
        start = time.process_time()
        solver.pseudo_inverse(y)
        answer = time.process_time() - start
        return Taken(factors, answer, solver.trial(solver.outputs), enough)
