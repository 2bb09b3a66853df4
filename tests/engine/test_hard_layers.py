"""Layers that are hard to invert, and what has to be chosen for them: each tuned constant decides one of these rows."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from oracle import EPS, dense, relative
from scipy.sparse.linalg import lsmr
from tables import BORDERS, CASES, HARD, SMOOTH, Hard, normal

from invconv import IllConditionedWarning, InvertibleConv2d, Options, SingularMapError
from invconv.engine import lsmr as scipy_lsmr
from invconv.engine import memory, ways
from invconv.engine.border import factor_border
from invconv.engine.convolution import Convolution
from invconv.engine.preconditioner import torus_root
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU, has_dependent_channels
from invconv.engine.solvers.tiles import Tiles
from invconv.engine.volumes.coarse import coarse
from invconv.engine.windows import smallest_torus
from invconv.geometry import Geometry
from invconv.operator import ConvOperator
from invconv.report import Plan

MIB = 2**20
WITHOUT_TILES = tuple(way for way in ways.WAYS if way.solver is not Tiles)
"""These serve layers that are as they start, whatever their size."""


def outcome(operator: ConvOperator) -> str:
    """What becomes of an operator that is asked for an inverse."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            operator.prepare()
        except SingularMapError:
            return "refused"
    return "warned" if any(issubclass(w.category, IllConditionedWarning) for w in caught) else "answered"


def volume(operator: ConvOperator) -> tuple[float, ...] | str:
    """Where the log-determinant comes from."""
    try:
        operator.log_volume()
    except SingularMapError:
        return "refused"
    used: Any = operator._volume_solver
    if used is operator.solver:
        return "own"
    return used.tilt.ratios if isinstance(used, Ring) else type(used).__name__.lower()


@pytest.mark.parametrize("hard", HARD, ids=str)
def test_what_is_chosen(hard: Hard):
    operator = hard.layer().operator(hard.size)
    solver: Any = operator.solver
    assert (solver.name, solver.conv.dtype) == (hard.solver, hard.dtype)
    assert outcome(operator) == hard.outcome
    if hard.refined is not None:
        assert solver.refine == hard.refined
    if hard.enlarged is not None:
        assert (solver.torus.grid.input_size != smallest_torus(operator.geometry, hard.size)) == hard.enlarged
    if hard.tilted is not None:
        assert any(r != 1 for r in solver.tilt.ratios) == hard.tilted
    if hard.eliminated is not None:
        assert (solver.border._lu.shape[-1] < solver.unknowns) == hard.eliminated
    if hard.volume is not None:
        assert volume(operator) == hard.volume


@pytest.mark.parametrize("hard", [h for h in HARD if h.outcome == "answered" and h.dtype == torch.float64], ids=str)
def test_what_it_is_worth(hard: Hard):
    """What is answered without a word has at least two digits; the report says how many, to a factor."""
    conv = hard.layer()
    operator = conv.operator(hard.size)
    x = torch.randn(
        2, conv.in_channels, *hard.size, generator=torch.Generator().manual_seed(5), dtype=conv.weight.dtype
    )
    if operator.shape[0] < operator.shape[1]:
        x = operator.pseudo_inverse(operator.forward(x))
    error = relative(operator.pseudo_inverse(operator.forward(x)) - x, x)
    if not conv.damping:
        assert error < 1e-2
        if x.dtype == torch.float64:
            assert error < 30 * max(operator.report().relative_error, EPS)


@pytest.mark.parametrize("hard", [h for h in HARD if h.volume == "own" and torch.Size(h.size).numel() < 300], ids=str)
def test_log_volumes_equal_the_dense_matrix(hard: Hard):
    conv = hard.layer()
    values = torch.linalg.svdvals(dense(conv, hard.size))
    log_volume = conv.operator(hard.size).log_volume()
    assert abs(log_volume - values.log().sum()) < 1e-5 * len(values)


# -- plan and report -----------------------------------------------------------------------------------------------

