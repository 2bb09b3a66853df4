"""What does it cost to go back through a pair of masked convolutions? Against its forward, and against other ways.

python -m benchmarks.pairs                          # all sizes: some minutes
python -m benchmarks.pairs --channels 12 --sides 8  # one of them

Two kernels of 2 x 2 taps in opposite orders, as 3 x 3 layers with zeros elsewhere, inverted one after the other.  Held
against the forward of the pair (2 x 2 taps convolved), the wavefront (all pixels of an anti-diagonal at once),
substitution pixel by pixel, and the inverse of one 1 x 1 layer.  All in float32; `error` is that of images whose
outputs were computed in float64, ours and the wavefront's.
"""

from __future__ import annotations

import argparse
import statistics
import sys
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
from invconv import InvertibleConv2d

QUICK = {"channels": [2], "sides": [3], "batches": [2], "rounds": 1}
CHANNELS, SIDES, BATCHES = [12, 24, 48, 96], [4, 8, 16, 32, 64], [1, 32]
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

    def times_forward(self, name: str) -> float:
        return ratio(self.times, name, "forward")[0]

    def is_ahead(self, rival: str) -> bool:
        return ratio(self.times, "inverse", rival)[0] < 1


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
    calls = {
        "forward": lambda: pair.forward(x),
        "inverse": lambda: pair.inverse(z),
        "wavefront": lambda: pair.wavefront.inverse(z),
        "substitution": lambda: pair.emerging.inverse(z),
        "1 x 1": lambda: mixing.inverse(z),
    }
    errors = [float((back - x).norm() / x.norm()) for back in (pair.inverse(z), pair.wavefront.inverse(z))]
    times = in_turn(calls, rounds, warm_up=2, seconds=2.0)
    return Row(channels, side, batch, times, (errors[0], errors[1]))


def show(rows: list[Row]) -> None:
    """One line for each size, in units of the forward."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    headings = ("c", "px", "batch", "forward ms", "inverse", "quartiles", "wavefront", "substitution", "1 x 1")
    for heading in (*headings, "error", "wavefront's"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        _, low, high = ratio(row.times, "inverse", "forward")
        mark = " *" if row.channels * row.side <= LINE else "  "
        table.add_row(
            *map(str, (row.channels, row.side, row.batch)),
            f"{1e3 * statistics.median(row.times['forward']):.3g}",
            f"{row.times_forward('inverse'):.2f}{mark}",
            f"{low:.2f}-{high:.2f}",
            f"{row.times_forward('wavefront'):.1f}",
            f"{row.times_forward('substitution'):.0f}",
            f"{row.times_forward('1 x 1'):.2f}",
            *(f"{error:.0e}" for error in row.errors),
        )
    console.print(f"times the forward of the pair; *: c px is at most {LINE}, where {GOAL:g} is the goal")
    console.print(table)
    for batch in dict.fromkeys(row.batch for row in rows):
        here = [row for row in rows if row.batch == batch]
        short = [row for row in here if row.channels * row.side <= LINE]
        reached = sum(row.times_forward("inverse") <= GOAL for row in short)
        ahead = ", ".join(
            f"ahead of {rival} in {sum(row.is_ahead(rival) for row in here)} of {len(here)}"
            for rival in ("wavefront", "substitution")
        )
        console.print(f"batch {batch}: within {GOAL:g} times the forward in {reached} of {len(short)}; {ahead}")


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
