"""What counts as free memory, what is said where it is short, and whether plans bound what is taken."""

from __future__ import annotations

import math
import subprocess
import sys
import weakref
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from invconv import ConvOperator, Geometry, InvertibleConv2d, Options, Plan
from invconv.engine import choice, memory
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.sparse import SparseLU

CPU = torch.device("cpu")
GIB = 2**30
LIMITED = """
import resource, psutil, torch
from invconv.engine import memory
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + 2**28, taken + 2**28))
print(memory.available_memory(torch.device("cpu")))
"""


@pytest.fixture(autouse=True)
def read_anew(monkeypatch):
    monkeypatch.setattr(memory, "_reading", [-math.inf, 0.0])


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such limit")
def test_a_limit_of_the_process_counts():
    """As `ulimit -v` sets it; a process that may take 256 MiB more has at most these."""
    said = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=True).stdout
    assert 2**26 < int(said) <= 2**28


@pytest.mark.parametrize(("limit", "free"), [(str(2 * GIB), GIB + 4096), ("max", None), (str(2**62), None)])
def test_a_limit_of_the_container_counts(limit, free, tmp_path, monkeypatch):
    for name, text in (("max", limit), ("current", str(GIB)), ("memory.stat", "anon 5\ninactive_file 4096\n")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(memory, "_containers", list)
    without = memory.available_memory(CPU)
    monkeypatch.setattr(memory, "_reading", [-math.inf, 0.0])
    files = str(tmp_path / "max"), str(tmp_path / "current"), "inactive_file"
    monkeypatch.setattr(memory, "_containers", lambda: [files, ("nowhere", "nowhere", "")])
    found = memory.available_memory(CPU)
    assert found == min(free, without) if free and free < without else abs(found - without) < GIB


def test_a_shortage_is_told_in_numbers(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 10 * 2**20)
    assert memory.shortage(CPU, 9 * 2**20, "it") == ""
    assert memory.shortage(CPU, 10 * 2**20, "it") == "it needs about 10 MiB, of which 10 MiB are free on cpu"
    assert memory.shortage(CPU, 3 * GIB, "it").startswith("it needs about 3.0 GiB")


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: Counter[int] = Counter()
        self.sizes: dict[int, int] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.tensors[storage.data_ptr()] += 1
                self.sizes[storage.data_ptr()] = storage.nbytes()
                weakref.finalize(tensor, self._drop, storage.data_ptr())
        self.most = max(self.most, sum(self.sizes.values()))
        return out

    def _drop(self, place: int) -> None:
        self.tensors[place] -= 1
        if not self.tensors[place]:
            self.sizes.pop(place, None)


LARGE = [
    ("fft", (1, 1), 512, {"padding_mode": "circular"}),
    ("fft", (3, 3), 256, {"padding_mode": "circular"}),
    ("fft", (3, 3), 256, {"padding_mode": "circular", "damping": 0.1}),
    ("fft and ring", (1, 1), 200, {}),
    ("tiles", (1, 1), 400, {}),
    ("tiles", (3, 3), 1024, {}),
    ("tiles", (3, 16), 128, {}),
    ("lsmr", (3, 16), 128, {"solver": "iterative"}),
]


@pytest.mark.parametrize(("solver", "channels", "side", "options"), LARGE)
def test_a_plan_bounds_the_tensors_of_a_report(solver, channels, side, options):
    """Known images included; and it foresees no more than a few times what is taken, for what is refused might fit."""
    conv = InvertibleConv2d(*channels, 3, padding=1, bias=False, **options)
    with torch.no_grad():
        torch.nn.init.dirac_(conv.weight).add_(0.05 * torch.randn_like(conv.weight))
    operator = conv.operator((side, side))
    plan = operator.plan()
    assert plan.solver == solver
    y = torch.randn(1, channels[1], side, side)
    with LiveBytes() as live:
        operator.report()
        operator.pseudo_inverse(y)
    assert live.most <= plan.bytes <= 6 * live.most


def test_a_plan_tells_what_is_taken_where_digits_are_lost():
    """A random kernel of one channel loses its ring, and a sparse LU is tried, whose plan is the larger one."""
    operator = ConvOperator(torch.randn(1, 1, 3, 3), Geometry.of((3, 3), padding=1), (100, 100))
    plan, sparse = operator.plan(), SparseLU.plan(*operator.reduced)
    assert isinstance(sparse, Plan)
    assert (plan.solver, operator.solver.name) == ("fft and ring", "sparse lu")
    assert plan.bytes_if_lost >= sparse.bytes > plan.bytes
    assert "if its digits are lost" in str(plan)
    assert not operator.plan().bytes_if_lost


def test_a_way_that_would_take_too_long_is_in_no_plan():
    conv = Convolution(torch.randn(12, 12, 3, 3), Geometry.of((3, 3), padding=1), (48, 48))
    sparse = SparseLU.plan(conv, Options())
    assert isinstance(sparse, Plan)
    assert choice.plan(conv, Options()).bytes_if_lost < sparse.bytes
