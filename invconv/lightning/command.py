"""Pictures of the layers of a network, and of what excites them: `python -m invconv.inversion --help`."""

from __future__ import annotations

import difflib
import logging
import re
import sys
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

from invconv.errors import IllConditionedWarning, InputError, InvconvError, MissingPackageError
from invconv.inversion import Inversion, invert, spread, visualize
from invconv.inversion.inputs import check_counts, check_prior_weight
from invconv.inversion.joint import PRIOR_WEIGHT, STEPS
from invconv.inversion.layers import evaluation
from invconv.inversion.selection import select
from invconv.inversion.trace import reached
from invconv.inversion.wrappers import eager, unwrapped

try:
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

    from invconv.inversion.figures import check_ending, plot
    from invconv.lightning.classifier import NETWORKS, train_classifier
    from invconv.lightning.data import ImageDataModule
    from invconv.lightning.image_files import cover, read_picture
    from invconv.lightning.own_network import own_network
    from invconv.lightning.state_files import load_weights
except ImportError as error:
    raise MissingPackageError(f"the command needs {error.name}: pip install 'invconv[lightning]'") from error

CONSOLE = Console()
SEGMENTATION = torchvision.models.list_models(module=torchvision.models.segmentation)
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
"""Of ImageNet's channels, which torchvision's networks are trained on."""


class Trained(NamedTuple):
    """A network with trained weights, and its input space."""

    name: str
    network: nn.Module
    mean: list[float]
    std: list[float]
    size: int
    """Side of the square that a picture is scaled to where nothing else is asked for."""


def main(
    model: str = "small",
    image: Path | None = None,
    layers: list[str] | str | None = None,
    excite: list[str] | str | None = None,
    size: int | None = None,
    weights: str = "default",
    mean: list[float] | None = None,
    std: list[float] | None = None,
    steps: int = STEPS,
    prior_weight: float = PRIOR_WEIGHT,
    train_steps: int = 200,
    details: bool = False,
    out: Path = Path("inversion.png"),
) -> None:
    """Pictures of what the layers of a network still know of a photograph, or of what excites them.

    Args:
        model: a classification or segmentation network of torchvision; or `module:function`, what a function of your
            own returns, the module a file or a name; or "small", a network that is trained here, in a minute, to tell
            photographs apart.
        image: a picture file; a photograph of scikit-image if there is none.
        layers: names as in `model.named_modules()`, with commas between; five, spread over the depth, if there are
            none. A part of a layer in brackets, as `layer4[7]` for a channel; several at once with plus signs.
        excite: in place of layers: pictures of what excites these classes, channels or units, as `fc[281],layer4[7]`;
            with an image, caricatures of it.
        size: side of the square that the picture is scaled and cropped to; 32 for "small", else 128.
        weights: of a network of torchvision: "default" for its trained ones, which are downloaded where they are not
            kept yet; "none" for random ones. Of any but "small": a file with a state_dict, as `torch.save` writes it.
        mean, std: of the channels that the network expects; by default those that torchvision tells of its own, and
            for others those of ImageNet.
        steps: of the joint solve for each layer, 0 for the closed form; or of the climb to what excites.
        prior_weight: how much it counts that a picture is unlike photographs.
        train_steps: of "small".
        details: print for each layer what each rule on the way back did, and what was lost.
        out: where the figure goes.
    """
    _check(model, size, out, steps, prior_weight, train_steps, weights)
    if layers and excite:
        raise InputError("layers are inverted or excited: give layers or excite, not both")
    picture = _open(image) if image or not excite else None
    layers, excite = _names(layers), _names(excite)
    trained = _trained(model, weights, layers or excite, train_steps)
    trained = trained._replace(mean=mean or trained.mean, std=std or trained.std)
    side = size or trained.size
    x = _scaled(picture, side, trained.mean, trained.std) if picture else None
    if excite or x is None:
        _excite(trained, excite, x, side, steps, out)
        return
    layers = layers or _over_the_depth(trained.network, x)
    inversions, cautions = _invert(trained, layers, x, steps, prior_weight)
    title = f"{trained.name}: what its layers still know"
    plot(inversions, x, mean=trained.mean, std=trained.std, title=title, to=out)
    CONSOLE.print(_table(inversions))
    for r in inversions if details else ():
        CONSOLE.print(str(r), highlight=False, markup=False)
    for caution in cautions:
        CONSOLE.print(caution, style="yellow")
    CONSOLE.print(f"Figure: {out}", highlight=False, soft_wrap=True)


