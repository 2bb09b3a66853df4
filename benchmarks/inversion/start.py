"""Closed form, joint solve from it, the same from noise, and gradient descent from noise: errors over time.

Gradient descent is the recipe of Mahendran and Vedaldi (2015), ported here: momentum 0.9 on the relative squared error
of the features, with total variation; of four learning rates and two weights, the best for each layer.  Times are those
of the processor, by one thread.

    python -m benchmarks.inversion start --epochs 6 --seconds 1
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness.figures import STYLE
from benchmarks.harness.record import RESULTS
from invconv import IllConditionedWarning
from invconv.inversion import invert, total_variation
from invconv.inversion.closed_form import noise
from invconv.lightning import ImageDataModule
from invconv.lightning.classifier import train_classifier

QUICK = {"epochs": 1, "images": 3, "seconds": 0.1, "out": Path("runs/inversion.png")}
LAYERS = {"vgg": ["6", "13", "20", "21"], "resnet": ["2", "4", "6", "8"]}
Curve = list[tuple[float, Tensor]]


class _Over(Exception):
    """The time is up."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="photos", help="photos or npz:PATH")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "inversion.png")


def main(options: argparse.Namespace) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", IllConditionedWarning)
    torch.set_num_threads(1)  # so that the time of the processor is what a user waits for
    times = np.geomspace(0.02, options.seconds, 25)
    table = Table(
        "network", "layer", "solve", "feature error", "PSNR", title=f"medians after {options.seconds:g} s of one thread"
    )
    panels = {}
    for network, layers in LAYERS.items():
        source = ImageDataModule(options.data, batch_size=128, flip=True)
        module, _ = train_classifier(network, source, options.epochs, enable_progress_bar=False)
        shown = torch.stack([source.test_dataloader().dataset[i][0] for i in range(options.images)])
        images = module.prepare(shown).split(1)
        for layer in layers:
            points = solved(module.model, layer, images, options.seconds)
            medians = {name: np.median([_best(p, times) for p in all_], 0) for name, all_ in points.items()}
            panels[f"small {network}, layer {layer}"] = medians
            for name, ((*_, error), (*_, ratio)) in medians.items():
                table.add_row(network, layer, name, f"{error:.1e}", f"{ratio:.1f}")
    Console(width=110).print(table)
    _draw(panels, times, options.out)


def solved(model: nn.Module, layer: str, images: Sequence[Tensor], seconds: float) -> dict[str, list[np.ndarray]]:
    """For each way to solve, the measured curve of each image."""
    rate, weight = _tuned(model, layer, images[:3], seconds)
    curves: dict[str, list[Curve]] = {"from the closed form": [], "from noise": [], "descent from noise": []}
    for x in images:
        curves["from the closed form"].append(_joint(model, layer, x, seconds, None))
        curves["from noise"].append(_joint(model, layer, x, seconds, noise(x.shape, x)))
        curves["descent from noise"].append(_descent(model, layer, x, seconds, rate, weight))
    return {
        name: [_measured(model, layer, x, c) for x, c in zip(images, each, strict=True)]
        for name, each in curves.items()
    }


def _joint(model: nn.Module, layer: str, x: Tensor, seconds: float, start: Tensor | None) -> Curve:
    begin = time.process_time()
    curve: Curve = []

    def watch(image: Tensor) -> None:
        curve.append((time.process_time() - begin, image.clone()))
        if curve[-1][0] > seconds:
            raise _Over

    with contextlib.suppress(_Over):
        r = invert(model, layer, image=x, steps=100_000, start=start, watch=watch)
        curve.append((time.process_time() - begin, r.image))
    return curve


def _descent(model: nn.Module, layer: str, x: Tensor, seconds: float, rate: float, weight: float) -> Curve:
    model.requires_grad_(False)
    features = _features(model, layer, x)
    begin = time.process_time()
    curve: Curve = []
    image = (0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.SGD([image], rate, momentum=0.9)
    while not curve or curve[-1][0] < seconds:
        optimizer.zero_grad()
        error = (_features(model, layer, image) - features).square().sum() / features.square().sum()
        (error + weight * total_variation(image).sum()).backward()
        curve.append((time.process_time() - begin, image.detach().clone()))
        optimizer.step()
    return curve


def _tuned(model: nn.Module, layer: str, images: Sequence[Tensor], seconds: float) -> tuple[float, float]:
    """The learning rate and weight that do best in a third of the time, on the worst of some images."""
    choices = [(rate, weight) for rate in (1.0, 10.0, 100.0, 1000.0) for weight in (0.0, 1e-3)]

    def last(choice: tuple[float, float]) -> float:
        curves = [_descent(model, layer, x, seconds / 3, *choice) for x in images]
        errors = [_measured(model, layer, x, curve[-1:])[1, 0] for x, curve in zip(images, curves, strict=True)]
        return max(errors) if np.isfinite(errors).all() else np.inf

    return min(choices, key=last)


def _features(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    return model[: int(layer) + 1](x)  # type: ignore[index]


@torch.no_grad()
def _measured(model: nn.Module, layer: str, x: Tensor, curve: Curve) -> np.ndarray:
    """Time, feature error and PSNR of each image of a curve: (3, count)."""
    images = torch.cat([image for _, image in curve])
    truth = _features(model, layer, x).flatten(1)
    errors = torch.cat([(_features(model, layer, part).flatten(1) - truth).norm(dim=1) for part in images.split(64)])
    ratios = 10 * torch.log10(4 / (images - x).square().flatten(1).mean(1))
    return np.stack([[when for when, _ in curve], errors / truth.norm(), ratios])


def _best(points: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Feature error and PSNR of the image with the least error so far, (2, times); 1 and NaN before the first."""
    found = np.stack([np.ones(len(times)), np.full(len(times), np.nan)])
    for i, t in enumerate(times):
        seen = points[1:, points[0] <= t]
        if np.isfinite(seen[0]).any():
            found[:, i] = seen[:, np.nanargmin(seen[0])]
    return found


@mpl.rc_context(STYLE)
def _draw(panels: dict[str, dict[str, np.ndarray]], times: np.ndarray, path: Path) -> None:
    """For each network a row of feature errors, and below it a row of PSNRs."""
    columns = len(panels) // len(LAYERS)
    figure = Figure(figsize=(11, 9))
    axes = figure.subplots(2 * len(LAYERS), columns, sharex=True)
    for i, (label, curves) in enumerate(panels.items()):
        row, column = divmod(i, columns)
        for kind, axis in enumerate((axes[2 * row, column], axes[2 * row + 1, column])):
            for name, values in curves.items():
                axis.plot(times, values[kind], label=name)
            axis.set(xscale="log", yscale="linear" if kind else "log")
            axis.grid(True)
        axes[2 * row, column].set_title(label)
        if not column:
            axes[2 * row, column].set_ylabel("feature error")
            axes[2 * row + 1, column].set_ylabel("PSNR, dB")
    axes[0, 0].legend()
    figure.supxlabel("seconds of one thread, closed form included; medians")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
