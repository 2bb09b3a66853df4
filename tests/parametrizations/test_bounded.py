"""Kernels that stay well conditioned whatever an optimizer does to them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from half_precision import check_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import dense
from tables import LAYERS as DIMENSIONS
from tables import PLAIN
from torch.nn.utils import parametrize, prune

from invconv import InputError, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.layers.init import centre_taps
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
    "reflect": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "reflect, 5 x 3": lambda: InvertibleConv2d(2, 3, (5, 3), padding="same", padding_mode="reflect"),
    "replicate": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="replicate"),
    "replicate, strided": lambda: InvertibleConv2d(2, 7, 4, stride=2, padding=1, padding_mode="replicate"),
    "fewer outputs": lambda: InvertibleConv2d(3, 2, 3),
    "more outputs": lambda: InvertibleConv2d(2, 3, 3, padding=2),
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
    names = {f"parametrizations.weight.{name}" for name in ("original0", "original1", "0.version", "0._extra_state")}
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


# -- geometries ----------------------------------------------------------------------------------------------------


def lines(mode):
    """Layers of one dimension, of all paddings, dilations, strides and shapes of W."""
    for kernel, dilation, stride, padding in itertools.product([1, 2, 3, 4, 5], [1, 2], [1, 2], [0, 1, 2, 3]):
        for columns, rows in ((1, stride), (1, stride + 1), (2, 2 * stride), (2, 2 * stride - 1)):
            conv = InvertibleConv1d(
                columns, rows, kernel, stride, padding, dilation, bias=False, padding_mode=mode, dtype=torch.float64
            )
            if len(centre_taps(conv.geometry)) == stride:
                yield conv, [(stride * n,) for n in (2, 3, 5, 9)]


def singular_values(conv, sizes):
    """At all sizes that the layer takes."""
    values = []
    for size in sizes:
        try:
            conv.geometry.check_input_size(size)
        except InputError:
            continue
        values.append(torch.linalg.svdvals(dense(conv, size)))
    return torch.cat(values)


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_a_geometry_is_bounded_or_refused(mode):
    """With a semi-orthogonal W all singular values are 1 if E is 0; refused is what has others."""
    taken, refused = 0, 0
    for conv, sizes in lines(mode):
        columns = conv.weight.shape[1]
        taps = centre_taps(conv.geometry)
        mixing = torch.nn.init.orthogonal_(torch.empty(conv.out_channels, columns * len(taps), dtype=torch.float64))
        with torch.no_grad():
            conv.weight.zero_()[:, :, taps] = mixing.view(-1, columns, len(taps))
        alone = singular_values(conv, sizes)
        isometric = bool((alone - 1).abs().max() < 1e-9)
        try:
            bounded(conv, 0.5)
        except InputError:
            refused += 1
            assert not isometric, (conv, alone)
            assert not parametrize.is_parametrized(conv)
            continue
        taken += 1
        assert isometric, (conv, alone)
        for tap in (None, *range(conv.kernel_size[0])):  # random kernels, and the whole norm on one tap
            with torch.no_grad():
                e = raw(conv)[1].normal_().mul_(1e3)
                if tap is not None:
                    e *= torch.eye(e.shape[-1])[tap]
            values = singular_values(conv, sizes)
            assert 0.5 - 1e-9 < values.min() and values.max() < 1.5 + 1e-9, (conv, tap)
    assert taken > 30 and refused > 30


@pytest.mark.parametrize(
    ("channels", "kernel", "arguments"),
    [
        ((2, 4), 3, {"padding": 0}),
        ((2, 4), 3, {"padding": (1, 0)}),
        ((2, 2), 3, {"padding": (2, 0)}),
        ((2, 2), 2, {"dilation": 2, "padding": "same"}),
        ((2, 3), 4, {"padding": 1}),
        ((2, 2), 3, {"padding": 2, "padding_mode": "circular"}),
        ((3, 2), 3, {"padding": 2}),
        ((2, 2), 3, {"padding": 2, "padding_mode": "replicate"}),
        ((2, 9), 2, {"stride": 2, "padding_mode": "circular", "dilation": 3}),
        ((2, 4), (3, 3, 3), {"padding": (1, 1, 0)}),
    ],
)
def test_geometries_without_a_bound_are_refused(channels, kernel, arguments):
    make: Any = DIMENSIONS[len(kernel) if isinstance(kernel, tuple) else 2]
    conv = make(*channels, kernel, **arguments)
    with pytest.raises(InputError, match=r"the condition number has no bound: with kernel size .* Use "):
        bounded(conv)
    assert not parametrize.is_parametrized(conv) and isinstance(conv.weight, torch.nn.Parameter)


# -- number types --------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_half_precision_rounds_the_kernel_and_nothing_else(make, dtype, scale):
    conv = bounded(make(), 0.5)
    check_rounding(conv, raw(conv)[1], dtype, scale)
    again = bounded(make().to(dtype), 0.5)
    assert again.weight.dtype == dtype and again.weight.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-15, 1e15, 1e30])
def test_no_power_of_a_parameter_under_or_overflows(dtype, scale):
    conv: Any = bounded(LAYERS["grouped"]().to(dtype), 0.5)
    with torch.no_grad():
        raw(conv)[1].normal_()
        shape = raw(conv)[1].clone()
        raw(conv)[1].mul_(scale)
    mixing, _ = raw(conv)
    function = conv.parametrizations.weight[0].double()
    taps = torch.linalg.solve(mixing.double(), conv.weight.double().view(2, 2, -1)).view(2, 2, 2, 9)
    e = taps - function.delta
    if scale < 1:  # tanh is linear there
        assert (e / scale - shape).abs().max() < max(1e-4, 1e-6 / scale)
    else:
        assert torch.allclose(function._norm_bound(e), torch.tensor(0.5).double(), rtol=1e-5)
    conv.to(dtype).weight.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in raw(conv))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_kernel_as_it_is(dtype):
    conv = bounded(LAYERS["square"](), 0.5)
    with torch.no_grad():
        raw(conv)[1].normal_()
    weight = conv.weight
    with torch.autocast("cpu", dtype):
        assert torch.equal(conv.weight, weight)


def test_bad_arguments():
    rhos: tuple[Any, ...] = (1.5, 0, 1, -0.1, float("nan"), "half", None, torch.tensor(0.5))
    for rho in rhos:
        with pytest.raises(InputError, match=r"rho must lie in \(0, 1\), got "):
            bounded(LAYERS["square"](), rho)
    plain: Any = torch.nn.Conv2d(2, 2, 3, padding=1)
    with pytest.raises(InputError, match="takes an invertible convolution, got Conv2d"):
        bounded(plain)
    conv: Any = bounded(LAYERS["square"](), 0.5)
    with pytest.raises(InputError, match="parametrized already, by Bounded"):
        bounded(conv, 0.4)
    assert len(conv.parametrizations.weight) == 1
    pruned: Any = prune.l1_unstructured(LAYERS["square"](), "weight", 0.3)
    with pytest.raises(InputError, match="no parameter but set by a hook"):
        bounded(pruned)
    with pytest.raises(InputError, match="reads only 1 of 4 pixels"):
        bounded(InvertibleConv2d(2, 2, 1, stride=2, padding_mode="circular"))
    with pytest.raises(InputError, match="reads only 1 of 4 pixels"):
        bounded(InvertibleConv2d(2, 8, 2, stride=2, dilation=2, padding_mode="circular"))
