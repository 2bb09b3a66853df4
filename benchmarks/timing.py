"""Times of alternatives, taken in turn in one run, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Case:
    """Things to be timed in turn, and the one that the others are held against."""

    name: str
    calls: Mapping[str, Callable[[], object]]
    reference: str
    rounds: int | None = None
    """In place of the run's own number, for what is slow."""


def machine() -> str:
    threads = torch.get_num_threads()
    return f"{platform.machine()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


def in_turn(calls: Mapping[str, Callable[[], object]], rounds: int, warm_up: int = 3) -> dict[str, list[float]]:
    """Seconds of each call, round by round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(warm_up + rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if index >= warm_up:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str, reference: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of time / time of the reference, pair by pair."""
    pairs = sorted(a / b for a, b in zip(times[name], times[reference], strict=True))
    low, median, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
    return median, low, high


def show(times: dict[str, list[float]], reference: str) -> None:
    for name, seconds in times.items():
        median, low, high = ratio(times, name, reference)
        millis = 1e3 * statistics.median(seconds)
        print(f"  {name:<44} {millis:10.2f} ms   {median:8.2f} x {reference}  (quartiles {low:.2f} to {high:.2f})")
