"""A layer with real borders as two windows on a torus: A = R C P.

P puts the image on the torus and fills in its borders, C is the cyclic layer, R cuts the output image out; nothing
wraps into the windows.  Instead of by P, the borders are described by what they satisfy.  Each place of the torus
outside the image holds zero, or what another place holds (reflect, replicate, circular):

    N z = 0,    (N z)_j = z_j - z_source(j).

This is the same for every padding mode, and leaves the map that is to be inverted block-circulant.

Whole lines of the torus are outside, those past the image along the first axis.  Their sources are whole lines as well
and any two lines are joined by a circulant matrix, which `border` makes use of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invconv.engine.spectrum import (
    Grid,
    first_axis_to_frequency,
    frequency_to_first_axis,
    merge_phases,
    outside_inference,
    split_phases,
)
from invconv.geometry import Geometry, Size
from invconv.threads import cached_property


def smallest_torus(geometry: Geometry, input_size: Size) -> Size:
    """The fewest places, a multiple of the stride, on which nothing wraps into the windows.

    Borders of zeros may be shared by both sides, others not.

    >>> smallest_torus(Geometry.of((3, 3), padding=1), (8, 8))
    (9, 9)
    >>> smallest_torus(Geometry.of((3, 3), padding=1, padding_mode="reflect"), (8, 8))
    (10, 10)
    """
    shared = geometry.padding_mode == "zeros"
    size = []
    outputs = geometry.output_size(input_size)
    for n, m, s, (left, right) in zip(input_size, outputs, geometry.stride, geometry.padding, strict=True):
        border = max(left, right) if shared else left + right
        size.append(max(-(-(n + border) // s), m) * s)
    return tuple(size)


@dataclass(frozen=True, eq=False)
class Places:
    r"""Places of a torus outside a window, and for some of them (`linked`) the place that each takes its value from.

    The scattered ones come first, then line by line those of whole lines, which a torus of one axis does not have.
    `read` is the map N of the module's head; an image on the torus is (batch, channels, \*size * stride).

    Args:
        coarse: (count, dims), the places on the grid after the stride.
        phase: (count,), their phases, flattened.
        size: of the grid after the stride.
        stride: places of the torus for each place of that grid.
        scattered: how many places, the first ones, lie on no whole line.
        sources: the places from which others take their values; None where all are zero.
        linked: which of the places take their values from `sources`.
    """

    coarse: Tensor
    phase: Tensor
    size: Size
    stride: Size
    scattered: int
    sources: Places | None = None
    linked: Tensor | None = None

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def phases(self) -> int:
        """Phases into which the stride splits an image."""
        return math.prod(self.stride)

    @property
    def flat(self) -> Tensor:
        """Index of each place among the phases * places of an image split by phase."""
        return self.phase * math.prod(self.size) + _ravel(self.coarse, self.size)

    @property
    def lines(self) -> int:
        """Number of whole lines."""
        return (len(self) - self.scattered) // math.prod(self.size[1:])

    @cached_property
    def parts(self) -> dict[str, Places]:
        """The places of each kind by its name; `starts` are the first places of the lines."""
        first = self.scattered
        kinds = {"scattered": slice(first), "lines": slice(first, None)}
        kinds["starts"] = slice(first, None, math.prod(self.size[1:]))
        return {kind: self._part(kept) for kind, kept in kinds.items()}

    def _part(self, kept: slice) -> Places:
        """A slice of the places, in order, with their sources."""
        index = torch.arange(len(self), device=self.phase.device)[kept]
        coarse, phase = self.coarse[index], self.phase[index]
        if self.sources is None:
            return Places(coarse, phase, self.size, self.stride, len(index))
        place = torch.full_like(self.phase, -1).scatter(0, index, torch.arange(len(index), device=index.device))
        place = place[self.linked]
        of = self.sources.coarse[place >= 0], self.sources.phase[place >= 0]
        sources = Places(*of, self.size, self.stride, len(of[0]))
        return Places(coarse, phase, self.size, self.stride, len(index), sources, place[place >= 0])

    def read(self, image: Tensor, groups: int) -> Tensor:
        """N z: (batch, channels, *torus) -> (groups, channels/groups, len, batch)."""
        channels, places = image.shape[1] // groups, math.prod(self.size)
        parts = split_phases(image, self.stride).reshape(image.shape[0], groups, channels, self.phases * places)
        values = parts[..., self.flat]
        if self.sources is not None:
            values[..., self.linked] -= parts[..., self.sources.flat]
        return values.permute(1, 2, 3, 0)

    def write(self, values: Tensor) -> Tensor:
        """N' v: (groups, channels/groups, len, batch) -> an image, (batch, channels, *torus)."""
        groups, channels, _, batch = values.shape
        values = values.permute(3, 0, 1, 2)
        parts = values.new_zeros(batch, groups, channels, self.phases * math.prod(self.size))
        parts[..., self.flat] = values
        if self.sources is not None:
            parts.index_add_(3, self.sources.flat, -values[..., self.linked])
        return merge_phases(parts.view(batch, groups * channels * self.phases, *self.size), self.stride)


