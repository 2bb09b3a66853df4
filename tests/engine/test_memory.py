"""What counts as free memory, and what is said where it is short."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch

from invconv.engine import memory

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
