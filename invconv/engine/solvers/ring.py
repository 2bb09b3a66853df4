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
from functools import cached_property

import torch
from torch import Tensor

from invconv.engine import convolution
from invconv.engine.border import RingFactors, Side
from invconv.engine.solvers.circulant import Circulant, multiply, multiply_adjoint
from invconv.engine.spectrum import blocks_to_kernel, merge_phases, split_phases
from invconv.engine.windows import (
    Places,
    crop,
    embed,
    outside_input,
    outside_output,
    smallest_torus,
)
from invconv.geometry import Geometry, Size

Tilt = tuple[float, ...]

TORI = 3
"""Sizes of the torus that are tried: a kernel may be singular at a frequency of one and not of the next."""

BENIGN = 1e4
"""Growth of rounding errors at which no other torus is tried."""

NEAR = 8
"""Residual, in units of rounding of the caller's outputs, below which a step of refinement would not pay."""

ROUND = (2.0, 0.5)
"""What a mild tilt multiplies by once round the torus, tried where larger tori do not help."""


class Ring:
    """A layer with as many outputs as inputs and any borders, with the verbs of `Circulant`."""

    solver = "fft and ring"

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        input_size: Size,
        given: torch.dtype,
        tilt: Tilt | None = None,
    ):
        self.weight = weight
        self.given = given
        self._asked = tilt
        self.geometry = geometry
        self.input_size = input_size
        self.output_size = geometry.output_size(input_size)
        self.refine = True
        self.error = 0.0
        self.full_rank = self.rank = weight.shape[1] * geometry.groups * math.prod(input_size)

    # -- torus and ring --------------------------------------------------------------------------------------------

    @cached_property
    def _settled(self) -> tuple[Circulant, Tilt]:
        """The best conditioned of a few tori, and its tilt."""
        level: Tilt = (1.0,) * self.geometry.dims
        tilt = self._asked or level
        torus = best_torus(self.weight * self._taps(tilt), self.geometry, self.input_size)
        if self._asked is None and self.geometry.padding_mode == "zeros" and torus.growth > BENIGN:
            size = smallest_torus(self.geometry, self.input_size)
            tilts = [tuple(once_round ** (1 / n) for n in size) for once_round in ROUND]
            tori = [Circulant(self.weight * self._taps(t), self.geometry, size, None, 0.0) for t in tilts]
            torus, tilt = min(zip([torus, *tori], [tilt, *tilts], strict=True), key=lambda pair: pair[0].growth)
        torus.drop_blocks()
        return torus, tilt

    @property
    def torus(self) -> Circulant:
        """C, tilted, on the torus that was chosen."""
        return self._settled[0]

    @property
    def tilt(self) -> Tilt:
        """r, in each dimension."""
        return self._settled[1]

    def _powers(self, tilt: Tilt, size: Size, step: Size, start: Size) -> Tensor | float:
        """r^(start + step i) for each place i of an image."""
        if all(r == 1 for r in tilt):
            return 1.0
        powers = self.weight.new_ones(size, dtype=torch.float64)
        for d, (n, r) in enumerate(zip(size, tilt, strict=True)):
            line = r ** (start[d] + step[d] * torch.arange(n, dtype=torch.float64, device=powers.device))
            powers = powers * line.view(-1, *(1,) * (len(size) - 1 - d))
        return powers.to(self.weight)

    def _taps(self, tilt: Tilt) -> Tensor | float:
        left = tuple(-left for left, _ in self.geometry.padding)
        return self._powers(tilt, self.geometry.kernel_size, self.geometry.dilation, left)

    @cached_property
    def _tilted_inputs(self) -> Tensor | float:
        ones = (1,) * self.geometry.dims
        return self._powers(self.tilt, self.input_size, ones, (0,) * self.geometry.dims)

    @cached_property
    def _tilted_outputs(self) -> Tensor | float:
        return self._powers(self.tilt, self.output_size, self.geometry.stride, (0,) * self.geometry.dims)

    @property
    def _held(self) -> Places:
        return outside_input(self.torus.grid, self.input_size, self.weight.device)

    @property
    def _free(self) -> Places:
        return outside_output(self.torus.grid, self.input_size, self.weight.device)

    @cached_property
    def _ring(self) -> RingFactors:
        """M."""
        rows, columns = self.weight.shape[1], self.weight.shape[0] // self.geometry.groups
        sides = [Side(self._held, rows, True)], [Side(self._free, columns, False)]
        return RingFactors([[self.torus.full_inverse]], *sides, self.torus.grid)

    @cached_property
    def ring_growth(self) -> float:
        """The root mean square gains of M^-1 and of D, multiplied; that of M^-1 is taken from random vectors."""
        return self._ring.gain * self.torus.inverse_gain

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about; infinite where nothing is left."""
        growth = self.torus.growth * (1 + self.ring_growth)
        return growth if growth == growth else math.inf

    # -- the inverse -----------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Factor now, and find out on a known image what the inverse is worth and whether a step of refinement pays.

        The outputs of the image are rounded as those of the caller are.
        """
        generator = torch.Generator().manual_seed(1)
        shape = (1, self.weight.shape[1] * self.geometry.groups, *self.input_size)
        x = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.weight)
        y = self._forward(x).to(self.given).to(x)
        found = self._solve(y)
        residual = y - self._forward(found)
        self.refine = False
        if not residual.norm() < NEAR * torch.finfo(self.given).eps * y.norm():
            twice = found + self._solve(residual)
            self.refine = ((y - self._forward(twice)).norm() < 0.5 * residual.norm()).item()
            found = twice if self.refine else found
        self.error = ((found - x).norm() / x.norm()).item()

    def _forward(self, x: Tensor) -> Tensor:
        return convolution.forward(x, self.weight, self.geometry)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y."""
        x = self._solve(y)
        return x + self._solve(y - self._forward(x)) if self.refine else x

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x."""
        y = self._solve_adjoint(x)
        if not self.refine:
            return y
        return y + self._solve_adjoint(x - convolution.adjoint(y, self.weight, self.geometry, self.input_size))

    def _solve(self, y: Tensor) -> Tensor:
        grid, groups = self.torus.grid, self.geometry.groups
        stride = self.geometry.stride

        def inverse(y: Tensor) -> Tensor:
            return merge_phases(multiply(self.torus.full_inverse, y, grid), stride)

        y = embed(y / self._tilted_outputs, grid.size)
        (free,) = self._ring.solve([self._held.read(inverse(y), groups)])
        y = y - self._free.write(free)
        return crop(inverse(y), self.input_size) * self._tilted_inputs

    def _solve_adjoint(self, x: Tensor) -> Tensor:
        grid, groups = self.torus.grid, self.geometry.groups
        stride = self.geometry.stride

        def adjoint(x: Tensor) -> Tensor:
            return multiply_adjoint(self.torus.full_inverse, split_phases(x, stride), grid)

        x = embed(x * self._tilted_inputs, grid.input_size)
        (held,) = self._ring.solve_adjoint([self._free.read(adjoint(x), groups)])
        y = crop(adjoint(x - self._held.write(held)), self.output_size)
        return y / self._tilted_outputs

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^-1 x."""
        return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A|, float64."""
        volume = self.torus.full_log_volume + self._ring.log_det
        for d, r in enumerate(self.tilt):
            outputs = self._places(self.output_size, d) * self.geometry.stride[d] * self.weight.shape[0]
            inputs = self._places(self.input_size, d) * self.weight.shape[1] * self.geometry.groups
            volume = volume + math.log(r) * (outputs - inputs)
        return volume

    @staticmethod
    def _places(size: Size, d: int) -> int:
        """The sum of the coordinates d of all places of an image."""
        return math.prod(size) * (size[d] - 1) // 2

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K, from tr(A^-1 dA) = tr((D - D_Q M^-1 N D) dC)."""
        grid, inverse = self.torus.grid, self.torus.full_inverse
        ((ring,),) = self._ring.log_det_gradient()
        inside = inverse - inverse @ (ring.mH.to(inverse.dtype) @ inverse)
        return blocks_to_kernel(inside.mH, self.weight.shape, grid) * self._taps(self.tilt)

    @property
    def condition(self) -> float:
        """An estimate of the condition number."""
        return self.growth

    @property
    def unknowns(self) -> int:
        return self._ring.unknowns

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        return self.torus.bytes + (self._ring.bytes if "_ring" in vars(self) else 0)


def best_torus(weight: Tensor, geometry: Geometry, input_size: Size, damping: float = 0.0) -> Circulant:
    """The best conditioned of the smallest tori of a layer."""
    least = smallest_torus(geometry, input_size)
    tori: list[Circulant] = []
    for more in range(TORI):
        size = tuple(n + more * s for n, s in zip(least, geometry.stride, strict=True))
        tori.append(Circulant(weight, geometry, size, None, damping))
        if tori[-1].growth < BENIGN:
            break
    return min(tori, key=lambda torus: torus.growth)