def _ravel(index: Tensor, size: Size) -> Tensor:
    """The flat index of each multi-index, the last axis of `index`, into an array of this size."""
    flat = torch.zeros_like(index[..., 0])
    for d, m in enumerate(size):
        flat = flat * m + index[..., d]
    return flat


@outside_inference
def outside_input(grid: Grid, input_size: Size, device: torch.device) -> Places:
    """The places of the torus outside the image, each with its source if its padding mode gives it one."""
    geometry, torus = grid.geometry, grid.input_size
    # For each dimension the source of each place of the torus: itself inside, another on the border, -1 for zero.
    lines = []
    for n, t, (left, right) in zip(input_size, torus, geometry.padding, strict=True):
        line = torch.full((t,), -1)
        if geometry.padding_mode != "zeros" and left + right:
            places = torch.arange(n, dtype=torch.float64).view(1, 1, n)
            around = F.pad(places, (left, right), mode=geometry.padding_mode).flatten().long()
            line[torch.arange(-left, n + right) % t] = around
        line[:n] = torch.arange(n)
        lines.append(line)
    places, scattered = _outside(torus, input_size, geometry.stride)
    # The source lies along the first axis in which a place is outside: it may be outside as well, and have a source.
    first = (places >= torch.tensor(input_size)).int().argmax(1, keepdim=True)
    across = torch.stack([line[places[:, d]] for d, line in enumerate(lines)], dim=1).gather(1, first)
    linked = (across[:, 0] >= 0).nonzero().flatten()
    source = places.scatter(1, first, across)[linked]

    def split(places: Tensor, scattered: int, sources: Places | None = None) -> Places:
        stride = torch.tensor(geometry.stride)
        coarse, phase = places.div(stride, rounding_mode="floor"), _ravel(places % stride, geometry.stride)
        links = None if sources is None else linked.to(device)
        return Places(coarse.to(device), phase.to(device), grid.size, geometry.stride, scattered, sources, links)

    return split(places, scattered, split(source, 0) if len(linked) else None)


@outside_inference
def outside_output(grid: Grid, input_size: Size, device: torch.device) -> Places:
    """The places of the torus after the stride that lie outside the output."""
    once = (1,) * len(input_size)
    places, scattered = _outside(grid.size, grid.geometry.output_size(input_size), once)
    return Places(places.to(device), torch.zeros_like(places[:, 0], device=device), grid.size, once, scattered)


