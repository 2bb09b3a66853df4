"""How large may an image be? Inverses at borders of zeros by overlapping tiles, beside LSMR and what others offer.

python -m benchmarks.tiles                            # all rows: some minutes
python -m benchmarks.tiles --rows 32x512 --lsmr 0     # channels x side, without LSMR

A 3 x 3 layer as it starts, padding=1, float32, batch 1.  Each row is a process of its own, so that the peak of its
memory is its own, of which 0.7 GB are Python and PyTorch; `factors` is what is kept between two answers.  Times are the
fastest of a few: of all until there can be an answer, and of an answer.  LSMR has `solver="iterative"`, on rows of at
most `--lsmr` numbers.  The exponents are those of an answer's time in pixels between the smallest and the largest image
of as many channels.  Last, one channel: a blur at borders of zeros undone by ours, by scikit-image and by deepinv.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.command import ask
from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from invconv import ConvOperator, Geometry, InvertibleConv2d, Options

QUICK = {"rows": ["2x64", "2x96"], "lsmr": 0, "blur": 64, "rounds": 1}
ROWS = ["32x512", "64x1024", "3x1024", "3x2048", "3x4096", "3x8192"]
STRIP = 512
"""Lines of an image that go through the layer at once, so that what is measured has no forward in it."""


def peak() -> int:
    """Bytes, the most that this process ever had resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def noise(channels: int, side: int) -> Tensor:
    """The image that is sent through, the same at each call."""
    return torch.randn(1, channels, side, side, generator=torch.Generator().manual_seed(0))


def sent_through(x: Tensor, weight: Tensor) -> Tensor:
    """conv2d(x, K, padding=1), a few lines at a time."""
    y = torch.empty_like(x)
    for first in range(0, x.shape[2], STRIP):
        last = min(first + STRIP, x.shape[2])
        lines = x[:, :, max(0, first - 1) : last + 1]
        edges = (1, 1, int(first == 0), int(last == x.shape[2]))
        y[:, :, first:last] = F.conv2d(F.pad(lines, edges), weight)
    return y


def fastest(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def measure(channels: int, side: int, solver: str, rounds: int) -> dict[str, Any]:
    """One row, in this process."""
    torch.manual_seed(0)
    layer = InvertibleConv2d(channels, channels, 3, padding=1, bias=False)
    y = sent_through(noise(channels, side), layer.weight)

    def prepared() -> ConvOperator:
        operator = ConvOperator(layer.weight, layer.geometry, (side, side), Options(solver=solver))
        operator.prepare()
        return operator

    setup = fastest(prepared, rounds)
    operator = prepared()
    answer = fastest(lambda: operator.pseudo_inverse(y), rounds)
    largest = peak()
    x = noise(channels, side)
    size = float(x.norm())
    error = float(x.sub_(operator.pseudo_inverse(y)).norm()) / size
    report = operator.report()
    found = {"setup": setup, "answer": answer, "error": error, "factors": report.bytes, "peak": largest}
    return {"solver": report.solver, **found}


def apart(channels: int, side: int, solver: str, rounds: int) -> dict[str, Any]:
    """One row, in a process of its own."""
    words = [sys.executable, "-m", "benchmarks.tiles", "--row", f"{channels}x{side}", solver, str(rounds)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"solver": (done.stderr.strip().splitlines() or ["ended"])[-1][:60]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(rows: dict[tuple[int, int], dict[str, dict[str, Any]]]) -> None:
    """One line for each row and way, then the exponents."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("c", "side", "solver", "set-up, s", "an answer, s", "error", "factors, MB", "peak, GB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for (channels, side), found in rows.items():
        for row in found.values():
            if "answer" not in row:
                table.add_row(str(channels), str(side), row["solver"])
                continue
            seconds = f"{row['setup']:.2f}", f"{row['answer']:.2f}"
            memory = f"{row['factors'] / 1e6:.1f}", f"{row['peak'] / 1e9:.2f}"
            table.add_row(str(channels), str(side), row["solver"], *seconds, f"{row['error']:.0e}", *memory)
    console.print(table)
    for channels in dict.fromkeys(c for c, _ in rows):
        times = {side: r["auto"]["answer"] for (c, side), r in rows.items() if c == channels and "answer" in r["auto"]}
        if len(times) > 1:
            small, large = min(times), max(times)
            exponent = math.log(times[large] / times[small]) / math.log((large / small) ** 2)
            console.print(f"c={channels}, {small} to {large}: time of an answer grows with pixels ^ {exponent:.2f}")


@torch.no_grad()
def deconvolve(side: int, rounds: int) -> None:
    """A blur of one channel undone, by ours and by others."""
    taps = torch.tensor([0.15, 0.7, 0.15], dtype=torch.float64)
    kernel = taps[:, None] * taps + torch.tensor([[0.0, 0.05, 0.0], [0.0, 0.0, 0.0], [0.0, -0.05, 0.0]]).double()
    weight = kernel.float()[None, None]
    x = noise(1, side).abs()
    x /= x.max()
    y = sent_through(x, weight)
    flipped = kernel.flip(0, 1).numpy()  # they convolve where layers correlate
    operator = ConvOperator(weight, Geometry.of((3, 3), padding=1), (side, side))
    calls: dict[str, Callable[[], Tensor]] = {f"ours ({operator.plan().solver})": lambda: operator.pseudo_inverse(y)}
    try:
        from skimage import restoration

        image = y[0, 0].double().numpy()
        calls["scikit-image, wiener"] = lambda: torch.from_numpy(restoration.wiener(image, flipped, 1e-9, clip=False))
        calls["scikit-image, Richardson and Lucy"] = lambda: torch.from_numpy(
            restoration.richardson_lucy(image, flipped, num_iter=30, clip=False)
        )
    except ImportError:
        console.print("scikit-image is not installed: its rows are left out")
    try:
        from deepinv.physics import Blur

        physics = Blur(torch.from_numpy(flipped.copy()).float()[None, None], padding="constant")
        calls["deepinv, Blur.A_dagger"] = lambda: physics.A_dagger(y, max_iter=100, tol=1e-7)
    except ImportError:
        console.print("deepinv is not installed: its row is left out")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in (f"one channel, {side} x {side}", "an answer, s", "error"):
        table.add_column(heading)
    for name, call in calls.items():
        error = float((call().reshape(x.shape) - x).norm() / x.norm())
        table.add_row(name, f"{fastest(call, rounds):.2f}", f"{error:.0e}")
    console.print(table)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", nargs="*", default=ROWS, help="channels x side")
    parser.add_argument("--lsmr", type=int, default=2**24, help="numbers of an image up to which LSMR is asked too")
    parser.add_argument("--blur", type=int, default=1024, help="side of the image of one channel; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.row:
        size, solver, rounds = options.row
        channels, side = map(int, size.split("x"))
        print(json.dumps(measure(channels, side, solver, int(rounds))))
        return
    console.print(machine())
    rows: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    with console.status("") as status:
        for size in options.rows:
            channels, side = map(int, size.split("x"))
            ways = ["auto", *(["iterative"] if channels * side**2 <= options.lsmr else [])]
            for way in ways:
                status.update(f"c={channels}, {side} x {side}, {way}")
                count = options.rounds if way == "auto" and side < 4096 else 1
                rows.setdefault((channels, side), {})[way] = apart(channels, side, way, count)
    show(rows)
    if options.blur:
        deconvolve(options.blur, options.rounds)


if __name__ == "__main__":
    ask("tiles", __doc__, sys.modules[__name__])
