"""The layers as PyTorch users meet them: drop-in, exact, never stale, and clear about bad input."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tables import LAYERS, PLAIN
from torch import nn

import invconv
from invconv import (
    IllConditionedWarning,
    InputError,
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    NotSquareError,
    SingularMapError,
    functional,
)
from invconv.layers.cache import MOST

SIZE = (6, 8)


def layer(c_in=3, c_out=3, kernel=3, **options):
    options = {"padding": "same", "padding_mode": "circular", **options}
    return InvertibleConv2d(c_in, c_out, kernel, **options)


# -- drop-in -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
def test_forward_and_state_dict_are_those_of_the_plain_layer(dims, padding_mode):
    arguments = (4, 6, 3, 1, 1, 1, 2, True, padding_mode)
    ours, plain = LAYERS[dims](*arguments), PLAIN[dims](*arguments)
    assert isinstance(ours, PLAIN[dims])
    plain.load_state_dict(ours.state_dict())
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, *(5, 6, 7)[:dims])
    assert torch.equal(ours(x), plain(x))
    for name in ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode", "in_channels"):
        assert getattr(ours, name) == getattr(plain, name)
    assert list(ours.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_from_conv_shares_parameters(dims):
    plain = PLAIN[dims](2, 4, 2, stride=2, bias=False, padding_mode="circular").eval()
    state = torch.get_rng_state()
    ours = LAYERS[dims].from_conv(plain, damping=0.1)
    assert torch.equal(state, torch.get_rng_state())
    assert ours.weight is plain.weight and ours.bias is None and ours.damping == 0.1 and not ours.training
    assert (ours.stride, ours.padding, ours.padding_mode) == (plain.stride, plain.padding, plain.padding_mode)


def test_from_conv_says_what_it_does_not_take():
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Conv2d, got Conv1d"):
        InvertibleConv2d.from_conv(nn.Conv1d(2, 2, 1))
    with pytest.raises(InputError, match="got LazyConv2d"):
        InvertibleConv2d.from_conv(nn.LazyConv2d(2, 1))


@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "stride", "groups"),
    [(8, 8, 3, 1, 1), (16, 16, 5, 1, 1), (3, 12, 2, 2, 1), (3, 12, 3, 2, 1), (8, 4, 3, 1, 1), (4, 8, 3, 1, 2)],
)
def test_a_fresh_layer_has_condition_about_two(c_in, c_out, kernel, stride, groups):
    conv = InvertibleConv2d(
        c_in, c_out, kernel, stride, (kernel - 1) // 2, groups=groups, padding_mode="circular", dtype=torch.float64
    )
    assert 1.2 < conv.condition_number((12, 12)) < 2.6
    assert not conv.bias.any()


# -- the verbs -----------------------------------------------------------------------------------------------------


def test_round_trip_in_float32():
    conv = layer(32, 32)
    x = torch.randn(2, 32, 128, 128)
    assert (conv.inverse(conv(x)) - x).abs().max() < 1e-5


def test_output_size_settles_what_the_stride_leaves_open():
    conv = layer(2, 8, 3, stride=2, padding=1, dtype=torch.float64)
    for size in [(7, 6), (8, 5), (8, 6)]:
        x = torch.randn(1, 2, *size, dtype=torch.float64)
        y = conv(x)
        assert y.shape[-2:] == (4, 3)
        assert torch.allclose(conv.inverse(y, output_size=size), x)
        assert torch.allclose(conv.inverse(y, output_size=x.shape), x)
    assert conv.inverse(y).shape == (1, 2, 8, 6)
    with pytest.raises(InputError, match=r"y has shape .* expected"):
        conv.inverse(y, output_size=(9, 6))


def test_input_size_may_be_a_shape():
    conv = layer()
    assert conv.log_abs_det((2, 3, *SIZE)) == conv.log_abs_det((3, *SIZE)) == conv.log_abs_det(SIZE)
    assert conv.condition_number(torch.Size(SIZE)) >= 1
    with pytest.raises(InputError, match="spatial sizes"):
        conv.log_abs_det((1, 2, 3, 4, 5))


def test_unbatched_and_empty_batches():
    conv = layer()
    x = torch.randn(3, *SIZE)
    assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)
    for kernel in (1, 3):
        conv = layer(kernel=kernel)
        empty = torch.zeros(0, 3, *SIZE, requires_grad=True)
        x = conv.inverse(conv(empty))
        assert x.shape == empty.shape
        x.sum().backward()
        assert not conv.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32_and_returns_half(dtype):
    conv = layer().to(dtype)
    x = torch.randn(2, 3, *SIZE).to(dtype)
    y = conv(x)
    x_hat = conv.inverse(y)
    assert x_hat.dtype == dtype
    full = layer()
    full.load_state_dict({k: v.float() for k, v in conv.state_dict().items()})
    assert torch.equal(x_hat, full.inverse(y.float()).to(dtype))
    assert (x_hat - x).abs().max() < 60 * torch.finfo(dtype).eps
    assert conv.log_abs_det(SIZE).dtype == torch.float32
    (x_hat.float().sum() + conv.log_abs_det(SIZE)).backward()
    assert conv.weight.grad.dtype == dtype and conv.weight.grad.isfinite().all()


def test_autocast_does_not_touch_the_inverse():
    conv = layer(kernel=1)
    x = torch.randn(2, 3, *SIZE)
    expected = conv.inverse(x)
    log_det = conv.log_abs_det(SIZE)
    for fresh in (conv, copy.deepcopy(conv)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert conv(x).dtype == torch.bfloat16
            assert torch.equal(fresh.inverse(x), expected)
            assert fresh.inverse(conv(x)).dtype == torch.bfloat16
            assert torch.equal(fresh.log_abs_det(SIZE), log_det)


def test_one_factorisation_serves_inverse_log_det_and_gradient(factored):
    conv = layer()
    for _ in range(3):
        y = torch.randn(2, 3, *SIZE, requires_grad=True)
        (conv.inverse(y).sum() + conv.log_abs_det(SIZE)).backward()
        conv.refresh()
    assert len(factored) == 1


def test_svd_only_where_it_is_needed(monkeypatch):
    shapes = []
    svd = torch.linalg.svd
    monkeypatch.setattr(torch.linalg, "svd", lambda a, **k: shapes.append(a.shape) or svd(a, **k))
    conv = layer(2, 2, (1, 3), bias=False, dtype=torch.float64)
    conv.inverse(torch.randn(1, 2, *SIZE, dtype=torch.float64))
    assert not shapes
    with torch.no_grad():  # [1, 0, -1] is blind to the mean and to the highest frequency of each row: 12 blocks of 30
        conv.weight.copy_(torch.eye(2)[:, :, None, None] * torch.tensor([1.0, 0.0, -1.0]))
    with pytest.warns(IllConditionedWarning, match=r"24 of 96"):
        conv.inverse(torch.randn(1, 2, *SIZE, dtype=torch.float64))
    assert shapes == [(12, 2, 2)]


def test_refresh_computes_now(monkeypatch):
    conv = layer()
    conv.refresh(SIZE)
    assert conv.operator(SIZE).seconds is not None
    conv.log_abs_det((4, 4))
    with torch.no_grad():
        conv.weight.mul_(2)
    conv.refresh()
    assert all(conv.operator(size).seconds is not None for size in (SIZE, (4, 4)))


def test_operator_is_a_snapshot():
    conv = layer(dtype=torch.float64)
    op = conv.operator(SIZE)
    x = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    y = op.forward(x)
    with torch.no_grad():
        conv.weight.zero_()
    assert torch.allclose(op.pseudo_inverse(y), x)
    report = op.report()
    assert report.shape == (144, 144) and report.rank == 144 and report.solver == "fft"
    assert report.relative_residual < 1e-14 and report.bytes > 0 and report.seconds >= 0
    assert "144 x 144, rank 144" in str(report)


def test_the_gradient_of_y_is_a_gradient_of_the_operator_too():
    op = layer(dtype=torch.float64).operator(SIZE)
    y = torch.randn(1, 3, *SIZE, dtype=torch.float64, requires_grad=True)
    g = torch.randn(1, 3, *SIZE, dtype=torch.float64)
    (grad,) = torch.autograd.grad(op.pseudo_inverse(y), y, g)
    assert torch.allclose(grad, op.pseudo_inverse_adjoint(g))


# -- never stale ---------------------------------------------------------------------------------------------------


def fused_step(conv):
    conv.log_abs_det(SIZE).backward()
    torch.optim.Adam(conv.parameters(), lr=0.1, fused=True).step()


def plain_step(conv):
    conv.log_abs_det(SIZE).backward()
    torch.optim.SGD(conv.parameters(), lr=0.1).step()


def copy_under_no_grad(conv):
    with torch.no_grad():
        conv.weight.copy_(conv.weight * 1.1)


CHANGES = {
    "data": lambda conv: conv.weight.data.mul_(1.1),
    "numpy": lambda conv: conv.weight.detach().numpy().__imul__(1.1),
    "copy_": copy_under_no_grad,
    "sgd": plain_step,
    "fused adam": fused_step,
    "load_state_dict": lambda conv: conv.load_state_dict(layer().state_dict()),
    "assign": lambda conv: conv.load_state_dict(layer().state_dict(), assign=True),
    "vector": lambda conv: nn.utils.vector_to_parameters(torch.randn(84), conv.parameters()),
    "new parameter": lambda conv: setattr(conv, "weight", nn.Parameter(conv.weight.detach() * 2)),
    "double": lambda conv: conv.double(),
    "there and back": lambda conv: conv.bfloat16().float(),
    "parametrize": lambda conv: invconv.parametrizations.bounded(conv, 0.1),
    "stride": lambda conv: setattr(conv, "groups", 1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("training", [True, False])
def test_no_way_to_change_a_weight_leaves_a_stale_answer(change, training):
    conv = layer().train(training)
    y = torch.randn(2, 3, *SIZE)
    conv.inverse(y), conv.log_abs_det(SIZE), conv.condition_number(SIZE)
    change(conv)
    fresh = layer(dtype=conv.weight.dtype)
    with torch.no_grad():
        fresh.weight.copy_(conv.weight)
        fresh.bias.copy_(conv.bias)
    y = y.to(conv.weight.dtype)
    assert torch.equal(conv.inverse(y), fresh.inverse(y))
    assert torch.equal(conv.log_abs_det(SIZE), fresh.log_abs_det(SIZE))
    assert torch.equal(conv.singular_values(SIZE), fresh.singular_values(SIZE))


def test_two_image_sizes_in_turn_and_a_bound_on_what_is_kept():
    conv = layer()
    for _ in range(2):
        for n in range(3, 3 + 2 * MOST):
            x = torch.randn(1, 3, n, n)
            assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)
    assert len(conv._cache) == MOST == 4  # as the documentation of `input_sizes` and `keep_fresh` has it


def test_inference_mode_first_training_after():
    for kernel in (1, 3):
        conv = layer(kernel=kernel)
        x = torch.randn(1, 3, *SIZE)
        with torch.inference_mode():
            conv.inverse(conv(x))
            conv.log_abs_det((5, 5))
        (conv.inverse(conv(x)).sum() + conv.log_abs_det(SIZE) + conv.log_abs_det((5, 5))).backward()
        assert conv.weight.grad.isfinite().all()


def test_copies_and_pickles_carry_no_cache():
    conv = layer()
    before = len(pickle.dumps(conv))
    x = torch.randn(1, 3, 32, 32)
    x_hat = conv.inverse(x)
    assert len(pickle.dumps(conv)) == before
    for twin in (copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert len(twin._cache) == 0
        with torch.no_grad():
            twin.weight.mul_(2)
        assert torch.allclose(conv.inverse(x), x_hat)
        assert torch.allclose(2 * twin.inverse(x), x_hat, atol=1e-5)


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (torch.zeros(1, 4, 6, 8), r"y has shape \(1, 4, 6, 8\), expected \(batch, 3, 6, 8\)"),
        (torch.zeros(1, 1, 6, 8), r"expected \(batch, 3, 6, 8\)"),
        (torch.zeros(6, 8), r"y has shape \(6, 8\)"),
        (torch.zeros(1, 3, 6, 8, dtype=torch.int64), "real floating point tensor, got torch.int64"),
        (torch.zeros(1, 3, 6, 8, dtype=torch.complex64), "real floating point tensor, got torch.complex64"),
        (torch.zeros(1, 3, 6, 8, dtype=torch.float64), r"float64 but the weight is torch.float32: call .to\("),
        (torch.zeros(1, 3, 6, 8, device="meta"), "is on meta but the weight is on cpu"),
    ],
)
def test_wrong_y(y, message):
    with pytest.raises(InputError, match=message):
        layer().inverse(y)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    conv = layer()
    conv.inverse(torch.randn(1, 3, *SIZE))
    with torch.no_grad():
        conv.weight[0, 0, 0, :2] = value
    for verb in (conv.inverse, lambda y: conv.log_abs_det(SIZE), lambda y: conv.condition_number(SIZE)):
        with pytest.raises(InputError, match="2 entries that are NaN or infinite"):
            verb(torch.randn(1, 3, *SIZE))


def test_a_kernel_that_is_singular_at_a_frequency_names_it():
    conv = layer(1, 1, (1, 3), bias=False)
    with torch.no_grad():  # 1 + 2 cos(2 pi k / 9) vanishes at k = 3
        conv.weight.fill_(1.0)
    with pytest.raises(SingularMapError, match=r"minus infinity.*frequency \(0, 3\) of the \(4, 9\) torus"):
        conv.log_abs_det((4, 9))
    with pytest.warns(IllConditionedWarning, match="8 of 36"):
        x = conv.inverse(torch.ones(1, 1, 4, 9))
    assert torch.allclose(x, torch.full_like(x, 1 / 3))
    assert conv.log_abs_det((4, 8)).isfinite()


def test_ill_conditioned_is_answered_with_the_numbers():
    conv = layer(1, 1, (1, 3), bias=False, rtol=0.0)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([1.0, -2.0, 1.0 + 1e-6]))
    with pytest.warns(
        IllConditionedWarning,
        match=r"relative error of [1-9]e-0[12] in torch.float32: rounding errors grow about [1-9]e\+0[56] times",
    ):
        conv.inverse(torch.ones(1, 1, 1, 8))


def test_rectangular_maps_have_no_determinant():
    with pytest.raises(NotSquareError, match=r"192 x 144 .* log_volume"):
        layer(3, 4).log_abs_det(SIZE)
    assert layer(3, 4).log_volume(SIZE).isfinite()


def test_zero_padding_that_pads_nothing_is_exact():
    for conv in (
        InvertibleConv2d(3, 3, 1),
        InvertibleConv2d(3, 12, 2, stride=2),
        InvertibleConv2d(3, 3, 1, padding="valid"),
    ):
        x = torch.randn(2, 3, *SIZE)
        assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layer().log_abs_det((0, 4)), "input_size must be 2 integers of at least 1"),
        (lambda: layer(kernel=9).log_abs_det((3, 3)), "more than once"),
        (lambda: layer(kernel=3, padding=0).log_abs_det((2, 4)), "below the kernel's extent"),
        (lambda: layer(rtol=2.0), r"rtol must lie in \[0, 1\)"),
        (lambda: layer(damping=-1.0), "damping must be"),
        (
            lambda: functional.conv_inverse(torch.zeros(1, 2, 4), torch.zeros(2, 2, 3), padding="full"),
            "padding must be",
        ),
        (lambda: functional.conv_log_abs_det(torch.zeros(2, 2, 3, dtype=torch.int32), (4,)), "real floating point"),
        (lambda: functional.conv_log_abs_det(torch.zeros(3, 2, 3), (4,), groups=2), "cannot be split"),
        (lambda: functional.conv_log_abs_det(torch.zeros(2, 2, 3), (4,), padding_mode="wrap"), "padding_mode must be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_functional_twins_agree_with_the_layer():
    conv = layer(2, 8, 2, stride=2, padding=0)
    options: dict[str, Any] = {"stride": 2, "padding_mode": "circular"}
    y = torch.randn(1, 8, 3, 4)
    assert torch.equal(functional.conv_inverse(y, conv.weight, conv.bias, **options), conv.inverse(y))
    for name in ("log_abs_det", "log_volume", "singular_values", "condition_number", "spectral_norm"):
        twin = getattr(functional, f"conv_{name}")(conv.weight, SIZE, **options)
        assert torch.equal(twin, getattr(conv, name)(SIZE))


@pytest.mark.parametrize(
    "name", ["operator", "inverse", "log_abs_det", "log_volume", "singular_values", "condition_number", "spectral_norm"]
)
def test_a_misspelt_keyword_is_named_with_its_function(name):
    first = torch.zeros(1, 2, 4) if name == "inverse" else torch.zeros(2, 2, 3)
    second = torch.zeros(2, 2, 3) if name == "inverse" else (4,)
    message = rf"conv_{name}\(\) got an unexpected keyword argument 'dampng'"
    with pytest.raises(TypeError, match=message):
        getattr(functional, f"conv_{name}")(first, second, padding=1, dampng=0.1)


def test_functions_take_every_option():
    weight = layer(bias=False, dtype=torch.float64).weight.detach()
    options: dict[str, Any] = dict(rtol=1e-9, damping=0.1, solver="direct", tol=1e-9, max_iter=5, volume_tol=1e-3)
    operator = functional.conv_operator(weight, SIZE, padding=1, padding_mode="circular", **options)
    assert operator.options == invconv.Options(**options)


def test_all_three_are_exported():
    assert {InvertibleConv1d, InvertibleConv2d, InvertibleConv3d} == set(LAYERS.values())
