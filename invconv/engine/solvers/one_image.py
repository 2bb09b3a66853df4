"""What one image tells of a damped solver, where images are large and each of them takes long."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine.solvers.base import Solver
from invconv.errors import unsaid

SMALL = 2**10
"""Entries of an image up to which several are tried.  Speed only."""


class OneImage(Solver):
    """A solver that is tried by one image, unless images are small."""

    def known_images(self, side: tuple[int, ...], seed: int = 0) -> Tensor:
        """One, since each takes long, unless it is small."""
        return super().known_images(side, seed)[: None if math.prod(side) <= SMALL else 1]

    def trial(self, outputs: torch.dtype) -> float:
        """The error of `round_trip`; of a large damped map for one y, half of which no x explains."""
        if not self.options.damping or math.prod(self.conv.x_shape) <= SMALL:
            return super().trial(outputs)
        with unsaid():
            y, noise = self.conv.forward(self.known_images(self.conv.x_shape)), self.known_images(self.conv.y_shape, 2)
            y += noise * (y.norm() / noise.norm())
            x = self.double_inverse(self.as_told(y, outputs)).to(outputs).double()
            return float(self.damped_correction(x, y - self.conv.forward(x)).norm() / x.norm())
