"""Ratios within one run, kept as JSON and held against those of the last run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.harness.machine import machine, versions
from benchmarks.harness.memory import peak
from benchmarks.harness.timing import Case, in_turn, ratio

RESULTS = Path(__file__).parents[1] / "results"
"""Where `--keep` writes, and what a later run is held against."""
console = Console(width=110, highlight=False)


@dataclass(frozen=True)
class Record:
    """The time of one thing, as a multiple of the time of another one that was taken in turn with it."""

    case: str
    name: str
    reference: str
    ratio: float
    low: float
    high: float
    milliseconds: float
    peak: int | None = None
    """Bytes by which tensors grow at most during the call, from a call apart from the timed ones."""
    share: float | None = None
    """The part that is reached of the speed that the case's limit allows."""
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def key(self) -> str:
        return f"{self.case} | {self.name} | {self.reference}"


def measure(case: Case, rounds: int, group: str = "") -> list[Record]:
    times = in_turn(case.calls, case.rounds or rounds, seconds=case.seconds)
    found = []
    for name, seconds in times.items():
        middle, low, high = ratio(times, name, case.reference)
        millis = 1e3 * statistics.median(seconds)
        share = ratio(times, case.limits[name], name)[0] if name in case.limits else None
        where = f"{group}: {case.name}" if group else case.name
        held = None if name in case.limits.values() else peak(case.calls[name])
        sizes = dict(case.sizes)
        found.append(Record(where, name, case.reference, middle, low, high, millis, held, share, sizes))
    return found


def slower(new: Record, old: Record | None) -> float:
    """How many times slower than before, 1 where the quartiles overlap: these are noise."""
    limit = new.peak is None  # the machine's, not ours
    if old is None or limit or new.low <= old.high:
        return 1.0
    return new.ratio / old.ratio


def run(groups: Mapping[str, Iterable[Case]], rounds: int, path: Path, keep: bool) -> dict[str, Record]:
    """Measure, print, compare with the records in `path`, and replace them there if `keep`; all records, old and new.

    A table for each group: time, times the reference with its quartiles, peak of memory, what it was the last time.
    """
    before = read(path)
    found: list[Record] = []
    console.print(machine())
    for group, cases in groups.items():
        new: list[Record] = []
        with console.status(group) as status:
            for case in cases:
                status.update(f"{group}: {case.name}")
                new += measure(case, rounds, group)
        if new:
            show(group, new, before)
        found += new
    lost = [r for r in found if slower(r, before.get(r.key)) > 1.1]
    console.print(f"{len(found)} ratios, {len(lost)} slower than in {path.name}")
    for record in lost:
        console.print(f"  {slower(record, before[record.key]):.2f} times slower: {record.case}, {record.name}")
    together = {**before, **{r.key: r for r in found}}
    if keep:
        write(path, together)
    return together


def show(group: str, records: list[Record], before: Mapping[str, Record]) -> None:
    """One table for the cases of a group; `times` says how many times the row marked with 1 a call took."""
    limited = any(r.share for r in records)
    table = Table(title=group, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    headings = ["ms", "times", "quartiles", "MiB", "of limit", "last", "slower"]
    for heading in headings if limited else [h for h in headings if h != "of limit"]:
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for record in records:
        old, lost = before.get(record.key), slower(record, before.get(record.key))
        cells = [
            "" if record.case == last else record.case.removeprefix(f"{group}: "),
            record.name,
            f"{record.milliseconds:.3g}" if record.milliseconds < 100 else f"{record.milliseconds:.0f}",
            "1" if record.name == record.reference else f"{record.ratio:.2f}",
            "" if record.name == record.reference else f"{record.low:.2f}-{record.high:.2f}",
            "" if record.peak is None else f"{record.peak / 2**20:.1f}",
            "" if record.share is None else f"{record.share:.0%}",
            f"{old.ratio:.2f}" if old else "",
            f"{lost:.1f} x" if lost > 1.1 else "",
        ]
        if not limited:
            del cells[6]
        table.add_row(*cells)
        last = record.case
    console.print(table)


def read(path: Path) -> dict[str, Record]:
    if not path.exists():
        return {}
    return {r.key: r for r in (Record(**row) for row in json.loads(path.read_text())["records"])}


def write(path: Path, records: Mapping[str, Record], **more: Any) -> None:
    """The records with what they were measured with; `more` goes beside them."""
    when = datetime.now(timezone.utc).date().isoformat()
    rows = [asdict(r) for r in sorted(records.values(), key=lambda r: r.key)]
    rows = [{k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    path.write_text(json.dumps({"versions": versions(), "date": when, **more, "records": rows}, indent=1) + "\n")
    console.print(str(path))
