"""Layers whose matrix is written down, not decomposed: what is chosen, what refinement gives back, gradients."""

from __future__ import annotations

import pytest
import torch
from oracle import relative

from invconv import InvertibleConv2d
from invconv.engine.solvers.cholesky import Cholesky
from invconv.options import Options
from invconv.report import Plan

EPS = torch.finfo(torch.float64).eps


def layer(size=32, **arguments):
    arguments = {"stride": 2, "padding": 3, "padding_mode": "reflect", "dtype": torch.float64, **arguments}
    return InvertibleConv2d(3, 3, 8, bias=False, **arguments).requires_grad_(False)


def steep(condition):
    """A wide layer of one channel without padding, whose even and odd outputs are nearly the same."""
    conv = InvertibleConv2d(1, 2, 4, stride=2, bias=False, dtype=torch.float64).requires_grad_(False)
    conv.weight[1] = conv.weight[0] + conv.weight[1] / condition
    return conv


@pytest.mark.parametrize("arguments", [{}, {"padding_mode": "replicate"}, {"damping": 0.1}], ids=str)
def test_it_is_chosen_where_a_decomposition_would_take_long(arguments):
    operator = layer(**arguments).operator((32, 32))
    assert operator.plan().solver == operator.solver.name == "cholesky"


def test_small_layers_are_decomposed_and_large_ones_not_written_down():
    assert layer().operator((12, 12)).plan().solver == "svd"
    assert isinstance(Cholesky.plan(layer().operator((48, 48)).conv, Options()), Plan)  # 1.2e7 entries
    assert isinstance(Cholesky.plan(layer().operator((56, 56)).conv, Options()), str)  # 2.2e7


@pytest.mark.parametrize("condition", [1e1, 1e3, 1e5])
def test_refinement_gives_back_what_squares_have_lost(condition):
    conv = steep(condition).operator((12, 12)).conv
    solver = Cholesky(conv)
    assert solver.keeps(1e-3)
    pinv = torch.linalg.pinv(conv.to_dense(), rtol=1e-14)
    kappa = float(torch.linalg.cond(conv.to_dense()))
    assert kappa > condition and 0.3 * kappa < solver.condition < 1.001 * kappa
    x, y = torch.randn(2, *conv.x_shape, dtype=conv.dtype), torch.randn(2, *conv.y_shape, dtype=conv.dtype)
    for answer, expected in (
        (solver.pseudo_inverse(y), y.flatten(1) @ pinv.T),
        (solver.pseudo_inverse_adjoint(x), x.flatten(1) @ pinv),
    ):
        assert relative(answer.flatten(1) - expected, expected) < 100 * EPS * kappa


def test_steep_layers_are_left_to_others():
    conv = steep(1e7).operator((12, 12)).conv
    assert not Cholesky(conv).keeps(1e-3)


@pytest.mark.parametrize("solver", ["auto", "iterative"])
def test_what_a_layer_does_not_see_has_no_gradient_and_no_warning(solver):
    """The gradient of a reconstruction error is orthogonal to all that the layer sees: its way back is all rounding."""
    exact, conv = layer(), layer(dtype=torch.float32, solver=solver)
    conv.weight.copy_(exact.weight)
    x = torch.rand(2, 3, 32, 32)
    grads = []
    for module in (exact, conv):
        module.requires_grad_(True)
        images = x.to(module.weight)
        (module.inverse(module(images), (32, 32)) - images).square().mean().backward()
        grads.append(module.weight.grad.double())
    assert relative(grads[1] - grads[0], grads[0]) < 1e-5
