"""The dense system of the border, its lines eliminated in frequency, against the same system written out."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
import torch
from oracle import EPS
from tables import BORDERS, Case
from torch import Tensor

from invconv import InvertibleConv2d
from invconv.engine import border
from invconv.engine.border import BorderSystem, factor_border
from invconv.engine.lines import Side
from invconv.engine.solvers.ring import Ring
from invconv.engine.spectrum import Grid, multiplicity
from invconv.engine.tilt import Tilt
from invconv.engine.windows import gather, outside_input, outside_output, smallest_torus, symbol, symbol_adjoint


def systems(case: Case) -> list[tuple[BorderSystem, Tensor]]:
    """Random ones with the unknowns of a layer, factored and as matrices by channel and place: square, symmetric."""
    conv = case.layer()
    geometry, groups = conv.geometry, conv.groups
    grid = Grid(geometry, smallest_torus(geometry, case.size))
    held, free = (outside(grid, case.size, torch.device("cpu")) for outside in (outside_input, outside_output))
    if grid.pointwise or not len(held) or not len(free):
        return []
    channels = conv.in_channels // groups, conv.out_channels // groups
    sides = list(zip((held, free), channels, strict=True))
    pairs = [(sides, sides)]
    if len(held) * channels[0] == len(free) * channels[1]:
        pairs.append((sides[:1], sides[1:]))
    generator = torch.Generator().manual_seed(0)
    factored = []
    for rows, columns in pairs:
        blocks, matrix = [], []
        for (a, p), (b, q) in itertools.product(rows, columns):
            shape = groups, a.phases * b.phases * torch.Size(grid.size).numel(), p, q
            random = torch.randn(shape, generator=generator, dtype=torch.float64)
            blocks.append(symbol_adjoint(random, grid, (a.phases, b.phases)))
            part = gather(symbol(blocks[-1], grid, (a.phases, b.phases)), a, b)
            matrix.append(part.transpose(3, 4).flatten(3).flatten(1, 2))
        width = len(columns)
        nested = [blocks[i : i + width] for i in range(0, len(blocks), width)]
        matrix = [torch.cat(matrix[i : i + width], 2) for i in range(0, len(matrix), width)]
        all_sides = [Side(*side, True) for side in rows], [Side(*side, False) for side in columns]
        factored.append((factor_border(nested, *all_sides, grid), torch.cat(matrix, 1)))
    return factored


def split(values: Tensor, sides: Sequence[Side]) -> list[Tensor]:
    parts = values.split([len(side.places) * side.channels for side in sides], 1)
    return [part.unflatten(1, (side.channels, -1)) for part, side in zip(parts, sides, strict=True)]


def joined(values: list[Tensor]) -> Tensor:
    return torch.cat([part.flatten(1, 2) for part in values], 1)


def compare_gradient(factors: BorderSystem, matrix: Tensor, tol: float) -> None:
    """tr(M^-1 dM) for random changes of all blocks, whose matrix is gathered as M itself."""
    inverse, grid = torch.linalg.inv(matrix), factors.grid
    gradient = factors.log_det_gradient()
    weights = multiplicity(grid, matrix.device).view(1, -1, 1, 1)
    for (i, a), (j, b) in itertools.product(enumerate(factors.rows), enumerate(factors.columns)):
        phases = a.places.phases, b.places.phases
        symbols = torch.randn_like(symbol(gradient[i][j], grid, phases))
        change = symbol_adjoint(symbols, grid, phases)
        part = gather(symbol(change, grid, phases), a.places, b.places).transpose(3, 4).flatten(3).flatten(1, 2)
        rows, columns = (
            sum(len(s.places) * s.channels for s in sides) for sides in (factors.rows[:i], factors.columns[:j])
        )
        own = inverse[:, columns : columns + part.shape[2], rows : rows + part.shape[1]]
        expected = (own.mT * part).sum()
        value = (weights * (gradient[i][j].conj() * change).real).sum()
        assert abs(value - expected) < tol * own.norm() * part.norm()


@pytest.mark.parametrize("case", BORDERS, ids=str)
def test_ring_factors_equal_the_dense_matrix(case):
    for factors, matrix in systems(case):
        condition = torch.linalg.cond(matrix).max().item()
        tol = 1e3 * EPS * condition
        v = torch.randn(*matrix.shape[:2], 3, dtype=torch.float64)
        x = joined(factors.solve(split(matrix @ v, factors.rows)))
        assert (x - v).norm() < tol * v.norm()
        x = joined(factors.solve_adjoint(split(matrix.mT @ v, factors.columns)))
        assert (x - v).norm() < tol * v.norm()
        log_det = torch.linalg.slogdet(matrix).logabsdet.sum()
        assert abs(factors.log_det - log_det) < tol * matrix.shape[-1]
        compare_gradient(factors, matrix, tol)
        assert factors.unknowns == matrix.shape[-1]


def test_most_of_a_ring_is_eliminated(monkeypatch):
    torch.manual_seed(0)
    conv = InvertibleConv2d(8, 8, 3, padding=1, dtype=torch.float64)
    ring = conv.operator((32, 32)).solver
    assert isinstance(ring, Ring)
    assert ring.border._lu.shape == (1, 32 * 8, 32 * 8) and ring.unknowns == 65 * 8
    eliminated = ring.bytes
    monkeypatch.setattr(border, "MOST_DIGITS_LOST", -1)
    whole = Ring(ring.conv)
    assert whole.border._lu.shape == (1, 65 * 8, 65 * 8)
    assert whole.log_volume == pytest.approx(ring.log_volume.item(), rel=1e-13)
    assert eliminated < whole.bytes


def test_lines_that_lose_too_much_are_not_eliminated_first():
    # Across the lines it winds at those frequencies along them where 1.5 + 1.6 cos w, the tap below, is larger than 1.
    conv = InvertibleConv2d(1, 1, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[0, 0, 0], [0, 1, 0], [0.8, 1.5, 0.8]]))
    system = Ring(conv.operator((16, 16)).conv, tilt=Tilt.level(2)).border
    assert system._lu.shape[-1] == system.unknowns
