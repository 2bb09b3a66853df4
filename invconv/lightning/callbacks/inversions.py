"""Pictures of what the layers of a model in training still know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from typing_extensions import override

from invconv.errors import InputError, warn
from invconv.inversion import invert, spread
from invconv.inversion.figures import plot
from invconv.inversion.inputs import check_image, check_model, check_within, pixel_box
from invconv.inversion.selection import select


class InversionPictures(L.Callback):
    """Draws inversions every few epochs; the training is not touched.

    They go into loggers that take pictures (TensorBoard, and those with a `log_image`, as Weights & Biases has it),
    and into `trainer.log_dir` as PNG files.

    Drawn are images of the first validation batch, or of the first training batch where nothing is validated.

    Args:
        layers: names of layers of `pl_module.model`, or of the module itself where it has none; five, spread over
            the depth, if there are none.
        every_n_epochs: how often.
        images: how many.
        steps: of the joint solve, for each image and layer.
        prepare: from what the loader gives to the model's input space; None for `pl_module.prepare`, or nothing to
            be done where it has none.
        mean, std: per channel; std x + mean lies between black, 0, and white, 1.

    Raises:
        InputError: before the first step, for an unknown layer or a model that `invert` cannot take; at the first
            picture, for images the model's input space cannot hold (levels to 255 without `prepare`).

    Warns:
        IllConditionedWarning: once, where images leave black and white by `mean` and `std`: they are then inverted
            without bounds.
    """

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        every_n_epochs: int = 1,
        images: int = 2,
        steps: int = 50,
        prepare: Callable[[Tensor], Tensor] | None = None,
        mean: Sequence[float] | float = 0.5,
        std: Sequence[float] | float = 0.5,
    ) -> None:
        if every_n_epochs < 1 or images < 1:
            raise InputError(f"every_n_epochs and images must be at least 1, got {every_n_epochs} and {images}")
        self.layers, self.every, self.images, self.steps = layers, every_n_epochs, images, steps
        self.prepare, self.mean, self.std = prepare, mean, std
        self._first: Tensor | None = None
        self._warned = False

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for layer in self.layers or ():
            select(_network(pl_module), layer)
        check_model(_network(pl_module))

    @override
    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not batch_idx and not sum(map(bool, trainer.num_val_batches)):
            self._first = _images(batch)[: self.images]

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._first is not None:
            self._draw(trainer, pl_module, self._first)
            self._first = None

    @override
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not (batch_idx or dataloader_idx or trainer.sanity_checking):
            self._draw(trainer, pl_module, _images(batch)[: self.images])

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule, images: Tensor) -> None:
        if (trainer.current_epoch + 1) % self.every:
            return
        # Every process asks for the folder, since the answer is broadcast; one writes.
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "inversions"
        if not trainer.is_global_zero:
            return
        network = _network(pl_module)
        prepare: Any = self.prepare or getattr(pl_module, "prepare", lambda x: x)
        devices = [images.device] if images.is_cuda else []
        with torch.random.fork_rng(devices=devices):
            x = prepare(images)
            check_image(x, network, check_model(network))
            bounds = self._bounds(x)
            layers = self.layers or spread(network)
            inversions = [invert(network, layer, image=x, steps=self.steps, **bounds) for layer in layers]
            title = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            to = folder / f"step{trainer.global_step:06d}.png"
            figures = plot(inversions, x, mean=self.mean, std=self.std, title=title, to=to)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for i, figure in enumerate(figures):
                    logger.experiment.add_figure(f"inversions/{i}", figure, trainer.global_step)
            elif hasattr(logger, "log_image"):
                logger.log_image("inversions", list(figures))

    def _bounds(self, x: Tensor) -> dict[str, Any]:
        """What `invert` is told of black and white: nothing where images are not between them, which is said once."""
        box = pixel_box(self.mean, self.std, x)
        try:
            check_within(x, box)
        except InputError as error:
            if not self._warned:
                warn(f"InversionPictures inverts without bounds: by its mean {self.mean} and std {self.std}, {error}")
            self._warned = True
            return {}
        return {"mean": self.mean, "std": self.std}


def _network(pl_module: L.LightningModule) -> nn.Module:
    """What is inverted: the module's `model`, or the module itself."""
    model = getattr(pl_module, "model", pl_module)
    return model if isinstance(model, nn.Module) else pl_module


def _images(batch: Any) -> Tensor:
    """The images of a batch."""
    images = batch[0] if isinstance(batch, (list, tuple)) else batch
    if not isinstance(images, Tensor) or images.dim() != 4:
        raise InputError(
            f"InversionPictures needs batches that are, or begin with, (batch, channels, height, width) images, "
            f"got {type(images).__name__}"
        )
    return images
