"""Answers drawn to an image v, and how strongly: against the dense matrix, at every border, with all derivatives."""

import math
from typing import Any

import pytest
import torch
from oracle import EPS, dense, matrix_of, relative
from tables import BORDERS, CASES, Case
from torch import Tensor, nn

from invconv import InputError, InvertibleConv2d, functional

GEOMETRIES = CASES[::4] + BORDERS[::4]
NAMES = [str(case) for case in GEOMETRIES]


def problem(case: Case) -> tuple:
    """A layer, outputs that no image has, and an image to be drawn to."""
    conv, v = case.layer(), case.images(seed=2)
    with torch.no_grad():
        y = torch.randn_like(conv(v))
    return conv, y, v


def columns(images: Tensor) -> Tensor:
    return images.flatten(1).T


@pytest.mark.parametrize("case", GEOMETRIES, ids=NAMES)
@torch.no_grad()
def test_the_proximal_operator_is_that_of_the_matrix(case):
    conv, y, v = problem(case)
    matrix, bias = matrix_of(case), conv.bias.view(-1, *(1,) * case.dims)
    for damping in (0.03, 2.0):
        expected = columns(v) + matrix.tikhonov(damping) @ (columns(y - bias) - matrix.a @ columns(v))
        largest = matrix.values[0].item()
        bound = 200 * EPS * math.hypot(largest, damping) / damping
        x = conv.proximal(y, v, damping)
        operator = conv.operator(case.size)
        assert relative(columns(x) - expected, expected) < bound
        assert relative(columns(operator.proximal(y - bias, v, damping)) - expected, expected) < bound
        found = functional.conv_proximal(y, v, conv.weight, conv.bias, damping=damping, **case.options)
        assert relative(columns(found) - expected, expected) < bound
        expected = matrix.tikhonov(damping) @ columns(y)
        assert relative(columns(operator.proximal(y, damping=damping)) - expected, expected) < bound


@pytest.mark.parametrize("case", GEOMETRIES, ids=NAMES)
@torch.no_grad()
def test_back_projection_is_that_of_the_matrix(case):
    matrix = matrix_of(case)
    if not matrix.full:
        pytest.skip("no full rank")
    conv, y, v = problem(case)
    expected = columns(v) + matrix.pinv @ (columns(y - conv.bias.view(-1, *(1,) * case.dims)) - matrix.a @ columns(v))
    found = functional.conv_back_project(y, v, conv.weight, conv.bias, **case.options)
    conv.damping = 0.5  # changes nothing
    for x in (found, conv.back_project(y, v)):
        assert relative(columns(x) - expected, expected) < 10 * matrix.bound * matrix.condition


GRADIENTS = [
    Case((1, 1), (3, 3), (3, 3)),
    Case((1, 2), (3, 3), (3, 2), mode="zeros"),
    Case((2, 1), (3, 2), (2, 3), mode="reflect"),
    Case((1, 1), (3, 2), (4, 4), padding=0, mode="zeros"),
    Case((1, 4), (3, 3), (2, 4), stride=2, mode="zeros"),
    Case((2, 2), (3,), (5,), mode="replicate"),
    Case((1, 2), (2, 2, 2), (2, 2, 2), mode="zeros"),
]


@pytest.mark.parametrize("case", GRADIENTS, ids=str)
def test_derivatives_by_all_four(case):
    conv, y, v = problem(case)
    damping = torch.tensor(0.4, dtype=torch.float64)
    leaves = [t.detach().clone().requires_grad_() for t in (y[:1], v[:1], conv.weight, conv.bias, damping)]

    def layer(y, v, weight, bias, damping):
        return torch.func.functional_call(conv, {"weight": weight, "bias": bias}, (y, v, damping))

    conv.forward = conv.proximal
    torch.autograd.gradcheck(layer, leaves, check_forward_ad=True)
    operator = conv.operator(case.size)
    torch.autograd.gradcheck(operator.proximal, [leaves[i] for i in (0, 1, 4)], check_forward_ad=True)
    torch.autograd.gradcheck(
        lambda y, v, weight: functional.conv_back_project(y, v, weight, **case.options), leaves[:3]
    )


