"""The log-determinant of a square layer with borders of zeros: a torus that is cut open along one axis, then the other.

C is the layer on a torus of T x U places, which is a little larger than the image of n x m, and D = C^-1.  Cut open
along the first axis it is a cylinder.  With D_w(x) the inverse transform of D along the first axis, w a frequency along
the second, and l, l' the T - n places outside the image, the inverse on the cylinder is

    B_w(x, x') = D_w(x - x') - D_w(x - l) R_w^-1 D_w(l - x'),      R_w = D_w(l - l').

What it has at the U - m places u, u' outside the image along the second axis is the matrix S, and

    S = 1/U sum_w exp(2 pi i w (u - u') / U) B_w(x, x'),
    log |det A| = sum_f log |det C_f| + sum_w log |det R_w| + log |det S|.

The gradient is taken of these terms by D_w, and from there by D.  `Ring` factors the same matrices and keeps what solves
systems; for the value and its gradient alone a fraction of its calls will do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine import cost
from invconv.engine.blocks import Factors, factor, frobenius
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Volume
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.spectrum import outside_inference
from invconv.engine.windows import smallest_torus
from invconv.geometry import Geometry, Size
from invconv.options import Options
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
    """Whether a map is square, with borders of zeros and one window for image and output, and S is small."""
    geometry, (rows, columns) = conv.geometry, conv.block_shape
    if geometry.padding_mode != "zeros" or geometry.dims > 2 or rows != columns or conv.is_cyclic:
        return False
    if any(n != m * s for n, m, s in zip(conv.input_size, conv.output_size, geometry.stride, strict=True)):
        return False
    return _plane(geometry, conv.input_size).places * rows <= MOST_UNKNOWNS


@dataclass(frozen=True)
class Plane:
    """How an image of one axis or two is cut; all sizes are counted in strides."""

    geometry: Geometry
    """Of a layer of two axes, the second of which is cut last."""
    torus: Size
    """Places of the torus, before the stride."""
    size: Size
    """T and U."""
    image: Size
    """n and m."""
    turned: bool
    """Whether the axes have changed places."""

    @property
    def outside(self) -> Size:
        """T - n and U - m."""
        return self.size[0] - self.image[0], self.size[1] - self.image[1]

    @property
    def places(self) -> int:
        """Places that S joins."""
        return self.image[0] * self.outside[1]

    @property
    def count(self) -> int:
        """Frequencies along the second axis that are stored."""
        return self.size[1] // 2 + 1


@lru_cache(maxsize=256)
def _plane(geometry: Geometry, input_size: Size) -> Plane:
    """The plane whose S is the smaller one, and not empty."""
    if geometry.dims == 1:
        one = {name: ((0, 0) if name == "padding" else 1, *getattr(geometry, name)) for name in _AXES}
        return _cut_open(replace(geometry, **one), (1, *input_size), False)
    turned = replace(geometry, **{name: getattr(geometry, name)[::-1] for name in _AXES})
    planes = [_cut_open(geometry, input_size, False), _cut_open(turned, input_size[::-1], True)]
    return min(planes, key=lambda plane: plane.places or math.inf)


_AXES = ("kernel_size", "stride", "padding", "dilation")


def _cut_open(geometry: Geometry, input_size: Size, turned: bool) -> Plane:
    """The plane of a layer of two axes."""
    torus = smallest_torus(geometry, input_size)
    size, image = (tuple(n // s for n, s in zip(each, geometry.stride, strict=True)) for each in (torus, input_size))
    return Plane(geometry, torus, size, image, turned)


class Tables(NamedTuple):
    """Where D_w(x) is read, and by what it is multiplied, for one plane.

    Places of the torus along the first axis are counted modulo T, offsets along the second from 1 - (U - m).
    """

    within: Tensor
    """x - x' and u - u' of each pair of places of S, flattened."""
    there: Tensor
    """x - l of each place and line."""
    back: Tensor
    """l - x' of each line and place."""
    between: Tensor
    """l - l' of each pair of lines."""
    shares: Tensor
    """What each stored frequency counts in a mean over all: (frequencies,)."""
    waves: Tensor
    """exp(2 pi i w (u - u') / U): (offsets, frequencies)."""
    turns: Tensor
    """exp(2 pi i w u / U), for each place of S: (frequencies, places, 1)."""


