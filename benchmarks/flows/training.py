"""One run: the demo flow with one kind of convolution, trained for so many seconds of CPU time."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.demo_flow import demo_flow, with_layers
from benchmarks.rivals.flow_layers import ConvExponential, Emerging
from invconv.flows import ActNorm, AffineCoupling, Chain, FlowLayer, MultiScaleFlow, Squeeze, parameter_groups

POINTS = 12
"""At which the held-out images are scored."""
WARM_UP = 50
"""Steps over which the learning rate rises."""


@dataclass(frozen=True)
class Kind:
    """A flow from a seed, and how it is told."""

    label: str
    colour: str
    flow: Callable[[int], MultiScaleFlow]
    kernel_rate: float
    """How many times faster the kernels learn than the networks; chosen from 1, 3, 10 and 30 by shorter runs."""


# Okabe and Ito's colours, told apart by everyone.
KINDS = {
    "1x1": Kind("1 x 1", "#000000", lambda seed: demo_flow(seed, kernel_size=1), 30.0),
    "circular": Kind(
        "3 x 3, circular",
        "#0072B2",
        lambda seed: demo_flow(seed, kernel_size=3, rho=0.9, padding_mode="circular"),
        10.0,
    ),
    "zeros": Kind(
        "3 x 3, zeros",
        "#009E73",
        lambda seed: demo_flow(seed, kernel_size=3, rho=0.9, padding_mode="zeros"),
        10.0,
    ),
    "exponential": Kind(
        "convolution exponential",
        "#E69F00",
        lambda seed: with_layers(demo_flow(seed, kernel_size=1), ConvExponential),
        10.0,
    ),
    "pair": Kind(
        "a bounded pair of masked 3 x 3",
        "#D55E00",
        lambda seed: demo_flow(seed, kernel_size=3, rho=0.9, mixing="pair"),
        30.0,
    ),
    "emerging": Kind(
        "emerging, a pair of masked convolutions",
        "#CC79A7",
        lambda seed: with_layers(demo_flow(seed, kernel_size=1), lambda channels, _: Emerging(channels)),
        3.0,
    ),
}

OWN = "own"
"""The kind of a layer from a file that is given."""


def add_own(place: str) -> None:
    """Let `FILE.py:NAME` be a kind: a class, or function, that makes a flow layer of (channels, (height, width))."""
    path, _, name = place.rpartition(":")
    spec = importlib.util.spec_from_file_location("own_layer", path)
    if not (name and spec and spec.loader):
        raise SystemExit(f"--layer wants FILE.py:NAME, got {place}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, name)
    KINDS[OWN] = Kind(name, "#56B4E9", lambda seed: with_layers(demo_flow(seed, kernel_size=1), make), 3.0)


def kernels_of(flow: MultiScaleFlow) -> tuple[type[FlowLayer], ...]:
    """The kinds of layers that mix, and learn at a rate of their own: all but those of the flow itself."""
    layers = {type(layer) for level in flow.levels for layer in cast(Chain, level).layers}
    return tuple(layers - {ActNorm, AffineCoupling, Squeeze})


def train(kind: str, seed: int, data: str, seconds: float, batch: int, lr: float, kernel_rate: float) -> dict:
    """One run: the held-out curve, and every training loss."""
    images = np.load(data)
    x_train, x_test = (torch.from_numpy(images[name]) for name in ("x_train", "x_test"))
    flow = KINDS[kind].flow(seed)
    optimizer = torch.optim.Adam(parameter_groups(flow, lr, kernel_rate, kernels_of(flow)))
    rates = [group["lr"] for group in optimizer.param_groups]
    generator = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    curve: list[dict] = []
    clock = 0.0
    while clock < seconds:
        x = x_train[torch.randint(len(x_train), (batch,), generator=generator)]
        x = torch.where(torch.rand(batch, 1, 1, 1, generator=generator) < 0.5, x, x.flip(-1))
        start = time.process_time()
        share = min(1.0, (len(losses) + 1) / WARM_UP) * (1 + math.cos(math.pi * clock / seconds)) / 2
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = share * rate
        loss = flow.bits_per_dim(x, generator=generator).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        clock += time.process_time() - start
        # A point as the clock passes each of the marks; the last of them is the end.
        if clock >= seconds * (len(curve) + 1) / POINTS:
            curve.append({"step": len(losses), "seconds": clock, **score(flow, x_test)})
            print(f"{KINDS[kind].label}, seed {seed}: {curve[-1]}", file=sys.stderr, flush=True)
    about = {"kind": kind, "seed": seed, "seconds": seconds, "batch": batch, "lr": lr, "kernel_rate": kernel_rate}
    return {**about, "curve": curve, "losses": losses}


@torch.no_grad()
def score(flow: MultiScaleFlow, x_test: Tensor) -> dict:
    flow.eval()
    noise = torch.Generator().manual_seed(0)
    bits = torch.cat([flow.bits_per_dim(part, generator=noise) for part in x_test.split(128)]).mean().item()
    conditions = [c.item() for c in flow.condition_numbers().values()]
    error = flow.reconstruction_error(x_test[:64], generator=noise).max().item()
    flow.train()
    return {"bits": bits, "condition": max(conditions, default=None), "error": error}
