"""Real borders: which way is taken, what it is worth, and what is said when it is worth little."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from oracle import EPS, dense, solution
from tables import BORDERS, CASES, Case

import invconv
from invconv import (
    IllConditionedWarning,
    InputError,
    InvertibleConv,
    InvertibleConv1d,
    InvertibleConv2d,
    SingularMapError,
    functional,
)
from invconv.engine import memory
from invconv.engine.solvers import dense as dense_module
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU

MODES = ["zeros", "reflect", "replicate"]


def kernel(weight: list, size: int | None = None, dtype=torch.float64) -> InvertibleConv:
    """A layer of one channel with these taps and a size that is kept."""
    taps = torch.tensor(weight, dtype=dtype)[None, None]
    kind = {3: InvertibleConv1d, 4: InvertibleConv2d}[taps.dim()]
    conv = kind(1, 1, tuple(taps.shape[2:]), padding="same", bias=False, dtype=dtype)
    with torch.no_grad():
        conv.weight.copy_(taps)
    return conv


def relative(x_hat: torch.Tensor, x: torch.Tensor) -> float:
    return ((x_hat - x).norm() / x.norm()).item()


# -- the way that is taken -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "size", "solver"),
    [
        ({"padding": 1, "padding_mode": "circular"}, (8, 8), "fft"),
        ({"kernel_size": 1}, (8, 8), "fft"),
        ({"padding": 1}, (8, 8), "fft and ring"),
        ({"padding": "same", "padding_mode": "reflect"}, (8, 8), "fft and ring"),
        ({"padding": 1, "damping": 0.1}, (8, 8), "fft and strips"),
        ({"padding": 0}, (8, 8), "svd"),
        ({"padding": 0}, (24, 24), "tiles"),
        ({"padding": 2}, (24, 24), "fft and symmetric ring"),
        ({"padding": 2, "padding_mode": "replicate"}, (16, 16), "fft and symmetric ring"),
        ({"padding": 0, "padding_mode": "reflect"}, (24, 24), "tiles"),
        ({"out_channels": 3, "padding": 1, "padding_mode": "reflect"}, (8, 8), "svd"),
        ({"out_channels": 3, "padding": 1, "padding_mode": "reflect"}, (48, 48), "tiles"),
        ({"padding": 1, "solver": "iterative"}, (8, 8), "lsmr"),
    ],
)
def test_the_plan_is_what_is_done(arguments, size, solver):
    arguments = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "bias": False, **arguments}
    conv = InvertibleConv2d(**arguments)
    operator = conv.operator(size)
    plan = operator.plan()
    assert plan.solver == solver and plan.solver in str(plan)
    report = operator.report()
    assert report.solver == solver and report.unknowns == plan.unknowns and solver in str(report)
    assert report.relative_residual < (0.1 if conv.damping else 1e-4)
    assert report.bytes <= max(plan.bytes, 2**16)
    x = torch.randn(2, 4, *size)
    y = conv(x)
    assert relative(conv(conv.inverse(y)), y) < (0.1 if conv.damping else 1e-4)


def test_memory_is_foreseen(monkeypatch):
    conv = InvertibleConv2d(32, 32, 3, padding=1, solver="direct")
    torch.nn.init.normal_(conv.weight)  # whose inverse does not decay
    plan = conv.operator((128, 128)).plan()
    assert plan.unknowns == 257 * 32 and plan.bytes > plan.unknowns**2 * 8
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**30)
    with pytest.raises(
        invconv.OutOfMemoryError, match=r"8224 unknowns .* needs about 2.\d GiB, of which 1.0 GiB are free"
    ):
        conv.inverse(torch.zeros(1, 32, 128, 128))
    with pytest.raises(MemoryError):
        conv.operator((128, 128)).plan()
    conv.solver = "auto"
    assert conv.operator((128, 128)).plan().solver == "lsmr"
    assert "needs about" in conv.operator((128, 128)).plan().because


def test_auto_leaves_large_rings_to_tiles():
    conv = InvertibleConv2d(64, 64, 3, padding=1)
    assert conv.operator((512, 512)).plan().solver == "tiles"
    torch.nn.init.normal_(conv.weight)  # whose inverse does not decay
    assert conv.operator((128, 128)).plan().solver == "fft and ring"
    with pytest.raises(InputError, match="iterative"):
        InvertibleConv2d(2, 2, 3, padding=1, solver="krylov").operator((4, 4))
    for name, value in (("tol", 2.0), ("max_iter", 0)):
        wrong: dict[str, Any] = {name: value}
        with pytest.raises(InputError, match=name):
            InvertibleConv2d(2, 2, 3, padding=1, **wrong).operator((4, 4))


def test_a_large_layer_without_a_ring_is_refused_by_the_direct_way():
    conv = InvertibleConv2d(4, 3, 3, padding=1, padding_mode="reflect", solver="direct")
    torch.nn.init.normal_(conv.weight)  # whose inverse does not decay
    with pytest.raises(invconv.OutOfMemoryError, match="solver='iterative'"):
        conv.inverse(torch.zeros(1, 3, 48, 48))


# -- the iterative way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize(
    "case",
    [
        Case((2, 2), (3, 3), (4, 5), mode="zeros"),
        Case((2, 3), (3, 3), (4, 4), padding=0, mode="zeros"),
        Case((3, 2), (3, 3), (4, 4), mode="reflect"),
        Case((1, 6), (3, 3), (5, 4), stride=2, mode="replicate"),
    ],
    ids=str,
)
def test_lsmr_has_gradients(case, damping):
    conv = case.layer(spread=0.3)
    leaves = (conv(case.images()).detach() + 0.1).requires_grad_(), conv.weight, conv.bias
    operator = conv.operator(case.size)
    x = functional.conv_inverse(*leaves, case.size, solver="iterative", tol=1e-15, damping=damping, **case.options)
    expected = solution(operator.conv, *leaves, damping)
    gradients, values = (torch.autograd.grad(answer, leaves, case.images(seed=3)) for answer in (x, expected))
    for gradient, value in zip(gradients, values, strict=True):
        assert relative(gradient, value) < 1e-11 * operator.condition_number() ** 2


def test_lsmr_says_when_it_stops_short():
    conv = InvertibleConv2d(4, 4, 3, padding=1, solver="iterative", max_iter=3, tol=1e-10, dtype=torch.float64)
    with torch.no_grad():  # singular values from 0.4 to 1.7
        noise = torch.randn(conv.weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        conv.weight.copy_(torch.nn.init.dirac_(torch.empty_like(noise)) + 0.1 * noise)
    with (
        pytest.warns(IllConditionedWarning, match="lsmr gives random images back with a relative error of .*max_iter"),
        pytest.warns(IllConditionedWarning, match="may have a relative error of .*after 3 iterations.*max_iter"),
    ):
        conv.inverse(torch.randn(1, 4, 16, 16, dtype=torch.float64))
    torch.nn.init.normal_(conv.weight)
    with pytest.raises(SingularMapError, match="solver='direct'"):
        conv.log_abs_det((16, 16))


def test_lsmr_takes_an_empty_batch():
    conv = InvertibleConv2d(2, 2, 3, padding=1, solver="iterative")
    assert conv.inverse(torch.zeros(0, 2, 8, 8)).shape == (0, 2, 8, 8)


# -- singular and ill-conditioned ----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [32, 64, 128, 1024, 4096])
def test_the_classroom_kernel_has_log_determinant_zero_at_any_size(n):
    """[1, 1.5]: triangular with ones on the diagonal, condition number 1.5^n, a torus of condition 5."""
    conv = kernel([1.0, 1.5])
    assert abs(conv.log_abs_det((n,)).item()) < 1e-8
    weight = conv.weight.detach().requires_grad_()
    gradient = torch.autograd.grad(functional.conv_log_abs_det(weight, (n,), padding="same"), weight)[0]
    # d log |det| = n dK_0: the determinant is K_0^n.
    assert torch.allclose(gradient, torch.tensor([[[n, 0.0]]], dtype=torch.float64), atol=1e-6 * n)


def test_the_classroom_kernel_loses_its_inverse_and_says_so():
    x = torch.randn(1, 1, 32, dtype=torch.float64)
    conv = kernel([1.0, 1.5])
    assert relative(conv.inverse(conv(x)), x) < 1e-9
    report = conv.operator((32,)).report()
    assert report.solver == "triangular" and report.growth > 1e4
    assert conv.condition_number((32,)) > 1e5
    # In float32 the outputs do not hold the image any more.
    with pytest.raises(SingularMapError, match=r"relative error of .* no digit can be trusted"):
        kernel([1.0, 1.5], dtype=torch.float32).inverse(torch.randn(1, 1, 64))
    with pytest.warns(IllConditionedWarning, match="1 of 128 singular values"):
        conv.inverse(torch.randn(1, 1, 128, dtype=torch.float64))
    with pytest.warns(IllConditionedWarning, match="has no full rank to working precision, in the ring"):
        conv.inverse(torch.randn(1, 1, 4096, dtype=torch.float64))


@pytest.mark.parametrize("n", [10, 3_000, 20_000])
def test_a_singular_torus_does_not_matter_to_an_invertible_layer(n):
    """Differences: every torus has the constant image in its null space, zero borders have none."""
    conv = kernel([1.0, -1.0])
    x = torch.randn(1, 1, n, dtype=torch.float64)
    assert relative(conv.inverse(conv(x)), x) < 50 * EPS * 2 * n
    assert abs(conv.log_abs_det((n,)).item()) < 1e-9
    assert conv.operator((n,)).solver.name in ("triangular", "fft and ring", "sparse lu")


def test_the_laplace_operator():
    """Its eigenvalues are known: 4 - 2 cos(pi i / (m + 1)) - 2 cos(pi j / (n + 1))."""
    conv = kernel([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    size = (100, 90)
    lines = [2 - 2 * torch.cos(math.pi * torch.arange(1, n + 1, dtype=torch.float64) / (n + 1)) for n in size]
    values = (lines[0][:, None] + lines[1]).flatten().sort(descending=True).values
    assert abs(conv.log_abs_det(size) - values.log().sum()) < 1e-9
    assert torch.allclose(conv.condition_number(size), values[0] / values[-1])
    extremes = conv.singular_values(size, k=3)
    assert torch.allclose(extremes, torch.cat([values[:3], values[-3:]]))
    x = torch.randn(2, 1, *size, dtype=torch.float64)
    assert relative(conv.inverse(conv(x)), x) < 1e-11
    # With reflecting borders the constant image is in the null space, and that is found.
    conv.padding_mode = "reflect"
    with pytest.warns(IllConditionedWarning, match="1 of 64 singular values"):
        conv.inverse(torch.randn(1, 1, 8, 8, dtype=torch.float64))
    with pytest.raises(SingularMapError, match="minus infinity"):
        conv.log_abs_det((8, 8))


def test_a_large_layer_without_full_rank_is_solved_iteratively_and_said_so(monkeypatch):
    conv = Case((3, 3), (3, 3), (6, 5), mode="zeros").layer()
    with torch.no_grad():
        conv.weight[2] = conv.weight[1]
    matrix = dense(conv, (6, 5))
    y = torch.randn(1, 3, 6, 5, dtype=torch.float64)
    expected = y.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-10).T
    centred = y - conv.bias.view(1, 3, 1, 1)
    expected = centred.flatten(1) @ torch.linalg.pinv(matrix, rtol=1e-10).T
    with pytest.warns(IllConditionedWarning, match="30 of 90 singular values"):
        assert relative(conv.inverse(y).flatten(1), expected) < 1e-10
    monkeypatch.setattr(dense_module, "MOST_ENTRIES", 0)
    conv = Case((3, 3), (3, 3), (6, 5), mode="zeros").layer()
    with torch.no_grad():
        conv.weight[2] = conv.weight[1]
    with pytest.warns(IllConditionedWarning, match="is solved iteratively"):
        assert relative(conv.inverse(y).flatten(1), expected) < 1e-8
    conv.solver = "direct"
    with pytest.raises(SingularMapError, match="no full rank to working precision"):
        conv.inverse(y)


# -- sparse LU -----------------------------------------------------------------------------------------------------

SQUARE = [case for case in BORDERS + CASES[::5] if len(set(case.layer().operator(case.size).shape)) == 1]


@pytest.mark.parametrize("case", SQUARE, ids=str)
def test_sparse_lu_equals_the_dense_matrix(case):
    conv = case.layer()
    matrix = dense(conv, case.size)
    sparse = SparseLU(conv.operator(case.size).conv)
    assert torch.equal(torch.from_numpy(sparse.matrix.toarray()), matrix) or torch.allclose(
        torch.from_numpy(sparse.matrix.toarray()), matrix, rtol=4 * EPS, atol=4 * EPS
    )
    s = torch.linalg.svdvals(matrix)
    condition = (s[0] / s[-1]).item()
    if condition > 1e12:
        assert sparse.trial_error > 1e-8
        return
    assert 0.1 * condition / len(s) ** 0.5 <= sparse.condition <= 2 * condition * len(s)
    x, limit = case.images(), 50 * EPS * condition
    y = x.flatten(1) @ matrix.T
    assert relative(sparse.pseudo_inverse(y.view(-1, *sparse.conv.y_shape)), x) < limit
    expected = x.flatten(1) @ torch.linalg.inv(matrix)
    assert relative(sparse.pseudo_inverse_adjoint(x).flatten(1), expected) < limit
    expected = torch.linalg.solve(matrix.T @ matrix, x.flatten(1).T).T
    assert relative(sparse.gram_inverse(x).flatten(1), expected) < limit * condition
    assert abs(sparse.log_volume - torch.linalg.slogdet(matrix).logabsdet) < limit * len(s)
    weight = conv.weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        images = torch.eye(len(s), dtype=torch.float64).view(-1, *case.images(1).shape[1:])
        columns = replace(sparse.conv, weight=weight).forward(images).flatten(1)
        gradient = torch.autograd.grad(torch.linalg.slogdet(columns).logabsdet, weight)[0]
    assert relative(sparse.log_volume_gradient, gradient) < limit


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_random_kernels_of_few_channels_are_inverted_by_sparse_lu(padding_mode):
    torch.manual_seed(0)
    conv = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode, dtype=torch.float64)
    torch.nn.init.normal_(conv.weight)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    operator = conv.operator((64, 64))
    report = operator.report()
    assert relative(conv.inverse(conv(x)), x) < min(1e-3, 50 * EPS * report.condition)
    assert report.solver == "sparse lu" and report.condition > 1e10 and 0 < report.bytes < 24 * 10**7
    assert torch.isfinite(conv.log_abs_det((64, 64)))
    twin = pickle.loads(pickle.dumps(copy.deepcopy(operator)))
    y = conv(x).detach() - conv.bias.detach().view(1, 3, 1, 1)
    assert torch.equal(twin.pseudo_inverse(y), operator.pseudo_inverse(y))


# -- singular values of large layers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", [case for case in BORDERS[::10] if min(case.channels) > 1 or len(case.size) > 1], ids=str
)
def test_extreme_singular_values_are_those_of_the_dense_matrix(case, monkeypatch):
    conv = case.layer()
    values = torch.linalg.svdvals(dense(conv, case.size))
    if values[-1] < 1e-6 * values[0] or len(values) < 4:
        pytest.skip("no full rank, or too few")
    operator = conv.operator(case.size)
    operator.prepare()
    monkeypatch.setattr(dense_module, "MOST_ENTRIES", 0)
    extremes = operator.singular_values(k=1)
    assert torch.allclose(extremes, values[[0, -1]], rtol=1e-5)
    assert torch.allclose(operator.condition_number(), values[0] / values[-1], rtol=1e-5)
    with pytest.raises(InputError, match="give k="):
        operator.singular_values()


def test_whoever_asks_first_prepares_for_all(monkeypatch):
    conv = InvertibleConv2d(3, 3, 3, padding=1, solver="iterative")
    calls, prepare = [], Krylov.prepare
    monkeypatch.setattr(Krylov, "prepare", lambda solver: calls.append(solver) or prepare(solver))
    monkeypatch.setattr(dense_module, "MOST_ENTRIES", 0)
    operator = conv.operator((6, 6))
    for ask in (partial(operator.singular_values, k=1), operator.condition_number, operator.report):
        ask()
        assert len(calls) == 1
    pickle.loads(pickle.dumps(operator)).report()  # its factors may have stayed behind
    assert len(calls) == 2


def test_k_cuts_the_list_of_small_layers():
    conv = InvertibleConv2d(2, 2, 3, padding=1)
    values = conv.singular_values((5, 5))
    assert torch.equal(conv.singular_values((5, 5), k=4), torch.cat([values[:4], values[-4:]]))
    with pytest.raises(InputError, match="between 1 and 25"):
        conv.singular_values((5, 5), k=26)


@pytest.mark.parametrize("padding_mode", [*MODES, "circular"])
@pytest.mark.parametrize(("kernel_size", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (4, 2, 1), (2, 2, 0), (5, 3, 2)])
def test_layers_start_and_stay_well_conditioned_at_every_border(padding_mode, kernel_size, stride, padding):
    conv = InvertibleConv2d(3, 3 * stride**2, kernel_size, stride, padding, padding_mode=padding_mode)
    size = (4 * stride, 3 * stride)
    assert conv.condition_number(size) < 4
    invconv.parametrizations.bounded(conv, rho=0.5)
    assert conv.condition_number(size) < 4
    parametrized: Any = conv.parametrizations.weight
    with torch.no_grad():
        parametrized.original1.normal_()
    if padding_mode in ("zeros", "circular"):
        mixing = torch.linalg.cond(parametrized.original0[0])
        assert conv.condition_number(size) <= 3 * mixing * (1 + 1e-4)


# -- precision and freshness ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", MODES)
def test_float32_takes_float64_factors_where_it_must(padding_mode):
    conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=padding_mode)
    x = torch.randn(2, 4, 12, 12)
    assert (conv.inverse(conv(x)) - x).abs().max() < 1e-5
    if padding_mode == "zeros":
        assert conv.operator((12, 12)).report().dtype == torch.float32
    torch.nn.init.normal_(conv.weight)
    report = conv.operator((12, 12)).report()
    assert report.dtype == torch.float64
    y = conv(x).detach()
    exact = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=padding_mode, dtype=torch.float64)
    exact.load_state_dict(conv.state_dict())
    x_hat = conv.inverse(y)
    assert x_hat.dtype == torch.float32
    # The answer to these very outputs, however much of the image their rounding has lost.
    assert relative(x_hat.double(), exact.inverse(y.double())) < 1e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding_mode", MODES)
def test_half_precisions(padding_mode, dtype):
    conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=padding_mode).to(dtype)
    x = torch.randn(2, 4, 8, 8).to(dtype)
    y = conv(x)
    x_hat = conv.inverse(y)
    assert x_hat.dtype == dtype
    assert relative(x_hat.float(), x.float()) < 20 * torch.finfo(dtype).eps
    assert conv.log_abs_det((8, 8)).dtype == torch.float32


@pytest.mark.parametrize("padding_mode", MODES)
def test_borders_are_never_stale(padding_mode):
    conv = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.05)
    for size in [(6, 6), (5, 7), (6, 6)]:
        x = torch.randn(2, 3, *size)
        loss = conv.inverse(torch.randn(2, 3, *size)).square().mean() - 0.01 * conv.log_abs_det(size)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert (conv.inverse(conv(x)) - x).abs().max() < 1e-4
        matrix = dense(conv, size)
        assert abs(conv.log_abs_det(size) - torch.linalg.slogdet(matrix).logabsdet) < 1e-3


def test_refinement_gains_digits():
    conv = InvertibleConv2d(8, 8, 3, padding=1, bias=False, dtype=torch.float64)
    torch.nn.init.normal_(conv.weight)
    operator = conv.operator((24, 24))
    x = torch.randn(1, 8, 24, 24, dtype=torch.float64)
    y = conv(x).detach()
    operator.prepare()
    ring = operator.solver
    assert isinstance(ring, Ring) and ring.refine
    once = ring._solve(y)
    refined = operator.pseudo_inverse(y)
    assert relative(conv(refined), y) < 0.5 * relative(conv(once), y)


def test_no_refinement_below_the_rounding_of_the_outputs():
    near, far = (InvertibleConv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
    torch.nn.init.normal_(far.weight)
    for conv, dtype in (near, torch.float32), (far, torch.float64):
        operator = conv.operator((24, 24))
        operator.prepare()
        ring = operator.solver
        assert isinstance(ring, Ring) and ring.conv.dtype == dtype and not ring.refine


@pytest.mark.parametrize(("channels", "side", "seed", "solver"), [(1, 24, 2, "sparse lu"), (3, 64, 3, "sparse lu")])
def test_float32_outputs_that_determine_nothing_are_refused(channels, side, seed, solver):
    """The factors are float64 and have the digits; the rounded outputs have not."""
    conv = InvertibleConv2d(channels, channels, 3, padding=1)
    with torch.no_grad():
        torch.nn.init.normal_(conv.weight, generator=torch.Generator().manual_seed(seed))
    y = conv(torch.randn(1, channels, side, side)).detach()
    assert conv.operator((side, side)).solver.name == solver
    with pytest.raises(SingularMapError, match="Use float64, damping"):
        conv.inverse(y)
