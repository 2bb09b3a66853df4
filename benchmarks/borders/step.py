"""A training step of one flow layer with real borders against the same layer with circular ones.

    python -m benchmarks.borders step

Convolution, log-determinant, both gradients and an optimizer step, at the sizes of a flow on 32 x 32 images, batch 64.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn, show
from invconv.flows import ConvFlow

QUICK = {"rounds": 2, "batch": 2}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--batch", type=int, default=64)


def main(options: argparse.Namespace) -> None:
    print(machine())
    for channels, side in [(12, 16), (24, 8), (48, 8), (48, 4), (12, 32)]:
        x = torch.randn(options.batch, channels, side, side)
        print(f"c={channels}, {side} x {side}")
        calls = {mode: stepper(channels, mode, x) for mode in ("circular", "zeros", "replicate", "reflect")}
        show(in_turn(calls, options.rounds), "circular")


def stepper(channels: int, padding_mode: str, x: Tensor) -> Callable[[], None]:
    torch.manual_seed(0)
    layer = ConvFlow(channels, padding_mode=padding_mode)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def step() -> None:
        optimizer.zero_grad()
        z, log_det = layer(x)
        (z.square().sum() / 2 - log_det.sum()).backward()
        optimizer.step()

    return step
