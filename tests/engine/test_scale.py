"""Every verb is homogeneous in the kernel: what holds for K holds for 2^e K, down to denormal kernels."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch

from invconv import IllConditionedWarning, InvertibleConv2d, SingularMapError, functional
from invconv.engine.scale import Scale
from invconv.options import Options

MODES = ("zeros", "circular", "reflect")


def _layers(mode: str, dtype: torch.dtype, exponent: int, channels=(2, 2), **options):
    """The same layer twice: with a kernel of order one, and with 2^exponent times that."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(channels[1], channels[0], 3, 3, generator=generator, dtype=torch.float64)
    layers = []
    for scale in (1.0, 2.0**exponent):
        layer = InvertibleConv2d(*channels, 3, padding=1, padding_mode=mode, bias=False, dtype=dtype, **options)
        with torch.no_grad():
            # Bits that a denormal kernel could not carry are left out of both.
            layer.weight.copy_((weight * 32).round() / 32)
            layer.weight.mul_(scale)
        layers.append(layer)
    return layers


@pytest.mark.parametrize("solver", ["auto", "iterative"])
@pytest.mark.parametrize("channels", [(2, 2), (2, 3), (3, 2)])
@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float32, e) for e in (-100, -40, 60)] + [(torch.float64, 900)])
@pytest.mark.parametrize("mode", MODES)
def test_the_inverse_and_its_gradients_are_homogeneous(mode, dtype, exponent, channels, solver):
    layers = _layers(mode, dtype, exponent, channels, solver=solver)
    y = torch.randn(2, channels[1], 6, 6, generator=torch.Generator().manual_seed(2), dtype=dtype)
    answers = []
    for layer, scale in zip(layers, (1.0, 2.0**exponent), strict=True):
        told = (y * scale).requires_grad_()
        x = layer.inverse(told, (6, 6))
        x.sum().backward()
        answers.append((x.detach(), told.grad * scale, layer.weight.grad * scale))
    for one, other in zip(*answers, strict=True):
        assert (one - other).norm() <= 16 * torch.finfo(dtype).eps * one.norm()


@pytest.mark.parametrize("exponent", [-100, -30, 50])
@pytest.mark.parametrize("mode", MODES)
def test_damping_scales_with_the_kernel(mode, exponent):
    one, _ = _layers(mode, torch.float32, exponent, damping=0.25)
    _, other = _layers(mode, torch.float32, exponent, damping=0.25 * 2.0**exponent)
    y = torch.randn(1, 2, 6, 6)
    assert torch.equal(one.inverse(y), other.inverse(y * 2.0**exponent))


@pytest.mark.parametrize(("dtype", "exponent"), [(torch.float32, -66), (torch.float32, 90), (torch.float64, -1000)])
@pytest.mark.parametrize("mode", MODES)
def test_values_and_volumes_are_homogeneous(mode, dtype, exponent):
    one, other = (layer.operator((5, 5)) for layer in _layers(mode, dtype, exponent))
    assert torch.equal(other.singular_values(), one.singular_values() * 2.0**exponent)
    assert torch.equal(other.condition_number(), one.condition_number())
    expected = one.log_abs_det().double() + one.shape[0] * exponent * math.log(2.0)
    assert torch.allclose(other.log_abs_det().double(), expected, rtol=4 * torch.finfo(dtype).eps)
    assert torch.equal(other.log_volume_gradient() * 2.0**exponent, one.log_volume_gradient())
    assert other.report().condition == one.report().condition


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tiny", [1e-38, 1e-41, 1e-44])
def test_denormal_kernels_give_what_their_outputs_carry(mode, tiny):
    weight = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(4)) * tiny
    options: Any = {"padding": 1, "padding_mode": mode}
    exact = functional.conv_operator(weight.double(), (5, 5), **options)
    x = torch.randn(1, 2, 5, 5)
    y = exact.forward(x.double()).float()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", IllConditionedWarning)
        try:
            answer = functional.conv_inverse(y, weight, **options)
        except SingularMapError:
            assert tiny < 1e-43  # a kernel of a dozen levels
            return
        stated = functional.conv_operator(weight, (5, 5), **options).report().relative_error
    error = ((answer - x).norm() / x.norm()).item()
    assert said or error < 1e-2
    assert stated / 10 < error < 10 * stated


def test_a_scale_leaves_what_is_near_one():
    weight = torch.tensor([0.5, -3.0])
    assert Scale.of(weight, Options()).exponent == 0
    assert Scale.of(weight * 2.0**-40, Options()).exponent == -38
    assert Scale.of(weight * 2.0**-40, Options(damping=1.0)).exponent == 0
    assert Scale.of(0 * weight, Options()).exponent == 0
    smallest = torch.tensor([2.0**-149])
    assert Scale(-149).times(smallest, -1).item() == 1 and Scale(-149).times(torch.ones(1), 1).equal(smallest)
