"""A convolution turned round: B = A',  B x = A' x,  B^+ = (A^+)'.

What gives the inverse of A gives that of its transpose, whose singular values, condition and log-volume are A's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.cost import Cost
from invconv.engine.solvers.base import Solver, Trip
from invconv.engine.solvers.tiles import Tiles
from invconv.geometry import Geometry
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property
from invconv.transposed import TransposedGeometry


def map_of(weight: Tensor, geometry: Geometry, input_size: Sequence[int]) -> Convolution:
    """The map of a weight on images of one size, which is checked: a convolution, or a transposed one."""
    kind = Transposed if isinstance(geometry, TransposedGeometry) else Convolution
    return kind(weight, geometry, geometry.check_input_size(input_size))


class Transposed(Convolution):
    r"""The map B = A' of a transposed convolution.

    Args:
        weight: (in_channels, out_channels/groups, \*kernel_size), which is (outputs, inputs) of A.
        geometry: a `TransposedGeometry`.
        input_size: spatial size of x.
    """

    geometry: TransposedGeometry

    @cached_property
    def untransposed(self) -> Convolution:
        """A."""
        return Convolution(self.weight, self.geometry.convolution, self.output_size)

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.weight.shape[0]

    @property
    def out_channels(self) -> int:
        """Channels of B x."""
        return self.weight.shape[1] * self.geometry.groups

    @property
    def block_shape(self) -> tuple[int, int]:
        """(outputs, inputs) of one group at one place of the torus."""
        outputs, inputs = self.untransposed.block_shape
        return inputs, outputs

    @property
    def blind_spots(self) -> str:
        """Why A has no full rank whatever its weight; empty where its geometry leaves it one."""
        return self.untransposed.blind_spots

    def forward(self, x: Tensor) -> Tensor:
        """B x = A' x. x: (batch, in_channels, *size)."""
        return self.untransposed.adjoint(x)

    def adjoint(self, y: Tensor) -> Tensor:
        """B' y = A y. y: (batch, out_channels, *output_size)."""
        return self.untransposed.forward(y)

    def weight_gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """d <z, B x> / d K = d <A z, x> / d K, summed over the batch. x: an input, z: an output."""
        return self.untransposed.weight_gradient(z, x)

    def to_dense(self) -> Tensor:
        """The explicit matrix of B, of this `shape`."""
        return self.untransposed.to_dense().mT

    def dense_gradient(self, inverse: Tensor) -> Tensor:
        """The gradient by K of tr(M B) = tr(M' A), for a matrix M of the shape of B'."""
        return self.untransposed.dense_gradient(inverse.mT)


def turned(solver: Solver, conv: Convolution) -> Solver:
    """The solver of a map, by that of the convolution which it is, or is the transpose of."""
    return Turned(solver, conv) if isinstance(conv, Transposed) else solver


class Turned(Solver):
    """The solver of B = A' by that of A.

    Args:
        solver: of A.
        conv: B, a `Transposed`, in any precision and scale.
    """

    def __init__(self, solver: Solver, conv: Convolution) -> None:
        super().__init__(replace(conv, weight=solver.conv.weight), solver.options, solver.outputs, solver.lost)
        self.turned = solver
        for name in ("name", "advice", "exports", "gives_volume", "error", "shortfall", "scale"):
            setattr(self, name, getattr(solver, name))

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:  # noqa: ARG003
        """No way of its own."""
        return "it is the solver of another map, turned round"

    def cost(self) -> Cost:
        """What the solver of A takes, about."""
        return self.turned.cost()

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        self.turned.prepare()

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """B^+ y = (A^+)' y."""
        return self.turned.pseudo_inverse_adjoint(y)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(B^+)' x = A^+ x."""
        return self.turned.pseudo_inverse(x)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(B'B)^+ x = (AA')^+ x."""
        return self.turned.dual_gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(BB')^+ y = (A'A)^+ y."""
        return self.turned.gram_inverse(y)

    def residual(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """y - B x for x = B^+ y, and for each image the size of what it is a difference of."""
        return self.turned.unseen(y, x)

    def unseen(self, grad: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
        """g - B' v for v = (B^+)' g, and for each image the size of what it is a difference of."""
        return self.turned.residual(grad, grad_y)

    def round_trip(self, outputs: torch.dtype) -> Trip:
        """What known images tell, of a few tiles where A is inverted by tiles."""
        if not isinstance(self.turned, Tiles) or self.turned.probe is self.turned:
            return super().round_trip(outputs)
        probe = self.turned.probe
        probe.scale, size = self.scale, probe.conv.output_size
        geometry = self.conv.geometry.between(size, probe.conv.input_size)
        return Turned(probe, Transposed(probe.conv.weight, geometry, size)).round_trip(outputs)

    @property
    def rank(self) -> int | None:
        """Singular values that the pseudo-inverse keeps; None where they are not counted."""
        return self.turned.rank

    @property
    def condition(self) -> float:
        """The condition number, as the solver of A gives it."""
        return self.turned.condition

    @property
    def growth(self) -> float:
        """Factor by which rounding errors grow, about."""
        return self.turned.growth

    @property
    def torus_growth(self) -> float:
        """The part of `growth` that the torus has."""
        return self.turned.torus_growth

    @property
    def unknowns(self) -> int:
        """Size of the dense system, for each group of channels; 0 where there is none."""
        return self.turned.unknowns

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        return self.turned.bytes

    @property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA'."""
        return self.turned.log_volume

    @property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K."""
        return self.turned.log_volume_gradient
