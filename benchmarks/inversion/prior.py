"""What is the library's own flow worth as a prior? The small VGG's layers, with and without it.

A flow has the density of an image, so -log p(x), nats for each number, can stand where the mean square of natural
coordinates stands otherwise; or its latents can be what is moved in.  Columns: feature error (geometric mean), PSNR and
SSIM (means), and seconds of the processor for an image.

    python -m benchmarks.inversion prior --data npz:PATH
"""

from __future__ import annotations

import argparse
import logging
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from statistics import geometric_mean, mean
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from skimage.metrics import structural_similarity
from torch import Tensor, nn

from benchmarks.harness.demo_flow import demo_flow
from invconv import IllConditionedWarning
from invconv.flows import ConvFlow, MultiScaleFlow, parameter_groups
from invconv.inversion import invert
from invconv.inversion.inputs import pixel_box
from invconv.inversion.interval import Interval
from invconv.inversion.joint import JointSolve, feature_error
from invconv.lightning import ImageDataModule
from invconv.lightning.classifier import train_classifier

QUICK = {"epochs": 1, "flow_steps": 2, "images": 2, "steps": 4, "layers": ["20"], "weights": [0.03]}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", default="photos", help="photos or npz:PATH")
    parser.add_argument("--epochs", type=int, default=6, help="of the classifier")
    parser.add_argument("--flow-steps", type=int, default=700)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--layers", nargs="+", default=["13", "20", "21"])
    parser.add_argument("--weights", nargs="+", type=float, default=[0.003, 0.03, 0.3])


def main(options: argparse.Namespace) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", IllConditionedWarning)
    source = ImageDataModule(options.data, batch_size=64, flip=True)
    module, _ = train_classifier("vgg", source, options.epochs, enable_progress_bar=False)
    flow = trained_flow(source, options.flow_steps)
    shown = torch.stack([source.test_dataloader().dataset[i][0] for i in range(options.images)])
    images = module.prepare(shown).split(1)
    table = Table("layer", "prior", "steps", "error", "PSNR", "SSIM", "seconds", title="a flow as a prior")
    for layer in options.layers:
        net = cast(nn.Sequential, module.model)[: int(layer) + 1].eval().requires_grad_(False)
        for name, steps, solve in ways(net, flow, options):
            table.add_row(layer, name, str(steps), *measured(net, images, solve))
        table.add_section()
    Console(width=110).print(table)


def ways(
    net: nn.Sequential, flow: MultiScaleFlow, options: argparse.Namespace
) -> list[tuple[str, int, Callable[[Tensor], Tensor]]]:
    """Name, evaluations and solution of each way; those without the flow also by five times as many, its time."""

    def ours(steps: int, **given: object) -> Callable[[Tensor], Tensor]:
        top = str(len(net) - 1)
        return lambda x: invert(net, top, image=x, steps=steps, mean=0.5, std=0.5, **given).image  # type: ignore[arg-type]

    def latent(weight: float) -> Callable[[Tensor], Tensor]:
        def solve(x: Tensor) -> Tensor:
            joint = JointSolve(options.steps, prior_weight=weight, coordinates=Latents(flow, x))
            return joint.run(net, net(x), torch.zeros_like(x)).detach()

        return solve

    found = [("spectrum", steps, ours(steps)) for steps in (options.steps, 5 * options.steps)]
    for weight in options.weights:
        prior = ours(options.steps, prior=lambda x: nats(flow, x), prior_weight=weight)
        found.append((f"density, weight {weight:g}", options.steps, prior))
    return [*found, *((f"latents, weight {w:g}", options.steps, latent(w)) for w in options.weights)]


def trained_flow(source: ImageDataModule, steps: int) -> MultiScaleFlow:
    """The demo's flow."""
    flow = demo_flow(0)
    optimizer = torch.optim.Adam(parameter_groups(flow, 2e-3, 10.0, (ConvFlow,)))
    falls = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    done = 0
    while done < steps:
        for x, _ in source.train_dataloader():
            optimizer.zero_grad()
            flow.bits_per_dim(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
            optimizer.step()
            falls.step()
            done += 1
            if done == steps:
                break
    return flow.eval().requires_grad_(False)


def nats(flow: MultiScaleFlow, x: Tensor) -> Tensor:
    """(batch,): -log p of images from -1 to 1, for each number."""
    z, log_det = flow.encode((x + 1) / 2)
    flat = torch.cat([part.flatten(1) for part in z], 1)
    return (0.5 * flat.square() + 0.5 * math.log(2 * math.pi)).mean(1) - log_det / flat.shape[1]


@dataclass
class Latents:
    """Coordinates of a joint solve: the latents of a flow, side by side."""

    flow: MultiScaleFlow
    like: Tensor
    within: bool = True

    @property
    def box(self) -> Interval | None:
        return pixel_box(0.5, 0.5, self.like)

    def decode(self, z: Tensor) -> Tensor:
        sizes = [math.prod(shape) for shape in self.flow.latent_shapes]
        parts = zip(z.split(sizes, 1), self.flow.latent_shapes, strict=True)
        return 2 * self.flow.decode([part.unflatten(1, shape) for part, shape in parts])[0] - 1

    def encode(self, image: Tensor) -> Tensor:
        inside = ((image + 1) / 2).clamp(0.002, 0.998)
        return torch.cat([part.flatten(1) for part in self.flow.encode(inside)[0]], 1)

    def prior(self, z: Tensor) -> Tensor:
        return z.square().mean(1)


def measured(net: nn.Module, images: tuple[Tensor, ...], solve: Callable[[Tensor], Tensor]) -> list[str]:
    """The columns of one way."""
    errors, ratios, likenesses, began = [], [], [], time.process_time()
    for x in images:
        picture = solve(x)
        with torch.no_grad():
            errors.append(float(feature_error(net, picture, net(x))) + 1e-12)
        ratios.append(float(-10 * torch.log10(((picture - x) / 2).square().mean())))
        a, b = ((v[0].movedim(0, -1) / 2 + 0.5).numpy() for v in (x, picture))
        likenesses.append(float(structural_similarity(a, b, channel_axis=2, data_range=1.0)))
    seconds = (time.process_time() - began) / len(images)
    return [f"{geometric_mean(errors):.4f}", f"{mean(ratios):.1f}", f"{mean(likenesses):.3f}", f"{seconds:.2f}"]
