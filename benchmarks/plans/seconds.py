"""Seconds of each way against `plan()`, and of the way that `auto` takes against the fastest: within 4, and within 3?

    python -m benchmarks.plans seconds
    python -m benchmarks.plans seconds --only tall blur --answers 1 100

Each way that has a plan is taken in a process of its own, whether `auto` would take it or not: its factors, known
images included, and an answer for one image; told is the time of the processor.  A way counts as serving where known
images come back as exactly as is asked for, or as the best way brings them back.  Ends with 1 where `auto` is slower
than 3 times the fastest that serves, for one answer or for a hundred.
"""

from __future__ import annotations

import argparse
import math
from functools import partial

import torch
from rich import box
from rich.table import Table

from benchmarks.harness.engine import Taken, taken_by, ways
from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from benchmarks.plans.apart import call_apart
from benchmarks.plans.layers import Layer, chosen
from invconv import Plan

QUICK = {"only": ["zeros c=3 16", "tall 3 to 64, 16"]}
SLOWER = 3
MISSED = 4
HOPELESS = 0.5
"""Error of known images at which a way serves nobody: what `auto` refuses then."""
LEAST = 0.01
"""Seconds below which nobody waits: what is below counts as this."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", default=[""], help="layers whose names contain one of these")
    parser.add_argument("--answers", nargs="+", type=int, default=[1, 100], help="for how many images")
    parser.add_argument("--seconds", type=float, default=60, help="time that a way may take")
    parser.add_argument("--gib", type=float, default=12, help="memory that a way may take")


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    console.print(machine())
    table = Table("layer", "way", "error", "factors: s", "foreseen", "each: s", "foreseen", box=box.MARKDOWN)
    slow: list[str] = []
    missed: list[str] = []
    room = int(options.gib * 2**30)
    for name, layer in chosen(options.only).items():
        serving = _served(table, name, layer, options.seconds, room)
        for answers in options.answers:
            operator = layer.build(answers=answers).operator(layer.size)
            outcome = call_apart(partial(taken_by, operator), options.seconds, room)
            row = f"**auto for {answers}**"
            if outcome.value is None:
                table.add_row(name, row, outcome.error[:40])
                slow += [f"{name}, {answers}: {outcome.error[:60]}"] if serving else []
                continue
            auto, plan = outcome.value
            table.add_row(name, f"{row}: {plan.solver}", *_figures(auto, plan))
            time, foreseen = auto.time_for(answers), plan.seconds_for(answers)
            fastest = min((t.time_for(answers) for t in serving), default=math.inf)
            if time > SLOWER * max(LEAST, fastest):
                slow.append(f"{name}, {answers}: {time:.2g} s by {plan.solver}, {fastest:.2g} s is possible")
            if not 1 / MISSED < max(LEAST, foreseen) / max(LEAST, time) < MISSED:
                missed.append(f"{name}, {answers}: {plan.solver}, {foreseen:.2g} s foreseen, {time:.2g} s taken")
    console.print(table)
    count = len(options.answers) * len(chosen(options.only))
    for what, found in ((f"slower than {SLOWER} times the fastest", slow), (f"foreseen {MISSED} times off", missed)):
        console.print(f"{len(found)} of {count} {what}")
        for line in found:
            console.print("  " + line, soft_wrap=True, markup=False)
    if slow or missed:
        raise SystemExit(1)


def _served(table: Table, name: str, layer: Layer, seconds: float, room: int) -> list[Taken]:
    """What each way took that serves: as exact as is asked for, or nearly as the best."""
    taken = []
    for way, (plan, call) in ways(layer.build(), layer.size).items():
        outcome = call_apart(call, seconds, room)
        if outcome.value is None:
            table.add_row(name, way, outcome.error[:40], "", f"{plan.seconds:.2g}", "", f"{plan.seconds_each:.2g}")
            continue
        taken.append(outcome.value)
        table.add_row(name, way, *_figures(outcome.value, plan))
    best = min((t.error for t in taken), default=0.0)
    return [t for t in taken if t.error <= max(t.enough, 10 * best) and t.error < HOPELESS]


def _figures(taken: Taken, plan: Plan) -> list[str]:
    figures = taken.factors, plan.seconds, taken.answer, plan.seconds_each
    return [f"{taken.error:.0e}", *(f"{figure:.2g}" for figure in figures)]
