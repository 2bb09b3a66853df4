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

import torch
from torch import Tensor

from invconv.engine.blocks import factor, frobenius, lu_factor
from invconv.engine.lines import Kind, Lines, Side, axis_of_lines
from invconv.engine.spectrum import Grid
from invconv.engine.windows import Places, gather, scatter, symbol, symbol_adjoint
from invconv.threads import cached_property

MOST_DIGITS_LOST = 0.35
"""Share of the digits that eliminating the lines first may cost, before refinement."""

Values = list[Tensor]
"""Values at the places of each side: (groups, channels, places, batch)."""


def factor_border(
    blocks: Sequence[Sequence[Tensor]], rows: Sequence[Side], columns: Sequence[Side], grid: Grid, scale: float = 0.0
) -> BorderSystem:
    """M, factored, of which blocks[i][j] are the map on the torus that joins columns[j] to rows[i].

    Its lines are eliminated first where it is square on them, and where that costs few digits.  `scale` is that of
    numbers whose difference the blocks on the lines are: all of such an R may be rounding.
    """
    symbols = [
        [symbol(part, grid, (a.places.phases, b.places.phases)) for part, b in zip(line, columns, strict=True)]
        for line, a in zip(blocks, rows, strict=True)
    ]
    if not grid.pointwise and sum(side.on_lines for side in rows) == sum(side.on_lines for side in columns):
        system = BorderSystem(symbols, rows, columns, grid, scale)
        if system.keeps_digits:
            return system
    rows, columns = ([side.without_lines() for side in sides] for sides in (rows, columns))
    return BorderSystem(symbols, rows, columns, grid)