FOUND_OUT = {"2to2-k5x2-n5x6-s1-d1-g1-p(3,0)-reflect", "2to2-k5x2-n5x6-s1-d1-g1-p(3,0)-replicate"}
FOUND_OUT |= {"2to3-k3x3-n5x4-s1-d1-g1-p(0,2)"}
"""Layers without full rank that look as if they had it, until they are factored."""


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("available", [64 * 2**30, 8 * MIB, MIB // 64], ids=["much", "little", "least"])
@pytest.mark.parametrize("solver", ["auto", "iterative"])
def test_the_plan_is_what_is_done(solver, available, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: available)
    few = solver == "iterative" or available < MIB  # which iterate
    cases = BORDERS[::20] + CASES[::40] if few else CASES[::4] + BORDERS
    taken = set()
    for case in cases:
        operator = case.layer(solver=solver).operator(case.size)
        before = operator.plan()
        name = operator.solver.name
        taken.add(name)
        assert operator.plan().solver == name, case
        assert before.solver == name or (str(case) in FOUND_OUT and name in ("svd", "lsmr")), case
        assert name not in before.because.split("; ")[1:]
    assert len(taken) >= {"auto": 4 if available > MIB else 2, "iterative": 1}[solver]


@pytest.mark.parametrize("solver", ["auto", "direct", "iterative"])
def test_the_plan_after_the_choice_tells_why(solver):
    operator = normal(3, solver=solver).operator((64, 64))
    first = operator.plan()
    if solver != "iterative":
        assert first.solver == "fft and ring" and "rounding errors" not in first.because
        assert operator.solver.name == "sparse lu"
        assert "fft and ring: rounding errors grow about" in operator.plan().because
    else:
        assert first.solver == operator.solver.name == "lsmr"


# -- limits of memory and size -------------------------------------------------------------------------------------


def convolution(channels: int, side: int, out: int | None = None, **arguments) -> Convolution:
    geometry = Geometry.of((3, 3), padding=1, **arguments)
    return Convolution(torch.empty(out or channels, channels, 3, 3, dtype=torch.float64), geometry, (side, side))


def test_where_a_sparse_lu_ends(monkeypatch):
    assert isinstance(SparseLU.plan(convolution(12, 64), Options()), Plan)
    refusal = SparseLU.plan(convolution(12, 68), Options())
    assert isinstance(refusal, str) and "entries" in refusal
    # 24 bytes for each of 1.5e8 entries and 60 for each of 5.3e6 taps, in four fifths of what there is.
    for available, fits in ((5.1e9, True), (4.7e9, False)):
        monkeypatch.setattr(memory, "available_memory", lambda device, free=available: int(free))
        assert isinstance(SparseLU.plan(convolution(12, 64), Options()), Plan) == fits


def test_where_a_ring_ends(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 64 * 2**30)
    monkeypatch.setattr(ways, "WAYS", WITHOUT_TILES)
    for side, solver in ((77, "fft and ring"), (80, "lsmr")):  # 19,840 and 20,608 unknowns
        conv = InvertibleConv2d(128, 128, 3, padding=1, device="cpu")
        assert conv.operator((side, side)).plan().solver == solver
        conv.solver = "direct"
        assert conv.operator((side, side)).plan().solver == "fft and ring"


def test_where_an_explicit_matrix_ends():
    for side, solver in ((23, "svd"), (26, "cholesky")):  # 3.4e6 and 5.5e6 entries
        conv = InvertibleConv2d(4, 3, 3, padding=1, padding_mode="reflect")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ways, "SOON", math.inf)  # without a look at the clock
            patch.setattr(ways, "WAYS", WITHOUT_TILES)
            assert conv.operator((side, side)).plan().solver == solver


def test_a_poor_torus_is_no_preconditioner():
    near = ConvOperator(torch.randn(4, 4, 3, 3).double() * 0.02 + torch.eye(4).double().view(4, 4, 1, 1) * _centre(),
                        Geometry.of((3, 3), padding=1), (12, 12))  # fmt: skip
    assert torus_root(near.conv, True, 0.0) is not None
    poor = ConvOperator(torch.tensor([[[[0.0, 1, 0], [1, -3.999, 1], [0, 1, 0]]]]).double(),
                        Geometry.of((3, 3), padding=1), (12, 12))  # fmt: skip
    assert torus_root(poor.conv, True, 0.0) is None


def _centre() -> torch.Tensor:
    kernel = torch.zeros(1, 1, 3, 3, dtype=torch.float64)
    kernel[..., 1, 1] = 1
    return kernel


def test_lsmr_gives_up_after_two_thousand_iterations(monkeypatch):
    limits = []
    monkeypatch.setattr(
        scipy_lsmr, "lsmr", lambda *a, maxiter, **k: limits.append(maxiter) or lsmr(*a, maxiter=maxiter, **k)
    )
    conv = InvertibleConv2d(1, 1, 3, padding=1, solver="iterative", bias=False)
    conv.inverse(torch.randn(1, 1, 40, 40))
    assert limits[-1] == 2000
    conv.max_iter = 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        conv.inverse(torch.randn(1, 1, 40, 40))
    assert limits[-1] == 7


def test_a_ring_that_float32_cannot_carry_is_not_factored_in_float32(monkeypatch):
    factored = []

    def watched(blocks, *rest):
        factored.append(blocks[0][0].dtype)
        return factor_border(blocks, *rest)

    monkeypatch.setattr("invconv.engine.solvers.ring.factor_border", watched)
    operator = normal(3, dtype=torch.float32).operator((32, 32))
    assert operator.solver.conv.dtype == torch.float64
    assert factored == [torch.complex128]


def test_a_symmetric_ring_is_refined():
    """The normal equations lose twice the digits; what refinement gives back, is there."""
    conv = InvertibleConv2d(1, 2, 3, padding=1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.stack([torch.tensor(SMOOTH), 2e-2 * _centre()[0, 0]]).unsqueeze(1))
    operator = conv.operator((24, 24))
    values = torch.linalg.svdvals(dense(conv, (24, 24)))
    condition = (values[0] / values[-1]).item()
    solver = Gram(operator.conv)
    assert condition > 1e2
    x = torch.randn(1, 1, 24, 24, dtype=torch.float64)
    right = solver._gram(x)
    once, refined = solver._solve_once(right), solver._solve(right)
    assert relative(solver._gram(refined) - right, right) < 0.5 * relative(solver._gram(once) - right, right)
    assert relative(solver.pseudo_inverse(operator.forward(x)) - x, x) < 50 * EPS * condition


def test_refinement_that_does_not_help_is_not_taken(monkeypatch):
    ring = Ring(normal(3).operator((16, 16)).conv)
    solve = ring._solve
    monkeypatch.setattr(ring, "_solve", lambda y: 3 * solve(y))  # I - A X = -2: each step doubles the residual
    ring.prepare()
    assert not ring.refine and 1 < ring.error < 3


def test_the_coarsest_grid_has_a_side_of_four():
    conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode="circular", volume_tol=1e-2)
    with torch.no_grad():
        conv.weight.mul_(0.2)[:, :, 1, 1] *= 5
    better = coarse(conv.operator((64, 64)).solver)
    assert better is not None and better.grid.size == (4, 4)


