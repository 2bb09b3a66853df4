"""How the inverse at borders of zeros grows with the image and the channels: time, memory, error.

    python -m benchmarks.borders scaling --channels 3 12 --sides 32 64

A 3 x 3 layer with padding=1, batch 1, once as it starts (float32, well conditioned) and once with a random kernel
(float64).  Each row is a process of its own, so that the peak of its memory is its own: the growth from before the
factors are computed to after one inverse.  The condition is an estimate.  A row that takes longer than `--seconds` is
ended and says so.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time

import torch

from benchmarks.harness.apart import measured
from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn
from invconv import InvertibleConv2d

QUICK = {"channels": [3], "sides": [8], "large": False}
KINDS = {"start": torch.float32, "random": torch.float64}


def peak() -> int:
    """Bytes, the most that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


@torch.no_grad()
def measure(kind: str, channels: int, side: int) -> dict:
    """One row, in this process."""
    torch.manual_seed(0)
    conv = InvertibleConv2d(channels, channels, 3, padding=1, bias=False, dtype=KINDS[kind])
    if kind == "random":
        conv.weight.normal_()
    x = torch.randn(1, channels, side, side, dtype=conv.weight.dtype)
    before = peak()
    start = time.perf_counter()
    conv.refresh((side, side))
    setup = time.perf_counter() - start
    conv.inverse(x)  # any y: the layer's own forward can take more memory than its inverse
    grown = peak() - before
    y = conv(x)
    start = time.perf_counter()
    error = ((conv.inverse(y) - x).norm() / x.norm()).item()
    rounds = min(15, 1 + int(3 / (time.perf_counter() - start)))
    times = in_turn({"forward": lambda: conv(x), "inverse": lambda: conv.inverse(y)}, rounds, warm_up=1)
    report = conv.operator((side, side)).report()
    return {
        "solver": report.solver,
        "dtype": str(report.dtype).removeprefix("torch."),
        "setup": setup,
        "inverse": statistics.median(times["inverse"]),
        "forward": statistics.median(times["forward"]),
        "error": error,
        "condition": report.condition,
        "bytes": report.bytes,
        "grown": grown,
    }


def row(kind: str, channels: int, side: int, seconds: float) -> str:
    """One row, from a process of its own."""
    r = measured("benchmarks.borders", "scaling", [kind, str(channels), str(side)], seconds)
    if isinstance(r, str):
        return r
    return (
        f"{r['solver']:<24}{r['dtype']:<8}{r['setup']:>9.3f}{r['inverse']:>10.4f}{r['forward']:>10.4f}"
        f"{r['error']:>9.0e}{r['condition']:>9.0e}{r['bytes'] / 2**20:>10.1f}{r['grown'] / 2**20:>10.1f}"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, nargs="+", default=[3, 12, 32, 64])
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--large", action=argparse.BooleanOptionalAction, default=True, help="c=3, 1024 x 1024 as well")
    parser.add_argument("--seconds", type=float, default=120, help="limit of a row")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.one:
        kind, channels, side = options.one
        print(json.dumps(measure(kind, int(channels), int(side))))
        return
    print(machine())
    print(
        f"{'kernel':<8}{'c':>3}{'side':>6}  {'solver':<24}{'factors':<8}{'setup s':>9}{'inverse s':>10}"
        f"{'forward s':>10}{'error':>9}{'cond.':>9}{'MiB':>10}{'peak MiB':>10}"
    )
    rows = [(kind, c, side) for kind in options.kinds for c in options.channels for side in options.sides]
    if options.large:
        rows.append(("start", 3, 1024))
    for kind, channels, side in rows:
        print(f"{kind:<8}{channels:>3}{side:>6}  {row(kind, channels, side, options.seconds)}", flush=True)
