"""Networks by name, with trained weights and the input space that they expect."""

from __future__ import annotations

import difflib
import logging
import warnings
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
from rich.console import Console
from torch import nn

from invconv.errors import InputError
from invconv.inversion.selection import select
from invconv.lightning.classifier import NETWORKS, train_classifier
from invconv.lightning.data import ImageDataModule
from invconv.lightning.own_network import own_network
from invconv.lightning.state_files import load_weights

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


def check_name(model: str) -> None:
    """Refuse a name that is none of torchvision's, "small" or `module:function`.

    Raises:
        InputError: with the nearest names.
    """
    known = ["small", *torchvision.models.list_models(module=torchvision.models), *SEGMENTATION]
    if ":" not in model and model not in known:
        near = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        raise InputError(
            f"torchvision has no network {model!r}: {hint}"
            "torchvision.models.list_models() lists all; module:function names one of your own"
        )


def untrained_network(model: str) -> nn.Module:
    """The network of a name, with random weights or those that it comes with."""
    torch.manual_seed(0)
    if model == "small":
        return NETWORKS["vgg"]()  # what is trained has the same layers
    if ":" in model:
        return own_network(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of initial values, which are torchvision's own affair
        options: Any = {"weights_backbone": None} if model in SEGMENTATION else {}
        return torchvision.models.get_model(model, weights=None, **options)


def trained_network(model: str, weights: str, layers: list[str], train_steps: int) -> Trained:
    """The network that was asked for, if it has all these layers."""
    plain = untrained_network(model)
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


def _line(error: BaseException) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
