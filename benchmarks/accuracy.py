"""How exact is it? Errors of the inverse and of the log-determinant against the condition number, beside eps times it.

python -m benchmarks.accuracy           # a minute
python -m benchmarks.accuracy --keep    # results/accuracy.json and results/accuracy.png are replaced

The kernels are 3 x 3, K_u = U diag(s) V' E_u with orthogonal U and V, s from 1 down geometrically, and E near an
isometry: any condition, at any borders.  The condition is the one of the explicit matrix or of its blocks, in float64.

inverse: ||inverse(conv(x)) - x|| / ||x||, the rounding of conv(x) included, which no method can undo.
log-det: |log|det| - truth| in nats for each of the N unknowns, of which there are N in log|det|; relative errors of the
singular values of eps times the condition would give as much.  The truth comes from the explicit matrix, in float64.

Beside ours the FFT recipe (`torch.linalg.pinv` for each frequency, which is meant for circular borders) and the
periodic convolution of the emerging paper (LU for each frequency).  Largest and median of the seeds' errors, as
multiples of eps times the condition.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from benchmarks.harness.command import ask
from benchmarks.harness.figures import Curve, Panel, draw
from benchmarks.harness.machine import machine, versions
from benchmarks.harness.record import RESULTS, console
from benchmarks.rivals.layers import PeriodicConv
from benchmarks.rivals.recipe import multiply, recipe
from invconv import IllConditionedWarning, InvertibleConv2d, SingularMapError

QUICK = {"seeds": 1, "step": 6}
SIZES = {"circular": (8, 16), "zeros": (4, 10)}
"""Channels and image side: the explicit matrix of real borders has 400 squared entries."""
DTYPES = (torch.float32, torch.float64)
OURS, RECIPE, PERIODIC = "invconv", "FFT recipe", "emerging, periodic"


def layer(borders: str, condition: float, seed: int, dtype: torch.dtype) -> InvertibleConv2d:
    """A layer of about this condition, whose weight is a number of `dtype`: float64 can look at the very same one."""
    torch.manual_seed(seed)
    channels, _ = SIZES[borders]
    conv = InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=borders, bias=False, dtype=torch.float64)
    u, v = (torch.linalg.qr(torch.randn(channels, channels, dtype=torch.float64))[0] for _ in range(2))
    values = condition ** -torch.linspace(0, 1, channels, dtype=torch.float64)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("ij,j,kj,klab->ilab", u, values, v, conv.weight))
    return conv.to(dtype)


@torch.no_grad()
def errors(borders: str, condition: float, seed: int, dtype: torch.dtype) -> dict[str, float]:
    """The condition, and for each method the errors of inverse and log-det; NaN where it refuses to answer."""
    conv = layer(borders, condition, seed, dtype)
    side = SIZES[borders][1]
    size = (side, side)
    exact = copy.deepcopy(conv).double()
    dense = exact.operator(size).to_dense()
    found = {"condition": exact.condition_number(size).item()}
    truth = torch.linalg.slogdet(dense)[1].item()

    x = torch.randn(1, conv.in_channels, *size, dtype=dtype)
    y = conv(x)
    periodic = PeriodicConv(conv.in_channels).to(dtype)
    periodic.weight.copy_(conv.weight)
    inverses: dict[str, Callable[[], Tensor]] = {
        OURS: lambda: conv.inverse(y),
        RECIPE: lambda: multiply(recipe(conv.weight, size), y),
    }
    log_dets: dict[str, Callable[[], Tensor]] = {OURS: lambda: conv.log_abs_det(size)}
    if borders == "circular":
        inverses[PERIODIC] = lambda: periodic.inverse(y)
        log_dets[PERIODIC] = lambda: periodic.log_abs_det(size)
    for name, inverse in inverses.items():
        found[f"inverse, {name}"], warned = answer(inverse, lambda x_hat: ((x_hat - x).norm() / x.norm()).item())
        if name == OURS:
            found["warned"] = float(warned)
    for name, log_det in log_dets.items():
        found[f"log-det, {name}"], _ = answer(log_det, lambda value: abs(value.item() - truth) / len(dense))
    return found


def answer(call: Callable[[], Tensor], error_of: Callable[[Tensor], float]) -> tuple[float, bool]:
    """The error, NaN where no answer is given, and whether its user was told that it may be large."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            error = error_of(call())
        except (SingularMapError, torch.linalg.LinAlgError):
            return math.nan, True
    return error, any(issubclass(w.category, IllConditionedWarning) for w in caught)


