"""The facts that go with every result: the processor, its threads, and the versions of what was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

PACKAGES = ("numpy", "scipy", "normflows", "nflows", "FrEIA", "orthogonium", "deepinv", "pylops")


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


def synchronize() -> None:
    """Wait for the GPU, if one is in use: its work is only queued when a call returns."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
