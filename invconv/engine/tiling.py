"""Images cut into blocks, in which order these are solved, and what that takes: see `waves`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from invconv.geometry import Size
from invconv.threads import cached_property

CALL = 2.5e5
"""Operations that could be made while Python and PyTorch begin one small product: 3 microseconds.  Speed only."""

EDGE = 24
"""Rows and columns that a small product takes besides its own: what is lost at its edges.  Speed only."""

ENTRY = 6.0
"""Operations for an entry of a matrix that has to be read for few images.  Speed only."""

ORDER, START = 200.0, 1.6e6
"""Operations for bringing a number into the order of the blocks and back, and for beginning to: 20 microseconds.

Speed only."""


@dataclass(frozen=True)
class Tiling:
    """An image cut into blocks, and which of them a block reads.

    Args:
        size: of the image, its axes from the slowest to the fastest, two at least.
        block: pixels of a block along the two slowest axes; along the others it is as long as the image.
        places: what is read, none below zero as a word.
        channels: of a group.
    """

    size: Size
    block: tuple[int, int]
    places: tuple[Size, ...]
    channels: int

    @cached_property
    def counts(self) -> tuple[int, int]:
        """Blocks along the two slowest axes."""
        (rows, columns), (height, width) = self.size[:2], self.block
        return -(-rows // height), -(-columns // width)

    @cached_property
    def pixels(self) -> Size:
        """The size of a block."""
        return (*self.block, *self.size[2:])

    @cached_property
    def side(self) -> int:
        """Unknowns of a block."""
        return math.prod(self.pixels) * self.channels

    @cached_property
    def reads(self) -> dict[tuple[int, int], tuple[int, int]]:
        """For each block that is read, from its own, the first of its pixels that are, and the one after the last."""
        found: dict[tuple[int, int], tuple[int, int]] = {}
        for place in self.places:
            for offset, start, stop in self._pieces(place):
                low, high = found.get(offset, (start, stop))
                found[offset] = min(low, start), max(high, stop)
        return found

    def _pieces(self, place: Size) -> Iterator[tuple[tuple[int, int], int, int]]:
        """The blocks in which a tap reads, and the first and last pixel of each that it reads."""
        sides = []
        for n, step, count in zip(self.block, place, self.counts, strict=False):
            sides.append([o for o in {step // n, (step + n - 1) // n} if abs(o) < count])
        rest = [(max(a, 0), n - 1 + min(a, 0)) for a, n in zip(place[2:], self.size[2:], strict=True)]
        if any(low > high for low, high in rest):
            return
        for offset in itertools.product(*sides):
            ends = []
            for n, step, o in zip(self.block, place, offset, strict=False):
                ends.append((max(step - o * n, 0), min(n - 1 + step - o * n, n - 1)))
            first, last = (self._index([end[k] for end in (*ends, *rest)]) for k in (0, 1))
            yield (offset[0], offset[1]), first, last + 1

    def _index(self, pixel: list[int]) -> int:
        index = 0
        for n, i in zip(self.pixels, pixel, strict=True):
            index = index * n + i
        return index

    @property
    def entries(self) -> int:
        """Entries of the matrices of a group."""
        return sum((high - low) * self.channels * self.side for low, high in self.reads.values())

    @cached_property
    def weight(self) -> int:
        """The number w of the waves: block (p, q) belongs to wave w p + q."""
        return max([1, *(1 - q for p, q in self.reads if p)])

    @cached_property
    def is_solvable(self) -> bool:
        """Whether each block reads later waves only, and no block that lies across the border of the image."""
        later = all(self.weight * p + q > 0 for p, q in self.reads if (p, q) != (0, 0))
        return later and (all(q >= 0 for _, q in self.reads) or self.size[1] % self.block[1] == 0)

    @cached_property
    def slots(self) -> int:
        """Blocks that a wave has place for."""
        return self.counts[0] if self.counts[1] > 1 else 1

    @cached_property
    def waves(self) -> int:
        """The number of waves."""
        return self.weight * (self.counts[0] - 1) + self.counts[1]

    def span(self, wave: int, p: int = 0, q: int = 0) -> tuple[int, int]:
        """The first block of a wave, by its p, whose neighbour (p, q) there is, and the one after the last."""
        rows, columns = self.counts
        first, last = -((columns - 1 - max(q, 0) - wave) // self.weight), (wave + min(q, 0)) // self.weight
        return max(first, 0), min(last, rows - 1 - p) + 1

    def operations(self, batch: int) -> float:
        """What a solution of so many images takes, for one group."""
        blocks, side, total = math.prod(self.counts), self.side, 0.0
        if self.waves > 1:
            total += START + ORDER * batch * math.prod(self.size) * self.channels
        for offset, (low, high) in self.reads.items():
            width = (high - low) * self.channels
            calls = 1 if offset == (0, 0) else self.waves
            edges = (1 + EDGE / width) * (1 + EDGE / side)
            total += calls * CALL + max(2.0 * batch * blocks * edges, calls * ENTRY) * width * side
        return total
