"""On a GPU: what each solver and each module answers there is what the dense matrix on the CPU says."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from oracle import CONSTANT, EPS, matrix_of, relative, volume_gradient
from tables import HARD, SOLVERS, Case, SolverRow

import invconv
from invconv import IllConditionedWarning, SingularMapError
from invconv.flows import MultiScaleFlow
from invconv.parametrizations import bounded

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning"),
]
ROWS = [(row, case) for row in SOLVERS for case in row.served()[::4]]


@pytest.fixture
def plain_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward passes in float32 as well, which PyTorch has in TF32 by default."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(tensor: torch.Tensor) -> torch.Tensor:
    """It, checked to lie there, brought back."""
    assert tensor.is_cuda
    return tensor.detach().cpu()


@pytest.mark.parametrize(("row", "case"), ROWS, ids=str)
def test_every_verb_of_every_solver(row: SolverRow, case: Case):
    matrix = matrix_of(case)
    bound = row.constant * matrix.condition**row.power
    if not bound < 1e-3:
        pytest.skip(f"condition {matrix.condition:.0e}: nothing to compare with")
    conv = case.layer().cuda().operator(case.size).conv
    solver = row.kind(conv, row.options)
    if not matrix.full and not solver.keeps(1e-3):
        pytest.skip("not of full rank, which it has found out itself")
    solver.prepare()
    x, y = case.images().flatten(1), torch.randn(2, matrix.a.shape[0], dtype=torch.float64)
    there_x, there_y = x.cuda().view(2, *conv.x_shape), y.cuda().view(2, *conv.y_shape)
    for answer, expected, power in (
        (solver.pseudo_inverse(there_y), y @ matrix.pinv.T, 0),
        (solver.pseudo_inverse_adjoint(there_x), x @ matrix.pinv, 0),
        (solver.gram_inverse(there_x), x @ matrix.pinv @ matrix.pinv.T, 1),
    ):
        assert relative(on_gpu(answer).flatten(1) - expected, expected) < bound * matrix.condition**power
    if row.gives_volume and matrix.full:
        bound = max(bound, CONSTANT * EPS * solver.growth)
        assert abs(float(solver.log_volume) - matrix.values.log().sum()) < bound * max(matrix.a.shape)
        expected = volume_gradient(case.layer().operator(case.size).conv)
        assert relative(on_gpu(solver.log_volume_gradient) - expected, expected) < bound * matrix.condition


@pytest.mark.parametrize("hard", HARD, ids=str)
def test_hard_layers_are_answered_as_on_the_cpu(hard: Any):
    here = hard.layer()
    there = copy.deepcopy(here).cuda()
    x = torch.randn(1, here.in_channels, *hard.size, dtype=here.weight.dtype)
    y = here(x).detach()

    def asked(layer: Any, y: torch.Tensor) -> torch.Tensor | str:
        try:
            return layer.inverse(y, hard.size).detach().cpu()
        except invconv.InvconvError as error:
            return type(error).__name__

    answer, expected = asked(there, y.cuda()), asked(here, y)
    assert isinstance(answer, str) == isinstance(expected, str), (answer, expected)
    if isinstance(answer, torch.Tensor) and isinstance(expected, torch.Tensor):
        with torch.no_grad():
            assert relative(here(answer) - here(expected), y) < 1e-3 if here.damping == 0 else True


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_layer_moved_and_trained_there(mode: str, dtype: torch.dtype, plain_float32: None):
    here = Case((4, 4), (3, 3), (12, 12), padding=1, mode=mode).layer(spread=0.3).to(dtype)
    there = copy.deepcopy(here).cuda()
    x = torch.randn(3, 4, 12, 12, dtype=dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9
    for _ in range(2):
        values = []
        for layer, images in ((here, x), (there, x.cuda())):
            y = layer(images).requires_grad_()
            back = layer.inverse(y)
            loss = back.pow(2).sum() + layer.log_abs_det((12, 12))
            loss.backward()
            values.append([back.detach().cpu(), layer.weight.grad.cpu(), loss.detach().cpu()])
            values[-1].append(layer.condition_number((12, 12)).detach().cpu())
            with torch.no_grad():
                layer.weight -= 1e-4 * layer.weight.grad
            layer.weight.grad = None
        assert there.weight.is_cuda
        for one, other in zip(*values, strict=True):
            assert relative((one - other).double(), one.double()) < tolerance


def test_a_flow_there():
    with warnings.catch_warnings():
        warnings.simplefilter("error", IllConditionedWarning)
        flow = MultiScaleFlow(image_size=16, scales=2, steps=1, hidden=8).cuda()
        x = torch.randint(0, 256, (4, 3, 16, 16)).cuda()
        density = flow.log_prob(x)
        density.sum().backward()
        assert density.is_cuda and all(p.grad is None or p.grad.is_cuda for p in flow.parameters())
        assert flow.sample(2).is_cuda


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("solver", ["auto", "iterative"])
def test_inverses_do_without_tf32(mode: str, solver: str):
    """Whatever is allowed in the convolutions and products of a network."""
    here = invconv.InvertibleConv2d(16, 64, 3, stride=2, padding=1, padding_mode=mode, solver=solver)
    x = torch.randn(4, 16, 12, 12)
    with torch.no_grad():
        y = here.double()(x.double()).float()
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("medium")
        there = copy.deepcopy(here).float().cuda()
        assert relative(on_gpu(there.inverse(y.cuda(), (12, 12))) - x, x) < 1e-5
        torch.set_float32_matmul_precision(before)


def test_a_bounded_layer_there(plain_float32: None):
    conv = bounded(invconv.InvertibleConv2d(4, 4, 3, padding=1), 0.7).cuda()
    x = torch.randn(2, 4, 9, 9).cuda()
    assert relative(conv.inverse(conv(x)) - x, x) < 1e-5


def test_singular_there():
    conv = invconv.InvertibleConv2d(2, 2, 3, padding=1, padding_mode="circular").cuda()
    with torch.no_grad():
        conv.weight.zero_()
    with pytest.raises(SingularMapError):
        conv.log_abs_det((8, 8))
