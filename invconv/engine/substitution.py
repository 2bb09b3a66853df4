"""Block-triangular convolutions solved from their last pixels to their first, by slabs of the slowest axis.

Of a slab s and the lines x_next right behind it,

    y_s = S x_s + C x_next,      x_s = S^-1 y_s - (S^-1 C) x_next.

All slabs have the same S and C: S^-1 y_s is one product for all of them, and one small product for each is left.  Lines
that are too long for an explicit S^-1 are solved by slabs of their own, along the next axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from invconv.geometry import Size
from invconv.threads import cached_property

SIDE = 128
"""Unknowns of a group up to which several lines are one slab.  Speed only."""

MOST_SIDE = 1024
"""Unknowns of a group in one line up to which that has an explicit inverse.  Memory and speed only."""

Taps = Mapping[Size, Tensor]


class Substitution:
    """x of y = A x, for images (groups, batch, *size, channels).

    Args:
        taps: a matrix (groups, channels, channels) for each place, none of which is below zero as a word: what is read.
        size: of the image, its axes from the slowest to the fastest.
    """

    def __init__(self, taps: Taps, size: Size) -> None:
        self.size = size
        self.taps = {place: tap for place, tap in taps.items() if self._is_inside(place)}
        own = taps[(0,) * len(size)]
        self.groups, self.channels = own.shape[:2]
        self.line = math.prod(size[1:]) * self.channels
        self.lines = max(1, min(size[0], SIDE // self.line))
        self.reach = max(place[0] for place in self.taps)

    @staticmethod
    def products(size: Size, channels: int, reach: Size) -> tuple[int, float]:
        """Small products one after the other, and operations of all, for one image of one group."""
        line = math.prod(size[1:]) * channels
        if line > MOST_SIDE and len(size) > 1:
            count, operations = Substitution.products(size[1:], channels, reach[1:])
            taps = math.prod(2 * r + 1 for r in reach[1:]) * reach[0]
            return size[0] * (count + taps), size[0] * (operations + 2.0 * taps * line * channels)
        lines = max(1, min(size[0], SIDE // line))
        return math.ceil(size[0] / lines), 2.0 * size[0] * line**2 * (lines + reach[0])

    def _is_inside(self, place: Size) -> bool:
        """Whether any pixel reads what is so far from it."""
        return all(abs(a) < n for a, n in zip(place, self.size, strict=True))

    @cached_property
    def inner(self) -> Substitution | None:
        """What solves one line that is too long for an explicit inverse."""
        if self.line <= MOST_SIDE or len(self.size) == 1:
            return None
        return Substitution({place[1:]: tap for place, tap in self.taps.items() if not place[0]}, self.size[1:])

    @cached_property
    def _slab(self) -> tuple[Tensor, Tensor]:
        """S^-1 and S^-1 C, turned round, to be multiplied by from the right."""
        size = (self.lines, *self.size[1:])
        count, channels = math.prod(size), self.channels
        behind = self.reach * math.prod(size[1:])
        some = next(iter(self.taps.values()))
        joined = some.new_zeros(self.groups, count, count + behind, channels, channels)
        pixels = torch.cartesian_prod(*map(torch.arange, size)).view(count, -1).to(some.device)
        most = torch.tensor([self.lines + self.reach, *size[1:]], device=some.device)
        strides = torch.tensor([math.prod(size[d + 1 :]) for d in range(len(size))], device=some.device)
        for place, tap in self.taps.items():
            read = pixels + torch.tensor(place, device=some.device)
            inside = ((read >= 0) & (read < most)).all(1)
            joined[:, inside.nonzero()[:, 0], (read[inside] * strides).sum(1)] = tap.unsqueeze(1)
        joined = joined.transpose(2, 3).reshape(self.groups, count * channels, -1)
        inverse = torch.linalg.inv(joined[:, :, : count * channels])
        return inverse.mT.contiguous(), (inverse @ joined[:, :, count * channels :]).mT.contiguous()

    def prepare(self) -> None:
        """Factor now."""
        if self.inner is None:
            self._slab  # noqa: B018
        else:
            self.inner.prepare()

    def solve(self, y: Tensor) -> Tensor:
        """x. y: (groups, batch, *size, channels)."""
        if self.inner is not None:
            return self._by_lines(y)
        inverse, coupling = self._slab
        rows, step, tail = y.flatten(2), self.lines * self.line, self.reach * self.line
        left = rows.shape[2] % step
        whole = rows[:, :, left:].unflatten(2, (-1, step)).flatten(1, 2) @ inverse
        parts = list(whole.unflatten(1, (y.shape[1], -1)).unbind(2))
        if left:  # the lines of the first slab that there are not would stand before it: the corner of its matrix does
            parts.insert(0, rows[:, :, :left] @ inverse[:, -left:, -left:])
        behind, solved = rows[:, :, :0], []
        for part in reversed(parts):
            if behind.shape[2]:
                part = torch.baddbmm(part, behind, coupling[:, : behind.shape[2], -part.shape[2] :], alpha=-1)
            solved.append(part)
            behind = torch.cat([part, behind], 2)[:, :, :tail] if tail > part.shape[2] else part[:, :, :tail]
        return torch.cat(solved[::-1], 2).view_as(y)

    def _by_lines(self, y: Tensor) -> Tensor:
        assert self.inner is not None
        beside = [None] * len(self.inner.size)
        coupled = [(place, tap) for place, tap in self.taps.items() if place[0]]
        solved: dict[int, Tensor] = {}
        for i in range(self.size[0] - 1, -1, -1):
            rest = y[:, :, i]
            for place, tap in coupled:
                if i + place[0] in solved:
                    rest = rest - _moved(solved[i + place[0]], place[1:]) @ tap.mT[(slice(None), *beside)]
            solved[i] = self.inner.solve(rest)
        return torch.stack([solved[i] for i in range(self.size[0])], 2)


def _moved(image: Tensor, place: Size) -> Tensor:
    """At each pixel what is so far from it, zero beyond the border.  image: (groups, batch, *size, channels)."""
    for axis, step in enumerate(place, start=2):
        if step:
            zeros = image.narrow(axis, 0, abs(step)).new_zeros(1).expand_as(image.narrow(axis, 0, abs(step)))
            kept = image.narrow(axis, max(step, 0), image.shape[axis] - abs(step))
            image = torch.cat([kept, zeros] if step > 0 else [zeros, kept], axis)
    return image
