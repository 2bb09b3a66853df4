"""The tables and the figure of the runs that are there."""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.flows.runs import SETTINGS, read, settings_of
from benchmarks.flows.training import KINDS
from benchmarks.harness.record import RESULTS

SHARES = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}
REFERENCE = "1x1"


def at(run: dict, key: str, value: float) -> float:
    """Bits/dim at a step or second, between the points of the curve."""
    return float(np.interp(value, [p[key] for p in run["curve"]], [p["bits"] for p in run["curve"]]))


def worst_rise(losses: list[float], window: int = 50) -> float | None:
    """The largest training loss after the warm-up, over the median of the `window` steps before it."""
    rises = (losses[i] - statistics.median(losses[i - window : i]) for i in range(2 * window, len(losses)))
    return max(rises, default=None)


def tell(options: argparse.Namespace) -> None:
    runs = read(options)
    if not runs:
        raise SystemExit(f"no runs in {options.out}")
    settings = {settings_of(run) for run in runs.values()}
    if len(settings) > 1:
        raise SystemExit(f"runs of different {SETTINGS} in {options.out}: {sorted(settings)}; use --again")
    rows = rows_of(runs)
    show(rows)
    figure = options.out / "bits_per_dim.png"
    draw(runs, figure)
    print(f"Curves: {figure}")
    if options.keep:
        shutil.copy(figure, RESULTS / "flows.png")
        run = next(iter(runs.values()))
        about = {name: run[name] for name in (*SETTINGS, "machine")}
        about["date"] = datetime.now(timezone.utc).date().isoformat()
        (RESULTS / "flows.json").write_text(json.dumps(rounded({**about, "rows": rows}), indent=1) + "\n")


def rows_of(runs: dict[tuple[str, int], dict]) -> list[dict]:
    """For each kind what the tables say, with the values of each seed."""
    seconds = next(iter(runs.values()))["seconds"]
    steps = min(len(run["losses"]) for run in runs.values())
    rows = []
    for kind in dict.fromkeys(kind for kind, _ in runs):
        own = {seed: run for (k, seed), run in runs.items() if k == kind}
        points = [point for run in own.values() for point in run["curve"]]
        marks = {
            "time": ("seconds", {f"{share} of {seconds:g} s": part * seconds for share, part in SHARES.items()}),
            "steps": ("step", {f"{round(part * steps)} steps": part * steps for part in SHARES.values()}),
        }
        row = {
            "kind": kind,
            "label": KINDS[kind].label,
            "kernel_rate": next(iter(own.values()))["kernel_rate"],
            "seconds_a_step": statistics.mean(r["curve"][-1]["seconds"] / len(r["losses"]) for r in own.values()),
            "steps": {seed: len(run["losses"]) for seed, run in own.items()},
            "worst_condition": max((p["condition"] for p in points if p["condition"] is not None), default=None),
            "reconstruction_error": max(p["error"] for p in points),
            "largest_rise": max(
                (r for run in own.values() if (r := worst_rise(run["losses"])) is not None), default=None
            ),
        }
        for name, (key, values) in marks.items():
            row[f"bits_by_{name}"] = {
                mark: {seed: at(run, key, value) for seed, run in own.items()} for mark, value in values.items()
            }
            row[f"difference_by_{name}"] = {
                mark: {
                    seed: at(run, key, value) - at(runs[REFERENCE, seed], key, value)
                    for seed, run in own.items()
                    if (REFERENCE, seed) in runs
                }
                for mark, value in values.items()
            }
        rows.append(row)
    return rows


def show(rows: list[dict]) -> None:
    console = Console(width=130)
    for name, title in (("time", "equal time"), ("steps", "equal steps, where the slower kind has annealed further")):
        marks = list(rows[0][f"bits_by_{name}"])
        table = Table("", *marks, "last, less 1 x 1", "each seed", title=f"bits/dim on held-out images, {title}")
        for row in rows:
            difference = list(row[f"difference_by_{name}"][marks[-1]].values())
            of_others = difference if row["kind"] != REFERENCE else []
            table.add_row(
                row["label"],
                *(spread(row[f"bits_by_{name}"][mark].values()) for mark in marks),
                spread(of_others, "+.3f"),
                " ".join(f"{d:+.3f}" for d in of_others),
            )
        console.print(table)
    headings = (
        "kernel rate",
        "s a step",
        "steps",
        "worst condition",
        "reconstruction error",
        "largest rise of the loss",
    )
    table = Table("", *headings, title="the runs; errors in shares of full scale")
    for row in rows:
        table.add_row(
            row["label"],
            f"{row['kernel_rate']:g}",
            f"{row['seconds_a_step']:.3f}",
            " ".join(str(s) for s in row["steps"].values()),
            *(
                "-" if row[key] is None else format(row[key], kind)
                for key, kind in (("worst_condition", ".1f"), ("reconstruction_error", ".1e"), ("largest_rise", ".2f"))
            ),
        )
    console.print(table)


def spread(values: Iterable[float], kind: str = ".3f") -> str:
    """Mean and standard deviation over the seeds."""
    values = list(values)
    if not values:
        return "-"
    mean = format(statistics.mean(values), kind)
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def rounded(x: object) -> object:
    """Floats with five digits, wherever they are."""
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else x


def draw(runs: dict[tuple[str, int], dict], path: Path) -> None:
    """The mean over the seeds, in a band from the lowest to the highest of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    early, late = [], []
    for axis, key in zip(axes, ("step", "seconds"), strict=True):
        for kind in dict.fromkeys(kind for kind, _ in runs):
            own = [run for (k, _), run in runs.items() if k == kind]
            ends = min(run["curve"][-1][key] for run in own)
            grid = np.linspace(max(run["curve"][0][key] for run in own), ends, 200)
            bits = np.array([[at(run, key, x) for x in grid] for run in own])
            colour = KINDS[kind].colour
            axis.plot(grid, bits.mean(0), color=colour, lw=1.6, label=KINDS[kind].label)
            axis.fill_between(grid, bits.min(0), bits.max(0), color=colour, alpha=0.2, lw=0)
            early.append(bits[:, len(grid) // 3 :].max())
            late.append(bits.min())
        axis.set_xlabel({"step": "training step", "seconds": "seconds of training, one core"}[key])
        axis.grid(alpha=0.3)
    # The fall of the first steps, common to all, is cut off.
    margin = 0.05 * (max(early) - min(late))
    axes[0].set_ylim(min(late) - margin, max(early) + margin)
    axes[0].set_ylabel("bits/dim on held-out images")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
    figure.savefig(path, dpi=150)
