"""Time per step of a flow's training in one process and in two, at the same global batch, by Lightning's DDP (gloo).

    python -m benchmarks.freshness processes --steps 40

One thread for each process. The images are noise, which costs what photographs cost.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from benchmarks.harness.machine import machine
from invconv.flows import MultiScaleFlow
from invconv.lightning import FlowModule

QUICK = {"steps": 3}
GLOBAL_BATCH = 32
WARM_UP = 10


class Clock(L.Callback):
    """Seconds from the end of one step to the end of the next."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, trainer: L.Trainer, _: object) -> None:
        steps = [b - a for a, b in zip(self.ends, self.ends[1:], strict=False)]
        if trainer.is_global_zero:
            print(statistics.median(steps[WARM_UP:]))


def train(processes: int, steps: int, padding_mode: str) -> None:
    """Train in this process, and in those that Lightning starts, and print the seconds of a step."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module = FlowModule(MultiScaleFlow(image_size=32, scales=3, steps=2, hidden=32, padding_mode=padding_mode))
    images = torch.randint(0, 256, (GLOBAL_BATCH * (steps + WARM_UP), 3, 32, 32), dtype=torch.uint8)
    data = torch.utils.data.TensorDataset(images, torch.zeros(len(images), dtype=torch.long))
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=DDPStrategy(process_group_backend="gloo") if processes > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[Clock()],
    )
    trainer.fit(module, torch.utils.data.DataLoader(data, GLOBAL_BATCH // processes))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--one", nargs=2, metavar=("PROCESSES", "PADDING_MODE"), help="measure this alone")


def main(options: argparse.Namespace) -> None:
    if options.one:
        train(int(options.one[0]), options.steps, options.one[1])
        return
    print(machine())
    print(f"{'borders':<10}{'one, ms':>10}{'two, ms':>10}{'two / one':>11}")
    for mode in ("circular", "zeros"):
        times = []
        for processes in ("1", "2"):
            command = [sys.executable, "-m", "benchmarks.freshness", "processes"]
            command += ["--steps", str(options.steps), "--one", processes, mode]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(1e3 * float(done.stdout.split()[-1]))
        print(f"{mode:<10}{times[0]:>10.1f}{times[1]:>10.1f}{times[1] / times[0]:>11.2f}", flush=True)
