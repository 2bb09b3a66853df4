"""Kernels that stay well conditioned whatever an optimizer does to them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import dense
from tables import PLAIN
from torch.nn.utils import parametrize

from invconv import InputError, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.parametrizations import bounded

LAYERS = {
    "square": lambda: InvertibleConv2d(4, 4, 3, padding=1, padding_mode="circular"),
    "wide": lambda: InvertibleConv2d(4, 2, 3, padding=1, padding_mode="circular"),
    "tall": lambda: InvertibleConv2d(2, 5, 3, padding=1, padding_mode="circular"),
    "even": lambda: InvertibleConv2d(3, 3, 4, padding="same", padding_mode="circular"),
    "strided": lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular"),
    "patches": lambda: InvertibleConv2d(2, 8, 2, stride=2, padding_mode="circular"),
    "strided, wide": lambda: InvertibleConv2d(2, 3, 4, stride=2, padding=1, padding_mode="circular"),
    "dilated": lambda: InvertibleConv2d(3, 3, 3, dilation=2, padding="same", padding_mode="circular"),
    "grouped": lambda: InvertibleConv2d(4, 4, 3, groups=2, padding=1, padding_mode="circular"),
    "1 x 1": lambda: InvertibleConv2d(4, 4, 1),
    "1-D": lambda: InvertibleConv1d(3, 3, 5, padding=2, padding_mode="circular"),
    "3-D": lambda: InvertibleConv3d(2, 2, 3, padding=1, padding_mode="circular"),
    "zeros": lambda: InvertibleConv2d(3, 3, 3, padding=1),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def raw(conv):
    return conv.parametrizations.weight.original0, conv.parametrizations.weight.original1


@each_layer
@settings(max_examples=8, deadline=None)
@given(scale=st.sampled_from([0.0, 1e-12, 0.01, 1.0, 1e8]), rho=st.sampled_from([0.1, 0.5, 0.9]))
def test_condition_is_bounded_whatever_the_parameters(make, scale, rho):
    conv = bounded(make().double(), rho)
    mixing, e = raw(conv)
    with torch.no_grad():
        e.normal_().mul_(scale)
    assert conv.weight.isfinite().all()
    values = torch.linalg.svdvals(mixing)
    size = (6, 4, 4)[: conv.geometry.dims]
    found = torch.linalg.svdvals(dense(conv, size))
    assert found[0] <= values.max() * (1 + rho) * (1 + 1e-9)
    assert found[-1] >= values.min() * (1 - rho) * (1 - 1e-9)


@each_layer
def test_a_kernel_within_the_bound_is_kept(make):
    conv = bounded(make().double(), 0.6)
    with torch.no_grad():
        raw(conv)[1].mul_(0.5)
    weight = conv.weight.detach().clone()
    twin = bounded(make().double(), 0.6)
    twin.weight = weight
    assert torch.allclose(twin.weight, weight, atol=1e-12)


@each_layer
def test_a_kernel_beyond_the_bound_is_drawn_inside(make):
    conv = make().double()
    with torch.no_grad():
        conv.weight.add_(torch.randn_like(conv.weight))
    bounded(conv, 0.3)
    assert conv.weight.isfinite().all()


@each_layer
def test_gradients(make):
    conv: Any = bounded(make().double(), 0.5)
    with torch.no_grad():  # a norm has no gradient at zero
        raw(conv)[1].add_(0.1 * torch.randn_like(raw(conv)[1]))
    function = conv.parametrizations.weight[0]
    assert torch.autograd.gradcheck(function, raw(conv), fast_mode=True)


def test_the_norm_bound_is_tight_enough_to_be_of_use():
    """Of random kernels it is at most 2.5 times the norm, of a single tap 1.1 times, up to 96 channels."""
    for channels in (3, 12, 48, 96):
        conv: Any = bounded(InvertibleConv2d(channels, channels, 3, padding=1, padding_mode="circular"))
        e = torch.randn_like(raw(conv)[1])
        single = e * torch.eye(9)[3]
        for kernel, most in ((e, 2.5), (single, 1.1)):
            bound = conv.parametrizations.weight[0]._norm_bound(kernel).item()
            spectra = torch.fft.fft2(kernel.unflatten(-1, (3, 3)), s=(32, 32)).movedim((1, 2), (3, 4))
            exact = torch.linalg.matrix_norm(spectra, ord=2).max().item()
            assert exact <= bound * (1 + 1e-5) and bound < most * exact


def test_saving_and_loading_are_those_of_parametrize():
    conv = bounded(LAYERS["square"](), 0.5)
    assert parametrize.is_parametrized(conv, "weight")
    names = {f"parametrizations.weight.{name}" for name in ("original0", "original1", "0.version")}
    assert set(conv.state_dict()) == {"bias", *names}
    twin = bounded(LAYERS["square"](), 0.5)
    twin.load_state_dict(conv.state_dict())
    assert torch.equal(twin.weight, conv.weight)
    assert torch.equal(copy.deepcopy(conv).weight, conv.weight)
    plain = PLAIN[2](4, 4, 3, padding=1, padding_mode="circular")
    parametrize.remove_parametrizations(twin, "weight")
    plain.load_state_dict(twin.state_dict())
    assert torch.equal(plain.weight, conv.weight)


def test_training_against_the_bound_keeps_the_inverse():
    torch.manual_seed(0)
    conv = bounded(InvertibleConv2d(6, 6, 3, padding=1, padding_mode="circular", bias=False), 0.5)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.1)
    x = torch.randn(4, 6, 8, 8)
    for _ in range(60):  # a loss that drives the kernel to a singular one
        optimizer.zero_grad()
        loss = conv(x).sum(dim=(2, 3)).square().mean() - 1e-2 * conv.log_abs_det(x.shape)
        loss.backward()
        optimizer.step()
        assert (conv.inverse(conv(x)) - x).abs().max() < 1e-4
    assert conv.condition_number(x.shape) <= 3.0001 * torch.linalg.cond(raw(conv)[0]).item()


def test_bad_arguments():
    with pytest.raises(InputError, match=r"rho must lie in \(0, 1\), got 1.5"):
        bounded(LAYERS["square"](), 1.5)
    with pytest.raises(InputError, match="reads only 1 of 4 pixels"):
        bounded(InvertibleConv2d(2, 2, 1, stride=2, padding_mode="circular"))
    with pytest.raises(InputError, match="reads only 1 of 4 pixels"):
        bounded(InvertibleConv2d(2, 8, 2, stride=2, dilation=2, padding_mode="circular"))
