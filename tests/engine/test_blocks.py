"""Batches of large matrices, with threads that were asked for: there PyTorch's own factors are wrong."""

from __future__ import annotations

import pytest
import torch

from invconv import InvertibleConv2d
from invconv.engine.blocks import lu_factor


@pytest.fixture(autouse=True)
def _two_threads(set_threads):
    set_threads(2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "shape", [(192, 192), (1, 192, 192), (4, 192, 192), (2, 3, 160, 160), (3, 12, 12), (0, 200, 200)]
)
def test_factors_solve(shape, dtype):
    a = torch.randn(shape, dtype=dtype)
    b = torch.randn(*shape[:-1], 2, dtype=dtype)
    x = torch.linalg.lu_solve(*lu_factor(a), b)
    for each, right, solution in zip(
        a.view(-1, *shape[-2:]), b.view(-1, shape[-1], 2), x.view(-1, shape[-1], 2), strict=True
    ):
        residual = right - each @ solution
        assert residual.norm() < 10 * torch.finfo(dtype).eps * each.norm() * solution.norm()


@pytest.mark.parametrize(("channels", "groups", "mode"), [(160, 1, "circular"), (96, 2, "zeros")])
def test_layers_with_large_blocks_or_rings(channels, groups, mode, set_threads):
    conv = InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=mode, groups=groups, bias=False)
    x = torch.randn(2, channels, 6, 6)
    assert (conv.inverse(conv(x)) - x).norm() < 1e-5 * x.norm()
    solver = conv.operator((6, 6)).plan().solver
    assert solver == conv.operator((6, 6)).solver.name == ("fft" if mode == "circular" else "fft and ring")
    double = InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=mode, groups=groups, bias=False).double()
    double.load_state_dict(conv.state_dict())
    set_threads(1)
    assert conv.log_abs_det((6, 6)).item() == pytest.approx(double.log_abs_det((6, 6)).item(), rel=1e-4, abs=1e-2)
