"""What does it cost to go back through a pair of masked convolutions? Against its forward, and against other ways.

python -m benchmarks.pairs                          # all sizes: some minutes
python -m benchmarks.pairs --channels 12 --sides 8  # one of them

Two kernels of 2 x 2 taps in opposite orders, as 3 x 3 layers with zeros elsewhere, inverted one after the other: by the
layers, which compare their weight with that of their factors at each call, and by their operators, which are of one
weight.  Held against the forward of the pair (2 x 2 taps convolved), the wavefront (all pixels of an anti-diagonal at
once), substitution pixel by pixel (`pixels`), and the inverse of one 1 x 1 layer.  The rivals check nothing.  All in
float32; `error` is that of images whose outputs were computed in float64, `its` the wavefront's.  `best` has the
fastest call of each, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.command import ask
from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from benchmarks.harness.timing import in_turn, ratio
from benchmarks.rivals.flow_layers import Emerging
from benchmarks.rivals.wavefront import Wavefront
from invconv import ConvOperator, InvertibleConv2d

QUICK = {"channels": [2], "sides": [3], "batches": [2], "rounds": 1}
CHANNELS, SIDES, BATCHES = [12, 24, 48, 96], [4, 8, 16, 32, 64], [1, 32]
OURS = ("layers", "operators")
GOAL, LINE = 3.0, 500
"""The inverse is to take at most so many times the forward where a line has at most so many numbers."""


@dataclass
class Row:
    """What was measured of one size."""

    channels: int
    side: int
    batch: int
    times: dict[str, list[float]]
    errors: tuple[float, float]

    def ratio(self, name: str, reference: str = "forward", best: bool = False) -> float:
        """The median of what one takes in units of another, or of its fastest call in units of the other's."""
        if best:
            return min(self.times[name]) / min(self.times[reference])
        return ratio(self.times, name, reference)[0]


class Pair:
    """Two masked kernels, as every way takes them: z = K2 * (K1 * x)."""

    def __init__(self, channels: int) -> None:
        torch.manual_seed(channels)
        self.emerging = Emerging(channels)
        with torch.no_grad():
            self.emerging.mixing.copy_(torch.eye(channels))
            for kernel in (self.emerging.first, self.emerging.second):
                kernel.add_(0.2 / channels**0.5 * torch.randn_like(kernel))
            self.kernels = [kernel.clone() for kernel in self.emerging.kernels()]
        self.wavefront = Wavefront(*self.kernels)
        self.layers = [_layer(kernel, at) for kernel, at in zip(self.kernels, (1, 0), strict=True)]

    def forward(self, x: Tensor) -> Tensor:
        first, second = (kernel.to(x.dtype) for kernel in self.kernels)
        return F.conv2d(F.pad(F.conv2d(F.pad(x, (0, 1, 0, 1)), first), (1, 0, 1, 0)), second)

    def inverse(self, z: Tensor) -> Tensor:
        return self.layers[0].inverse(self.layers[1].inverse(z))

    def operators(self, size: torch.Size) -> list[ConvOperator]:
        """What inverts the layers, last one first, at their present weight."""
        return [layer.operator(size) for layer in reversed(self.layers)]


def _layer(kernel: Tensor, at: int) -> InvertibleConv2d:
    """A 3 x 3 layer with these 2 x 2 taps, the first of them at a place of the kernel, and zeros elsewhere."""
    conv = InvertibleConv2d(len(kernel), len(kernel), 3, padding=1, bias=False)
    with torch.no_grad():
        nn.init.zeros_(conv.weight)[:, :, at : at + 2, at : at + 2] = kernel
    return conv


@torch.no_grad()
def measure(channels: int, side: int, batch: int, rounds: int) -> Row:
    pair, mixing = Pair(channels), InvertibleConv2d(channels, channels, 1, bias=False)
    x = torch.randn(batch, channels, side, side)
    z = pair.forward(x.double()).float()
    last, first = pair.operators(x.shape[2:])
    calls = {
        "forward": lambda: pair.forward(x),
        "layers": lambda: pair.inverse(z),
        "wavefront": lambda: pair.wavefront.inverse(
            z
        ),  # between ours, that neither finds what the other left in caches
        "operators": lambda: first.pseudo_inverse(last.pseudo_inverse(z)),
        "substitution": lambda: pair.emerging.inverse(z),
        "1 x 1": lambda: mixing.inverse(z),
    }
    errors = [float((back - x).norm() / x.norm()) for back in (pair.inverse(z), pair.wavefront.inverse(z))]
    times = in_turn(calls, rounds, warm_up=2, seconds=2.0)
    return Row(channels, side, batch, times, (errors[0], errors[1]))


def show(rows: list[Row]) -> None:
    """One line for each size, in units of the forward."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = ("c", "px", "batch", "ms", "layers", "best", "operators", "best", "wavefront", "pixels", "1 x 1")
    for heading in (*headings, "error", "its"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        mark = "*" if row.channels * row.side <= LINE else " "
        table.add_row(
            *map(str, (row.channels, row.side, row.batch)),
            f"{1e3 * statistics.median(row.times['forward']):.2g}{mark}",
            *(f"{row.ratio(name, best=best):.2f}" for name in OURS for best in (False, True)),
            f"{row.ratio('wavefront'):.1f}",
            f"{row.ratio('substitution'):.0f}",
            f"{row.ratio('1 x 1'):.2f}",
            *(f"{error:.0e}" for error in row.errors),
        )
    console.print(
        f"ms of the forward of the pair, all else times that; *: c px is at most {LINE}: {GOAL:g} is the goal"
    )
    console.print(table)
    for batch, name in itertools.product(dict.fromkeys(row.batch for row in rows), OURS):
        here = [row for row in rows if row.batch == batch]
        counts = " (at best ".join(", ".join(_counts(here, name, best)) for best in (False, True))
        console.print(f"batch {batch}, {name}: {counts})")


def _counts(rows: list[Row], name: str, best: bool) -> Iterator[str]:
    """In how many rows the goal is reached, and in how many this is ahead of each rival."""
    short = [row for row in rows if row.channels * row.side <= LINE]
    yield f"{sum(row.ratio(name, best=best) <= GOAL for row in short)} of {len(short)} within {GOAL:g}"
    for rival in ("wavefront", "substitution"):
        yield f"{sum(row.ratio(name, rival, best) < 1 for row in rows)} of {len(rows)} ahead of {rival}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, nargs="+", default=CHANNELS)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rounds", type=int, default=51, help="at most, in two seconds for a size")


def main(options: argparse.Namespace) -> None:
    console.print(machine())
    rows = []
    with console.status("") as status:
        for batch in options.batches:
            for channels in options.channels:
                for side in options.sides:
                    status.update(f"c={channels}, {side} x {side}, batch {batch}")
                    rows.append(measure(channels, side, batch, options.rounds))
    show(rows)


if __name__ == "__main__":
    ask("pairs", __doc__, sys.modules[__name__])
