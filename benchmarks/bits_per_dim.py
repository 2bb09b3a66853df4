"""Bits/dim after ten minutes: the demo flow with five kinds of invertible convolution, all else alike.

    python benchmarks/bits_per_dim.py --data cifar10_subset.npz --seconds 600 --seeds 0 1 2

`--data` is any .npz with uint8 arrays `x_train` and `x_test`, (count, 3, 32, 32).  All runs of a seed see the same
batches and the same noise; the kernels learn at a multiple of the networks' rate, chosen for each kind by shorter runs.

Each run is a process of one thread, pinned to a core of its own, as many at a time as there are cores.  The clock is
the CPU time of that process: the wall-clock time on an otherwise idle machine, and hardly touched by what else runs.
It stands still while batches are drawn and held-out images are scored.  The learning rate warms up for 50 steps and
falls to zero as a cosine over the seconds, not the steps: each kind ends its own annealing when its time is up, and at
equal steps the slower kind has annealed further.

Each run is written to `--out` when it is over and is not run again unless with `--again`; `--tell` only reads them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import shutil
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from demo_flow import demo_flow, with_layers
from rich.console import Console
from rich.table import Table
from rivals import ConvExponential, Emerging
from timing import machine
from torch import Tensor

from invconv import IllConditionedWarning
from invconv.flows import ConvFlow, MultiScaleFlow, parameter_groups

POINTS = 12
WARM_UP = 50
SHARES = {"1/4": 0.25, "1/2": 0.5, "all": 1.0}
REFERENCE = "1x1"
SETTINGS = "seconds", "batch", "lr"


@dataclass(frozen=True)
class Kind:
    """A flow from a seed, and how it is told."""

    label: str
    colour: str
    flow: Callable[[int], MultiScaleFlow]
    kernel_rate: float
    """How many times faster the kernels learn than the networks; chosen from 1, 3, 10 and 30 by shorter runs."""


# Okabe and Ito's colours, told apart by everyone.
KINDS = {
    "1x1": Kind("1 x 1", "#000000", lambda seed: demo_flow(seed, kernel_size=1), 30.0),
    "circular": Kind(
        "3 x 3, circular",
        "#0072B2",
        lambda seed: demo_flow(seed, kernel_size=3, rho=0.9, padding_mode="circular"),
        10.0,
    ),
    "zeros": Kind(
        "3 x 3, zeros",
        "#009E73",
        lambda seed: demo_flow(seed, kernel_size=3, rho=0.9, padding_mode="zeros"),
        10.0,
    ),
    "exponential": Kind(
        "convolution exponential",
        "#E69F00",
        lambda seed: with_layers(demo_flow(seed, kernel_size=1), ConvExponential),
        10.0,
    ),
    "emerging": Kind(
        "emerging, a pair of masked convolutions",
        "#CC79A7",
        lambda seed: with_layers(demo_flow(seed, kernel_size=1), lambda channels, size: Emerging(channels)),
        3.0,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="an .npz; not needed with --tell")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kernel-rate", type=float, help="in place of that of each kind")
    parser.add_argument("--jobs", type=int, default=len(cores()), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/bits_per_dim"))
    parser.add_argument("--again", action="store_true", help="run also what is in --out")
    parser.add_argument("--tell", action="store_true", help="run nothing")
    parser.add_argument("--keep", action="store_true", help="keep the figure and the rows beside this file")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not (options.tell or options.data):
        parser.error("--data is needed")
    if options.core is not None:
        one_run(options)
        return
    if not options.tell:
        run_all(options)
    tell(options)


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def file_of(out: Path, kind: str, seed: int) -> Path:
    return out / f"{kind}-{seed}.json"


def read(options: argparse.Namespace) -> dict[tuple[str, int], dict]:
    files = {(kind, seed): file_of(options.out, kind, seed) for kind in options.kinds for seed in options.seeds}
    return {each: json.loads(path.read_text()) for each, path in files.items() if path.exists()}


def settings_of(run: dict) -> tuple[float, ...]:
    return tuple(run[name] for name in SETTINGS)


def rate_of(kind: str, options: argparse.Namespace) -> float:
    return options.kernel_rate or KINDS[kind].kernel_rate


def run_all(options: argparse.Namespace) -> None:
    """Each missing run in a process of its own, on the next core that is free."""
    options.out.mkdir(parents=True, exist_ok=True)
    free: queue.Queue[int] = queue.Queue()
    for slot in range(options.jobs):
        free.put(cores()[slot % len(cores())])

    def run(kind: str, seed: int) -> None:
        core = free.get()
        common = [f"--{name}={getattr(options, name)}" for name in ("data", *SETTINGS, "out")]
        common += [f"--kernel-rate={options.kernel_rate}"] if options.kernel_rate else []
        which = ["--kinds", kind, "--seeds", str(seed), "--core", str(core)]
        try:
            subprocess.run(
                [sys.executable, __file__, *common, *which], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
        finally:
            free.put(core)

    there = {} if options.again else read(options)
    for (kind, _), run in there.items():
        if settings_of(run) != settings_of(vars(options)) or run["kernel_rate"] != rate_of(kind, options):
            raise SystemExit(f"{options.out} has runs of other rates, {SETTINGS}: another --out, or --again")
    missing = [(kind, seed) for seed in options.seeds for kind in options.kinds if (kind, seed) not in there]
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(run, *each) for each in missing]:
            future.result()


def one_run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    warnings.simplefilter("ignore", IllConditionedWarning)
    (kind,), (seed,) = options.kinds, options.seeds
    rate = rate_of(kind, options)
    run = train(kind, seed, options.data, options.seconds, options.batch, options.lr, rate)
    path = file_of(options.out, kind, seed)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**run, "machine": machine()}))
    part.replace(path)


def train(kind: str, seed: int, data: str, seconds: float, batch: int, lr: float, kernel_rate: float) -> dict:
    """One run: the held-out curve, and every training loss."""
    images = np.load(data)
    x_train, x_test = (torch.from_numpy(images[name]) for name in ("x_train", "x_test"))
    flow = KINDS[kind].flow(seed)
    optimizer = torch.optim.Adam(parameter_groups(flow, lr, kernel_rate, (ConvFlow, ConvExponential, Emerging)))
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    curve: list[dict] = []
    clock = 0.0
    while clock < seconds:
        x = x_train[torch.randint(len(x_train), (batch,), generator=generator)]
        x = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        start = time.process_time()
        share = min(1.0, (len(losses) + 1) / WARM_UP) * (1 + math.cos(math.pi * clock / seconds)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = share * rate
        loss = flow.bits_per_dim(x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        clock += time.process_time() - start
        # A point as the clock passes each of the marks; the last of them is the end.
        if clock >= seconds * (len(curve) + 1) / POINTS:
            curve.append({"step": len(losses), "seconds": clock, **score(flow, x_test)})
            print(f"{KINDS[kind].label}, seed {seed}: {curve[-1]}", file=sys.stderr, flush=True)
    about = {"kind": kind, "seed": seed, "seconds": seconds, "batch": batch, "lr": lr, "kernel_rate": kernel_rate}
    return {**about, "curve": curve, "losses": losses}


@torch.no_grad()
def score(flow: MultiScaleFlow, x_test: Tensor) -> dict:
    flow.eval()
    noise = torch.Generator().manual_seed(0)
    bits = torch.cat([flow.bits_per_dim(part, generator=noise) for part in x_test.split(128)]).mean().item()
    conditions = [c.item() for c in flow.condition_numbers().values()]
    error = flow.reconstruction_error(x_test[:64], generator=noise).max().item()
    flow.train()
    return {"bits": bits, "condition": max(conditions, default=None), "error": error}


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
        here = Path(__file__)
        shutil.copy(figure, here.with_suffix(".png"))
        run = next(iter(runs.values()))
        about = {name: run[name] for name in (*SETTINGS, "machine")}
        about["date"] = datetime.now(timezone.utc).date().isoformat()
        here.with_suffix(".json").write_text(json.dumps(rounded({**about, "rows": rows}), indent=1) + "\n")


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


def spread(values: object, kind: str = ".3f") -> str:
    """Mean and standard deviation over the seeds."""
    values = list(values)  # type: ignore[call-overload]
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


if __name__ == "__main__":
    main()
