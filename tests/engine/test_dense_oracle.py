"""Every claim about A, against the explicit matrix of `torch.nn.Conv*d` in float64.

Errors are relative and bounded by CONSTANT * eps * condition number; the first-order theory has the same form.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from oracle import CONSTANT, EPS, dense, matrix_of, relative, solution, volume_gradient
from tables import BORDERS, CASES, Case

import invconv
from invconv import IllConditionedWarning, NotSquareError, SingularMapError, functional

every_case = pytest.mark.parametrize("case", CASES + BORDERS, ids=str)


def check_against_dense(case: Case, cut: bool = False) -> None:
    conv = case.layer()
    operator = conv.operator(case.size)
    known = matrix_of(case)
    matrix, values, rank, full = known.a, known.values, known.rank, known.full
    condition, bound = known.condition, known.bound
    assert bound < 1e-8, "the table must not hold cases that prove nothing"

    assert operator.shape == matrix.shape
    assert relative(operator.to_dense() - matrix, matrix) < CONSTANT * EPS
    x = case.images()
    y = conv(x).detach()
    flat_x, flat_y = x.flatten(1), torch.randn_like(y).flatten(1)
    z = flat_y.view_as(y)
    assert relative(operator.forward(x).flatten(1) - flat_x @ matrix.T, flat_x @ matrix.T) < CONSTANT * EPS
    assert relative(operator.adjoint(z).flatten(1) - flat_y @ matrix, flat_y @ matrix) < CONSTANT * EPS

    inverse = known.pinv
    expected = flat_y @ inverse.T
    with contextlib.nullcontext() if full else pytest.warns(IllConditionedWarning, match=f"{len(values) - rank} of"):
        x_hat = operator.pseudo_inverse(z).flatten(1)
    assert relative(x_hat - expected, expected) < bound
    y_hat = operator.pseudo_inverse_adjoint(x).flatten(1)
    assert relative(y_hat - flat_x @ inverse, flat_x @ inverse) < bound
    report = operator.report()
    assert report.rank == rank and report.relative_residual < bound

    assert relative(operator.singular_values() - values, values) < CONSTANT * EPS
    if full:
        volume = values.log().sum()
        # A sum over the places of the larger side.  Where windows cut large entries off a torus, these cancel.
        bound = CONSTANT * EPS * max(condition, operator.solver.growth if cut else 0)
        assert abs(operator.log_volume() - volume) < bound * max(matrix.shape)
        assert abs(conv.log_volume(case.size) - volume) < bound * max(matrix.shape)
        assert math.isclose(conv.condition_number(case.size).item(), condition, rel_tol=1e-9)
        # A bound on the torus, exact for the explicit matrix, else an estimate in the root mean square.
        shares = {"fft and ring": 0.05, "fft and symmetric ring": 0.05, "triangular": 0.5}
        share = shares.get(report.solver, 1 - 1e-9)
        assert report.condition >= share * condition
    else:
        with pytest.raises(SingularMapError, match="minus infinity"):
            operator.log_volume()
    if matrix.shape[0] != matrix.shape[1]:
        with pytest.raises(NotSquareError, match="log_volume"):
            conv.log_abs_det(case.size)
    elif full:
        assert abs(conv.log_abs_det(case.size) - torch.linalg.slogdet(matrix).logabsdet) < bound * len(values)


@every_case
def test_every_verb_equals_the_dense_matrix(case):
    check_against_dense(case)


@every_case
def test_moore_penrose(case):
    conv = case.layer()
    operator = conv.operator(case.size)
    known = matrix_of(case)
    matrix, bound = known.a, known.bound
    rows, columns = operator.shape
    images = torch.eye(rows, dtype=torch.float64).view(rows, -1, *operator.output_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)
        inverse = operator.pseudo_inverse(images).flatten(1).T
    assert inverse.shape == (columns, rows)
    assert relative(matrix @ inverse @ matrix - matrix, matrix) < bound
    assert relative(inverse @ matrix @ inverse - inverse, inverse) < bound
    assert relative((matrix @ inverse).T - matrix @ inverse, matrix @ inverse) < bound
    assert relative((inverse @ matrix).T - inverse @ matrix, inverse @ matrix) < bound


@every_case
def test_gradients(case):
    """By y, weight and bias, against those that PyTorch finds for the inverse of the matrix."""
    conv, matrix = case.layer(), matrix_of(case)
    if not matrix.full:
        pytest.skip("where the rank is not full the pseudo-inverse is not continuous")
    leaves = (conv(case.images()).detach() + 0.1).requires_grad_(), conv.weight, conv.bias
    grad = case.images(seed=3)
    operator = conv.operator(case.size)
    plain = operator.conv
    for damping in (0.0, 0.3):
        x = functional.conv_inverse(*leaves, case.size, damping=damping, **case.options)
        expected = solution(plain, *leaves, damping)
        bound = CONSTANT * EPS * (torch.linalg.cond(matrix.gram(damping)).item() if damping else matrix.condition**2)
        gradients, values = (torch.autograd.grad(answer, leaves, grad) for answer in (x, expected))
        for gradient, value in zip(gradients, values, strict=True):
            assert relative(gradient - value, value) < bound
    gradient = torch.autograd.grad(functional.conv_log_volume(conv.weight, case.size, **case.options), conv.weight)[0]
    value = volume_gradient(plain)
    # As the volume itself: where windows cut large entries off a torus, these cancel.
    bound = CONSTANT * EPS * max(matrix.condition, operator.solver.growth)
    assert relative(gradient - value, value) < bound * matrix.condition


FEW = [
    Case((2, 2), (3, 3), (3, 2)),
    Case((2, 3), (3,), (5,)),
    Case((3, 2), (3,), (5,)),
    Case((1, 3), (3,), (9,), stride=3),
    Case((1, 1), (2, 2, 2), (2, 3, 2)),
    Case((2, 2), (3,), (5,), mode="zeros"),
    Case((3, 2), (3,), (5,), mode="reflect"),
    Case((1, 3), (3,), (5,), padding=3, mode="zeros"),
]


@pytest.mark.parametrize("case", FEW, ids=str)
def test_gradients_entry_by_entry(case):
    """By finite differences, which know of no formula, and as `gradcheck` asks where some outputs have no gradient."""
    conv = case.layer()
    y = (conv(case.images(1)).detach() + 0.1).requires_grad_()
    for damping in (0.0, 0.5):
        assert torch.autograd.gradcheck(
            lambda y, w, b, d=damping: functional.conv_inverse(y, w, b, case.size, damping=d, **case.options),
            (y, conv.weight, conv.bias),
        )
    assert torch.autograd.gradcheck(lambda w: functional.conv_log_volume(w, case.size, **case.options), (conv.weight,))


@pytest.mark.parametrize("case", CASES[::7] + BORDERS[::5], ids=str)
def test_damping_is_tikhonov(case):
    conv = case.layer()
    conv.damping = 0.2
    matrix = matrix_of(case)
    y = torch.randn(2, matrix.a.shape[0], dtype=torch.float64)
    operator = conv.operator(case.size)
    x_hat = operator.pseudo_inverse(y.view(2, -1, *operator.output_size)).flatten(1)
    expected = y @ matrix.tikhonov(0.2).T
    assert relative(x_hat - expected, expected) < CONSTANT * EPS * torch.linalg.cond(matrix.gram(0.2)).item()


@pytest.mark.parametrize("case", CASES[::9] + BORDERS[::9], ids=str)
def test_rtol_is_that_of_pinv(case):
    conv = case.layer()
    values = matrix_of(case).values
    # Cut in the widest gap of the middle of the spectrum, where it is well defined.
    middle = values[len(values) // 4 : 3 * len(values) // 4 + 1]
    gap = int((middle[:-1] / middle[1:]).argmax())
    conv.rtol = ((middle[gap] * middle[gap + 1]).sqrt() / values[0]).item()
    inverse = torch.linalg.pinv(matrix_of(case).a, rtol=conv.rtol)
    operator = conv.operator(case.size)
    y = torch.randn(2, inverse.shape[1], dtype=torch.float64)
    with pytest.warns(IllConditionedWarning, match="cut off"):
        x_hat = operator.pseudo_inverse(y.view(2, -1, *operator.output_size)).flatten(1)
    assert relative(x_hat - y @ inverse.T, y @ inverse.T) < 1e-9


@st.composite
def cyclic_layers(draw):
    dims = draw(st.integers(1, 3))
    most = {1: 12, 2: 6, 3: 4}[dims]
    groups = draw(st.sampled_from([1, 1, 2]))
    stride = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(dims))
    size = tuple(s * draw(st.integers(1, max(1, most // s))) for s in stride)
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(dims))
    dilation = draw(st.integers(1, 2))
    padding: Any = []
    for k, s, n in zip(kernel, stride, size, strict=True):
        # All paddings for which the layer is cyclic, and that `torch.nn.Conv*d` can express and take.
        fitting = [p for p in range(min(n, 2 * k) + 1) if (n + 2 * p - (k - 1) * dilation - 1) // s + 1 == n // s]
        padding.append(draw(st.sampled_from(fitting)) if fitting else None)
    if None in padding:
        stride, padding = (1,) * dims, None
        if any((k - 1) * dilation - (k - 1) * dilation // 2 > n for k, n in zip(kernel, size, strict=True)):
            kernel = (1,) * dims
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 4))
    return Case(channels, kernel, size, stride, dilation, groups, None if padding is None else tuple(padding))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(case=cyclic_layers())
def test_any_cyclic_layer_equals_the_dense_matrix(case):
    conv = case.layer()
    assert conv.operator(case.size).solver.name == "fft"
    check_against_dense(case)


@st.composite
def layers_with_borders(draw):
    dims = draw(st.integers(1, 3))
    most = {1: 10, 2: 5, 3: 3}[dims]
    mode = draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    groups = draw(st.sampled_from([1, 1, 2]))
    stride = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(dims))
    dilation = draw(st.integers(1, 2))
    size, kernel, padding = [], [], []
    for _ in range(dims):
        n = draw(st.integers(2, most))
        amount = draw(st.integers(0, {"zeros": 4, "reflect": n - 1}.get(mode, n)))
        size.append(n)
        padding.append(amount)
        kernel.append(draw(st.integers(1, min(4, (n + 2 * amount - 1) // dilation + 1))))
    channels = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 4))
    return Case(channels, tuple(kernel), tuple(size), stride, dilation, groups, tuple(padding), mode)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(case=layers_with_borders())
def test_any_layer_with_borders_equals_the_dense_matrix(case):
    # A border can make the matrix as ill-conditioned as it likes, and then the reference is no better than we are.
    assume(matrix_of(case).bound < 1e-8)
    check_against_dense(case, cut=True)


def test_the_table_is_wide_enough():
    assert len(set(CASES)) >= 200
    assert sum(matrix_of(case).full for case in CASES) >= 200
    assert len(set(BORDERS)) >= 300
    solvers = Counter(case.layer().operator(case.size).solver.name for case in BORDERS)
    assert solvers["fft and ring"] >= 60 and solvers["svd"] >= 150


def test_oracle_is_not_fooled():
    """A wrong weight must fail the comparison that all tests above rest on."""
    case = Case((2, 2), (3, 3), (4, 4))
    conv = case.layer()
    operator = conv.operator(case.size)
    with torch.no_grad():
        conv.weight[0, 0, 0, 0] += 1e-6
    assert relative(operator.to_dense() - dense(conv, case.size), operator.to_dense()) > 1e-8
    assert relative(conv.operator(case.size).to_dense() - dense(conv, case.size), operator.to_dense()) < 1e-14
    assert invconv.__version__
