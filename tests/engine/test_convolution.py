"""The sums over taps against PyTorch's convolution, its transpose and its gradient."""

from __future__ import annotations

import pytest
import torch
from tables import BORDERS, CASES

from invconv.engine import convolution, padding, tapwise
from invconv.engine.convolution import Convolution
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
