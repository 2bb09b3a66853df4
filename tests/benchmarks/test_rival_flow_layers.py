"""The ports of other papers' layers that ours are held against do what those papers say."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.rivals.flow_layers import ConvExponential, Emerging
from benchmarks.rivals.wavefront import Wavefront

CHANNELS, SIZE = 3, (4, 5)


@pytest.fixture(params=["exponential", "emerging"])
def layer(request):
    """A port far from its start, and as after many steps of training."""
    emerging = request.param == "emerging"
    layer = Emerging(CHANNELS) if emerging else ConvExponential(CHANNELS, SIZE)
    layer.double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
        for _ in range(100):
            layer(torch.randn(1, CHANNELS, *SIZE, dtype=torch.float64))
    return layer.eval()


def dense(function):
    count = CHANNELS * SIZE[0] * SIZE[1]
    x = torch.randn(1, CHANNELS, *SIZE, dtype=torch.float64)
    return torch.autograd.functional.jacobian(function, x).reshape(count, count)


def test_inverse_undoes_forward(layer):
    x = torch.randn(2, CHANNELS, *SIZE, dtype=torch.float64)
    z, log_det = layer(x)
    x_hat, back = layer.inverse(z)
    assert (z - x).norm() > 0.1 * x.norm()
    assert torch.allclose(x_hat, x, atol=1e-9)
    assert torch.equal(back, -log_det)


def test_log_det_is_that_of_the_jacobian(layer):
    _, log_det = layer(torch.randn(2, CHANNELS, *SIZE, dtype=torch.float64))
    expected = torch.linalg.slogdet(dense(lambda x: layer(x)[0])).logabsdet
    assert log_det.shape == (2,)
    assert torch.allclose(log_det, expected.expand(2), atol=1e-9)


def test_every_tap_of_three_by_three_is_read(layer):
    jacobian = dense(lambda x: layer(x)[0]).view(CHANNELS, *SIZE, CHANNELS, *SIZE)
    assert jacobian[:, 2, 2, :, 1:4, 1:4].abs().min() > 1e-6


def test_the_kernel_is_scaled_to_its_bound():
    layer = ConvExponential(CHANNELS, SIZE, coeff=0.9).double()
    with torch.no_grad():
        layer.kernel.normal_()
        for _ in range(200):
            layer(torch.randn(1, CHANNELS, *SIZE, dtype=torch.float64))
        kernel = layer.normalised_kernel()
    norm = torch.linalg.matrix_norm(dense(lambda x: torch.nn.functional.conv2d(x, kernel, padding=1)), ord=2)
    assert norm.item() == pytest.approx(0.9, rel=1e-3)


def test_six_terms_are_close_to_the_exponential():
    layer = ConvExponential(CHANNELS, SIZE).double()
    x = torch.randn(2, CHANNELS, *SIZE, dtype=torch.float64)
    with torch.no_grad():
        layer.kernel.normal_()
        for _ in range(200):
            z, _ = layer(x)
        exact, _ = layer.eval()(x)
    assert 0 < (z - exact).norm() < 2e-4 * exact.norm()


@pytest.mark.parametrize("size", [(4, 5), (5, 4), (1, 3), (3, 1)], ids=str)
def test_the_wavefront_undoes_a_pair(size):
    first, second = (0.4 * torch.randn(CHANNELS, CHANNELS, 2, 2, dtype=torch.float64) for _ in range(2))
    first[:, :, 0, 0] += torch.eye(CHANNELS)
    second[:, :, 1, 1] += torch.eye(CHANNELS)
    x = torch.randn(2, CHANNELS, *size, dtype=torch.float64)
    pad, conv = torch.nn.functional.pad, torch.nn.functional.conv2d
    z = conv(pad(conv(pad(x, (0, 1, 0, 1)), first), (1, 0, 1, 0)), second)
    assert (z - x).norm() > 0.1 * x.norm()
    assert torch.allclose(Wavefront(first, second).inverse(z), x, atol=1e-8)
