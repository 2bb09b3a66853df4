"""What the layer costs, as ratios within one run: make bench, make bench-full.

python benchmarks/speed.py                      # minutes; compares with benchmarks/results.json
python benchmarks/speed.py --full --keep        # the whole grid, and the results are kept
python benchmarks/speed.py --only inverse
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from demo_flow import demo_flow
from FrEIA.modules import Fixed1x1Conv
from nflows.transforms import OneByOneConvolution
from normflows.flows import Invertible1x1Conv
from record import run
from timing import Case
from torch import Tensor, nn

from invconv import InvertibleConv2d
from invconv.flows import MultiScaleFlow

RESULTS = Path(__file__).with_name("results.json")


def layer(channels: int, side: int, batch: int, kernel: int = 3, **options: Any) -> tuple[InvertibleConv2d, Tensor]:
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "padding_mode": "circular", "bias": False, **options}
    return InvertibleConv2d(channels, channels, kernel, **options), torch.randn(batch, channels, side, side)


def inverse(full: bool) -> Iterator[Case]:
    """The cached inverse against the layer's own forward."""
    few = [(32, 128, 4), (32, 128, 1), (32, 128, 16), (32, 32, 16), (12, 64, 16), (3, 256, 4)]
    many = [
        (c, n, b) for c, n, b in product((3, 12, 32, 96), (16, 32, 64, 128, 256), (1, 4, 16)) if c * n * n * b < 3e7
    ]
    for channels, side, batch in many if full else few:
        conv, x = layer(channels, side, batch)
        with torch.no_grad():
            y = conv(x)
            assert torch.allclose(conv.inverse(y), x, atol=1e-4)
        calls = {
            "forward": torch.no_grad()(lambda c=conv, x=x: c(x)),
            "inverse, cached": torch.no_grad()(lambda c=conv, y=y: c.inverse(y)),
        }
        yield Case(f"inverse: c={channels}, {side} x {side}, batch {batch}", calls, "forward")


def recipe(full: bool) -> Iterator[Case]:
    """The recipe in print: the image's FFT times the pseudo-inverse of the kernel's, in the natural layout."""
    conv, x = layer(32, 128, 4)
    with torch.no_grad():
        y = conv(x)

        def factors() -> Tensor:
            padded = torch.zeros(32, 32, 128, 128)
            padded[:, :, :3, :3] = conv.weight
            spectrum = torch.fft.rfft2(padded.roll((-1, -1), (2, 3))).conj()
            return torch.linalg.pinv(spectrum.permute(2, 3, 0, 1))

        def apply(pinv: Tensor) -> Tensor:
            return torch.fft.irfft2(torch.einsum("hwio,bohw->bihw", pinv, torch.fft.rfft2(y)), s=(128, 128))

        kept = factors()
        assert torch.allclose(apply(kept), x, atol=1e-4)
    calls = {
        "inverse, cached": torch.no_grad()(lambda: conv.inverse(y)),
        "the recipe, pinv kept": torch.no_grad()(lambda: apply(kept)),
        "the recipe, pinv at each call": torch.no_grad()(lambda: apply(factors())),
    }
    yield Case("recipe: c=32, 128 x 128, batch 4", calls, "inverse, cached", rounds=5 if full else 3)


def log_det(full: bool) -> Iterator[Case]:
    """The log-determinant with its gradient against the convolution forward and backward."""
    sizes = [(12, 16), (24, 16), (48, 16), (48, 8), (96, 4)] + ([(12, 32), (24, 8), (96, 8)] if full else [])
    for channels, side in sizes:
        conv, x = layer(channels, side, 32)
        x.requires_grad_()

        def convolve(c: InvertibleConv2d = conv, x: Tensor = x) -> None:
            c(x).sum().backward()

        def measure(c: InvertibleConv2d = conv, x: Tensor = x) -> None:
            c.weight.data.mul_(1.0)  # as after a step: nothing of the last one may be used again
            c.weight.data[0, 0, 0, 0] += 1e-6
            c.log_abs_det(x.shape).backward()

        calls = {"convolution": convolve, "log-det": measure}
        yield Case(f"log-det and gradient: c={channels}, {side} x {side}, batch 32", calls, "convolution")


def one_by_one(full: bool) -> Iterator[Case]:
    """A training step of one layer: ours, dense 3 x 3, against the 1 x 1 of others."""
    for channels, side in [(12, 16), (48, 8)] + ([(96, 4), (48, 16)] if full else []):
        conv, x = layer(channels, side, 32)
        area = side * side
        theirs = Invertible1x1Conv(channels)
        cached = OneByOneConvolution(channels, using_cache=False)
        fixed = Fixed1x1Conv([(channels, side, side)], M=torch.linalg.qr(torch.randn(channels, channels))[0])

        def ours(c: InvertibleConv2d = conv, x: Tensor = x) -> tuple[Tensor, Tensor]:
            return c(x), c.log_abs_det(x.shape)

        steps: dict[str, tuple[Callable[[], tuple[Any, Any]], nn.Module]] = {
            "invconv, 3 x 3": (ours, conv),
            "normflows, 1 x 1": (lambda f=theirs, x=x: f.inverse(x), theirs),
            "nflows, 1 x 1": (lambda f=cached, x=x: f(x), cached),
        }
        calls = {name: _step(call, module, area) for name, (call, module) in steps.items()}
        calls["FrEIA, 1 x 1, fixed: forward only"] = torch.no_grad()(lambda f=fixed, x=x: f((x,)))
        yield Case(f"one layer's step: c={channels}, {side} x {side}, batch 32", calls, "normflows, 1 x 1")


def _step(call: Callable[[], tuple[Any, Any]], module: nn.Module, area: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        y, log_abs_det = call()
        (0.5 * y.square().flatten(1).sum(1).mean() - torch.as_tensor(log_abs_det).mean()).div(area).backward()
        optimizer.step()

    return step


def flow(full: bool) -> Iterator[Case]:
    """The demo flow with 3 x 3 invertible convolutions against the same flow with 1 x 1 ones."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8))

    def stepper(model: MultiScaleFlow) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            model.bits_per_dim(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    flows = {f"{k} x {k}": demo_flow(kernel_size=k) for k in (1, 3)}
    calls: dict[str, Callable[[], Any]] = {name: stepper(model) for name, model in flows.items()}
    calls["3 x 3, kernels not bounded"] = stepper(demo_flow(kernel_size=3, rho=None))
    yield Case("flow: training step, batch 64", calls, "1 x 1")
    for model in flows.values():
        model.eval()
    calls = {name: torch.no_grad()(lambda m=model: m.sample(64)) for name, model in flows.items()}
    yield Case("flow: sampling 64 images", calls, "1 x 1")


GROUPS = {f.__name__: f for f in (inverse, recipe, log_det, one_by_one, flow)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes")
    parser.add_argument("--keep", action="store_true", help="keep the results to be compared with")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    cases = (case for name in options.only for case in GROUPS[name](options.full))
    run(cases, options.rounds, options.results, options.keep)


if __name__ == "__main__":
    main()
