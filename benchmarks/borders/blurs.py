"""Everyday blurs of photographs undone, at borders of zeros and reflecting ones: seconds and errors.

    python -m benchmarks.borders blurs --sides 128 256 512

Boxes, a Gaussian and motion along a line of pixels are outer products; motion along the diagonal and a disk are not.
float64; the photograph is blurred by the layer itself.  The inverse is the first one, factors included.  Two errors are
told: ||x_hat - x|| / ||x||, where what a blur has wiped out, or damping takes away, counts as lost; and that of the
answer, the residual of its normal equations,  ||A'(y - A x_hat) - d^2 x_hat|| / ||A'y||.  Each row is a process of its
own, is ended after `--seconds`, and then says so.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from skimage import data
from torch import Tensor

from benchmarks.borders.scaling import peak
from benchmarks.harness.apart import measured
from benchmarks.harness.machine import machine
from invconv import InvconvError, InvertibleConv2d

QUICK = {"sides": [24], "seconds": 20, "blurs": ["box 5x5", "diagonal motion 15"]}


def gaussian(k: int, sigma: float) -> Tensor:
    """A Gaussian of k x k taps."""
    line = torch.exp(-((torch.arange(k, dtype=torch.float64) - k // 2) ** 2) / (2 * sigma**2))
    return torch.outer(line, line)


def disk(radius: int) -> Tensor:
    """A disk: a lens that is out of focus."""
    line = torch.arange(-radius, radius + 1, dtype=torch.float64)
    return (line[:, None] ** 2 + line**2 <= radius**2).double()


BLURS = {
    "box 5x5": torch.ones(5, 5),
    "box 9x9": torch.ones(9, 9),
    "Gaussian 15x15": gaussian(15, 2.5),
    "motion 15": torch.ones(1, 15),
    "diagonal motion 15": torch.eye(15),
    "disk 9x9": disk(4),
}


@torch.no_grad()
def measure(blur: str, side: int, padding_mode: str, damping: float) -> dict:
    """One row, in this process."""
    kernel = BLURS[blur].double()
    conv = InvertibleConv2d(
        1,
        1,
        tuple(kernel.shape),
        padding="same",
        padding_mode=padding_mode,
        bias=False,
        dtype=torch.float64,
        damping=damping,
    )
    conv.weight.copy_(kernel / kernel.sum())
    x = torch.from_numpy(data.camera()[:side, :side] / 255.0)[None, None]
    y = conv(x)
    before = peak()
    start = time.perf_counter()
    try:
        x_hat = conv.inverse(y)
    except InvconvError as error:
        return {"refused": str(error).partition(":")[0], "seconds": time.perf_counter() - start}
    first = time.perf_counter() - start
    grown = peak() - before
    start = time.perf_counter()
    conv.inverse(y)
    again = time.perf_counter() - start
    operator = conv.operator((side, side))
    left = operator.adjoint(y - operator.forward(x_hat)) - damping**2 * x_hat
    return {
        "solver": operator.solver.name,
        "seconds": first,
        "again": again,
        "error": ((x_hat - x).norm() / x.norm()).item(),
        "residual": (left.norm() / operator.adjoint(y).norm()).item(),
        "lost": operator.shape[1] - (operator.solver.rank or 0),
        "planned": operator.plan().bytes,
        "grown": grown,
    }


def row(blur: str, side: int, padding_mode: str, damping: float, seconds: float) -> str:
    """One row, from a process of its own."""
    r = measured("benchmarks.borders", "blurs", [blur, str(side), padding_mode, str(damping)], seconds)
    if isinstance(r, str):
        return r
    if "refused" in r:
        return f"refused after {r['seconds']:.2f} s: {r['refused']}"[:100]
    return (
        f"{r['solver']:<24}{r['seconds']:>9.3f}{r['again']:>9.3f}{r['error']:>10.1e}{r['residual']:>10.1e}"
        f"{r['lost']:>7}{r['planned'] / 2**20:>9.0f}{r['grown'] / 2**20:>9.0f}"
    )


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="+", default=[128, 256, 512], help="up to 512")
    parser.add_argument("--modes", nargs="+", default=["zeros", "reflect"])
    parser.add_argument("--damping", type=float, nargs="+", default=[0.0, 1e-3])
    parser.add_argument("--blurs", nargs="+", choices=BLURS, default=list(BLURS))
    parser.add_argument("--seconds", type=float, default=60, help="limit of a row")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.one:
        blur, side, padding_mode, damping = options.one
        warnings.simplefilter("ignore")
        print(json.dumps(measure(blur, int(side), padding_mode, float(damping))))
        return
    print(machine())
    print(
        f"{'blur':<20}{'side':>5} {'borders':<9}{'damping':<9}{'solver':<24}{'first s':>9}{'next s':>9}{'error':>10}"
        f"{'residual':>10}{'lost':>7}{'plan MiB':>9}{'peak MiB':>9}"
    )
    for blur in options.blurs:
        for side in options.sides:
            for mode in options.modes:
                for damping in options.damping:
                    told = row(blur, side, mode, damping, options.seconds)
                    print(f"{blur:<20}{side:>5} {mode:<9}{damping:<9g}{told}", flush=True)
