"""The second cut of a damped layer (see `green`): the strips at both ends of its second axis, one dense system.

With D the places of the torus that are dropped, outputs before inputs, and A_a the outputs that are added,

    S = [ E_D'K^-1 E_D    E_D'K^-1 A_a'     ]        positive definite on the outputs,
        [ A_a K^-1 E_D    A_a K^-1 A_a' - 1 ],       negative definite on all other places.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.cut import Cut
from invconv.engine.green import CutLines
from invconv.engine.quasi import QuasiDefinite, Reflection
from invconv.geometry import Geometry

ROUNDINGS = 16
"""How far a kernel may be from a symmetric one, in eps and its largest tap.  Speed only: answers are refined."""

REFINEMENTS = 4
"""At most so many steps of refinement; each costs a convolution, its transpose and a solution."""

ENOUGH = 1e-16
"""Size of the next step of refinement, relative, at which it is not taken.  Speed only."""


def reflections(weight: Tensor, geometry: Geometry) -> list[tuple[int, ...]]:
    """The axes along which a layer looks the same when turned round: each of two by itself, or both together."""

    def same(*axes: int) -> bool:
        even = all(geometry.padding[axis][0] == geometry.padding[axis][1] for axis in axes)
        rest = weight.flip([axis + 2 for axis in axes]) - weight
        return even and bool(rest.abs().amax() <= ROUNDINGS * torch.finfo(weight.dtype).eps * weight.abs().amax())

    return [axes for axes in ((1,), (0,)) if same(*axes)] or [axes for axes in ((0, 1),) if same(*axes)]


class CutImage:
    """One group of channels with real borders along both axes: K^-1.

    Args:
        conv: of one group and two axes, without stride, in float64.
        cuts: of both axes.
        damping: d.
    """

    def __init__(self, conv: Convolution, cuts: tuple[Cut, Cut], damping: float) -> None:
        self.conv, self.damping = conv, damping
        self.cut = cuts[1]
        self.lines = CutLines(conv, cuts, damping)
        outs, ins = (slice(0, self.lines.parts[0]), slice(self.lines.parts[0], sum(self.lines.parts)))
        self._dropped = [(c, outs) for c in self.cut.dropped_outputs] + [(c, ins) for c in self.cut.dropped_inputs]
        self._inputs = ins
        self._positive = len(self.cut.dropped_outputs) * self.lines.parts[0]
        self._added = self._added_matrix()
        self.system = self._factored()

    def _added_matrix(self) -> Any:
        """A_a, sparse: (added * places of an output column, touched * places of an input column)."""
        conv, cut = self.conv, self.cut
        outs, ins = self.lines.parts
        where = {place: index for index, place in enumerate(cut.touched)}
        geometry = replace(
            conv.geometry,
            kernel_size=(conv.geometry.kernel_size[0], 1),
            padding=(conv.geometry.padding[0], (0, 0)),
        )
        parts = []
        for u in range(cut.taps if cut.added else 0):
            column = Convolution(conv.weight[..., u : u + 1], geometry, (conv.input_size[0], 1)).to_dense()
            rows, places = column.nonzero(as_tuple=True)
            for index, line in enumerate(cut.reads):
                parts.append((rows + index * outs, places + where[line[u]] * ins, column[rows, places]))
        shape = len(cut.added) * outs, len(where) * ins
        if not parts:
            return conv.weight.new_zeros(shape).to_sparse()
        rows, places, values = (torch.cat(part) for part in zip(*parts, strict=True))
        return torch.sparse_coo_tensor(torch.stack([rows, places]), values, shape, check_invariants=True).coalesce()

    def _factored(self) -> QuasiDefinite:
        """S, factored, of which the rows of one half are computed if the other is its reflection."""
        found = self._reflections()
        halved = bool(found) and reflections(self.conv.weight, self.conv.geometry)[0][-1] == 1
        dropped = [part.stop - part.start for _, part in self._dropped]
        every = [*dropped, *[self.lines.parts[0]] * len(self.cut.added)]
        kept = [not halved or self._is_first(*place) for place in (*self._dropped, *self._added_places())]
        rows = torch.cat([torch.full((n,), is_kept) for n, is_kept in zip(every, kept, strict=True)] or [torch.ones(0)])
        rows = (rows.cumsum(0) - 1).to(self.conv.device)
        matrix = self._assembled(kept[: len(dropped)], sum(kept[len(dropped) :]))
        return QuasiDefinite(matrix, self._positive, found, rows)

    def _added_places(self) -> list[tuple[int, slice]]:
        return [(column, slice(0, self.lines.parts[0])) for column in self.cut.added]

    def _is_first(self, column: int, part: slice) -> bool:
        """Whether a column comes before its reflection, or is its own."""
        places = self.cut.inputs if part.start else self.cut.outputs
        return column <= (places - 1 - column) % self.cut.torus

    def _assembled(self, kept: list[bool], added_kept: int) -> Tensor:
        """Rows of S, below the diagonal of its parts: of dropped columns that are kept, and of the first added ones."""
        torus, touched, ins = self.cut.torus, self.cut.touched, self._inputs
        columns = {column for column, _ in self._dropped} | set(touched)
        distances = sorted({min((a - b) % torus, (b - a) % torus) for a in columns for b in columns})
        kernels = dict(zip(distances, self.lines.kernels(distances), strict=True)) if distances else {}

        def between(a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
            apart = (a[0] - b[0]) % torus
            block: Tensor = kernels[apart][a[1], b[1]] if apart in kernels else kernels[torus - apart][b[1], a[1]].mT
            return block

        buffers: dict[int, Tensor] = {}
        lines = ins.stop - ins.start

        def above(b: tuple[int, slice]) -> Tensor:
            width = b[1].stop - b[1].start
            buffer = buffers.setdefault(width, self.conv.weight.new_empty(self._added.shape[1], width))
            for out, t in zip(buffer.split(lines), touched, strict=True):
                out.copy_(between((t, ins), b))
            return buffer

        sizes = [part.stop - part.start for _, part in self._dropped]
        some = [place for place, is_kept in zip(self._dropped, kept, strict=True) if is_kept]
        heights = [part.stop - part.start for _, part in some]
        dropped, height, first = sum(sizes), sum(heights), added_kept * self.lines.parts[0]
        s = self.conv.weight.new_empty(height + first, dropped + self._added.shape[0])
        for row, a in zip(s[:height, :dropped].split(heights), some, strict=True):
            for block, b in zip(row.split(sizes, 1), self._dropped, strict=True):
                block.copy_(between(a, b))
        if not first:
            return s
        added = self._added if first == len(self._added) else self._added.narrow_copy(0, 0, first)
        for block, b in zip(s[height:, :dropped].split(sizes, 1), self._dropped, strict=True):
            block.copy_(added @ above(b))
        across = self.conv.weight.new_empty(self._added.shape[1], first)
        for block, t in zip(across.split(lines), touched, strict=True):
            block.copy_((added @ above((t, ins))).mT)
        s[height:, dropped:] = (self._added @ across).mT
        s[height:, dropped:].diagonal().sub_(1)
        return s

    def _reflections(self) -> list[Reflection]:
        """What S commutes with, as permutations of its places."""
        lines, cut, device = self.lines, self.cut, self.conv.device
        sides = [(self.conv.output_size, lines.outs), (self.conv.input_size, lines.ins)]
        columns = [(0, c) for c in cut.dropped_outputs] + [(1, c) for c in cut.dropped_inputs]
        place: dict[tuple[int, ...], int] = {}
        for kind, column in columns + [(2, c) for c in cut.added]:
            (size, _), channels = sides[kind % 2]
            place |= {(kind, column, *at): len(place) + i for i, at in enumerate(product(range(channels), range(size)))}
        found = []
        for axes in reflections(self.conv.weight, self.conv.geometry) if place else ():
            turned = []
            for kind, column, channel, line in place:
                height, width = sides[kind % 2][0]
                line = height - 1 - line if 0 in axes else line
                turned.append((kind, (width - 1 - column) % cut.torus if 1 in axes else column, channel, line))
            of = torch.tensor([place[each] for each in turned], device=device)
            found.append(
                Reflection(of, torch.tensor([a < b for a, b in zip(place, turned, strict=True)], device=device))
            )
        return found

    def solve(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """The r and x of  r + A x = above,  A'r - d^2 x = below."""
        r, x = self._solve(above, below)
        size = last = math.hypot(r.norm().item(), x.norm().item())
        for _ in range(REFINEMENTS):
            left = above - r - self.conv.forward(x), below - self.conv.adjoint(r) + self.damping**2 * x
            more = self._solve(*left)
            step = math.hypot(more[0].norm().item(), more[1].norm().item())
            if not step < 0.5 * last:
                break
            r, x = r + more[0], x + more[1]
            if not step**2 > ENOUGH * size * last:  # what the next step would be
                break
            last = step
        return r, x

    def _solve(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """The same, as it comes from the factors."""
        cut, (outs, ins), batch = self.cut, self.lines.parts, len(above)
        v = above.new_zeros(batch, outs + ins, cut.torus)
        v[:, :outs, : cut.outputs] = above.flatten(1, 2)
        v[:, outs:, : cut.inputs] = below.flatten(1, 2)
        told = v[:, :outs, cut.added].transpose(1, 2).flatten(1)  # (batch, added * places)
        v[:, :outs, cut.added] = 0
        if not len(self._dropped):
            z, mu = self.lines.apply(v), told
        else:
            z = self.lines.apply(v)
            seen = z[:, outs:, cut.touched].transpose(1, 2).flatten(1)
            right = [-z[:, part, c] for c, part in self._dropped] + [told - (self._added @ seen.mT.contiguous()).mT]
            solution = self.system.solve(torch.cat(right, 1).mT).mT
            *lambdas, mu = solution.split([part.stop - part.start for _, part in self._dropped] + [told.shape[1]], 1)
            for (c, part), value in zip(self._dropped, lambdas, strict=True):
                v[:, part, c] += value
            if cut.added:
                back = (self._added.mT @ mu.mT.contiguous()).mT.unflatten(1, (len(cut.touched), ins)).transpose(1, 2)
                v[:, outs:, cut.touched] += back
            z = self.lines.apply(v)
        z[:, :outs, cut.added] = -mu.unflatten(1, (-1, outs)).transpose(1, 2) if cut.added else 0
        r = z[:, :outs, : cut.outputs].reshape(above.shape)
        return r, z[:, outs:, : cut.inputs].reshape(below.shape)

    @property
    def bytes(self) -> int:
        """Memory that the factors hold."""
        return self.system.bytes + self.lines.bytes