@outside_inference
def _tables(plane: Plane, dtype: torch.dtype, device: torch.device) -> Tables:
    """The tables of a plane, whose complex numbers are of this precision."""
    (rows, width), (p, q) = plane.size, plane.outside
    lines = plane.image[0] + torch.arange(p)
    x, u = (t.flatten() for t in torch.meshgrid(torch.arange(plane.image[0]), torch.arange(q), indexing="ij"))
    steps = torch.arange(1 - q, q)
    cycles = torch.arange(plane.count)

    def wave(offsets: Tensor) -> Tensor:
        turns = (cycles[:, None] * offsets % width).double() * (2 * math.pi / width)
        return torch.polar(torch.ones_like(turns), turns).to(dtype)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return (a[:, None] - b) % rows

    within = apart(x, x) * len(steps) + u[:, None] - u + q - 1
    shares = torch.where((cycles == 0) | (2 * cycles == width), 1.0, 2.0).double() / width
    indices = (each.flatten() for each in (within, apart(x, lines), apart(lines, x), apart(lines, lines)))
    waves = wave(steps).mT.contiguous(), wave(u)[:, :, None]
    return Tables(*(t.to(device) for t in (*indices, shares.to(waves[0].real.dtype), *waves)))


class Lines(NamedTuple):
    """The lines of a cylinder: R_w, factored, and what joins them to the places of S."""

    r: Factors
    """(groups, frequencies, lines, lines), lines that of all channels."""
    there: Tensor
    """exp(2 pi i w u / U) D_w(x - l): (groups, frequencies, places, lines)."""
    back: Tensor
    """R_w^-1 D_w(l - x') exp(-2 pi i w u' / U): (groups, frequencies, lines, places)."""


