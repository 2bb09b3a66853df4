"""Pictures of what the layers of a model in training still know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from invconv.inversion import invert
from invconv.inversion.figures import plot


class InversionPictures(L.Callback):
    """Draws inversions into the logger and ``trainer.log_dir`` every few validations; the training is not touched.

    Args:
        layers: names of layers of ``pl_module.model``.
        every_n_epochs: how often.
        images: how many, from the first validation batch.
        steps: of the joint solve, for each image and layer.
        prepare: from what the loader gives to the model's input space; None for ``pl_module.prepare``.
        mean, std: std x + mean lies between black, 0, and white, 1.
    """

    def __init__(
        self,
        layers: Sequence[str],
        every_n_epochs: int = 1,
        images: int = 2,
        steps: int = 50,
        prepare: Callable[[Tensor], Tensor] | None = None,
        mean: float = 0.5,
        std: float = 0.5,
    ) -> None:
        self.layers, self.every, self.images, self.steps = list(layers), every_n_epochs, images, steps
        self.prepare, self.mean, self.std = prepare, mean, std

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        skip = batch_idx or trainer.sanity_checking or (trainer.current_epoch + 1) % self.every
        if skip or not trainer.is_global_zero:
            return
        prepare: Any = self.prepare or pl_module.prepare
        model: Any = pl_module.model
        image = prepare(batch[0][: self.images])
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            x = image.clone()
            found = [invert(model, layer, image=x, steps=self.steps) for layer in self.layers]
            title = f"epoch {trainer.current_epoch}, step {trainer.global_step}"
            to = Path(trainer.log_dir or ".") / "inversions" / f"step{trainer.global_step:06d}.png"
            figures = plot(found, x, mean=self.mean, std=self.std, title=title, to=to)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for i, figure in enumerate(figures):
                    logger.experiment.add_figure(f"inversions/{i}", figure, trainer.global_step)
