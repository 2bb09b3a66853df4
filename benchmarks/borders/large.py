"""Kernels of 31 to 100 taps a side: forward and adjoint by the FFT against PyTorch's own, and the inverse.

    python -m benchmarks.borders large --kernels 31 100 --sides 256

A Gaussian blur of each channel (sigma a sixth of the kernel) in float32 on one thread, `padding="same"`, batch 1, with
`damping` and by each solver.  Told are how many times `nn.Conv2d` and its gradient take the time of the layer and of
`operator.adjoint`, the seconds of a first answer and of another one, and the residual ||A x_hat - y|| / ||y||.
Each row is a process of its own; one that takes longer than `--seconds` is ended and says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from torch import nn

from benchmarks.harness.apart import measured
from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn
from invconv import InvertibleConv2d

QUICK = {"kernels": [31], "sides": [48], "channels": [1], "modes": ["zeros"], "rounds": 2, "seconds": 30}
MODES = ("circular", "zeros", "reflect")


def layers(kernel: int, channels: int, mode: str, **options: Any) -> tuple[InvertibleConv2d, nn.Conv2d]:
    """Ours and PyTorch's of the same weight."""
    line = torch.exp(-((torch.arange(kernel) - (kernel - 1) / 2) ** 2) * 18.0 / kernel**2)
    blur = line[:, None] * line / line.sum() ** 2
    arguments: dict[str, Any] = {"padding": "same", "padding_mode": mode, "bias": False, "dtype": torch.float32}
    ours = InvertibleConv2d(channels, channels, kernel, **arguments, **options)
    with torch.no_grad():
        ours.weight.copy_(torch.eye(channels)[:, :, None, None] * blur)
    plain = nn.Conv2d(channels, channels, kernel, **arguments)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


def measure(kernel: int, side: int, channels: int, mode: str, solver: str, damping: float, rounds: int) -> dict:
    """One row, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    conv, plain = layers(kernel, channels, mode, solver=solver, damping=damping)
    x = torch.rand(1, channels, side, side)
    operator = conv.operator((side, side))
    leaf = x.clone().requires_grad_()
    out = plain(leaf)
    with torch.no_grad():
        y = conv(x)
        times = in_turn({"ours": lambda: conv(x), "theirs": lambda: plain(x)}, rounds, warm_up=1)
        back = in_turn(
            {
                "ours": lambda: operator.adjoint(y),
                "theirs": lambda: torch.autograd.grad(out, leaf, y, retain_graph=True),
            },
            rounds,
            warm_up=1,
        )
        seconds = []
        for _ in range(2):
            start = time.perf_counter(), time.process_time()
            x_hat = conv.inverse(y)
            seconds.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        residual = ((conv(x_hat) - y).norm() / y.norm()).item()
    return {
        "solver": operator.plan().solver,
        "forward": statistics.median(times["ours"]),
        "times": statistics.median(a / b for a, b in zip(times["theirs"], times["ours"], strict=True)),
        "back": statistics.median(a / b for a, b in zip(back["theirs"], back["ours"], strict=True)),
        "seconds": seconds,
        "residual": residual,
    }


def row(given: list[str], seconds: float) -> str:
    """One row, from a process of its own."""
    r = measured("benchmarks.borders", "large", given, seconds)
    if isinstance(r, str):
        return r
    (first, cpu), (again, _) = r["seconds"]
    return (
        f"{1e3 * r['forward']:>9.2f}{r['times']:>9.0f}{r['back']:>9.0f}  {r['solver']:<12}"
        f"{first:>9.2f}{cpu:>9.2f}{again:>9.2f}{r['residual']:>10.1e}"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--kernels", type=int, nargs="+", default=[31, 63, 100])
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--channels", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--solvers", nargs="+", default=["auto", "iterative"])
    parser.add_argument("--damping", type=float, default=1e-3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=300, help="limit of a row")
    parser.add_argument("--one", nargs=7, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.one:
        kernel, side, channels, mode, solver, damping, rounds = options.one
        sizes = int(kernel), int(side), int(channels)
        print(json.dumps(measure(*sizes, mode, solver, float(damping), int(rounds))))
        return
    print(machine())
    print(
        f"{'kernel':>6}{'side':>6}{'c':>3} {'borders':<9}{'asked for':<10}{'ms':>9}{'forward':>9}{'adjoint':>9}"
        f"  {'solver':<12}{'first s':>9}{'cpu s':>9}{'again s':>9}{'residual':>10}"
    )
    rows = [
        (k, n, c, mode, solver)
        for k in options.kernels
        for n in options.sides
        for c in options.channels
        for mode in options.modes
        for solver in options.solvers
    ]
    for k, n, c, mode, solver in rows:
        given = [str(value) for value in (k, n, c, mode, solver, options.damping, options.rounds)]
        print(f"{k:>6}{n:>6}{c:>3} {mode:<9}{solver:<10}{row(given, options.seconds)}", flush=True)
