"""Train a multi-scale flow of invertible convolutions on images.

    invconv train flow demo                                    # fit, test, and a table of results
    invconv train flow small --data.source folder:my/images --data.image_size 64
    invconv train flow demo --ckpt_path runs/demo/version_0/checkpoints/last.ckpt
    invconv train flow fit --config my.yaml                    # any other LightningCLI command
    invconv train flow fit --help                              # all that can be set

A name is that of a configuration; what follows overrides its values.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence

from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.table import Table

from invconv.examples.presets import Presets
from invconv.lightning import FlowModule, ImageDataModule

PRESETS = Presets(__file__)


class FlowCLI(LightningCLI):
    """The flow has the shape of the images, which is said once: grey folders train one of one channel."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link channels and size of the flow to those of the data."""
        flow = "model.flow.init_args"
        parser.link_arguments("data", f"{flow}.in_channels", ImageDataModule.image_channels, apply_on="instantiate")
        parser.link_arguments("data", f"{flow}.image_size", ImageDataModule.image_size, apply_on="instantiate")


def main(words: Sequence[str]) -> None:
    """Run the LightningCLI; where a configuration is named, fit, test and report."""
    start = time.perf_counter()
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    args, named = PRESETS.arguments(words, __doc__)
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
