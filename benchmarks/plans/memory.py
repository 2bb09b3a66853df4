"""Memory at the peak of each verb against `plan().bytes`: never above 1.5 times and 200 MiB?

    python -m benchmarks.plans memory
    python -m benchmarks.plans memory --only audio box

Each verb of each layer is asked in a process of its own, whose peak is counted from just before; of a call that was not
done in time, until then.  Where the first way has lost its digits, it is `plan().bytes_if_lost` that has to hold: such
peaks are marked "lost".  Ends with 1 where a peak is above.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table

from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from benchmarks.plans.apart import call_apart
from benchmarks.plans.layers import Layer, chosen
from invconv import InvconvError

QUICK = {"only": ["zeros c=3 16", "tall 3 to 64, 16"]}
MIB = 2**20
SPARE = 200 * MIB
FACTOR = 1.5


def inverse(conv: Any, layer: Layer) -> None:
    """An inverse, with its gradients."""
    y = conv(torch.randn(1, layer.channels[0], *layer.size, dtype=conv.weight.dtype)).detach().requires_grad_()
    conv.inverse(y, layer.size).square().sum().backward()


VERBS: dict[str, Callable[[Any, Layer], Any]] = {
    "inverse": inverse,
    "report": lambda conv, layer: conv.operator(layer.size).report(),
    "log_volume": lambda conv, layer: conv.log_volume(layer.size).backward(),
    "condition": lambda conv, layer: conv.condition_number(layer.size),
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[""], help="layers whose names contain one of these")
    parser.add_argument("--seconds", type=float, default=120, help="time that a call may take")
    parser.add_argument("--gib", type=float, default=12, help="memory that a call may take")


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    console.print(machine())
    table = Table("layer", "plan", "MiB", *VERBS, box=box.MARKDOWN)
    above = lost = 0
    for name, layer in chosen(options.only).items():
        plan = layer.build().operator(layer.size).plan()
        cells = []
        for verb_name, verb in VERBS.items():
            outcome = call_apart(partial(_asked, verb, layer), options.seconds, int(options.gib * 2**30))
            first, others = (FACTOR * foreseen + SPARE for foreseen in _foreseen(layer, verb_name))
            above += outcome.peak > max(first, others)
            lost += first < outcome.peak <= others
            mark = "" if outcome.peak <= first else " lost" if outcome.peak <= others else " ABOVE"
            said = outcome.value or outcome.error.partition(":")[0]
            cells.append(f"{outcome.peak / MIB:.0f}{mark}{f' ({said})' if said else ''}")
        table.add_row(name, plan.solver, f"{plan.bytes / MIB:.0f}", *cells)
        console.print(name, plan.solver, *cells, soft_wrap=True, markup=False, style="dim")
    console.print(table)
    count = len(chosen(options.only))
    console.print(
        f"{count} layers, {len(VERBS)} verbs: {above} peaks above {FACTOR} times the plan and {SPARE // MIB} MiB, "
        f"{lost} above those of a first way that lost its digits"
    )
    if above:
        raise SystemExit(1)


def _asked(verb: Callable[[Any, Layer], Any], layer: Layer) -> str:
    """Nothing, or that it was refused."""
    try:
        verb(layer.build(), layer)
    except InvconvError:
        return "refused"
    return ""


def _foreseen(layer: Layer, verb: str) -> tuple[int, int]:
    """Bytes that the plan foresees, by the first way and where it loses its digits; 0 where it refuses."""
    try:
        plan = layer.build().operator(layer.size).plan(volume=verb == "log_volume")
    except InvconvError:
        return 0, 0
    return plan.bytes, plan.bytes_if_lost
