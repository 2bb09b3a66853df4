"""Real borders of square layers: D = C^-1 on a slightly larger torus, and a small dense system on the ring.

An output y, extended by some y_Q outside its window, comes from an image if its borders are right: N D (y + y_Q) = 0
(see `windows`).  With M = N D_Q, the ring, which has the border's places times the channels unknowns,

    A^-1 y = crop D (y - M^-1 N D y),        log |det A| = log |det C| + log |det M|.

M is read off from the inverse FFT of the blocks D_f, factored once, and serves the transposed solve as well.

Where borders are zero, what wraps round the torus never matters, so it may be multiplied by any number.  That is done
by a tilt: with x_i = r^i x'_i and y_j = r^(stride j) y'_j the layer becomes one of kernel r^(place of the tap) K.  It
moves the frequencies off the unit circle, where the kernel may be singular, and it undoes the winding that makes a
layer exponentially ill-conditioned: [1, 1.5] becomes [1, 0.75].
"""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from invconv.engine.blocks import TorusMap
from invconv.engine.border import BorderSystem, factor_border
from invconv.engine.convolution import Convolution
from invconv.engine.cost import Cost
from invconv.engine.lines import Side
from invconv.engine.power import largest_eigenvalue
from invconv.engine.ring_size import plan_system, system_cost, unknowns_of_inputs
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.tilt import Tilt
from invconv.engine.windows import Places, crop, embed, outside_input, outside_output, smallest_torus
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

TORI = 3
"""Sizes of the torus that are tried: a kernel may be singular at a frequency of one and not of the next."""

BENIGN = 1e4
"""Growth of rounding errors at which no other torus is tried."""

REFINE_ABOVE = 8
"""Residual, in units of rounding of the caller's outputs, below which a step of refinement would not pay."""

MILD_TILTS = (2.0, 0.5)
"""What a mild tilt multiplies by once round the torus, tried where larger tori do not help."""


class OnTorus(Solver):
    """A solver that inverts the torus and then mends what it did to the borders by a dense system."""

    @property
    @abstractmethod
    def torus(self) -> Circulant:
        """C, on the torus that was chosen."""

    @property
    @abstractmethod
    def border(self) -> BorderSystem:
        """The dense system, factored."""

    def keeps(self, error: float) -> bool:
        """Whether rounding errors stay below `error`, and no singular value can lie below rtol."""
        eps, rtol = torch.finfo(self.conv.dtype).eps, self.options.rtol
        # The torus first: where it is bad enough, the ring need not be factored.
        if not self.torus_growth * eps < error:
            return False
        return self.growth * eps < error and (rtol is None or self.growth * rtol < 1)

    @property
    def torus_growth(self) -> float:
        """By what factor rounding errors grow on the torus alone, about."""
        return self.torus.growth

    @property
    def condition(self) -> float:
        """The condition number, estimated from below; with damping, that of A on top of d times the identity."""
        conv, damping = self.conv, self.options.damping
        images = self.known_images(conv.x_shape).to(conv.dtype)
        there = largest_eigenvalue(lambda x: conv.adjoint(conv.forward(x)), images) + damping**2
        condition = math.sqrt(there * largest_eigenvalue(self.gram_inverse, images))
        return condition if condition == condition else math.inf

    @property
    def unknowns(self) -> int:
        """Size of the dense system, for each group of channels."""
        return self.border.unknowns


