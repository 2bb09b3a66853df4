"""A training step of the demo flow with 3 x 3 invertible convolutions against the same flow with 1 x 1 ones.

python benchmarks/flow_step.py
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import yaml
from timing import in_turn, machine, show

from invconv.flows import MultiScaleFlow

CONFIG = Path(__file__).parents[1] / "examples" / "flow" / "demo.yaml"


def demo_flow(**changes: Any) -> MultiScaleFlow:
    """The flow of the demo, as its configuration says."""
    options = yaml.safe_load(CONFIG.read_text())["model"]["flow"]["init_args"]
    return MultiScaleFlow(**{**options, **changes})


def main(rounds: int, batch: int) -> None:
    print(machine())
    torch.manual_seed(0)
    x = torch.randint(256, (batch, 3, 32, 32), dtype=torch.uint8)

    def stepper(flow: MultiScaleFlow):
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            flow.bits_per_dim(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()

        return step

    calls = {f"{k} x {k}": stepper(demo_flow(kernel_size=k)) for k in (1, 3)}
    calls["3 x 3, kernels not bounded"] = stepper(demo_flow(kernel_size=3, rho=None))
    show(in_turn(calls, rounds), "1 x 1")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--batch", type=int, default=64)
    main(**vars(parser.parse_args()))
