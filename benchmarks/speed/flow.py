"""The whole demo flow, 3 x 3 and pairs of masked 3 x 3 against 1 x 1."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness.demo_flow import demo_flow, with_layers
from benchmarks.harness.engine import without_log_dets
from benchmarks.harness.timing import Case
from benchmarks.rivals.flow_layers import Emerging
from invconv.flows import MultiScaleFlow


def flow(full: bool, device: str) -> Iterator[Case]:
    """The demo flow with 3 x 3 invertible convolutions, dense or masked, against the same flow with 1 x 1 ones."""
    x = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (64, 3, 32, 32), dtype=np.uint8)).to(device)

    def stepper(model: MultiScaleFlow, bits_per_dim: Callable[[Tensor], Tensor] | None = None) -> Callable[[], None]:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step() -> None:
            optimizer.zero_grad()
            (bits_per_dim or model.bits_per_dim)(x).mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()

        return step

    flows = {f"{k} x {k}": demo_flow(kernel_size=k).to(device) for k in (1, 3)}
    flows["pair of masked 3 x 3"] = demo_flow(mixing="pair").to(device)
    flows["emerging"] = with_layers(demo_flow(kernel_size=1), lambda channels, _: Emerging(channels)).to(device)
    calls: dict[str, Callable[[], Any]] = {name: stepper(model) for name, model in flows.items()}
    calls["3 x 3, zero borders"] = stepper(demo_flow(kernel_size=3, padding_mode="zeros").to(device))
    calls["3 x 3, kernels not bounded"] = stepper(demo_flow(kernel_size=3, rho=None).to(device))
    calls["3 x 3, log-determinants left out"] = stepper(without_log_dets(demo_flow(kernel_size=3)).to(device))
    if full:
        for name in ("1 x 1", "3 x 3", "pair of masked 3 x 3"):
            model = copy.deepcopy(flows[name])
            model.bits_per_dim(x)  # ActNorm looks at its first batch
            calls[f"{name}, torch.compile"] = stepper(model, torch.compile(model.bits_per_dim))
    yield Case("training step, batch 64", calls, "1 x 1", seconds=None if full else 30)
    for model in flows.values():
        model.eval()
    calls = {name: torch.no_grad()(lambda m=model: m.sample(64)) for name, model in flows.items()}
    yield Case("sampling 64 images", calls, "1 x 1", seconds=None if full else 15)
