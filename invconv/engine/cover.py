"""An image covered by overlapping tiles of one size: cut into them, and pasted together of their middles.

Tiles lie flush with both ends of an axis, or go round it where it is cyclic.  Of two that overlap each keeps the half
that is nearer to its own middle, so that what is kept lies at least half an overlap away from every inner edge.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.geometry import Size
from invconv.threads import cached_property

CHUNK = 2**21
"""Entries of tiles that are cut out, and solved, at once.  Memory and speed only."""

Solve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Axis:
    """Tiles along one axis.

    Args:
        size: places of the image.
        length: places of a tile.
        starts: the first place of each tile, ascending.
        cyclic: whether the axis is a circle, which the last tiles may close.
    """

    size: int
    length: int
    starts: tuple[int, ...]
    cyclic: bool

    @cached_property
    def cuts(self) -> list[int]:
        """Where each tile begins to be kept, and where the last one ends: the middles of the overlaps."""
        first, last = self.starts[0], self.starts[-1] + self.length
        if len(self.starts) == 1:
            return [first, first + self.size]
        inner = [(a + self.length + b) // 2 for a, b in itertools.pairwise(self.starts)]
        if not self.cyclic:
            return [first, *inner, last]
        seam = (last + first + self.size) // 2
        return [seam - self.size, *inner, seam]

    def touches(self, tile: int, more: int) -> bool:
        """Whether a tile that is longer by `more` would touch a border of the image, or reach beyond it."""
        if self.cyclic:
            return False
        return tile in (0, len(self.starts) - 1) or self.starts[tile] + self.length + more > self.size

    def hold(self, image: Tensor, dim: int, tile: int, more: int) -> Tensor:
        """What a tile that is longer by `more` holds of an image."""
        start, length = self.starts[tile], self.length + more
        if start + length <= self.size:
            return image.narrow(dim, start, length)
        return image.index_select(dim, torch.arange(start, start + length, device=image.device) % self.size)

    def kept(self, tile: int) -> Iterator[tuple[slice, slice]]:
        """What is kept of a tile: where in the image, and where in the tile; in two parts where it goes round."""
        place, end = self.cuts[tile], self.cuts[tile + 1]
        while place < end:
            count = min(end - place, self.size - place % self.size)
            there, here = place % self.size, place - self.starts[tile]
            yield slice(there, there + count), slice(here, here + count)
            place += count


def cover(whole: Convolution, tile: Convolution, halo: int) -> tuple[list[Axis], list[Axis]]:
    """The tiles of an input image and those of an output image, as many, axis by axis.

    Args:
        whole: the map on the image.
        tile: the same on a tile.
        halo: places after the stride between what is kept of a tile and its inner edges, at least.
    """
    cyclic = whole.is_cyclic and whole.geometry.padding_mode == "circular"
    sizes = whole.input_size, whole.output_size, tile.input_size, tile.output_size, whole.geometry.stride
    inputs: list[Axis] = []
    outputs: list[Axis] = []
    for n, m, w, v, s in zip(*sizes, strict=True):
        length = w // s
        places = n // s if cyclic or w == n else length + (n - w) // s
        starts = starts_along(places, length, step_between(length, v, halo), cyclic)
        inputs.append(Axis(n, w, tuple(s * start for start in starts), cyclic))
        outputs.append(Axis(m, v, starts, cyclic))
    return inputs, outputs


def step_between(length: int, outputs: int, halo: int) -> int:
    """How far tiles lie apart at most: windows of outputs, which a kernel may make much smaller, meet as well."""
    return max(1, min(length - 2 * halo, outputs))


def kept(axes: Sequence[Axis], tile: Size) -> Iterator[tuple[tuple[slice, ...], tuple[slice, ...]]]:
    """Where what is kept of a tile lies in the image, and in itself: in parts where it goes round."""
    for parts in itertools.product(*(axis.kept(index) for axis, index in zip(axes, tile, strict=True))):
        there, here = zip(*parts, strict=True)
        yield there, here


def sweep(
    image: Tensor,
    out: Tensor,
    source: Sequence[Axis],
    target: Sequence[Axis],
    solve: Solve,
    inner: Solve | None,
    more: Size,
) -> Tensor:
    """`out`, to which the middles are added of what is made of the tiles of an image.

    Args:
        image: (batch, channels, *places of `source`).
        out: (batch, channels, *places of `target`).
        source: the tiles of the image.
        target: those of `out`, as many.
        solve: of a batch of tiles.
        inner: the same of tiles that touch no border of the image; None where these are as others.
        more: places by which these are longer.
    """
    if not len(image):
        return out
    edges: list[Size] = []
    inside: list[Size] = []
    for tile in itertools.product(*(range(len(axis.starts)) for axis in source)):
        touching = inner is None or any(a.touches(i, m) for a, i, m in zip(source, tile, more, strict=True))
        (edges if touching else inside).append(tile)
    none = (0,) * len(more)
    for tiles, its_solve, longer in ((edges, solve, none), (inside, inner or solve, more)):
        entries = image.shape[1] * math.prod(axis.length for axis in source) * len(image)
        for part in _in_parts(tiles, max(1, CHUNK // max(1, entries))):
            held = torch.cat([_hold(image, source, tile, longer) for tile in part])
            for tile, solved in zip(part, its_solve(held).split(len(image)), strict=True):
                _add(out, solved, target, tile)
    return out


def _in_parts(tiles: list[Size], count: int) -> Iterator[list[Size]]:
    """So many tiles at a time."""
    for first in range(0, len(tiles), count):
        yield tiles[first : first + count]


def _hold(image: Tensor, axes: Sequence[Axis], tile: Size, more: Size) -> Tensor:
    """One tile of each image."""
    for dim, (axis, index, longer) in enumerate(zip(axes, tile, more, strict=True), 2):
        image = axis.hold(image, dim, index, longer)
    return image


def _add(out: Tensor, solved: Tensor, axes: Sequence[Axis], tile: Size) -> None:
    """Add what is kept of one tile."""
    for there, here in kept(axes, tile):
        out[(slice(None), slice(None), *there)] += solved[(slice(None), slice(None), *here)]


def starts_along(size: int, length: int, step: int, cyclic: bool) -> Size:
    """Where tiles begin that overlap by at least `length - step`, evenly spread."""
    if length >= size:
        return (0,)
    if cyclic:
        count = -(-size // step)
        return tuple(i * size // count for i in range(count))
    count = -(-(size - length) // step) + 1
    return tuple(i * (size - length) // (count - 1) for i in range(count))
