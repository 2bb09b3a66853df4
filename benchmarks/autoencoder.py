"""What does a code keep of an image? Pseudo-inverse autoencoders, PCA and a learned decoder, all of one code size.

    python -m benchmarks.autoencoder --data npz:cifar10_subset.npz --steps 600 --seeds 0 1 2
    python -m benchmarks.autoencoder --data npz:cifar10_subset.npz --steps 1600 --rates 16 --methods widened

PSNR and SSIM are means over the held-out test images, clipped to the range of images.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.harness.command import ask
from benchmarks.harness.record import RESULTS
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.lightning import AutoencoderModule, ImageDataModule
from invconv.lightning.autoencoder import grids, scores

QUICK = {"steps": 2, "seeds": [0], "rates": [16], "out": Path("runs/autoencoder.png")}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear": ("pseudo-inverse, linear", {"activation": None, "mixing": 0}),
    "nonlinear": ("pseudo-inverse, nonlinear", {}),
    "widened": ("pseudo-inverse, nonlinear, first widened twice", {}),
    "learned": ("learned decoder", {}),
}


class LearnedDecoder(PseudoInverseAutoencoder):
    """The encoder of a pseudo-inverse autoencoder, with transposed convolutions of its own to decode."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        back: list[nn.Module] = []
        for layer in reversed(self.layers):
            if isinstance(layer, nn.Conv2d):
                size, stride, padding = layer.kernel_size, layer.stride, layer.padding
                channels = layer.out_channels, layer.in_channels
                back.append(nn.ConvTranspose2d(*channels, size, stride, padding))  # type: ignore[arg-type]
            else:
                back.append(nn.LeakyReLU(0.2))
        self.back = nn.Sequential(*back)

    def decode(self, z: Tensor) -> Tensor:
        return self.back(z)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="photos", help="photos or npz:PATH")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=int, nargs="+", default=[16, 8, 4, 2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["linear", "nonlinear", "learned"])
    parser.add_argument("--out", type=Path, default=RESULTS / "autoencoder.png")


def main(options: argparse.Namespace) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    data = ImageDataModule(options.data, flip=True)
    data.setup()
    splits = data.splits
    assert splits is not None
    train, test = (torch.stack([x for x, _ in part]).float() / 255 for part in (splits.train, splits.test))  # type: ignore[attr-defined]
    train = torch.cat([train, train.flip(-1)])
    console, rows = Console(width=110), {"test images": test[:12]}
    table = Table("rate", "method", "PSNR, dB", "SSIM", title=f"{options.steps} steps, seeds {options.seeds}")
    for rate in options.rates:
        for name, block in {"PCA, whole images": test.shape[-1], "PCA, 8 x 8 patches": 8}.items():
            _row(table, rate, name, [scores(principal_components(train, test, block, rate), test)])
        for method in options.methods:
            (name, _), found = METHODS[method], []
            for seed in options.seeds:
                module = trained(test.shape[1:], method, rate, seed, options)
                with torch.no_grad():
                    again = torch.cat([module.eval().reconstruct(255 * part) for part in test.split(256)])
                found.append(scores(again, test))
                console.print(rate, name, seed, *(f"{float(v):.3f}" for v in found[-1]), highlight=False)
                if seed == options.seeds[0] and method == "nonlinear":
                    rows[f"{name}, {rate} times smaller: {found[-1][0]:.1f} dB over all"] = again[:12]
            _row(table, rate, name, found)
    console.print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    grids(rows).savefig(options.out)


def trained(shape: torch.Size, method: str, rate: int, seed: int, options: argparse.Namespace) -> AutoencoderModule:
    """One autoencoder after its training, all else alike."""
    L.seed_everything(seed, verbose=False)
    compression = (0.5, 1, 2 * rate) if method == "widened" else (1, 1, rate)
    kind = LearnedDecoder if method == "learned" else PseudoInverseAutoencoder
    module = AutoencoderModule(kind(shape, compression, **METHODS[method][1]))
    images = ImageDataModule(options.data, flip=True, seed=seed)
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=options.steps,
        max_epochs=-1,
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(module.train(), datamodule=images)
    return module


def principal_components(train: Tensor, test: Tensor, block: int, rate: int) -> Tensor:
    """The linear optimum on blocks of the training images, applied to the test images."""

    def cut(x: Tensor) -> Tensor:
        return nn.functional.pixel_unshuffle(x, block).movedim(1, -1)

    seen = cut(train).flatten(0, -2)
    mean = seen.mean(0)
    vectors = torch.linalg.eigh(torch.cov((seen - mean).T.double())).eigenvectors.flip(1).float()
    kept = vectors[:, : seen.shape[1] // rate]
    found = (cut(test) - mean) @ kept @ kept.T + mean
    return nn.functional.pixel_shuffle(found.movedim(-1, 1), block).clamp(0, 1)


def _row(table: Table, rate: int, name: str, found: list[tuple[Tensor, Tensor]]) -> None:
    cells = []
    for values, digits in zip(zip(*found, strict=True), (2, 3), strict=True):
        numbers = [float(v) for v in values]
        spread = f" +- {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
        cells.append(f"{statistics.mean(numbers):.{digits}f}{spread}")
    table.add_row(str(rate), name, *cells)


if __name__ == "__main__":
    ask("autoencoder", __doc__, sys.modules[__name__])
