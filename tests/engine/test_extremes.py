"""Condition numbers of matrices of which the ends of the spectrum are sooner had than all of it."""

from __future__ import annotations

import pytest
import torch
from oracle import dense

from invconv import InvertibleConv2d
from invconv.engine import norms
from invconv.parametrizations import causal

LAYERS = {
    "zeros": lambda: InvertibleConv2d(4, 4, 3, padding=1),
    "reflect": lambda: InvertibleConv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "tall": lambda: InvertibleConv2d(2, 4, 3, padding=1),
    "wide": lambda: InvertibleConv2d(4, 3, 3, padding=1),
    "masked": lambda: causal(InvertibleConv2d(4, 4, 3, padding=1), rho=0.9),
    "damped": lambda: InvertibleConv2d(4, 4, 3, padding=1, damping=0.1),
}
SIZE = (12, 14)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_ends_are_those_of_the_whole(make, monkeypatch):
    torch.manual_seed(0)
    conv = make().double()
    values = torch.linalg.svdvals(dense(conv, SIZE))
    asked = []
    whole = norms._of_matrix
    monkeypatch.setattr(norms, "_of_matrix", lambda conv: asked.append(conv.shape) or whole(conv))
    with torch.no_grad():
        condition = conv.condition_number(SIZE)
    assert condition.item() == pytest.approx((values[0] / values[-1]).item(), rel=1e-5)
    assert bool(asked) == (conv.damping > 0)  # of which there is no inverse to ask


def test_a_layer_that_is_nearly_singular_is_asked_for_all():
    conv = InvertibleConv2d(3, 3, 3, padding=1).double()
    with torch.no_grad():
        conv.weight.normal_()
        conv.weight[2] = conv.weight[0]
        values = torch.linalg.svdvals(dense(conv, SIZE))
        assert values[-1] < 1e-13 * values[0] and conv.condition_number(SIZE) > 1e13
