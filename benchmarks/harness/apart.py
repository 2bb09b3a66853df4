"""A measurement in a process of its own, whose memory and time are its alone."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any


def measured(benchmark: str, part: str, case: list[str], seconds: float) -> dict[str, Any] | str:
    """What `python -m BENCHMARK PART --one CASE` prints, as JSON, in its last line; in words where it does not."""
    command = [sys.executable, "-m", benchmark, part, "--one", *case]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"more than {seconds:g} s"
    if process.returncode < 0:
        return f"ended by signal {-process.returncode}"
    if process.returncode:
        return next((line for line in process.stderr.splitlines() if "Error" in line[:40]), "failed")[:90]
    found: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return found
