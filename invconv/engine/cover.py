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

from invconv.engine.spectrum import outside_inference
from invconv.geometry import Size

CHUNK = 2**22
"""Entries of tiles that are cut out, and solved, at once.  Memory and speed only."""


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

    @property
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

    @property
    def whole(self) -> bool:
        """Whether one tile is all of the axis."""
        return len(self.starts) == 1

    def read(self, x: Tensor, dim: int, first: int, last: int) -> Tensor:
        """What the tiles from `first` to before `last` hold of an image, one after the other."""
        if self.whole:
            return x
        return x.index_select(dim, _held(self, x.device)[first * self.length : last * self.length])

    def keep(self, tiles: Tensor, dim: int, first: int, last: int) -> Tensor:
        """What is kept of the tiles from `first` to before `last`; of all of them, in the order of the image."""
        if self.whole:
            return tiles
        cuts = self.cuts
        of_tile = _kept(self, tiles.device)[cuts[first] - cuts[0] : cuts[last] - cuts[0]] - first * self.length
        return tiles.index_select(dim, of_tile.roll(cuts[0]) if last - first == len(self.starts) else of_tile)

    def add(self, out: Tensor, pieces: Tensor, first: int, last: int) -> None:
        """Add what was kept of these tiles to lines of an image."""
        start = 0 if last - first == len(self.starts) else self.cuts[first]
        done = 0
        while done < pieces.shape[2]:
            place = (start + done) % self.size
            count = min(pieces.shape[2] - done, self.size - place)
            out.narrow(2, place, count).add_(pieces.narrow(2, done, count))
            done += count


@outside_inference
def _held(axis: Axis, device: torch.device) -> Tensor:
    """The places of the image that the tiles hold, one tile after the other."""
    places = torch.tensor(axis.starts)[:, None] + torch.arange(axis.length)
    return (places.flatten() % axis.size).to(device)


@outside_inference
def _kept(axis: Axis, device: torch.device) -> Tensor:
    """For each place that is kept, from the first cut on, where it lies among the places of all tiles."""
    cuts = torch.tensor(axis.cuts)
    places = torch.arange(axis.cuts[0], axis.cuts[-1])
    tile = torch.bucketize(places, cuts[1:], right=True)
    return (places + axis.length * tile - torch.tensor(axis.starts)[tile]).to(device)


Solve = Callable[[Tensor, Tensor], Tensor]


def sweep(image: Tensor, out: Tensor, source: Sequence[Axis], target: Sequence[Axis], solve: Solve) -> Tensor:
    """`out`, to which the middles are added of what `solve` makes of the tiles of an image.

    Args:
        image: (batch, channels, *places of `source`).
        out: (batch, channels, *places of `target`).
        source: the tiles of the image.
        target: those of `out`, as many.
        solve: of a batch of tiles, told which of them touch a border of the image.
    """
    for first, last in _chunks(image, source):
        tiles = source[0].read(image, 2, first, last)
        for dim, axis in enumerate(source[1:], 3):
            tiles = axis.read(tiles, dim, 0, len(axis.starts))
        tiles = _apart(tiles, source, last - first)
        touching, at_once = _touching(source, first, last, len(image)), max(1, CHUNK // max(1, tiles[0].numel()))
        solved = [solve(*parts) for parts in zip(tiles.split(at_once), touching.split(at_once), strict=True)]
        tiles = solved[0] if len(solved) == 1 else torch.cat(solved)
        pieces = _together(tiles, target, last - first, len(image))
        for dim, axis in enumerate(target[1:], 3):
            pieces = axis.keep(pieces, dim, 0, len(axis.starts))
        target[0].add(out, target[0].keep(pieces, 2, first, last), first, last)
    return out


def _touching(axes: Sequence[Axis], first: int, last: int, batch: int) -> Tensor:
    """Which tiles of a batch touch a border of the image."""
    touching = torch.zeros(batch, last - first, *(len(axis.starts) for axis in axes[1:]), dtype=torch.bool)
    for dim, axis in enumerate(axes, 1):
        if not axis.cyclic:
            count = len(axis.starts)
            at_end = torch.tensor([tile in (0, count - 1) for tile in range(count)])
            at_end = at_end[first:last] if dim == 1 else at_end
            touching |= at_end.view(-1, *[1] * (len(axes) - dim))
    return touching.flatten()


def _chunks(image: Tensor, source: Sequence[Axis]) -> Iterator[tuple[int, int]]:
    """A few lines of tiles at a time."""
    line = image[:, :, 0].numel() * source[0].length
    line = line * math.prod(len(axis.starts) * axis.length / axis.size for axis in source[1:])
    count = max(1, int(CHUNK / max(1.0, line)))
    total = len(source[0].starts)
    for first in range(0, total, count):
        yield first, min(first + count, total)


def _apart(x: Tensor, axes: Sequence[Axis], rows: int) -> Tensor:
    """(batch, channels, *tiles * length) as tiles: (batch * tiles, channels, *length)."""
    counts = [rows, *(len(axis.starts) for axis in axes[1:])]
    shape = [n for count, axis in zip(counts, axes, strict=True) for n in (count, axis.length)]
    dims = len(axes)
    x = x.reshape(*x.shape[:2], *shape)
    order = [0, *range(2, 2 + 2 * dims, 2), 1, *range(3, 3 + 2 * dims, 2)]
    return x.permute(order).reshape(-1, x.shape[1], *(axis.length for axis in axes))


def _together(tiles: Tensor, axes: Sequence[Axis], rows: int, batch: int) -> Tensor:
    """Tiles side by side, (batch, channels, *tiles * length): the inverse of `_apart`."""
    counts = [rows, *(len(axis.starts) for axis in axes[1:])]
    dims = len(axes)
    x = tiles.view(batch, *counts, *tiles.shape[1:])
    order = [0, dims + 1, *(d for i in range(dims) for d in (1 + i, dims + 2 + i))]
    lengths = [count * axis.length for count, axis in zip(counts, axes, strict=True)]
    return x.permute(order).reshape(batch, tiles.shape[1], *lengths)


def starts_along(size: int, length: int, step: int, cyclic: bool) -> Size:
    """Where tiles begin that overlap by at least `length - step`, evenly spread."""
    if length >= size:
        return (0,)
    if cyclic:
        count = -(-size // step)
        return tuple(i * size // count for i in range(count))
    count = -(-(size - length) // step) + 1
    return tuple(i * (size - length) // (count - 1) for i in range(count))
