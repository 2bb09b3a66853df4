"""Block-triangular convolutions solved from their last pixels to their first: see `waves`.

How the image is cut into blocks is chosen by what that is foreseen to take, for few images and for many.  An image of
three axes whose lines are too long for an explicit inverse is solved plane by plane, each by waves of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from invconv.engine.tiling import CALL, Tiling
from invconv.engine.waves import Taps, Waves
from invconv.geometry import Size
from invconv.threads import cached_property

MOST_SIDE = 1024
"""Unknowns of a group in one block up to which that has an explicit inverse.  Memory and speed only."""

FEW, MANY = 1, 16
"""Images for which the tilings are chosen: the first serves up to their geometric mean.  Speed only."""


class Substitution:
    r"""The solution x of y = A x, for images (batch, groups * channels, \*size).

    Args:
        taps: a matrix (groups, channels, channels) for each place, none of which is below zero as a word.
        size: of the image, its axes from the slowest to the fastest.
        axes: of the image, from the slowest to the fastest.
        turned: for each axis from the slowest to the fastest, whether what comes later has smaller indices.
    """

    def __init__(self, taps: Taps, size: Size, axes: Sequence[int], turned: Sequence[bool]) -> None:
        line = (1,) if len(size) == 1 else ()
        self.size = size + line
        self.taps = {
            place + (0,) * len(line): tap
            for place, tap in taps.items()
            if all(abs(a) < n for a, n in zip(place, size, strict=True))
        }
        self.groups, self.channels = next(iter(taps.values())).shape[:2]
        self.axes = axes
        self.turned = 2 * sum(turned) > len(turned)
        self.flipped = [axes[d] + 2 for d, t in enumerate(turned) if t != self.turned]

    @cached_property
    def ways(self) -> tuple[Planes | Waves, Planes | Waves]:
        """What solves few images, and many."""
        if math.prod(self.size[2:]) * self.channels > MOST_SIDE and len(self.size) > 2:
            planes = Planes(self.taps, self.size, self.turned)
            return planes, planes
        tilings = (best_tiling(self.size, tuple(self.taps), self.channels, batch) for batch in (FEW, MANY))
        few, many = (Waves(tiling, self.taps, self.turned) for tiling in tilings)
        return few, few if few.tiling == many.tiling else many

    def way(self, batch: int) -> Planes | Waves:
        """What solves so many images; where a program is recorded that has to serve any number, that for many."""
        return self.ways[0 if not torch.compiler.is_compiling() and batch**2 <= FEW * MANY else 1]

    @cached_property
    def inverse(self) -> Tensor | None:
        """The explicit inverse of a small image, in the order of its entries; None where it has several blocks."""
        few, dims = self.ways[0], len(self.axes)
        if isinstance(few, Planes) or few.tiling.waves > 1:
            return None
        size = self.size[:dims]
        inverse = few.own.view(self.groups, *size, self.channels, *size, self.channels)
        back = [self.axes.index(d) for d in range(dims)]
        order = [0, dims + 1, *(d + 1 for d in back), 2 * dims + 2, *(dims + 2 + d for d in back)]
        flipped = [*self.flipped, *(d + dims + 1 for d in self.flipped)]
        side = few.tiling.side
        return inverse.permute(order).flip(flipped).reshape(self.groups, side, side)

    def prepare(self) -> None:
        """Factor now."""
        for way in self.ways:
            way.prepare()
        self.inverse  # noqa: B018

    def solve(self, y: Tensor) -> Tensor:
        r"""x. y: (batch, groups * channels, \*size)."""
        way = self.way(y.shape[0])
        if way is self.ways[0] and self.inverse is not None:
            return self._times(y, self.inverse)
        x = way.solve(self._to_order(y).view(self.groups, -1, *self.size, self.channels))
        return self._to_image(x.view(self.groups, -1, *(y.shape[d + 2] for d in self.axes), self.channels))

    def _times(self, y: Tensor, inverse: Tensor) -> Tensor:
        """Images times an explicit inverse."""
        rows = y.reshape(-1, self.groups, inverse.shape[1])
        x = rows[:, 0] @ inverse[0] if self.groups == 1 else (rows.transpose(0, 1) @ inverse).transpose(0, 1)
        return x.reshape(y.shape)

    def _to_order(self, y: Tensor) -> Tensor:
        """Images as (groups, batch, *size, channels), their axes from the slowest to the fastest, contiguous."""
        y = y.flip(self.flipped) if self.flipped else y
        parts: Tensor = y.unflatten(1, (self.groups, self.channels))
        return parts.permute(1, 0, *(d + 3 for d in self.axes), 2).contiguous()

    def _to_image(self, x: Tensor) -> Tensor:
        """Images again of what has their axes in order."""
        back = [self.axes.index(d) + 2 for d in range(len(self.axes))]
        image = x.permute(1, 0, x.dim() - 1, *back).flatten(1, 2)
        return image.flip(self.flipped) if self.flipped else image.contiguous()

    def operations(self, batch: int) -> float:
        """What a solution of so many images takes."""
        return self.way(batch).operations(batch)

    @property
    def factor_operations(self) -> float:
        """What all matrices take."""
        return sum(way.factor_operations for way in set(self.ways))

    @property
    def entries(self) -> int:
        """Entries of all matrices, and of what is on the way to them."""
        return sum(way.entries for way in self.ways)

    def held(self) -> Iterator[Tensor]:
        """The tensors that have been computed so far, and the taps."""
        yield from self.taps.values()
        for way in set(self.__dict__.get("ways", ())):
            yield from way.held()
        if self.__dict__.get("inverse") is not None:
            yield self.__dict__["inverse"]


class Planes:
    """The solution x of y = A x for images (groups, batch, *size, channels), one plane after the other.

    Args:
        taps: a matrix (groups, channels, channels) for each place.
        size: of the image, three axes at least.
        turned: whether the axes are turned round.
    """

    def __init__(self, taps: Taps, size: Size, turned: bool) -> None:
        self.size, self.turned = size, turned
        within = {place[1:]: tap for place, tap in taps.items() if not place[0]}
        self.coupled = {place: tap.mT.contiguous() for place, tap in taps.items() if place[0]}
        channels = next(iter(taps.values())).shape[1]
        self.inner = Waves(best_tiling(size[1:], tuple(within), channels, FEW), within, turned)

    def prepare(self) -> None:
        """Factor now."""
        self.inner.prepare()

    def operations(self, batch: int) -> float:
        """What a solution of so many images takes."""
        numbers = math.prod(self.size[1:]) * self.inner.groups * self.inner.tiling.channels
        taps = len(self.coupled) * (CALL + 2.0 * batch * numbers * self.inner.tiling.channels)
        return self.size[0] * (self.inner.operations(batch) + taps)

    @property
    def factor_operations(self) -> float:
        """What the matrices take."""
        return self.inner.factor_operations

    @property
    def entries(self) -> int:
        """Entries of the matrices, and of what is on the way to them."""
        return self.inner.entries

    def held(self) -> Iterator[Tensor]:
        """The tensors that have been computed so far."""
        yield from self.coupled.values()
        yield from self.inner.held()

    def solve(self, y: Tensor) -> Tensor:
        """x. y: (groups, batch, *size, channels)."""
        beside = [None] * (len(self.size) - 1)
        sign = -1 if self.turned else 1
        solved: dict[int, Tensor] = {}
        for i in range(self.size[0]) if self.turned else range(self.size[0] - 1, -1, -1):
            rest = y[:, :, i]
            for place, tap in self.coupled.items():
                if i + sign * place[0] in solved:
                    near = _moved(solved[i + sign * place[0]], [sign * a for a in place[1:]])
                    rest = rest - near @ tap[(slice(None), *beside)]
            solved[i] = self.inner.solve(rest.contiguous())
        return torch.stack([solved[i] for i in range(self.size[0])], 2)


def _moved(image: Tensor, place: Sequence[int]) -> Tensor:
    """At each pixel what is so far from it, zero beyond the border.  image: (groups, batch, *size, channels)."""
    for axis, step in enumerate(place, start=2):
        if step:
            zeros = image.narrow(axis, 0, abs(step)).new_zeros(1).expand_as(image.narrow(axis, 0, abs(step)))
            kept = image.narrow(axis, max(step, 0), image.shape[axis] - abs(step))
            image = torch.cat([kept, zeros] if step > 0 else [zeros, kept], axis)
    return image


@lru_cache(maxsize=256)
def best_tiling(size: Size, places: tuple[Size, ...], channels: int, batch: int) -> Tiling:
    """The tiling that takes least, for so many images."""
    sides = [sorted({n, *(2**k for k in range(n.bit_length()))}) for n in size[:2]]
    tilings = (Tiling(size, (height, width), places, channels) for height, width in itertools.product(*sides))
    small = (tiling for tiling in tilings if tiling.side <= MOST_SIDE or tiling.block == (1, 1))
    return min((t for t in small if t.is_solvable), key=lambda tiling: tiling.operations(batch))
