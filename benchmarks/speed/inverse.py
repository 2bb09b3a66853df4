"""The cached inverse, against the convolution, a copy of as many bytes, and the FFT recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path

import psutil
import torch
from torch.nn import functional as F

from benchmarks.harness.figures import Curve, Panel, draw
from benchmarks.harness.record import Record, console
from benchmarks.harness.timing import Case
from benchmarks.rivals.recipe import multiply, recipe
from benchmarks.speed.case import layer

BASE = {"c": 32, "side": 64, "batch": 4, "kernel": 3}
LIMIT = "copy of as many bytes"


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
        times.append(Panel(fixed, label, "milliseconds", curves[0]))
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
