"""Damped layers with borders of any kind, exactly: a torus cut along one axis, and along the other (see `green`).

    r + A x = y,    A'r - d^2 x = b:      of b = 0 the x is (A'A + d^2)^-1 A'y, of y = 0 the r is A (A'A + d^2)^-1 b.

Nothing is squared, and borders may be linked.  Groups of channels of one kernel share one system.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from invconv.engine import cost, memory
from invconv.engine.convolution import Convolution
from invconv.engine.power import largest_eigenvalue
from invconv.engine.ring_size import MOST_UNKNOWNS
from invconv.engine.solvers.one_image import OneImage
from invconv.engine.strip_size import StripSize, cuts_of, plane, turned
from invconv.engine.strips import CutImage, reflections
from invconv.errors import SingularMapError
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

REFINED = 1e-6
"""Relative error in float64 up to which answers are taken.

Motion along a diagonal of 7 pixels, damped by 1e-6, has 1.5e-7; three channels that become two, 5e-4, as they would be
the better for the transposed system.
"""


class Strips(OneImage):
    """A damped layer without stride on images of one or two axes; float64 inside."""

    name = "fft and strips"
    exports = False
    gives_volume = False
    advice = "float64 or more damping"

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for the strips at both ends of the axis that is cut last."""
        geometry = conv.geometry
        if not options.damping:
            return "it is for damped layers"
        if geometry.dims > 2 or any(step != 1 for step in geometry.stride):
            return "it is for images of one or two axes without a stride"
        cuts = cuts_of(plane(conv))
        if isinstance(cuts, str):
            return cuts
        size = _size(conv)
        what = f"its strips of {size.unknowns} unknowns"
        if short := memory.shortage(conv.device, size.bytes, what):
            return short
        if size.unknowns > MOST_UNKNOWNS and options.solver == "auto":
            return f"{what} are more than the {MOST_UNKNOWNS} that are not left to other ways"
        return Plan(cls.name, size.unknowns, size.bytes, "damping bounds it, and its borders are two strips")

    def cost(self) -> cost.Cost:
        """The kernels between columns, the strips factored, and an image sent through twice."""
        return _size(self.conv).cost()

    # -- what is factored --------------------------------------------------------------------------------------------

    @cached_property
    def _turned(self) -> bool:
        """Whether the axes change places before they are cut."""
        return _size(self.conv).conv.input_size != plane(self.conv).input_size

    @cached_property
    def _images(self) -> tuple[list[CutImage], list[int]]:
        """A system for each kernel, and which of them is that of each group."""
        size = _size(self.conv)
        conv, geometry = size.conv, replace(size.conv.geometry, groups=1)
        kernels, of = torch.unique(conv.weight.unflatten(0, (conv.geometry.groups, -1)), dim=0, return_inverse=True)
        one = [Convolution(kernel, geometry, conv.input_size) for kernel in kernels]
        return [CutImage(each, size.cuts, self.options.damping) for each in one], of.tolist()

    def _solve(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """The r and x of the module's head, refined."""
        images, of = self._images
        sides = [self._to_plane(z) for z in (above, below)]
        groups = [[z.unflatten(1, (len(of), -1))[:, g] for z in sides] for g in range(len(of))]
        found = [images[kind].solve(*parts) for kind, parts in zip(of, groups, strict=True)]
        r, x = (torch.cat(part, 1) for part in zip(*found, strict=True))
        back = [z.mT if self._turned else z for z in (r, x)]
        return back[0].reshape(above.shape), back[1].reshape(below.shape)

    def _to_plane(self, z: Tensor) -> Tensor:
        """Images of two axes, as they are cut."""
        z = z.unsqueeze(2) if z.dim() == 3 else z
        return z.mT.contiguous() if self._turned else z

    # -- solutions ---------------------------------------------------------------------------------------------------

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """(A'A + d^2)^-1 A'y."""
        return self._solve(y, y.new_zeros(len(y), *self.conv.x_shape))[1]

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """A (A'A + d^2)^-1 x."""
        return self._solve(x.new_zeros(len(x), *self.conv.y_shape), x)[0]

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A + d^2)^-1 x."""
        return -self._solve(x.new_zeros(len(x), *self.conv.y_shape), x)[1]

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA' + d^2)^-1 y."""
        return self._solve(y, y.new_zeros(len(y), *self.conv.x_shape))[0] / self.options.damping**2

    def damped_correction(self, x: Tensor, rest: Tensor) -> Tensor:
        """What an answer x lacks of the exact one, in one solution."""
        return self._solve(rest, self.options.damping**2 * x)[1]

    # -- what they are worth -----------------------------------------------------------------------------------------

    def keeps(self, error: float) -> bool:
        """Whether the strips are as definite as they ought to be, and known images come back with less than `error`."""
        if any(image.system.failed for image in self._images[0]):
            return False
        refined = self.trial(torch.float64)
        self.error = refined if self.outputs == torch.float64 else self.trial(self.outputs)
        return refined < REFINED and self.error < error

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs, and find out what it is worth."""
        self.error = self.error or self.trial(self.outputs)

    @cached_property
    def condition(self) -> float:
        """That of A on top of d times the identity, from above."""
        known = self.known_images(self.conv.x_shape)[:1]
        largest = largest_eigenvalue(lambda x: self.conv.adjoint(self.conv.forward(x)), known)
        return math.hypot(math.sqrt(largest) / self.options.damping, 1.0)

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow: the condition, infinite where no factors are there."""
        return math.inf if any(image.system.failed for image in self._images[0]) else self.condition

    @property
    def unknowns(self) -> int:
        """Size of the dense system."""
        return _size(self.conv).unknowns

    @property
    def bytes(self) -> int:
        """Memory that the factors hold."""
        return sum(image.bytes for image in self._images[0])

    @property
    def log_volume(self) -> Tensor:
        """Refused: what is factored is the damped layer."""
        raise SingularMapError("a damped layer's strips give no log-determinant: use solver='auto'")

    @property
    def log_volume_gradient(self) -> Tensor:
        """Refused, as the log-volume is."""
        return self.log_volume


def _size(conv: Convolution) -> StripSize:
    """What the strips take, of the two orders in which the axes can be cut, by the one that takes less."""
    there = plane(conv)
    sizes = []
    for way in (there, turned(there)):
        cuts = cuts_of(way)
        assert not isinstance(cuts, str)  # it has a plan
        sizes.append(StripSize(way, cuts, len(reflections(way.weight, way.geometry))))
    return min(sizes, key=lambda size: size.cost().factors)