def _excite(trained: Trained, parts: list[str], x: Tensor | None, size: int, steps: int, out: Path) -> None:
    """A figure of what excites parts of a network, or of caricatures."""
    given: Any = {"image": x} if x is not None else {"input_size": (size, size)}
    options: Any = {**given, "steps": steps, "mean": trained.mean, "std": trained.std}
    with Progress(console=CONSOLE, transient=True) as progress:
        found = [visualize(trained.network, part, **options) for part in progress.track(parts, description="climbing")]
    title = f"{trained.name}: what excites it"
    plot(found, x, mean=trained.mean, std=trained.std, title=title, to=out)
    for r in found:
        CONSOLE.print(str(r), highlight=False, markup=False)
    CONSOLE.print(f"Figure: {out}", highlight=False, soft_wrap=True)


def _names(layers: list[str] | str | None) -> list[str]:
    """The layers one by one: between commas that are not those of an index."""
    if not isinstance(layers, str):
        return layers or []
    inner = layers[1:-1] if layers.startswith("[") and layers.endswith("]") else layers
    return [name.strip() for name in re.split(r",(?![^\[]*\])", inner)]


def _over_the_depth(network: nn.Module, x: Tensor) -> list[str]:
    """Five layers that the image reaches."""
    plain, prefix = unwrapped(network)
    with eager(plain), evaluation(plain):
        return [prefix + name for name in spread(plain, among=reached(plain, x))]


def _check(
    model: str, size: int | None, out: Path, steps: int, prior_weight: float, train_steps: int, weights: str
) -> None:
    """Refuse what would fail after minutes of training, or a download."""
    known = ["small", *torchvision.models.list_models(module=torchvision.models), *SEGMENTATION]
    if ":" not in model and model not in known:
        near = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"torchvision has no network {model!r}: {hint}"
            "torchvision.models.list_models() lists all; module:function names one of your own"
        )
    if size is not None and size < 1:
        raise InputError(f"size is {size}, expected the side of a square of at least one pixel")
    check_counts(steps=steps, train_steps=train_steps)
    check_prior_weight(prior_weight)
    if model == "small" and weights != "default":
        raise InputError(
            f"weights are {weights!r}, but small is trained here: name a network of torchvision with --model"
        )
    check_ending(out)


def _trained(model: str, weights: str, layers: list[str], train_steps: int) -> Trained:
    """The network that was asked for, if it has all these layers."""
    torch.manual_seed(0)
    if model == "small":
        plain: nn.Module = NETWORKS["vgg"]()  # what is trained below has the same layers
    elif ":" in model:
        plain = own_network(model)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of initial values, which are torchvision's own affair
            options: Any = {"weights_backbone": None} if model in SEGMENTATION else {}
            plain = torchvision.models.get_model(model, weights=None, **options)
    for layer in layers:
        select(plain, layer)
    if model == "small":
        return _small(train_steps)
    return _own(model, weights, plain) if ":" in model else _torchvision(model, weights, plain)


def _own(name: str, weights: str, network: nn.Module) -> Trained:
    """A network of one's own, with the weights that it comes with or those of a file."""
    if weights in ("default", "none"):
        return Trained(name, network.eval(), MEAN, STD, 128)
    load_weights(network, Path(weights))
    return Trained(f"{name} with {Path(weights).name}", network.eval(), MEAN, STD, 128)