@pytest.mark.parametrize("case", GRADIENTS[:4], ids=str)
def test_second_derivatives(case):
    conv, y, v = problem(case)
    damping = torch.tensor([0.6], dtype=torch.float64)
    y, v, damping = (t.detach()[:1].clone().requires_grad_() for t in (y, v, damping))
    weight = conv.weight.detach().clone().requires_grad_()

    def proximal(y, v, weight, damping):
        return functional.conv_proximal(y, v, weight, damping=damping, **case.options)

    torch.autograd.gradgradcheck(proximal, [y, v, weight, damping])
    torch.autograd.gradgradcheck(conv.operator(case.size).proximal, [y, v, damping])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_dtypes(dtype):
    conv = InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float32)
    y, v = torch.rand(1, 2, 6, 6, dtype=dtype), torch.rand(1, 2, 6, 6)
    damping = torch.tensor(0.3, requires_grad=True)
    x = conv.proximal(y, v, damping)
    x.float().sum().backward()
    assert x.dtype == dtype and damping.grad is not None and damping.grad.dtype == torch.float32
    matrix = dense(conv, (6, 6))
    slope = (
        -2
        * 0.3
        * torch.linalg.solve(
            matrix.T @ matrix + 0.09 * torch.eye(72, dtype=torch.float64),
            columns(x.double().detach() - v.double()),
        )
    )
    assert (
        abs(damping.grad.item() - slope.sum().item()) < (1e-4 if dtype == torch.float32 else 0.02) * slope.abs().sum()
    )


def test_a_change_of_the_weight_is_seen():
    conv, v = InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float64), torch.rand(1, 2, 6, 6, dtype=torch.float64)
    y = torch.rand(1, 2, 6, 6, dtype=torch.float64)
    before = conv.proximal(y, v, 0.2), conv.back_project(y, v)
    with torch.no_grad():
        conv.weight.mul_(2)
    fresh = InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float64)
    fresh.load_state_dict(conv.state_dict())
    for old, now, anew in zip(
        before,
        (conv.proximal(y, v, 0.2), conv.back_project(y, v)),
        (fresh.proximal(y, v, 0.2), fresh.back_project(y, v)),
        strict=True,
    ):
        assert torch.equal(now, anew) and not torch.allclose(old, now)


def test_a_parametrized_layer_is_drawn_by_the_weight_that_it_has():
    conv = nn.utils.parametrizations.weight_norm(InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float64))
    y, v = torch.rand(2, 1, 2, 6, 6, dtype=torch.float64)
    found = conv.proximal(y, v, 0.2)
    torch.testing.assert_close(found, conv.operator((6, 6)).proximal(y, v, 0.2))
    found.sum().backward()
    assert all(p.grad is not None for name, p in conv.named_parameters() if "weight" in name)


@pytest.mark.parametrize("damping", [0, -0.1, math.inf, math.nan, "much", torch.ones(2), torch.tensor(-1.0)])
def test_dampings_that_are_none_are_refused(damping):
    conv, images = InvertibleConv2d(1, 1, 3, padding=1), torch.rand(1, 1, 6, 6)
    for call in (
        lambda: conv.proximal(images, images, damping),
        lambda: conv.operator((6, 6)).proximal(images, images, damping),
        lambda: functional.conv_proximal(images, images, conv.weight, padding=1, damping=damping),
    ):
        with pytest.raises(InputError, match="damping must be"):
            call()