class Cylinder(Volume):
    """The log-determinant of a map that `fits`, and its gradient.

    Args:
        conv: the map, in the precision of the factors.
    """

    def __init__(self, conv: Convolution) -> None:
        self.conv = conv
        self.plane = _plane(conv.geometry, conv.input_size)
        weight = conv.weight.mT if self.plane.turned else conv.weight
        weight = weight.unsqueeze(2) if conv.geometry.dims == 1 else weight
        self.torus = Circulant(Convolution(weight, self.plane.geometry, self.plane.torus))
        self._tables = _tables(self.plane, conv.dtype.to_complex(), conv.device)

    def volume_cost(self) -> float:
        """Operations that the value takes, with its gradient, about."""
        (p, _), c, groups = self.plane.outside, self.torus.conv.block_shape[0], self.conv.geometry.groups
        unknowns, lines = float(self.plane.places * c), 2.0 * self.plane.count * p * c
        torus = cost.torus(self.torus.conv, self.plane.torus).factors
        system = groups * unknowns**2 * (2 * unknowns + 6 * lines)
        return CALLS * cost.CALL + torus + cost.precision(self.conv) * system

    # -- R and S -----------------------------------------------------------------------------------------------------

    @cached_property
    def _spectra(self) -> Tensor:
        """D_w(x): (groups, T, frequencies, c, c)."""
        inverse = self.torus.full_inverse
        return torch.fft.ifft(inverse.unflatten(1, (self.plane.size[0], self.plane.count)), dim=1)

    def _pick(self, index: Tensor, rows: int) -> Tensor:
        """D_w at these offsets, a matrix for each frequency: (groups, frequencies, rows, columns)."""
        groups, _, count, c, _ = self._spectra.shape
        picked = self._spectra.index_select(1, index).view(groups, rows, -1, count, c, c)
        return picked.permute(0, 3, 1, 4, 2, 5).reshape(groups, count, rows * c, -1)

    @cached_property
    def _lines(self) -> Lines | None:
        """The lines; None where the first axis is not cut."""
        p, tables, c = self.plane.outside[0], self._tables, self._spectra.shape[-1]
        if not p:
            return None
        r = factor(self._pick(tables.between, p))
        there, back = self._pick(tables.there, self.plane.places), self._pick(tables.back, p)
        if self.plane.outside[1] > 1:  # else u is 0
            turns = tables.turns.repeat_interleave(c, 1)
            there, back = there * turns, back * turns.mH
        return Lines(r, there, r.inverse @ back)

    @cached_property
    def _system(self) -> Factors:
        """S^-1 and log |det S|."""
        tables, (groups, _, _, c, _), places = self._tables, self._spectra.shape, self.plane.places
        values = ((tables.waves * tables.shares) @ self._spectra.flatten(3)).real.reshape(groups, -1, c, c)
        s = values.index_select(1, tables.within).view(groups, places, places, c, c)
        s = s.transpose(2, 3).reshape(groups, places * c, places * c)
        if self._lines is not None:
            s = s - _beside((self._lines.there * tables.shares[:, None, None]).conj().resolve_conj()) @ _down(self._lines.back)
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
        h = torch.fft.ifft(self._by_spectra(), dim=1).flatten(1, 2)
        inside = inverse - inverse @ (h @ inverse)
        gradient = self.torus.map_of(inside.mH).kernel_gradient(self.torus.conv.weight.shape)
        return (gradient.mT if self.plane.turned else gradient).reshape(self.conv.weight.shape)

    def _by_spectra(self) -> Tensor:
        """H_w(x), (groups, T, frequencies, c, c), with which the last two terms move by sum_wx Re tr(H_w(x) dD_w(x))."""
        tables, (groups, rows, count, c, _), v = self._tables, self._spectra.shape, self._system.inverse
        places, width = self.plane.places, self.plane.size[1]
        pairs = v.view(groups, places, c, places, c).permute(0, 3, 1, 2, 4).reshape(groups, places**2, c, c)
        steps = len(tables.waves)
        sums = v.new_zeros(groups, rows * steps, c, c).index_add_(1, tables.within, pairs).view(groups, rows, steps, -1)
        h = ((tables.waves.mT / width) @ sums.to(tables.waves.dtype)).view(self._spectra.shape)
        if self._lines is None:
            return h
        (r, _), there, back = self._lines
        there_r = there @ r
        # R^-1 + 1/U P S^-1 Q and its two halves, which are lines on the left and on the right of S^-1.
        left = _from_down(_down(back) @ v, count)
        right = _from_beside(v @ _beside(there_r), count)
        through = r + left @ there_r / width
        left, right = left / -width, right / -width
        if self.plane.outside[1] > 1:
            turns = tables.turns.repeat_interleave(c, 1)
            left, right = left * turns.mT, right * turns.conj()
        for index, part in ((tables.there, left), (tables.back, right), (tables.between, through)):
            by_pair = part.view(groups, count, -1, c, part.shape[-1] // c, c).permute(0, 4, 2, 1, 3, 5)
            h.index_add_(1, index, by_pair.reshape(groups, len(index), count, c, c))
        return h


def _down(x: Tensor) -> Tensor:
    """(groups, frequencies, n, m) -> (groups, 2 frequencies n, m), real."""
    return torch.cat([x.real, x.imag], 1).flatten(1, 2)


def _from_down(x: Tensor, count: int) -> Tensor:
    """The inverse of `_down`."""
    return torch.complex(*x.unflatten(1, (2, count, -1)).unbind(1))


def _beside(x: Tensor) -> Tensor:
    """(groups, frequencies, n, m) -> (groups, n, 2 frequencies m), real."""
    return torch.cat([x.real, x.imag], 1).transpose(1, 2).flatten(2)


def _from_beside(x: Tensor, count: int) -> Tensor:
    """The inverse of `_beside`."""
    return torch.complex(*x.unflatten(2, (2, count, -1)).transpose(1, 2).transpose(2, 3).unbind(1)).contiguous()


def _gain(inverse: Tensor) -> float:
    """The root mean square gain of an inverse, the largest of a batch."""
    return frobenius(inverse.flatten(0, -3).unsqueeze(0)).max().item() / math.sqrt(inverse.shape[-1])
