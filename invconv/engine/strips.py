"""The second cut of a damped layer (see `green`): the strips at both ends of its second axis, one dense system.

With D the places of the torus that are dropped, outputs before inputs, and A_a the outputs that are added,

    S = [ E_D'K^-1 E_D    E_D'K^-1 A_a'     ]        positive definite on the outputs,
        [ A_a K^-1 E_D    A_a K^-1 A_a' - 1 ],       negative definite on all other places.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.cut import Cut
from invconv.engine.green import CutLines
from invconv.engine.quasi import QuasiDefinite, Reflection
from invconv.geometry import Geometry

ROUNDINGS = 16
"""How far a kernel may be from a symmetric one, in eps and its largest tap.  Speed only: answers are refined."""


def reflections(weight: Tensor, geometry: Geometry) -> list[tuple[int, ...]]:
    """The axes along which a layer looks the same when turned round: each of two by itself, or both together."""

    def same(*axes: int) -> bool:
        even = all(geometry.padding[axis][0] == geometry.padding[axis][1] for axis in axes)
        rest = weight.flip([axis + 2 for axis in axes]) - weight
        return even and bool(rest.abs().amax() <= ROUNDINGS * torch.finfo(weight.dtype).eps * weight.abs().amax())

    return [axes for axes in ((0,), (1,)) if same(*axes)] or [axes for axes in ((0, 1),) if same(*axes)]


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
        self.system = QuasiDefinite(self._assembled(), self._positive, self._reflections())

    def _added_matrix(self) -> Tensor:
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

    def _assembled(self) -> Tensor:
        """S."""
        torus, touched, ins = self.cut.torus, self.cut.touched, self._inputs
        columns = {column for column, _ in self._dropped} | set(touched)
        distances = sorted({min((a - b) % torus, (b - a) % torus) for a in columns for b in columns})
        kernels = dict(zip(distances, self.lines.kernels(distances), strict=True)) if distances else {}

        def between(a: tuple[int, slice], b: tuple[int, slice]) -> Tensor:
            apart = (a[0] - b[0]) % torus
            return kernels[apart][a[1], b[1]] if apart in kernels else kernels[torus - apart][b[1], a[1]].mT

        sizes = [part.stop - part.start for _, part in self._dropped]
        dropped, added = sum(sizes), self._added.shape[0]
        s = self.conv.weight.new_empty(dropped + added, dropped + added)
        for row, a in zip(s[:dropped, :dropped].split(sizes), self._dropped, strict=True):
            for block, b in zip(row.split(sizes, 1), self._dropped, strict=True):
                block.copy_(between(a, b))
        if not added:
            return s
        for block, b in zip(s[dropped:, :dropped].split(sizes, 1), self._dropped, strict=True):
            block.copy_(self._added @ torch.cat([between((t, ins), b) for t in touched]))
        s[:dropped, dropped:] = s[dropped:, :dropped].mT
        across = torch.cat(
            [self._added @ torch.cat([between((t, ins), (b, ins)) for t in touched]) for b in touched], 1
        )
        s[dropped:, dropped:] = self._added @ across.mT.contiguous()
        s[dropped:, dropped:].diagonal().sub_(1)
        return s

    def _reflections(self) -> list[Reflection]:
        """What S commutes with, as permutations of its places."""
        conv, cut, found = self.conv, self.cut, []
        segments = [(0, c) for c in cut.dropped_outputs] + [(1, c) for c in cut.dropped_inputs]
        segments += [(2, c) for c in cut.added]
        sides = [(conv.output_size, self.lines.outs), (conv.input_size, self.lines.ins)]
        place: dict[tuple[int, ...], int] = {}
        for kind, column in segments:
            size, channels = sides[kind % 2]
            for channel in range(channels):
                for line in range(size[0]):
                    place[kind, column, channel, line] = len(place)
        for axes in reflections(conv.weight, conv.geometry) if place else ():
            of, first = [], []
            for kind, column, channel, line in place:
                size = sides[kind % 2][0]
                turned_line = size[0] - 1 - line if 0 in axes else line
                turned = (size[1] - 1 - column) % cut.torus if 1 in axes else column
                of.append(place[kind, turned, channel, turned_line])
                first.append((line, column) < (turned_line, turned))
            device = conv.device
            found.append(Reflection(torch.tensor(of, device=device), torch.tensor(first, device=device)))
        return found

    def solve(self, above: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
        """The r and x of  r + A x = above,  A'r - d^2 x = below."""
        r, x = self._solve(above, below)
        left = above - r - self.conv.forward(x), below - self.conv.adjoint(r) + self.damping**2 * x
        more = self._solve(*left)
        return r + more[0], x + more[1]

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
