"""The runs: each a process of its own on a core of its own, and a file when it is over."""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from benchmarks.flows.training import KINDS, train
from benchmarks.harness.machine import machine
from invconv import IllConditionedWarning

SETTINGS = "seconds", "batch", "lr"


def cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def file_of(out: Path, kind: str, seed: int) -> Path:
    return out / f"{kind}-{seed}.json"


def read(options: argparse.Namespace) -> dict[tuple[str, int], dict]:
    files = {(kind, seed): file_of(options.out, kind, seed) for kind in options.kinds for seed in options.seeds}
    return {each: json.loads(path.read_text()) for each, path in files.items() if path.exists()}


def settings_of(run: dict) -> tuple[float, ...]:
    return tuple(run[name] for name in SETTINGS)


def rate_of(kind: str, options: argparse.Namespace) -> float:
    return options.kernel_rate or KINDS[kind].kernel_rate


def run_all(options: argparse.Namespace) -> None:
    """Each missing run in a process of its own, on the next core that is free."""
    options.out.mkdir(parents=True, exist_ok=True)
    free: queue.Queue[int] = queue.Queue()
    for slot in range(options.jobs):
        free.put(cores()[slot % len(cores())])

    def run(kind: str, seed: int) -> None:
        core = free.get()
        common = [f"--{name}={getattr(options, name)}" for name in ("data", *SETTINGS, "out")]
        common += [f"--kernel-rate={options.kernel_rate}"] if options.kernel_rate else []
        common += [f"--layer={options.layer}"] if options.layer else []
        which = ["--kinds", kind, "--seeds", str(seed), "--core", str(core)]
        try:
            subprocess.run(
                [sys.executable, "-m", "benchmarks.flows", *common, *which],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        finally:
            free.put(core)

    there = {} if options.again else read(options)
    for (kind, _), old in there.items():
        if settings_of(old) != settings_of(vars(options)) or old["kernel_rate"] != rate_of(kind, options):
            raise SystemExit(f"{options.out} has runs of other rates, {SETTINGS}: another --out, or --again")
    missing = [(kind, seed) for seed in options.seeds for kind in options.kinds if (kind, seed) not in there]
    with ThreadPoolExecutor(options.jobs) as pool:
        for future in [pool.submit(run, *each) for each in missing]:
            future.result()


def one_run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {options.core})
    warnings.simplefilter("ignore", IllConditionedWarning)
    (kind,), (seed,) = options.kinds, options.seeds
    rate = rate_of(kind, options)
    run = train(kind, seed, options.data, options.seconds, options.batch, options.lr, rate)
    path = file_of(options.out, kind, seed)
    part = path.with_suffix(".part")
    part.write_text(json.dumps({**run, "machine": machine()}))
    part.replace(path)
