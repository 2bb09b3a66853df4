"""Lightning DDP: two processes train what one would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from invconv import InputError
from invconv.flows import MultiScaleFlow
from invconv.lightning import FlowModule

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
    for name, processes, *more in (("1", 1), ("2", 2), ("shared", 2, "share")):
        done = run(root / name, processes, source, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


two_processes = pytest.mark.parametrize("name", ["2", "shared"])


@two_processes
def test_both_processes_end_with_the_same_weights(name, outcomes):
    first, second = (load(outcomes / name / f"rank{rank}.pt")["weights"] for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_shared_log_determinants_are_computed_once(outcomes):
    counts = {name: [load(outcomes / name / f"rank{rank}.pt")["layers"] for rank in (0, 1)] for name in ("2", "shared")}
    assert counts["2"][0] == counts["2"][1] == sum(counts["shared"])
    assert counts["shared"][0] == counts["shared"][1]


@two_processes
def test_the_loss_that_is_logged_is_whole(name, outcomes):
    """Each process logs that of its own images."""
    one = load(outcomes / "1" / "rank0.pt")["metrics"]["train/bits_per_dim"]
    two = [load(outcomes / name / f"rank{rank}.pt")["metrics"]["train/bits_per_dim"] for rank in (0, 1)]
    assert sum(two) / 2 == pytest.approx(one, rel=1e-8)


@two_processes
def test_two_processes_train_what_one_trains(name, outcomes):
    """The same images, the same global batches, the same start of ActNorm: equal up to the order of sums."""
    one, two = load(outcomes / "1" / "rank0.pt"), load(outcomes / name / "rank0.pt")
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-6, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    for logged in ("test/bits_per_dim", "val/bits_per_dim"):
        assert abs(one["metrics"][logged] - two["metrics"][logged]) < 1e-6
    assert two["metrics"]["test/reconstruction_error"] < 1e-12


def test_tables_and_pictures_are_written_once(outcomes):
    for processes in ("1", "2", "shared"):
        written = sorted(path.name for path in (outcomes / processes / "run").rglob("*.png"))
        assert written == ["reconstructions.png", "samples.png", "training.png"]
        assert len(list((outcomes / processes / "run").rglob("metrics.csv"))) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_strategies_that_do_not_average_whole_weights_are_refused(processes, monkeypatch):
    module = FlowModule(MultiScaleFlow(image_size=8, scales=1, steps=1, hidden=8), share_log_dets=True)
    trainer = module.trainer = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    monkeypatch.setattr(L.Trainer, "world_size", processes)
    monkeypatch.setattr(type(trainer), "strategy", FSDPStrategy.__new__(FSDPStrategy))
    if processes == 1:
        module.setup("fit")
    else:
        with pytest.raises(InputError, match="the Trainer has FSDPStrategy: set share_log_dets=False"):
            module.setup("fit")
    module.setup("validate")
