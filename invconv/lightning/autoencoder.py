"""The training of an autoencoder, as a LightningModule."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from typing_extensions import override

from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.errors import InputError
from invconv.lightning.figures import image_grid, stacked
from invconv.lightning.rebuilt import RebuildsNetwork, check_trainable, float_dtype


class AutoencoderModule(RebuildsNetwork):
    r"""Maximises the PSNR: the loss is $\overline{\log(e + 10^{-4})}$, with e each image's mean squared error.

    Added to it: `sparsity` times the mean absolute value of the code over its root mean square.

    Batches are `(x, y)` of uint8 images; the model sees them between -1 and 1. Before the first step the model's
    `initialize`, if it has one, is called with training images, unless it has been `initialized` before.

    Logged: `train/loss`; `val/psnr` and `test/psnr` in dB, `val/ssim` and `test/ssim`, means over images.

    A checkpoint says how its `PseudoInverseAutoencoder` is made, so that `AutoencoderModule.load_from_checkpoint(path)`
    loads it; for models of other classes `model` is to be given as well.

    Args:
        model: gives `(x_hat, z)`; has `encode` and `decode`.
        lr: largest learning rate of Adam, on a cosine after 50 steps of warm-up.
        loss: "psnr", or "mse" for the mean squared error itself.
        sparsity: weight of the code's mean absolute value over its root mean square: 1 for one level, small for few
            large entries.
        code_noise: standard deviation of noise on the code in training, in units of its own.

    Raises:
        InputError: for an unknown loss; before the first step, for precision="16-true", whose weights do not train.
        CheckpointError: when a checkpoint is loaded that does not say how its model is made, and no `model` is given.

    Example:
        >>> module = AutoencoderModule(PseudoInverseAutoencoder((3, 16, 16)))
        >>> x = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
        >>> module.reconstruct(x).shape
        torch.Size([2, 3, 16, 16])
    """

    def __init__(
        self,
        model: PseudoInverseAutoencoder,
        lr: float = 3e-3,
        loss: str = "psnr",
        sparsity: float = 0.0,
        code_noise: float = 0.0,
    ) -> None:
        super().__init__()
        if loss not in ("psnr", "mse"):
            raise InputError(f"unknown loss {loss!r}: choose 'psnr' or 'mse'")
        self.save_hyperparameters(ignore="model")
        self.model: nn.Module = self.keep_network("model", model)
        self.lr, self.loss, self.sparsity, self.code_noise = lr, loss, sparsity, code_noise

    def prepare(self, images: Tensor) -> Tensor:
        """Levels 0 to 255 to -1 to 1, in the type of the weights."""
        return (images.float() / 127.5 - 1).to(float_dtype(self.model))

    def reconstruct(self, images: Tensor) -> Tensor:
        """uint8 images to what the code keeps of them, between 0 and 1."""
        return ((_wide(self.model(self.prepare(images))[0]) + 1) / 2).clamp(0, 1)

    @override
    def on_fit_start(self) -> None:
        if hasattr(self.model, "initialize") and not getattr(self.model, "initialized", False):
            self.trainer.fit_loop.setup_data()
            data = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
            step = max(1, len(data) // 512)
            images = torch.stack([data[i][0] for i in range(0, len(data), step)])
            start: Any = self.model.initialize
            start(self.prepare(images).to(self.device))

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x = self.prepare(batch[0])
        z = self.model.encode(x)  # type: ignore[operator]
        noisy = z
        if self.code_noise:
            noisy = z + self.code_noise * z.detach().std() * torch.randn_like(z)
        error = _wide(self.model.decode(noisy) - x).square().flatten(1).mean(1)  # type: ignore[operator]
        loss = error.mean() if self.loss == "mse" else (error + 1e-4).log().mean()
        if self.sparsity:
            loss = loss + self.sparsity * _wide(z).abs().mean() / _wide(z).square().mean().sqrt()
        self.log("train/loss", loss)
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._score("val", batch[0])

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._score("test", batch[0])

    def _score(self, part: str, images: Tensor) -> None:
        x_hat = self.reconstruct(images)
        psnr, ssim = scores(x_hat, images.to(x_hat.dtype) / 255)
        values = {f"{part}/psnr": psnr, f"{part}/ssim": ssim}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(images))

    @override
    def configure_optimizers(self) -> Any:
        check_trainable(self)
        optimizer = torch.optim.Adam(self.parameters(), self.lr)
        steps = max(1, int(self.trainer.estimated_stepping_batches))
        rise = min(50, steps)
        warm = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / rise, 1.0, rise)
        fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        schedule = torch.optim.lr_scheduler.ChainedScheduler([warm, fall], optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _wide(x: Tensor) -> Tensor:
    """In float32 at least: errors and their means have more digits than images."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def grids(rows: dict[str, Tensor]) -> Figure:
    """A labelled row for each batch of images between 0 and 1."""
    return stacked([(label, image_grid(images, len(images))) for label, images in rows.items()])


def scores(images: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Mean PSNR in dB, and mean SSIM, of images between 0 and 1."""
    psnr = peak_signal_noise_ratio(images, truth, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    ssim = structural_similarity_index_measure(images, truth, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return psnr, ssim
