"""The log-volume of an image of any size from a few small ones.

Far from its borders every place of an image adds the same to log |det A|, along a border every place of the border
does, and corners add what they add.  For an image of n x m places,

    log |det A|  =  a n m + b n + c m + d + an error that decays exponentially with min(n, m),

if the layer is stable: if it has inverses on the plane, on half-planes and quarter-planes, of which those of finite
images are then bounded (Szegő 1915, and 1952 for d, on one axis; Widom 1974 for blocks, 1960 for the terms of a border
in more dimensions; Böttcher and Silbermann 2006, chapter 10).  The same holds for borders that are filled in from the
image near them, for the log-volumes of tall and wide layers, and with a stride in units of it.  So 2^axes sections, of
sides w and w + 1 along each axis, give all images: from one to the other all is linear along each axis,

    f(n) = (1 - t) f(w) + t f(w + 1),    t = n - w,

and the gradient is the same combination of gradients.  An axis that is not longer than a section is taken whole.

Nobody knows beforehand how large w has to be.  So smaller sections are the witness of larger ones:

- Both are larger than the kernel's reach r, and differ by more than r.  A kernel in powers of z^k, k <= r, takes an
  image apart into k of their own, of sides n / k rounded down or up.  Sections of w and w' tell the same of them, and
  agree whatever it is worth, where w / k and w' / k are rounded to the same.
- The two values agree to the tolerance.  What they differ by is the error of the smaller one; that of the larger, with
  sides 3 : 2, is its power 3/2, about.
- Where the tolerance leaves room for chance, still smaller ones differ by no more than such a decay allows.
- Rounding errors do not grow far in any of them.  In layers that are not stable determinants oscillate with the size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import torch
from torch import Tensor

from invconv import deadline
from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver, Volume
from invconv.engine.solvers.ring import OnTorus
from invconv.engine.volumes.cylinder import Cylinder
from invconv.geometry import Size
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

LEAST = 6
"""Side of the smallest sections, in strides, of kernels of little reach.  Speed only: a witness decides."""

ROUNDING = 2.0**12 * torch.finfo(torch.float64).eps
"""Nats for each unknown, 9e-13, to which sections and witness agree where the volume has to be exact.

Rounding alone makes those of 6 to 19 places differ by up to 2e-13: what a place adds is a second difference of
sections, each of which is a sum of some hundred logarithms.  The larger ones are off by far less than they differ by.
"""

SAFETY = 4
"""How many times nearer than `volume_tol` they have to be.