def test_bad_input_is_named():
    conv, images = InvertibleConv2d(1, 1, 5), torch.rand(1, 1, 9, 9)
    with pytest.raises(InputError, match="damping must be a finite number above 0, got 0"):
        conv.proximal(images, images)  # the layer has none
    with pytest.raises(InputError, match=r"y has shape .* expected \(batch, 1, 5, 5\)"):
        conv.proximal(images, images, 0.1)
    with pytest.raises(InputError, match="v must be a batch of images of 2 axes"):
        conv.proximal(images, images[0], 0.1)
    with pytest.raises(InputError, match=r"v has shape .* expected \(batch, 1, 9, 9\)"):
        conv.proximal(torch.rand(1, 1, 5, 5), torch.rand(1, 2, 9, 9), 0.1)
    with pytest.raises(InputError, match="kernel's extent 5"):
        conv.proximal(images, torch.rand(1, 1, 4, 9), 0.1)
    with pytest.raises(InputError, match="v must be a batch of images of 2 axes, got NoneType"):
        functional.conv_back_project(images, None, conv.weight)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unexpected keyword argument 'dampng'"):
        functional.conv_back_project(images, images, conv.weight, dampng=1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"which torch\.func hides"):
        torch.func.grad(lambda d: conv.proximal(torch.rand(1, 1, 5, 5), images, d).sum())(torch.tensor(0.1))


# -- the choice of the damping -------------------------------------------------------------------------------------


def blurred(noise: float = 0.01) -> tuple:
    """A line blurred by a Gaussian, with noise, and its matrix."""
    taps = torch.exp(-(torch.arange(-7, 8, dtype=torch.float64) ** 2) / 8)
    operator = functional.conv_operator((taps / taps.sum())[None, None], (100,), padding=7)
    x = torch.sin(torch.arange(100, dtype=torch.float64) / 9)[None, None]
    y = operator.forward(x) + noise * torch.randn(1, 1, 100, generator=torch.Generator().manual_seed(0)).double()
    return operator, y


def curve(operator, y: Tensor, damping: float) -> tuple[float, float, float]:
    """Residual, size of the answer, and trace of I - A P, by the SVD."""
    u, s, _ = torch.linalg.svd(operator.to_dense())
    parts, kept = u.T @ y.flatten(), s**2 / (s**2 + damping**2)
    rest = ((1 - kept) * parts).norm().item()
    return rest, (kept / s * parts).norm().item(), (1 - kept).sum().item()


GRID = [10 ** (-i / 24) for i in range(97)]


def test_discrepancy_leaves_the_noise():
    operator, y = blurred()
    for noise in (1e-2, 3e-2, 0.3):
        damping = operator.choose_damping(y, "discrepancy", noise)
        assert abs(curve(operator, y, damping)[0] / 10 / noise - 1) < 0.03
    for given, message in [(10.0, "explains all of y"), (1e-7, "no damping leaves"), (None, "needs noise")]:
        with pytest.raises(InputError, match=message):
            operator.choose_damping(y, "discrepancy", given)


def test_cross_validation_is_that_of_the_matrix():
    operator, y = blurred()
    damping = operator.choose_damping(y, "gcv")

    def value(d):
        rest, _, trace = curve(operator, y, d)
        return (rest / trace) ** 2

    assert abs(math.log(damping / min(GRID, key=value))) < 0.2


def test_the_corner_is_that_of_the_matrix():
    operator, y = blurred()

    def curvature(d, h=1e-3):
        points = [[math.log(v) for v in curve(operator, y, d * math.exp(i * h))[:2]] for i in (-1, 0, 1)]
        first = [(c - a) / (2 * h) for a, c in zip(points[0], points[2], strict=True)]
        second = [(a + c - 2 * b) / h**2 for a, b, c in zip(*points, strict=True)]
        return (first[0] * second[1] - first[1] * second[0]) / math.hypot(*first) ** 3

    assert abs(math.log(operator.choose_damping(y, "l-curve") / max(GRID, key=curvature))) < 0.2


