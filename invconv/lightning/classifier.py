"""A classifier for small images, to have something whose layers can be inverted."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy
from typing_extensions import override

from invconv.errors import InputError
from invconv.lightning.data import ImageDataModule
from invconv.lightning.networks import small_resnet, small_vgg
from invconv.lightning.rebuilt import RebuildsNetwork, check_trainable, float_dtype

NETWORKS = {"vgg": small_vgg, "resnet": small_resnet}


class ClassifierModule(RebuildsNetwork):
    """A small VGG-like or ResNet-like network, trained by cross entropy on uint8 images and their labels.

    Args:
        network: "vgg" or "resnet".
        channels: of the images.
        classes: how many labels there are.
        width: channels of the first layers.
        lr: largest learning rate of AdamW on a one-cycle schedule.

    Raises:
        InputError: for an unknown network; before the first step, for precision="16-true", whose weights do not train.
    """

    def __init__(
        self, network: str = "vgg", channels: int = 3, classes: int = 10, width: int = 32, lr: float = 3e-3
    ) -> None:
        super().__init__()
        if network not in NETWORKS:
            raise InputError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
        self.save_hyperparameters()
        self.model: nn.Module = NETWORKS[network](channels, classes, width)
        self.classes, self.lr = classes, lr

    def prepare(self, images: Tensor) -> Tensor:
        """Levels 0 to 255 to the input space of the model, -1 to 1 in the type of its weights."""
        return (images.float() / 127.5 - 1).to(float_dtype(self.model))

    @override
    def forward(self, images: Tensor) -> Tensor:
        return self.model(self.prepare(images))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        accuracy = multiclass_accuracy(self(batch[0]), batch[1], self.classes, average="micro")
        self.log("test/accuracy", accuracy, batch_size=len(batch[1]))

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]), batch_size=len(batch[1]))

    @override
    def configure_optimizers(self) -> Any:
        check_trainable(self)
        optimizer = torch.optim.AdamW(self.parameters(), self.lr, weight_decay=0.05)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=steps + 1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_classifier(
    network: str, data: ImageDataModule, epochs: int = 10, max_steps: int = -1, **trainer: Any
) -> tuple[ClassifierModule, float]:
    """A classifier trained on the CPU with seed 0, and its accuracy on the test images.

    Raises:
        InputError: if the images carry no labels.
    """
    L.seed_everything(0, verbose=False)
    data.prepare_data()
    data.setup()
    if not data.classes:
        raise InputError(f"a classifier needs labels, and the images ({data.description}) have none")
    x = data.train_dataloader().dataset[0][0]
    module = ClassifierModule(network, len(x), data.classes)
    options = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, **trainer}
    fit = L.Trainer(accelerator="cpu", devices=1, max_epochs=epochs, max_steps=max_steps, **options)
    fit.fit(module, datamodule=data)
    (result,) = fit.test(module, datamodule=data, verbose=False)
    return module.eval(), result["test/accuracy"]
