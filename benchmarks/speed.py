"""What the layer costs, as ratios within one run: make bench, make bench-full.

python benchmarks/speed.py                      # minutes; compares with benchmarks/results.json
python benchmarks/speed.py --full --keep        # the whole grid; results.json and speed.png are replaced
python benchmarks/speed.py --only inverse
python benchmarks/speed.py --device cuda        # the same tables; results-cuda.json

In each case the calls are taken in turn, and each is held against the one whose row is marked with 1: the median and
the quartiles of the ratios of neighbours.  MiB are the most by which tensors grew during a call of its own.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from demo_flow import demo_flow
from figures import Curve, Panel, draw
from FrEIA.modules import Fixed1x1Conv
from nflows.transforms import OneByOneConvolution
from normflows.flows import Invertible1x1Conv
from record import Record, console, run
from references import CayleyConv, PeriodicConv, Woodbury, multiply, recipe
from rivals import ConvExponential, Emerging
from timing import Case
from torch import Tensor, nn
from torch.nn import functional as F

from invconv import InvertibleConv2d
from invconv.engine.solvers.circulant import factor_torus
from invconv.engine.spectrum import Grid, kernel_to_blocks
from invconv.flows import MultiScaleFlow
from invconv.layers.together import LogDets, kernels

try:
    from orthogonium.legacy.cayley_ortho_conv import Cayley
except ImportError:
    Cayley = None

warnings.filterwarnings("ignore", "torch.triangular_solve is deprecated")  # nflows
RESULTS = Path(__file__).with_name("results.json")
BASE = {"c": 32, "side": 64, "batch": 4, "kernel": 3}
LIMIT = "copy of as many bytes"


def layer(
    channels: int, side: int, batch: int, device: str, kernel: int = 3, **options: Any
) -> tuple[InvertibleConv2d, Tensor]:
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "padding_mode": "circular", "bias": False, "device": device, **options}
    x = torch.randn(batch, channels, side, side, device=device)
    return InvertibleConv2d(channels, channels, kernel, **options), x


# -- the inverse -------------------------------------------------------------------------------------------------------


def inverse(full: bool, device: str) -> Iterator[Case]:
    """The cached inverse against `F.conv2d`, and against what the memory allows."""
    few = [(32, 128, 4), (32, 128, 1), (32, 128, 16), (32, 32, 16), (12, 64, 16), (3, 256, 4)]
    many = [
        (c, n, b) for c, n, b in product((3, 12, 32, 96), (16, 32, 64, 128, 256), (1, 4, 16)) if c * n * n * b < 3e7
    ]
    kernels = [(BASE["c"], BASE["side"], BASE["batch"], k) for k in (1, 5, 7)]
    for c, n, b, k in [(*size, 3) for size in (many if full else few)] + (kernels if full else []):
        conv, x = layer(c, n, b, device, k)
        if device == "cpu" and conv.operator((n, n)).plan().bytes > psutil.virtual_memory().available / 2:
            console.print(f"inverse: c={c}, {n} x {n} left out, too large for this machine")
            continue
        with torch.no_grad():
            y = conv(x)
            assert torch.allclose(conv.inverse(y), x, atol=1e-4)
        copied = torch.empty(bytes_moved(c, n, b, k) // 8, device=device)
        target = torch.empty_like(copied)
        calls = {
            "F.conv2d": torch.no_grad()(lambda w=conv.weight, x=x, k=k: F.conv2d(x, w, padding=k // 2)),
            "forward": torch.no_grad()(lambda c=conv, x=x: c(x)),
            "inverse, cached": torch.no_grad()(lambda c=conv, y=y: c.inverse(y)),
            LIMIT: lambda a=copied, b=target: b.copy_(a),
        }
        name = f"c={c}, {n} x {n}, batch {b}" + (f", k={k}" if k != 3 else "")
        sizes = {"c": c, "side": n, "batch": b, "kernel": k}
        yield Case(name, calls, "F.conv2d", seconds=4, limits={"inverse, cached": LIMIT}, sizes=sizes)


def bytes_moved(channels: int, side: int, batch: int, kernel: int) -> int:
    """Read or written at least, each once: the inverse's blocks, the image in and out, its spectrum in and out.

    float32 and complex64; the half spectrum has side (side // 2 + 1) frequencies.  A 1 x 1 kernel has one real block.
    """
    places, frequencies = side * side, side * (side // 2 + 1)
    images = 2 * 4 * batch * channels * places
    if kernel == 1:
        return 4 * channels**2 + images
    return 8 * channels**2 * frequencies + images + 2 * 8 * batch * channels * frequencies


def figure(records: Mapping[str, Record], path: Path) -> None:
    """Time of the inverse against each size, the others as in BASE, and the same as multiples of `F.conv2d`."""
    found = [r for r in records.values() if r.case.startswith("inverse: ") and "side" in r.sizes]
    labels = {"c": "channels", "side": "image side", "batch": "batch", "kernel": "kernel side"}
    times, ratios = [], []
    for size, label in labels.items():
        shown = [r for r in found if all(r.sizes[s] == v for s, v in BASE.items() if s != size)]
        fixed = ", ".join(f"{labels[s]} {v}" for s, v in BASE.items() if s != size)
        curves: tuple[dict[str, Curve], dict[str, Curve]] = {}, {}
        for name in dict.fromkeys(r.name for r in shown):
            rows = sorted((r for r in shown if r.name == name), key=lambda r: r.sizes[size])
            x = [float(r.sizes[size]) for r in rows]
            style = "--" if name == LIMIT else "-"
            curves[0][name] = Curve(x, [r.milliseconds for r in rows], style=style)
            quartiles = [r.low for r in rows], [r.high for r in rows]
            curves[1][name] = Curve(x, [r.ratio for r in rows], *quartiles, style=style)
        times.append(Panel(fixed, label, "ms", curves[0]))
        ratios.append(Panel("", label, "times F.conv2d", curves[1]))
    draw(path, [times, ratios], "The cached inverse of a circular convolution, float32")


def published(full: bool, device: str) -> Iterator[Case]:
    """The recipe in print: the image's FFT times the pseudo-inverse of the kernel's, in the natural layout."""
    conv, x = layer(32, 128, 4, device)
    with torch.no_grad():
        y = conv(x)
        kept = recipe(conv.weight, (128, 128))
        assert torch.allclose(multiply(kept, y), x, atol=1e-4)
    calls = {
        "inverse, cached": torch.no_grad()(lambda: conv.inverse(y)),
        "the recipe, pinv kept": torch.no_grad()(lambda: multiply(kept, y)),
        "the recipe, pinv at each call": torch.no_grad()(lambda: multiply(recipe(conv.weight, (128, 128)), y)),
    }
    yield Case("c=32, 128 x 128, batch 4", calls, "inverse, cached", rounds=5 if full else 3, seconds=20)


# -- the log-determinant -----------------------------------------------------------------------------------------------


def log_det(full: bool, device: str) -> Iterator[Case]:
    """Log-determinants with their gradients against the convolutions forward and backward, of four layers.

    Four is a scale of the demo flow, which takes its layers together.
    """
    sizes = [(12, 16), (24, 16), (48, 16), (48, 8), (48, 4), (96, 4)] + ([(12, 32), (24, 8), (96, 8)] if full else [])
    for channels, side in sizes:
        convs = [layer(channels, side, 32, device)[0] for _ in range(4)]
        x = layer(channels, side, 32, device)[1].requires_grad_()

        def change(convs: list[InvertibleConv2d], tol: float | None = None) -> None:
            for conv in convs:  # as after a step: nothing of the last one may be used again
                conv.weight.data[0, 0, 0, 0] += 1e-6
                conv.volume_tol = tol

        def convolve(convs: list[InvertibleConv2d] = convs, x: Tensor = x) -> None:
            for conv in convs:
                conv(x).sum().backward()

        def each(convs: list[InvertibleConv2d] = convs, size: tuple[int, int] = (side, side)) -> None:
            change(convs)
            for conv in convs:
                conv.log_abs_det(size).backward()

        def together(
            convs: list[InvertibleConv2d] = convs,
            size: tuple[int, int] = (side, side),
            tol: float | None = None,
            *,
            log_dets: LogDets,
        ) -> None:
            change(convs, tol)
            log_dets.log_abs_det(convs, kernels(convs), [size] * len(convs)).backward()

        grid = Grid(replace(convs[0].geometry, groups=len(convs)), (side, side))
        blocks = kernel_to_blocks(torch.cat([conv.weight.detach() for conv in convs]), grid)
        calls = {
            "convolution and gradient": convolve,
            "log-det, one by one": each,
            "log-det, together": partial(together, log_dets=LogDets()),
            "the same, volume_tol=1e-3": partial(together, log_dets=LogDets(), tol=1e-3),
            "LU and inverse alone": lambda blocks=blocks, grid=grid: factor_torus(blocks, grid),
        }
        measured = {"c": channels, "side": side, "batch": 32}
        name = f"c={channels}, {side} x {side}, batch 32"
        yield Case(name, calls, "convolution and gradient", seconds=3, sizes=measured)


# -- one layer of a flow, against those of others ----------------------------------------------------------------------

Call = Callable[[], Any]


def layers(full: bool, device: str) -> Iterator[Case]:
    """A training step and an inverse of one layer: ours, dense 3 x 3, against those of others.

    normflows, nflows and FrEIA have 1 x 1 convolutions, the ports 3 x 3 (Woodbury: all of the image, at rank 16).
    """
    grid = [(12, 16), (24, 8), (48, 4), (48, 8)]
    for (channels, side), batch in product(grid, (32, 64) if full else (32,)):
        steps, inverses = _rivals(channels, side, batch, device)
        name = f"c={channels}, {side} x {side}, batch {batch}"
        sizes = {"c": channels, "side": side, "batch": batch}
        yield Case(f"step: {name}", steps, "normflows, 1 x 1", seconds=3, sizes=sizes)
        yield Case(f"inverse: {name}", inverses, "normflows, 1 x 1", seconds=3, sizes=sizes)


def _rivals(channels: int, side: int, batch: int, device: str) -> tuple[dict[str, Call], dict[str, Call]]:
    """For each layer a training step, and the inverse that sampling with the trained layer calls."""
    conv, x = layer(channels, side, batch, device)
    zeros, _ = layer(channels, side, batch, device, padding_mode="zeros")
    size = (side, side)
    ours = {"invconv": conv, "invconv, zero borders": zeros}
    theirs = Invertible1x1Conv(channels).to(device)
    cached = OneByOneConvolution(channels, using_cache=True).to(device)
    fixed = Fixed1x1Conv([(channels, *size)], M=torch.linalg.qr(torch.randn(channels, channels))[0]).to(device)
    ports = {
        "emerging (port)": Emerging(channels),
        "periodic (port)": PeriodicConv(channels),
        "conv. exponential (port)": ConvExponential(channels, size),
        "Woodbury, rank 16 (port)": Woodbury(channels, size),
        "Cayley (port)": CayleyConv(channels, size),
    }
    pairs: dict[str, tuple[Call, nn.Module]] = {
        **{name: (lambda c=c: (c(x), c.log_abs_det(size)), c) for name, c in ours.items()},
        "normflows, 1 x 1": (lambda: theirs.inverse(x), theirs),
        "nflows, 1 x 1": (lambda: cached(x), cached),
        **{name: (lambda m=m: m(x), m.to(device)) for name, m in ports.items()},
    }
    if Cayley is not None:
        orthogonal = Cayley(channels, channels, 3, bias=False).to(device)
        pairs["Cayley (orthogonium)"] = (lambda: (orthogonal(x), 0.0), orthogonal)
    steps = {name: _step(call, module, side * side) for name, (call, module) in pairs.items()}
    steps["FrEIA, fixed: forward only"] = torch.no_grad()(lambda: fixed((x,)))

    # It caches in evaluation alone, while the layer above trains.
    sampling = OneByOneConvolution(channels, using_cache=True).to(device).eval()
    undo: dict[str, Call] = {
        **{name: (lambda c=c: c.inverse(x)) for name, c in ours.items()},
        "normflows, 1 x 1": lambda: theirs(x),
        "nflows, cached": lambda: sampling.inverse(x),
        "FrEIA, fixed": lambda: fixed((x,), rev=True),
        **{name: (lambda m=m: m.inverse(x)) for name, m in ports.items()},
    }
    return steps, {name: torch.no_grad()(call) for name, call in undo.items()}


def _step(call: Call, module: nn.Module, area: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        y, log_abs_det = call()
        (0.5 * y.square().flatten(1).sum(1).mean() - torch.as_tensor(log_abs_det).mean()).div(area).backward()
        optimizer.step()

    return step


# -- the whole flow ----------------------------------------------------------------------------------------------------


def flow(full: bool, device: str) -> Iterator[Case]:
    """The demo flow with 3 x 3 invertible convolutions against the same flow with 1 x 1 ones."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)).to(device)

    def stepper(model: MultiScaleFlow) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            model.bits_per_dim(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    flows = {f"{k} x {k}": demo_flow(kernel_size=k).to(device) for k in (1, 3)}
    calls: dict[str, Callable[[], Any]] = {name: stepper(model) for name, model in flows.items()}
    calls["3 x 3, zero borders"] = stepper(demo_flow(kernel_size=3, padding_mode="zeros").to(device))
    calls["3 x 3, kernels not bounded"] = stepper(demo_flow(kernel_size=3, rho=None).to(device))
    # What no log-determinant, however fast, could go below.
    model = demo_flow(kernel_size=3).to(device)
    model._log_abs_det = lambda pending: 0.0
    calls["3 x 3, log-determinants left out"] = stepper(model)
    if full:
        for k in (1, 3):
            model = demo_flow(kernel_size=k).to(device)
            model.bits_per_dim(x)  # ActNorm looks at its first batch
            model.bits_per_dim = torch.compile(model.bits_per_dim)
            calls[f"{k} x {k}, torch.compile"] = stepper(model)
    yield Case("training step, batch 64", calls, "1 x 1", seconds=None if full else 30)
    for model in flows.values():
        model.eval()
    calls = {name: torch.no_grad()(lambda m=model: m.sample(64)) for name, model in flows.items()}
    yield Case("sampling 64 images", calls, "1 x 1", seconds=None if full else 15)


GROUPS = {"inverse": inverse, "recipe": published, "log_det": log_det, "layers": layers, "flow": flow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all sizes")
    parser.add_argument("--keep", action="store_true", help="keep the results to be compared with, and the figure")
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--results", type=Path, help="default: results.json, results-cuda.json beside this file")
    options = parser.parse_args()
    suffix = "" if options.device == "cpu" else f"-{torch.device(options.device).type}"
    if suffix:
        torch.cuda.init()
    path = options.results or RESULTS.with_stem(f"results{suffix}")
    groups = {name: GROUPS[name](options.full, options.device) for name in options.only}
    records = run(groups, options.rounds, path, options.keep)
    if options.keep:
        figure(records, path.with_name(f"speed{suffix}.png"))


if __name__ == "__main__":
    main()