def summary(rows: list[dict[str, float]], name: str, eps: float) -> dict[str, float]:
    """The median error, and the largest one as a multiple of eps times the condition."""
    pairs = [(row[name], row[name] / (eps * row["condition"])) for row in rows if not math.isnan(row[name])]
    if not pairs:
        return {"median": math.nan, "largest": math.nan, "typical_multiple": math.nan, "largest_multiple": math.nan}
    found, multiples = zip(*pairs, strict=True)
    return {
        "median": statistics.median(found),
        "largest": max(found),
        "typical_multiple": statistics.median(multiples),
        "largest_multiple": max(multiples),
    }


def show(results: list[dict]) -> None:
    names = list(dict.fromkeys(name for result in results for name in result["errors"]))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("borders", "dtype"):
        table.add_column(heading, no_wrap=True)
    table.add_column("condition", justify="right", no_wrap=True)
    for name in names:
        table.add_column(name.replace(", ", "\n"), justify="right")
    table.add_column("invconv\nwarns", justify="right")
    for result in results:
        cells = [f"{result['condition']:.0e}"]
        for name in names:
            one = result["errors"].get(name)
            if one is None:
                cells.append("")
            elif math.isnan(one["median"]):
                cells.append("refused")
            else:
                times = one["largest_multiple"]
                cells.append(f"{one['median']:.0e} " + (f"{times:5.2g}" if times < 100 else f"{times:5.0e}"))
        told = "" if result["warned"] == 0 else "yes" if result["warned"] == 1 else f"{result['warned']:.0%}"
        table.add_row(result["borders"], result["dtype"], *cells, told)
    console.print("median error, and the largest one as a multiple of eps times the condition")
    console.print(table)
    for name in names:
        worst = max(
            (r["errors"][name]["largest_multiple"] for r in results if name in r["errors"] and r["in_reach"]),
            key=lambda value: -math.inf if math.isnan(value) else value,
        )
        console.print(f"{name}: at most {worst:.2g} times eps times the condition, where that is below 1")


def figure(results: list[dict], path: Path) -> None:
    rows = []
    for question in ("inverse", "log-det"):
        row = []
        for borders, dtype in product(SIZES, DTYPES):
            kind = str(dtype).removeprefix("torch.")
            some = [r for r in results if (r["borders"], r["dtype"]) == (borders, kind)]
            some.sort(key=lambda r: r["condition"])  # rounding the weight changes it
            curves = {}
            for name in (OURS, RECIPE, PERIODIC):
                key = f"{question}, {name}"
                pairs = [(r["condition"], r["errors"][key]) for r in some if key in r["errors"]]
                # What is exactly right has no place on a logarithmic axis.
                pairs = [(c, e) for c, e in pairs if e["median"] > 0]
                if pairs:
                    x = [c for c, _ in pairs]
                    curves[name] = Curve(x, [e["median"] for _, e in pairs])
            x = [r["condition"] for r in some]
            curves["eps times condition"] = Curve(x, [min(1.0, torch.finfo(dtype).eps * c) for c in x], style="--")
            what = "relative error" if question == "inverse" else "error, nats per unknown"
            row.append(Panel(f"{question}: {borders}, {kind}", "condition number", what, curves, ticks=False))
        rows.append(row)
    draw(path, rows, "Error against condition number, median of the seeds")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--keep", action="store_true", help="replace accuracy.json and accuracy.png")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--step", type=int, default=2, help="in powers of ten, from 1 to 1e12")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where --keep writes")


def main(options: argparse.Namespace) -> None:
    console.print(machine())
    results = []
    for borders, dtype, power in product(SIZES, DTYPES, range(0, 13, options.step)):
        eps = torch.finfo(dtype).eps
        rows = [errors(borders, 10.0**power, seed, dtype) for seed in range(options.seeds)]
        condition = statistics.median(row["condition"] for row in rows)
        names = [name for name in rows[0] if name not in ("condition", "warned")]
        results.append(
            {
                "borders": borders,
                "dtype": str(dtype).removeprefix("torch."),
                "condition": condition,
                "in_reach": eps * condition < 1,
                "warned": sum(row["warned"] for row in rows) / len(rows),
                "errors": {name: summary(rows, name, eps) for name in names},
            }
        )
    show(results)
    if options.keep:
        path = options.out / "accuracy.json"
        kept = {"versions": versions(), "seeds": options.seeds, "results": results}
        path.write_text(json.dumps(kept, indent=1).replace("NaN", "null") + "\n")
        console.print(str(path))
        figure(results, options.out / "accuracy.png")


if __name__ == "__main__":
    ask("accuracy", __doc__, sys.modules[__name__])
