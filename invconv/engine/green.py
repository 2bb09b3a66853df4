"""Damped layers with real borders, exactly: a torus that is cut along one axis, and then along the other.

The answer x to y and what it leaves, r = y - A x, solve a symmetric system, whose inverse is known on a torus:

    K = [ I    A  ]      [ r ]   [ y ]                  [ d^2 V   C W ]      V = (CC' + d^2)^-1,
        [ A'  -d^2],   K [ x ] = [ 0 ],         K_0^-1 = [ W C'    -W  ],     W = (C'C + d^2)^-1.

To drop the places D of the torus, and to add outputs r_a = y_a - A_a x (see `cut`), is an update of few places:

    K^-1 = K_0^-1 - F S^-1 F',      F = [ K_0^-1 E_D   K_0^-1 A_a' ],      S = F' without what is not read
                                        [     0            -I      ]

The lines of an image are cut first.  They are a small system for each frequency of the other axis (`Lines`).  Then
the strips at both ends of that axis are one dense system (see `strips`), whose parts depend on nothing but how far two
columns lie apart.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.cut import Cut
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.spectrum import Grid

TILE = 64
"""Columns of the matrices of twice as few frequencies that are made at once, which a cache holds.  Speed only."""


class CutLines:
    """One group of channels, its image cut along the first axis and a torus along the second.

    A column is the outputs of one place of the second axis, channel by channel, and after them the inputs.

    Args:
        conv: of one group and two axes, without stride, in float64.
        cuts: of both axes.
        damping: d.
    """

    def __init__(self, conv: Convolution, cuts: tuple[Cut, Cut], damping: float) -> None:
        self.conv, self.damping = conv, damping
        self.lines, self.columns = cuts
        self.outs, self.ins = conv.weight.shape[:2]
        self.parts = self.outs * self.lines.outputs, self.ins * self.lines.inputs
        grid = Grid(conv.geometry, (self.lines.torus, self.columns.torus))
        blocks = kernel_to_blocks(conv.weight, grid)
        blocks = blocks.expand(1, grid.half_size[0] * grid.half_size[1], -1, -1).unflatten(1, grid.half_size)
        self.green = _on_torus(blocks[0].transpose(0, 1), damping)  # (frequencies, lines, fields, fields)
        self._factor()

    def _variables(self, outputs: list[int], inputs: list[int]) -> tuple[Tensor, Tensor]:
        """Field and line of outputs and then inputs on these lines, channel by channel."""
        fields = [c for c in range(self.outs) for _ in outputs] + [
            self.outs + c for c in range(self.ins) for _ in inputs
        ]
        lines = outputs * self.outs + inputs * self.ins
        device = self.conv.device
        return torch.tensor(fields, dtype=torch.long, device=device), torch.tensor(
            lines, dtype=torch.long, device=device
        )

    def _factor(self) -> None:
        """Compute F and S^-1 for each frequency."""
        cut, torus = self.lines, self.lines.torus
        kernel = torch.fft.ifft(self.green, dim=1)

        def between(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
            entries: Tensor = kernel[:, (a[1][:, None] - b[1]) % torus, a[0][:, None], b[0]]
            return entries

        column = self._variables(list(range(cut.outputs)), list(range(cut.inputs)))
        dropped = self._variables(cut.dropped_outputs, cut.dropped_inputs)
        touched = self._variables([], cut.touched)
        rows = self._added_rows()
        self.other = torch.zeros(len(column[0]), dtype=torch.bool, device=self.conv.device)
        self.other.view(-1)[: self.parts[0]].view(self.outs, -1)[:, cut.added] = True
        f = torch.cat([between(column, dropped), between(column, touched) @ rows.mH], 2)
        f[:, self.other] = 0
        count = len(dropped[0])
        added = torch.arange(rows.shape[1], device=f.device)
        f[:, self.other.nonzero()[:, 0], count + added] = -1
        s_dd = between(dropped, dropped)
        s_da = between(dropped, touched) @ rows.mH
        s_aa = rows @ between(touched, touched) @ rows.mH - torch.eye(len(added), dtype=f.dtype, device=f.device)
        s = torch.cat([torch.cat([s_dd, s_da], 2), torch.cat([s_da.mH, s_aa], 2)], 1)
        self.f, self.inverse = f, torch.linalg.inv_ex(s).inverse

    def _added_rows(self) -> Tensor:
        """A_a, at each frequency of the second axis: (frequencies, outs * added, ins * touched)."""
        geometry, torus = self.conv.geometry, self.columns.torus
        taps = torch.arange(geometry.kernel_size[1]) * geometry.dilation[1] - geometry.padding[1][0]
        turns = torch.arange(torus // 2 + 1)[:, None] * taps % torus
        waves = turns.double() * (2 * torch.pi / torus)
        table = torch.polar(torch.ones_like(waves), waves).to(self.conv.device)
        kernels = torch.einsum("oiuv,fv->foiu", self.conv.weight.to(table), table)
        return self.lines.added_rows(kernels).flatten(1, 2).flatten(2)

    def apply(self, columns: Tensor) -> Tensor:
        """K^-1 of columns: (batch, places of a column, torus) -> the same."""
        batch, _, torus = columns.shape
        v = torch.fft.rfft(columns, dim=2).permute(2, 1, 0)  # (frequencies, places, batch)
        update = self.f @ (self.inverse @ (self.f.mH @ v))
        fields = [part.unflatten(1, (-1, n)) for part, n in self._fields(v.masked_fill(self.other[:, None], 0))]
        spectra = torch.cat([torch.fft.fft(field, n=self.lines.torus, dim=2) for field in fields], 1)
        mixed = (self.green @ spectra.transpose(1, 2)).transpose(1, 2)
        image = torch.fft.ifft(mixed, dim=2)
        parts = image[:, : self.outs, : self.lines.outputs], image[:, self.outs :, : self.lines.inputs]
        z = torch.cat([part.flatten(1, 2) for part in parts], 1).masked_fill(self.other[:, None], 0) - update
        answer: Tensor = torch.fft.irfft(z.permute(2, 1, 0), n=torus, dim=2).reshape(batch, -1, torus)
        return answer

    def _fields(self, v: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Outputs and inputs of columns, and how many lines each has."""
        yield from zip(v.split(self.parts, 1), (self.lines.outputs, self.lines.inputs), strict=True)

    def kernels(self, distances: list[int]) -> Tensor:
        """K^-1 between all places of two columns so far apart: (distances, places, places)."""
        torus, cut, device = self.columns.torus, self.lines, self.conv.device
        fields, lines = self._variables(list(range(cut.outputs)), list(range(cut.inputs)))
        at = torch.tensor(distances, device=device)
        plain = torch.fft.irfft(torch.fft.ifft(self.green, dim=1), n=torus, dim=0)[at]
        found: Tensor = plain[:, (lines[:, None] - lines) % cut.torus, fields[:, None], fields]
        found[:, self.other] = 0
        found[:, :, self.other] = 0
        count = torch.full((len(self.f),), 2.0, dtype=torch.float64, device=device)
        count[0] = 1
        if torus % 2 == 0:
            count[-1] = 1
        turns = (torch.arange(len(self.f), device=device)[:, None] * at % torus).double() * (2 * torch.pi / torus)
        scale = count[:, None] / torus
        self._update(found, scale * turns.cos(), scale * turns.sin())
        return found

    def _update(self, found: Tensor, cos: Tensor, sin: Tensor) -> None:
        """Subtract Re(e^(i turn) F S^-1 F'), summed over the frequencies: products of real matrices, tile by tile."""
        half = self.f @ self.inverse
        left = torch.cat([half.real, half.imag], 2), torch.cat([-half.imag, half.real], 2)
        right = torch.cat([self.f.real, self.f.imag], 2)
        for start in range(0, right.shape[1], TILE):
            columns = right[:, start : start + TILE].mT
            tile = found.new_zeros(len(found), right.shape[1] * columns.shape[2])
            for at in range(0, len(right), TILE // 2):
                some = slice(at, at + TILE // 2)
                for factor, wave in zip(left, (cos, sin), strict=True):
                    tile.addmm_(wave[some].mT, (factor[some] @ columns[some]).flatten(1))
            found[..., start : start + TILE] -= tile.view(len(found), right.shape[1], -1)

    @property
    def bytes(self) -> int:
        """Memory that the factors hold."""
        return sum(int(each.nbytes) for each in (self.green, self.f, self.inverse))


def _on_torus(blocks: Tensor, damping: float) -> Tensor:
    """K_0^-1 at each frequency, for blocks (..., outs, ins)."""

    def damped(gram: Tensor) -> Tensor:
        shift = damping**2 * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        inverse: Tensor = torch.linalg.inv_ex(gram + shift).inverse  # infinite where rounding leaves nothing of d
        return inverse

    v, w = damped(blocks @ blocks.mH), damped(blocks.mH @ blocks)
    c = blocks @ w
    return torch.cat([torch.cat([damping**2 * v, c], -1), torch.cat([c.mH, -w], -1)], -2)