def _small(steps: int) -> Trained:
    """A network that tells from which photograph of scikit-image a crop is."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    images = ImageDataModule("photos", flip=True)
    with CONSOLE.status("training a small network to tell photographs apart"):
        module, accuracy = train_classifier("vgg", images, max_steps=steps, enable_progress_bar=False)
    CONSOLE.print(f"small: tells {images.classes} photographs apart in {accuracy:.0%} of held-out crops")
    return Trained("small", module.model, [0.5] * 3, [0.5] * 3, 32)


def _torchvision(name: str, weights: str, plain: nn.Module) -> Trained:
    """A network of torchvision with the weights that were asked for; `plain` is one with random ones."""
    default = torchvision.models.get_model_weights(name).DEFAULT
    preset = default.transforms()
    mean, std = list(getattr(preset, "mean", MEAN)), list(getattr(preset, "std", STD))
    size = max(128, *default.meta.get("min_size", ()))
    if weights == "none":
        CONSOLE.print(f"{name}: random weights", style="yellow")
        return Trained(f"{name} with random weights", plain.eval(), mean, std, size)
    if weights != "default":
        load_weights(plain, Path(weights))
        return Trained(f"{name} with {Path(weights).name}", plain.eval(), mean, std, size)
    try:
        network = torchvision.models.get_model(name, weights=default)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, no space, a damaged file
        raise InputError(
            f"the trained weights of {name} cannot be had ({_line(error)}): give --weights FILE with a state_dict "
            f"(they are at {default.url}), --weights none for random ones, or --model small for a network that is "
            "trained here"
        ) from error
    return Trained(name, network.eval(), mean, std, size)


def _invert(
    trained: Trained, layers: list[str], x: Tensor, steps: int, prior_weight: float
) -> tuple[list[Inversion], list[str]]:
    """Inversions of all layers, with a bar that moves, and what was warned of."""
    inversions: list[Inversion] = []
    with Progress(console=CONSOLE, transient=True) as progress, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", IllConditionedWarning)
        for layer in progress.track(layers, description="inverting"):
            options: Any = {"steps": steps, "prior_weight": prior_weight, "mean": trained.mean, "std": trained.std}
            inversions.append(invert(trained.network, layer, image=x, **options))
    return inversions, [str(w.message) for w in caught if issubclass(w.category, IllConditionedWarning)]


def _table(inversions: list[Inversion]) -> Table:
    """A row for each inversion, with the layer on its way where most was left over."""
    table = Table("layer", "largest residual at", "equations", "unknowns", "feature error", "seconds")
    for r in inversions:
        worst = max(r.layers, key=lambda report: report.residual)
        where = f"{worst.name} ({worst.kind})", str(worst.equations), str(worst.unknowns)
        table.add_row(r.layer, *where, f"{float(r.feature_error[0]):.1e}", f"{r.seconds:.1f}")
    return table


def _open(path: Path | None) -> Image.Image:
    """A picture file, upright and in colours; a photograph of scikit-image if there is none."""
    if path is None:
        return Image.fromarray(np.asarray(data.astronaut()))
    image, remarks = read_picture(path)
    for remark in remarks:
        CONSOLE.print(f"{path} {remark}", style="yellow", highlight=False, soft_wrap=True)
    return image.convert("RGB")


def _scaled(picture: Image.Image, size: int, mean: list[float], std: list[float]) -> Tensor:
    """A picture as a batch of one, cropped to a square, in the input space of a network."""
    return TF.normalize(TF.to_tensor(cover(picture, size, size)), mean, std).unsqueeze(0)


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def run() -> None:
    """The command, with errors in one line."""
    try:
        auto_cli(main, as_positional=False)
    except (InvconvError, OSError) as error:
        sys.exit(f"error: {_line(error)}")
