"""The norm and the smallest singular value with their gradients, against the SVD of the dense matrix."""

from __future__ import annotations

from typing import Any

import pytest
import tables
import torch
from oracle import EPS, dense, matrix_of
from tables import BORDERS, CASES

import invconv
from invconv import InputError, InvertibleConv2d, SingularMapError, functional
from invconv.engine import extremes, norms

SPREAD = CASES[::2] + BORDERS[::2]
ENDS = {"largest": (0, functional.conv_spectral_norm), "smallest": (-1, functional.conv_smallest_singular_value)}
VERBS = {**{end: verb for end, (_, verb) in ENDS.items()}, "condition": functional.conv_condition_number}
each_end = pytest.mark.parametrize("end", ENDS)


@pytest.fixture
def iterated(monkeypatch):
    """All maps are as large ones: nothing is had from a decomposition."""
    monkeypatch.setattr(norms.SingularValues, "_exact", lambda self, largest: {})
    monkeypatch.setattr(extremes, "is_small", lambda conv: False)


def by_autograd(conv, size, which):
    """A singular value of the dense matrix, and the gradient that PyTorch has of it."""
    weight = conv.weight.detach().clone().requires_grad_()
    value = torch.linalg.svdvals(dense(conv, size, weight))[which]
    return value.detach(), torch.autograd.grad(value, weight)[0]


def stands_apart(values, which):
    """The distance of an end from its neighbour, relative to the largest."""
    return 1.0 if len(values) == 1 else float((values[which] - values[1 if which == 0 else -2]).abs() / values[0])


def check(case, end, accuracy):
    which, function = ENDS[end]
    conv, values = case.layer(), matrix_of(case).values
    weight = conv.weight.detach().clone().requires_grad_()
    value = function(weight, case.size, **case.options)
    (gradient,) = torch.autograd.grad(value, weight)
    assert abs(value - values[which]) <= 100 * EPS * values[0]
    # Homogeneous of degree one, whichever of several vectors gives it.
    assert float((gradient * weight.detach()).sum()) == pytest.approx(float(values[which]), rel=accuracy, abs=1e-11)
    gap = stands_apart(values, which)
    if gap > 1e-3 and values[which] > 1e-6 * values[0]:
        _, wanted = by_autograd(conv, case.size, which)
        assert (gradient - wanted).norm() <= accuracy / gap * values[0] / values[which] * wanted.norm()
        return True
    return False


@each_end
def test_ends_and_gradients_are_those_of_the_dense_matrix(end):
    simple = sum(check(case, end, 1e-11) for case in SPREAD)
    assert len(SPREAD) >= 150 and simple >= 100


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@each_end
def test_iterations_give_the_same(end, iterated):
    counted = 0
    for case in SPREAD:
        if end == "largest" or matrix_of(case).condition < 1e4:
            try:
                counted += check(case, end, 1e-9)
            except SingularMapError:
                assert end == "smallest" and not matrix_of(case).full
    assert counted >= 100


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", [BORDERS[2], BORDERS[3], BORDERS[60], CASES[3], CASES[120]], ids=str)
def test_gradcheck(case, verb, request):
    if case.mode != "circular":
        request.getfixturevalue("iterated")
    weight = case.layer().weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: VERBS[verb](w, case.size, **case.options), weight, fast_mode=True)


