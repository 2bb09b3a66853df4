"""The sum over taps against PyTorch's convolution."""

from __future__ import annotations

import pytest
import torch
from tables import BORDERS, CASES

from invconv.engine import convolution, padding
from invconv.engine.convolution import Convolution
from invconv.geometry import Geometry

ONCE = [case for case in CASES + BORDERS if case.stride == 1]


@pytest.mark.parametrize("case", ONCE, ids=str)
def test_the_sum_over_taps_is_the_convolution(case):
    conv = case.layer()
    x, weight = padding.pad(case.images(), conv.geometry), conv.weight.detach()
    plain = convolution.FORWARD[case.dims](x, weight, None, 1, 0, conv.dilation, conv.groups)
    assert torch.allclose(convolution._by_taps(x, weight, conv.geometry), plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("batch", [0, 1])
def test_large_images_take_it(batch, monkeypatch):
    geometry = Geometry.of((3, 3), padding=1)
    x, weight = torch.randn(batch, 32, 80, 80, dtype=torch.float64), torch.randn(8, 32, 3, 3, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(x, weight, padding=1)
    called = []
    taken = convolution._by_taps
    monkeypatch.setattr(convolution, "_by_taps", lambda *args: called.append(1) or taken(*args))
    assert torch.allclose(Convolution(weight, geometry, (80, 80)).forward(x), expected, rtol=1e-12, atol=1e-12)
    assert called
    Convolution(weight.float(), geometry, (80, 80)).forward(x.float())
    assert len(called) == 1
