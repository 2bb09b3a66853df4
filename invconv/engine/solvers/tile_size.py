"""Which tiles an image is covered by, and how far they overlap: the cheapest whose halo is foreseen to be enough.

A tile is the same layer on a smaller image, with borders of the same kind at all of its edges: right where it touches a
border of the image, and wrong at an inner edge, which a halo keeps away from what is used.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.cover import Axis, cover, step_between
from invconv.engine.decay import Decay
from invconv.engine.ring_size import unknowns_of_inputs, unknowns_of_outputs
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.ring import Ring
from invconv.engine.windows import smallest_torus
from invconv.geometry import Size
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

KINDS: tuple[type[Solver], ...] = (Circulant, Ring, Gram, Dense)
"""What a tile may be inverted by, in the order in which they are asked."""

SIDES = {1: (16, 32, 64, 128, 256, 512), 2: (12, 16, 24, 32, 48, 64, 96, 128), 3: (8, 12, 16, 24, 32)}
"""Sides of tiles, after the stride, in one, two and three dimensions.  Speed only: what fails them goes another way."""

HALOS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Halos in places after the stride.  Speed only: each is tried on known images before it is taken."""

MOST_STEPS = 4
"""Steps of refinement up to which a halo is held to be enough.  Speed only."""

FALLS = 0.1
"""What a step may leave of the residual of known images, at most: where it is more, tiles do not stand for an image,
but precondition a Krylov method."""

SLOW = 0.7
"""The same of those.  Speed only: their answers are measured."""

MUCH = 0.3
"""What may lie beyond a halo, that they are worth a trial.  Speed only."""

FORESEEN = 0.2
"""Share of what lies beyond the halo that a step leaves, about.  Speed only: it is measured before it counts.

Of ten random layers with all kinds of borders a step left 0.01 to 0.3 of it.
"""


