"""How many bits/dim by the clock? The demo flow with six kinds of invertible convolution, for ten minutes.

    python -m benchmarks.flows --data cifar10_subset.npz --seconds 600 --seeds 0 1 2

`--data` is any .npz with uint8 arrays `x_train` and `x_test`, (count, 3, 32, 32).  All runs of a seed see the same
batches and the same noise; the kernels learn at a multiple of the networks' rate, chosen for each kind by shorter runs.

Each run is a process of one thread, pinned to a core of its own, as many at a time as there are cores.  The clock is
the CPU time of that process: the wall-clock time on an otherwise idle machine, and hardly touched by what else runs.
It stands still while batches are drawn and held-out images are scored.  The learning rate warms up for 50 steps and
falls to zero as a cosine over the seconds, not the steps: each kind ends its own annealing when its time is up, and at
equal steps the slower kind has annealed further.

A layer of one's own is compared with `--layer FILE.py:NAME --kinds 1x1 own`: NAME makes an `invconv.flows.FlowLayer` of
(channels, (height, width)).

Each run is written to `--out` when it is over and is not run again unless with `--again`; `--tell` only reads them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.flows.runs import cores, one_run, run_all
from benchmarks.flows.tables import tell
from benchmarks.flows.training import KINDS, OWN, add_own
from benchmarks.harness.command import ask

QUICK = {
    "seconds": 1.0,
    "seeds": [0],
    "kinds": ["1x1", "circular"],
    "batch": 2,
    "out": Path("runs/quick"),
    "again": True,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", help="an .npz; not needed with --tell")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kinds", nargs="+", choices=[*KINDS, OWN], default=list(KINDS))
    parser.add_argument("--layer", help='FILE.py:NAME, a layer that is the kind "own"')
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--kernel-rate", type=float, help="in place of that of each kind")
    parser.add_argument("--jobs", type=int, default=len(cores()), help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("runs/bits_per_dim"))
    parser.add_argument("--again", action="store_true", help="run also what is in --out")
    parser.add_argument("--tell", action="store_true", help="run nothing")
    parser.add_argument("--keep", action="store_true", help="replace flows.json and flows.png in results")
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.quick and not options.data:
        options.data = noise(options.out)
    if options.layer:
        add_own(options.layer)
    elif OWN in options.kinds:
        raise SystemExit('the kind "own" needs --layer FILE.py:NAME')
    if not (options.tell or options.data):
        raise SystemExit("--data is needed")
    if options.core is not None:
        one_run(options)
        return
    if not options.tell:
        run_all(options)
    tell(options)


def noise(folder: Path) -> Path:
    """A file of a few images that cost what photographs cost."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "noise.npz"
    images = np.random.default_rng(0).integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    np.savez(path, x_train=images[:16], x_test=images[16:])
    return path


if __name__ == "__main__":
    ask("flows", __doc__, sys.modules[__name__])
