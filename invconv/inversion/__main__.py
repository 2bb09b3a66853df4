"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from skimage import data
from torch import Tensor, nn
from torchvision.transforms import functional as TF

from invconv.errors import IllConditionedWarning, InputError
from invconv.inversion import Inversion, invert, layer_names
from invconv.inversion.figures import plot
from invconv.lightning import ImageDataModule
from invconv.lightning.classifier import train_classifier

CONSOLE = Console()
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main(
    model: str = "small",
    image: Path | None = None,
    layers: list[str] | None = None,
    size: int | None = None,
    steps: int = 200,
    prior_weight: float = 0.03,
    train_steps: int = 200,
    out: Path = Path("inversion.png"),
) -> None:
    """Pictures of what the layers of a network still know of a photograph.

    Args:
        model: a classification network of torchvision, with its weights where they can be had; or "small", a network
            that is trained here, in a minute, to tell photographs apart.
        image: a picture file; a photograph of scikit-image if there is none.
        layers: names as in `model.named_modules()`; five of them, spread over the depth, if there are none.
        size: side of the square that the picture is scaled and cropped to; 32 for "small", else 128.
        steps: of the joint solve for each layer; 0 for the closed form.
        prior_weight: how much the total variation of the picture counts.
        train_steps: of "small".
        out: where the figure goes.
    """
    network, mean, std = _small(train_steps) if model == "small" else _torchvision(model)
    x = _load(image, size or (32 if model == "small" else 128), mean, std)
    chosen = layers or _spread(network)
    found: list[Inversion] = []
    with Progress(console=CONSOLE, transient=True) as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IllConditionedWarning)
        for layer in progress.track(chosen, description="inverting"):
            found.append(invert(network, layer, image=x, steps=steps, prior_weight=prior_weight))
    plot(found, x, mean=mean, std=std, title=f"{model}: what its layers still know", to=out)
    table = Table("layer", "equations", "unknowns", "feature error", "seconds", title="back from each layer")
    for r in found:
        low = r.layers[-1]
        table.add_row(
            r.layer, str(low.equations), str(low.unknowns), f"{float(r.feature_error[0]):.1e}", f"{r.seconds:.1f}"
        )
    CONSOLE.print(table)
    for warning in caught:
        if issubclass(warning.category, IllConditionedWarning):
            CONSOLE.print(str(warning.message), style="yellow")
    CONSOLE.print(f"Figure: {out}", highlight=False, soft_wrap=True)


def _small(steps: int) -> tuple[nn.Module, list[float], list[float]]:
    """A network that tells from which photograph of scikit-image a crop is."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images = ImageDataModule("photos", flip=True)
    with CONSOLE.status("training a small network to tell photographs apart"):
        module, accuracy = train_classifier("vgg", images, max_steps=steps, enable_progress_bar=False)
    CONSOLE.print(f"small: tells {images.classes} photographs apart in {accuracy:.0%} of held-out crops")
    return module.model, [0.5] * 3, [0.5] * 3


def _torchvision(name: str) -> tuple[nn.Module, list[float], list[float]]:
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(
            f"torchvision has no classification network {name!r}; torchvision.models.list_models() lists all"
        )
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:  # no network, no space
        torch.manual_seed(0)
        network = torchvision.models.get_model(name, weights=None)
        CONSOLE.print(f"{name}: no trained weights ({error}); going on with random ones", style="yellow")
        return network.eval(), MEAN, STD
    preset = weights.transforms()
    return network.eval(), list(getattr(preset, "mean", MEAN)), list(getattr(preset, "std", STD))


def _load(path: Path | None, size: int, mean: list[float], std: list[float]) -> Tensor:
    if path is None:
        picture = Image.fromarray(np.asarray(data.astronaut()))
    else:
        try:
            picture = Image.open(path).convert("RGB")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as an image: {error}") from error
    square = TF.center_crop(TF.resize(picture, size, antialias=True), [size, size])
    return TF.normalize(TF.to_tensor(square), mean, std).unsqueeze(0)


def _spread(network: nn.Module, count: int = 5) -> list[str]:
    """Layers that are followed by something else of their kind: activations and poolings over the depth."""
    kinds = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Hardswish, nn.MaxPool2d)
    modules = dict(network.named_modules())
    names = [name for name in layer_names(network) if isinstance(modules[name], kinds)]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)] if len(names) > count else names


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