class BorderSystem:
    """The dense system M of the border, factored; `factor_border` decides how.

    Args:
        symbols: the kernel on the torus of the map from columns[j] to rows[i], for each i and j.
        rows: the sides on which M v has its values.
        columns: the sides on which v has its values.
        grid: of the torus.
        scale: of numbers whose difference R may be.
    """

    def __init__(
        self,
        symbols: list[list[Tensor]],
        rows: Sequence[Side],
        columns: Sequence[Side],
        grid: Grid,
        scale: float = 0.0,
    ) -> None:
        self.grid, self.rows, self.columns = grid, rows, columns
        self._lines = Lines(grid)
        self.groups = len(symbols[0][0])
        self.log_det = symbols[0][0].new_zeros((), dtype=torch.float64)
        self.keeps_digits = True
        """Whether R is well conditioned enough; else nothing more is factored."""
        self._eliminated = sum(side.on_lines for side in rows) > 0
        if self._eliminated:
            self._factor_lines(symbols, scale)
        if self.keeps_digits:
            self._factor_scattered(symbols)

    def _factor_lines(self, symbols: list[list[Tensor]], scale: float) -> None:
        """Compute R^-1, what it costs in digits, and its part of the log-determinant."""
        r = self._between(symbols, Kind.LINES, Kind.STARTS)
        self._inverse, log_dets = factor(r)
        # The root mean square gains of R, or of what it is a difference of, and of R^-1, multiplied.
        gain, inverse_gain = (frobenius(x).norm().item() / math.sqrt(r[..., 0].numel()) for x in (r, self._inverse))
        growth = max(gain, scale) * inverse_gain
        self.keeps_digits = growth < torch.finfo(r.dtype).eps ** -MOST_DIGITS_LOST
        self.log_det = (log_dets * self._lines.multiplicity(r.device)).sum()

    def _factor_scattered(self, symbols: list[list[Tensor]]) -> None:
        """Compute S = T - C R^-1 B, its LU factors and its part of the log-determinant."""
        s = self._between(symbols, Kind.SCATTERED, Kind.SCATTERED)
        if self._eliminated:
            scales = self._lines.scales(s).view(-1, 1, 1)
            # Nothing of this size is given a name: it would live on until S is factored.
            self._to_lines = _real(self._inverse @ self._between(symbols, Kind.LINES, Kind.SCATTERED).mul_(scales))
            self._to_scattered = _real(self._between(symbols, Kind.SCATTERED, Kind.LINES).mul_(scales).mT).mT
            s -= self._to_scattered @ self._to_lines
        self._lu, self._pivots = lu_factor(s)
        self.log_det = self.log_det + self._lu.diagonal(dim1=-2, dim2=-1).abs().double().log().sum()

    def _between(self, symbols: list[list[Tensor]], rows: Kind, columns: Kind) -> Tensor:
        """The part of M between two kinds of places: (groups, rows, columns).

        A part that has lines is in frequency: (groups, frequencies, rows, columns).
        """
        axis = axis_of_lines(rows, columns)

        def pair(x: Tensor, a: Places, b: Places) -> Tensor:
            x = gather(x, rows.of(a), columns.of(b))
            if axis is None:
                return x.flatten(3).flatten(1, 2)
            return self._lines.transform(x, axis).movedim(axis + 1, 1).flatten(4).flatten(2, 3)

        heights, widths = [side.count(rows) for side in self.rows], [side.count(columns) for side in self.columns]
        whole: Tensor | None = (
            None  # each part is written into it when it is there: together they would be as much again
        )
        for i, (line, a) in enumerate(zip(symbols, self.rows, strict=True)):
            for j, (x, b) in enumerate(zip(line, self.columns, strict=True)):
                part = pair(x, a.places, b.places)
                if len(heights) == len(widths) == 1:
                    return part
                if whole is None:
                    whole = part.new_empty(*part.shape[:-2], sum(heights), sum(widths))
                top, left = sum(heights[:i]), sum(widths[:j])
                whole[..., top : top + heights[i], left : left + widths[j]] = part
        assert whole is not None, "there are sides"
        return whole

    # -- scattered places and lines -----------------------------------------------------------------------------------

    def _to_parts(self, values: Values, sides: Sequence[Side]) -> tuple[Tensor, Tensor | None]:
        """Values at scattered places, (groups, channels * places, batch), and on lines, with a further axis."""
        pairs = list(zip(sides, values, strict=True))
        scattered = torch.cat([side.flat(v[:, :, : side.places.scattered]) for side, v in pairs], 1)
        if not self._eliminated:
            return scattered, None
        lines = [
            side.flat(self._lines.transform(v[:, :, side.places.scattered :], 2)).transpose(1, 2) for side, v in pairs
        ]
        return scattered, torch.cat(lines, 2) * self._lines.scales(scattered).view(-1, 1, 1)

    def _from_parts(self, scattered: Tensor, lines: Tensor | None, sides: Sequence[Side]) -> Values:
        """Values of each side from their scattered and their line parts, the inverse of `_to_parts`."""
        parts = scattered.split([side.places.scattered * side.channels for side in sides], 1)
        values = [side.unflat(part) for side, part in zip(sides, parts, strict=True)]
        if lines is None:
            return values
        parts = (
            (lines / self._lines.scales(scattered).view(-1, 1, 1)).transpose(1, 2).split([s.on_lines for s in sides], 1)
        )
        lined = [self._lines.back(side.unflat(part), 2) for side, part in zip(sides, parts, strict=True)]
        return [torch.cat(both, 2) for both in zip(values, lined, strict=True)]

    # -- solutions -----------------------------------------------------------------------------------------------------

    def solve(self, values: Values) -> Values:
        """M^-1 v."""
        scattered, lines = self._to_parts(values, self.rows)
        if lines is not None:
            lines = self._inverse @ lines
            scattered = scattered - self._to_scattered @ _real(lines)
        scattered = torch.linalg.lu_solve(self._lu, self._pivots, scattered)
        if lines is not None:
            lines = lines - _complex(self._to_lines @ scattered, lines.shape)
        return self._from_parts(scattered, lines, self.columns)

    def solve_adjoint(self, values: Values) -> Values:
        """(M^-1)' v."""
        scattered, lines = self._to_parts(values, self.columns)
        if lines is not None:
            scattered = scattered - self._to_lines.mT @ _real(lines)
        scattered = torch.linalg.lu_solve(self._lu, self._pivots, scattered, adjoint=True)
        if lines is not None:
            lines = lines - _complex(self._to_scattered.mT @ scattered, lines.shape)
            lines = (lines.mH @ self._inverse).mH
        return self._from_parts(scattered, lines, self.rows)

    def log_det_gradient(self) -> list[list[Tensor]]:
        """G_f for each of the blocks X_f: d log |det M| = sum over the full spectrum of Re tr(G_f^H dX_f).

        From tr(M^-1 dM), part by part: what `_between` gathers and transforms is transformed back and scattered.
        """
        unit = torch.eye(self._lu.shape[-1], dtype=self._lu.dtype, device=self._lu.device).expand_as(self._lu)
        adjoint = torch.linalg.lu_solve(self._lu, self._pivots, unit, adjoint=True)  # of S^-1
        parts = [(Kind.SCATTERED, Kind.SCATTERED, adjoint)]
        if self._eliminated:
            shape = *self._inverse.shape[:3], adjoint.shape[-1]
            scales = self._lines.scales(adjoint).view(-1, 1, 1)
            multiplicity = self._lines.multiplicity(adjoint.device).to(adjoint.dtype).view(-1, 1, 1)
            # Of -M^-1, transposed: from scattered places to lines, R^-1 B S^-1, and from lines, S^-1 C R^-1.
            to_lines = _complex(self._to_lines @ adjoint.mT, shape)
            from_lines = self._inverse.mH @ _complex(self._to_scattered.mT @ adjoint, shape)
            # R^-1 + R^-1 B S^-1 C R^-1, the two halves of the spectrum together.
            both = multiplicity * self._inverse + _complex(self._to_lines, shape) @ from_lines.mH
            places = math.prod(self.grid.size[1:])
            parts += [
                (Kind.SCATTERED, Kind.LINES, (to_lines / -scales).mT),
                (Kind.LINES, Kind.SCATTERED, from_lines / -scales),
                (Kind.LINES, Kind.STARTS, (both.conj() * (places / multiplicity)).mT),
            ]
        return [[self._symbol_gradient(parts, i, j) for j in range(len(self.columns))] for i in range(len(self.rows))]

    def _symbol_gradient(self, parts: Sequence[tuple[Kind, Kind, Tensor]], i: int, j: int) -> Tensor:
        """The gradient by the block of sides i and j: the adjoint of `_between` on all parts of M^-1 transposed."""
        a, b = self.rows[i], self.columns[j]
        phases = a.places.phases, b.places.phases
        shape = self.groups, math.prod((*self.grid.size, *phases)), a.channels, b.channels
        symbols = self._lu.new_zeros(shape)
        for rows, columns, x in parts:
            x = x.split([side.count(rows) for side in self.rows], -2)[i]
            x = x.split([side.count(columns) for side in self.columns], -1)[j]
            x = x.unflatten(-1, (x.shape[-1] // b.channels, b.channels))
            x = x.unflatten(-3, (a.channels, x.shape[-3] // a.channels))
            axis = axis_of_lines(rows, columns)
            if axis is not None:
                x = self._lines.back(x.movedim(1, axis + 1), axis)
            scatter(x, symbols, rows.of(a.places), columns.of(b.places))
        return symbol_adjoint(symbols, self.grid, phases)

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
        """Rows of M, for each group."""
        return sum(len(side.places) * side.channels for side in self.rows)

    @property
    def bytes(self) -> int:
        """Memory held by the factors."""
        return sum(t.untyped_storage().nbytes() for t in self.__dict__.values() if isinstance(t, Tensor))


def _real(x: Tensor) -> Tensor:
    """(groups, frequencies, n, batch) -> (groups, frequencies * n * 2, batch)."""
    return torch.view_as_real(x.resolve_conj()).movedim(4, 3).flatten(1, 3)


def _complex(x: Tensor, shape: Sequence[int]) -> Tensor:
    """(groups, frequencies * n * 2, batch) -> (groups, frequencies, n, batch), the inverse of `_real`."""
    return torch.complex(*x.view(*shape[:3], 2, shape[3]).unbind(3))


def _norm(values: Values) -> Tensor:
    """The norm of the values of all sides together."""
    norm: Tensor = torch.stack([v.norm() for v in values]).norm()
    return norm
