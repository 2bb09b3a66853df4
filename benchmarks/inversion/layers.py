"""Back from the layers of torchvision's networks (random weights) and of small trained ones: errors and seconds.

python -m benchmarks.inversion layers
"""

from __future__ import annotations

import argparse
import logging
import warnings

import torch
import torchvision
from rich.console import Console
from rich.progress import track
from rich.table import Table
from skimage import data
from torch import nn
from torchvision.transforms import functional as TF

from invconv import IllConditionedWarning
from invconv.inversion import Inversion, invert
from invconv.lightning import ImageDataModule
from invconv.lightning.classifier import train_classifier

NETWORKS = {
    "vgg11": ["features.0", "features.1", "features.2", "features.5", "features.10", "features.20", "avgpool"],
    "vgg16_bn": ["features.2", "features.6", "features.13", "features.23", "features.43", "avgpool"],
    "resnet18": ["relu", "maxpool", "layer1", "layer2", "layer3", "layer4", "avgpool"],
    "mobilenet_v2": ["features.0", "features.2", "features.6", "features.13", "features.18"],
    "convnext_tiny": ["features.0", "features.1", "features.3", "features.5", "features.7", "avgpool"],
    "alexnet": ["features.1", "features.2", "features.5", "features.12", "avgpool"],
}
QUICK = {"size": 64, "steps": 2, "epochs": 1, "networks": ["alexnet", "vgg"]}
SMALL = {"vgg": ["2", "5", "6", "9", "13", "20", "21"], "resnet": ["2", "3", "4", "5", "6", "8", "9"]}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--data", default="photos", help="for the small networks: photos or npz:PATH")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, *SMALL], default=[*NETWORKS, *SMALL])


def main(options: argparse.Namespace) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", IllConditionedWarning)  # the table says it
    photo = TF.resize(TF.to_tensor(data.astronaut()), options.size, antialias=True)
    x = TF.normalize(photo, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).unsqueeze(0)
    for name, layers in track(chosen(NETWORKS, options), console=Console(stderr=True)):
        torch.manual_seed(0)
        _rows(name, torchvision.models.get_model(name, weights=None), layers, x, options.steps)
    for name, layers in chosen(SMALL, options):
        source = ImageDataModule(options.data, batch_size=128, flip=True)
        module, accuracy = train_classifier(name, source, options.epochs, enable_progress_bar=False)
        x = module.prepare(source.test_dataloader().dataset[0][0].unsqueeze(0))
        _rows(f"small {name}, {accuracy:.0%} right", module.model, layers, x, options.steps)


def chosen(networks: dict[str, list[str]], options: argparse.Namespace) -> list[tuple[str, list[str]]]:
    """The networks that are asked for, and their layers."""
    return [(name, layers) for name, layers in networks.items() if name in options.networks]


def _rows(name: str, model: nn.Module, layers: list[str], x: torch.Tensor, steps: int) -> None:
    pixels = " x ".join(map(str, x.shape[2:]))
    head = ("layer", "closed form", "PSNR", f"{steps} joint steps", "PSNR", "seconds", "seconds")
    table = Table(*head, title=f"{name}, {pixels}: relative feature errors")
    for layer in layers:
        closed, solved = (invert(model, layer, image=x, steps=n) for n in (0, steps))
        cells = [f"{c:.{d}f}" if d else f"{c:.1e}" for r in (closed, solved) for c, d in _figures(r, x)]
        table.add_row(layer, *cells, f"{closed.seconds:.1f}", f"{solved.seconds:.1f}")
    Console(width=110).print(table)


def _figures(r: Inversion, x: torch.Tensor) -> list[tuple[float, int]]:
    error = (r.image - x).square().mean()
    ratio = 10 * torch.log10((x.max() - x.min()) ** 2 / error)
    return [(float(r.feature_error[0]), 0), (float(ratio), 1)]
