"""The log-volume of an image of any size from a few small ones.

Far from its borders every place of an image adds the same to log |det A|, along a border every place of the border
does, and corners add what they add.  For an image of n x m places,

    log |det A|  =  a n m + b n + c m + d + an error that decays exponentially with min(n, m),

if the layer is stable: if it has an inverse on half-planes and quarter-planes as on the whole plane, of which those of
finite images are then bounded (Szegő 1915 for one axis, with a sharper d in 1952; Widom 1974 for blocks; Widom 1960 and
Böttcher and Silbermann 1990, chapter 8, for more axes).  The same holds for borders that are filled in from the image
near them, for the log-volumes of tall and wide layers, and with a stride in units of it.  So 2^axes sections, of sides w
and w + 1 along each axis, give all images: what is linear along each axis is taken from one to the other,

    f(n) = (1 - t) f(w) + t f(w + 1),    t = n - w,

and the gradient is the same combination of gradients.  An axis that is not longer than a section is taken whole.

Nobody knows beforehand how large w has to be.  So smaller sections are the witness of larger ones:

- Both are larger than the kernel's reach r, and differ by more than r.  A kernel in powers of z^k, k <= r, takes an
  image apart into k of their own, of sides n / k rounded down or up: sections of w and w' tell the same of them, and
  agree whatever it is worth, where w / k and w' / k are rounded to the same.
- The two values agree to the tolerance.  What they differ by is the error of the smaller ones, that of the larger ones
  is its square, about, or with sides 3 : 2 its power 3/2.
- Their borders are well conditioned.  In layers that are not stable, determinants may oscillate with the size, and some
  of them are near zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver, Volume
from invconv.engine.solvers.ring import OnTorus
from invconv.engine.volumes.cylinder import Cylinder
from invconv.geometry import Size
from invconv.options import Options
from invconv.threads import cached_property

LEAST = 6
"""Side of the smallest sections, in strides, of kernels of no reach."""

ROUNDING = 2.0**12 * torch.finfo(torch.float64).eps
"""Nats for each unknown, 9e-13, to which sections and witness agree where the volume has to be exact.

Rounding alone makes them differ by up to TODO.
"""

SAFETY = 4
"""How many times nearer than `volume_tol` they have to be."""

STEEP = 1e4
"""Growth of rounding errors from which a section is none to be trusted."""

WORTH_FROM = 8
"""Places of an image, in those of the smallest section, from which it is asked what they take.  Speed only."""

MOST_OPERATIONS = 4e11
"""What sections may take where there is no other way: 5 s, about.  Speed only."""

Candidate = Solver | Cylinder
"""What has a log-volume, and tells beforehand what it takes."""

Way = Callable[[Convolution], Candidate | None]
"""Gives what would be tried first for the log-volume of a map, nothing of it factored; None where there is nothing."""


def extrapolated(conv: Convolution, options: Options, way: Way) -> Extrapolated | None:
    """The smallest sections that their witness confirms; None where they take longer than the whole, or none are."""
    if options.solver == "iterative" or conv.is_cyclic:
        return None
    tol = options.volume_tol
    bounds = (0.0,) if tol is None else (tol / SAFETY, (tol / SAFETY) ** (2 / 3))
    left, known = math.inf, list[Extrapolated]()  # the largest first
    for sections in _sizes(conv):
        if not known:
            if math.prod(conv.input_size) < WORTH_FROM * math.prod(sections[0].conv.input_size):
                return None
            whole = way(conv)
            left = MOST_OPERATIONS if whole is None else whole.volume_cost()
        candidate = Extrapolated.of(conv, sections, way, left)
        if candidate is None:
            return None
        left -= candidate.operations
        known.insert(0, candidate)
        steps = [larger.disagreement(smaller) for larger, smaller in pairwise(known)]
        agrees = len(steps) >= len(bounds) and all(s < bound for s, bound in zip(steps, bounds, strict=False))
        if agrees or min(steps[:1], default=math.inf) < ROUNDING:
            return candidate
    return None


@dataclass(frozen=True)
class Section:
    """A small image, and how often its log-volume counts."""

    conv: Convolution
    share: int


class Extrapolated(Volume):
    """The log-volume of a map, and its gradient, from those of its sections.

    Args:
        conv: the map.
        parts: the log-volume of each section, and how often it counts.
        operations: that the sections take.
    """

    def __init__(self, conv: Convolution, parts: list[tuple[int, Candidate]], operations: float) -> None:
        self.conv = conv
        self.parts = parts
        self.operations = operations

    @classmethod
    def of(cls, conv: Convolution, sections: list[Section], way: Way, within: float) -> Extrapolated | None:
        """The combination of some sections; None where it would take too long, or one of them is not to be trusted."""
        parts, operations = [], 0.0
        for section in sections:
            solver = way(section.conv)
            if not isinstance(solver, (OnTorus, Cylinder)):
                return None
            parts.append((section.share, solver))
            operations += solver.volume_cost()
            if operations > within:
                return None
        if not all(solver.growth < STEEP for _, solver in parts):
            return None
        return cls(conv, parts, operations)

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A, float64."""
        return torch.stack([share * volume.log_volume for share, volume in self.parts]).sum()

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K."""
        return torch.stack([share * volume.log_volume_gradient for share, volume in self.parts]).sum(0)

    def disagreement(self, witness: Extrapolated) -> float:
        """How far another value lies from this one, nats for each unknown."""
        difference = (self.log_volume - witness.log_volume).abs().item() / min(self.conv.shape)
        return difference if difference == difference else math.inf


def _sizes(conv: Convolution) -> Iterator[list[Section]]:
    """Sections of growing sides, as long as one axis at least is longer than they are."""
    geometry = conv.geometry
    reach = [-(-(e - 1) // s) for e, s in zip(geometry.extent, geometry.stride, strict=True)]
    sides = [max(LEAST, 2 * r + 2) for r in reach]
    while True:
        removed = [max(0, n // s - w) for n, s, w in zip(conv.input_size, geometry.stride, sides, strict=True)]
        if max(removed) <= 1:
            return
        yield list(_sections(conv.to(torch.float64), tuple(t if t > 1 else 0 for t in removed)))
        sides = [w + max(r + 1, w // 2) for w, r in zip(sides, reach, strict=True)]


def _sections(conv: Convolution, removed: Size) -> Iterator[Section]:
    """The sections of an image from which so many strides are taken away, or one less."""
    steps = [((t, 1 - t), (t - 1, t)) if t else ((0, 1),) for t in removed]
    for chosen in product(*steps):
        size = tuple(n - t * s for n, (t, _), s in zip(conv.input_size, chosen, conv.geometry.stride, strict=True))
        section = conv.on(size)
        yield Section(section, math.prod(share for _, share in chosen))
