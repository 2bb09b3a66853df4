import pytest
import torch

from invconv.engine.solvers import circulant


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture
def factored(monkeypatch):
    """Grows by one with each torus that is factored."""
    calls = []
    factor = circulant.factor_torus
    monkeypatch.setattr(circulant, "factor_torus", lambda b, grid: calls.append(b.shape) or factor(b, grid))
    return calls
