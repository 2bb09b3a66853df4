"""Times of alternatives, taken in turn in one run, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.harness.machine import synchronize


@dataclass(frozen=True)
class Case:
    """Things to be timed in turn, and the one that the others are held against."""

    name: str
    calls: Mapping[str, Callable[[], object]]
    reference: str
    rounds: int | None = None
    """Number of rounds for what is slow, in place of the run's own."""
    seconds: float | None = None
    """Time after which no further round is begun, once there are five."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """For a call, the other one that it cannot be faster than: the share of it that is reached is recorded."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What the case varies."""


def in_turn(
    calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3, seconds: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, round by round: `rounds` of them, or five and as many more as `seconds` allow."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    while warm_up > 0 and not _spent(began, seconds and seconds / 4):
        warm_up -= 1
        for call in calls.values():
            call()
    began = time.perf_counter()
    for index in range(rounds):
        if index >= 5 and _spent(began, seconds):
            break
        for name, call in calls.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            times[name].append(time.perf_counter() - start)
    return times


def _spent(began: float, seconds: float | None) -> bool:
    return seconds is not None and time.perf_counter() - began > seconds


def ratio(times: dict[str, list[float]], name: str, reference: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of time / time of the reference, pair by pair."""
    pairs = sorted(a / b for a, b in zip(times[name], times[reference], strict=True))
    low, median, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return median, low, high


def show(times: dict[str, list[float]], reference: str) -> None:
    for name, seconds in times.items():
        median, low, high = ratio(times, name, reference)
        millis = 1e3 * statistics.median(seconds)
        print(f"  {name:<44} {millis:10.2f} ms   {median:8.2f} x {reference}  (quartiles {low:.2f} to {high:.2f})")
