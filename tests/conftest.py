import pytest
import torch

from invconv.engine import known
from invconv.engine.blocks import TorusMap


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


@pytest.fixture
def one_known_image(monkeypatch):
    """Solvers try themselves on a single image: for where the answers are compared, rather than that trial."""
    monkeypatch.setattr(known, "KNOWN", 1)


@pytest.fixture
def set_threads():
    """Set PyTorch's number of threads; set back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def factored(monkeypatch):
    """Grows by one with each torus that is factored."""
    calls = []
    factor = TorusMap.factor
    monkeypatch.setattr(TorusMap, "factor", lambda self: calls.append(self.blocks.shape) or factor(self))
    return calls
