"""What the layer costs, as ratios within one run: make bench, make bench-full.

python -m benchmarks.speed ratios                   # minutes; compares with results/speed.json
python -m benchmarks.speed ratios --full --keep     # the whole grid; results/speed.json and speed.png are replaced
python -m benchmarks.speed ratios --only inverse
python -m benchmarks.speed ratios --device cuda     # the same tables; results/speed-cuda.json
                                                    # (all convolutions in full float32, not in TF32)

In each case the calls are taken in turn, and each is held against the one whose row is marked with 1: the median and
the quartiles of the ratios of neighbours.  MiB are the most by which tensors grew during a call of its own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.harness.record import RESULTS, run
from benchmarks.speed.flow import flow
from benchmarks.speed.inverse import figure, inverse, published
from benchmarks.speed.layers import layers
from benchmarks.speed.log_det import log_det

GROUPS = {"inverse": inverse, "recipe": published, "log_det": log_det, "layers": layers, "flow": flow}
QUICK = {"only": ["log_det"], "rounds": 1}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="all sizes")
    parser.add_argument("--keep", action="store_true", help="keep the results to be compared with, and the figure")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--results", type=Path, help="default: speed.json or speed-cuda.json in results")


def main(options: argparse.Namespace) -> None:
    suffix = "" if options.device == "cpu" else f"-{torch.device(options.device).type}"
    if suffix:
        torch.cuda.init()
        torch.backends.cudnn.allow_tf32 = False  # else a plain convolution has 11 bits, and nothing to compare with
    path = options.results or RESULTS / f"speed{suffix}.json"
    groups = {name: GROUPS[name](options.full, options.device) for name in options.only}
    records = run(groups, options.rounds, path, options.keep)
    if options.keep:
        figure(records, path.with_suffix(".png"))
