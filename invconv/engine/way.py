"""A row of the table of ways: a solver, its precision, and when its answer is taken."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from invconv.engine.convolution import Convolution
from invconv.engine.foresight import LOOK
from invconv.engine.solvers.base import Solver
from invconv.options import Options
from invconv.report import Plan

HOPELESS = 1e-3
"""Relative error at which a way is given up for another."""


@dataclass(frozen=True)
class Way:
    """A row of the table: a solver, and when its answer is taken."""

    solver: type[Solver]
    """The class whose `plan` is asked."""
    double: bool = True
    """Whether the solver factors in float64, whatever the dtype of the weight."""
    error: float | None = HOPELESS
    """Relative error at which the solver is given up; None for the tolerance that is asked for."""
    haste: bool = False
    """Whether it is tried because it is soon, or not at all."""
    last: bool = False
    """Whether it is tried after all others, and taken whatever it is worth."""

    def plan(self, conv: Convolution, options: Options) -> Plan | str:
        """What this way would take, or why it is none for this map."""
        if self.error is None and self.double is False and conv.dtype == torch.float64:
            return "float64 has a row of its own"
        return self.solver.plan(conv, options)

    def build(self, conv: Convolution, options: Options, lost: float) -> Solver:
        """The solver, in its precision; nothing is computed yet."""
        if self.haste:
            most = None if options.damping else 2 * LOOK  # damping bounds them itself
            options = replace(options, max_iter=options.max_iter or most)
        return self.solver(conv.to(torch.float64) if self.double else conv, options, conv.dtype, lost)

    def limit(self, conv: Convolution, options: Options) -> float:
        """Relative error at which this way is given up."""
        return options.tolerance(conv.dtype) if self.error is None else self.error
