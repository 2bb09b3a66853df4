"""A convolution on large images, a band of lines at a time: what is on its way takes the memory of a band.

Outputs j0 to j1 read the lines of the padded image from j0 stride to (j1 - 1) stride + e, which are a smaller image
with the borders of the whole one where it reaches these, and none elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.threads import cached_property

BAND = 2**22
"""Entries of a band of the inputs and outputs of one image, about.  Memory and speed only."""


@dataclass(frozen=True, eq=False)
class Band:
    """Some lines of outputs, and the lines of the image that they read.

    Args:
        conv: the map on these lines.
        outputs: its lines of outputs.
        start: the first line that it reads, which is before the image where that is a circle.
        size: lines of the image.
    """

    conv: Convolution
    outputs: slice
    start: int
    size: int

    def read(self, x: Tensor) -> Tensor:
        """The lines of an image that it reads."""
        count = self.conv.input_size[0]
        if 0 <= self.start and self.start + count <= self.size:
            return x.narrow(2, self.start, count)
        return x.index_select(2, self._lines.to(x.device))

    def add(self, x: Tensor, lines: Tensor) -> None:
        """Add to the lines of an image that it reads."""
        if 0 <= self.start and self.start + lines.shape[2] <= self.size:
            x.narrow(2, self.start, lines.shape[2]).add_(lines)
        else:
            x.index_add_(2, self._lines.to(x.device), lines)

    @property
    def _lines(self) -> Tensor:
        return torch.arange(self.start, self.start + self.conv.input_size[0]) % self.size


@dataclass(frozen=True, eq=False)
class Bands:
    """A map in bands.

    Args:
        conv: the map.
        entries: of a band, about.
    """

    conv: Convolution
    entries: int = BAND

    @cached_property
    def all(self) -> list[Band]:
        """The bands, one after the other."""
        lines = self.conv.output_size[0]
        least = -(-sum(self.conv.geometry.padding[0]) // self.conv.geometry.stride[0]) + 1
        count = max(1, lines * self.entries // max(1, sum(self.conv.shape)), least)
        if lines < 2 * count:
            return [Band(self.conv, slice(0, lines), 0, self.conv.input_size[0])]
        return list(self._cut(lines, count))

    def _cut(self, lines: int, count: int) -> Iterator[Band]:
        geometry, n = self.conv.geometry, self.conv.input_size[0]
        left, stride, extent = geometry.padding[0][0], geometry.stride[0], geometry.extent[0]
        for first in range(0, lines - count + 1, count):
            last = first + count if first + 2 * count <= lines else lines
            start, end = first * stride - left, (last - 1) * stride + extent - left
            before, after = max(0, -start), max(0, end - n)
            if geometry.padding_mode == "circular":
                before = after = 0
            else:
                start, end = max(0, start), min(n, end)
            own = replace(geometry, padding=((before, after), *geometry.padding[1:]))
            conv = Convolution(self.conv.weight, own, (end - start, *self.conv.input_size[1:]))
            yield Band(conv, slice(first, last), start, n)

    def residual(self, y: Tensor, x: Tensor) -> Tensor:
        """y - A x."""
        rest = torch.empty_like(y)
        for band in self.all:
            torch.sub(y[:, :, band.outputs], band.conv.forward(band.read(x)), out=rest[:, :, band.outputs])
        return rest

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        y = x.new_empty(len(x), *self.conv.y_shape)
        for band in self.all:
            y[:, :, band.outputs] = band.conv.forward(band.read(x))
        return y

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y."""
        x = y.new_zeros(len(y), *self.conv.x_shape)
        for band in self.all:
            band.add(x, band.conv.adjoint(y[:, :, band.outputs]))
        return x

    def normal_residual(self, y: Tensor, x: Tensor) -> Tensor:
        """A'(y - A x)."""
        rest = torch.zeros_like(x)
        for band in self.all:
            band.add(rest, band.conv.adjoint(y[:, :, band.outputs] - band.conv.forward(band.read(x))))
        return rest