@pytest.mark.parametrize("verb", VERBS)
def test_second_derivatives_are_right_or_refused(verb, monkeypatch):
    case = tables.Case((2, 2), (3, 3), (4, 5), mode="zeros")
    weight = case.layer().weight.detach().clone().requires_grad_()
    function = VERBS[verb]
    assert torch.autograd.gradgradcheck(lambda w: function(w, case.size, **case.options), weight, fast_mode=True)
    monkeypatch.setattr(extremes, "is_small", lambda conv: False)
    value = function(weight, case.size, **case.options)
    (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
    with pytest.raises(InputError, match="second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("verb", VERBS)
def test_transforms_of_torch_func(verb):
    case = tables.Case((2, 3), (3, 3), (4, 5), mode="reflect")
    weight, function = case.layer().weight.detach(), VERBS[verb]

    def apply(w):
        return function(w, case.size, **case.options)

    leaf = weight.clone().requires_grad_()
    values = torch.linalg.svdvals(dense(case.layer(), case.size, leaf))
    (wanted,) = torch.autograd.grad(
        {"largest": values[0], "smallest": values[-1]}.get(verb, values[0] / values[-1]), leaf
    )
    assert torch.allclose(torch.func.grad(apply)(weight), wanted, rtol=1e-9)
    tangent = torch.randn_like(weight)
    assert torch.allclose(torch.func.jvp(apply, (weight,), (tangent,))[1], (wanted * tangent).sum(), rtol=1e-9)
    both = torch.func.vmap(apply)(torch.stack([weight, 2 * weight]))
    assert torch.allclose(both[1], both[0] if verb == "condition" else 2 * both[0])


@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_each_end_is_found_once_whoever_asks(mode, monkeypatch):
    asked = []
    for name in ("largest_pairs", "smallest_pairs"):
        found = getattr(extremes, name)
        monkeypatch.setattr(extremes, name, lambda *a, name=name, found=found: asked.append(name) or found(*a))
    found_by_blocks = norms._of_blocks
    monkeypatch.setattr(norms, "_of_blocks", lambda conv: asked.append("blocks") or found_by_blocks(conv))
    layer = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=mode)
    for _ in range(2):
        layer.condition_number((12, 14)).backward()
        layer.spectral_norm((12, 14)), layer.smallest_singular_value((12, 14))
        layer.operator((12, 14)).condition_number()
    assert sorted(asked) == (["blocks"] if mode == "circular" else ["largest_pairs", "smallest_pairs"])


@pytest.mark.parametrize("k", [1, 2])
def test_the_ends_of_large_maps_are_kept_and_the_outermost_differentiable(k, monkeypatch):
    case = tables.Case((2, 2), (3, 3), (6, 7), mode="zeros")
    weight = case.layer().weight.detach().requires_grad_()
    wanted = torch.linalg.svdvals(dense(case.layer(), case.size, weight))
    monkeypatch.setattr(extremes, "is_small", lambda conv: False)
    monkeypatch.setattr(extremes, "ALL_UP_TO_ROWS", 0)
    asked, found = [], extremes.smallest_pairs
    monkeypatch.setattr(extremes, "smallest_pairs", lambda *a: asked.append(a) or found(*a))
    operator = functional.conv_operator(weight, case.size, **case.options)
    for _ in range(2):
        assert torch.allclose(operator.singular_values(k), torch.cat([wanted[:k], wanted[-k:]]), rtol=1e-6)
    assert len(asked) == 1
    values = functional.conv_singular_values(weight, case.size, k, **case.options)
    assert values.requires_grad == (k == 1)
    if k == 1:
        (gradient,) = torch.autograd.grad(values @ torch.tensor([1.0, 2.0]).double(), weight)
        assert torch.allclose(gradient, torch.autograd.grad(wanted[0] + 2 * wanted[-1], weight)[0], rtol=1e-8)


SEPARABLE = {
    "one blur": tables.Case((1, 1), (3, 3), (9, 11), mode="zeros"),
    "groups": tables.Case((3, 6), (3, 2), (6, 7), groups=3, mode="reflect"),
    "tall": tables.Case((2, 3), (3, 3), (6, 7), mode="zeros"),
    "tall and wide": tables.Case((2, 3), (4, 4), (6, 7), padding=0, mode="zeros"),
}


@pytest.mark.parametrize("name", SEPARABLE)
def test_the_ends_of_outer_products(name, monkeypatch):
    case, (groups, out) = SEPARABLE[name], (SEPARABLE[name].groups, SEPARABLE[name].channels[1])
    geometry: Any = case.options
    factors = [torch.randn(groups, out // groups, case.channels[0] // groups, 1, 1).double()]
    factors += [torch.randn(groups, 1, 1, case.kernel[0], 1).double()]
    factors += [torch.randn(groups, 1, 1, 1, case.kernel[1]).double()]
    weight = (factors[0] * factors[1] * factors[2]).flatten(0, 1).requires_grad_()
    values = torch.linalg.svdvals(functional.conv_operator(weight, case.size, **geometry).to_dense())

    def value_and_gradient(verb):
        value = VERBS[verb](weight, case.size, **geometry)
        return value.item(), torch.autograd.grad(value, weight)[0]

    wanted = {verb: value_and_gradient(verb) for verb in VERBS}
    monkeypatch.setattr(extremes, "is_small", lambda conv: False)
    monkeypatch.setattr(extremes, "groups_are_small", lambda conv: False)
    if values[-1] < 1e-12 * values[0]:
        assert functional.conv_smallest_singular_value(weight, case.size, **geometry) == 0
        assert functional.conv_condition_number(weight, case.size, **geometry).isinf()
        return
    # The decomposition of the factors tells nothing of kernels that are no outer products.
    assert not functional.conv_singular_values(weight, case.size, 2, **geometry).requires_grad
    for verb, (number, by_weight) in wanted.items():
        value, gradient = value_and_gradient(verb)
        assert value == pytest.approx(number, rel=1e-9)
        assert (gradient - by_weight).norm() <= 1e-7 * by_weight.norm()


def test_the_smallest_of_many_groups():
    """The matrix of all groups is large, and that of each is small."""
    for case in (
        tables.Case((6, 6), (3, 3), (12, 13), groups=3, mode="zeros"),
        tables.Case((8, 4), (3, 2), (11, 12), groups=4, mode="reflect"),
        tables.Case((4, 8), (2, 2), (12, 14), groups=4, stride=2, mode="zeros"),
    ):
        conv = case.layer()
        assert max(dense(conv, case.size).shape) > extremes.ALL_UP_TO_ROWS
        check(case, "smallest", 1e-11)


def test_no_answer_depends_on_what_was_asked_before(iterated):
    """The vector of another group is the one of the next weight."""
    conv = tables.Case((2, 2), (3, 3), (6, 7), groups=2, mode="zeros").layer()
    for factor in (10.0, 1e-2):
        with torch.no_grad():
            conv.weight[0] *= factor
            values = torch.linalg.svdvals(dense(conv, (6, 7)))
            assert conv.spectral_norm((6, 7)) == pytest.approx(values[0].item(), rel=1e-12)
            assert conv.smallest_singular_value((6, 7)) == pytest.approx(values[-1].item(), rel=1e-9)


def test_scale_and_dtype():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        conv = InvertibleConv2d(3, 3, 3, padding=1).to(dtype)
        norm = conv.spectral_norm((5, 5))
        wanted = torch.linalg.svdvals(dense(conv, (5, 5)))
        assert norm.dtype == torch.float32 and norm.item() == pytest.approx(wanted[0].item(), rel=1e-5)
        norm.backward()
        assert conv.weight.grad.dtype == dtype
    weight = torch.randn(2, 2, 3, 3)
    small = functional.conv_spectral_norm(weight, (5, 5))
    for factor in (2.0**-100, 2.0**100):
        assert functional.conv_spectral_norm(weight * factor, (5, 5)) == pytest.approx(factor * small.item(), rel=1e-5)
    assert functional.conv_spectral_norm(torch.zeros(2, 2, 3, 3), (5, 5)) == 0


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
def test_a_large_singular_map_is_refused(iterated):
    conv = InvertibleConv2d(2, 2, 3, padding=1).double()
    with torch.no_grad():
        conv.weight[1] = conv.weight[0]
    with pytest.raises(SingularMapError) as caught:
        conv.smallest_singular_value((6, 6))
    assert caught.value.reached is None or caught.value.reached < 1e-6
    assert invconv.functional.conv_spectral_norm(conv.weight, (6, 6), padding=1) > 0
