"""Every verb of every solver of the table, over the cases that it serves, against the dense matrix."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from diagonal import Diagonal
from oracle import CONSTANT, EPS, Matrix, matrix_of, relative, volume_gradient
from tables import DEPTHWISE, SOLVERS, Case, SolverRow

from invconv import IllConditionedWarning, SingularMapError
from invconv.engine import ways
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.strips import Strips
from invconv.engine.solvers.triangular import Triangular
from invconv.engine.way import Way
from invconv.report import Plan

ROWS = [(row, case) for row in SOLVERS for case in row.served()]
DAMPED = [(row, case) for row in SOLVERS for case in row.served(damping=0.3)]
pytestmark = pytest.mark.usefixtures("one_known_image")
walk = pytest.mark.parametrize(("row", "case"), ROWS, ids=str)
walk_damped = pytest.mark.parametrize(("row", "case"), DAMPED, ids=str)


def served(row: SolverRow, case: Case, **options: Any) -> tuple[Solver, Matrix, float]:
    """The solver of a case, the matrix, and the bound of its errors; skips where no digit could be compared."""
    chosen = replace(row.options, **options)
    conv = case.layer().operator(case.size).conv
    plan = row.kind.plan(conv, chosen)
    assert isinstance(plan, Plan) and plan.solver == row.kind.name and plan.bytes > 0 and plan.because
    matrix = matrix_of(case)
    bound = row.constant * matrix.condition**row.power
    if not bound < 1e-3:
        pytest.skip(f"condition {matrix.condition:.0e}: nothing to compare with")
    solver = row.kind(conv, chosen)
    if not matrix.full and not options and not solver.keeps(1e-3):
        pytest.skip("not of full rank, which it has found out itself")
    return solver, matrix, bound


def images(case: Case, matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor]:
    """An input and an output of the layer, as rows."""
    generator = torch.Generator().manual_seed(2)
    x = case.images().flatten(1)
    return x, torch.randn(2, matrix.a.shape[0], generator=generator, dtype=torch.float64)


@walk
def test_pseudo_inverse(row, case):
    solver, matrix, bound = served(row, case)
    x, y = images(case, matrix)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not matrix.full else "error", IllConditionedWarning)
        solver.prepare()
        x_hat = solver.pseudo_inverse(y.view(2, *solver.conv.y_shape)).flatten(1)
        y_hat = solver.pseudo_inverse_adjoint(x.view(2, *solver.conv.x_shape)).flatten(1)
        gram = solver.gram_inverse(x.view(2, *solver.conv.x_shape)).flatten(1)
    assert relative(x_hat - y @ matrix.pinv.T, y @ matrix.pinv.T) < bound
    assert relative(y_hat - x @ matrix.pinv, x @ matrix.pinv) < bound
    expected = x @ matrix.pinv @ matrix.pinv.T
    assert relative(gram - expected, expected) < bound * matrix.condition
    # The error that it gives for itself is no smaller than the one it has.
    assert solver.error < max(bound, 1e-12)


@walk_damped
def test_damped(row, case):
    solver, matrix, _ = served(row, case, damping=0.3)
    x, y = images(case, matrix)
    bound = row.constant * torch.linalg.cond(matrix.gram(0.3)).item() ** row.power
    x_hat = solver.pseudo_inverse(y.view(2, *solver.conv.y_shape)).flatten(1)
    expected = y @ matrix.tikhonov(0.3).T
    assert relative(x_hat - expected, expected) < bound
    y_hat = solver.pseudo_inverse_adjoint(x.view(2, *solver.conv.x_shape)).flatten(1)
    assert relative(y_hat - x @ matrix.tikhonov(0.3), x @ matrix.tikhonov(0.3)) < bound
    gram = solver.gram_inverse(x.view(2, *solver.conv.x_shape)).flatten(1)
    expected = torch.linalg.solve(matrix.gram(0.3), x.T).T
    assert relative(gram - expected, expected) < bound


@walk
def test_log_volume(row, case):
    solver, matrix, bound = served(row, case)
    if not row.gives_volume:
        with pytest.raises(SingularMapError, match="needs the factors"):
            solver.log_volume  # noqa: B018
        with pytest.raises(SingularMapError, match="needs the factors"):
            solver.log_volume_gradient  # noqa: B018
        return
    if not matrix.full:
        with pytest.raises(SingularMapError, match="minus infinity"):
            solver.log_volume  # noqa: B018
        return
    # A sum over the places of the larger side, in which what growth there is on the way may cancel.
    bound = max(bound, CONSTANT * EPS * solver.growth)
    assert abs(solver.log_volume - matrix.values.log().sum()) < bound * max(matrix.a.shape)
    gradient = volume_gradient(solver.conv)
    assert relative(solver.log_volume_gradient - gradient, gradient) < bound * matrix.condition


@walk
def test_what_it_is_worth(row, case):
    solver, matrix, bound = served(row, case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not matrix.full else "error", IllConditionedWarning)
        solver.prepare()
        assert solver.rank is None or solver.rank == matrix.rank
        assert solver.full_rank == len(matrix.values)
        assert solver.trial(torch.float64) < bound
        assert solver.keeps(1e-3)
    assert solver.bytes > 0 and solver.unknowns >= 0
    assert solver.growth >= 1 - 1e-9 or row.kind.__name__ in ("Circulant", "Ring", "Gram", "Diagonal")
    assert solver.torus_growth <= solver.growth * (1 + 1e-9)
    # A bound, the value, or an estimate in the root mean square; of LSMR, of the preconditioned map.
    if matrix.full and row.gives_volume:
        assert solver.condition > 0.05 * matrix.condition
    # float32 outputs cost digits, as many as the condition says.
    assert solver.trial(torch.float32) < max(bound, 50 * torch.finfo(torch.float32).eps * matrix.condition)


def test_a_solver_of_ones_own_is_one_file_and_one_row(monkeypatch):
    monkeypatch.setattr(ways, "WAYS", (Way(Diagonal), *ways.WAYS))
    for case in DEPTHWISE:
        conv = case.layer()
        operator = conv.operator(case.size)
        assert operator.plan().solver == operator.report().solver == "diagonal"
        x = case.images()
        assert torch.allclose(conv.inverse(conv(x)), x, rtol=1e-12)
        assert torch.allclose(conv.log_abs_det(case.size), torch.linalg.slogdet(matrix_of(case).a).logabsdet)
    others = Case((2, 2), (3, 3), (4, 4))
    assert others.layer().operator(others.size).report().solver == "fft"


def test_each_solver_has_cases_enough():
    for row in SOLVERS:
        served = row.served(damping=0.3) if row.kind is Strips else row.served()
        assert len(served) >= (60 if row.kind is not Diagonal else 3), row
    assert {row.kind for row, _ in DAMPED} == {row.kind for row in SOLVERS} - {Ring, Triangular, Diagonal}