def _outside(torus: Size, window: Size, stride: Size) -> tuple[Tensor, int]:
    """The places outside a window as `Places` has them in order, and how many are in no whole line."""
    everywhere = torch.cartesian_prod(*map(torch.arange, torus)).view(-1, len(torus))
    outside = everywhere[(everywhere >= torch.tensor(window)).any(1)]
    if len(torus) == 1:
        return outside, len(outside)
    past = outside[:, 0] >= window[0]
    lines = outside[past]
    # Line by line: a line has one place along the first axis and one phase.
    steps = torch.tensor(stride)
    size = tuple(t // s for t, s in zip(torus, stride, strict=True))
    keys = torch.cat([lines[:, :1] // steps[0], lines % steps, lines[:, 1:] // steps[1:]], 1)
    lines = lines[_ravel(keys, (size[0], *stride, *size[1:])).argsort()]
    return torch.cat([outside[~past], lines]), int((~past).sum())


def embed(x: Tensor, size: Size) -> Tensor:
    """The image on a torus of this size: itself in the window, zero outside."""
    rest = [m - n for n, m in zip(x.shape[2:], size, strict=True)]
    return F.pad(x, [after for r in reversed(rest) for after in (0, r)])


def crop(z: Tensor, size: Size) -> Tensor:
    """The part of an image on a torus that lies in the window of this size."""
    for axis, n in enumerate(size, start=2):
        z = z.narrow(axis, 0, n)
    return z


# -- matrices between places -----------------------------------------------------------------------------------------


def symbol(blocks: Tensor, grid: Grid, phases: tuple[int, int]) -> Tensor:
    """The kernel of a map on the torus from its blocks, a matrix for each offset.

    blocks: (groups, count, rows * phases[0], columns * phases[1])
        -> (groups, phases[0] * phases[1] * places, rows, columns).
    """
    if grid.pointwise:
        full = blocks.new_zeros(len(blocks), math.prod(grid.size), *blocks.shape[2:])
        full[:, 0] = blocks[:, 0]
    else:
        full = frequency_to_first_axis(blocks.flatten(2), grid).unflatten(2, blocks.shape[2:])
    by_phase: Tensor = full.unflatten(3, (-1, phases[1])).unflatten(2, (-1, phases[0]))
    return by_phase.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def symbol_adjoint(symbols: Tensor, grid: Grid, phases: tuple[int, int]) -> Tensor:
    """G_f with  <symbols, symbol(X)> = sum over the full spectrum of Re tr(G_f^H X_f)."""
    by_phase: Tensor = symbols.unflatten(1, (*phases, -1))
    full = by_phase.permute(0, 3, 4, 1, 5, 2).flatten(4, 5).flatten(2, 3)
    if grid.pointwise:
        return full[:, :1] / math.prod(grid.size)
    blocks: Tensor = first_axis_to_frequency(full.flatten(2), grid).unflatten(2, full.shape[2:])
    return blocks


def gather(symbols: Tensor, a: Places, b: Places) -> Tensor:
    """N_a X N_b' for the map X of the symbol: (groups, rows, len(a), len(b), columns), contiguous."""
    matrix = _gather(symbols, a, b)
    if b.sources is not None:
        matrix[:, :, :, b.linked] -= _gather(symbols, a, b.sources)
    if a.sources is not None:
        matrix[:, :, a.linked] -= gather(symbols, a.sources, b)
    return matrix


def scatter(matrix: Tensor, symbols: Tensor, a: Places, b: Places) -> None:
    """Add the S with  <S, X> = <matrix, gather(X, a, b)>  to the symbol."""
    if a.sources is not None:
        scatter(-matrix[:, :, a.linked], symbols, a.sources, b)
    if b.sources is not None:
        _scatter(-matrix[:, :, :, b.linked], symbols, a, b.sources)
    _scatter(matrix, symbols, a, b)


def _offsets(a: Places, b: Places) -> Tensor:
    """Where a symbol holds what joins each pair: (len(a) * len(b),)."""
    flat = torch.zeros(len(a), len(b), dtype=torch.long, device=a.coarse.device)
    for d, m in enumerate(a.size):
        flat = flat * m + (a.coarse[:, None, d] - b.coarse[:, d]) % m
    return (flat + (a.phase[:, None] * b.phases + b.phase) * math.prod(a.size)).flatten()


def _gather(symbols: Tensor, a: Places, b: Places) -> Tensor:
    """The entries of X between two sets of places, whatever their sources."""
    groups, _, rows, columns = symbols.shape
    picked = symbols.transpose(1, 2).flatten(0, 1).index_select(1, _offsets(a, b))
    return picked.view(groups, rows, len(a), len(b), columns)


def _scatter(matrix: Tensor, symbols: Tensor, a: Places, b: Places) -> None:
    """Add a matrix between two sets of places to the symbol, whatever their sources."""
    groups, rows, _, _, columns = matrix.shape
    symbols.index_add_(1, _offsets(a, b), matrix.permute(0, 2, 3, 1, 4).reshape(groups, -1, rows, columns))
