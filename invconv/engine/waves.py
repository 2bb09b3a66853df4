"""Blocks of pixels solved wave by wave: all whose later neighbours are known at once.

Of a block and the blocks o that it reads beside its own,

    y = T x + sum over o of  C_o x_o,      x = T^-1 y - sum over o of  (T^-1 C_o) x_o.

All blocks have the same T and C_o.  Block (p, q) along the two slowest axes belongs to wave w p + q, where w is such
that all that it reads belongs to later waves.  A wave lies in one piece of memory: a solve is one product for all
T^-1 y, and a small one for each wave and neighbour.  Blocks as long as the image along the fast axis are slabs of
lines, one that is the image has an explicit inverse.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from invconv.engine.tiling import Tiling
from invconv.geometry import Size
from invconv.threads import cached_property

Taps = Mapping[Size, Tensor]


class Waves:
    """The solution x of y = A x for images (groups, batch, *size, channels), wave by wave.

    Args:
        tiling: how the image is cut up.
        taps: a matrix (groups, channels, channels) for each place.
        turned: whether the axes are turned round: what comes later has smaller indices.
    """

    def __init__(self, tiling: Tiling, taps: Taps, turned: bool) -> None:
        self.tiling, self.taps, self.turned = tiling, taps, turned
        self.groups = next(iter(taps.values())).shape[0]

    @cached_property
    def factors(self) -> dict[tuple[int, int], Tensor]:
        """For each block that is read T^-1, or -T^-1 C_o of its pixels that are, to be multiplied by from the right."""
        tiling = self.tiling
        size, channels, count = tiling.pixels, tiling.channels, math.prod(tiling.pixels)
        some = next(iter(self.taps.values()))
        pixels = torch.cartesian_prod(*map(torch.arange, size)).view(count, -1)
        strides = torch.tensor([math.prod(size[d + 1 :]) for d in range(len(size))])
        matrices = {o: some.new_zeros(self.groups, count, count, channels, channels) for o in tiling.reads}
        for place, tap in self.taps.items():
            read = pixels + torch.tensor(place)
            blocks = read.div(torch.tensor(size), rounding_mode="floor")
            for offset, matrix in matrices.items():
                inside = (blocks == torch.tensor([*offset, *(0,) * (len(size) - 2)])).all(1)
                within = (read[inside] - blocks[inside] * torch.tensor(size)) * strides
                matrix[:, inside.nonzero()[:, 0].to(some.device), within.sum(1).to(some.device)] = tap.unsqueeze(1)
        if self.turned:
            matrices = {o: matrix.flip(1, 2) for o, matrix in matrices.items()}
        joined = {o: matrix.transpose(2, 3).reshape(self.groups, tiling.side, -1) for o, matrix in matrices.items()}
        inverse = torch.linalg.inv(joined.pop((0, 0)))
        factors = {(0, 0): inverse}
        factors |= {o: -inverse @ matrix[:, :, self._window(o)] for o, matrix in joined.items()}
        return {o: self._single(_flushed(matrix.mT.contiguous())) for o, matrix in factors.items()}

    @property
    def own(self) -> Tensor:
        """T^-1 of the blocks, to be multiplied by from the right."""
        return self.factors[0, 0]

    def prepare(self) -> None:
        """Factor now."""
        self.factors  # noqa: B018

    def operations(self, batch: int) -> float:
        """What a solution of so many images takes."""
        return self.groups * self.tiling.operations(batch)

    @property
    def factor_operations(self) -> float:
        """What the matrices take."""
        return 2.0 * self.groups * self.tiling.side * (self.tiling.side**2 + self.tiling.entries)

    @property
    def entries(self) -> int:
        """Entries of the matrices, and of what is on the way to them."""
        return self.groups * (self.tiling.entries + 3 * len(self.tiling.reads) * self.tiling.side**2)

    def held(self) -> Iterator[Tensor]:
        """The matrices, as far as there are any."""
        yield from self.__dict__.get("factors", {}).values()

    def _window(self, offset: tuple[int, int]) -> slice:
        """The unknowns of a block that are read."""
        low, high = self.tiling.reads[offset]
        if self.turned:
            count = math.prod(self.tiling.pixels)
            low, high = count - high, count - low
        return slice(low * self.tiling.channels, high * self.tiling.channels)

    def _single(self, matrices: Tensor) -> Tensor:
        """The matrix of a single group, for which products are quicker to begin."""
        return matrices[0] if self.groups == 1 else matrices

    @cached_property
    def _steps(self) -> list[tuple[tuple[int, int], int, int, int]]:
        """What is to be done one after the other: an offset, where the blocks that are read and that read begin, count.

        Places are in units of the batch.
        """
        steps = []
        for wave in range(self.tiling.waves - 2, -1, -1):
            for p, q in self.factors:
                first, last = self.tiling.span(wave, p, q)
                if (p, q) != (0, 0) and first < last:
                    read = self._place(wave + self.tiling.weight * p + q, first + p, last + p)
                    steps.append(((p, q), read, self._place(wave, first, last), last - first))
        return steps

    def _place(self, wave: int, first: int, last: int) -> int:
        """Where blocks of a wave lie, by their p, or where they lie if all is turned round."""
        slots = self.tiling.slots
        if slots == 1:
            first, last = 0, 1
        return (self.tiling.waves - 1 - wave) * slots + slots - last if self.turned else wave * slots + first

    def solve(self, y: Tensor) -> Tensor:
        """x. y: (groups, batch, *size, channels)."""
        batch, factors = y.shape[1], self.factors
        add = Tensor.addmm_ if self.groups == 1 else Tensor.baddbmm_
        x = self._in_waves(self._cut(y) @ self.own, batch)
        seen = {o: x[..., self._window(o)] for o in factors}
        for offset, read, block, count in self._steps:
            near = seen[offset].narrow(-2, read * batch, count * batch)
            add(x.narrow(-2, block * batch, count * batch), near, factors[offset])
        return self._joined(x, batch)

    def _cut(self, y: Tensor) -> Tensor:
        """The blocks of images as rows, with zeros where the last ones are not full."""
        tiling = self.tiling
        missing = [count * n - size for count, n, size in zip(tiling.counts, tiling.block, tiling.size, strict=False)]
        if any(missing):
            pads = [(n, 0) if self.turned else (0, n) for n in reversed(missing)]
            y = F.pad(y, ((0, 0) * (len(tiling.size) - 1) + sum(pads, ())))
        (rows, columns), (height, width) = tiling.counts, tiling.block
        cut = y.view(*y.shape[:2], rows, height, columns, width, *tiling.size[2:], tiling.channels)
        blocks = cut.permute(0, 1, 2, 4, 3, 5, *range(6, cut.dim()))
        return self._single(blocks.reshape(self.groups, -1, tiling.side))

    def _in_waves(self, rows: Tensor, batch: int) -> Tensor:
        """Rows of blocks in the order of their waves; there may be others, which nobody reads."""
        tiling = self.tiling
        ordered = rows.view(self.groups, batch, *tiling.counts, -1).permute(0, 2, 3, 1, 4)
        if tiling.slots == 1:
            return self._single(ordered.reshape(self.groups, -1, tiling.side))
        x = rows.new_empty(self.groups, tiling.waves * tiling.slots * batch, tiling.side)
        blocks = self._blocks(x, batch)
        blocks.copy_(ordered.view(blocks.shape))
        return self._single(x)

    def _blocks(self, rows: Tensor, batch: int) -> Tensor:
        """The blocks by their place, (groups, *counts, batch, *pixels, channels), of rows in the order of the waves."""
        tiling = self.tiling
        shape = (self.groups, *tiling.counts, batch, *tiling.pixels, tiling.channels)
        if tiling.slots == 1:
            return rows.view(shape)
        block = batch * tiling.side
        wave = tiling.slots * block
        within = [math.prod(shape[d + 1 :]) for d in range(3, len(shape))]
        return rows.as_strided(shape, (tiling.waves * wave, tiling.weight * wave + block, wave, *within))

    def _joined(self, x: Tensor, batch: int) -> Tensor:
        """The images of blocks."""
        tiling, blocks = self.tiling, self._blocks(x, batch)
        whole = [count * n for count, n in zip(tiling.counts, tiling.block, strict=True)]
        ordered = blocks.permute(0, 3, 1, 4, 2, 5, *range(6, blocks.dim()))
        # Contiguous first: what brings the channels forward next is six times as slow along waves.
        image = ordered.contiguous().view(self.groups, batch, *whole, *tiling.size[2:], tiling.channels)
        for axis, (n, size) in enumerate(zip(whole, tiling.size, strict=False), start=2):
            image = image.narrow(axis, n - size if self.turned else 0, size) if n > size else image
        return image


def _flushed(matrices: Tensor) -> Tensor:
    """Zero for numbers that are below the normal ones, with which processors take 20 times as long."""
    return matrices.masked_fill(matrices.abs() < torch.finfo(matrices.dtype).tiny, 0)
