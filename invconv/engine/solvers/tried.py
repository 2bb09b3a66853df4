"""A solver whose known images decide whether it is taken, and what it is worth."""

from __future__ import annotations

import math

import torch

from invconv.engine.solvers.base import Solver
from invconv.threads import cached_property


class Tried(Solver):
    """A solver that is tried before it is taken: what growth its rounding errors have is seen, not foreseen."""

    @property
    def has_factors(self) -> bool:
        """Whether there is anything to try."""
        return True

    @cached_property
    def trial_error(self) -> float:
        """Relative error of known images, their outputs in the precision of the factors; infinite without factors."""
        error = self.trial(self.conv.dtype) if self.has_factors else math.inf
        return error if math.isfinite(error) else math.inf

    def keeps(self, error: float) -> bool:
        """Whether known images come back with less than `error`."""
        return self.trial_error < error

    def prepare(self) -> None:
        """Factor now; where the caller's outputs are rounded to fewer digits, find out what that costs."""
        self.error = self.trial_error
        if self.outputs != self.conv.dtype and math.isfinite(self.error):
            self.error = max(self.error, self.trial(self.outputs))

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about: seen on known images."""
        return max(1.0, self.trial_error / torch.finfo(self.conv.dtype).eps)
