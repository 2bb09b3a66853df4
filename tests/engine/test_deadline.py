"""A limit of time, by a clock that goes on by one second whenever somebody looks."""

from __future__ import annotations

import itertools

import pytest
import torch

from invconv import InvertibleConv2d, deadline
from invconv.errors import InvconvError, TooLongError


@pytest.fixture
def ticking(monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(deadline.time, "monotonic", lambda: next(clock))


def test_without_a_limit_there_is_none(ticking):
    assert not deadline.is_set()
    deadline.look(1e9)


def test_a_limit_is_kept_and_ends(ticking):
    with deadline.within(3):
        assert deadline.is_set()
        deadline.look()
        with pytest.raises(TooLongError, match="more than 3 s"):
            deadline.look(foreseen=2)
        with pytest.raises(TimeoutError), deadline.within(100):
            deadline.look()  # within what is left of the outer one
    deadline.look()
    assert issubclass(TooLongError, InvconvError)


@pytest.mark.parametrize("seconds", [0, 5, 20])
def test_iterations_say_how_far_they_came(ticking, seconds):
    torch.manual_seed(0)
    conv = InvertibleConv2d(3, 3, 3, padding=1).double()
    values = torch.linalg.svdvals(conv.operator((18, 20)).to_dense())
    for ask, largest in ((conv.spectral_norm, True), (conv.smallest_singular_value, False)):
        with torch.no_grad(), deadline.within(seconds), pytest.raises(TooLongError) as caught:
            ask((18, 20))
        reached = caught.value.reached
        if seconds == 0:
            assert not reached
        elif reached:
            ratio = reached / (values[0] if largest else values[-1]).item()
            assert 0.3 < ratio <= 1 + 1e-9 if largest else 1 - 1e-9 <= ratio < 30
        assert reached or not largest or seconds == 0


def test_nothing_of_it_is_kept(ticking):
    conv = InvertibleConv2d(3, 3, 3, padding=1).double()
    with torch.no_grad():
        with deadline.within(4), pytest.raises(TooLongError):
            conv.smallest_singular_value((18, 20))
        values = torch.linalg.svdvals(conv.operator((18, 20)).to_dense())
        assert conv.smallest_singular_value((18, 20)).item() == pytest.approx(values[-1].item(), rel=1e-9)
        assert conv.spectral_norm((18, 20)).item() == pytest.approx(values[0].item(), rel=1e-12)
