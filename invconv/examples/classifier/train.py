"""Train a small classifier and look at what each of its layers still knows of an image.

invconv train classifier                                   # VGG-like, on what images there are
invconv train classifier --network resnet --data npz:cifar10_subset.npz --epochs 12
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from invconv import IllConditionedWarning
from invconv.inversion import invert
from invconv.inversion.figures import plot
from invconv.inversion.joint import PRIOR_WEIGHT, STEPS
from invconv.lightning import ImageDataModule, InversionPictures
from invconv.lightning.classifier import train_classifier

LAYERS = {"vgg": ["2", "5", "6", "9", "13", "20"], "resnet": ["2", "3", "4", "5", "6", "8"]}


def train(
    network: Literal["vgg", "resnet"] = "vgg",
    data: str = "auto",
    epochs: int = 10,
    images: int = 4,
    steps: int = STEPS,
    prior_weight: float = PRIOR_WEIGHT,
    max_steps: int = -1,
    out: Path = Path("runs/classifier"),
) -> None:
    """Train a classifier, test it, and invert its layers for a few test images.

    Args:
        network: "vgg" or "resnet".
        data: a source of images with labels; see invconv.lightning.ImageDataModule.
        epochs: of training.
        images: how many test images are inverted.
        steps: of the joint solve for each layer and image.
        prior_weight: how much it counts that a picture is unlike photographs.
        max_steps: of training, -1 for as many as there are in the epochs.
        out: folder of the figures.
    """
    layers, source = LAYERS[network], ImageDataModule(data, batch_size=128, flip=True)
    watch = InversionPictures(layers[::2], every_n_epochs=5, images=1)
    module, accuracy = train_classifier(
        network, source, epochs, max_steps, callbacks=[watch], default_root_dir=out, num_sanity_val_steps=0
    )
    console = Console()
    console.print(f"{source.description}: {source.classes} classes, test accuracy {accuracy:.1%}", highlight=False)
    test = source.test_dataloader().dataset
    shown = torch.stack([test[i][0] for i in range(images)])
    x = module.prepare(shown)
    table = Table("layer", "closed form", "joint", "seconds per image", title="feature error, worst image")
    inversions = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IllConditionedWarning)  # the table says it
        for layer in layers:
            closed = invert(module.model, layer, image=x, steps=0)
            options: Any = {"prior_weight": prior_weight, "mean": 0.5, "std": 0.5}
            inversions.append(invert(module.model, layer, image=x, steps=steps, **options))
            worst = (f"{float(r.feature_error.max()):.1e}" for r in (closed, inversions[-1]))
            table.add_row(layer, *worst, f"{inversions[-1].seconds / images:.2f}")
    console.print(table)
    plot(inversions, x, mean=0.5, std=0.5, title=f"small {network}, {accuracy:.0%} right", to=out / f"{network}.png")
    console.print(f"Figures: {out}/", highlight=False, soft_wrap=True)


def main(words: Sequence[str]) -> None:
    """Train and invert as the words ask for."""
    auto_cli(train, args=list(words), as_positional=False, prog="invconv train classifier")
