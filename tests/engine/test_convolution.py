"""The sums over taps against PyTorch's convolution, its transpose and its gradient."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from tables import BORDERS, CASES

from invconv.engine import convolution, padding, tapwise
from invconv.engine.convolution import Convolution
from invconv.functional import conv_operator
from invconv.geometry import Geometry

ONCE = [case for case in CASES + BORDERS if case.stride == 1]


def agree(ours, plain):
    return ours.shape == plain.shape and torch.allclose(ours, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", ONCE, ids=str)
def test_the_sums_over_taps_are_the_convolution(case):
    conv = case.layer()
    x, weight = padding.pad(case.images(), conv.geometry), conv.weight.detach()
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    plain = convolution.FORWARD[case.dims](x, weight, None, 1, 0, conv.dilation, conv.groups)
    z = torch.randn_like(plain)
    by_x, by_weight = torch.autograd.grad(plain, (x, weight), z)
    with torch.no_grad():
        assert agree(tapwise.forward(x, weight, conv.geometry), plain)
        assert agree(tapwise.adjoint(z, weight, conv.geometry, tuple(x.shape[2:])), by_x)
        assert agree(tapwise.weight_gradient(x, z, conv.geometry), by_weight)


@pytest.mark.parametrize("channels", [(32, 8), (2, 2)])
@pytest.mark.parametrize("batch", [0, 1])
def test_large_images_take_them(batch, channels, monkeypatch):
    ins, outs = channels
    geometry, size = Geometry.of((3, 3), padding=1), (80, 80) if ins == 32 else (360, 360)
    x = torch.randn(batch, ins, *size, dtype=torch.float64)
    weight = torch.randn(outs, ins, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    called = []
    for name in ("forward", "adjoint", "weight_gradient"):
        taken = getattr(tapwise, name)
        monkeypatch.setattr(tapwise, name, lambda *args, n=name, f=taken: called.append(n) or f(*args))
    conv = Convolution(weight, geometry, size)
    y = conv.forward(x)
    assert agree(y, expected)
    assert torch.allclose((y * y).sum(), (conv.adjoint(y) * x).sum(), rtol=1e-12)
    assert torch.allclose((y * y).sum(), (conv.weight_gradient(x, y) * weight).sum(), rtol=1e-12)
    asked = ["forward", "adjoint", "weight_gradient"] if batch else ["forward", "adjoint"]
    assert called == asked
    Convolution(weight.float(), geometry, size).forward(x.float())
    assert called == asked  # PyTorch unfolds few channels only, and 16 MiB are not reached


@pytest.mark.parametrize("stride", [1, 2, 3, 4, (2, 3)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_taps_of_a_phase_are_those_that_an_entry_is_a_sum_of(stride, dilation):
    geometry = Geometry.of((5, 4), stride, 1, dilation)
    counts = Counter(phase for _, phase in geometry.taps())
    assert geometry.taps_of_a_phase == max(counts.values())


def test_patches_in_single_precision_keep_their_rank():
    """An embedding of patches has one tap an entry, so its singular values down to eps times its channels count."""
    torch.manual_seed(0)
    weight, x = torch.randn(768, 3, 16, 16) / 28, torch.randn(1, 3, 32, 32)
    operator = conv_operator(weight, (32, 32), stride=16)
    condition = float(torch.linalg.cond(weight.double().flatten(1)))
    assert 100 < condition < 1e4
    found = operator.pseudo_inverse(operator.forward(x))
    assert float((found - x).norm() / x.norm()) < 10 * torch.finfo(torch.float32).eps * condition
