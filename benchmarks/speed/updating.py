"""Would it pay to update the inverses after an optimizer step, instead of computing them again?

    python -m benchmarks.speed updating

The demo flow is trained as its configuration says, on the photographs.  After each step the old inverse X of each
block K is held against the new block: E = I - X K.  Where E is small two products more give

    K^-1 = (I + E) (I + E^2) X,      log |det K| = log |det X^-1| - Re tr(E + E^2 / 2 + E^3 / 3 + E^4 / 4),

to a relative error of ||E||^4 and ||E||^5.  Printed are ||E|| over the steps, in how many of them it is small enough
for float32 at all frequencies of a scale, and the time against that of the LU.
"""

from __future__ import annotations

import argparse
import statistics
from itertools import cycle, islice
from typing import cast

import torch
import yaml
from torch import Tensor

from benchmarks.harness.demo_flow import CONFIG, demo_flow
from benchmarks.harness.engine import Factors, Torus
from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn, show
from invconv.flows import Chain, ConvFlow, MultiScaleFlow, parameter_groups
from invconv.lightning import ImageDataModule

QUICK = {"steps": 2, "rounds": 2}
ENOUGH = torch.finfo(torch.float32).eps ** 0.25


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=41)


def update(blocks: Tensor, inverse: Tensor, log_volume: Tensor) -> Factors:
    """The factors of blocks near those that these are of: (count, c, c), (count, c, c), (count,)."""
    identity = torch.eye(blocks.shape[-1], dtype=blocks.dtype).expand_as(blocks)
    e = torch.baddbmm(identity, inverse, blocks, alpha=-1)
    square = e @ e
    inverse = torch.baddbmm(inverse, e, inverse)
    inverse = torch.baddbmm(inverse, square, inverse)
    traces = (e + square / 2).diagonal(dim1=1, dim2=2).sum(-1)
    traces = traces + (square * e.mT).sum((1, 2)) / 3 + (square * square.mT).sum((1, 2)) / 4
    return Factors(inverse, log_volume - traces.real)


def scales(flow: MultiScaleFlow, side: int) -> list[tuple[Torus, list[Tensor]]]:
    """The kernels of each scale, and the torus on which the flow takes them side by side."""
    found = []
    for scale, level in enumerate(flow.levels, start=1):
        weights = [layer.conv.weight.detach() for layer in cast(Chain, level).layers if isinstance(layer, ConvFlow)]
        found.append((Torus(len(weights), side >> scale), weights))
    return found


def main(options: argparse.Namespace) -> None:
    print(machine())
    flow, residuals = changes(options.steps)
    for (torus, weights), found in zip(scales(flow, 32), residuals, strict=True):
        small = sum(e < ENOUGH for e in found) / len(found)
        print(
            f"c={weights[0].shape[1]}, {(torus.side,) * 2}: ||E|| median {statistics.median(found):.2g}, "
            f"largest {max(found):.2g}, below {ENOUGH:.2g} in {100 * small:.0f} % of {len(found)} steps"
        )
        compare(weights, torus, options.rounds)


def changes(steps: int) -> tuple[MultiScaleFlow, list[list[float]]]:
    """The flow after its steps, and for each scale the largest ||E|| of each step."""
    torch.manual_seed(0)
    model = yaml.safe_load(CONFIG.read_text())["model"]
    flow, data = demo_flow(), ImageDataModule("photos")
    data.setup()
    optimizer = torch.optim.Adam(parameter_groups(flow, model["lr"], model["kernel_rate"]))
    old: list[Factors] = []
    residuals: list[list[float]] = [[] for _ in flow.levels]
    for step, (x, _) in enumerate(islice(cycle(data.train_dataloader()), steps)):
        for group, rate in zip(optimizer.param_groups, (1, model["kernel_rate"]), strict=True):
            group["lr"] = model["lr"] * rate * min(1.0, (step + 1) / model["warmup_steps"])
        optimizer.zero_grad()
        flow.bits_per_dim(x).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        new = [(torus, torus.blocks(weights)) for torus, weights in scales(flow, 32)]
        for (_, blocks), factors, found in zip(new, old, residuals, strict=False):
            e = torch.eye(blocks.shape[-1]) - factors.inverse @ blocks
            found.append(torch.linalg.matrix_norm(e, 2).max().item())
        old = [torus.factor(blocks) for torus, blocks in new]
    return flow, residuals


def compare(weights: list[Tensor], torus: Torus, rounds: int) -> None:
    """Time and error of a change that is small enough, at the frequencies that the LU takes."""
    before = torus.factor(torus.blocks(weights))
    blocks = torus.blocks([weight * (1 + 1e-3 * torch.randn_like(weight)) for weight in weights])
    distinct = torus.distinct()
    new, inverse, log_volume = (t[:, distinct].flatten(0, 1).contiguous() for t in (blocks, *before))
    exact, found = torus.factor(blocks), update(new, inverse, log_volume)
    reference = exact.inverse[:, distinct].flatten(0, 1)
    error = ((found.inverse - reference).norm() / reference.norm()).item()
    print(f"  relative error of an update {error:.1e}")
    calls = {"LU": lambda: torus.factor(blocks), "update": lambda: update(new, inverse, log_volume)}
    show(in_turn(calls, rounds), "LU")
