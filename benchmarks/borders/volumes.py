"""Log-determinants with real borders at any size: the time of one with its gradient, and how far it is from exact.

    python -m benchmarks.borders volumes

Layers of 3 x 3 as initialised, and bounded ones whose off-centre part is noise of the largest norm allowed, in float64.
"exact" is the log-determinant by the factors of the whole image, up to `--exact` unknowns of its ring; differences are
in bits/dim.  "circular" is the time of the same layer with circular borders, on sides up to `--circular`.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor

from benchmarks.harness.engine import log_det_by_factors
from benchmarks.harness.machine import machine
from invconv import InvertibleConv2d
from invconv.parametrizations import bounded

QUICK = {"channels": [4], "sides": [24, 96], "exact": 400, "circular": 24, "modes": ["zeros"]}
KERNELS = {"as initialised": 0.0, "bounded, noise": 1.0}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 12, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64, 256, 1024])
    parser.add_argument("--modes", nargs="+", default=["zeros"], help="zeros, reflect, replicate")
    parser.add_argument("--exact", type=int, default=5_000)
    parser.add_argument("--circular", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)


def layer(channels: int, mode: str, noise: float) -> InvertibleConv2d:
    torch.manual_seed(0)
    conv = InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=mode, bias=False)
    if noise:
        bounded(conv)
        torch.nn.init.normal_(conv.get_parameter("parametrizations.weight.original1"))
    return conv.double()


def timed(conv: InvertibleConv2d, size: tuple[int, int]) -> tuple[Tensor, float, float]:
    """The log-determinant, and the seconds of the value and of the gradient."""
    start = time.perf_counter()
    value = conv.log_abs_det(size)
    there = time.perf_counter()
    value.backward()
    return value.detach(), there - start, time.perf_counter() - there


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(options.threads)
    print(machine())
    print(
        f"{'c, side, borders, kernel':<44}{'by':<12}{'value, s':>9}{'gradient':>9}{'circular':>9}{'off, bits/dim':>15}"
    )
    for mode in options.modes:
        for channels in options.channels:
            for kernel, noise in KERNELS.items():
                for side in options.sides:
                    print(row(channels, side, mode, kernel, noise, options), flush=True)


def row(channels: int, side: int, mode: str, kernel: str, noise: float, options: argparse.Namespace) -> str:
    """One size of one layer."""
    size, conv = (side, side), layer(channels, mode, noise)
    value, seconds, more = timed(conv, size)
    way = conv.operator(size).plan(volume=True).solver
    around = off = "-"
    if side <= options.circular:
        around = f"{sum(timed(layer(channels, 'circular', noise), size)[1:]):.3f}"
    if channels * (2 * side + 1) <= options.exact:
        exact = log_det_by_factors(conv, size)
        off = f"{abs(value - exact) / (channels * side**2) / math.log(2):.1e}"
    what = f"{channels}, {side} x {side}, {mode}, {kernel}"
    return f"{what:<44}{way:<12}{seconds:9.3f}{more:9.3f}{around:>9}{off:>15}"
