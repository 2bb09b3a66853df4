"""Can images larger than memory be inverted? From one memory-mapped file to another, window by window.

    python -m benchmarks.arrays                                  # 3 channels, 8192 x 8192 the last: 2.4 GB of disk
    python -m benchmarks.arrays --sides 1024 2048 --processes 2

White noise, convolved in windows and brought back, in a process of its own for each size. `peak` is the resident memory
of that process and those that it starts, the pages of the files that the system has left in memory included; `before`
what it had before the inverse was asked for. `error` is relative to the noise, on every 64th line; `exponent` that of
the seconds in the pixels, since the size before.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
import threading
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch

from benchmarks.harness.command import ask
from benchmarks.harness.machine import machine
from invconv import InvertibleConv2d, arrays

QUICK = {"sides": [64], "channels": 1, "window": 40}


class Row(NamedTuple):
    """What was measured of one size."""

    apply: float
    inverse: float
    error: float
    before: int
    peak: int
    written: tuple[Any, ...]


class Peak:
    """The resident memory of this process and those that it has started, looked at every few milliseconds."""

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.02):
            self.bytes = max(self.bytes, resident())


def resident() -> int:
    """Bytes of this process and its children; pages that two of them share count twice."""
    this = psutil.Process(os.getpid())
    total = 0
    for process in (this, *this.children()):
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total


def measure(answer: Connection, side: int, options: argparse.Namespace) -> None:
    """One size, in this process."""
    torch.manual_seed(0)
    conv = InvertibleConv2d(options.channels, options.channels, 3, padding=1, padding_mode=options.padding_mode)
    shape = (options.channels, side, side)
    given: Any = {"window": options.window, "processes": options.processes, "memory": options.memory << 20}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        x, y, out = (np.memmap(Path(folder, name), np.float32, "w+", shape=shape) for name in ("x", "y", "out"))
        generator = np.random.default_rng(0)
        for line in range(0, side, 64):
            block = x[:, line : line + 64]
            block[:] = generator.standard_normal(block.shape, np.float32)
        start = time.perf_counter()
        arrays.apply(conv, x, y, **given)
        between = time.perf_counter()
        x.flush()
        before = resident()
        with Peak() as peak:
            begin = time.perf_counter()
            written = arrays.inverse(conv, y, out, progress=options.progress, **given)
            end = time.perf_counter()
        lines = x[:, ::64].astype(np.float64)
        error = float(np.linalg.norm(out[:, ::64] - lines) / np.linalg.norm(lines))
        answer.send(Row(between - start, end - begin, error, before, peak.bytes, tuple(written)))


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--sides", type=int, nargs="+", default=[1024, 2048, 4096, 8192])
    parser.add_argument("--padding-mode", default="zeros")
    parser.add_argument("--memory", type=int, default=1024, help="MiB for the windows of a process")
    parser.add_argument("--window", type=int, help="their side, in place of the largest that memory allows")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", help="where the files go for the time being; that of the system by default")
    parser.add_argument("--progress", action="store_true")


def main(options: argparse.Namespace) -> None:
    print(machine())
    heads = f"{'side':>6}{'apply, s':>10}{'inverse, s':>12}{'exponent':>10}{'error':>9}{'before, GiB':>13}"
    print(f"{heads}{'peak, GiB':>11}{'windows':>9}{'of a side':>11}{'halo':>6}")
    given = argparse.Namespace(**{name: value for name, value in vars(options).items() if name != "trial"})
    last: tuple[int, float] | None = None
    for side in options.sides:
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=measure, args=(theirs, side, given))
        process.start()
        theirs.close()
        row: Row = ours.recv()
        process.join()
        exponent = "" if last is None else f"{math.log(row.inverse / last[1]) / math.log(side**2 / last[0] ** 2):.2f}"
        windows, _, size, halo = row.written
        print(
            f"{side:>6}{row.apply:>10.1f}{row.inverse:>12.1f}{exponent:>10}{row.error:>9.0e}{row.before / 2**30:>13.2f}"
            f"{row.peak / 2**30:>11.2f}{windows:>9}{size[0]:>11}{halo:>6}",
            flush=True,
        )
        last = (side, row.inverse)


if __name__ == "__main__":
    ask("arrays", __doc__, sys.modules[__name__])
