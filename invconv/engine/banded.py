"""The entries of an inverse that a kernel's taps meet, without the rest of it, from a QR by blocks of image lines.

In the order of its lines a square layer is block tridiagonal, and of X = A^-1 the trace tr(X dA) needs the same three
diagonals.  Q is a product of turns of two block rows each,

    [ P_i  S_i ] [ the row carried on to i ]     row i of R, which has three blocks,
    [ T_i  W_i ] [ row i + 1 of A          ]  =  the row carried on to i + 1,

and what is carried on of the identity, c_i, is orthonormal and reaches no further than block i.  So from R X = Q',

    X_i = Y_i c_i  as far as block i,      Y_i = R_ii^-1 (P_i - R_i,i+1 Y_i+1 T_i - R_i,i+2 Y_i+2 T_i+1 T_i),

from the last line to the first.  Nothing is inverted but the triangles of R: rounding grows with the condition number
of A, where without pivots between blocks it would grow with those of its leading blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine import memory
from invconv.engine.convolution import Convolution
from invconv.engine.cost import CALL
from invconv.geometry import Size
from invconv.threads import cached_property

STEP = 45.0
"""Operations that a line of blocks takes, in third powers of their side.  Speed only."""

CALLS = 10
"""Steps of a few calls that a line of blocks takes besides.  Speed only."""

MOST_DEFECT = 1e-6
"""How far a gradient may be, relatively, from what it has to be along each channel (see `trust`).

The QR is as good as its largest rows; refined solutions are better where one matrix has rows of all sizes, as those of
[1.5, 1] have it, whose inverse grows along the line: at 70 pixels the defect is 1e-6, and the error 1e-4 against 1e-16.
"""

BLOCKS = 8
"""Blocks held for each line: three of A, in whose place come those of R and of X, four of Q, and what passes.