# -- the road that is taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["zeros", "replicate"])
def test_a_small_matrix_goes_before_a_large_ring(mode):
    """On 4 x 4 images a kernel that reaches 24 pixels has a ring of 11,520 unknowns, and a matrix of 256 columns."""
    conv = InvertibleConv2d(16, 32, 7, dilation=4, padding=12, padding_mode=mode, dtype=torch.float64)
    operator = conv.operator((4, 4))
    assert operator.plan().solver == operator.solver.name == "svd"
    matrix = dense(conv, (4, 4))
    x = torch.randn(2, 16, 4, 4, dtype=torch.float64)
    assert relative(operator.pseudo_inverse(operator.forward(x)) - x, x) < 1e-12
    assert abs(operator.log_volume() - torch.linalg.svdvals(matrix).log().sum()) < 1e-9


@pytest.mark.parametrize("channels", [(3, 12), (1, 4)], ids=str)
def test_no_ring_is_planned_for_pixels_that_nobody_reads(channels):
    """A stride of 2 and a dilation of 4: three pixels of four are read by no output, and none is factored in vain."""
    conv = InvertibleConv2d(*channels, 3, padding=4, stride=2, dilation=4, dtype=torch.float64)
    operator = conv.operator((48, 48))
    assert operator.plan().solver == "lsmr" and operator.plan().unknowns == 0
    x = torch.randn(1, channels[0], 48, 48, dtype=torch.float64)
    with pytest.warns(IllConditionedWarning, match="some pixels are read by no output"):
        x_hat = operator.pseudo_inverse(operator.forward(x))
    assert operator.solver.name == "lsmr"
    # What is read comes back, and the rest is zero.
    read = operator.adjoint(torch.randn(1, channels[1], 24, 24, dtype=torch.float64)) != 0
    assert read.double().mean() == 0.25
    assert relative(x_hat - x * read, x) < 1e-6


@pytest.mark.parametrize("kind", ["outputs", "inputs", "both", "zero", "combined", "scaled"])
def test_channels_that_repeat_others_are_kept_from_superlu(kind, capfd):
    """SuperLU goes on after zero pivots, until BLAS complains of sizes on the terminal."""
    conv = normal(8, padding_mode="zeros")
    with torch.no_grad():
        if kind in ("outputs", "both"):
            conv.weight[1] = conv.weight[0]
        if kind in ("inputs", "both"):
            conv.weight[:, 1] = conv.weight[:, 0]
        if kind in ("zero", "combined", "scaled"):
            conv.weight[1] = {"zero": 0.0, "combined": 1.0, "scaled": 1e-20}[kind] * (conv.weight[0] + conv.weight[2])
    solver = SparseLU(conv.operator((24, 24)).conv.to(torch.float64))
    assert solver.trial_error == math.inf and not solver.keeps(1e-3)
    assert capfd.readouterr() == ("", "")


def test_channels_of_other_scales_are_no_repetition():
    conv = normal(3, padding_mode="zeros").to(torch.float64)
    with torch.no_grad():
        conv.weight[1] *= 1e-30
        conv.weight[:, 2] *= 1e20
    assert not has_dependent_channels(conv.operator((6, 6)).conv)
