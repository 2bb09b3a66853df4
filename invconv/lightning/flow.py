"""The training of a flow, as a LightningModule."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import override

from invconv.errors import InputError
from invconv.flows import MultiScaleFlow, parameter_groups, shared_log_dets
from invconv.lightning.data import ImageDataModule
from invconv.lightning.rebuilt import RebuildsNetwork, check_trainable, float_dtype


class FlowModule(RebuildsNetwork):
    r"""Minimises the mean of `bits_per_dim` over images, by Adam or Adamax after a linear warm-up.

    Batches are `(x, y)`: integer images (batch, channels, height, width) and labels (batch,); the labels are used by
    class-conditional flows only.

    Dequantisation noise is a function of the seed, epoch, batch and process, not of a global random state. A resumed
    run therefore sees the noise it would have seen, and two evaluations agree.

    Logged, in bits/dim: `train/bits_per_dim`, `val/bits_per_dim`, `test/bits_per_dim`.

    A checkpoint says how its `MultiScaleFlow` is made, so that `FlowModule.load_from_checkpoint(path)` loads it; for
    flows of other classes `flow` is to be given as well.

    Args:
        flow: what is trained.
        optimizer: "adam" or "adamax".
        lr: learning rate after the warm-up.
        kernel_rate: how many times faster the kernels of invertible convolutions learn.
        warmup_steps: optimizer steps over which the rate rises linearly.
        cosine: let the rate then fall to zero, along a cosine, by the end that the Trainer's `max_steps` or
            `max_epochs` sets.
        seed: of the dequantisation noise.
        share_log_dets: let each process of a distributed training compute the log-determinants of some layers only, see
            `invconv.flows.shared_log_dets`: loss and averaged gradient are the same. For strategies of DDP.

    Raises:
        InputError: before the first step, for a precision whose weights cannot be trained ("16-true") or cannot tell
            the levels of images apart ("bf16-true"), for images of an `ImageDataModule` that the flow cannot take, and
            for `share_log_dets` in several processes under another strategy than DDP.
        CheckpointError: when a checkpoint is loaded that does not say how its flow is made, and no `flow` is given.

    Example:
        >>> module = FlowModule(MultiScaleFlow(image_size=8, scales=1, steps=1, hidden=8))
        >>> x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
        >>> module.flow.bits_per_dim(x).shape
        torch.Size([4])
    """

    def __init__(
        self,
        flow: MultiScaleFlow,
        optimizer: Literal["adam", "adamax"] = "adamax",
        lr: float = 1e-3,
        kernel_rate: float = 3.0,
        warmup_steps: int = 100,
        cosine: bool = False,
        seed: int = 0,
        share_log_dets: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="flow")
        self.flow: MultiScaleFlow = self.keep_network("flow", flow)
        self.optimizer = optimizer
        self.lr = lr
        self.kernel_rate = kernel_rate
        self.warmup_steps = warmup_steps
        self.cosine = cosine
        self.seed = seed
        self.share_log_dets = share_log_dets

    @override
    def setup(self, stage: str) -> None:
        """Refuse images that the flow cannot take, and strategies that it cannot share with, before the first step."""
        strategy = self.trainer.strategy
        if (
            stage == "fit"
            and self.share_log_dets
            and self.trainer.world_size > 1
            and not isinstance(strategy, DDPStrategy)
        ):
            raise InputError(
                "share_log_dets is for processes that average the gradients of whole weights, as strategy='ddp' does; "
                f"the Trainer has {type(strategy).__name__}: set share_log_dets=False"
            )
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, ImageDataModule):
            given, taken = data.image_shape, self.flow.image_shape
            if given != taken:
                raise InputError(
                    f"{data.description} are (channels, height, width) = {given}, but the flow takes {taken}: make it "
                    f"with in_channels={given[0]} and image_size={given[1:]}, or let the ImageDataModule of a folder "
                    f"read them with channels={taken[0]} and image_size={taken[1:]}"
                )

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        # Not in evaluation: callbacks ask the flow in one process only, and nothing is computed twice there.
        with shared_log_dets() if self.share_log_dets else nullcontext():
            loss = self._bits_per_dim(batch, self.current_epoch + 1, batch_idx)
        self.log("train/bits_per_dim", loss, prog_bar=True, batch_size=len(batch[0]))
        return loss

    @override
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("val", batch, batch_idx)

    @override
    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._evaluate("test", batch, batch_idx)

    @override
    def configure_optimizers(self) -> Any:
        check_trainable(self)
        self.flow.dequantize.check_dtype(float_dtype(self.flow))
        kind = {"adam": torch.optim.Adam, "adamax": torch.optim.Adamax}[self.optimizer]
        optimizer = kind(parameter_groups(self, self.lr, self.kernel_rate))
        end = float(self.trainer.estimated_stepping_batches) if self.cosine else math.inf

        def rate(step: int) -> float:
            if step < self.warmup_steps:
                return (step + 1) / self.warmup_steps
            if not math.isfinite(end):
                return 1.0
            share = (step - self.warmup_steps) / max(end - self.warmup_steps, 1)
            return 0.5 * (1 + math.cos(math.pi * min(share, 1)))

        scheduler = LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def labels(self, batch: Any) -> Tensor | None:
        """The labels of a batch, where the flow uses them."""
        return batch[1] if self.flow.prior.num_classes else None

    def noise(self, epoch: int, batch_idx: int) -> torch.Generator:
        """The generator of the dequantisation noise of one batch; epoch 0 is evaluation."""
        key = np.random.SeedSequence([self.seed, epoch, batch_idx, self.global_rank])
        return torch.Generator(self.device).manual_seed(int(key.generate_state(1)[0]))

    def _bits_per_dim(self, batch: Any, epoch: int, batch_idx: int) -> Tensor:
        generator = self.noise(epoch, batch_idx)
        return self.flow.bits_per_dim(batch[0], self.labels(batch), generator).mean()

    def _evaluate(self, stage: str, batch: Any, batch_idx: int) -> None:
        value = self._bits_per_dim(batch, 0, batch_idx)
        name = f"{stage}/bits_per_dim"
        self.log(name, value, prog_bar=True, sync_dist=True, batch_size=len(batch[0]))
