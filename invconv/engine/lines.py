"""Whole lines of the torus: the sides of a border system that have them, and their Fourier transform.

Any two lines are joined by a circulant matrix, so that the FFT along them makes of a pair one number a frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from invconv.engine.spectrum import Grid
from invconv.engine.spectrum import multiplicity as of_grid
from invconv.engine.windows import Places


class Kind(Enum):
    """Which places of a side a part of M joins."""

    SCATTERED = "scattered"
    LINES = "lines"
    STARTS = "starts"
    """The first places of the lines: they have the first columns of the lines' circulant matrices."""

    def of(self, places: Places) -> Places:
        """The places of this kind."""
        return places.parts[self.value]


def axis_of_lines(rows: Kind, columns: Kind) -> int | None:
    """The axis of what `gather` gives on which there are lines: 2 for rows, 3 for columns."""
    return 2 if rows is Kind.LINES else 3 if columns is Kind.LINES else None


@dataclass(frozen=True)
class Side:
    """Rows of M, ordered by channel and place, or columns, ordered by place and channel, as `gather` gives them.

    Args:
        places: of the torus, outside a window.
        channels: values at each place, for each group.
        by_channel: whether the values are ordered by channel first, as rows are.
    """

    places: Places
    channels: int
    by_channel: bool

    @property
    def on_lines(self) -> int:
        """Rows or columns of lines at each frequency."""
        return self.places.lines * self.channels

    def count(self, kind: Kind) -> int:
        """Rows or columns of this kind; those of lines are counted at each frequency."""
        return self.places.scattered * self.channels if kind is Kind.SCATTERED else self.on_lines

    def without_lines(self) -> Side:
        """This side with its lines taken for places like others."""
        return replace(self, places=replace(self.places, scattered=len(self.places)))

    def flat(self, values: Tensor) -> Tensor:
        """(groups, channels, places, ...) -> (groups, channels * places, ...)."""
        return (values if self.by_channel else values.transpose(1, 2)).flatten(1, 2)

    def unflat(self, values: Tensor) -> Tensor:
        """(groups, channels * places, ...) -> (groups, channels, places, ...), the inverse of `flat`."""
        places = values.shape[1] // self.channels
        shape = (self.channels, places) if self.by_channel else (places, self.channels)
        unflat: Tensor = values.unflatten(1, shape)
        return unflat if self.by_channel else unflat.transpose(1, 2)


@dataclass(frozen=True)
class Lines:
    """The lines of a torus along all axes but the first, and the FFT along them."""

    grid: Grid

    def transform(self, x: Tensor, axis: int) -> Tensor:
        """The FFT along lines, whose places are on this axis: it becomes two, lines and frequencies."""
        size = self.grid.size[1:]
        lines = x.shape[axis] // math.prod(size)
        if not x.numel():  # which not every FFT library takes
            shape = (*x.shape[:axis], lines, math.prod(self.grid.half_size[1:]), *x.shape[axis + 1 :])
            return x.new_zeros(shape, dtype=x.dtype.to_complex())
        along = tuple(range(axis + 1, axis + 1 + len(size)))
        spectrum: Tensor = torch.fft.rfftn(x.unflatten(axis, (lines, *size)), dim=along)
        return spectrum.flatten(along[0], along[-1])

    def back(self, x: Tensor, axis: int) -> Tensor:
        """The inverse FFT along lines: two axes, lines and frequencies, become one of places."""
        size = self.grid.size[1:]
        if not x.numel():
            return x.real.new_zeros(*x.shape[:axis], x.shape[axis] * math.prod(size), *x.shape[axis + 2 :])
        along = tuple(range(axis + 1, axis + 1 + len(size)))
        values: Tensor = torch.fft.irfftn(x.unflatten(axis + 1, self.grid.half_size[1:]), s=size, dim=along)
        return values.flatten(axis, along[-1])

    def multiplicity(self, device: torch.device) -> Tensor:
        """How many frequencies along the lines each stored one stands for."""
        return of_grid(self.grid, device).view(self.grid.half_size)[0].flatten()

    def scales(self, like: Tensor) -> Tensor:
        """Factors that make the FFT along lines orthogonal, on the half spectrum."""
        return (self.multiplicity(like.device) / math.prod(self.grid.size[1:])).sqrt().to(like.real.dtype)
