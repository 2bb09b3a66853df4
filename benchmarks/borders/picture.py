"""Where the FFT recipe is wrong: a photograph through a zero-padded layer and back, for README.

    python -m benchmarks.borders picture

The recipe divides by the kernel's FFT and so takes the photograph for periodic; the layer has borders of zeros.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from skimage import data
from torch import Tensor

from benchmarks.harness.record import RESULTS
from benchmarks.rivals.recipe import multiply, recipe
from invconv import InvertibleConv2d

QUICK = {"side": 16, "out": Path("runs/borders.png")}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=RESULTS / "borders.png")
    parser.add_argument("--side", type=int, default=192)


@torch.no_grad()
def main(options: argparse.Namespace) -> None:
    side = options.side
    torch.manual_seed(1)
    photo = torch.from_numpy(data.astronaut()[20 : 20 + side, 130 : 130 + side] / 255.0).permute(2, 0, 1)[None]
    conv = InvertibleConv2d(3, 3, 3, padding=1, bias=False, dtype=torch.float64)
    # Each channel blurred, and mixed with the others.
    blur = torch.tensor([[1.0, 2.0, 1.0], [2.0, 6.0, 2.0], [1.0, 2.0, 1.0]], dtype=torch.float64) / 18
    mixing = torch.eye(3, dtype=torch.float64) + 0.15 * torch.randn(3, 3, dtype=torch.float64)
    conv.weight.copy_(mixing[:, :, None, None] * blur)
    y = conv(photo)
    answers = {"the FFT recipe": multiply(recipe(conv.weight, (side, side)), y), "invconv": conv.inverse(y)}
    print(conv.operator((side, side)).report())
    draw(photo, y, answers, options.out)


def draw(photo: Tensor, y: Tensor, answers: dict[str, Tensor], out: Path) -> None:
    """The photograph, the outputs, and the errors of the answers on one scale."""
    from matplotlib.figure import Figure  # the other trials measure memory, and are imported with this one

    figure = Figure(figsize=(13, 3.7), layout="constrained")
    axes = figure.subplots(1, 4)
    for axis, image, title in [
        (axes[0], photo, "photograph x"),
        (axes[1], y, "y = conv(x), zero padding"),
    ]:
        axis.imshow(image[0].permute(1, 2, 0).clamp(0, 1))
        axis.set_title(title)
    for axis, (name, x_hat) in zip(axes[2:], answers.items(), strict=True):
        error = (x_hat - photo).abs().amax(1)[0]
        shown = axis.imshow(error.clamp_min(1e-17).log10(), vmin=-16, vmax=0, cmap="magma")
        axis.set_title(f"{name}: |error| up to {error.max():.0e}")
        print(f"{name}: largest error {error.max():.1e}, median {error.median():.1e} of full scale")
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    bar = figure.colorbar(shown, ax=axes[3], ticks=[-16, -12, -8, -4, 0])
    bar.ax.set_yticklabels(["1e-16", "1e-12", "1e-8", "1e-4", "1"])
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=100)
    print(out)
