"""Time of a flow's log-determinants and their gradients in each of two processes: all in both, and shared (gloo).

    python -m benchmarks.freshness shares --repeats 15

One thread for each process. Nothing but log-determinants: the convolutions are left out, and the kernels are free, so
that they cost nothing. The weights change each time, as in training. Each time is that of the busier process; the ratio
is the median of those of neighbouring turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from benchmarks.harness.machine import machine
from invconv import InvertibleConv
from invconv.flows import Chain, Context, FlowLayer, MultiScaleFlow, shared_log_dets

QUICK = {"repeats": 2, "steps": [2]}
PROCESSES = 2


class Volume(FlowLayer):
    """A convolution of which only the log-determinant is asked, at the size that its images have in the flow."""

    def __init__(self, conv: InvertibleConv, size: tuple[int, int]) -> None:
        super().__init__()
        self.conv, self.size = conv, size

    @property
    def convolutions(self) -> Sequence[InvertibleConv]:
        return [self.conv]

    def forward(self, x: Tensor, context: Context | None = None) -> tuple[Tensor, Tensor]:
        context = context or Context()
        log_det = context.log_abs_det(self.conv, context.kernel(self.conv), self.size)
        return x, log_det.expand(len(x))

    def inverse(self, z: Any, context: Context | None = None) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def volumes(padding_mode: str, steps: int) -> Chain:
    """The log-determinants of a flow for images of 32 x 32."""
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=32, scales=3, steps=steps, hidden=1, rho=None, padding_mode=padding_mode)
    sides = [32 >> scale for scale in (1, 2, 3)]
    pairs = [(conv, side) for level, side in zip(flow.levels, sides, strict=True) for conv in level.convolutions]
    return Chain(*[Volume(conv, (side, side)) for conv, side in pairs])


def measure(rank: int, address: str, folder: str, padding_mode: str, steps: int, repeats: int) -> None:
    """Milliseconds of this process, without and with sharing in turn."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=PROCESSES)
    chain, x = volumes(padding_mode, steps), torch.zeros(1, 1, 1, 1)
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(2 * repeats + 2):
        shared = bool(turn % 2)
        with torch.no_grad():
            for parameter in chain.parameters():
                parameter.mul_(1.001)
        dist.barrier()
        start = time.perf_counter()
        with shared_log_dets() if shared else nullcontext():
            chain(x)[1].sum().backward()
        times[shared].append(1e3 * (time.perf_counter() - start))
    torch.save([times[False][1:], times[True][1:]], f"{folder}/{rank}.pt")  # the first is the warm-up
    dist.barrier()
    dist.destroy_process_group()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, nargs="+", default=[8, 32], help="of flow in each of three scales")


def main(options: argparse.Namespace) -> None:
    print(machine())
    print(f"{'borders':<10}{'layers':>8}{'all, ms':>10}{'shared, ms':>12}{'shared / all':>14}")
    for padding_mode in ("circular", "zeros"):
        for steps in options.steps:
            with tempfile.TemporaryDirectory() as folder:
                given = (f"file://{folder}/store", folder, padding_mode, steps, options.repeats)
                torch.multiprocessing.spawn(measure, given, nprocs=PROCESSES)
                both = [torch.load(Path(folder, f"{rank}.pt")) for rank in range(PROCESSES)]
            whole, shared = ([max(turn) for turn in zip(*times, strict=True)] for times in zip(*both, strict=True))
            ratio = statistics.median(b / a for a, b in zip(whole, shared, strict=True))
            row = f"{statistics.median(whole):>10.1f}{statistics.median(shared):>12.1f}{ratio:>14.2f}"
            print(f"{padding_mode:<10}{3 * steps:>8}{row}", flush=True)
