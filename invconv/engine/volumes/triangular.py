"""The determinant of a layer that reads its pixels in one order: block-triangular, its diagonal is all it takes.

With borders of zeros and a kernel that reads, of its own pixel and the later ones in some raster order, nothing else,

    log |det A| = places * log |det K_0|,

K_0 the tap of its own pixel, however ill-conditioned A is.  The gradient by the taps of earlier pixels, which are zero,
is no such matter.  A steep tilt (see `tilt`) makes all taps but K_0 as small as is wanted, and a ring of it exact.
"""

from __future__ import annotations

import math
from itertools import permutations, product

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.elimination import eliminate, judge
from invconv.engine.solvers.base import Solver, Volume
from invconv.engine.solvers.ring import Ring
from invconv.engine.tilt import Tilt
from invconv.errors import OutOfMemoryError
from invconv.threads import cached_property

STEEP = 0.25
"""What the taps but K_0 may be together, in units of K_0, after the tilt.  Speed only: any below 1 is exact."""


def triangular(solver: Solver) -> Triangular | None:
    """The determinant by its diagonal; None where the layer reads pixels in no one order."""
    conv = solver.conv
    geometry = conv.geometry
    same = conv.output_size == conv.input_size and conv.out_channels == conv.in_channels
    if not same or geometry.padding_mode != "zeros" or any(s != 1 for s in geometry.stride):
        return None
    places = [place for place, _ in geometry.taps()]
    used = conv.weight.flatten(2).ne(0).any(1).any(0).tolist()
    read = [place for place, is_used in zip(places, used, strict=True) if is_used]
    reach = [max((abs(place[d]) for place in read), default=0) for d in range(geometry.dims)]
    for order in permutations(range(geometry.dims)):
        # A step along an axis counts more than all that the axes after it can take back.
        steps, total = [0] * geometry.dims, 0
        for d in reversed(order):
            steps[d] = total + 1
            total += steps[d] * reach[d]
        for signs in product((1, -1), repeat=geometry.dims):
            weights = [sign * step for sign, step in zip(signs, steps, strict=True)]
            later = [sum(w * a for w, a in zip(weights, place, strict=True)) for place in places]
            if all(n >= 0 for n, is_used in zip(later, used, strict=True) if is_used):
                return Triangular(solver, weights, later)
    return None


class Triangular(Volume):
    """places * log |det K_0|, and its gradient by a steeply tilted ring.

    Args:
        solver: of the layer.
        weights: how far a step along each axis leads in the order.
        later: how far each tap is from its own pixel in the order.
    """

    def __init__(self, solver: Solver, weights: list[int], later: list[int]) -> None:
        self.conv: Convolution = solver.conv.to(torch.float64)
        self.options, self.outputs = solver.options, solver.outputs
        self.weights, self.later = weights, later

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A|, float64."""
        diagonal = eliminate(self._taps[self.later.index(0)] if 0 in self.later else torch.zeros_like(self._taps[0]))
        places = math.prod(self.conv.output_size)
        error = places * diagonal.error.sum().item()
        judge(error, "the layer is triangular, and the tap of its own pixel singular, or nearly so", self.outputs)
        volume: Tensor = places * diagonal.log_volume.sum()
        return volume

    @property
    def _taps(self) -> Tensor:
        """The kernel: (taps, groups, outputs, inputs)."""
        taps: Tensor = self.conv.weight.flatten(2).permute(2, 0, 1).unflatten(1, (self.conv.geometry.groups, -1))
        return taps

    @property
    def tilt(self) -> Tilt:
        """The gentlest tilt that is steep enough: ratios r^weight, r at most 1."""
        taps = self._taps
        inverse = eliminate(taps[self.later.index(0)]).inverse
        norms = torch.linalg.matrix_norm(inverse @ taps).amax(1).tolist()
        pairs = [(norm, n) for norm, n in zip(norms, self.later, strict=True) if n and norm]
        r = min((min(1.0, STEEP / (len(pairs) * norm)) ** (1 / n) for norm, n in pairs), default=1.0)
        return Tilt(tuple(r**w for w in self.weights))

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K."""
        self.log_volume  # noqa: B018  (which refuses what is singular)
        plan = Ring.plan(self.conv, self.options)
        if isinstance(plan, str):
            raise OutOfMemoryError(f"the gradient of the log-determinant has no way: {plan}")
        return Ring(self.conv, self.options, tilt=self.tilt).log_volume_gradient