Of 6,808 random, sparse, long, nearly singular, wound and oscillating kernels and those in powers of z^k, each asked to
four tolerances, 13,164 answers were taken.  None was wrong: the worst was off by 0.05 times the tolerance, and of exact
ones by 0.4 times `ROUNDING`.  Of 3,079 others two values alone, with no such safety, were wrong 9 times, at tolerances
of 1e-5 and 1e-3, and never at `ROUNDING` or 1e-8.
"""

STEEP = 1e4
"""Growth of rounding errors from which a section is none to be trusted."""

WORTH_FROM = 8
"""Places of an image, in those of the smallest section, from which it is asked what sections take.  Speed only."""

MOST_OPERATIONS = 4e11
"""What sections may take where there is no other way: 5 s, about.  Speed only."""

Candidate = Solver | Cylinder
"""What has a log-volume, and tells beforehand what it takes."""

Way = Callable[[Convolution], Candidate | None]
"""Gives what would be tried first for the log-volume of a map, nothing of it factored; None where there is nothing."""


def extrapolated(conv: Convolution, options: Options, way: Way) -> Extrapolated | None:
    """The smallest sections that their witness confirms; None where they take longer than the whole, or none are."""
    known: list[Extrapolated] = []  # the largest first
    for candidate in candidates(conv, options, way):
        if deadline.is_set():
            deadline.look(cost.seconds(candidate.volume_cost() / 2, conv.device))
        if not candidate.sound:
            return None
        known.insert(0, candidate)
        if _agree(known, options.volume_tol):
            candidate.error = candidate.disagreement(known[1])
            return candidate
    return None


def candidates(conv: Convolution, options: Options, way: Way) -> Iterator[Extrapolated]:
    """Growing sections, nothing of them factored, for as long as all of them together are sooner than the whole.

    Args:
        conv: the map.
        options: how the inverse is to be computed.
        way: gives what would be tried first for the log-volume of a map.
    """
    if options.solver == "iterative" or conv.is_cyclic:
        return
    left: float | None = None
    for removed in _removed(conv):
        if left is None:  # by its places an image is known to be small in no time
            if math.prod(conv.input_size) < WORTH_FROM * math.prod(_smaller(conv, removed).input_size):
                return
            whole = way(conv)
            left = MOST_OPERATIONS if whole is None else whole.volume_cost()
        parts: list[tuple[int, Candidate]] = []
        for share, section in _sections(conv.to(torch.float64), removed):
            part = way(section)
            if not isinstance(part, (OnTorus, Cylinder)):
                return
            parts.append((share, part))
            left -= part.volume_cost()
            if left < 0:
                return
        yield Extrapolated(conv, parts)


def _agree(known: list[Extrapolated], tol: float | None) -> bool:
    """Whether the first, which are the largest, is confirmed by those after it."""
    steps = [larger.disagreement(smaller) for larger, smaller in pairwise(known)]
    if not steps or steps[0] < ROUNDING or tol is None:
        return bool(steps) and steps[0] < ROUNDING
    near = tol / SAFETY
    return len(steps) > 1 and steps[0] < near and steps[1] < near ** (2 / 3)


class Extrapolated(Volume):
    """The log-volume of a map, and its gradient, from those of its sections.

    Args:
        conv: the map.
        parts: the log-volume of each section, and how often it counts.
    """

    joins = True

    def __init__(self, conv: Convolution, parts: list[tuple[int, Candidate]]) -> None:
        self.conv = conv
        self.parts = parts
        self.error = math.inf
        """How far the witness lies from it, nats for each unknown."""

    def volume_cost(self) -> float:
        """Operations that the sections take, and a witness that is as large, about."""
        return 2 * sum(part.volume_cost() for _, part in self.parts)

    def plan(self) -> Plan:
        """What it takes, and how good it is known to be."""
        sides = " x ".join(map(str, self.parts[-1][1].conv.input_size))
        known = f", and did to {self.error:.0e} nats for each unknown" if math.isfinite(self.error) else ""
        because = f"images of {sides} and less tell the log-volume of all sizes where smaller ones confirm it{known}"
        plans = [
            part.plan(part.conv, part.options) if isinstance(part, Solver) else part.plan() for _, part in self.parts
        ]
        found = [each for each in plans if isinstance(each, Plan)]
        unknowns = max(each.unknowns for each in found)
        return Plan("sections", unknowns, 2 * sum(each.bytes for each in found), because)

    @property
    def sound(self) -> bool:
        """Whether rounding errors do not grow far in any section."""
        return all(part.growth < STEEP for _, part in self.parts)

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A, float64."""
        return torch.stack([share * part.log_volume for share, part in self.parts]).sum()

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K."""
        return torch.stack([share * part.log_volume_gradient for share, part in self.parts]).sum(0)

    def disagreement(self, witness: Extrapolated) -> float:
        """How far another value lies from this one, nats for each unknown."""
        difference = (self.log_volume - witness.log_volume).abs().item() / min(self.conv.shape)
        return difference if difference == difference else math.inf


def _removed(conv: Convolution) -> Iterator[Size]:
    """Strides to be removed along each axis for sections of growing sides, as long as one axis is longer than they."""
    geometry = conv.geometry
    reach = [-(-(e - 1) // s) for e, s in zip(geometry.extent, geometry.stride, strict=True)]
    sides = [max(LEAST, 2 * r + 2) for r in reach]
    while True:
        removed = [n // s - w for n, s, w in zip(conv.input_size, geometry.stride, sides, strict=True)]
        if max(removed) < 2:
            return
        yield tuple(t if t > 1 else 0 for t in removed)
        sides = [w + max(r + 1, w // 2) for w, r in zip(sides, reach, strict=True)]


def _smaller(conv: Convolution, removed: Size) -> Convolution:
    """The map on an image that is shorter by so many strides."""
    return conv.on(tuple(n - t * s for n, t, s in zip(conv.input_size, removed, conv.geometry.stride, strict=True)))


def _sections(conv: Convolution, removed: Size) -> Iterator[tuple[int, Convolution]]:
    """The sections, shorter than the image by as many strides or one less, and how often each counts."""
    for chosen in product(*([(t, 1 - t), (t - 1, t)] if t else [(0, 1)] for t in removed)):
        yield math.prod(share for _, share in chosen), _smaller(conv, tuple(t for t, _ in chosen))
