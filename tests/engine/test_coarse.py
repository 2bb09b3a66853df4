"""Log-volumes from fewer frequencies, against all of them, and what tells when they are not enough."""

from __future__ import annotations

import math

import pytest
import torch
from tables import Case

from invconv import InputError, InvertibleConv2d, Options
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.volumes.coarse import Coarse, coarse
from invconv.flows import MultiScaleFlow

TOL = 1e-4
CASES = [
    Case((4, 4), (3, 3), (32, 32)),
    Case((4, 4), (3, 3), (15, 40)),
    Case((3, 3), (5, 3), (64, 24)),
    Case((2, 8), (2, 2), (48, 64), stride=2),
    Case((3, 12), (4, 4), (64, 64), stride=2),
    Case((4, 6), (3, 3), (32, 64)),
    Case((6, 6), (3, 3), (40, 24), groups=2),
    Case((4, 4), (3,), (256,)),
    Case((2, 2), (3, 3, 3), (12, 16, 20)),
    Case((4, 4), (3, 3), (64, 64), dilation=2),
]


@pytest.mark.parametrize("spread", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_its_error_is_below_the_tolerance(case: Case, spread: float) -> None:
    conv = case.layer(spread=spread)
    exact = conv.log_volume(case.size)
    (expected,) = torch.autograd.grad(exact, conv.weight)
    conv.volume_tol = TOL
    log_volume = conv.log_volume(case.size)
    (gradient,) = torch.autograd.grad(log_volume, conv.weight)
    unknowns = min(conv.operator(case.size).shape)
    assert abs(log_volume - exact) <= TOL * unknowns
    # The disagreement is that of half the side, whose aliases the gradient's are near to.
    assert (gradient - expected).norm() <= 20 * TOL * expected.norm()


def test_well_conditioned_kernels_need_few_frequencies_and_others_all() -> None:
    case = Case((4, 4), (3, 3), (64, 64))
    counts = []
    for spread in (0.0, 0.3, 6.0):
        conv = case.layer(spread=spread)
        estimate = coarse(Circulant(conv.operator(case.size).conv, Options(volume_tol=TOL)))
        counts.append(estimate.grid.count if estimate else math.inf)
    assert counts[0] < counts[1] < counts[2] == math.inf


def test_the_square_rule() -> None:
    """A grid's own error is below its disagreement with coarser ones."""
    case = Case((4, 4), (3, 3), (64, 64))
    conv = case.layer(spread=0.3)
    whole = Circulant(conv.operator(case.size).conv)
    unknowns = 4 * 64 * 64
    for side in (4, 8, 16):
        here = Coarse(whole, (side, side))
        error = abs(float(here.log_volume - whole.log_volume)) / unknowns
        assert error < here.disagreement
        assert here.share * math.prod(here.grid.size) == 64 * 64


def test_small_images_keep_all_frequencies() -> None:
    case = Case((4, 4), (3, 3), (4, 4))
    conv = case.layer(volume_tol=0.1)
    assert torch.equal(conv.log_abs_det(case.size), case.layer().log_abs_det(case.size))


def test_the_option_reaches_the_layers_of_a_flow() -> None:
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=32, scales=2, steps=2, hidden=8).double()
    x = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    flow.bits_per_dim(x, generator=torch.Generator().manual_seed(0))
    exact = flow.bits_per_dim(x, generator=torch.Generator().manual_seed(0))
    layers = [m for m in flow.modules() if isinstance(m, InvertibleConv2d)]
    for layer in layers:
        layer.volume_tol = 1e-3
    bits = flow.bits_per_dim(x, generator=torch.Generator().manual_seed(0))
    assert 0 < (bits - exact).abs().max() < 1e-4
    assert torch.equal(flow.reconstruction_error(x) < 1e-12, torch.tensor([True, True]))
    assert all(m.volume_tol == 0.01 for m in MultiScaleFlow(volume_tol=0.01).modules() if isinstance(m, type(layer)))


@pytest.mark.parametrize("tol", [0.0, 1.0, -1e-3, math.nan])
def test_bad_tolerances(tol: float) -> None:
    with pytest.raises(InputError, match=r"volume_tol must lie in \(0, 1\)"):
        InvertibleConv2d(2, 2, 3, padding=1, padding_mode="circular", volume_tol=tol).log_abs_det((8, 8))