Speed only: where memory is short, the other way is taken.
"""


def banded_gradient(conv: Convolution, most: float) -> Tensor | None:
    """The gradient of log |det A| by the kernel; None where A has no band, or rounding too much of its digits.

    Args:
        conv: a square map of full rank, in float64.
        most: operations that it may take.
    """
    bands = _bands(conv)
    if not bands or sum(band.operations for band in bands) > most:
        return None
    if memory.shortage(conv.device, bands[0].bytes, "the band", 0.8):
        return None
    gradient = torch.cat([band.gradient() for band in bands])
    along = (gradient * conv.weight).flatten(1).sum(1) / math.prod(conv.output_size)
    return gradient if (along - 1).abs().max() < MOST_DEFECT else None


def banded_cost(conv: Convolution) -> float:
    """Operations that `banded_gradient` takes, about; infinite where A has no band."""
    return sum(band.operations for band in _bands(conv)) or math.inf


def _bands(conv: Convolution) -> list[Band]:
    """That of each group; none where one has none."""
    geometry = replace(conv.geometry, groups=1)
    parts = [replace(conv, weight=part, geometry=geometry) for part in conv.weight.chunk(conv.geometry.groups)]
    bands = [band for part in parts if (band := Band.of(part)) is not None]
    return bands if len(bands) == len(parts) else []


@dataclass(frozen=True, eq=False)
class Band:
    """A square map of one group, cut into blocks of lines along an axis of the image.

    Args:
        conv: the map.
        axis: of the image.
    """

    conv: Convolution
    axis: int

    @classmethod
    def of(cls, conv: Convolution) -> Band | None:
        """The band with the fewest operations; None where along no axis the lines of outputs and inputs match."""
        sizes = zip(conv.output_size, conv.geometry.stride, conv.input_size, strict=True)
        bands = [cls(conv, axis) for axis, (m, s, n) in enumerate(sizes) if m * s == n]
        return min(bands, key=lambda band: band.operations, default=None)

    @cached_property
    def _read(self) -> Tensor:
        """The place that each output reads by each tap, -1 for none: (taps, outputs)."""
        return self.conv.sources()

    @cached_property
    def _outputs(self) -> _Places:
        """Where the outputs of one channel are."""
        return _Places.of(torch.arange(self._read.shape[1]), self.conv.output_size, self.axis)

    @cached_property
    def _inputs(self) -> _Places:
        """Where what they read is."""
        return _Places.of(self._read, self.conv.input_size, self.axis)

    @cached_property
    def _apart(self) -> Tensor:
        """Lines of outputs from each output to what it reads: (taps, outputs)."""
        line = self._inputs.line.div(self.conv.geometry.stride[self.axis], rounding_mode="floor")
        return torch.where(self._read < 0, 0, line - self._outputs.line)

    @cached_property
    def lines(self) -> int:
        """Lines of outputs in a block: as far as a tap reads."""
        return max(1, int(self._apart.abs().max()))

    @property
    def side(self) -> int:
        """Unknowns of a block."""
        return self.lines * self.conv.shape[0] // self.conv.output_size[self.axis]

    @property
    def count(self) -> int:
        """Blocks on the diagonal, of which the last may have fewer lines."""
        return math.ceil(self.conv.output_size[self.axis] / self.lines)

    @property
    def operations(self) -> float:
        """What the gradient takes, about, in operations of a product of matrices."""
        return self.count * (CALLS * CALL + STEP * float(self.side) ** 3)

    @property
    def bytes(self) -> int:
        """Memory at the peak, about."""
        return 8 * (BLOCKS * self.count + 20) * self.side**2

    def _entries(self) -> Iterator[Tensor]:
        """For each output channel, the entries of the flat blocks that its taps are added to: (ins, taps, outputs).

        One entry more than there are stands for the zeros of a border.
        """
        (outs, ins), outputs, inputs, lines = self.conv.weight.shape[:2], self._outputs, self._inputs, self.lines
        block = outputs.line.div(lines, rounding_mode="floor")
        beside = (outputs.line + self._apart).div(lines, rounding_mode="floor") - block + 1
        corner = (3 * block + beside) * self.side**2
        stride = self.conv.geometry.stride[self.axis]
        columns = torch.stack([inputs.within(lines * stride, channel, ins) for channel in range(ins)])
        for channel in range(outs):
            entries = corner + outputs.within(lines, channel, outs) * self.side + columns
            yield torch.where(self._read < 0, 3 * self.count * self.side**2, entries).to(self.conv.device)

    def blocks(self) -> Tensor:
        """A: (count, 3, side, side), of each row the blocks before the diagonal, on it and after it.

        The last block has the identity in place of lines that it lacks.
        """
        flat = self.conv.weight.new_zeros(3 * self.count * self.side**2 + 1)
        for entries, taps in zip(self._entries(), self.conv.weight.flatten(2), strict=True):
            flat.index_add_(0, entries.flatten(), taps[..., None].expand(entries.shape).flatten())
        blocks = flat[:-1].view(self.count, 3, self.side, self.side)
        blocks[-1, 1].diagonal()[self.conv.shape[0] - (self.count - 1) * self.side :] = 1
        return blocks

    def gradient(self) -> Tensor:
        """The gradient of log |det A| by the kernel."""
        blocks = self.blocks()
        invert_in_place(blocks)
        flat = torch.cat([blocks.flatten(), blocks.new_zeros(1)])
        return torch.stack([flat[entries].sum(-1) for entries in self._entries()]).view(self.conv.weight.shape)


class _Places(NamedTuple):
    """Places of an image, by lines."""

    line: Tensor
    """The line of each."""
    along: Tensor
    """Its place on the line."""
    length: int
    """Places of a line."""

    @classmethod
    def of(cls, places: Tensor, size: Size, axis: int) -> _Places:
        """Places as they are numbered in an image of this size."""
        inner = math.prod(size[axis + 1 :])
        line, before = places.div(inner, rounding_mode="floor"), inner * size[axis]
        along = places.div(before, rounding_mode="floor") * inner + places % inner
        return cls(line % size[axis], along, math.prod(size) // size[axis])

    def within(self, lines: int, channel: int, channels: int) -> Tensor:
        """Where a channel of each place is in a block of so many lines."""
        return (self.line % lines * channels + channel) * self.length + self.along


def invert_in_place(blocks: Tensor) -> None:
    """Put the three diagonals of X', X = A^-1, in place of those of A: (count, 3, side, side)."""
    turns, side, last = _triangulate(blocks), blocks.shape[-1], len(blocks) - 1
    nothing = blocks.new_zeros(side, side)
    carried = [nothing, nothing]  # Y_j T_j-1 for the next two j
    after = nothing  # X_i+1,i, whose place R holds until its line has been solved for
    for i in range(last, -1, -1):
        triangle, first, second = blocks[i]
        p, s, t, _ = _parts(turns[i])
        y = _solve(triangle, p - first @ carried[0] - second @ carried[1] @ t)
        if i < last:
            own, below = blocks[i + 1, 1].mT, blocks[i + 1, 2].mT
            blocks[i + 1, 0] = _solve(triangle, s - first @ own - second @ below).mT
        blocks[i, 2] = after.mT
        blocks[i, 1] = y.mT
        if i:
            _, _, t, w = _parts(turns[i - 1])
            blocks[i, 1] = (y @ w).mT
            carried = [y @ t, carried[0]]
            after = carried[0] if i == 1 else carried[0] @ _parts(turns[i - 2])[3]
    blocks[0, 0] = 0


def _triangulate(blocks: Tensor) -> list[Tensor]:
    """Put the rows of R in place of those of A: R_ii, R_i,i+1, R_i,i+2.  Gives the turns, transposed."""
    turns, (diagonal, right) = [], blocks[0, 1:].clone()
    for i, (before, own, after) in enumerate(blocks[1:].unbind()):
        q, r = torch.linalg.qr(torch.cat([diagonal, before]), mode="complete")
        p, s, t, w = _parts(q.mT)
        turns.append(q.mT)
        blocks[i, 0], blocks[i, 1], blocks[i, 2] = r[: len(p)], p @ right + s @ own, s @ after
        diagonal, right = t @ right + w @ own, w @ after
    q, r = torch.linalg.qr(diagonal)
    blocks[-1, 0], blocks[-1, 1:] = r, 0
    return [*turns, torch.block_diag(q.mT, torch.zeros_like(q))]


def _parts(turn: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """P, S, T and W."""
    side = len(turn) // 2
    return turn[:side, :side], turn[:side, side:], turn[side:, :side], turn[side:, side:]


def _solve(triangle: Tensor, right: Tensor) -> Tensor:
    """R^-1 right."""
    solution: Tensor = torch.linalg.solve_triangular(triangle, right, upper=True)
    return solution
