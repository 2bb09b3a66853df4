"""Would it pay to update the inverses after an optimizer step, instead of computing them again?

    python benchmarks/updating.py

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

import torch
import yaml
from demo_flow import CONFIG, demo_flow
from timing import in_turn, machine, show
from torch import Tensor

from invconv.engine.solvers.circulant import Factors, factor_torus
from invconv.engine.spectrum import Grid, halves, kernel_to_blocks
from invconv.flows import ConvFlow, parameter_groups
from invconv.geometry import Geometry
from invconv.lightning import ImageDataModule

ENOUGH = torch.finfo(torch.float32).eps ** 0.25


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


def scales(flow: torch.nn.Module, side: int) -> list[tuple[Grid, Tensor]]:
    """The kernels of each scale, side by side as the flow takes them, and their torus."""
    found = []
    for scale, level in enumerate(flow.levels, start=1):
        weights = [layer.conv.weight.detach() for layer in level.layers if isinstance(layer, ConvFlow)]
        geometry = Geometry.of((3, 3), padding=1, padding_mode="circular", groups=len(weights))
        found.append((Grid(geometry, (side >> scale,) * 2), torch.cat(weights)))
    return found


def main(steps: int, rounds: int) -> None:
    print(machine())
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
        new = [(kernel_to_blocks(weight, grid), grid) for grid, weight in scales(flow, 32)]
        for (blocks, _), factors, found in zip(new, old, residuals, strict=False):
            e = torch.eye(blocks.shape[-1]) - factors.inverse @ blocks
            found.append(torch.linalg.matrix_norm(e, 2).max().item())
        old = [factor_torus(*pair) for pair in new]
    for (grid, weight), found in zip(scales(flow, 32), residuals, strict=True):
        small = sum(e < ENOUGH for e in found) / len(found)
        print(
            f"c={weight.shape[1]}, {grid.size}: ||E|| median {statistics.median(found):.2g}, largest {max(found):.2g}, "
            f"below {ENOUGH:.2g} in {100 * small:.0f} % of {len(found)} steps"
        )
        compare(weight, grid, rounds)


def compare(weight: Tensor, grid: Grid, rounds: int) -> None:
    """Time and error of a change that is small enough, at the frequencies that the LU takes."""
    before = factor_torus(kernel_to_blocks(weight, grid), grid)
    blocks = kernel_to_blocks(weight * (1 + 1e-3 * torch.randn_like(weight)), grid)
    parts = halves(grid, weight.device)
    own = torch.cat([parts.complex, parts.real])
    near = [t[:, own].flatten(0, 1).contiguous() for t in (blocks, *before)]
    exact, found = factor_torus(blocks, grid), update(*near)
    reference = exact.inverse[:, own].flatten(0, 1)
    error = ((found.inverse - reference).norm() / reference.norm()).item()
    print(f"  relative error of an update {error:.1e}")
    show(in_turn({"LU": lambda: factor_torus(blocks, grid), "update": lambda: update(*near)}, rounds), "LU")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=41)
    main(**vars(parser.parse_args()))
