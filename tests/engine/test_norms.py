"""The norm and the smallest singular value with their gradients, against the SVD of the dense matrix."""

from __future__ import annotations

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
each_end = pytest.mark.parametrize("end", ENDS)


@pytest.fixture
def iterated(monkeypatch):
    """All maps are as large ones: nothing is had from a decomposition."""
    monkeypatch.setattr(norms.Ends, "_exact", lambda self, largest: None)
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


@each_end
@pytest.mark.parametrize("case", [BORDERS[2], BORDERS[3], BORDERS[60], CASES[3], CASES[120]], ids=str)
def test_gradcheck(case, end, request):
    if case.mode != "circular":
        request.getfixturevalue("iterated")
    weight = case.layer().weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: ENDS[end][1](w, case.size, **case.options), weight, fast_mode=True)


@each_end
def test_second_derivatives_are_right_or_refused(end, monkeypatch):
    case = tables.Case((2, 2), (3, 3), (4, 5), mode="zeros")
    weight = case.layer().weight.detach().clone().requires_grad_()
    function = ENDS[end][1]
    assert torch.autograd.gradgradcheck(lambda w: function(w, case.size, **case.options), weight, fast_mode=True)
    monkeypatch.setattr(extremes, "is_small", lambda conv: False)
    value = function(weight, case.size, **case.options)
    (gradient,) = torch.autograd.grad(value, weight, create_graph=True)
    with pytest.raises(InputError, match="second derivatives"):
        gradient.sum().backward()


@each_end
def test_transforms_of_torch_func(end):
    case = tables.Case((2, 3), (3, 3), (4, 5), mode="reflect")
    weight, function = case.layer().weight.detach(), ENDS[end][1]

    def apply(w):
        return function(w, case.size, **case.options)

    wanted = by_autograd(case.layer(), case.size, ENDS[end][0])[1]
    assert torch.allclose(torch.func.grad(apply)(weight), wanted, rtol=1e-9)
    tangent = torch.randn_like(weight)
    assert torch.allclose(torch.func.jvp(apply, (weight,), (tangent,))[1], (wanted * tangent).sum(), rtol=1e-9)
    both = torch.func.vmap(apply)(torch.stack([weight, 2 * weight]))
    assert torch.allclose(both[1], 2 * both[0])


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