def test_a_curve_without_a_corner_is_said_to_have_none():
    operator = functional.conv_operator(torch.ones(1, 1, 1, dtype=torch.float64), (50,))
    with pytest.raises(InputError, match=r"has no corner .* use method='gcv'"):
        operator.choose_damping(torch.rand(1, 1, 50, dtype=torch.float64), "l-curve")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_no_damping_is_chosen_where_there_is_nothing_but_rounding(dtype):
    conv = InvertibleConv2d(1, 1, 5, padding=2, bias=False, dtype=torch.float64)
    v = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    y, weight, eps = conv(v).detach(), conv.weight.detach(), torch.finfo(dtype).eps
    compute = torch.promote_types(dtype, torch.float32)
    options: Any = {"padding": 2, "method": "discrepancy"}
    for off, refused in ((0.0, True), (1e3 * eps, False)):
        outputs = (y + off * y.std() * torch.randn_like(y)).to(dtype)
        arguments = outputs, v.to(compute), weight.to(compute)
        noise = 0.5 * max(off, eps) * y.std().item()
        if refused:
            with pytest.raises(InputError, match=r"\|\|y - A v\|\| is .*answer is v"):
                functional.conv_choose_damping(*arguments, **options, noise=noise)
        else:
            assert functional.conv_choose_damping(*arguments, **options, noise=noise) > 0


def test_a_layer_chooses_as_its_operator_does():
    conv = InvertibleConv2d(1, 1, 5, padding=2, dtype=torch.float64)
    nn.init.constant_(conv.weight, 1 / 25)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, 0.3)
    v, y = torch.rand(2, 1, 1, 16, 16, dtype=torch.float64)
    expected = conv.operator((16, 16)).choose_damping(y - 0.3, "discrepancy", 0.2, v)
    assert conv.choose_damping(y, v, "discrepancy", 0.2) == expected
    with pytest.raises(InputError, match="method must be one of"):
        conv.choose_damping(y, v, "guess")
    options: Any = {"padding": 2, "method": "discrepancy", "noise": 0.2}
    assert functional.conv_choose_damping(y, v, conv.weight, conv.bias, **options) == expected
    with pytest.raises(InputError, match="answer is v"):
        conv.choose_damping(torch.zeros_like(y) + 0.3, torch.zeros_like(v))
    with pytest.raises(InputError, match="v have to be finite"):
        conv.choose_damping(y, v / 0)
    nn.init.zeros_(conv.weight)
    with pytest.raises(InputError, match="kernel is zero"):
        conv.choose_damping(y, v)


def test_an_operator_keeps_a_few_twins():
    operator = functional.conv_operator(torch.rand(1, 1, 3, 3), (6, 6), padding=1)
    assert operator.damped(0.0) is operator and operator.damped(0.5) is operator.damped(0.5)
    kept = operator.damped(0.5)
    for damping in (0.1, 0.2, 0.3, 0.4):
        operator.damped(damping)
    assert operator.damped(0.5) is not kept


def test_images_that_are_too_small_are_refused_with_what_to_do():
    kernel = torch.ones(1, 1, 5, 5, dtype=torch.float64) / 25
    with pytest.raises(
        InputError, match=r"input size \(3, 3\) .* extent 5: use a larger image, more padding or a smaller"
    ):
        functional.conv_operator(kernel, (3, 3), damping=0.1)
    with pytest.raises(InputError, match="at most 1 there; use a larger image or less padding"):
        functional.conv_operator(kernel, (2, 2), padding=2, padding_mode="reflect", damping=0.1)


def test_an_even_kernel_at_reflecting_borders_is_answered():
    kernel = torch.ones(1, 1, 4, 4, dtype=torch.float64) / 16
    operator = functional.conv_operator(kernel, (7, 6), padding="same", padding_mode="reflect", damping=0.1)
    y = torch.rand(1, 1, 7, 6, dtype=torch.float64)
    a = operator.conv.to_dense()
    expected = torch.linalg.solve(a.T @ a + 0.01 * torch.eye(42, dtype=a.dtype), a.T @ columns(y))
    assert relative(columns(operator.pseudo_inverse(y)) - expected, expected) < 1e-11
