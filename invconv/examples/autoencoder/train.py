"""Train an autoencoder whose decoder is the pseudo-inverse of its encoder, and show what its code keeps.

    invconv train autoencoder demo
    invconv train autoencoder demo --data.source npz:cifar10_subset.npz --model.model.compression [1,1,4]
    invconv train autoencoder fit --config my.yaml                 # any other LightningCLI command

A name is that of a configuration; what follows overrides its values.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table

from invconv.examples.presets import Presets
from invconv.lightning import AutoencoderModule, ImageDataModule
from invconv.lightning.autoencoder import grids

PRESETS = Presets(__file__)


class AutoencoderCLI(LightningCLI):
    """The autoencoder has the shape of the images, which is said once."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link the shape of the images to that of the data."""
        shape = "model.model.init_args.image_shape"
        parser.link_arguments("data", shape, image_shape, apply_on="instantiate")


def image_shape(data: ImageDataModule) -> list[int]:
    """[channels, height, width], known before `setup`."""
    return [data.image_channels(), *data.image_size()]


def main(words: Sequence[str]) -> None:
    """Run the LightningCLI; where a configuration is named, fit, test and report."""
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    args, named = PRESETS.arguments(words, __doc__)
    cli = AutoencoderCLI(AutoencoderModule, ImageDataModule, args=args, save_config_kwargs={"overwrite": True})
    if named:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        folder = Path(cli.trainer.log_dir or ".")  # every process asks, since the answer is broadcast
        if cli.trainer.is_global_zero:
            report(cli, folder)


def report(cli: LightningCLI, folder: Path) -> None:
    """A table, and a figure of inputs above their reconstructions."""
    metrics, model = cli.trainer.callback_metrics, cli.model.model
    table = Table("", "", show_header=False, title="Reconstruction of held-out test images through the pseudo-inverse")
    table.add_row("data", cli.datamodule.description)
    table.add_row("steps", str(cli.trainer.global_step))
    table.add_row("code", f"{model.code_shape}, {model.compression:g} times smaller")
    table.add_row("PSNR", f"{metrics['test/psnr']:.2f} dB")
    table.add_row("SSIM", f"{metrics['test/ssim']:.3f}")
    table.add_row("worst condition number", f"{max(model.condition_numbers().values()):.1f}")
    x = next(iter(cli.datamodule.test_dataloader()))[0][:12].to(cli.model.device)
    with torch.no_grad():
        x_hat = cli.model.eval().reconstruct(x)
    path = folder / "reconstructions.png"
    kept = f"from a code {model.compression:g} times smaller: {metrics['test/psnr']:.1f} dB over all test images"
    grids({"test images": x / 255, kept: x_hat}).savefig(path)
    console = Console()
    console.print(table)
    console.print(f"Picture: {path}", highlight=False, soft_wrap=True)
