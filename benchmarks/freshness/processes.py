"""Time per step of a flow's training in one process and in two, at the same global batch, by Lightning's DDP (gloo).

In two processes all log-determinants in both, and shared by them (`share_log_dets=True`).

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


def train(processes: int, steps: int, padding_mode: str, share: bool) -> None:
    """Train in this process, and in those that Lightning starts, and print the seconds of a step."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=32, scales=3, steps=2, hidden=32, padding_mode=padding_mode)
    module = FlowModule(flow, share_log_dets=share)
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
    parser.add_argument("--one", nargs=3, metavar=("PROCESSES", "PADDING_MODE", "SHARE"), help="measure this alone")


def main(options: argparse.Namespace) -> None:
    if options.one:
        train(int(options.one[0]), options.steps, options.one[1], options.one[2] == "share")
        return
    print(machine())
    print(f"{'borders':<10}{'one, ms':>10}{'two, ms':>10}{'two / one':>11}{'shared, ms':>12}{'shared / two':>14}")
    for mode in ("circular", "zeros"):
        times = []
        for processes, share in (("1", "all"), ("2", "all"), ("2", "share")):
            command = [sys.executable, "-m", "benchmarks.freshness", "processes"]
            command += ["--steps", str(options.steps), "--one", processes, mode, share]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(1e3 * float(done.stdout.split()[-1]))
        one, two, shared = times
        print(f"{mode:<10}{one:>10.1f}{two:>10.1f}{two / one:>11.2f}{shared:>12.1f}{shared / two:>14.2f}", flush=True)
