"""The original question: undo y = F.conv2d(x, K, padding=1) with 32 channels, 128 x 128 and a random kernel.

    python -m benchmarks.borders solvers

Ours against what else there is: least squares by iteration on the layer and its adjoint (SciPy, deepinv, pylops, all
optional), each with as many iterations as fit into `--seconds`, and the FFT recipe, which takes the image for periodic.

Setup is what is computed once for a kernel and an image size.  The error is ||x_hat - x|| / ||x||, the residual
||A x_hat - y|| / ||y||: a random kernel has small singular values, so that the one may be small and the other not.
Iterations are counted as applications of the layer.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from threadpoolctl import ThreadpoolController
from torch import Tensor

from benchmarks.harness.machine import machine
from benchmarks.harness.timing import in_turn
from benchmarks.rivals.iterations import PEERS, Layer, iterate
from benchmarks.rivals.recipe import multiply, recipe
from invconv import InvertibleConv2d

QUICK = {"channels": 4, "side": 16, "seconds": 0.5, "rounds": 2}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=150, help="for each of the iterative peers")
    parser.add_argument("--rounds", type=int, default=7, help="applications of which the median is told")
    parser.add_argument("--seed", type=int, default=0)


def main(options: argparse.Namespace) -> None:
    # NumPy's threads and PyTorch's wait for each other on the same cores: all are faster with one of the former.
    with torch.no_grad(), ThreadpoolController().select(internal_api="openblas").limit(limits=1):
        compare(options.channels, options.side, options.seconds, options.rounds, options.seed)


def compare(channels: int, side: int, seconds: float, rounds: int, seed: int) -> None:
    print(machine())
    print(f"c={channels}, {side} x {side}, 3 x 3, padding=1, batch 1; {seconds:g} s for each iteration")
    print(f"{'':<36}{'setup s':>9}{'apply s':>10}{'error':>10}{'residual':>10}{'iterations':>12}")
    torch.manual_seed(seed)
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.float64)
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    layer = Layer(weight, side)
    reports = [ours(weight, x, layer, rounds)[0]]
    single = Layer(weight.float().double(), side)
    report, y, x_hat = ours(weight.float(), x.float(), single, rounds)
    # What float32 outputs determine: the float64 answer to those very outputs.
    conv = InvertibleConv2d(channels, channels, 3, padding=1, bias=False, dtype=torch.float64)
    conv.weight.copy_(weight.float())
    exact = conv.inverse(y.double())
    off = ((x_hat - exact).norm() / exact.norm()).item()
    lost = ((conv.inverse(conv(x.float().double()).float().double()) - x.float()).norm() / x.norm()).item()
    reports.append(f"{report}; {off:.1e} from the exact answer to its float32 outputs")
    reports.append(f"rounding the exact outputs to float32 and nothing else: error {lost:.1e}")

    y = layer.forward(x)
    start = time.perf_counter()
    pinv = recipe(weight, (side, side))
    setup = time.perf_counter() - start
    times = in_turn({"apply": lambda: multiply(pinv, y)}, rounds)
    tell("FFT recipe (periodic)", setup, statistics.median(times["apply"]), multiply(pinv, y), x, layer)

    for name, peer in PEERS.items():
        try:
            solve = peer(layer, y)
        except ModuleNotFoundError as error:
            print(f"{name:<36}  not installed: pip install {(error.name or '').partition('.')[0]}")
            continue
        x_hat, apply = iterate(solve, layer, seconds)
        tell(name, None, apply, x_hat, x, layer, layer.count)
    print("\n".join(reports))


def tell(name: str, setup: float | None, apply: float, x_hat: Tensor, x: Tensor, layer: Layer, count: int = 0) -> None:
    x_hat, x = x_hat.double(), x.double()
    y = layer.forward(x)
    error = ((x_hat - x).norm() / x.norm()).item()
    residual = ((layer.forward(x_hat) - y).norm() / y.norm()).item()
    once = "-" if setup is None else f"{setup:.2f}"
    print(f"{name:<36}{once:>9}{apply:>10.3f}{error:>10.1e}{residual:>10.1e}{count or '-':>12}", flush=True)


def ours(weight: Tensor, x: Tensor, layer: Layer, rounds: int) -> tuple[str, Tensor, Tensor]:
    """The row; the operator's own report, the outputs and the answer."""
    channels, side = x.shape[1], x.shape[-1]
    conv = InvertibleConv2d(channels, channels, 3, padding=1, bias=False, dtype=weight.dtype)
    conv.weight.copy_(weight)
    y = conv(x)
    start = time.perf_counter()
    conv.refresh((side, side))
    setup = time.perf_counter() - start
    times = in_turn({"forward": lambda: conv(x), "inverse": lambda: conv.inverse(y)}, rounds)
    dtype = str(weight.dtype).removeprefix("torch.")
    tell(f"invconv {dtype}", setup, statistics.median(times["inverse"]), conv.inverse(y), x, layer)
    forward = statistics.median(times["forward"])
    report = f"invconv {dtype}: {conv.operator((side, side)).report()}; one forward takes {forward:.3f} s"
    return report, y, conv.inverse(y)
