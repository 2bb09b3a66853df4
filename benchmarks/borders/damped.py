"""Damped inverses with large kernels: set-up and answer in seconds, and how far the answer may be from the exact one.

    python -m benchmarks.borders damped --sides 256 512 --taps 15 31

A disk, out of focus, is symmetric along each axis; a coma, the same with one side brighter, is not.  Neither is an
outer product.  float64; white noise is added to a blurred photograph (3-D: to noise).  The error is a bound, from the
residual of the normal equations:  ||x_hat - x_d|| <= ||A'(y - A x_hat) - d^2 x_hat|| / d^2.  Each row is a process of
its own, is ended after `--seconds`, and then says so.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings

import torch
from skimage import data
from torch import Tensor

from benchmarks.harness.apart import measured
from benchmarks.harness.machine import machine
from invconv import functional

QUICK = {"sides": [24], "taps": [5], "solids": [6], "seconds": 30}
BORDERS = ("zeros", "reflect", "valid")


def kernel_of(name: str, taps: int, dims: int) -> Tensor:
    """A disk or a coma of sum one, of so many taps along each axis."""
    line = torch.arange(taps, dtype=torch.float64) - taps // 2
    places = torch.meshgrid(*[line] * dims, indexing="ij")
    disk = (torch.stack(places).square().sum(0) <= (taps // 2) ** 2).double()
    if name == "coma":
        disk = disk * (1 + sum(places) / (taps * dims))
    return disk / disk.sum()


@torch.no_grad()
def measure(name: str, taps: int, side: int, dims: int, border: str, damping: float) -> dict:
    """One row, in this process."""
    places = {"padding": 0} if border == "valid" else {"padding": taps // 2, "padding_mode": border}
    generator = torch.Generator().manual_seed(0)
    image = torch.rand((side,) * dims, generator=generator, dtype=torch.float64)
    if dims == 2:
        photograph = torch.from_numpy(data.camera() / 255.0)[None, None]
        image = torch.nn.functional.interpolate(photograph, (side, side), mode="bilinear")[0, 0]
    operator = functional.conv_operator(
        kernel_of(name, taps, dims)[None, None], (side,) * dims, damping=damping, **places
    )
    y = operator.forward(image[None, None])
    y += 1e-2 * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    start = time.perf_counter()
    operator.prepare()
    ready = time.perf_counter()
    x = operator.pseudo_inverse(y)
    done = time.perf_counter()
    left = operator.adjoint(y - operator.forward(x)) - damping**2 * x
    return {
        "solver": operator.report().solver,
        "set-up": ready - start,
        "answer": done - ready,
        "error": (left.norm() / (damping**2 * x.norm())).item(),
    }


def row(case: list[str], seconds: float) -> str:
    """One row, from a process of its own."""
    r = measured("benchmarks.borders", "damped", case, seconds)
    if isinstance(r, str):
        return r
    return f"{r['solver']:<24}{r['set-up']:>9.3f}{r['answer']:>9.3f}{r['error']:>10.0e}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sides", type=int, nargs="*", default=[256], help="256 to 2048")
    parser.add_argument("--solids", type=int, nargs="*", default=[48], help="sides in 3-D, of 7 taps")
    parser.add_argument("--taps", type=int, nargs="+", default=[15, 31, 65])
    parser.add_argument("--kernels", nargs="+", choices=["disk", "coma"], default=["disk", "coma"])
    parser.add_argument("--borders", nargs="+", choices=BORDERS, default=list(BORDERS))
    parser.add_argument("--damping", type=float, nargs="+", default=[0.1])
    parser.add_argument("--seconds", type=float, default=120, help="limit of a row")
    parser.add_argument("--one", nargs=6, help=argparse.SUPPRESS)


def main(options: argparse.Namespace) -> None:
    if options.one:
        name, taps, side, dims, border, damping = options.one
        warnings.simplefilter("ignore")
        print(json.dumps(measure(name, int(taps), int(side), int(dims), border, float(damping))))
        return
    print(machine())
    print(
        f"{'kernel':<8}{'taps':>5}{'side':>6}{'dims':>5} {'borders':<9}{'damping':<9}{'solver':<24}{'set-up s':>9}"
        f"{'answer s':>9}{'error <':>10}"
    )
    shapes = [(taps, side, 2) for side in options.sides for taps in options.taps]
    shapes += [(min(7, *options.taps), side, 3) for side in options.solids]
    for damping in options.damping:
        for taps, side, dims in shapes:
            for name in options.kernels:
                for border in options.borders:
                    case = [name, str(taps), str(side), str(dims), border, str(damping)]
                    told = row(case, options.seconds)
                    print(f"{name:<8}{taps:>5}{side:>6}{dims:>5} {border:<9}{damping:<9g}{told}", flush=True)
