"""Times of alternatives, taken in turn in one run, so that a drifting machine hits all of them alike."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

PACKAGES = ("numpy", "scipy", "normflows", "nflows", "FrEIA", "orthogonium", "deepinv", "pylops")


@dataclass(frozen=True)
class Case:
    """Things to be timed in turn, and the one that the others are held against."""

    name: str
    calls: Mapping[str, Callable[[], object]]
    reference: str
    rounds: int | None = None
    """In place of the run's own number, for what is slow."""
    seconds: float | None = None
    """After which no further round is begun, once there are five."""
    limits: Mapping[str, str] = field(default_factory=dict)
    """For a call, the other one that it cannot be faster than: the share of it that is reached is recorded."""
    sizes: Mapping[str, int] = field(default_factory=dict)
    """What the case varies."""


def machine() -> str:
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} threads, torch {torch.__version__}, Python {platform.python_version()}"


def processor() -> str:
    """The name of the GPU in use, or of the CPU."""
    if torch.cuda.is_initialized():
        return torch.cuda.get_device_name()
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()} ({platform.machine()})"


def versions() -> dict[str, str | int]:
    """What a result was measured with."""
    found: dict[str, str | int] = {"processor": processor(), "cores": os.cpu_count() or 0}
    found |= {"threads": torch.get_num_threads(), "system": platform.platform()}
    found |= {"Python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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


def synchronize() -> None:
    """Wait for the GPU, if one is in use: its work is only queued when a call returns."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def ratio(times: dict[str, list[float]], name: str, reference: str) -> tuple[float, float, float]:
    """Median, lower and upper quartile of time / time of the reference, pair by pair."""
    pairs = sorted(a / b for a, b in zip(times[name], times[reference], strict=True))
    low, median, high = statistics.quantiles(pairs, n=4, method="inclusive") if len(pairs) > 1 else pairs * 3
    return median, low, high


def peak(call: Callable[[], object]) -> int:
    """Bytes: by how much the memory of PyTorch's tensors grows at most during one call.

    Of tensors rather than of the process, whose allocator keeps what it was given.  On the CPU the workspace of MKL and
    oneDNN is not seen, and tensors from before the call that it frees are not subtracted.
    """
    if torch.cuda.is_initialized():
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    live: dict[int, int] = {}
    held = most = 0
    for _, address, size in sorted(_allocations(profiler.profiler.kineto_results.experimental_event_tree())):
        if size > 0:
            live[address] = size
            held += size
        else:
            held -= live.pop(address, 0)  # the profiler may give a tensor from before the call another's size
        most = max(most, held)
    return most


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes), negative where memory is freed."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler tells standard error, past Python, that it starts and of each tensor older than itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def show(times: dict[str, list[float]], reference: str) -> None:
    for name, seconds in times.items():
        median, low, high = ratio(times, name, reference)
        millis = 1e3 * statistics.median(seconds)
        print(f"  {name:<44} {millis:10.2f} ms   {median:8.2f} x {reference}  (quartiles {low:.2f} to {high:.2f})")
