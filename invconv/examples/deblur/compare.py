"""Undo the shake of a camera: photographs of scikit-image, a kernel that is not symmetric, borders that are real.

    invconv deblur --compare --border valid
    invconv deblur --compare --border reflect --dampings 0.1 --count 3

What stands beyond the edge: "valid", what was there, which nobody knows; "zeros", darkness; "reflect", a mirror. All
linear methods solve argmin ||A x - y||^2 + d^2 ||x - v||^2 with the same d, and differ by what they take for A beyond
the edge. "twice" draws to the first answer of the smooth margin, the others to the blurred picture; "prior" takes
d^2 ||z||^2 for x = v + B z, B being 1 / r near its middle. The last two rows have penalties of their own, and the
setting that is best for the very photograph. "frame" is the outer tenth on each side.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from invconv.errors import needs
from invconv.examples.deblur.methods import METHODS, ONLY_VALID
from invconv.examples.deblur.scenes import NAMES, PADDING_MODES, Scene, scenes
from invconv.examples.quality import psnr

with needs("pictures"):
    import matplotlib as mpl
    from rich.console import Console
    from rich.table import Table
    from skimage.metrics import structural_similarity

SHOWN = (
    "circular FFT",
    "circular FFT, edge repeated",
    "circular FFT, smooth margin (Liu-Jia)",
    "invconv, this border",
    "twice: invconv",
)


def frame(image: Tensor) -> Tensor:
    """The pixels of the outer tenth on each side."""
    width, inner = image.shape[-1] // 10, torch.zeros_like(image, dtype=torch.bool)
    inner[..., width:-width, width:-width] = True
    return image[~inner]


def figures(x: Tensor, scene: Scene) -> tuple[float, float, float]:
    """PSNR, that of the frame, and SSIM."""
    images = (image[0, 0].clamp(0, 1).numpy() for image in (x, scene.truth))
    similarity = structural_similarity(*images, data_range=1.0)
    return psnr(x, scene.truth), psnr(frame(x), frame(scene.truth)), float(similarity)


def measure(options: argparse.Namespace) -> tuple[dict, dict]:
    """Sums of the figures over the photographs by method and damping, and answers for the first of them."""
    sums: dict = defaultdict(lambda: torch.zeros(4, dtype=torch.float64))
    shown: dict = {}
    methods = {name: way for name, way in METHODS.items() if options.border == "valid" or name not in ONLY_VALID}
    middle = sorted(options.dampings)[len(options.dampings) // 2]
    for scene in scenes(options.border, options.side, options.taps, options.noise, options.count):
        sums["blurred", 0.0] += torch.tensor([*figures(scene.blurred, scene), 0.0])
        for damping in options.dampings:
            for name in list(methods):
                start = time.perf_counter()
                try:
                    x = methods[name](scene, damping)
                except ImportError:  # deepinv is not there
                    del methods[name]
                    continue
                seconds = time.perf_counter() - start
                sums[name, damping] += torch.tensor([*figures(x, scene), seconds])
                if scene.name == options.picture and damping == middle and name in SHOWN:
                    shown[name] = x
        if scene.name == options.picture:
            shown = {"truth": scene.truth, "blurred": scene.blurred, **shown}
    return sums, shown


def table(sums: dict, options: argparse.Namespace) -> Table:
    """Means over the photographs."""
    title = (
        f"{options.count} photographs of {options.side} x {options.side}, a shake of {options.taps} x {options.taps}, "
        f"noise {options.noise}, border: {options.border}; PSNR of all / of the frame, dB"
    )
    columns = [f"d = {d}" for d in options.dampings]
    rows = Table("", *columns, "best", "SSIM", "seconds", title=title)
    blurred = sums["blurred", 0.0] / options.count
    rows.add_row("blurred", *[f"{blurred[0]:.2f} / {blurred[1]:.2f}"] * (len(columns) + 1), f"{blurred[2]:.3f}", "")
    for name in METHODS:
        values = [sums[name, d] / options.count for d in options.dampings if (name, d) in sums]
        if values:
            best = max(values, key=lambda v: float(v[0]))
            cells = [f"{v[0]:.2f} / {v[1]:.2f}" for v in (*values, best)]
            rows.add_row(name, *cells, f"{best[2]:.3f}", f"{sum(float(v[3]) for v in values) / len(values):.3f}")
    return rows


def draw(shown: dict[str, Tensor], path: Path) -> None:
    """The whole pictures, and the lower right corner of each below."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shape: Any = {"figsize": (2.6 * len(shown), 5.6), "layout": "constrained"}
    figure, axes = plt.subplots(2, len(shown), **shape)
    truth = shown["truth"]
    for i, (name, x) in enumerate(shown.items()):
        corner = x.shape[-1] // 3
        for row, part in enumerate((x, x[..., -corner:, -corner:])):
            axes[row, i].imshow(part[0, 0].clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            axes[row, i].axis("off")
        told = "" if x is truth else f"\n{psnr(x, truth):.1f} dB, frame {psnr(frame(x), frame(truth)):.1f}"
        axes[0, i].set_title(f"{name.replace(', ', chr(10), 1)}{told}", fontsize=9)
    figure.savefig(path, dpi=100)


def main(words: Sequence[str]) -> None:
    """Measure, print the table, draw the picture."""
    parser = argparse.ArgumentParser(
        prog="invconv deblur --compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--border", choices=PADDING_MODES, default="valid")
    parser.add_argument("--side", type=int, default=128, help="of the pictures")
    parser.add_argument("--taps", type=int, default=15, help="side of the kernel, odd")
    parser.add_argument("--noise", type=float, default=0.002, help="standard deviation; white is 1")
    parser.add_argument("--dampings", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--count", type=int, default=len(NAMES), help="photographs")
    parser.add_argument("--picture", choices=NAMES, default="coffee")
    parser.add_argument("--out", type=Path, default=Path("runs/deblurred.png"))
    options = parser.parse_args(words)
    warnings.filterwarnings("ignore", module="deepinv")
    sums, shown = measure(options)
    console = Console()
    console.print(table(sums, options))
    if shown:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        draw(shown, options.out)
        console.print(f"Picture: {options.out}", highlight=False, soft_wrap=True)
