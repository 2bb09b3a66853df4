"""Train an autoencoder whose decoder is the pseudo-inverse of its encoder, and show what its code keeps.

    python examples/autoencoder/train.py demo
    python examples/autoencoder/train.py demo --data.source npz:cifar10_subset.npz --model.model.compression [1,1,4]
    python examples/autoencoder/train.py fit --config my.yaml      # any other LightningCLI command

A name is that of a YAML file beside this script; what follows overrides its values.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.cli import LightningCLI
from rich.console import Console
from rich.table import Table

from invconv.lightning import AutoencoderModule, ImageDataModule
from invconv.lightning.autoencoder import grids

CONFIGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


def main(args: list[str]) -> None:
    """Run the LightningCLI; where a configuration is named, fit, test and report."""
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    named = bool(args) and args[0] in CONFIGS
    if named:
        args = ["fit", "--config", str(CONFIGS[args[0]]), *args[1:]]
    cli = LightningCLI(AutoencoderModule, ImageDataModule, args=args, save_config_kwargs={"overwrite": True})
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


if __name__ == "__main__":
    main(sys.argv[1:])
