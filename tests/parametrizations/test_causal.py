"""Kernels that read pixels in one order, whatever an optimizer does to them."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from half_precision import check_rounding
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import dense
from torch.nn.utils import parametrize, prune

from invconv import InputError, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, SingularMapError
from invconv.errors import CheckpointError
from invconv.flows import Context
from invconv.layers.diagonal import is_diagonal, log_abs_det
from invconv.layers.together import kernels
from invconv.parametrizations import Causal, bounded, causal
from invconv.parametrizations.raster import opposite

LAYERS = {
    "right-down": lambda **o: causal(InvertibleConv2d(3, 3, 3, padding=1), "right-down", **o),
    "left-up, half": lambda **o: causal(InvertibleConv2d(3, 3, 3, padding=1), "left-up", support="half", **o),
    "down-left, half": lambda **o: causal(InvertibleConv2d(2, 2, 3, padding=1), "down-left", support="half", **o),
    "5 x 3": lambda **o: causal(InvertibleConv2d(2, 2, (5, 3), padding=(2, 1)), "right-up", support="half", **o),
    "even": lambda **o: causal(InvertibleConv2d(3, 3, 2, padding="same"), "right-down", **o),
    "dilated": lambda **o: causal(InvertibleConv2d(2, 2, 3, dilation=2, padding="same"), "up-left", **o),
    "grouped": lambda **o: causal(InvertibleConv2d(4, 4, 3, groups=2, padding=1), "left-down", **o),
    "1-D": lambda **o: causal(InvertibleConv1d(3, 3, 5, padding=2), "left", **o),
    "3-D": lambda **o: causal(InvertibleConv3d(2, 2, 3, padding=1), "right-down-in", **o),
    "3-D, half": lambda **o: causal(InvertibleConv3d(2, 2, 3, padding=1), "out-left-up", support="half", **o),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
SIZE = (6, 4, 4)


def raw(conv):
    """W and E; W is None where nothing mixes."""
    weight = conv.parametrizations.weight
    return (weight.original0, weight.original1) if weight[0].mixing else (None, weight.original0)


def stirred(conv, scale=1.0):
    with torch.no_grad():
        raw(conv)[1].normal_().mul_(scale)
    return conv


# -- the map -------------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("mixing", [True, False])
def test_the_matrix_is_triangular_and_its_determinant_that_of_the_own_tap(make, mixing):
    conv = stirred(make(mixing=mixing).double())
    size = SIZE[: conv.geometry.dims]
    matrix = dense(conv, size)
    function = conv.parametrizations.weight[0]
    # The pixels in the order of the kernel, the slowest axis first.
    words = function.order.split("-")
    axes = {"right": -1, "left": -1, "down": -2, "up": -2, "in": -3, "out": -3}
    pixels = torch.arange(len(matrix)).view(-1, *size)
    pixels = pixels.flip([axes[word] for word in words if word in ("left", "up", "out")])
    pixels = pixels.permute(*(1 + len(size) + axes[word] for word in reversed(words)), 0).flatten()
    blocks = matrix[pixels][:, pixels].unflatten(0, (-1, conv.in_channels)).unflatten(2, (-1, conv.in_channels))
    places = len(blocks)
    for i, j in itertools.product(range(places), repeat=2):
        assert j >= i or not blocks[i, :, j].any()
    own = conv.weight.flatten(2)[..., function.own_tap].unflatten(0, (conv.groups, -1))
    assert all(torch.equal(blocks[i, :, i], torch.block_diag(*own)) for i in range(places))
    expected = torch.linalg.slogdet(matrix).logabsdet
    assert torch.allclose(log_abs_det([(conv, conv.weight, size)]), expected, rtol=1e-12, atol=1e-12)
    assert torch.allclose(conv.log_abs_det(size), expected, rtol=1e-12, atol=1e-12)
    x = torch.randn(2, conv.in_channels, *size, dtype=torch.float64)
    assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-12)
    assert conv.operator(size).plan().solver == "triangular"


@each_layer
@settings(max_examples=8, deadline=None)
@given(scale=st.sampled_from([0.0, 1e-12, 0.01, 1.0, 1e8]), rho=st.sampled_from([0.1, 0.5, 0.9]))
def test_condition_is_bounded_whatever_the_parameters(make, scale, rho):
    conv = stirred(make(rho=rho).double(), scale)
    assert conv.weight.isfinite().all()
    values = torch.linalg.svdvals(raw(conv)[0])
    found = torch.linalg.svdvals(dense(conv, SIZE[: conv.geometry.dims]))
    assert found[0] <= values.max() * (1 + rho) * (1 + 1e-9)
    assert found[-1] >= values.min() * (1 - rho) * (1 - 1e-9)


def test_the_taps_are_those_that_come_later():
    expected = {
        ("right-down", "quarter"): [[0, 0, 0], [0, 1, 1], [0, 1, 1]],
        ("down-right", "quarter"): [[0, 0, 0], [0, 1, 1], [0, 1, 1]],
        ("left-up", "quarter"): [[1, 1, 0], [1, 1, 0], [0, 0, 0]],
        ("right-down", "half"): [[0, 0, 0], [0, 1, 1], [1, 1, 1]],
        ("left-up", "half"): [[1, 1, 1], [1, 1, 0], [0, 0, 0]],
        ("down-right", "half"): [[0, 0, 1], [0, 1, 1], [0, 1, 1]],
        ("up-right", "half"): [[0, 1, 1], [0, 1, 1], [0, 0, 1]],
    }
    for (order, support), taps in expected.items():
        conv = causal(InvertibleConv2d(1, 1, 3, padding=1), order, support=support)
        assert (conv.weight[0, 0] != 0).int().tolist() == taps
        other = causal(InvertibleConv2d(1, 1, 3, padding=1), opposite(order), support=support)
        assert torch.equal(other.weight[0, 0] != 0, (conv.weight[0, 0] != 0).flip(0, 1))


def test_a_kernel_without_a_bound_is_masked_and_nothing_else():
    conv = InvertibleConv2d(3, 3, 3, padding=1).double()
    with torch.no_grad():
        conv.weight.normal_()
    weight = conv.weight.detach().clone()
    causal(conv, "right-down", rho=None)
    weight[:, :, 0] = 0
    weight[:, :, :, 0] = 0
    assert torch.allclose(conv.weight, weight, rtol=1e-12, atol=1e-12)


# -- the parametrization -------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("mixing", [True, False])
def test_a_kernel_within_the_bound_is_kept(make, mixing):
    conv = make(rho=0.6, mixing=mixing).double()
    with torch.no_grad():
        raw(conv)[1].mul_(0.5)
    weight = conv.weight.detach().clone()
    twin = make(rho=0.6, mixing=mixing).double()
    twin.weight = weight
    assert torch.allclose(twin.weight, weight, atol=1e-12)
    twin.weight = weight + 9 * torch.where(weight == 0, 1, 0)  # where the mask is: left out
    assert torch.allclose(twin.weight, weight, atol=1e-12)


@each_layer
def test_a_kernel_beyond_the_bound_is_drawn_inside(make):
    conv = make(rho=0.3).double()
    conv.weight = conv.weight.detach() + torch.randn_like(conv.weight)
    values = torch.linalg.svdvals(dense(conv, SIZE[: conv.geometry.dims]))
    mixing = torch.linalg.svdvals(raw(conv)[0])
    assert values[0] / values[-1] <= mixing.max() / mixing.min() * 1.3 / 0.7


@each_layer
@pytest.mark.parametrize("rho", [0.5, None])
def test_gradients(make, rho):
    conv: Any = stirred(make(rho=rho).double(), 0.3)
    function = conv.parametrizations.weight[0]
    assert torch.autograd.gradcheck(function, raw(conv), fast_mode=True)
    size = SIZE[: conv.geometry.dims]
    assert torch.autograd.gradcheck(
        lambda *p: log_abs_det([(conv, function(*p), size)]), [p.detach().requires_grad_() for p in raw(conv)]
    )


def test_gradients_of_log_determinants_are_those_of_the_engine():
    conv = stirred(causal(InvertibleConv2d(3, 3, 3, padding=1), "left-up", rho=0.7).double())
    grads = [
        torch.autograd.grad(value, raw(conv), allow_unused=True)
        for value in (log_abs_det([(conv, conv.weight, (5, 4))]), conv.log_abs_det((5, 4)))
    ]
    assert torch.allclose(grads[0][0], grads[1][0], rtol=1e-9)
    assert all(e is None or e.abs().max() < 1e-9 for e in (grads[0][1], grads[1][1]))


@pytest.mark.parametrize("mixing", [True, False])
def test_kernels_of_one_kind_are_computed_together(mixing, monkeypatch):
    convs = [stirred(LAYERS["right-down"](mixing=mixing)) for _ in range(3)]
    convs += [stirred(LAYERS["grouped"](mixing=mixing)), bounded(InvertibleConv2d(3, 3, 3, padding=1))]
    expected = [conv.weight for conv in convs]
    calls: list[int] = []
    forward = Causal.forward

    def counted(self, *parameters):
        calls.append(len(parameters[0]))
        return forward(self, *parameters)

    monkeypatch.setattr(Causal, "forward", counted)
    found = kernels(convs)
    assert calls == [3, 2]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, expected, strict=True))
    orders = [LAYERS["right-down"](), LAYERS["right-down"](rho=0.4), LAYERS["left-up, half"]()]
    expected = [conv.weight for conv in orders]
    assert all(torch.equal(a, b) for a, b in zip(kernels(orders), expected, strict=True))


@each_layer
def test_saving_and_loading_are_those_of_parametrize(make):
    conv = stirred(make())
    assert parametrize.is_parametrized(conv, "weight")
    names = {f"parametrizations.weight.{name}" for name in ("original0", "original1", "0.version", "0._extra_state")}
    assert set(conv.state_dict()) == {"bias", *names}
    twin = make()
    twin.load_state_dict(conv.state_dict())
    assert torch.equal(twin.weight, conv.weight)
    for again in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert torch.equal(again.weight, conv.weight) and is_diagonal(again)
        assert not torch.equal(stirred(again).weight, conv.weight)
    parametrize.remove_parametrizations(twin, "weight")
    assert torch.equal(twin.weight, conv.weight) and not is_diagonal(twin)


def test_a_state_of_other_options_is_refused():
    def make(order="right-down", **options):
        return causal(InvertibleConv2d(3, 3, 3, padding=1), order, **options)

    state = make().state_dict()
    for other, name in (
        (make("left-down"), "order = 'right-down'"),
        (make(rho=0.4), "rho = 0.5"),
        (make(rho=None), "rho = 0.5"),
        (causal(InvertibleConv2d(3, 3, 3, padding=2, dilation=2), "right-down"), r"dilation = \[1, 1\]"),
    ):
        before = other.weight.detach().clone()
        with pytest.raises(CheckpointError, match=f"was saved with .*{name}"):
            other.load_state_dict(state)
        assert torch.equal(other.weight, before)
    make("down-right").load_state_dict(state)  # the same quarter


# -- number types --------------------------------------------------------------------------------------------------


@each_layer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_half_precision_rounds_the_kernel_and_nothing_else(make, dtype, scale):
    conv = make()
    check_rounding(conv, raw(conv)[1], dtype, scale)
    assert log_abs_det([(conv, conv.weight, SIZE[: conv.geometry.dims])]).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_kernel_and_its_volume_as_they_are(dtype):
    conv = stirred(LAYERS["right-down"]())
    weight, volume = conv.weight, log_abs_det([(conv, conv.weight, (4, 4))])
    with torch.autocast("cpu", dtype):
        assert torch.equal(conv.weight, weight)
        assert torch.equal(log_abs_det([(conv, conv.weight, (4, 4))]), volume)


# -- refusals ------------------------------------------------------------------------------------------------------


def test_a_singular_own_tap_has_no_log_determinant():
    conv = stirred(LAYERS["right-down"]().double())
    mixing = raw(conv)[0]
    for share in (1 / 3, 0):  # to rounding, and exactly
        with torch.no_grad():
            mixing[..., 2] = share * (mixing[..., 0] + mixing[..., 1] / 3)
        with pytest.raises(SingularMapError, match="tap of its own pixel singular"):
            Context().log_abs_det(conv, conv.weight, (4, 4))


@pytest.mark.parametrize("order", ["", "right", "right-right", "right-left", "right_down", "right-down-in", None, 3])
def test_an_order_of_other_axes_is_refused(order):
    conv = InvertibleConv2d(2, 2, 3, padding=1)
    with pytest.raises(InputError, match=r"order must name one direction of \['right', 'left', 'down', 'up'\] for"):
        causal(conv, order)
    assert not parametrize.is_parametrized(conv)


@pytest.mark.parametrize(
    ("conv", "named"),
    [
        (lambda: InvertibleConv2d(2, 4, 3, padding=1), "2 to 4 channels"),
        (lambda: InvertibleConv2d(2, 8, 2, stride=2), r"2 to 8 channels .*, stride \(2, 2\)"),
        (lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="circular"), "padding_mode='circular'"),
        (lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"), "padding_mode='reflect'"),
        (lambda: InvertibleConv2d(2, 2, 3), r"kernel size \(3, 3\) with padding \(\(0, 0\), \(0, 0\)\)"),
        (lambda: InvertibleConv2d(2, 2, 3, padding=2), "with padding"),
        (lambda: InvertibleConv2d(2, 2, 2, dilation=2, padding="same"), r"dilation \(2, 2\)"),
    ],
)
def test_geometries_that_are_not_triangular_are_refused(conv, named):
    layer = conv()
    with pytest.raises(InputError, match=f"triangular only with borders of zeros.* got .*{named}"):
        causal(layer)
    assert not parametrize.is_parametrized(layer)


def test_bad_arguments():
    def layer():
        return InvertibleConv2d(2, 2, 3, padding=1)

    rhos: tuple[Any, ...] = (1.5, 0, 1, -0.1, float("nan"), "half")
    for rho in rhos:
        with pytest.raises(InputError, match=r"rho must lie in \(0, 1\), got "):
            causal(layer(), rho=rho)
    with pytest.raises(InputError, match=r"support must be one of \('quarter', 'half'\), got 'whole'"):
        causal(layer(), support="whole")
    for kernel, padding in ((1, 0), (2, "same")):
        with pytest.raises(InputError, match="has no tap that reads a later pixel in the order 'left-up'"):
            causal(InvertibleConv2d(2, 2, kernel, padding=padding), "left-up")
    plain: Any = torch.nn.Conv2d(2, 2, 3, padding=1)
    with pytest.raises(InputError, match="causal takes an invertible convolution, got Conv2d"):
        causal(plain)
    with pytest.raises(InputError, match="parametrized already, by Causal: mask it first"):
        causal(causal(layer()))
    with pytest.raises(InputError, match="no parameter but set by a hook"):
        causal(prune.l1_unstructured(layer(), "weight", 0.3))
