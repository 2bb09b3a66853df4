"""What a trained flow says by itself: images drawn from it, and the bits/dim of images that are given to it."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from invconv.errors import InputError
from invconv.lightning.data import ImageDataModule
from invconv.lightning.devices import usable_device
from invconv.lightning.figures import image_grid
from invconv.lightning.flow import FlowModule
from invconv.scalars import whole_number


def load_flow(path: Path, device: str = "cpu") -> FlowModule:
    """The flow of a checkpoint, ready to be asked.

    Args:
        path: of a checkpoint that a Trainer wrote of a `FlowModule`.
        device: that it is put on.

    Raises:
        InputError: for a file that is no such checkpoint, and for a device that cannot be used.
        CheckpointError: where it does not say how its flow is made.
    """
    place = usable_device(device)
    try:
        return FlowModule.load_from_checkpoint(path, map_location=place).eval()
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        what = " ".join(str(error).split())[:200]
        raise InputError(
            f"{path} is no checkpoint of a flow ({type(error).__name__}: {what}): give one that `invconv train flow` "
            "wrote, as runs/demo/version_0/checkpoints/last.ckpt"
        ) from error


def draw(words: Sequence[str]) -> None:
    """Draw samples from a trained flow, and write them as one picture."""
    parser = argparse.ArgumentParser(prog="invconv sample", description=draw.__doc__)
    parser.add_argument("checkpoint", type=Path, help="as runs/demo/version_0/checkpoints/last.ckpt")
    parser.add_argument("--count", type=int, default=64, help="how many (64)")
    parser.add_argument("--columns", type=int, default=8, help="images in a row (8)")
    parser.add_argument("--temperature", type=float, default=0.7, help="deviation of the latents; 1 is the model (0.7)")
    parser.add_argument("--label", type=int, help="class of all images, of a class-conditional flow; else all in turn")
    parser.add_argument("--seed", type=int, default=0, help="of the latents (0)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    parser.add_argument("--out", type=Path, default=Path("samples.png"), help="a picture file (samples.png)")
    asked = parser.parse_args(words)
    count, columns = whole_number("count", asked.count), whole_number("columns", asked.columns)
    flow = load_flow(asked.checkpoint, asked.device).flow
    device, classes = flow.prior.moments.weight.device, flow.prior.num_classes
    if asked.label is not None and not classes:
        raise InputError(f"--label is {asked.label}, but the flow of {asked.checkpoint} knows no classes: leave it out")
    labels = torch.arange(count, device=device) % classes if classes else None
    if asked.label is not None:
        labels = torch.full((count,), asked.label, device=device)
    x = flow.sample(count, asked.temperature, labels, torch.Generator(device).manual_seed(asked.seed))
    grid = image_grid(x.float() / (flow.dequantize.bins - 1), columns)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((255 * grid).round().byte().numpy()).save(asked.out)
    print(f"{count} samples at temperature {asked.temperature:g}: {asked.out}")


def score(words: Sequence[str]) -> None:
    """Print the bits/dim of images under a trained flow: those of a test set, or all in a folder without parts."""
    parser = argparse.ArgumentParser(prog="invconv score", description=score.__doc__)
    parser.add_argument("checkpoint", type=Path, help="as runs/demo/version_0/checkpoints/last.ckpt")
    parser.add_argument("--data", default="auto", help="folder:PATH, npz:PATH, cifar10, photos or auto (auto)")
    parser.add_argument("--batch-size", type=int, default=64, help="64")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    asked = parser.parse_args(words)
    module = load_flow(asked.checkpoint, asked.device)
    channels, *size = module.flow.image_shape
    own: Any = {"channels": channels} if asked.data.startswith("folder:") else {}
    data = ImageDataModule(asked.data, asked.batch_size, (size[0], size[1]), **own)
    place = usable_device(asked.device)
    trainer = L.Trainer(
        accelerator={"cuda": "gpu"}.get(place.type, place.type),
        devices=[place.index or 0] if place.type == "cuda" else 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    (found,) = trainer.test(module, datamodule=data, ckpt_path=asked.checkpoint, verbose=False)
    count = len(data.test_dataloader().dataset)  # type: ignore[arg-type]
    print(f"{found['test/bits_per_dim']:.4f} bits/dim, mean of {count} images: {data.description}")
