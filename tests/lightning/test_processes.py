"""Lightning DDP: two processes train what one would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

SCRIPT = Path(__file__).with_name("train_processes.py")


def run(out: Path, processes: int, source: str, *more: str) -> subprocess.CompletedProcess:
    out.mkdir()
    command = [sys.executable, str(SCRIPT), str(out), str(processes), source, *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """96 training and 12 test images, smooth and all different."""
    coarse = torch.rand(108, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear")
    images = (255 * smooth).byte().numpy()
    path = tmp_path_factory.mktemp("data") / "smooth.npz"
    labels = np.zeros(108, dtype=int)
    np.savez(path, x_train=images[:96], x_test=images[96:], y_train=labels[:96], y_test=labels[96:])
    return f"npz:{path}"


@pytest.fixture(scope="module")
def outcomes(source, tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for processes in (1, 2):
        done = run(root / str(processes), processes, source)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def test_both_processes_end_with_the_same_weights(outcomes):
    first, second = (load(outcomes / "2" / f"rank{rank}.pt")["weights"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_two_processes_train_what_one_trains(outcomes):
    """The same images, the same global batches, the same start of ActNorm: equal up to the order of sums."""
    one, two = load(outcomes / "1" / "rank0.pt"), load(outcomes / "2" / "rank0.pt")
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    assert abs(one["metrics"]["test/bits_per_dim"] - two["metrics"]["test/bits_per_dim"]) < 1e-6
    assert two["metrics"]["test/reconstruction_error"] < 1e-12


def test_tables_and_pictures_are_written_once(outcomes):
    for processes in ("1", "2"):
        written = sorted(path.name for path in (outcomes / processes / "run").rglob("*.png"))
        assert written == ["reconstructions.png", "samples.png", "training.png"]
        assert len(list((outcomes / processes / "run").rglob("metrics.csv"))) == 1
