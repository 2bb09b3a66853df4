"""How much memory there is to be had: of the machine, of the container, and of what the process may still ask for."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

COUNTS = 0.02
"""Seconds for which a reading counts, in which the layers of a step are planned.  Speed only."""

_reading = [-math.inf, 0.0]
"""When what is free was read last, and how much it was."""


def available_memory(device: torch.device) -> int:
    """Bytes that can be had on a device.

    This function is looked up in this module at each call, so that a test can put another answer in its place.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    now = time.monotonic()
    if not now - _reading[0] < COUNTS:
        machine = psutil.virtual_memory()
        _reading[:] = now, max(0, min(int(machine.available), *_left(machine.total)))
    return int(_reading[1])


def shortage(device: torch.device, needed: float, what: str, share: float = 0.9) -> str:
    """Why this much memory cannot be had; empty where it can.

    Args:
        device: where it is needed.
        needed: bytes at the peak.
        what: needs them, as the subject of a sentence.
        share: of what is free that may be taken.
    """
    free = available_memory(device)
    if needed <= share * free:
        return ""
    return f"{what} needs about {_told(needed)}, of which {_told(free)} are free on {device}"


def _told(count: float) -> str:
    """Bytes in words."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _containers() -> Iterator[tuple[str, str, str]]:
    """Where Linux tells of a container its limit, its use, and by what name the part of the use that can be had back.

    In the second version of control groups, and in the first.
    """
    yield "/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "inactive_file"
    first = "/sys/fs/cgroup/memory"
    yield f"{first}/memory.limit_in_bytes", f"{first}/memory.usage_in_bytes", "total_inactive_file"


def _left(total: int) -> Iterator[int]:
    """What each limit that is set leaves, of a machine with so many bytes; at least one number."""
    yield total
    if sys.platform != "win32":
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            yield most - psutil.Process().memory_info().vms
    for limit, use, spare in _containers():
        try:
            most = int(Path(limit).read_text())  # or the word "max", which is no limit
            if most < total:
                lines = Path(use).with_name("memory.stat").read_text().splitlines()
                idle = sum(int(count) for name, count in map(str.split, lines) if name == spare)
                yield most - int(Path(use).read_text()) + idle
        except (OSError, ValueError):
            continue
