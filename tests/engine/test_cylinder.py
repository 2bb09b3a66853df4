"""Determinants of layers with zero borders from a torus that is cut open, against the dense matrix."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from oracle import relative, volume_gradient
from tables import Case

from invconv import Geometry, InvertibleConv2d, Options
from invconv.engine import choice, memory
from invconv.engine.convolution import Convolution
from invconv.engine.volumes.cylinder import MOST_UNKNOWNS, Cylinder, cylinder, fits

EPS = torch.finfo(torch.float64).eps
SHAPES: list[tuple] = [
    ((3, 3), (3,), (9,)),
    ((2, 2), (5,), (12,)),
    ((2, 2), (4,), (7,)),
    ((1, 1), (3, 3), (1, 6)),
    ((2, 2), (3, 3), (5, 7)),
    ((2, 2), (3, 3), (7, 5)),
    ((2, 2), (3, 3), (6, 6)),
    ((2, 2), (5, 3), (7, 5)),
    ((2, 2), (3, 5), (7, 6)),
    ((2, 2), (5, 5), (6, 9)),
    ((2, 2), (1, 3), (5, 6)),
    ((2, 2), (3, 1), (5, 6)),
    ((1, 1), (2, 2), (5, 6)),
    ((1, 1), (4, 3), (8, 5)),
    ((1, 1), (7, 7), (5, 4)),
    ((1, 1), (3, 3), (12, 90)),
    ((4, 4), (3, 3), (9, 8)),
]
CASES = [
    *(Case(channels, kernel, size, mode="zeros") for channels, kernel, size in SHAPES),
    Case((4, 4), (3, 3), (6, 6), groups=2, mode="zeros"),
    Case((3, 3), (3, 3), (6, 4), groups=3, mode="zeros"),
    Case((2, 2), (3, 3), (7, 7), dilation=2, mode="zeros"),
    Case((2, 2), (3,), (16,), dilation=3, mode="zeros"),
    Case((2, 8), (3, 3), (8, 10), stride=2, mode="zeros"),
    Case((2, 8), (4, 4), (8, 10), stride=2, padding=1, mode="zeros"),
    Case((2, 4), (3, 3), (8, 5), stride=(2, 1), padding=1, mode="zeros"),
    Case((2, 6), (3, 5), (4, 9), stride=(1, 3), padding=(1, 1), mode="zeros"),
    Case((1, 2), (3,), (8,), stride=2, padding=1, mode="zeros"),
]


@pytest.mark.parametrize("spread", [0.1, 0.4, 1.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradient_are_those_of_the_matrix(case, spread):
    conv = case.layer(spread=spread).operator(case.size).conv
    assert fits(conv)
    found, exact = Cylinder(conv), torch.linalg.slogdet(conv.to_dense()).logabsdet
    bound = 50 * EPS * found.growth
    assert abs(found.log_volume - exact) <= bound * conv.shape[0]
    assert relative(found.log_volume_gradient - volume_gradient(conv), volume_gradient(conv)) <= bound


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_keeps_its_digits(case):
    conv = case.layer(spread=0.1).operator(case.size).conv
    found = cylinder(conv.to(torch.float32), Options())
    assert found.conv.dtype == torch.float32
    exact = torch.linalg.slogdet(conv.to(torch.float32).to(torch.float64).to_dense()).logabsdet
    assert abs(found.log_volume - exact) <= 1e-6 * conv.shape[0]
    assert relative(found.log_volume_gradient.double() - volume_gradient(conv), volume_gradient(conv)) <= 1e-5


def test_where_float32_is_too_little_it_is_float64_and_where_that_is_too_little_nothing():
    case = Case((2, 2), (3, 3), (8, 8), mode="zeros")
    dtypes = []
    for spread in (0.1, 3.0, 4.0):
        weight = case.layer(seed=1, spread=spread).weight.detach().float()
        found = cylinder(Convolution(weight, Geometry.of((3, 3), padding=1), case.size), Options(tol=1e-5))
        dtypes.append(found and found.conv.dtype)
    assert dtypes[0] == torch.float32 and torch.float64 in dtypes
    steep = torch.tensor([[[0.1, 1.0, 3.0]]], dtype=torch.float64)  # its inverse grows threefold from pixel to pixel
    assert [cylinder(_line(steep, n), Options(tol=0.9)) is None for n in (4, 200)] == [False, True]
    lost = _line(steep.float(), 10)  # for float32 answers it would have digits enough
    assert 1e7 < Cylinder(lost.to(torch.float64)).growth < 1e10 and cylinder(lost, Options()) is None


def _line(weight, n):
    return Convolution(weight, Geometry.of((3,), padding=1), (n,))


@pytest.mark.parametrize(
    "case",
    [
        Case((2, 2), (3, 3), (6, 6)),
        Case((2, 2), (3, 3), (6, 6), mode="reflect"),
        Case((2, 3), (3, 3), (6, 6), mode="zeros"),
        Case((2, 2), (3, 3), (6, 6), padding=2, mode="zeros"),
        Case((2, 2), (3, 3), (6, 6), padding=0, mode="zeros"),
        Case((1, 1), (3, 3, 3), (4, 4, 4), mode="zeros"),
        Case((2, 8), (3, 3), (7, 9), stride=2, mode="zeros"),
        Case((1, 1), (3, 3), (MOST_UNKNOWNS + 1, MOST_UNKNOWNS + 1), mode="zeros"),
    ],
    ids=str,
)
def test_what_does_not_fit(case):
    assert not fits(case.convolution())


def test_it_needs_memory(monkeypatch):
    conv = Case((8, 8), (3, 3), (64, 64), mode="zeros").convolution()
    assert fits(conv)
    monkeypatch.setattr(memory, "available_memory", lambda _: 2**20)
    assert not fits(conv)


def test_who_insists_on_iterations_gets_no_factors():
    conv = Case((2, 2), (3, 3), (6, 6), mode="zeros").layer().operator((6, 6)).conv
    assert cylinder(conv, Options(solver="iterative")) is None


def test_layers_take_it_and_their_plan_says_so():
    torch.manual_seed(0)
    conv = InvertibleConv2d(4, 4, 3, padding=1)
    operator = conv.operator((12, 10))
    before = operator.plan(volume=True)
    conv.log_abs_det((12, 10)).backward()
    assert operator.plan(volume=True) == before
    assert before.solver == "cut torus" and before.unknowns == 40 and before.seconds > 0
    assert operator.plan().solver == "fft and ring"
    exact = choice.choose(operator.conv, operator.options)[0]
    assert conv.weight.grad is not None
    assert relative(conv.weight.grad - exact.log_volume_gradient, exact.log_volume_gradient) < 1e-5


def test_damping_is_of_the_inverse():
    conv = Case((2, 2), (3, 3), (6, 6), mode="zeros").layer(spread=0.2)
    exact = torch.linalg.slogdet(conv.operator((6, 6)).conv.to_dense()).logabsdet
    conv.damping = 0.5
    assert math.isclose(conv.log_abs_det((6, 6)), exact, rel_tol=1e-12)


def test_gradients_of_gradients():
    case = Case((1, 1), (3, 3), (4, 5), mode="zeros")
    layer = case.layer(spread=0.3)

    def value(weight):
        return layer.log_abs_det(case.size, weight=weight)

    weight = layer.weight.detach().requires_grad_()
    assert torch.autograd.gradcheck(value, weight)
    assert torch.autograd.gradgradcheck(value, weight)


def test_an_axis_may_be_turned():
    conv = Case((2, 2), (5, 3), (7, 5), mode="zeros").layer(spread=0.3).operator((7, 5)).conv
    geometry = replace(conv.geometry, kernel_size=(3, 5), padding=conv.geometry.padding[::-1])
    turned = Cylinder(Convolution(conv.weight.mT.contiguous(), geometry, (5, 7)))
    assert abs(Cylinder(conv).log_volume - turned.log_volume) < 1e-13 * conv.shape[0]
    assert relative(Cylinder(conv).log_volume_gradient.mT - turned.log_volume_gradient, conv.weight) < 1e-12
