"""A call in a process of its own: what it came to, its time, and its memory at the peak."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a call."""

    value: Any = None
    error: str = ""
    peak: int = 0
    """Bytes above those held before the call."""
    seconds: float = 0.0
    """Of the processor."""


def call_apart(call: Callable[[], Any], seconds: float, memory: int) -> Outcome:
    """The outcome of a call in a forked process that may take so many seconds and bytes."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(call, there, memory))
    process.start()
    there.close()
    try:
        before = here.recv()
        if here.poll(seconds):
            outcome = here.recv()
        else:
            taken = _status("VmHWM", process.pid) - before
            outcome = Outcome(error=f"not done after {seconds:.0f} s", peak=taken, seconds=seconds)
    except EOFError:
        outcome = Outcome(error="killed")
    process.kill()
    process.join()
    return outcome


def _work(call: Callable[[], Any], answer: Connection, memory: int) -> None:
    warnings.simplefilter("ignore")
    gc.collect()
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + memory,) * 2)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = _status("VmRSS"), time.process_time()
    answer.send(before)
    try:
        outcome = Outcome(call())
    except BaseException as error:  # the child tells everything that it dies of
        outcome = Outcome(error=f"{type(error).__name__}: {error}"[:300] or traceback.format_exc())
    taken = time.process_time() - start
    answer.send(Outcome(outcome.value, outcome.error, _status("VmHWM") - before, taken))


def _status(name: str, process: int | str | None = "self") -> int:
    """Bytes that the kernel tells of a process."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)
