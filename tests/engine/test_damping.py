"""Damped inverses and their gradients: as many digits as the condition leaves, whatever the damping, down to none."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from oracle import EPS, damped, relative
from tables import Case, normal, taps
from torch import Tensor

from invconv import ConvOperator, Options, SingularMapError, functional
from invconv.engine.convolution import Convolution
from invconv.engine.inverse_gradient import gradients
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.sparse import SparseLU, foreseen_fill
from invconv.report import Plan

DAMPINGS = (1e-12, 1e-8, 1e-5, 1e-3, 0.1, 10.0)
MODES = ("circular", "zeros", "reflect", "replicate")
SHAPES = [
    Case(channels, (3, 3), size, stride=stride, padding=padding, mode=mode)
    for mode in MODES
    for channels, size, stride, padding in [
        ((2, 2), (6, 5), 1, 1),
        ((2, 3), (5, 6), 1, 1),
        ((3, 2), (5, 6), 1, 1),
        ((1, 4), (6, 8), 2, 1),
        ((1, 3), (8, 6), 2, 1),
        ((1, 6), (6, 8), 2, 1),
    ]
] + [Case((2, 2), (3, 3), (6, 5), padding=0, mode="zeros"), Case((2, 2), (3, 3), (5, 5), padding=2, mode="zeros")]
DIRECT = (Circulant, Gram, Dense, SparseLU)


def steep(case: Case, span: float, dtype: torch.dtype = torch.float64) -> Convolution:
    """A layer near the identity, the scales of whose outputs, or of whose inputs if it is wide, go down to 1 / span."""
    conv = case.layer().operator(case.size).conv
    generator = torch.Generator().manual_seed(3)
    outputs, inputs = conv.weight.shape[:2]
    weight = 0.02 * torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
    stride = math.prod(conv.geometry.stride)
    taps = weight.flatten(2)
    for i in range(max(outputs, inputs * stride)):  # a tap for each output and each input
        place = (i % stride) if stride > 1 else 0
        at = 4 + (place // 2) * 3 + place % 2 if stride > 1 else 4
        taps[i % outputs, (i // stride) % inputs, at] += 1
    scales = torch.logspace(0, -math.log10(span), outputs, dtype=torch.float64) if span > 1 else torch.ones(outputs)
    return Convolution((weight * scales.view(-1, 1, 1, 1)).to(dtype), conv.geometry, case.size)


def images(conv: Convolution, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """An output that an image explains, and what its inverse is to be multiplied by."""
    generator = torch.Generator().manual_seed(4)
    x, grad = (torch.randn(2, *conv.x_shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return conv.to(torch.float64).forward(x).to(dtype), grad.to(dtype)


def condition(conv: Convolution, damping: float = 0.0) -> float:
    s = torch.linalg.svdvals(conv.to(torch.float64).to_dense())
    return math.hypot(s[0].item(), damping) / math.hypot(s[-1].item(), damping)


def served(kind: type[Solver], conv: Convolution, options: Options) -> Solver | None:
    solver = kind(conv, options) if isinstance(kind.plan(conv, options), Plan) else None
    return solver if solver is not None and solver.keeps(1e-3) else None


@pytest.mark.parametrize("span", [1.0, 1e4])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_errors_are_those_of_the_condition_not_of_its_square(case, span):
    conv = steep(case, span)
    assert condition(conv) < 60 * span  # of full rank
    y, grad = images(conv)
    kinds = set()
    for damping in DAMPINGS:
        x, by_y, by_weight = damped(conv, y, grad, damping)
        bound = 200 * EPS * condition(conv, damping)
        for kind in DIRECT:
            solver = served(kind, conv, Options(damping=damping))
            if solver is None:
                continue
            kinds.add(kind)
            x_hat = solver.pseudo_inverse(y)
            assert relative(x_hat - x, x) < bound, (kind, damping)
            assert relative(solver.pseudo_inverse_adjoint(grad) - by_y, by_y) < bound, (kind, damping)
            found = gradients(solver, y, x_hat, grad)
            assert relative(found.by_y - by_y, by_y) < bound, (kind, damping)
            assert relative(found.by_weight - by_weight, by_weight) < bound, (kind, damping)
    assert {Dense, SparseLU} <= kinds
    assert (Circulant in kinds) == conv.is_cyclic
    if conv.geometry.padding_mode == "zeros" and span == 1:
        assert Gram in kinds


@pytest.mark.parametrize("span", [1e1, 1e2, 1e3])
@pytest.mark.parametrize("case", SHAPES[1:6:4], ids=str)
def test_the_estimate_of_a_gradient_is_near_its_error(case, span):
    """Tall cyclic layers in float32, whose outputs an image explains: what is left of y is rounding."""
    conv = steep(case, span, torch.float32)
    assert conv.is_cyclic and conv.shape[0] > conv.shape[1]
    y, grad = images(conv, torch.float32)
    solver = Circulant(conv, Options(damping=1e-3))
    found = gradients(solver, y, solver.pseudo_inverse(y), grad)
    expected = damped(conv, y, grad, 1e-3)[2]
    error = relative(found.by_weight.double() - expected, expected)
    assert 0.3 < max(found.error, 1e-7) / max(error, 1e-7) < 100


def test_a_gradient_of_rounding_is_warned_of():
    case = SHAPES[1]
    for span, said in ((1.0, False), (1e6, True)):
        conv = steep(case, 1.0, torch.float32)
        weight = conv.weight.clone()
        weight[:, -1] /= span  # a column that all outputs see little of
        y, grad = images(replace(conv, weight=weight), torch.float32)
        operator = ConvOperator(weight, conv.geometry, case.size, Options(rtol=1e-9))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            x = operator.pseudo_inverse(y)
            caught.clear()
            operator.pseudo_inverse_gradient(y, x, grad)
        assert any("the gradient of the inverse by the weight" in str(w.message) for w in caught) == said


@pytest.mark.usefixtures("one_known_image")
@pytest.mark.parametrize("solver", ["auto", "direct", "iterative"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_float32_gradients_keep_their_digits(case, solver):
    """Where d is small, u = (A'A + d^2)^-1 g or y - A x is a small difference, and the other as large as 1 / d^2."""
    conv = steep(case, 1.0, torch.float32)
    y, grad = images(conv, torch.float32)
    for damping in (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
        expected = damped(conv, y, grad, damping)
        operator = ConvOperator(conv.weight, conv.geometry, conv.input_size, Options(damping=damping, solver=solver))
        leaves = y.clone().requires_grad_(), conv.weight.clone().requires_grad_()
        x = functional.pseudo_inverse(*leaves, operator)
        answers = (x, *torch.autograd.grad(x, leaves, grad))
        for answer, value in zip(answers, expected, strict=True):
            assert relative(answer.double() - value, value) < 2e-5, damping


@pytest.mark.parametrize("solver", ["auto", "direct", "iterative"])
@pytest.mark.parametrize("case", SHAPES[1::4], ids=str)
def test_gradients_where_the_rank_is_not_full(case, solver):
    conv = steep(case, 1.0)
    weight = conv.weight.clone()
    weight[-1] = weight[0]
    weight[:, -1] *= 0.0 if weight.shape[1] > 1 else 1.0
    conv = Convolution(weight, conv.geometry, conv.input_size)
    y, grad = images(conv)
    y = y + 0.1  # which no image explains
    for damping in (1e-2, 0.3):
        expected = damped(conv, y, grad, damping)
        options = Options(damping=damping, solver=solver, tol=1e-13)
        operator = ConvOperator(weight, conv.geometry, conv.input_size, options)
        x = operator.pseudo_inverse(y)
        gradients = operator.pseudo_inverse_gradient(y, x, grad)
        for answer, value in zip((x, *gradients), expected, strict=True):
            assert relative(answer - value, value) < 1e-9


@pytest.mark.parametrize("solver", ["auto", "direct"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_a_damping_of_next_to_nothing_changes_nothing(case, solver):
    conv = steep(case, 1e4)
    y, _ = images(conv)
    answers = [
        ConvOperator(
            conv.weight, conv.geometry, conv.input_size, Options(damping=damping, solver=solver)
        ).pseudo_inverse(y)
        for damping in (0.0, 1e-14)
    ]
    assert relative(answers[1] - answers[0], answers[0]) < 200 * EPS * condition(conv)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_random_kernels_of_few_channels_take_a_little_damping(mode):
    """Beyond the reach of the explicit matrix: the equations of x tell what is wrong with it."""
    conv = normal(3, damping=1e-5, padding_mode=mode)
    operator = conv.operator((30, 30))
    x = torch.randn(1, 3, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = operator.forward(x)
    x_hat = operator.pseudo_inverse(y)
    assert operator.solver.name == "fft and strips"
    lacks = operator.solver.damped_correction(x_hat, y - operator.forward(x_hat))
    assert relative(lacks, x) < 1e-9
    # What damping takes from x is d^2 (A'A + d^2)^-1 x.
    taken = conv.damping**2 * operator.solver.gram_inverse(x)
    assert relative(x_hat + taken - x, x) < 1e-9


def test_float32_blocks_are_factored_in_float64_where_damping_is_too_little():
    case = Case((2, 2), (3, 3), (8, 8))
    conv = steep(case, 1e4, torch.float32)
    for damping, dtype in ((1e-6, torch.float64), (1e-3, torch.float64), (0.1, torch.float32)):
        operator = ConvOperator(conv.weight, conv.geometry, case.size, Options(damping=damping))
        assert operator.solver.conv.dtype == dtype
    assert ConvOperator(conv.weight, conv.geometry, case.size).solver.conv.dtype == torch.float32
    wide = steep(Case((3, 2), (3, 3), (8, 8)), 1.0, torch.float32)  # what it does not see needs no digits
    assert ConvOperator(wide.weight, wide.geometry, case.size, Options(damping=1e-6)).solver.conv.dtype == torch.float32


@pytest.mark.parametrize("case", [*SHAPES[6::3], Case((2, 2), (5, 3), (12, 20), mode="zeros")], ids=str)
def test_sparse_factors_fill_in_as_foreseen(case):
    conv = steep(case, 1.0)
    solver = SparseLU(conv, Options(damping=0.1))
    solver.prepare()
    assert (
        0.05 * foreseen_fill(conv, True)[0] < solver.bytes / 12 - solver.matrix.nnz < 1.5 * foreseen_fill(conv, True)[0]
    )
    assert solver.condition < 1e4


def test_the_volume_of_a_damped_layer_is_that_of_its_matrix():
    square, tall = (steep(SHAPES[i], 1.0) for i in (6, 7))
    damping, plain = SparseLU(square, Options(damping=0.3)), SparseLU(square)
    assert torch.equal(damping.log_volume, plain.log_volume)
    assert torch.equal(damping.log_volume_gradient, plain.log_volume_gradient)
    with pytest.raises(SingularMapError, match="undamped, which has no sparse factors: the layer is not square"):
        SparseLU(tall, Options(damping=0.3)).log_volume  # noqa: B018
    blind = Convolution(0 * square.weight, square.geometry, square.input_size)
    winding = taps([1, 1.5]).operator((90,)).conv  # of condition 1e16: there are factors, but they are worth nothing
    for conv in (blind, winding):
        with pytest.raises(SingularMapError, match="singular, or nearly so"):
            SparseLU(conv, Options(damping=0.3)).log_volume  # noqa: B018


def test_large_gram_matrices_are_inverted_as_well():
    """To as many digits as 1 / d^2 leaves."""
    for case in SHAPES[7:9]:
        conv = steep(case, 1.0)
        a = conv.to_dense()
        for kind in (Gram, Dense, SparseLU, Krylov):
            solver = kind(conv, Options(damping=0.3, tol=1e-13))
            y, x = images(conv)
            for answer, gram, image in (
                (solver.gram_inverse(x), a.T @ a, x),
                (solver.dual_gram_inverse(y), a @ a.T, y),
            ):
                expected = torch.linalg.solve(
                    gram + 0.3**2 * torch.eye(len(gram), dtype=torch.float64), image.flatten(1).T
                ).T
                assert relative(answer.flatten(1) - expected, expected) < 1e-11, kind
