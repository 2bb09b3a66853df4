import pytest
import torch

from invconv.engine.blocks import TorusMap


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture
def factored(monkeypatch):
    """Grows by one with each torus that is factored."""
    calls = []
    factor = TorusMap.factor
    monkeypatch.setattr(TorusMap, "factor", lambda self: calls.append(self.blocks.shape) or factor(self))
    return calls
