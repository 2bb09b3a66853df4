"""Learn to halve a photograph so that the small picture gives the large one back: a strided layer, its pseudo-inverse.

    invconv rescale
    invconv rescale --likeness 0.03 0.3 --steps 300

The layer A halves both sides with kernels of 8 x 8, and starts as the bicubic filter. What it makes, y = A x, goes back
to v + A^+ (y - A v): of all pictures that A would make y of, the one nearest to v, which is y doubled by the bicubic
filter. Its loss is the mean of |x - v - A^+ (y - A v)|^2 + likeness |y - bicubic x|^2: what cannot be had back, and how
far the small picture is from what it should look like. It learns on crops of half of the photographs that are taken for
tori, where a step is quick; the same kernel is then told by the other half, at their full size and with edge pixels
repeated, and the halves change places. Small pictures are rounded to 8 bits before anything is made of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from invconv.errors import needs
from invconv.examples.quality import psnr
from invconv.layers import InvertibleConv2d

with needs("pictures"):
    import matplotlib as mpl
    from rich.console import Console
    from rich.table import Table
    from skimage import data

HALVES = (("astronaut", "rocket", "immunohistochemistry"), ("chelsea", "coffee", "stereo_motorcycle"))
"""Colour photographs that are in scikit-image; none has to be downloaded."""

SIDE = 64
"""Of the crops."""


@cache
def photograph(name: str) -> Tensor:
    """(1, 3, height, width), from 0 to 1, sides cut to multiples of four."""
    image = getattr(data, name)()
    image = torch.from_numpy(image[0] if isinstance(image, tuple) else image).movedim(-1, 0)[None, :3] / 255
    return image[..., : image.shape[-2] // 4 * 4, : image.shape[-1] // 4 * 4]


def crops(names: tuple[str, ...], count: int, generator: torch.Generator) -> Tensor:
    """Crops of random places, as many of each photograph."""
    found = []
    for i in range(count):
        image = photograph(names[i % len(names)])
        top, left = (int(torch.randint(n - SIDE + 1, (), generator=generator)) for n in image.shape[-2:])
        found.append(image[..., top : top + SIDE, left : left + SIDE])
    return torch.cat(found)


# -- ways to halve a picture and back ------------------------------------------------------------------------------


def halving(padding_mode: str = "replicate") -> InvertibleConv2d:
    """The bicubic filter as a layer, with the edge pixels repeated, or another border."""
    conv = InvertibleConv2d(3, 3, 8, stride=2, padding=3, padding_mode=padding_mode, bias=False)
    point = torch.zeros(1, 1, 32, 32)
    point[0, 0, 16, 16] = 1  # what each small pixel takes of it
    taps = torch.stack([bicubic(point.roll(-i, -1), 0.5)[0, 0, :, 8].sum() for i in range(-4, 4)])
    taps /= taps.sum()
    with torch.no_grad():
        conv.weight.zero_()
        for channel in range(3):
            conv.weight[channel, channel] = torch.outer(taps, taps)
    return conv


def bicubic(x: Tensor, scale: float) -> Tensor:
    """The picture at half or twice the size, by PyTorch's bicubic filter without aliases."""
    return F.interpolate(x, scale_factor=scale, mode="bicubic", antialias=True)


def haar(x: Tensor) -> Tensor:
    """The low band of Haar's wavelet: means of 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def haar_back(y: Tensor, size: tuple[int, ...]) -> Tensor:
    """What Haar's wavelet gives back with its three high bands zero: the pseudo-inverse of `haar`."""
    return F.interpolate(y, size, mode="nearest")


def projected(conv: InvertibleConv2d, y: Tensor, _: tuple[int, ...] = ()) -> Tensor:
    """Of all pictures that a layer makes y of, the one nearest to the bicubic one."""
    return conv.back_project(y, bicubic(y, 2))


