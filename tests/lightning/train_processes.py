"""Trains a small flow in one or several processes, for `test_processes.py`:  OUT PROCESSES DATA [share]."""

from __future__ import annotations

import sys
import warnings
from datetime import timedelta
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy

from invconv.flows import MultiScaleFlow
from invconv.layers.together import LogDets
from invconv.lightning import FlowModule, ImageDataModule, InvertibilityMonitor, PictureWriter

GLOBAL_BATCH = 16


class FixedNoise(FlowModule):
    """Noise that belongs to the image, so that it is the same however images are dealt out."""

    def _bits_per_dim(self, batch, epoch, batch_idx):
        x, scaled = batch[0], []
        for image in batch[0]:
            generator = torch.Generator().manual_seed(int(image.long().sum()) + 1000 * epoch)
            scaled.append((image + torch.rand(image.shape, generator=generator).double()) / 256)
        z, log_det = self.flow.encode(torch.stack(scaled))
        flat = torch.cat([part.flatten(1) for part in z], 1)
        return -(log_det - 0.5 * flat.square().sum(1)).mean() / x[0].numel()


def count_layers(module: FlowModule) -> list[int]:
    """Grows by the number of layers in each group of which this process computes a log-determinant in training."""
    counts: list[int] = []
    whole = LogDets._group

    def group(log_dets, layers, *rest):
        if module.training:
            counts.append(len(layers))
        return whole(log_dets, layers, *rest)

    LogDets._group = group  # type: ignore[method-assign]
    return counts


def main(out: Path, processes: int, source: str, share: bool) -> None:
    torch.set_num_threads(1)
    L.seed_everything(0, verbose=False)
    torch.manual_seed(0)
    flow = MultiScaleFlow(image_size=16, scales=2, steps=2, hidden=8, padding_mode="circular")
    module = FixedNoise(flow, optimizer="adam", lr=5e-3, warmup_steps=2, share_log_dets=share)
    data = ImageDataModule(source, batch_size=GLOBAL_BATCH // processes, flip=True, val_fraction=1 / 6)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=120)) if processes > 1 else "auto"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=processes,
        strategy=strategy,
        precision="64-true",  # Adam makes steps of full length out of rounding errors where gradients are zero
        max_epochs=3,
        gradient_clip_val=1.0,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=CSVLogger(out, name="run", version=0),
        log_every_n_steps=1,
        default_root_dir=out,
        callbacks=[InvertibilityMonitor(), PictureWriter()],
    )
    counts = count_layers(module)
    trainer.fit(module, data)
    trained = dict(trainer.callback_metrics)
    trainer.test(module, data, verbose=False)
    metrics = {name: float(value) for name, value in {**trained, **trainer.callback_metrics}.items()}
    outcome = {"weights": module.state_dict(), "metrics": metrics, "layers": sum(counts)}
    torch.save(outcome, out / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], "share" in sys.argv[4:])
