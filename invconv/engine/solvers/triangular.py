"""Kernels that read pixels in one order, with borders of zeros: substitution, and a diagonal for a determinant.

    log |det A| = places * log |det K_0|,      x from the last pixel to the first (see `substitution`),

K_0 the tap of its own pixel, however ill-conditioned A is.  The gradient by the taps of earlier pixels, which are zero,
is no such matter.  A steep tilt (see `tilt`) makes all taps but K_0 as small as is wanted, and a ring of it exact.
Masked kernels are such, whoever masked them: see `raster`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import eliminate, judge
from invconv.engine.power import largest_eigenvalue
from invconv.engine.raster import Raster, diagonal_of, raster_of, taps_of
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.tried import Tried
from invconv.engine.substitution import Substitution
from invconv.engine.tilt import Tilt
from invconv.errors import OutOfMemoryError
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

STEEP = 0.75
"""What the taps but K_0 may be together, in units of K_0, after the tilt.  Speed only: any below 1 is exact."""

STEP = 0.95
"""Ratio of one tilt and the next that is tried.  Speed only."""


class Triangular(Tried):
    """A solved by substitution; in float64 each solution is refined once."""

    name = "triangular"
    explicit = True

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for blocks and their inverses, and for known images that are sent through."""
        raster = raster_of(conv)
        if raster is None:
            return "its kernel reads pixels in no one order"
        if options.damping or options.rtol is not None:
            return "it takes neither damping nor rtol"
        if not eliminate(diagonal_of(conv, raster)).error.sum().isfinite():
            return "the tap of its own pixel is singular"
        needed = sum(substitution.entries for substitution in cls(conv, options).substitutions)
        needed = 8 * needed + 2 * known.bytes_for(conv)
        short = memory.shortage(conv.device, needed, "its blocks")
        return short or Plan(cls.name, 0, needed, "its kernel reads pixels in one order")

    def cost(self) -> cost.Cost:
        """The inverses of blocks, and for an answer a product for each wave and neighbour."""
        conv, (there, back) = self.conv, self.substitutions
        solution = cost.CALL / 2 + there.operations(1)
        answer = solution if conv.dtype == torch.float32 else 2 * solution + cost.convolution(conv)
        return cost.Cost(5 * cost.CALL + there.factor_operations + back.factor_operations + 6 * answer, answer)

    @cached_property
    def raster(self) -> Raster:
        """The order in which pixels are read."""
        raster = raster_of(self.conv)
        assert raster is not None
        return raster

    @cached_property
    def substitutions(self) -> tuple[Substitution, Substitution]:
        """Of A, and of A', whose pixels are turned round."""
        raster = self.raster
        size, own = tuple(self.conv.input_size[d] for d in raster.axes), (0,) * len(raster.axes)
        back = [raster.signs[d] < 0 for d in raster.axes]
        used = {
            place: tap
            for place, tap in zip(raster.ordered, taps_of(self.conv), strict=True)
            if place == own or tap.any()
        }
        turned = {place: tap.mT for place, tap in used.items()}
        there = Substitution(used, size, raster.axes, back)
        return there, Substitution(turned, size, raster.axes, [not is_back for is_back in back])

    def _solve(self, y: Tensor, turned: bool) -> Tensor:
        """A^-1 y, or (A')^-1 y."""
        return self.substitutions[turned].solve(y)

    # -- the pseudo-inverse ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Factor both directions now, and find out what they are worth."""
        for substitution in self.substitutions:
            substitution.prepare()
        super().prepare()

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y."""
        x = self._solve(y, False)
        return x if self.conv.dtype == torch.float32 else x + self._solve(y - self.conv.forward(x), False)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x."""
        y = self._solve(x, True)
        return y if self.conv.dtype == torch.float32 else y + self._solve(x - self.conv.adjoint(y), True)

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def condition(self) -> float:
        """|A| |A^-1|, each by the power method, from below."""
        conv, images = self.conv, self.known_images(self.conv.x_shape).to(self.conv.dtype)
        norm = largest_eigenvalue(lambda x: conv.adjoint(conv.forward(x)), images)
        inverse = largest_eigenvalue(lambda x: self._solve(self._solve(x, True), False), images)
        return math.sqrt(norm) * math.sqrt(inverse)

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A|, float64."""
        diagonal = eliminate(diagonal_of(self.conv, self.raster))
        places = math.prod(self.conv.output_size)
        error = places * diagonal.error.sum().item()
        judge(error, "the layer is triangular, and the tap of its own pixel singular, or nearly so", self.outputs)
        volume: Tensor = places * diagonal.log_volume.sum()
        return volume

    @property
    def tilt(self) -> Tilt:
        """The gentlest tilt, or nearly so, that is steep enough: ratios r^weight, r at most 1."""
        inverse = eliminate(diagonal_of(self.conv, self.raster)).inverse
        norms = torch.linalg.matrix_norm(inverse @ taps_of(self.conv).double()).amax(1).tolist()
        pairs = [(norm, n) for norm, n in zip(norms, self.raster.later, strict=True) if n and norm]
        r = 1.0
        while sum(norm * r**n for norm, n in pairs) > STEEP:
            r *= STEP
        return Tilt(tuple(r**w for w in self.raster.weights))

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K."""
        self.log_volume  # noqa: B018  (which refuses what is singular)
        conv = self.conv.to(torch.float64)
        plan = Ring.plan(conv, self.options)
        if isinstance(plan, str):
            raise OutOfMemoryError(f"the gradient of the log-determinant has no way: {plan}")
        return Ring(conv, self.options, tilt=self.tilt).log_volume_gradient

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        held = [t for substitution in self.__dict__.get("substitutions", ()) for t in substitution.held()]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}.values())