def learned(names: tuple[str, ...], likeness: float, options: argparse.Namespace) -> InvertibleConv2d:
    """A layer that has learned on the photographs of these names."""
    conv, generator = halving("circular"), torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.Adam(conv.parameters(), lr=options.rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.rate, options.steps)
    for _ in range(options.steps):
        x = crops(names, options.batch, generator)
        y = conv(x)
        loss = F.mse_loss(projected(conv, y), x) + likeness * F.mse_loss(y, bicubic(x, 0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    told = halving()
    told.load_state_dict(conv.state_dict())
    return told.requires_grad_(False)


# -- figures -------------------------------------------------------------------------------------------------------


def eight_bits(y: Tensor) -> Tensor:
    """As a file has it."""
    return (y.clamp(0, 1) * 255).round() / 255


def ways(names: tuple[str, ...], options: argparse.Namespace) -> dict[str, tuple[Callable, Callable]]:
    """How to make a picture small and how to make it large again, by name; what is learned, on these photographs."""
    fixed = halving().requires_grad_(False)
    found: dict[str, tuple[Callable, Callable]] = {
        "Haar, its pseudo-inverse": (haar, haar_back),
        "Haar, bicubic": (haar, lambda y, _: bicubic(y, 2)),
        "bicubic, bicubic": (lambda x: bicubic(x, 0.5), lambda y, _: bicubic(y, 2)),
        "bicubic, its pseudo-inverse": (fixed, fixed.inverse),
        "bicubic, projected back": (fixed, partial(projected, fixed)),
    }
    for likeness in options.likeness:
        conv = learned(names, likeness, options)
        found[f"learned, likeness {likeness:g}"] = conv, partial(projected, conv)
    return found


def measure(options: argparse.Namespace) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """Sums of both PSNR and of seconds by way, and small and large pictures of the one that is drawn."""
    sums: dict[str, Tensor] = {}
    shown = {}
    for taught, told in (HALVES, HALVES[::-1]):
        for way, (down, up) in ways(taught, options).items():
            for name in told:
                x = photograph(name)[..., : options.side, : options.side]
                start = time.perf_counter()
                with torch.no_grad():
                    y = eight_bits(down(x))
                    back = up(y, tuple(x.shape[-2:]))
                seconds = time.perf_counter() - start
                figures = torch.tensor([psnr(back, x), psnr(y, bicubic(x, 0.5)), seconds])
                sums[way] = sums.get(way, torch.zeros(3)) + figures
                if name == options.picture:
                    shown[way] = y, back
    return sums, shown


def table(sums: dict[str, Tensor], options: argparse.Namespace) -> Table:
    """Means over the photographs."""
    count = sum(map(len, HALVES))
    rows = Table(
        "halved by, and back by",
        "round trip, dB",
        "small picture against bicubic, dB",
        "seconds",
        title=f"{count} photographs halved and doubled; {options.steps} steps on others",
    )
    for way, values in sums.items():
        trip, small, seconds = (values / count).tolist()
        rows.add_row(way, f"{trip:.2f}", f"{small:.2f}", f"{seconds:.2f}")
    return rows


def draw(shown: dict[str, tuple[Tensor, Tensor]], options: argparse.Namespace) -> None:
    """A corner of the photograph: as it is, and by each way small and large again."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    truth = photograph(options.picture)[..., : options.side, : options.side]
    side = min(96, *truth.shape[-2:])
    top, left = ((n - side) // 4 * 2 for n in truth.shape[-2:])
    figure, axes = plt.subplots(2, len(shown) + 1, figsize=(2.4 * (len(shown) + 1), 5.2), layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    columns = {"photograph": (bicubic(truth, 0.5), truth), **shown}
    for i, (name, (y, x)) in enumerate(columns.items()):
        large = x[0, :, top : top + side, left : left + side]
        small = y[0, :, top // 2 : (top + side) // 2, left // 2 : (left + side) // 2]
        for row, part in enumerate((large, small)):
            axes[row, i].imshow(part.clamp(0, 1).movedim(0, -1), interpolation="nearest")
        axes[0, i].set_title(f"{name}\n{psnr(x, truth):.1f} dB" if i else name, fontsize=9)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=150)


def main(words: Sequence[str]) -> None:
    """Learn, print the table, draw the picture."""
    parser = argparse.ArgumentParser(
        prog="invconv rescale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--likeness", type=float, nargs="+", default=[0.3, 0.03], help="weight of the second term")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=12)
    parser.add_argument("--rate", type=float, default=0.002)
    parser.add_argument("--side", type=int, help="of the corner that is told, even; the whole photograph by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", choices=sum(HALVES, ()), default="chelsea")
    parser.add_argument("--out", type=Path, default=Path("runs/rescaled.png"))
    options = parser.parse_args(words)
    sums, shown = measure(options)
    console = Console()
    console.print(table(sums, options))
    draw(shown, options)
    console.print(f"Picture: {options.out}", highlight=False, soft_wrap=True)
