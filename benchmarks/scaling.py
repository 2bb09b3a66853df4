"""How does the cost grow? Time and memory against the channels, the image, the batch and the kernel.

python -m benchmarks.scaling           # two or three minutes
python -m benchmarks.scaling --keep    # results/scaling.json and results/scaling.png are replaced

One size is varied at a time, the others stay as in BASE.  In each row the growth is t ~ size^exponent, fitted to the
upper half of the curve (three points at least); beside it what the leading term of `docs/understand/cost.md` says.
Small sizes are ruled by what each call costs before it begins, and lie below it.  The ring of real borders grows with
kernel - 1, which is steeper than the kernel.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.harness.command import ask
from benchmarks.harness.figures import Curve, Panel, draw
from benchmarks.harness.machine import machine
from benchmarks.harness.record import RESULTS, Record, console, measure, write
from benchmarks.harness.timing import Case
from invconv import InvertibleConv2d

QUICK = {"rounds": 1, "largest": 16}
BASE = {"channels": 24, "side": 32, "batch": 8, "kernel": 3}
VALUES = {
    "channels": (3, 6, 12, 24, 48, 96),
    "side": (16, 32, 64, 128, 256),
    "batch": (1, 2, 4, 8, 16, 32),
    "kernel": (1, 3, 5, 7),
}
# The factors of real borders are a dense system: the largest sizes would take minutes.
LARGEST = {"channels": 48, "side": 96}
FORWARD = "F.conv2d"
# The leading exponents of (channels, side, batch, kernel), in time and in memory.
THEORY = {
    FORWARD: ((2, 2, 1, 2), (1, 2, 1, 0)),
    "inverse, cached": ((2, 2, 1, 0), (1, 2, 1, 0)),
    "factors": ((3, 2, 0, 0), (2, 2, 0, 0)),
    "log-det and gradient": ((3, 2, 0, 0), (2, 2, 0, 0)),
    "factors, zero borders": ((3, 3, 0, 3), (2, 2, 0, 2)),
    "inverse, zero borders": ((2, 2, 1, 2), (1, 2, 1, 0)),
}


def cases(largest: int | None) -> Iterator[tuple[str, Case]]:
    """The size that is varied, and the case."""
    for variable, every in VALUES.items():
        values = [v for v in every if largest is None or v <= largest]
        for value in values:
            yield variable, circular(BASE | {variable: value})
        limit = LARGEST.get(variable, max(values))
        for value in sorted({min(v, limit) for v in values}):
            yield variable, zeros(BASE | {variable: value})


def circular(sizes: dict[str, int]) -> Case:
    conv, x = layer(sizes, "circular")
    # Layers of their own for what changes the weight: else the inverse, in turn with it, would not be cached.
    refreshed, trained = layer(sizes, "circular")[0], layer(sizes, "circular")[0]

    def log_det() -> None:
        trained.weight.data.neg_()
        trained.log_abs_det(x.shape[2:]).backward()

    calls = {
        FORWARD: torch.no_grad()(lambda: F.conv2d(x, conv.weight, padding=sizes["kernel"] // 2)),
        "inverse, cached": torch.no_grad()(lambda: conv.inverse(x)),
        "factors": lambda: refactor(refreshed, x),
        "log-det and gradient": log_det,
    }
    return Case("circular", calls, FORWARD, seconds=1.5, sizes=sizes)


def zeros(sizes: dict[str, int]) -> Case:
    conv, x = layer(sizes, "zeros")
    refreshed, _ = layer(sizes, "zeros")
    calls = {
        FORWARD: torch.no_grad()(lambda: F.conv2d(x, conv.weight, padding=sizes["kernel"] // 2)),
        "inverse, zero borders": torch.no_grad()(lambda: conv.inverse(x)),
        "factors, zero borders": lambda: refactor(refreshed, x),
    }
    return Case("zeros", calls, FORWARD, seconds=1.5, sizes=sizes)


def layer(sizes: dict[str, int], borders: str) -> tuple[InvertibleConv2d, Tensor]:
    torch.manual_seed(0)
    channels, side, batch, kernel = (sizes[name] for name in BASE)
    conv = InvertibleConv2d(channels, channels, kernel, padding=kernel // 2, padding_mode=borders, bias=False)
    return conv, torch.randn(batch, channels, side, side)


def refactor(conv: InvertibleConv2d, x: Tensor) -> None:
    """The factors of a weight of another value and the same condition."""
    conv.weight.data.neg_()
    conv.refresh(x.shape[2:])


def exponent(x: list[float], y: list[float]) -> float:
    """The slope of log y against log x, by least squares over the upper half."""
    upper = max(3, math.ceil(len(x) / 2))
    logs = np.log(x[-upper:]), np.log(np.maximum(y[-upper:], 1))
    return float(np.polyfit(*logs, 1)[0]) if len(x) >= 3 else math.nan


def fits(curves: dict[tuple[str, str], list[Record]]) -> list[dict[str, object]]:
    """For each (what, variable) the measured exponents of time and memory, and those of theory."""
    found = []
    for (name, variable), rows in curves.items():
        x = [float(r.sizes[variable]) for r in rows]
        index = list(BASE).index(variable)
        time, memory = THEORY[name][0][index], THEORY[name][1][index]
        # In microseconds, so that nothing is cut off at 1.
        measured = exponent(x, [1e3 * r.milliseconds for r in rows]), exponent(x, [float(r.peak or 0) for r in rows])
        found.append(
            {
                "what": name,
                "size": variable,
                "from": x[0],
                "to": x[-1],
                "milliseconds": [rows[0].milliseconds, rows[-1].milliseconds],
                "times_forward": rows[-1].ratio,
                "quartiles": [rows[-1].low, rows[-1].high],
                "bytes": [rows[0].peak, rows[-1].peak],
                "time_exponent": round(measured[0], 2),
                "time_theory": time,
                "memory_exponent": round(measured[1], 2),
                "memory_theory": memory,
            }
        )
    return found


def show(rows: list[dict]) -> None:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("", "size"):
        table.add_column(heading, no_wrap=True)
    for heading in ("range", "ms", "times", "quartiles", "ms ~", "paper", "MiB", "MiB ~", "paper"):
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for row in rows:
        low, high = row["quartiles"]
        table.add_row(
            "" if row["what"] == last else row["what"],
            row["size"],
            f"{row['from']:g}-{row['to']:g}",
            f"{row['milliseconds'][1]:.3g}" if row["milliseconds"][1] < 100 else f"{row['milliseconds'][1]:.0f}",
            "1" if row["what"] == FORWARD else f"{row['times_forward']:.1f}",
            "" if row["what"] == FORWARD else f"{low:.1f}-{high:.1f}",
            f"{row['time_exponent']:.1f}",
            str(row["time_theory"]),
            f"{row['bytes'][1] / 2**20:.1f}",
            f"{row['memory_exponent']:.1f}",
            str(row["memory_theory"]),
        )
        last = row["what"]
    console.print(
        f"ms, times {FORWARD} and MiB at the end of the range; ~: the exponent over its upper half, and on paper"
    )
    console.print(table)


def figure(curves: dict[tuple[str, str], list[Record]], path: Path) -> None:
    panels: tuple[list[Panel], list[Panel]] = [], []
    for variable in VALUES:
        fixed = ", ".join(f"{name} {value}" for name, value in BASE.items() if name != variable)
        time, memory = {}, {}
        for (name, size), rows in curves.items():
            if size == variable:
                x = [float(r.sizes[variable]) for r in rows]
                time[name] = Curve(x, [r.milliseconds for r in rows])
                memory[name] = Curve(x, [(r.peak or 0) / 2**20 for r in rows])
        panels[0].append(Panel(fixed, variable, "milliseconds", time))
        panels[1].append(Panel("", variable, "peak of memory, MiB", memory))
    draw(path, list(panels), "Time and memory against each size, float32")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="replace scaling.json and scaling.png")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--largest", type=int, help="leave out larger channels, sides and batches")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where --keep writes")


def main(options: argparse.Namespace) -> None:
    console.print(machine())
    curves: dict[tuple[str, str], list[Record]] = {}
    with console.status("") as status:
        for variable, case in cases(options.largest):
            status.update(f"{case.name}: {case.sizes}")
            for record in measure(case, options.rounds, variable):
                if record.name != FORWARD or case.name == "circular":
                    curves.setdefault((record.name, variable), []).append(record)
    curves = {key: curves[key] for key in ((name, variable) for name in THEORY for variable in VALUES)}
    rows = fits(curves)
    show(rows)
    if options.keep:
        kept = {f"{r.key} | {r.sizes}": r for records in curves.values() for r in records}
        write(options.out / "scaling.json", kept, exponents=rows)
        figure(curves, options.out / "scaling.png")


if __name__ == "__main__":
    ask("scaling", __doc__, sys.modules[__name__])
