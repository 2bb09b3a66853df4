"""What is said of an answer is near the truth, by the dense matrix: errors, conditions, the bias of damping."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tables import NEIGHBOURS, taps

from invconv import IllConditionedWarning, Options, SingularMapError, functional
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.krylov import Krylov
from invconv.geometry import Geometry


def _kernel(seed, *shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _nearly_singular(seed, level, dtype=torch.float64):
    weight = _kernel(seed, 2, 2, 3, 3)
    weight[0] = weight[1] + level * weight[0]
    return weight.to(dtype)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("seed", [54, 106, 155, 216, 235])
def test_no_chance_decides_whether_digits_were_lost(seed):
    """Float32 kernels of three taps at 29 pixels, to which one known image is kinder than most."""
    weight = torch.randn(1, 1, 3, generator=torch.Generator().manual_seed(seed))
    operator = functional.conv_operator(weight, (29,), padding=1)
    a, eps = operator.to_dense().double(), torch.finfo(torch.float32).eps
    expected = 0.3 * eps * torch.linalg.norm(a) * torch.linalg.norm(torch.linalg.inv(a)) / 29
    try:
        operator.prepare()
    except SingularMapError:
        assert expected > 0.05
    else:
        assert expected / 10 < max(operator.report().relative_error, eps) < 10 * max(expected.item(), eps)
        if expected > 0.1:
            assert operator.solver.error >= 1e-2, "a warning was due"


@pytest.mark.parametrize("outputs", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("weights", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
def test_outputs_of_fewer_digits_than_the_layer_are_judged_by_their_own(mode, weights, outputs):
    if torch.finfo(outputs).eps < torch.finfo(weights).eps:
        pytest.skip("refused: outputs have more digits than the layer")
    x, said = _kernel(9, 4, 2, 7, 7), set()
    for level in (None, 1.0, 0.1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-8):
        weight = _nearly_singular(4, level or 1.0)
        if level is None:  # condition below 2
            weight = 0.02 * weight
            weight[range(2), range(2), 1, 1] = 1
        weight = weight.to(weights)
        options: Any = {"padding": 1, "padding_mode": mode}
        y = functional.conv_operator(weight.double(), (7, 7), **options).forward(x).to(outputs)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                answer = functional.conv_inverse(y, weight, **options)
            except SingularMapError:
                said.add("refused")
                continue
        error = ((answer.double() - x).norm() / x.norm()).item()
        said.add("warned" if caught else "right")
        assert error < 0.05 or caught, "a warning was due"
        assert error > 2e-3 or not caught, "no warning was due"
    assert "right" in said and len(said) > 1


@pytest.mark.parametrize("level", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize(("mode", "tightness"), [("circular", 1.02), ("zeros", 1.3), ("reflect", 1.3)])
def test_conditions_are_near(mode, tightness, level):
    operator = functional.conv_operator(_nearly_singular(3, level), (7, 7), padding=1, padding_mode=mode)
    exact = torch.linalg.cond(operator.to_dense()).item()
    assert exact / tightness < operator.report().condition < tightness * exact


def test_a_bound_of_many_channels_is_near():
    operator = functional.conv_operator(
        0.02 * _kernel(1, 24, 24, 3, 3) + torch.eye(24)[..., None, None].double() * torch.ones(1, 1, 3, 3) / 9,
        (6, 6), padding=1, padding_mode="circular",
    )  # fmt: skip
    exact = operator.condition_number().item()
    assert exact <= operator.report().condition * (1 + 1e-9) < 1.3 * exact


@pytest.mark.parametrize("solver", ["auto", "direct", "iterative"])
@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect"])
def test_the_bias_of_damping_is_no_error(mode, solver):
    operator = functional.conv_operator(
        _kernel(5, 2, 2, 3, 3), (8, 8), padding=1, padding_mode=mode, damping=0.5, solver=solver
    )
    a, x = operator.to_dense(), _kernel(6, 128, 400)
    damped = torch.linalg.solve(a.T @ a + 0.25 * torch.eye(128).double(), a.T @ a @ x)
    report = operator.report()
    assert report.relative_error < 1e-11
    assert abs(report.bias - ((damped - x).norm() / x.norm()).item()) < 0.25 * report.bias
    assert f"bias of the damping {report.bias:.1e}" in str(report)


def test_a_condition_number_is_that_of_the_weight_whatever_its_precision():
    weight = _nearly_singular(2, 1e-7, torch.float32)
    for mode in ("circular", "zeros", "reflect"):
        single, double = (
            functional.conv_condition_number(w, (6, 6), padding=1, padding_mode=mode) for w in (weight, weight.double())
        )
        assert single.dtype == torch.float32 and torch.allclose(single.double(), double, rtol=1e-6) and double > 1e7


def test_what_rounding_makes_of_a_block_is_cut_off():
    weight, y = torch.ones(1, 1, 2, 2, dtype=torch.float64), _kernel(1, 1, 1, 8, 8)
    options: Any = {"padding": "same", "padding_mode": "circular"}
    with pytest.warns(IllConditionedWarning, match="15 of 64 singular values"):
        x = functional.conv_inverse(y, weight, None, (8, 8), **options)
    a = functional.conv_operator(weight, (8, 8), **options).to_dense()
    assert torch.allclose(x.flatten(), torch.linalg.pinv(a, rtol=1e-12) @ y.flatten(), atol=1e-10)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
def test_a_large_singular_layer_has_no_condition_number():
    """The mean of the neighbours has null vectors; no inverse, so no smallest singular value by way of one."""
    operator = taps(NEIGHBOURS).operator((47, 47))
    with pytest.raises(SingularMapError, match="smallest singular values of the 2209 x 2209 layer cannot be told"):
        operator.condition_number()


def test_an_inverse_that_is_none_gives_no_singular_values():
    class Liar(Krylov):
        rank = property(lambda self: self.full_rank)

        def prepare(self):
            pass

        def pseudo_inverse(self, y):
            return y / 3

        def pseudo_inverse_adjoint(self, x):
            return x / 3

    from invconv.engine.extremes import extreme_singular_values

    conv = Convolution(_kernel(1, 1, 1, 3, 3), Geometry.of((3, 3), padding=1), (9, 9))
    with pytest.raises(SingularMapError, match="singular to working precision"):
        extreme_singular_values(Liar(conv), 1)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("level", [1e-2, 1e-4])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate"])
def test_lsmr_stops_by_the_error_of_x(mode, level, dtype):
    weight = _nearly_singular(7, level, dtype)
    operator = functional.conv_operator(weight, (5, 5), padding=1, padding_mode=mode, solver="iterative")
    x = _kernel(8, 1, 2, 5, 5)
    a = operator.to_dense().double()
    try:
        answer = operator.pseudo_inverse((a @ x.flatten()).view_as(x).to(dtype)).double()
    except SingularMapError:
        assert torch.linalg.cond(a) * torch.finfo(dtype).eps > 0.1
        return
    error, eps = ((answer - x).norm() / x.norm()).item(), torch.finfo(dtype).eps
    if dtype == torch.float32 or level > 1e-3:  # beyond, LSMR itself is at its end, and says so in the report
        assert error < max(Options().tolerance(dtype), 5 * eps * torch.linalg.cond(a).item())
    assert error < 10 * max(operator.report().relative_error, eps)


def test_a_rank_that_is_short_by_one_is_seen():
    weight = torch.zeros(1, 1, 3, dtype=torch.float64)
    weight[0, 0, :2] = torch.tensor([1.0, -1.0])
    short = Convolution(weight, Geometry.of((3,), padding=1, padding_mode="replicate"), (50,))  # blind to constants
    assert Krylov(short).rank is None
    weight[0, 0, 1] = -2.0
    assert Krylov(Convolution(weight, short.geometry, (50,))).rank == 50
