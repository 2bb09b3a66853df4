"""Log-volumes of images from those of small sections: against the dense matrix, and where they must not be taken."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import relative, volume_gradient
from tables import Case

from invconv import Geometry, InvertibleConv1d, InvertibleConv2d, Options
from invconv.engine import choice, trust
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import eliminate
from invconv.engine.solvers.base import Solver
from invconv.engine.volumes import extrapolated as module
from invconv.engine.volumes.cylinder import Cylinder, fits
from invconv.engine.volumes.extrapolated import ROUNDING, Extrapolated, candidates, extrapolated
from invconv.engine.ways import WAYS, open_ways

MODES = ("zeros", "reflect", "replicate")


def way(conv: Convolution):
    """What the engine would take."""
    if fits(conv):
        return Cylinder(conv)
    ways = (way for way, _ in open_ways(conv, Options(), {}, factored=True) if way.solver.gives_volume)
    return next((way.build(conv, Options(), 0.0) for way in ways), None)


@pytest.fixture(autouse=True)
def _at_any_size(monkeypatch):
    """Small images have a dense matrix: sections are tried on them whatever they take."""
    monkeypatch.setattr(module, "WORTH_FROM", 0)
    monkeypatch.setattr(Cylinder, "volume_cost", lambda _: 0.0)
    for row in WAYS:
        monkeypatch.setattr(row.solver, "volume_cost", lambda _: 0.0)


def sections(conv: Convolution, **options) -> Extrapolated | None:
    return extrapolated(conv, Options(**options), way)


def exact(conv: Convolution) -> float:
    return float(eliminate(conv.to(torch.float64).to_dense()).log_volume)


def layer(weight: torch.Tensor, size: tuple[int, ...], **arguments) -> Convolution:
    geometry = Geometry.of(tuple(weight.shape[2:]), **{"padding": "same", **arguments})
    return Convolution(weight, geometry, size)


SHAPES: list[tuple] = [
    ((2, 2), (3,), (40,)),
    ((3, 3), (5,), (45,)),
    ((2, 2), (2,), (33,)),
    ((1, 1), (7,), (60,)),
    ((2, 3), (3,), (30,)),
    ((3, 2), (3,), (31,)),
    ((1, 1), (3, 3), (18, 17)),
    ((2, 2), (3, 3), (16, 18)),
    ((1, 1), (3, 3), (8, 40)),
    ((1, 1), (3, 3), (40, 7)),
    ((1, 1), (5, 3), (26, 15)),
    ((1, 1), (2, 3), (17, 16)),
    ((1, 2), (3, 3), (31, 15)),
    ((2, 1), (3, 3), (16, 17)),
    ((1, 1), (3, 3, 3), (11, 4, 5)),
    ((1, 1), (3, 3, 3), (11, 12, 3)),
]
ZEROS = [
    Case((4, 4), (3, 3), (15, 14), groups=2, mode="zeros"),
    Case((4, 4), (3,), (40,), groups=4, mode="zeros"),
    Case((1, 1), (3, 3), (26, 25), dilation=2, mode="zeros"),
    Case((2, 2), (3,), (50,), dilation=3, mode="zeros"),
    Case((1, 4), (3, 3), (32, 30), stride=2, mode="zeros"),
    Case((1, 4), (4, 4), (32, 34), stride=2, padding=1, mode="zeros"),
    Case((1, 2), (3, 3), (30, 15), stride=(2, 1), padding=1, mode="zeros"),
    Case((1, 2), (3,), (60,), stride=2, padding=1, mode="zeros"),
    Case((2, 2), (5,), (61,), stride=2, padding=2, mode="zeros"),
    Case((1, 5), (3, 3), (34, 32), stride=2, padding=1, mode="zeros"),
    Case((1, 8), (3, 3, 3), (24, 6, 4), stride=2, mode="zeros"),
]
LINKED = [shape for shape in SHAPES if shape[0][0] <= shape[0][1] and len(shape[1]) < 3]  # no others have factors
CASES = [Case(*shape, mode="zeros") for shape in SHAPES] + ZEROS
CASES += [Case(*shape, mode=mode) for shape in LINKED for mode in MODES[1:]]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_of_the_matrix(case, seed):
    conv = case.layer(seed=seed, spread=0.05).operator(case.size).conv
    with torch.no_grad():
        found = sections(conv)
    assert found is not None and found.error < 1e-12
    assert all(math.prod(part.conv.input_size) < math.prod(case.size) for _, part in found.parts)
    assert abs(found.log_volume - exact(conv)) <= ROUNDING * min(conv.shape)
    gradient = volume_gradient(conv)
    assert relative(found.log_volume_gradient - gradient, gradient) <= 1e-10
    assert trust.log_volume_gradient(found, conv) is found.log_volume_gradient


def test_enough_geometries():
    assert 3 * len(CASES) >= 120


# -- the witness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("taps", [(0.5, 0.0), (0.45, -0.3), (0.49, 0.49), (0.2, 0.7)])
def test_a_kernel_in_powers_is_not_taken_at_its_word(taps, k, mode):
    """It takes an image apart into k: sections whose sides are the same in units of k agree on any value."""
    weight = torch.zeros(1, 1, 9, dtype=torch.float64)
    weight[0, 0, [4 - k, 4, 4 + k]] = torch.tensor([taps[0], 1.0, taps[1]], dtype=torch.float64)
    for tol in (None, 1e-6, 1e-3):
        conv = layer(weight, (101,), padding_mode=mode)
        found = sections(conv, volume_tol=tol)
        assert found is None or abs(float(found.log_volume) - exact(conv)) <= max(ROUNDING, tol or 0) * 101


def test_a_sparse_kernel_in_the_plane():
    weight = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    weight[0, 0, 4, 4], weight[0, 0, 4, 8], weight[0, 0, 8, 4], weight[0, 0, 4, 0] = 1.0, 0.45, 0.1, 0.45
    conv = layer(weight, (46, 40))
    found = sections(conv, volume_tol=1e-3)
    assert found is None or abs(float(found.log_volume) - exact(conv)) <= 1e-3 * 46 * 40


@pytest.mark.parametrize("centre", [0.0, 0.5, 1.2, math.sqrt(2), math.sqrt(3)])
@pytest.mark.parametrize("tol", [None, 1e-3, 1e-1])
def test_determinants_that_oscillate_are_refused(centre, tol):
    conv = layer(torch.tensor([[[1.0, centre, 1.0]]], dtype=torch.float64), (100,))
    assert sections(conv, volume_tol=tol) is None


def test_a_slow_decay_needs_larger_sections():
    sides = []
    for tap in (0.1, 0.3, 0.45):
        conv = layer(torch.tensor([[[tap, 1.0, tap]]], dtype=torch.float64), (300,))
        found = sections(conv)
        sides.append(found.parts[0][1].conv.input_size[0] if found else math.inf)
        assert found is None or abs(float(found.log_volume) - exact(conv)) <= ROUNDING * 300
    assert sides[0] < sides[1] < sides[2]


def test_sections_where_errors_grow_are_refused():
    """An inverse that doubles from pixel to pixel."""
    weight = torch.tensor([[[0.1, 1.0, 2.0]]], dtype=torch.float64)
    found = list(itertools.islice(candidates(layer(weight, (60,)), Options(), way), 3))
    growth = [max(part.growth for _, part in each.parts) for each in found]
    assert growth[0] < 1e4 < growth[1] < 1e7 and [each.sound for each in found] == [True, False, False]
    assert sections(layer(weight, (60,))) is None
    assert sections(layer(weight + torch.tensor([0.0, 6.0, 0.0]), (60,))) is not None


@pytest.mark.parametrize("tol", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize("spread", [0.2, 0.4, 0.7])
@pytest.mark.parametrize("case", [Case((2, 2), (3, 3), (24, 22), mode=m) for m in MODES], ids=str)
def test_a_tolerance_takes_smaller_sections(case, spread, tol):
    conv = case.layer(spread=spread).operator(case.size).conv
    found, strict = sections(conv, volume_tol=tol), sections(conv)
    if strict is not None:
        assert found is not None
        assert len(found.parts) == 4 and found.parts[0][1].conv.input_size <= strict.parts[0][1].conv.input_size
    assert found is None or abs(float(found.log_volume) - exact(conv)) <= tol * min(conv.shape)


def test_a_tolerance_is_worth_something():
    case = Case((2, 2), (3,), (120,), mode="zeros")
    taken = [sections(case.layer(seed=s, spread=0.7).operator(case.size).conv, volume_tol=1e-3) for s in range(8)]
    strict = [sections(case.layer(seed=s, spread=0.7).operator(case.size).conv) for s in range(8)]
    side = [[found.parts[0][1].conv.input_size[0] if found else math.inf for found in each] for each in (taken, strict)]
    assert all(a <= b for a, b in zip(*side, strict=True)) and any(a < b for a, b in zip(*side, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    taps=st.lists(st.floats(-1, 1, width=16), min_size=3, max_size=9).filter(lambda taps: len(taps) % 2),
    mode=st.sampled_from(MODES),
    n=st.integers(30, 90),
    tol=st.sampled_from([None, 1e-4]),
)
def test_what_is_taken_is_right(taps, mode, n, tol):
    weight = torch.tensor(taps, dtype=torch.float64).view(1, 1, -1)
    weight[0, 0, len(taps) // 2] += 1.5
    conv = layer(weight, (n,), padding_mode=mode)
    known = eliminate(conv.to_dense())
    found = sections(conv, volume_tol=tol)
    bound = max(ROUNDING, tol or 0) * n
    assert found is None or not known.error < bound or abs(float(found.log_volume - known.log_volume)) <= bound


# -- when it is tried ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options"),
    [
        (Case((2, 2), (3, 3), (30, 30)), {}),
        (Case((2, 2), (3, 3), (7, 7), mode="zeros"), {}),
        (Case((2, 2), (3, 3), (30, 30), mode="zeros"), {"solver": "iterative"}),
        (Case((2, 3), (3, 3), (20, 20), padding=0, mode="zeros"), {}),  # sections are wide, the image is tall
    ],
    ids=str,
)
def test_where_it_is_no_way(case, options):
    assert sections(case.layer(spread=0.05).operator(case.size).conv, **options) is None


def test_an_image_that_is_soon_by_itself_is_taken_whole(monkeypatch):
    monkeypatch.undo()
    conv = Case((2, 2), (3, 3), (24, 24), mode="zeros").layer(spread=0.05).operator((24, 24)).conv
    assert sections(conv) is None
    assert isinstance(choice.volume(conv, Options(), nobody), Cylinder)
    assert isinstance(choice.volume(conv.on((1000, 1000)), Options(), nobody), Extrapolated)


def nobody() -> Solver:
    raise AssertionError("no solver of the whole image is needed")


def test_images_of_any_size(monkeypatch):
    """The value is linear along each axis, and the plan says where it has come from."""
    monkeypatch.undo()
    torch.manual_seed(0)
    conv = InvertibleConv2d(3, 3, 3, padding=1).double()
    values = {}
    for size in itertools.product((1_000, 2_000, 4_000), (2_000, 30_000)):
        operator = conv.operator(size)
        before = operator.plan(volume=True)
        values[size] = conv.log_abs_det(size)
        after = operator.plan(volume=True)
        assert before.solver == after.solver == "sections" and "nats" in after.because and before.seconds > 0
        assert before.bytes < 2**28 and before.unknowns == after.unknowns > 0
    for m in (2_000, 30_000):
        expected = values[1_000, m] + 3 * (values[2_000, m] - values[1_000, m])
        assert abs(values[4_000, m] - expected) <= 1e-11 * 3 * 4_000 * m
    (gradient,) = torch.autograd.grad(values[4_000, 30_000], conv.weight)
    sums = (gradient * conv.weight).flatten(2).sum((1, 2))  # a channel times t adds log t for each of its places
    assert torch.allclose(sums, torch.full_like(sums, 1.2e8), rtol=1e-9)


def test_a_long_line(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    conv = InvertibleConv1d(2, 2, 3, padding=1).double()
    values = [float(conv.log_abs_det((n,))) for n in (1_000_000, 2_000_000, 3_000_000)]
    assert abs(values[0] - 2 * values[1] + values[2]) < 1e-11 * 6e6


def test_layers_of_one_shape_are_taken_together(monkeypatch):
    monkeypatch.undo()
    torch.manual_seed(0)
    convs = [InvertibleConv2d(2, 2, 3, padding=1).double() for _ in range(2)]
    weight = torch.cat([conv.weight.detach() for conv in convs])
    both = layer(weight, (400, 500), groups=2)
    found = choice.joined_volume(both, Options())
    assert isinstance(found, Extrapolated) and found.joins
    expected = sum(conv.log_abs_det((400, 500)) for conv in convs)
    assert abs(found.log_volume - expected) <= 2 * ROUNDING * both.shape[0]


def test_half_of_memory_is_no_obstacle(monkeypatch):
    """A layer none of whose factors fits has its determinant."""
    monkeypatch.undo()
    torch.manual_seed(0)
    conv = InvertibleConv2d(16, 16, 3, padding=1)
    value = conv.log_abs_det((20_000, 20_000))
    value.backward()
    assert value.isfinite() and conv.weight.grad.isfinite().all()
