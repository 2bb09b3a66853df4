"""Train a multi-scale flow of invertible convolutions on images.

    python examples/flow/train.py demo                         # fit, test, and a table of results
    python examples/flow/train.py small --data.source folder:my/images
    python examples/flow/train.py demo --ckpt_path runs/demo/version_0/checkpoints/last.ckpt
    python examples/flow/train.py fit --config my.yaml         # any other LightningCLI command

A name is that of a YAML file beside this script; what follows overrides its values.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table

from invconv.lightning import FlowModule, ImageDataModule

CONFIGS = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}


class FlowCLI(LightningCLI):
    """The flow has as many channels as the images: grey folders train one of one channel."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        channels = "model.flow.init_args.in_channels"
        parser.link_arguments("data", channels, ImageDataModule.image_channels, apply_on="instantiate")


def main(args: list[str]) -> None:
    """Run the LightningCLI; where a configuration is named, fit, test and report."""
    start = time.perf_counter()
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    named = bool(args) and args[0] in CONFIGS
    if named:
        args = ["fit", "--config", str(CONFIGS[args[0]]), *args[1:]]
    cli = FlowCLI(FlowModule, ImageDataModule, args=args, save_config_kwargs={"overwrite": True})
    if named:
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        if cli.trainer.is_global_zero:
            report(cli, time.perf_counter() - start)


def report(cli: LightningCLI, seconds: float) -> None:
    """Print a table of results, and where the pictures are."""
    metrics = cli.trainer.callback_metrics
    table = Table("", "", show_header=False, title="The flow on held-out test images")
    table.add_row("data", cli.datamodule.description)
    table.add_row("steps", str(cli.trainer.global_step))
    table.add_row("test bits/dim", f"{metrics['test/bits_per_dim']:.3f}")
    table.add_row("largest reconstruction error", f"{metrics['test/reconstruction_error']:.1e} of full scale")
    table.add_row("worst condition number", f"{metrics['test/condition_worst']:.2f}")
    table.add_row("seconds", f"{seconds:.0f}")
    console = Console()
    console.print(table)
    console.print(f"Pictures: {cli.trainer.log_dir}/", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main(sys.argv[1:])