@dataclass(frozen=True, eq=False)
class TileSize:
    """Tiles of one size over an image.

    Args:
        conv: the map.
        size: of a tile, before the stride.
        halo: places after the stride that lie between what is kept of a tile and its inner edges, at least.
        kind: what a tile is inverted by.
        steps: of refinement that are foreseen, or of a Krylov method.
    """

    conv: Convolution
    size: Size
    halo: int
    kind: type[Solver]
    steps: int

    @cached_property
    def tile(self) -> Convolution:
        """The layer on one tile."""
        return self.conv.on(self.size)

    @cached_property
    def _axes(self) -> tuple[list[Axis], list[Axis]]:
        return cover(self.conv, self.tile, self.halo)

    @property
    def inputs(self) -> list[Axis]:
        """The tiles of an input image, axis by axis."""
        return self._axes[0]

    @property
    def outputs(self) -> list[Axis]:
        """The tiles of an output image, axis by axis."""
        return self._axes[1]

    @property
    def _squares(self) -> bool:
        return self.conv.block_shape[0] == self.conv.block_shape[1] and self.conv.shape[0] == self.conv.shape[1]

    @property
    def count(self) -> int:
        """Tiles of the image."""
        return math.prod(len(axis.starts) for axis in self.outputs)

    @property
    def inside(self) -> int:
        """Tiles that touch no border of the image."""
        return 0 if self.outputs[0].cyclic else math.prod(max(0, len(axis.starts) - 2) for axis in self.outputs)

    @cached_property
    def torus(self) -> Size:
        """The torus of a tile, as which one may be taken that touches no border."""
        return smallest_torus(self.conv.geometry, self.size)

    @property
    def probe(self) -> Convolution:
        """The layer on an image of three tiles along each axis, or the whole image where that has no more."""
        sides = []
        for axis, output, s in zip(self.inputs, self.outputs, self.conv.geometry.stride, strict=True):
            step = s * step_between(axis.length // s, output.length, self.halo)
            sides.append(axis.size if len(axis.starts) <= 3 else axis.length + 2 * step)
        return self.conv.on(tuple(sides))

    def on(self, conv: Convolution) -> TileSize:
        """The same tiles over another image, or in another precision."""
        return TileSize(conv, self.size, self.halo, self.kind, self.steps)

    def cost(self, options: Options) -> cost.Cost:
        """A tile factored and tried, and all tiles solved once and for each step of refinement."""
        conv, share = self.conv, cost.precision(self.conv)
        at_borders = (self.count - self.inside) * _tile_operations(self.tile, self.kind)
        inside = self.inside * (1 if self._squares else 2) * _tile_operations(self.tile, Circulant)
        sweep = share * (at_borders + inside) + cost.CALL / 4 * self.count
        answer = (1 + self.steps) * sweep + (1 + self.steps) * cost.convolution(conv)
        part = math.prod(n / m for n, m in zip(self.probe.input_size, conv.input_size, strict=True))
        factors = self.kind(self.tile, options).cost().factors
        return cost.Cost(factors + 8 * part * answer, answer)


def _tile_operations(tile: Convolution, kind: type[Solver]) -> float:
    """Operations for one tile of many that are solved together."""
    if kind is Dense:
        return 2.0 * tile.shape[0] * tile.shape[1]
    groups, (rows, columns) = tile.geometry.groups, tile.block_shape
    places = math.prod(smallest_torus(tile.geometry, tile.input_size)) / math.prod(tile.geometry.stride)
    once = cost.transforms(places, groups * (rows + columns)) + 8 * cost.BLOCKS * places / 2 * groups * rows * columns
    if kind is Circulant:
        return once
    unknowns = unknowns_of_inputs(tile) + (unknowns_of_outputs(tile) if kind is Gram else 0)
    return (2 if kind is Ring else 4) * once + 2.0 * groups * unknowns**2


def best_tiles(
    conv: Convolution, options: Options, decay: Decay, outputs: torch.dtype | None = None, slack: float = 1.0
) -> TileSize | None:
    """The tiles and the halo that are foreseen to be soonest; None where no halo is foreseen to be enough.

    Args:
        conv: the map.
        options: how the inverse is to be computed.
        decay: of its inverse.
        outputs: the caller's dtype; None for that of the map.
        slack: how much more a step leaves than is foreseen.
    """
    target = math.log(torch.finfo(outputs or conv.dtype).eps)
    refined, solved = [], []
    for size, kind in tiles_of(conv, options):
        for halo in (h for h in HALOS if h <= widest_halo(conv, size)):
            beyond = slack * decay.at(halo)
            rate = FORESEEN * beyond
            steps = math.ceil(target / math.log(rate)) if 0 < rate < 1 else int(rate > 0)
            if rate < FALLS and steps - 1 <= MOST_STEPS:
                refined.append(TileSize(conv, size, halo, kind, max(0, steps - 1)))
            elif beyond < MUCH:
                solved.append(TileSize(conv, size, halo, kind, steps))
    return min(refined or solved, key=lambda size: size.cost(options).of(options.answers), default=None)


def widest_halo(conv: Convolution, size: Size) -> int:
    """The most places that tiles of this size can have for a halo."""
    sides = zip(size, conv.input_size, conv.geometry.stride, strict=True)
    return min((w // s - 1) // 2 for w, n, s in sides if w < n)


def tiles_of(conv: Convolution, options: Options) -> Iterator[tuple[Size, type[Solver]]]:
    """Sizes of tiles that are smaller than the image, and what inverts each."""
    for side in SIDES[conv.geometry.dims]:
        size = _tile(conv, side)
        if size is None:
            continue
        kind = next((k for k in KINDS if isinstance(k.plan(conv.on(size), options), Plan)), None)
        if kind is not None:
            yield size, kind


def _tile(conv: Convolution, side: int) -> Size | None:
    """A tile of about this side after the stride, that fits flush on a lattice of the stride; None where none does."""
    geometry, size = conv.geometry, []
    for n, s, e, pad in zip(conv.input_size, geometry.stride, geometry.extent, geometry.padding, strict=True):
        room = s * side
        if not (conv.is_cyclic and geometry.padding_mode == "circular"):  # else its torus is itself
            room -= max(pad) if geometry.padding_mode == "zeros" else sum(pad)
        w = room - (room - n) % s
        w = n if n < 1.5 * w else w
        if w < n and w < 2 * e + 2 * max(pad):
            return None
        size.append(w)
    return None if tuple(size) == conv.input_size else tuple(size)


def refusal(conv: Convolution, options: Options) -> str:
    """Why tiles are no way, whatever the weight; empty where they may be one."""
    (rows, columns), (outputs, inputs) = conv.block_shape, conv.shape
    if options.rtol is not None:
        return "it cuts no singular values off"
    if conv.blind_spots and not options.damping:
        return conv.blind_spots
    if conv.geometry.padding_mode == "circular" and conv.geometry.links_borders and not conv.is_cyclic:
        return "its borders wrap in part"
    if (rows > columns and outputs < inputs) or (rows < columns and outputs > inputs):
        return "the layer is tall and its torus wide, or the reverse"
    if next(tiles_of(conv, options), None) is None:
        sides = " x ".join(map(str, conv.input_size))
        return f"an image of {sides} is no larger than a tile"
    return ""


def too_slow(conv: Convolution, options: Options, decay: Decay | None) -> str:
    """Why no halo is enough, with what the largest one leaves."""
    if decay is None:
        return "on a torus of a few extents its kernel is singular, or too large to look at"
    halo = max(widest_halo(conv, size) for size, _ in tiles_of(conv, options))
    return f"{decay.at(halo):.0e} of an answer lies beyond the {halo} places that its largest tile has for a halo"
