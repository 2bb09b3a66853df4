"""The dense system M of the border, factored: what is circulant in it in frequency, the rest by LU.

The unknowns are values at places outside a window (see `windows`), of which most make up whole lines of the torus.  Any
two lines are joined by a circulant matrix.  After an orthogonal Fourier transform along the lines M becomes

    [ R  B ]         R block-diagonal, a small complex matrix for each frequency,
    [ C  T ],        S = T - C R^-1 B, of the scattered places alone, dense,

and log |det M| = sum over the full spectrum of log |det R_w| + log |det S|.  On a square image the scattered places are
half of all: S has a quarter of the entries of M and takes an eighth of the work.

R^-1 belongs to the layer that is cyclic along the lines and real across them.  It has its pivots from nobody, and may
be worse than M: in random kernels it costs up to two digits, which a step of refinement takes back.  Where it would
cost more, M is factored whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from invconv.engine.lu import lu_factor
from invconv.engine.solvers.circulant import factor, frobenius
from invconv.engine.spectrum import Grid, multiplicity
from invconv.engine.windows import Places, gather, scatter, symbol, symbol_adjoint

LOST = 0.35
"""Share of the digits that eliminating the lines first may cost, before refinement."""

Values = list[Tensor]
"""Of each side: (groups, channels, places, batch)."""


@dataclass(frozen=True)
class Side:
    """Rows of M, ordered by channel and place, or columns, ordered by place and channel, as `gather` gives them."""

    places: Places
    channels: int
    by_channel: bool

    @property
    def on_lines(self) -> int:
        """How many there are at each frequency."""
        return self.places.lines * self.channels

    def without_lines(self) -> Side:
        """Lines are places like others."""
        return replace(self, places=replace(self.places, scattered=len(self.places)))

    def flat(self, values: Tensor) -> Tensor:
        """(groups, channels, places, ...) -> (groups, channels * places, ...)."""
        return (values if self.by_channel else values.transpose(1, 2)).flatten(1, 2)

    def unflat(self, values: Tensor) -> Tensor:
        """The inverse of `flat`."""
        if self.by_channel:
            return values.unflatten(1, (self.channels, values.shape[1] // self.channels))
        return values.unflatten(1, (values.shape[1] // self.channels, self.channels)).transpose(1, 2)


class RingFactors:
    """M, of which blocks[i][j] are the map on the torus that joins columns[j] to rows[i]."""

    def __init__(self, blocks: Sequence[Sequence[Tensor]], rows: Sequence[Side], columns: Sequence[Side], grid: Grid):
        self.grid, self.rows, self.columns = grid, rows, columns
        self.groups = blocks[0][0].shape[0]
        symbols = [
            [symbol(part, grid, (a.places.phases, b.places.phases)) for part, b in zip(line, columns, strict=True)]
            for line, a in zip(blocks, rows, strict=True)
        ]
        if grid.pointwise or not self._factor(symbols):
            self.rows, self.columns = ([side.without_lines() for side in sides] for sides in (rows, columns))
            self._factor(symbols)

    def _factor(self, symbols: list[list[Tensor]]) -> bool:
        """False where M is not square on the lines, or R not well conditioned."""
        on_lines = sum(side.on_lines for side in self.rows)
        if on_lines != sum(side.on_lines for side in self.columns):
            return False
        self.log_det = symbols[0][0].new_zeros((), dtype=torch.float64)
        self._eliminated = on_lines > 0
        if self._eliminated:
            r = self._between(symbols, "lines", "starts")
            inverse, log_dets = factor(r)
            # The root mean square gains of R and R^-1, multiplied.
            growth = (frobenius(r).norm() * frobenius(inverse).norm() / r[..., 0].numel()).item()
            if not growth < torch.finfo(r.dtype).eps ** -LOST:
                return False
            self._inverse = inverse
            self.log_det = (log_dets * self._multiplicity(r.device)).sum()
        s = self._between(symbols, "scattered", "scattered")
        if self._eliminated:
            scales = self._scales(s).view(-1, 1, 1)
            self._to_lines = _real(self._inverse @ self._between(symbols, "lines", "scattered").mul_(scales))
            self._to_scattered = _real(self._between(symbols, "scattered", "lines").mul_(scales).mT).mT
            s -= self._to_scattered @ self._to_lines
        self._lu, self._pivots = lu_factor(s)
        self.log_det = self.log_det + self._lu.diagonal(dim1=-2, dim2=-1).abs().double().log().sum()
        return True

    def _between(self, symbols: list[list[Tensor]], rows: str, columns: str) -> Tensor:
        """A part of M, (groups, rows, columns); of lines in frequency, (groups, frequencies, rows, columns).

        The `starts` of the lines have the first columns of their circulant matrices.
        """

        def pair(x: Tensor, a: Places, b: Places) -> Tensor:
            x = gather(x, a.parts[rows], b.parts[columns])
            axis = 2 if rows == "lines" else 3 if columns == "lines" else None
            if axis is None:
                return x.flatten(3).flatten(1, 2)
            return self._transform(x, axis).movedim(axis + 1, 1).flatten(4).flatten(2, 3)

        parts = [
            [pair(x, a.places, b.places) for x, b in zip(line, self.columns, strict=True)]
            for line, a in zip(symbols, self.rows, strict=True)
        ]
        return torch.cat([torch.cat(line, -1) for line in parts], -2) if len(parts) > 1 else parts[0][0]

    # -- lines and their frequencies -----------------------------------------------------------------------------------

    def _transform(self, x: Tensor, axis: int) -> Tensor:
        """The FFT along lines, whose places are on this axis: it becomes two, lines and frequencies."""
        size = self.grid.size[1:]
        lines = x.shape[axis] // math.prod(size)
        if not x.numel():  # which not every FFT library takes
            shape = (*x.shape[:axis], lines, math.prod(self.grid.half_size[1:]), *x.shape[axis + 1 :])
            return x.new_zeros(shape, dtype=x.dtype.to_complex())
        along = tuple(range(axis + 1, axis + 1 + len(size)))
        return torch.fft.rfftn(x.unflatten(axis, (lines, *size)), dim=along).flatten(along[0], along[-1])

    def _back(self, x: Tensor, axis: int) -> Tensor:
        """Its inverse."""
        size = self.grid.size[1:]
        if not x.numel():
            return x.real.new_zeros(*x.shape[:axis], x.shape[axis] * math.prod(size), *x.shape[axis + 2 :])
        along = tuple(range(axis + 1, axis + 1 + len(size)))
        x = x.unflatten(axis + 1, self.grid.half_size[1:])
        return torch.fft.irfftn(x, s=size, dim=along).flatten(axis, along[-1])

    def _multiplicity(self, device: torch.device) -> Tensor:
        return multiplicity(self.grid, device).view(self.grid.half_size)[0].flatten()

    def _scales(self, like: Tensor) -> Tensor:
        """What makes the FFT along lines orthogonal, on the half spectrum."""
        return (self._multiplicity(like.device) / math.prod(self.grid.size[1:])).sqrt().to(like.real.dtype)

    def _down(self, values: Values, sides: Sequence[Side]) -> tuple[Tensor, Tensor | None]:
        """Values at scattered places, (groups, channels * places, batch), and on lines, with a further axis."""
        pairs = list(zip(sides, values, strict=True))
        scattered = torch.cat([side.flat(v[:, :, : side.places.scattered]) for side, v in pairs], 1)
        if not self._eliminated:
            return scattered, None
        lines = [side.flat(self._transform(v[:, :, side.places.scattered :], 2)).transpose(1, 2) for side, v in pairs]
        return scattered, torch.cat(lines, 2) * self._scales(scattered).view(-1, 1, 1)

    def _up(self, scattered: Tensor, lines: Tensor | None, sides: Sequence[Side]) -> Values:
        """The inverse of `_down`."""
        parts = scattered.split([side.places.scattered * side.channels for side in sides], 1)
        values = [side.unflat(part) for side, part in zip(sides, parts, strict=True)]
        if lines is None:
            return values
        parts = (lines / self._scales(scattered).view(-1, 1, 1)).transpose(1, 2).split([s.on_lines for s in sides], 1)
        lined = [self._back(side.unflat(part), 2) for side, part in zip(sides, parts, strict=True)]
        return [torch.cat(both, 2) for both in zip(values, lined, strict=True)]

    # -- solutions -----------------------------------------------------------------------------------------------------

    def solve(self, values: Values) -> Values:
        """M^-1 v."""
        scattered, lines = self._down(values, self.rows)
        if lines is not None:
            lines = self._inverse @ lines
            scattered = scattered - self._to_scattered @ _real(lines)
        scattered = torch.linalg.lu_solve(self._lu, self._pivots, scattered)
        if lines is not None:
            lines = lines - _complex(self._to_lines @ scattered, lines.shape)
        return self._up(scattered, lines, self.columns)

    def solve_adjoint(self, values: Values) -> Values:
        """(M^-1)' v."""
        scattered, lines = self._down(values, self.columns)
        if lines is not None:
            scattered = scattered - self._to_lines.mT @ _real(lines)
        scattered = torch.linalg.lu_solve(self._lu, self._pivots, scattered, adjoint=True)
        if lines is not None:
            lines = lines - _complex(self._to_scattered.mT @ scattered, lines.shape)
            lines = (lines.mH @ self._inverse).mH
        return self._up(scattered, lines, self.rows)

    def log_det_gradient(self) -> list[list[Tensor]]:
        """G_f for each of the blocks X_f:  d log |det M| = sum over the full spectrum of Re tr(G_f^H dX_f).

        From tr(M^-1 dM), part by part: what `_between` gathers and transforms is transformed back and scattered.
        """
        unit = torch.eye(self._lu.shape[-1], dtype=self._lu.dtype, device=self._lu.device).expand_as(self._lu)
        adjoint = torch.linalg.lu_solve(self._lu, self._pivots, unit, adjoint=True)  # of S^-1
        parts = [("scattered", "scattered", adjoint)]
        if self._eliminated:
            shape = *self._inverse.shape[:3], adjoint.shape[-1]
            scales = self._scales(adjoint).view(-1, 1, 1)
            multiplicity = self._multiplicity(adjoint.device).to(adjoint.dtype).view(-1, 1, 1)
            # Of -M^-1, transposed: from scattered places to lines, R^-1 B S^-1, and from lines, S^-1 C R^-1.
            to_lines = _complex(self._to_lines @ adjoint.mT, shape)
            from_lines = self._inverse.mH @ _complex(self._to_scattered.mT @ adjoint, shape)
            # R^-1 + R^-1 B S^-1 C R^-1, the two halves of the spectrum together.
            both = multiplicity * self._inverse + _complex(self._to_lines, shape) @ from_lines.mH
            places = math.prod(self.grid.size[1:])
            parts += [
                ("scattered", "lines", (to_lines / -scales).mT),
                ("lines", "scattered", from_lines / -scales),
                ("lines", "starts", (both.conj() * (places / multiplicity)).mT),
            ]
        found: list[list[Tensor]] = [[] for _ in self.rows]
        for i, a in enumerate(self.rows):
            for j, b in enumerate(self.columns):
                phases = a.places.phases, b.places.phases
                shape = self.groups, math.prod((*self.grid.size, *phases)), a.channels, b.channels
                symbols = adjoint.new_zeros(shape)
                for rows, columns, x in parts:
                    self._scatter(x, symbols, rows, columns, i, j)
                found[i].append(symbol_adjoint(symbols, self.grid, phases))
        return found

    def _scatter(self, x: Tensor, symbols: Tensor, rows: str, columns: str, i: int, j: int) -> None:
        """The adjoint of what `_between` does for the sides i and j, added to the symbol."""

        def own(x: Tensor, sides: Sequence[Side], kind: str, index: int, dim: int) -> Tensor:
            counts = [s.on_lines if kind != "scattered" else s.places.scattered * s.channels for s in sides]
            return x.split(counts, dim)[index]

        a, b = self.rows[i], self.columns[j]
        x = own(own(x, self.rows, rows, i, -2), self.columns, columns, j, -1)
        x = x.unflatten(-1, (x.shape[-1] // b.channels, b.channels))
        x = x.unflatten(-3, (a.channels, x.shape[-3] // a.channels))
        if x.dim() > 5:
            axis = 2 if rows == "lines" else 3
            x = self._back(x.movedim(1, axis + 1), axis)
        scatter(x, symbols, a.places.parts[rows], b.places.parts[columns])

    @cached_property
    def gain(self) -> float:
        """||M^-1 v|| / ||v||, root mean square over random v."""
        if not self.unknowns:
            return 0.0
        generator = torch.Generator().manual_seed(0)
        shapes = [(len(self._lu), side.channels, len(side.places), 4) for side in self.rows]
        probes = [torch.randn(shape, generator=generator, dtype=torch.float64).to(self._lu) for shape in shapes]
        return (_norm(self.solve(probes)) / _norm(probes)).item()

    @property
    def unknowns(self) -> int:
        return sum(len(side.places) * side.channels for side in self.rows)

    @property
    def bytes(self) -> int:
        """Memory held."""
        return sum(t.untyped_storage().nbytes() for t in vars(self).values() if isinstance(t, Tensor))


def _real(x: Tensor) -> Tensor:
    """(groups, frequencies, n, batch) -> (groups, frequencies * n * 2, batch)."""
    return torch.view_as_real(x.resolve_conj()).movedim(4, 3).flatten(1, 3)


def _complex(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `_real`."""
    return torch.complex(*x.view(*shape[:3], 2, shape[3]).unbind(3))


def _norm(values: Values) -> Tensor:
    return torch.stack([v.norm() for v in values]).norm()
