"""Pictures of the layers of a network, and of what excites them: `python -m invconv.inversion --help`."""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invconv.errors import IllConditionedWarning, InputError, needs
from invconv.inversion import Inversion, invert, layer_names, spread, visualize
from invconv.inversion.inputs import check_counts, check_prior_weight
from invconv.inversion.joint import PRIOR_WEIGHT, STEPS
from invconv.inversion.layers import evaluation
from invconv.inversion.trace import reached
from invconv.inversion.wrappers import eager, unwrapped

with needs("lightning"):
    import numpy as np
    from jsonargparse import auto_cli
    from PIL import Image
    from rich.progress import Progress
    from rich.table import Table
    from skimage import data
    from torch import Tensor, nn
    from torchvision.transforms import functional as TF

    from invconv.inversion.figures import check_ending, plot
    from invconv.lightning.devices import usable_device
    from invconv.lightning.image_files import cover, read_picture
    from invconv.lightning.trained import CONSOLE, Trained, check_name, trained_network, untrained_network


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
    list_layers: bool = False,
    device: str = "cpu",
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
        list_layers: print the names that `layers` and `excite` take, each with its kind, and do nothing else.
        device: that the network runs on, as PyTorch names it: "cpu", "cuda", "cuda:1", "mps".
        out: where the figure goes.
    """
    _check(model, size, out, steps, prior_weight, train_steps, weights)
    if list_layers:
        _print_layers(untrained_network(model))
        return
    if layers and excite:
        raise InputError("layers are inverted or excited: give layers or excite, not both")
    picture = _open(image) if image or not excite else None
    layers, excite = _names(layers), _names(excite)
    place = usable_device(device)
    found = trained_network(model, weights, layers or excite, train_steps)
    found = found._replace(network=found.network.to(place), mean=mean or found.mean, std=std or found.std)
    side = size or found.size
    x = _scaled(picture, side, found.mean, found.std).to(place) if picture else None
    if excite or x is None:
        _excite(found, excite, x, side, steps, out)
        return
    layers = layers or _over_the_depth(found.network, x)
    inversions, cautions = _invert(found, layers, x, steps, prior_weight)
    title = f"{found.name}: what its layers still know"
    plot(inversions, x, mean=found.mean, std=found.std, title=title, to=out)
    CONSOLE.print(_table(inversions))
    for r in inversions if details else ():
        CONSOLE.print(str(r), highlight=False, markup=False)
    for caution in cautions:
        CONSOLE.print(caution, style="yellow")
    CONSOLE.print(f"Figure: {out}", highlight=False, soft_wrap=True)


def _print_layers(network: nn.Module) -> None:
    """The name and kind of every layer, a line each."""
    kinds = dict(network.named_modules())
    for name in layer_names(network):
        CONSOLE.print(f"{name:40}  {type(kinds[name]).__name__}", highlight=False, markup=False)


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
    check_name(model)
    if size is not None and size < 1:
        raise InputError(f"size is {size}, expected the side of a square of at least one pixel")
    check_counts(steps=steps, train_steps=train_steps)
    check_prior_weight(prior_weight)
    if model == "small" and weights != "default":
        raise InputError(
            f"weights are {weights!r}, but small is trained here: name a network of torchvision with --model"
        )
    check_ending(out)


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


FLAGS = "--details", "--list_layers"


def run(words: Sequence[str] | None = None, prog: str = "python -m invconv.inversion") -> None:
    """Draw what the words ask for: hyphens stand for underscores, and a flag alone is true."""
    asked = []
    for word in sys.argv[1:] if words is None else words:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") else name
        asked.append(name + (equals + value if equals else "=true" if name in FLAGS else ""))
    auto_cli(main, args=_joined(asked), as_positional=False, prog=prog)


def _joined(words: list[str]) -> list[str]:
    """A value after a flag stands for the one that was put there."""
    joined: list[str] = []
    for word in words:
        flag = joined[-1].partition("=")[0] if joined else ""
        if flag in FLAGS and word.lower() in ("true", "false"):
            joined[-1] = f"{flag}={word}"
        else:
            joined.append(word)
    return joined
