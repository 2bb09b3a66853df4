"""Real borders of rectangular layers: (A'A + d^2)^-1 exactly, by the torus and a symmetric dense system on the ring.

For tall A = R C P, with W = (C'C + d^2)^-1, the x of (A'A + d^2) x = b is what is inside z, where the borders are held
(N z = 0, see `windows`) and the outputs Q that A does not have may take any values t:

    z = W (b + C_Q' t + N' m),      [ I - C_Q W C_Q'   -C_Q W N' ] [ t ]   [ C_Q W b ]
                                    [ -N W C_Q'        -N W N'   ] [ m ] = [ N W b   ]

and log det(A'A) = log det(C'C) + log |det ring|.  A wide A with borders of zeros is the transpose of a tall one, in
which inputs and outputs change places.  Everything is computed in float64, because W has the condition number squared,
and refined with the convolution itself until it is as exact as A^+ can be.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import cost
from invconv.engine.blocks import Factors, TorusMap, factor, factor_damped
from invconv.engine.border import BorderSystem, factor_border
from invconv.engine.convolution import Convolution
from invconv.engine.lines import Side
from invconv.engine.ring_size import plan_system, system_cost, unknowns_of_inputs, unknowns_of_outputs
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.ring import OnTorus, best_torus
from invconv.engine.spectrum import multiplicity
from invconv.engine.windows import Places, crop, embed, outside_input, outside_output, smallest_torus
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

REFINEMENTS = 4
"""At most so many steps of refinement; each costs a convolution, its transpose and a solution."""

ENOUGH = 0.1
"""Size of the next step of refinement, in roundings of the caller's outputs, at which it is not taken.  Speed only."""

SYMMETRIC = 1.5
"""What the system of both sides takes, in units of that of one with as many unknowns.  Speed only."""

REFINED = 1e-9
"""Relative error with which known images come back in float64 where refinement has made up for a bad ring."""


