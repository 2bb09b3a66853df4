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
from functools import cached_property

import torch
from torch import Tensor

from invconv.engine import convolution
from invconv.engine.border import RingFactors, Side
from invconv.engine.solvers.circulant import Circulant, Factors, factor, multiply
from invconv.engine.solvers.ring import best_torus
from invconv.engine.spectrum import blocks_to_kernel, merge_phases, multiplicity, split_phases
from invconv.engine.windows import (
    Places,
    crop,
    embed,
    outside_input,
    outside_output,
)
from invconv.geometry import Geometry, Size

REFINEMENTS = 4
"""At most so many steps of refinement; each costs a convolution, its transpose and a solution."""


class Gram:
    """A rectangular layer with borders of any kind if tall, of zeros if wide; with the verbs of `Circulant`."""

    solver = "fft and symmetric ring"

    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size, damping: float):
        self.weight = weight
        self.geometry = geometry
        self.input_size = input_size
        self.output_size = geometry.output_size(input_size)
        self.damping = damping
        rows = weight.shape[0] * math.prod(self.output_size)
        columns = weight.shape[1] * geometry.groups * math.prod(input_size)
        outputs, inputs = weight.shape[0], weight.shape[1] * geometry.groups * math.prod(geometry.stride)
        self.error = 0.0
        # Where A is square, C decides.
        self.tall = rows > columns or (rows == columns and outputs >= inputs)
        self.full_rank = self.rank = min(rows, columns)

    # -- torus and ring: S is C, or C' if A is wide ----------------------------------------------------------------

    @cached_property
    def torus(self) -> Circulant:
        """C on the best conditioned of the smallest tori."""
        return best_torus(self.weight, self.geometry, self.input_size)

    @cached_property
    def _held(self) -> Places:
        side = outside_input if self.tall else outside_output
        return side(self.torus.grid, self.input_size, self.weight.device)

    @cached_property
    def _free(self) -> Places:
        side = outside_output if self.tall else outside_input
        return side(self.torus.grid, self.input_size, self.weight.device)

    @cached_property
    def _s(self) -> Tensor:
        return self.torus.blocks if self.tall else self.torus.blocks.mH.resolve_conj()

    @cached_property
    def _factors(self) -> Factors:
        """Of S stacked on d times the identity."""
        if not self.damping:
            return factor(self._s)
        columns = self._s.shape[-1]
        identity = torch.eye(columns, dtype=self._s.dtype, device=self._s.device)
        return factor(torch.cat([self._s, (self.damping * identity).expand(*self._s.shape[:2], columns, columns)], -2))

    @cached_property
    def _w(self) -> Tensor:
        """(S'S + d^2)^-1."""
        return self._factors.inverse @ self._factors.inverse.mH

    @property
    def _b(self) -> Tensor:
        """W S'."""
        return self._factors.inverse[..., : self._s.shape[-2]]

    @cached_property
    def _ring(self) -> RingFactors:
        b = self._b
        channels = self._s.shape[-2] // self._free.phases, self._s.shape[-1] // self._held.phases
        rows, columns = (
            [Side(places, count, by_channel) for places, count in zip((self._free, self._held), channels, strict=True)]
            for by_channel in (True, False)
        )
        identity = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
        return RingFactors([[identity - self._s @ b, -b.mH], [-b, -self._w]], rows, columns, self.torus.grid)

    @cached_property
    def growth(self) -> float:
        """By what factor rounding errors grow, about, in (A'A + d^2)^-1: the condition number squared."""
        norms = torch.linalg.matrix_norm(self._w).max().item() / math.sqrt(self._w.shape[-1])
        scale = self.torus._norm**2 / min(self._s.shape[-2:]) + self.damping**2
        ring = self._ring.gain
        growth = norms * scale * (1 + ring * (1 + norms))
        return growth if growth == growth else math.inf

    # -- solutions ---------------------------------------------------------------------------------------------------

    def _multiply(self, blocks: Tensor, x: Tensor, a: Places, b: Places) -> Tensor:
        """The map of these blocks, from images as those of b to images as those of a."""
        return merge_phases(multiply(blocks, split_phases(x, b.stride), self.torus.grid), a.stride)

    def _solve_once(self, right: Tensor) -> Tensor:
        """(A'A + d^2)^-1 b, or (AA' + d^2)^-1 b if A is wide."""
        held, free, groups = self._held, self._free, self.geometry.groups
        size = right.shape[2:]
        b = embed(right, tuple(m * s for m, s in zip(held.size, held.stride, strict=True)))
        z = self._multiply(self._w, b, held, held)
        parts = [free.read(self._multiply(self._s, z, free, held), groups), held.read(z, groups)]
        t, m = self._ring.solve(parts)
        b = b + held.write(m) + self._multiply(self._s.mH, free.write(t), held, free)
        return crop(self._multiply(self._w, b, held, held), size)

    def _gram(self, x: Tensor) -> Tensor:
        """(A'A + d^2) x, or (AA' + d^2) x if A is wide, with the convolution itself."""
        return (self._adjoint(self._forward(x)) if self.tall else self._forward(self._adjoint(x))) + self.damping**2 * x

    def _forward(self, x: Tensor) -> Tensor:
        return convolution.forward(x, self.weight, self.geometry)

    def _adjoint(self, y: Tensor) -> Tensor:
        return convolution.adjoint(y, self.weight, self.geometry, self.input_size)

    def _solve(self, right: Tensor) -> Tensor:
        """The same, refined until the residual no longer halves."""
        x = self._solve_once(right)
        residual = right - self._gram(x)
        for _ in range(REFINEMENTS):
            better = x + self._solve_once(residual)
            left = right - self._gram(better)
            if not left.norm() < 0.5 * residual.norm():
                break
            x, residual = better, left
        return x

    def prepare(self) -> None:
        """Factor now, and find out on a known image what the inverse is worth."""
        generator = torch.Generator().manual_seed(1)
        channels = self.weight.shape[1] * self.geometry.groups if self.tall else self.weight.shape[0]
        size = self.input_size if self.tall else self.output_size
        x = torch.randn((1, channels, *size), generator=generator, dtype=torch.float64).to(self.weight)
        self.error = ((self._solve(self._gram(x)) - x).norm() / x.norm()).item()

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        if not self.tall:
            return self._adjoint(self._solve(y))
        x = self._solve(self._adjoint(y))
        if self.damping:
            return x
        # A'(y - A x) loses fewer digits than A'y - A'A x.
        return x + self._solve_once(self._adjoint(y - self._forward(x)))

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        return self._forward(self._solve(x)) if self.tall else self._solve(self._forward(x))

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if self.tall:
            return self._solve(x)
        if self.damping:  # (A'A + d^2)^-1 = (I - A'(AA' + d^2)^-1 A) / d^2
            return (x - self._adjoint(self._solve(self._forward(x)))) / self.damping**2
        return self._adjoint(self._solve(self._solve(self._forward(x))))

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA', float64; without damping."""
        torus = (self._factors.log_volume * multiplicity(self.torus.grid, self.weight.device)).sum()
        return torus + 0.5 * self._ring.log_det

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, from tr(A^+ dA)."""
        grid = self.torus.grid
        parts = self._ring.log_det_gradient()
        s, b, w = self._s, self._b, self._w
        inner, outer = (line[0].to(s.dtype) @ b.mH + line[1].to(s.dtype) @ w for line in parts)
        gradient = b.mH - (inner - s @ (b @ inner)) + b.mH @ outer
        return blocks_to_kernel(gradient if self.tall else gradient.mH, self.weight.shape, grid)

    @property
    def condition(self) -> float:
        """An estimate of the condition number."""
        return math.sqrt(self.growth)

    @property
    def unknowns(self) -> int:
        return self._ring.unknowns

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        tensors = [*vars(self).get("_factors", ()), self._w, self._s]
        ring = self._ring.bytes if "_ring" in vars(self) else 0
        return self.torus.bytes + ring + sum(t.untyped_storage().nbytes() for t in tensors)