class Ring(OnTorus):
    """A layer with as many outputs as inputs and any borders.

    Args:
        conv: the map, in the precision of the factors.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one.
        tilt: the tilt to take; None for the best of a few.
    """

    name = "fft and ring"
    joins = True

    def __init__(
        self,
        conv: Convolution,
        options: Options = DEFAULTS,
        outputs: torch.dtype | None = None,
        lost: float = 0.0,
        *,
        tilt: Tilt | None = None,
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.refine = True
        self._tilt_asked_for = tilt

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for a dense system of the places of the torus outside the image."""
        if options.damping:
            return "it does not take damping"
        (rows, columns), (outputs, inputs) = conv.block_shape, conv.shape
        if rows != columns or outputs != inputs:
            return "the layer or its torus is not square"
        return plan_system(cls.name, conv, options, unknowns_of_inputs(conv))

    def cost(self) -> Cost:
        """The torus, and the dense system of its places outside the image."""
        return system_cost(self.conv, unknowns_of_inputs(self.conv))

    # -- torus and ring --------------------------------------------------------------------------------------------

    @cached_property
    def _torus_and_tilt(self) -> tuple[Circulant, Tilt]:
        """The best conditioned of a few tori, and its tilt."""
        geometry = self.conv.geometry
        tilt = self._tilt_asked_for or Tilt.level(geometry.dims)
        torus = best_torus(tilt.tilted(self.conv))
        if self._tilt_asked_for is None and geometry.padding_mode == "zeros" and torus.growth > BENIGN:
            size = smallest_torus(geometry, self.conv.input_size)
            tilts = [Tilt.once_round(factor, size) for factor in MILD_TILTS]
            tori = [Circulant(mild.tilted(self.conv).on(size)) for mild in tilts]
            torus, tilt = min(zip([torus, *tori], [tilt, *tilts], strict=True), key=lambda pair: pair[0].growth)
        torus.drop_blocks()
        return torus, tilt

    @property
    def torus(self) -> Circulant:
        """C, tilted, on the torus that was chosen."""
        return self._torus_and_tilt[0]

    @property
    def tilt(self) -> Tilt:
        """The tilt with which C was put on its torus."""
        return self._torus_and_tilt[1]

    @cached_property
    def _scale_of_inputs(self) -> Tensor | float:
        """r^i for each place of an input image."""
        return self.tilt.of_inputs(self.conv)

    @cached_property
    def _scale_of_outputs(self) -> Tensor | float:
        """r^(stride j) for each place of an output image."""
        return self.tilt.of_outputs(self.conv)

    @property
    def _inverse_of_torus(self) -> TorusMap:
        """D = C^-1, as a map from image to image."""
        return self.torus.inverse_map(self.torus.full_inverse)

    @property
    def _outside_input(self) -> Places:
        """The places of the torus outside the image, which N reads."""
        return outside_input(self.torus.grid, self.conv.input_size, self.conv.device)

    @property
    def _outside_output(self) -> Places:
        """The places of the torus outside the output, which hold y_Q."""
        return outside_output(self.torus.grid, self.conv.input_size, self.conv.device)

    @cached_property
    def border(self) -> BorderSystem:
        """M = N D_Q, factored."""
        columns, rows = self.conv.block_shape[0], self.conv.weight.shape[1]
        sides = [Side(self._outside_input, rows, True)], [Side(self._outside_output, columns, False)]
        return factor_border([[self.torus.full_inverse]], *sides, self.torus.grid)

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about; infinite where nothing is left.

        The root mean square gains of M^-1 (taken from random vectors) and of D, multiplied, come on top of the torus.
        """
        growth = self.torus.growth * (1 + self.border.gain * self.torus.inverse_gain)
        return growth if growth == growth else math.inf

    # -- the inverse -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Factor now, and find out on known images what the inverse is worth and whether a step of refinement pays.

        The outputs of the images are rounded as those of the caller are.
        """
        x = self.known_images(self.conv.x_shape, seed=1).to(self.conv.weight)
        y = self.as_told(self.conv.forward(x), self.outputs).to(x)
        x_hat = self._solve(y)
        residual = y - self.conv.forward(x_hat)
        refine = False
        if not residual.norm() < REFINE_ABOVE * torch.finfo(self.outputs).eps * y.norm():
            refined = x_hat + self._solve(residual)
            refine = ((y - self.conv.forward(refined)).norm() < 0.5 * residual.norm()).item()
            x_hat = refined if refine else x_hat
        self.refine = refine
        self.error = ((x_hat - x).norm() / x.norm()).item()

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y."""
        x = self._solve(y)
        return x + self._solve(y - self.conv.forward(x)) if self.refine else x

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x."""
        y = self._solve_adjoint(x)
        return y + self._solve_adjoint(x - self.conv.adjoint(y)) if self.refine else y

    def _solve(self, y: Tensor) -> Tensor:
        """A^-1 y, not refined."""
        inverse = self._inverse_of_torus
        y = embed(y / self._scale_of_outputs, self.torus.grid.size)
        (outside,) = self.border.solve([self._outside_input.read(inverse.map(y), self.conv.geometry.groups)])
        y = y - self._outside_output.write(outside)
        return crop(inverse.map(y), self.conv.input_size) * self._scale_of_inputs

    def _solve_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x, not refined."""
        inverse = self._inverse_of_torus
        x = embed(x * self._scale_of_inputs, self.torus.grid.input_size)
        outside = self._outside_output.read(inverse.adjoint(x), self.conv.geometry.groups)
        (outside,) = self.border.solve_adjoint([outside])
        y = crop(inverse.adjoint(x - self._outside_input.write(outside)), self.conv.output_size)
        return y / self._scale_of_outputs

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A|, float64."""
        return self.torus.full_log_volume + self.border.log_det + self.tilt.log_det(self.conv)

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K, from tr(A^-1 dA) = tr((D - D_Q M^-1 N D) dC)."""
        inverse = self.torus.full_inverse
        ((ring,),) = self.border.log_det_gradient()
        inside = inverse - inverse @ (ring.mH.to(inverse.dtype) @ inverse)
        gradient = self.torus.map_of(inside.mH).kernel_gradient(self.conv.weight.shape)
        return gradient * self.tilt.of_taps(self.conv)

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        return self.torus.bytes + (self.border.bytes if "border" in self.__dict__ else 0)


def best_torus(conv: Convolution) -> Circulant:
    """The best conditioned of the smallest tori of a layer."""
    least = smallest_torus(conv.geometry, conv.input_size)
    tori: list[Circulant] = []
    for more in range(TORI):
        size = tuple(n + more * s for n, s in zip(least, conv.geometry.stride, strict=True))
        tori.append(Circulant(conv.on(size)))
        if tori[-1].growth < BENIGN:
            break
    return min(tori, key=lambda torus: torus.growth)
