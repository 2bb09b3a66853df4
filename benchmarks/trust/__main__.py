"""Is a wrong answer ever given without a word? Random layers, each verb against the dense matrix in float64.

python -m benchmarks.trust                          # 1,000 layers, minutes
python -m benchmarks.trust --verbs gradients values # of these verbs only
python -m benchmarks.trust --seed 1 --cases 5000    # other ones, more of them
python -m benchmarks.trust --known                  # those that are known to be hard
python -m benchmarks.trust --case box47             # one of these, or what a line below the table has between braces

The layers are random geometries (1-D to 3-D, strides, dilations, groups, all borders, kernels larger than the image)
times random kernels: near the identity, normal, nearly singular, of lower rank, of zeros; times powers of ten; damped;
in both dtypes; by every solver.  What counts as right is told in `benchmarks/trust/judge.py`, what it is held
against in `benchmarks/trust/reference.py`.

The table counts what became of the answers of each kind and verb.  Below it stand the ratio of the error that
`report()` states to the true one, and a line for each fault, which starts with the dictionary that makes it again.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import Counter

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness.command import ask
from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from benchmarks.trust.cases import NAMED, Case, draw
from benchmarks.trust.judge import FAULTS, OUTCOMES, Finding, Judge

QUICK = {"cases": 60}
VERBS = ("inverse", "gradients", "log_dets", "values", "report")
ORDER = {outcome: place for place, outcome in enumerate(FAULTS)}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--verbs", nargs="+", default=VERBS, choices=VERBS, help="what is asked for; all by default")
    parser.add_argument("--cases", type=int, default=1000, help="how many layers")
    parser.add_argument("--seed", type=int, default=0, help="of the layers")
    parser.add_argument("--known", action="store_true", help="those that are known to be hard, in place of random ones")
    parser.add_argument("--case", help="one alone: a name or a dictionary")


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    console.print(machine())
    verbs = tuple(options.verbs)
    if options.case:
        for finding in examine(Case.of(options.case), verbs):
            console.print(described(finding), soft_wrap=True, markup=False)
        return
    cases = list(NAMED.values()) if options.known else [draw(options.seed, index) for index in range(options.cases)]
    start = time.perf_counter()
    found = [(case, finding) for case in cases for finding in examine(case, verbs)]
    tell(found)
    console.print(f"{len(cases)} layers, {time.perf_counter() - start:.0f} s")


def examine(case: Case, verbs: tuple[str, ...] = VERBS) -> list[Finding]:
    """What became of one case."""
    return [f for f in Judge(case).findings(verbs) if f.verb not in ("report", "bias") or "report" in verbs]


def tell(found: list[tuple[Case, Finding]]) -> None:
    """The table, the ratios, and a line for each fault."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for case, finding in found:
        counts.setdefault((case.kind, finding.verb), Counter())[finding.outcome] += 1
    table = Table(box=box.MARKDOWN)
    for heading in ("kind", "verb", *OUTCOMES):
        table.add_column(heading, justify="left" if heading in ("kind", "verb") else "right")
    for kind, verb in sorted(counts):
        table.add_row(kind, verb, *(str(counts[kind, verb][outcome] or "") for outcome in OUTCOMES))
    total = sum(counts.values(), Counter())
    table.add_row("all", "", *(str(total[outcome] or "") for outcome in OUTCOMES))
    Console(width=150, highlight=False).print(table)
    ratios = sorted(float(f.note) for _, f in found if f.verb == "report" and math.isfinite(float(f.note)))
    if len(ratios) > 1:
        within = sum(0.1 <= ratio <= 10 for ratio in ratios) / len(ratios)
        low, *_, high = statistics.quantiles(ratios, n=20)
        console.print(
            f"stated error over true error: {within:.1%} of {len(ratios)} within a factor of 10; "
            f"smallest {ratios[0]:.2g}, 5 % {low:.2g}, median {statistics.median(ratios):.2g}, 95 % {high:.2g}, "
            f"largest {ratios[-1]:.2g}"
        )
    tell_faults([(case, finding) for case, finding in found if finding.outcome in FAULTS])


def tell_faults(faults: list[tuple[Case, Finding]]) -> None:
    """How many there are of each outcome, way and verb, and a line for each layer that has some, the worst first."""
    kinds = Counter((finding.outcome, finding.way or "none", finding.verb) for _, finding in faults)
    for (outcome, way, verb), count in sorted(kinds.items(), key=lambda pair: (ORDER[pair[0][0]], -pair[1])):
        console.print(f"{count:>5}  {outcome}: {verb}, by {way}")
    by_case: dict[str, list[Finding]] = {}
    for case, finding in faults:
        by_case.setdefault(str(case), []).append(finding)
    for text, findings in sorted(by_case.items(), key=lambda pair: _badness(pair[1])):
        console.print(f"{text} [{findings[0].way}] {'; '.join(map(described, findings))}", soft_wrap=True, markup=False)


def _badness(findings: list[Finding]) -> tuple[int, str, str]:
    worst = min(findings, key=lambda finding: ORDER[finding.outcome])
    return ORDER[worst.outcome], worst.way, worst.verb


def described(finding: Finding) -> str:
    """A finding in a few words."""
    numbers = {"stated": finding.stated, "rounding": finding.moved}
    said = ", ".join(f"{name} {value:.0e}" for name, value in numbers.items() if value == value)
    return f"{finding.verb} {finding.outcome.upper()} {finding.error:.1e} ({said}) {finding.note}".strip()


if __name__ == "__main__":
    ask("trust", __doc__, sys.modules[__name__])
