"""Ratios within one run, kept as JSON and held against those of the last run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from rich.console import Console
from rich.table import Table
from timing import Case, in_turn, machine, ratio


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

    @property
    def key(self) -> str:
        return f"{self.case} | {self.name} | {self.reference}"


def measure(case: Case, rounds: int) -> list[Record]:
    times = in_turn(case.calls, case.rounds or rounds)
    found = []
    for name, seconds in times.items():
        middle, low, high = ratio(times, name, case.reference)
        found.append(Record(case.name, name, case.reference, middle, low, high, 1e3 * statistics.median(seconds)))
    return found


def slower(new: Record, old: Record | None) -> float:
    """How many times slower than before, 1 where the quartiles overlap: these are noise."""
    if old is None or new.low <= old.high:
        return 1.0
    return new.ratio / old.ratio


def run(cases: Iterable[Case], rounds: int, path: Path, keep: bool) -> list[Record]:
    """Measure, print, compare with the records in `path`, and replace them there if `keep`."""
    before = read(path)
    console, found = Console(width=120), []
    console.print(machine(), highlight=False)
    for case in cases:
        table = Table("", "ms", f"times {case.reference}", "quartiles", "last", "", title=case.name, width=110)
        for record in measure(case, rounds):
            old = before.get(record.key)
            mark = f"{slower(record, old):.2f} times slower" if slower(record, old) > 1.1 else ""
            table.add_row(
                record.name,
                f"{record.milliseconds:.2f}",
                f"{record.ratio:.2f}",
                f"{record.low:.2f} to {record.high:.2f}",
                f"{old.ratio:.2f}" if old else "",
                mark,
            )
            found.append(record)
        console.print(table)
    lost = [r for r in found if slower(r, before.get(r.key)) > 1.1]
    console.print(f"{len(found)} ratios, {len(lost)} slower than in {path.name}", highlight=False)
    if keep:
        write(path, {**before, **{r.key: r for r in found}})
    return found


def read(path: Path) -> dict[str, Record]:
    if not path.exists():
        return {}
    return {r.key: r for r in (Record(**row) for row in json.loads(path.read_text())["records"])}


def write(path: Path, records: Mapping[str, Record]) -> None:
    when = datetime.now(timezone.utc).date().isoformat()
    rows = [asdict(r) for r in sorted(records.values(), key=lambda r: r.key)]
    rows = [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]
    path.write_text(json.dumps({"machine": machine(), "date": when, "records": rows}, indent=1) + "\n")
