"""Damped layers cut along one axis and then the other: all borders, reflections, shared kernels, what is refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from oracle import EPS, dense, relative
from tables import MODES, normal, taps

from invconv import Options
from invconv.engine.convolution import Convolution
from invconv.engine.quasi import QuasiDefinite, Reflection
from invconv.engine.solvers.one_image import SMALL
from invconv.engine.solvers.strips import Strips
from invconv.engine.strips import reflections
from invconv.geometry import Geometry
from invconv.report import Plan

DAMPED = Options(damping=1e-3)
DISK = [[float(u * u + v * v <= 5) / 13 for u in range(-2, 3)] for v in range(-2, 3)]
MOTION = (torch.eye(7) / 7).tolist()
SLANTED = [[0.0, 0.1, 0.2], [0.1, 0.3, 0.1], [0.2, 0.1, -0.2]]
BESIDE = [[0.1, 0.2, 0.1], [0.2, 0.1, 0.3], [0.1, 0.2, 0.1]]
"""The same upside down, but not from left to right."""


def strips(kernel: list, mode: str, size: tuple[int, int], **arguments) -> tuple[Strips, torch.Tensor]:
    """A solver damped by 1e-3, and the matrix."""
    layer = taps(kernel, padding_mode=mode, **arguments)
    return Strips(layer.operator(size).conv, DAMPED), dense(layer, size)


@pytest.mark.parametrize("size", [(14, 11), (9, 16), (8, 8)], ids=str)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kernel", [DISK, MOTION, SLANTED, BESIDE], ids=["disk", "motion", "slanted", "beside"])
def test_every_answer_is_that_of_the_matrix(kernel, mode, size):
    solver, a = strips(kernel, mode, size)
    generator = torch.Generator().manual_seed(0)
    y, x = (torch.randn(2, 1, *size, generator=generator, dtype=torch.float64) for _ in range(2))
    u, s, v = torch.linalg.svd(a)
    condition = s[0] / 1e-3

    def matrix(values: torch.Tensor, left: torch.Tensor, right: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return (image.flatten(1) @ right * values @ left.mT).view(image.shape)

    both = 1 / (s**2 + 1e-6)
    for answer, expected in [
        (solver.pseudo_inverse(y), matrix(s * both, v.mT, u, y)),
        (solver.pseudo_inverse_adjoint(x), matrix(s * both, u, v.mT, x)),
        (solver.gram_inverse(x), matrix(both, v.mT, v.mT, x)),
        (solver.dual_gram_inverse(y), matrix(both, u, u, y)),
    ]:
        # Of noise, which no image explains, the condition counts squared: as for any least squares.
        assert relative(answer - expected, expected) < EPS * condition**2
    assert solver.keeps(1e-9)
    assert 0.9 * condition < solver.condition < 1.001 * condition


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [(DISK, [(1,), (0,)]), (MOTION, [(0, 1)]), (BESIDE, [(0,)]), ([[0.2, 0.5], [0.1, 0.4]], [])],
    ids=["disk", "motion", "beside", "none"],
)
def test_reflections_are_seen(kernel, expected):
    conv = taps(kernel).operator((8, 8)).conv
    assert reflections(conv.weight, conv.geometry) == expected
    lopsided = replace(conv.geometry, padding=((2, 1), (0, 1)))
    assert reflections(conv.weight, lopsided) == []


@pytest.mark.parametrize("kernel", [DISK, MOTION, BESIDE], ids=["disk", "motion", "beside"])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_what_falls_apart_is_what_is_factored_whole(kernel, mode, monkeypatch):
    solver, _ = strips(kernel, mode, (13, 12))
    y = torch.randn(1, 1, 13, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    apart = solver.pseudo_inverse(y)
    assert all(image.system._halves for image in solver._images[0])
    monkeypatch.setattr("invconv.engine.strips.reflections", lambda *_: [])
    whole, _ = strips(kernel, mode, (13, 12))
    assert relative(whole.pseudo_inverse(y) - apart, apart) < 1e-11
    assert not any(image.system._halves for image in whole._images[0])


def symmetric(still: int) -> tuple[torch.Tensor, list[Reflection], int]:
    """A quasi-definite matrix that commutes with two reflections, with so many places that one of them leaves."""
    rows, columns = 4, 4 + still
    place = torch.arange(2 * rows * columns).view(2, rows, columns)
    flips = [place.flip(axis).flatten() for axis in (1, 2)]
    first = [
        (torch.arange(n) < n // 2).view(shape).expand(place.shape).flatten()
        for n, shape in ((rows, (1, -1, 1)), (columns, (1, 1, -1)))
    ]
    a = torch.randn(place.numel(), place.numel(), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a = a @ a.mT
    for of in flips:
        a = a + a[of][:, of]
    half = rows * columns
    sign = torch.ones(len(a), dtype=torch.float64)
    sign[half:] = -1
    blocks = torch.ones_like(a)
    blocks[half:, half:] = -1
    return a * blocks, [Reflection(*each) for each in zip(flips, first, strict=True)], half


@pytest.mark.parametrize("still", [0, 1])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_quasi_definite_systems(count, still):
    matrix, flips, positive = symmetric(still)
    right = torch.randn(len(matrix), 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    system = QuasiDefinite(matrix.clone(), positive, flips[:count])
    assert not system.failed
    expected = torch.linalg.solve(matrix, right)
    assert relative(system.solve(right) - expected, expected) < 100 * EPS * torch.linalg.cond(matrix)
    assert system.bytes <= 8 * matrix.numel() / 2**count * 1.1
    assert QuasiDefinite(-matrix, positive, flips[:count]).failed


def test_axes_change_places_where_that_takes_less():
    kernel = torch.rand(2, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64).tolist()
    for size, values in (((9, 12), kernel), ((12, 9), torch.tensor(kernel).mT.tolist())):
        solver, a = strips(values, "zeros", size)
        y = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        expected = torch.linalg.solve(a.mT @ a + 1e-6 * torch.eye(len(a), dtype=torch.float64), a.mT @ y.flatten())
        assert relative(solver.pseudo_inverse(y).flatten() - expected, expected) < 1e-6
        assert solver._turned == (size == (9, 12))


def test_channels_of_one_kernel_share_their_system():
    kernels = torch.stack([torch.tensor(k, dtype=torch.float64) for k in (SLANTED, BESIDE, SLANTED)])[:, None]
    geometry = Geometry.of((3, 3), padding=1, groups=3, padding_mode="replicate")
    solver = Strips(Convolution(kernels, geometry, (8, 9)), DAMPED)
    y = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x = solver.pseudo_inverse(y)
    assert len(solver._images[0]) == 2
    for channel, kernel in enumerate((SLANTED, BESIDE, SLANTED)):
        one, _ = strips(kernel, "replicate", (8, 9))
        expected = one.pseudo_inverse(y[:, channel : channel + 1])
        assert relative(x[:, channel : channel + 1] - expected, expected) < 1e-11
    for other in (copy.deepcopy(solver), pickle.loads(pickle.dumps(solver))):
        assert torch.equal(other.pseudo_inverse(y), x)


@pytest.mark.parametrize(
    ("kernel", "size", "arguments", "options", "why"),
    [
        ((3, 3), (8, 8), {"padding": 1}, Options(), "it is for damped layers"),
        ((3, 3), (8, 8), {"padding": 1, "stride": 2}, DAMPED, "without a stride"),
        ((3, 3, 3), (4, 4, 4), {"padding": 1}, DAMPED, "one or two axes"),
        ((9, 3), (4, 8), {"padding": (3, 1), "padding_mode": "reflect"}, DAMPED, "goes round the torus of 4"),
        ((3, 3), (8, 8), {"padding": (2, 1), "padding_mode": "circular"}, DAMPED, "more outputs than"),
    ],
    ids=["undamped", "stride", "solid", "large", "circular"],
)
def test_what_it_is_no_way_for(kernel, size, arguments, options, why):
    conv = Convolution(torch.ones(1, 1, *kernel, dtype=torch.float64), Geometry.of(kernel, **arguments), size)
    assert why in str(Strips.plan(conv, options))


def test_strips_of_large_kernels_are_left_to_others():
    geometry = Geometry.of((99, 99), padding=49)
    conv = Convolution(torch.ones(1, 1, 99, 99, dtype=torch.float64), geometry, (256, 256))
    assert "more than the 20000 that are not left to other ways" in str(Strips.plan(conv, DAMPED))
    plan = Strips.plan(conv, Options(damping=1e-3, solver="direct"))
    assert "are free on cpu" in str(plan) or plan.unknowns == 2 * 49 * 256


def test_answers_are_given_up_where_refinement_does_not_help():
    motion = taps(MOTION).operator((16, 16)).conv
    assert Strips(motion, Options(damping=1e-6)).keeps(1e-3)
    wide = Strips(normal(3, out=2).operator((10, 10)).conv, Options(damping=1e-6))
    assert not any(image.system.failed for image in wide._images[0])
    assert not wide.keeps(1e-3)


def test_damping_below_rounding_is_no_way():
    kernel = torch.tensor(DISK)
    kernel[2, 2] -= kernel.sum()
    conv = taps(kernel.tolist(), padding_mode="reflect").operator((12, 12)).conv
    solver = Strips(conv, Options(damping=1e-12))
    assert not solver.keeps(1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_its_plan_bounds_what_it_holds_and_motion_is_its_own(mode):
    layer = taps(MOTION, padding_mode=mode, damping=1e-3)
    operator = layer.operator((48, 48))
    assert 48 * 48 > SMALL
    plan = operator.plan()
    report = operator.report()
    if mode == "circular":
        assert plan.solver == "fft"
        return
    assert plan.solver == report.solver == "fft and strips"
    assert isinstance(plan, Plan) and report.bytes < plan.bytes and report.relative_error < 1e-12
    assert report.unknowns == plan.unknowns > 0
