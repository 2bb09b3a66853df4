"""What is said of an answer: by the judge before it is given, and by the report, which see the same round trip."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import pytest
import torch
from tables import normal, taps

from invconv import (
    IllConditionedWarning,
    InputError,
    InvertibleConv1d,
    InvertibleConv2d,
    OutOfMemoryError,
    SingularMapError,
    functional,
)
from invconv.engine import memory, ring_size
from invconv.operator import ConvOperator

DOUBTFUL, HOPELESS = 1e-2, 0.5


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("seed", range(40))
def test_the_judge_and_the_report_agree(seed):
    """Float32 layers of two channels at 9 x 9 to 24 x 24, from harmless to hopeless."""
    conv = normal(1 + seed % 2, seed, dtype=torch.float32)
    operator = conv.operator((9 + seed % 16,) * 2)
    try:
        operator.prepare()
    except SingularMapError:
        assert operator.solver.error >= HOPELESS
    else:
        assert operator.solver.error < HOPELESS
        if operator.solver.name in ("svd", "sparse lu"):
            assert operator.report().relative_error <= operator.solver.error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect"])
def test_a_kernel_of_zeros_has_a_pseudo_inverse_of_zeros(mode, dtype):
    conv = InvertibleConv2d(2, 2, 3, padding=1, padding_mode=mode, bias=False, dtype=dtype)
    torch.nn.init.zeros_(conv.weight)
    with pytest.warns(IllConditionedWarning, match="cut off"):
        x = conv.inverse(torch.randn(1, 2, 4, 4, dtype=dtype))
    assert not x.any()
    report = conv.operator((4, 4)).report()
    assert report.rank == 0 and report.relative_error == report.relative_residual == 0


def test_the_ring_is_blamed_for_what_the_ring_lost(monkeypatch):
    weight = torch.randn(2, 2, 5, generator=torch.Generator().manual_seed(3)).double()
    with pytest.warns(IllConditionedWarning, match=r"in the ring rounding errors grow about \de\+(1[6-9]|2\d) times"):
        functional.conv_operator(weight, (1500,), padding=2).prepare()
    monkeypatch.setattr(ring_size, "MOST_UNKNOWNS", 1)  # no ring is tried, and none is blamed
    operator = functional.conv_operator(weight, (1500,), padding=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", IllConditionedWarning)
        operator.prepare()
    assert operator.solver.name == "lsmr" and operator.solver.lost == 0


@pytest.mark.parametrize("way", ["layer", "operator"])
@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect"])
def test_warnings_point_at_the_caller(way, mode):
    conv = InvertibleConv2d(2, 2, 3, padding=1, padding_mode=mode, bias=False)
    with torch.no_grad():
        conv.weight[0] = conv.weight[1]
    y = torch.randn(1, 2, 6, 6)
    with pytest.warns(IllConditionedWarning) as caught:
        _ = conv.inverse(y) if way == "layer" else conv.operator((6, 6)).pseudo_inverse(y)
    assert {Path(warning.filename).name for warning in caught} == {Path(__file__).name}
    assert len(caught) == 1


def test_what_no_output_reads_is_no_lack_of_memory():
    y, weight = torch.randn(1, 4, 1001), torch.randn(4, 1, 2)
    with pytest.raises(SingularMapError, match="some pixels are read by no output"):
        functional.conv_inverse(y, weight, None, (3002,), stride=3, solver="direct")
    operator = functional.conv_operator(weight, (3002,), stride=3)
    with pytest.warns(IllConditionedWarning, match="some pixels are read by no output"):
        x = operator.pseudo_inverse(y)
    assert torch.allclose(
        operator.forward(x), operator.forward(operator.pseudo_inverse(operator.forward(x))), atol=1e-4
    )
    assert not x[..., 2::3].any()  # the x of least norm
    assert operator.report().relative_error < 1e-4  # of an image in the range of A^+


def test_two_cautions_are_both_given():
    conv = InvertibleConv1d(1, 4, 2, stride=3, rtol=0.1, dtype=torch.float64)
    with pytest.warns(IllConditionedWarning, match=r"read by no output.*; rtol = 1.0e-01 is not applied"):
        conv.operator((3001,)).prepare()


def test_a_small_matrix_needs_memory_as_well(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    conv = InvertibleConv2d(3, 2, 3, padding=1, padding_mode="reflect", solver="direct")
    with pytest.raises(OutOfMemoryError, match=r"svd: its matrix needs about .* MiB, of which 0 MiB are free"):
        conv.operator((24, 24)).plan()


def test_prepared_operators_are_pickled():
    for conv, size in ((taps([1, 2, 1], solver="iterative"), (30,)), (normal(4), (8, 8)), (normal(3), (40, 40))):
        operator = conv.operator(size)
        y = torch.randn(1, *operator.conv.y_shape, dtype=torch.float64)
        expected = operator.pseudo_inverse(y)
        assert torch.allclose(pickle.loads(pickle.dumps(operator)).pseudo_inverse(y), expected, rtol=1e-9)


def test_an_operator_of_an_earlier_version_is_refused():
    with pytest.raises(InputError, match="make it anew"):
        ConvOperator.__new__(ConvOperator).__setstate__({"weight": torch.zeros(1, 1, 3, 3)})


def test_layers_take_the_kernel_that_is_at_hand():
    conv = InvertibleConv2d(2, 2, 3, padding=1)
    x, weight = torch.randn(1, 2, 5, 5), torch.randn(2, 2, 3, 3)
    expected = torch.nn.functional.conv2d(x, weight, conv.bias, padding=1)
    assert torch.equal(conv(x, weight=weight), expected)
