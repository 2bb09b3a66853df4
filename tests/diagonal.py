"""A solver that is no part of the library: kernels of one tap for each channel, whose matrix is diagonal."""

from __future__ import annotations

import math

from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.cost import CALL, Cost
from invconv.engine.solvers.base import Solver
from invconv.options import Options
from invconv.report import Plan


class Diagonal(Solver):
    name = "diagonal"

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        if math.prod(conv.geometry.kernel_size) > 1 or conv.block_shape != (1, 1) or options.damping:
            return "its matrix is not diagonal"
        return Plan(cls.name, 0, 2 * conv.weight.nbytes, "each output is a multiple of one input")

    def cost(self) -> Cost:
        return Cost(CALL, CALL)

    def prepare(self) -> None:
        """Nothing has to be factored."""

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return y / self.conv.weight.view(-1, *(1,) * (y.dim() - 2))

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        return self.pseudo_inverse(x)

    @property
    def log_volume(self) -> Tensor:
        return math.prod(self.conv.input_size) * self.conv.weight.double().abs().log().sum()

    @property
    def log_volume_gradient(self) -> Tensor:
        return math.prod(self.conv.input_size) / self.conv.weight

    @property
    def condition(self) -> float:
        sizes = self.conv.weight.abs()
        return (sizes.max() / sizes.min()).item()

    @property
    def bytes(self) -> int:
        return self.conv.weight.nbytes
