"""The log-determinant of a square layer with borders of zeros: a torus that is cut open along one axis, then the other.

C is the layer on a torus of T x U places, which is a little larger than the image of n x m, and D = C^-1.  Cut open
along the first axis it is a cylinder.  With D_w(x) the inverse transform of D along the first axis, w a frequency along
the second, and l, l' the T - n places outside the image, the inverse on the cylinder is

    B_w(x, x') = D_w(x - x') - D_w(x - l) R_w^-1 D_w(l - x'),      R_w = D_w(l - l').

What it has at the U - m places u, u' outside the image along the second axis is the matrix S, and

    S = 1/U sum_w exp(2 pi i w (u - u') / U) B_w(x, x'),
    log |det A| = sum_f log |det C_f| + sum_w log |det R_w| + log |det S|.

The gradient is taken of these terms by D_w, and from there by D.  `Ring` factors the same matrices, and keeps what
solves systems; for the value and its gradient alone a fraction of its calls will do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine import cost, memory
from invconv.engine.blocks import Factors, factor, frobenius
from invconv.engine.convolution import Convolution
from invconv.engine.plane import plane_of, tables_of
from invconv.engine.solvers.base import Volume
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.spectrum import PRODUCT_UP_TO_PLACES
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

MOST_UNKNOWNS = 2_048
"""The largest S.  Speed only: above it the factors take the time and not the calls, and `Ring` keeps them."""

CALLS = 10
"""Steps of a few calls that it takes.  Speed only."""

LOSSY = 1e7
"""Growth of rounding errors up to which the value is taken."""


def cylinder(conv: Convolution, options: Options) -> Cylinder | None:
    """The cut torus, in float64 where the precision of the map is too little; None where it does not fit or is lost."""
    if options.solver == "iterative" or not fits(conv):
        return None
    for dtype in dict.fromkeys((conv.dtype, torch.float64)):
        candidate = Cylinder(conv.to(dtype))
        if candidate.growth < min(LOSSY, options.tolerance(conv.dtype) / torch.finfo(dtype).eps):
            return candidate
    return None


def fits(conv: Convolution) -> bool:
    """Whether a map is square, with borders of zeros and one window for image and output, and S small."""
    geometry, (rows, columns) = conv.geometry, conv.block_shape
    if geometry.padding_mode != "zeros" or geometry.dims > 2 or rows != columns or conv.is_cyclic:
        return False
    if any(n != m * s for n, m, s in zip(conv.input_size, conv.output_size, geometry.stride, strict=True)):
        return False
    if plane_of(geometry, conv.input_size).places * rows > MOST_UNKNOWNS:
        return False
    return not memory.shortage(conv.device, _peak(conv), "its torus, cut open,")


def _peak(conv: Convolution) -> int:
    """Bytes at the peak, about, in float64."""
    plane, (rows, _), groups = plane_of(conv.geometry, conv.input_size), conv.block_shape, conv.geometry.groups
    unknowns, lines = plane.places * rows, 2 * plane.count * plane.outside[0] * rows
    blocks = math.prod(plane.torus) * conv.weight.shape[1] * conv.out_channels
    return 8 * (groups * unknowns * (4 * unknowns + 6 * lines) + 6 * blocks)


class Lines(NamedTuple):
    """The lines of a cylinder: R_w, factored, and what joins them to the places of S, which come first in all."""

    r: Factors
    """(groups, frequencies, lines, lines), lines those of all channels."""
    there: Tensor
    """exp(2 pi i w u / U) D_w(x - l): (groups, places, frequencies, lines), places those of all channels."""
    back: Tensor
    """R_w^-1 D_w(l - x') exp(-2 pi i w u' / U), turned round: (groups, places, frequencies, lines)."""


class Cylinder(Volume):
    """The log-determinant of a map that `fits`, and its gradient.

    Args:
        conv: the map, in the precision of the factors.
    """

    joins = True

    def __init__(self, conv: Convolution) -> None:
        self.conv = conv
        self.plane = plane_of(conv.geometry, conv.input_size)
        weight = conv.weight.mT if self.plane.turned else conv.weight
        weight = weight.unsqueeze(2) if conv.geometry.dims == 1 else weight
        self.torus = Circulant(Convolution(weight, self.plane.geometry, self.plane.torus))
        self._tables = tables_of(self.plane, conv.dtype, conv.device)

    def volume_cost(self) -> float:
        """Operations that the value takes, with its gradient, about."""
        (p, _), c, groups = self.plane.outside, self.torus.conv.block_shape[0], self.conv.geometry.groups
        unknowns, lines = float(self.plane.places * c), 2.0 * self.plane.count * p * c
        torus = cost.torus(self.torus.conv, self.plane.torus).factors
        system = groups * unknowns**2 * (2 * unknowns + 6 * lines)
        return CALLS * cost.CALL + torus + cost.precision(self.conv) * system

    def plan(self) -> Plan:
        """What it takes."""
        unknowns = self.plane.places * self.torus.conv.block_shape[0]
        because = "a determinant alone takes fewer steps than what solves systems"
        return Plan("cut torus", unknowns, _peak(self.conv), because)

    # -- R and S -----------------------------------------------------------------------------------------------------

    @cached_property
    def _spectra(self) -> Tensor:
        """D_w(x): (groups, T, frequencies, c, c)."""
        inverse = self.torus.full_inverse
        return self._along_first_axis(inverse.unflatten(1, (self.plane.size[0], self.plane.count)))

    def _along_first_axis(self, x: Tensor) -> Tensor:
        """The inverse FFT along the first axis: (groups, T, frequencies, c, c)."""
        if self.plane.size[0] > PRODUCT_UP_TO_PLACES:
            spectra: Tensor = torch.fft.ifft(x, dim=1)
        else:
            spectra = (self._tables.first @ x.flatten(2)).view_as(x)
        return spectra

    @cached_property
    def _lines(self) -> Lines | None:
        """The lines; None where the first axis is not cut."""
        tables, (groups, _, count, c, _) = self._tables, self._spectra.shape
        p, places = self.plane.outside[0], self.plane.places
        if not p:
            return None

        def pick(index: Tensor, rows: int, order: tuple[int, ...]) -> Tensor:
            return self._spectra.index_select(1, index).view(groups, rows, -1, count, c, c).permute(order)

        r = factor(pick(tables.between, p, (0, 3, 1, 4, 2, 5)).reshape(groups, count, p * c, p * c))
        there = pick(tables.there, places, (0, 1, 4, 3, 2, 5)).reshape(groups, places * c, count, p * c)
        back = pick(tables.back, p, (0, 2, 5, 3, 1, 4)).reshape(groups, places * c, count, p * c)
        if self.plane.outside[1] > 1:  # else u is 0
            turns = tables.turns.repeat_interleave(c, 0)
            there, back = there * turns, back * turns.conj()
        return Lines(r, there, _times(back, r.inverse.mT))

    @cached_property
    def _system(self) -> Factors:
        """S^-1 and log |det S|."""
        tables, (groups, _, _, c, _), places = self._tables, self._spectra.shape, self.plane.places
        values = (tables.means @ torch.view_as_real(self._spectra).flatten(3)).reshape(groups, -1, 2, c, c, 2)
        values = values[:, :, 0, ..., 0] - values[:, :, 1, ..., 1]  # the real parts
        s = values.index_select(1, tables.within).view(groups, places, places, c, c)
        s = s.transpose(2, 3).reshape(groups, places * c, places * c)
        if self._lines is not None:
            s = s - _real(self._lines.there.conj() * tables.shares[:, None]) @ _real(self._lines.back).mT
        return factor(s)

    @cached_property
    def growth(self) -> float:
        """By what factor rounding errors grow, about, as `Ring.growth`; infinite where nothing is left."""
        growth = self.torus.growth
        if not growth < LOSSY:
            return math.inf
        gain = _gain(self._system.inverse)
        if self._lines is not None:
            gain = max(gain, _gain(self._lines.r.inverse))
        growth *= 1 + gain * self.torus.inverse_gain
        return growth if growth == growth else math.inf

    # -- invariants --------------------------------------------------------------------------------------------------

    @cached_property
    def log_volume(self) -> Tensor:
        """log |det A|, float64."""
        total = self.torus.full_log_volume + self._system.log_volume.sum()
        if self._lines is not None:
            total = total + self.plane.size[1] * (self._lines.r.log_volume * self._tables.shares).sum()
        return total

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log |det A| / d K, from tr(A^-1 dA) = tr((D - D H D) dC), H that of the last two terms by D."""
        inverse = self.torus.full_inverse
        h = self._along_first_axis(self._by_spectra()).flatten(1, 2)
        inside = inverse - inverse @ (h @ inverse)
        gradient = self.torus.map_of(inside.mH).kernel_gradient(self.torus.conv.weight.shape)
        return (gradient.mT if self.plane.turned else gradient).reshape(self.conv.weight.shape)

    def _by_spectra(self) -> Tensor:
        """H_w(x), shaped as D_w(x): the last two terms move by the sum over all w and x of Re tr(H_w(x) dD_w(x))."""
        tables, (groups, rows, count, c, _) = self._tables, self._spectra.shape
        places, v = self.plane.places, self._system.inverse / self.plane.size[1]
        pairs = v.view(groups, places, c, places, c).permute(0, 3, 1, 2, 4).reshape(groups, places**2, c, c)
        sums = v.new_zeros(groups, rows * len(tables.waves), c, c).index_add_(1, tables.within, pairs)
        sums = sums.to(tables.waves.dtype).view(groups, rows, -1, 1, c, c)
        h = (sums * tables.waves[:, :, None, None]).sum(2)
        if self._lines is None:
            return h
        (r, _), there, back = self._lines
        there = _times(there, r)
        # S^-1 with a line on its left, and on its right.
        left, right = (_complex(v.mT @ _real(back), back.shape), _complex(v @ _real(there), there.shape))
        middle = r + left.permute(0, 2, 3, 1) @ there.permute(0, 2, 1, 3)
        if self.plane.outside[1] > 1:
            turns = tables.turns.repeat_interleave(c, 0)
            left, right = left * turns, right * turns.conj()
        ends = (groups, places, c, count, -1, c)
        h.index_add_(1, tables.there, left.view(ends).permute(0, 1, 4, 3, 5, 2).flatten(1, 2), alpha=-1)
        h.index_add_(1, tables.back, right.view(ends).permute(0, 4, 1, 3, 2, 5).flatten(1, 2), alpha=-1)
        middle = middle.view(groups, count, -1, c, self.plane.outside[0], c).permute(0, 4, 2, 1, 3, 5)
        return h.index_add_(1, tables.between, middle.flatten(1, 2))


def _times(x: Tensor, matrices: Tensor) -> Tensor:
    """A matrix for each frequency: (groups, places, frequencies, n), (groups, frequencies, n, m) -> (..., m)."""
    return (x.transpose(1, 2) @ matrices).transpose(1, 2).contiguous()


def _real(x: Tensor) -> Tensor:
    """(groups, places, frequencies, n) -> (groups, places, frequencies * n * 2)."""
    return torch.view_as_real(x.resolve_conj()).flatten(2)


def _complex(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_real`."""
    return torch.view_as_complex(x.view(*shape, 2))


def _gain(inverse: Tensor) -> float:
    """The root mean square gain of an inverse, the largest of a batch."""
    return frobenius(inverse.flatten(0, -3).unsqueeze(0)).max().item() / math.sqrt(inverse.shape[-1])
