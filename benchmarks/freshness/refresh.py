"""What `keep_fresh` adds to a training step of the demo flow, which computes all its log-determinants anyway.

    python -m benchmarks.freshness refresh

Two copies of the flow take the same steps, in turn; one has its factors computed at the end of the step, the other
when the next step asks for them.  With the hook, a step also prepares what an inverse needs.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch

from benchmarks.harness.demo_flow import demo_flow
from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn, show
from invconv import keep_fresh

QUICK = {"rounds": 2, "batch": 4}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    print(machine())
    x = torch.randint(256, (options.batch, 3, 32, 32), dtype=torch.uint8)
    for padding_mode in ("circular", "zeros"):
        calls = {
            f"keep_fresh, {padding_mode}": stepper(True, x, padding_mode),
            "without": stepper(False, x, padding_mode),
        }
        show(in_turn(calls, options.rounds), "without")


def stepper(keep: bool, x: torch.Tensor, padding_mode: str) -> Callable[[], None]:
    """A training step, and with it or without what keeps the factors fresh."""
    torch.manual_seed(0)
    flow = demo_flow(padding_mode=padding_mode)
    optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)
    if keep:
        keep_fresh(optimizer, flow)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        flow.bits_per_dim(x, generator=generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()

    return step