class Gram(OnTorus):
    """A rectangular or damped layer, with borders of any kind if tall, of zeros if wide.

    Args:
        conv: the map, in float64.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one.
    """

    name = "fft and symmetric ring"
    exports = False

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.damping = options.damping
        self.refine = True

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for a symmetric dense system of the places of the torus outside the image and outside the output."""
        (rows, columns), (outputs, inputs) = conv.block_shape, conv.shape
        tall, wide = rows >= columns and outputs >= inputs, rows <= columns and outputs <= inputs
        if tall and wide and not options.damping:
            return "it would square the condition of a square layer"
        if conv.geometry.links_borders and (options.damping or not tall):
            return f"{conv.geometry.padding_mode} borders need a tall layer without damping"
        if not (tall or wide or options.damping):
            return "the layer is tall and its torus wide, or the reverse"
        more = 24 * conv.geometry.groups * _entries_of_larger_blocks(conv)
        return plan_system(cls.name, conv, options, unknowns_of_inputs(conv) + unknowns_of_outputs(conv), more)

    def cost(self) -> cost.Cost:
        """The torus, its products on the larger side, and the dense system of the places outside both windows."""
        conv, groups = self.conv, self.conv.geometry.groups
        system = system_cost(conv, unknowns_of_inputs(conv) + unknowns_of_outputs(conv))
        products = 8 * cost.BLOCKS * min(conv.block_shape) + 40 * cost.TRANSFORM
        factors = SYMMETRIC * (system.factors + products * groups * _entries_of_larger_blocks(conv))
        if self.damping:
            factors += 12 * system.answer + 3 * cost.torus(conv, smallest_torus(conv.geometry, conv.input_size)).factors
        return cost.Cost(factors, (1 + REFINEMENTS / 2) * system.answer)

    @cached_property
    def tall(self) -> bool:
        """Whether A'A is the Gram matrix that is inverted, rather than AA'; where A is square, C decides."""
        (rows, columns), (outputs, inputs) = self.conv.shape, self.conv.block_shape
        return rows > columns or (rows == columns and outputs >= inputs)

    # -- torus and ring: S is C, or C' if A is wide ----------------------------------------------------------------

    @cached_property
    def torus(self) -> Circulant:
        """C on the best conditioned of the smallest tori."""
        return best_torus(self.conv)

    @cached_property
    def _constrained(self) -> Places:
        """The places outside the side that is solved for, where the borders are held."""
        side = outside_input if self.tall else outside_output
        return side(self.torus.grid, self.conv.input_size, self.conv.device)

    @cached_property
    def _unconstrained(self) -> Places:
        """The places outside the other side, which may take any values."""
        side = outside_output if self.tall else outside_input
        return side(self.torus.grid, self.conv.input_size, self.conv.device)

    @cached_property
    def _torus_blocks(self) -> Tensor:
        """S, a block at each frequency."""
        return self.torus.blocks if self.tall else self.torus.blocks.mH.resolve_conj()

    @cached_property
    def _factors(self) -> Factors:
        """Factors of S stacked on d times the identity."""
        blocks = self._torus_blocks
        return factor_damped(blocks, self.damping) if self.damping else factor(blocks)

    @cached_property
    def _torus_gram_inverse(self) -> Tensor:
        """W = (S'S + d^2)^-1, a block at each frequency."""
        return self._factors.inverse @ self._factors.inverse.mH

    @property
    def _torus_pseudo_inverse(self) -> Tensor:
        """W S', a block at each frequency."""
        return self._factors.inverse[..., : self._torus_blocks.shape[-2]]

    @cached_property
    def border(self) -> BorderSystem:
        """The symmetric system of the places outside both windows, factored."""
        s, b, w = self._torus_blocks, self._torus_pseudo_inverse, self._torus_gram_inverse
        channels = s.shape[-2] // self._unconstrained.phases, s.shape[-1] // self._constrained.phases
        rows, columns = (
            [
                Side(places, count, by_channel)
                for places, count in zip((self._unconstrained, self._constrained), channels, strict=True)
            ]
            for by_channel in (True, False)
        )
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        # I - S B is a projection, or zero: on the lines there may be nothing left of it but rounding.
        scale = 1.0 if self._unconstrained.lines else 0.0
        return factor_border([[identity - s @ b, -b.mH], [-b, -w]], rows, columns, self.torus.grid, scale)

    @cached_property
    def growth(self) -> float:
        """By what factor rounding errors grow, about, in (A'A + d^2)^-1: the condition number squared."""
        w = self._torus_gram_inverse
        norms = torch.linalg.matrix_norm(w).max().item() / math.sqrt(w.shape[-1])
        scale = self.torus.largest_norm.max().item() ** 2 / min(self._torus_blocks.shape[-2:]) + self.damping**2
        ring = self.border.gain
        growth = norms * scale * (1 + ring * (1 + norms))
        return growth if growth == growth else math.inf

    # -- solutions ---------------------------------------------------------------------------------------------------

    def _multiply(self, blocks: Tensor, x: Tensor, a: Places, b: Places) -> Tensor:
        """The product with these blocks: from an image whose places are as those of b to one as those of a."""
        return TorusMap(blocks, self.torus.grid, b.stride, a.stride).map(x)

    def _solve_once(self, right: Tensor) -> Tensor:
        """(A'A + d^2)^-1 b, or (AA' + d^2)^-1 b if A is wide."""
        constrained, free, groups = self._constrained, self._unconstrained, self.conv.geometry.groups
        size = right.shape[2:]
        b = embed(right, tuple(m * s for m, s in zip(constrained.size, constrained.stride, strict=True)))
        s, w = self._torus_blocks, self._torus_gram_inverse
        z = self._multiply(w, b, constrained, constrained)
        parts = [free.read(self._multiply(s, z, free, constrained), groups), constrained.read(z, groups)]
        t, m = self.border.solve(parts)
        b = b + constrained.write(m) + self._multiply(s.mH, free.write(t), constrained, free)
        return crop(self._multiply(w, b, constrained, constrained), size)

    def _gram(self, x: Tensor) -> Tensor:
        """(A'A + d^2) x, or (AA' + d^2) x if A is wide, with the convolution itself."""
        return (
            self.conv.adjoint(self.conv.forward(x)) if self.tall else self.conv.forward(self.conv.adjoint(x))
        ) + self.damping**2 * x

    def _solve(self, right: Tensor) -> Tensor:
        """(A'A + d^2)^-1 b, or (AA' + d^2)^-1 b if A is wide, refined until the residual no longer halves."""
        x = self._solve_once(right)
        if not self.refine:
            return x
        residual = right - self._gram(x)
        for _ in range(REFINEMENTS):
            better = x + self._solve_once(residual)
            left = right - self._gram(better)
            if not left.norm() < 0.5 * residual.norm():
                break
            x, residual = better, left
        return x

    def keeps(self, error: float) -> bool:
        """Whether rounding errors stay below `error`; of a damped map, after refinement, on known images.

        `growth` is a bound, the condition to the fourth power where the ring is as bad as the torus: a disk out of
        focus, damped by 1e-3, comes back to 1e-14 where the bound lets 1e-2 through.
        """
        if super().keeps(error):
            return True
        eps = torch.finfo(self.conv.dtype).eps
        if not self.damping or self.options.rtol is not None or not self.torus_growth * eps < error:
            return False
        return self.trial(torch.float64) < REFINED

    def prepare(self) -> None:
        """Factor now, and find out on known images what the inverse is worth."""
        self.error = self.trial(self.outputs)

    def _least_squares(self, y: Tensor) -> Tensor:
        """The x that minimises |A x - y|^2 + |d x|^2, of |A' x - y|^2 + |d x|^2 if A is wide, refined.

        A'(y - A x) loses fewer digits than A'y - A'A x: the error is that of A^+, not of (A'A)^-1.
        """
        there, back = (self.conv.forward, self.conv.adjoint) if self.tall else (self.conv.adjoint, self.conv.forward)
        x = last = self._solve_once(back(y))
        enough = ENOUGH * torch.finfo(self.outputs).eps
        for _ in range(REFINEMENTS):
            step = self._solve_once(back(y - there(x)) - self.damping**2 * x)
            if not step.norm() < 0.5 * last.norm():
                break
            x = x + step
            if not step.norm() ** 2 > enough * x.norm() * last.norm():  # what the next step would be
                break
            last = step
        return x

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        return self._least_squares(y) if self.tall else self.conv.adjoint(self._solve(y))

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        return self.conv.forward(self._solve(x)) if self.tall else self._least_squares(x)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        return self._solve(x) if self.tall else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        return super().dual_gram_inverse(y) if self.tall else self._solve(y)

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA', float64; without damping."""
        torus = (self._factors.log_volume * multiplicity(self.torus.grid, self.conv.device)).sum()
        return torus + 0.5 * self.border.log_det

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, from tr(A^+ dA)."""
        parts = self.border.log_det_gradient()
        s, b, w = self._torus_blocks, self._torus_pseudo_inverse, self._torus_gram_inverse
        inner, outer = (line[0].to(s.dtype) @ b.mH + line[1].to(s.dtype) @ w for line in parts)
        gradient = b.mH - (inner - s @ (b @ inner)) + b.mH @ outer
        torus = self.torus.map_of(gradient if self.tall else gradient.mH)
        return torus.kernel_gradient(self.conv.weight.shape)

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        tensors: list[Tensor] = [*self.__dict__.get("_factors", ()), self._torus_gram_inverse, self._torus_blocks]
        ring = self.border.bytes if "border" in self.__dict__ else 0
        return self.torus.bytes + ring + sum(t.untyped_storage().nbytes() for t in tensors)


def _entries_of_larger_blocks(conv: Convolution) -> int:
    """Entries of the blocks that join the places outside the window of the side that is not solved for."""
    torus = smallest_torus(conv.geometry, conv.input_size)
    return max(conv.block_shape) ** 2 * math.prod(torus) // math.prod(conv.geometry.stride)
