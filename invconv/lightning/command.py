"""Invert the layers of a network for one photograph: `python -m invconv.inversion --help`."""

from __future__ import annotations

import logging
import sys
import warnings
from http.client import HTTPException
from pathlib import Path

from invconv.errors import IllConditionedWarning, InputError, InvconvError, MissingPackageError
from invconv.inversion import Inversion, invert, layer_names, spread
from invconv.inversion.layers import check_layer

try:
    import numpy as np
    import torchvision
    from jsonargparse import auto_cli
    from PIL import Image, ImageOps
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from skimage import data
    from torch import Tensor, nn
    from torchvision.transforms import functional as TF

    from invconv.inversion.figures import check_ending, plot
    from invconv.lightning import ImageDataModule
    from invconv.lightning.classifier import NETWORKS, train_classifier
except ImportError as error:
    raise MissingPackageError(f"the command needs {error.name}: pip install 'invconv[lightning]'") from error

CONSOLE = Console()
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def main(
    model: str = "small",
    image: Path | None = None,
    layers: list[str] | str | None = None,
    size: int | None = None,
    steps: int = 200,
    prior_weight: float = 0.03,
    train_steps: int = 200,
    details: bool = False,
    out: Path = Path("inversion.png"),
) -> None:
    """Pictures of what the layers of a network still know of a photograph.

    Args:
        model: a classification network of torchvision, with its trained weights; or "small", a network that is
            trained here, in a minute, to tell photographs apart, and that also stands in where no weights can be had.
        image: a picture file; a photograph of scikit-image if there is none.
        layers: names as in `model.named_modules()`, with commas between; five, spread over the depth, if there are
            none.
        size: side of the square that the picture is scaled and cropped to; 32 for "small", else 128.
        steps: of the joint solve for each layer; 0 for the closed form.
        prior_weight: how much the total variation of the picture counts.
        train_steps: of "small".
        details: print for each layer what each rule on the way back did, and what was lost.
        out: where the figure goes.
    """
    if model != "small" and model not in torchvision.models.list_models(module=torchvision.models):
        raise InputError(
            f"torchvision has no classification network {model!r}; torchvision.models.list_models() lists all"
        )
    if isinstance(layers, str):
        layers = [name.strip() for name in layers.strip("[]").split(",")]
    if size is not None and size < 1:
        raise InputError(f"size is {size}, expected the side of a square of at least one pixel")
    check_ending(out)
    picture = _open(image)
    pretrained = None if model == "small" else _torchvision(model)
    named = pretrained[0] if pretrained else NETWORKS["vgg"]()  # what is trained below has the same layers
    if pretrained is None and model != "small":
        model = "small"
        if layers and not set(layers) <= set(layer_names(named)):
            CONSOLE.print(f"small has no layers {', '.join(layers)}: five of its own instead", style="yellow")
            layers = None
    for layer in layers or ():
        check_layer(named, layer)
    network, mean, std = pretrained or _small(train_steps)
    x = _scaled(picture, size or (32 if model == "small" else 128), mean, std)
    chosen = layers or spread(network)
    found: list[Inversion] = []
    with Progress(console=CONSOLE, transient=True) as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IllConditionedWarning)
        for layer in progress.track(chosen, description="inverting"):
            found.append(invert(network, layer, image=x, steps=steps, prior_weight=prior_weight))
    plot(found, x, mean=mean, std=std, title=f"{model}: what its layers still know", to=out)
    table = Table("layer", "largest residual at", "equations", "unknowns", "feature error", "seconds")
    for r in found:
        worst = max(r.layers, key=lambda report: report.residual)
        where = f"{worst.name} ({worst.kind})", str(worst.equations), str(worst.unknowns)
        table.add_row(r.layer, *where, f"{float(r.feature_error[0]):.1e}", f"{r.seconds:.1f}")
    CONSOLE.print(table)
    for r in found if details else ():
        CONSOLE.print(r, highlight=False)
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


def _torchvision(name: str) -> tuple[nn.Module, list[float], list[float]] | None:
    """With its trained weights; None where they cannot be had."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no space, a damaged file
        CONSOLE.print(f"{name}: no trained weights ({error}); going on with a network trained here", style="yellow")
        return None
    preset = weights.transforms()
    return network.eval(), list(getattr(preset, "mean", MEAN)), list(getattr(preset, "std", STD))


def _open(path: Path | None) -> Image.Image:
    if path is None:
        return Image.fromarray(np.asarray(data.astronaut()))
    try:
        return ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as an image: {error}") from error


def _scaled(picture: Image.Image, size: int, mean: list[float], std: list[float]) -> Tensor:
    square = TF.center_crop(TF.resize(picture, size, antialias=True), [size, size])
    return TF.normalize(TF.to_tensor(square), mean, std).unsqueeze(0)


def run() -> None:
    """The command, with errors in one line."""
    try:
        auto_cli(main, as_positional=False)
    except (InvconvError, OSError) as error:
        sys.exit(f"error: {error}")
