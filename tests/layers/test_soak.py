"""Two thousand training steps with everything that may happen in between: no stale answer, no growth of memory.

pytest -m slow tests/test_soak.py
"""

from __future__ import annotations

import copy
import gc
import io
import random

import psutil
import pytest
import torch
from routes import exchange
from torch import nn

from invconv import ConvOperator, InvertibleConv2d, keep_fresh
from invconv.flows import ActNorm, AffineCoupling, Chain, ConvFlow, PairFlow, Squeeze
from invconv.layers.cache import MOST
from invconv.layers.freshness import invertible_layers

STEPS = 2_000
SIZES = [(8, 8), (8, 12), (12, 8), (6, 10), (10, 6), (12, 12)]


def build():
    return Chain(
        Squeeze(),
        ActNorm(12),
        ConvFlow(12),
        AffineCoupling(12, 8),
        ConvFlow(12, padding_mode="zeros"),
        ConvFlow(12, 1),
        PairFlow(12),
    )


class Soak:
    """A flow in training, and what interrupts it; each interruption is a method."""

    def __init__(self):
        self.flow = build()
        self.batch(SIZES[0])
        self.flow(self.x)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.flow, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
        )
        self.optimizer = torch.optim.Adam(self.flow.parameters(), lr=1e-3, fused=True)
        self.checks = 0
        self.checkpoint()

    def batch(self, size):
        colours = torch.randn(2, 3, 1, 1) + 0.3 * torch.randn(2, 3, *size)
        self.x = colours.to(next(self.flow.parameters()))

    def step(self):
        self.batch(self.x.shape[2:])
        self.optimizer.zero_grad()
        z, log_det = self.flow(self.x)
        (z.square().mean() / 2 - log_det.mean() / z[0].numel()).backward()
        self.optimizer.step()
        self.average.update_parameters(self.flow)

    def check(self, flow=None):
        """Every layer against a fresh one to the last bit, and the flow by its round trip."""
        flow = flow or self.flow
        for layer in invertible_layers(flow).values():
            y = torch.randn(1, 12, *(n // 2 for n in self.x.shape[2:])).to(layer.weight)
            fresh = InvertibleConv2d(
                12, 12, layer.kernel_size, padding="same", padding_mode=layer.padding_mode, bias=False
            )
            fresh.weight = nn.Parameter(layer.weight.detach().clone())
            assert torch.equal(layer.inverse(y), fresh.inverse(y))
            assert torch.equal(layer.log_abs_det(y.shape), fresh.log_abs_det(y.shape))
        if self.x.dtype != torch.bfloat16:
            with torch.no_grad():
                z, forth = flow(self.x)
                x, back = flow.inverse(z)
            tolerance = 1e-4 if self.x.dtype == torch.float32 else 1e-10
            torch.testing.assert_close(x, self.x, rtol=tolerance, atol=tolerance)
            torch.testing.assert_close(back, -forth, rtol=1e-4, atol=1e-3)
        self.checks += 1

    def checkpoint(self):
        self.file = io.BytesIO()
        torch.save({"flow": self.flow.state_dict(), "optimizer": self.optimizer.state_dict()}, self.file)

    def reload(self):
        self.file.seek(0)
        saved = torch.load(self.file, weights_only=True)
        self.flow.load_state_dict(saved["flow"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def swap_averages(self):
        exchange(self.flow, self.average.module)
        self.check()
        self.check(self.average.module)
        exchange(self.flow, self.average.module)

    def dtypes(self):
        for dtype in random.sample([torch.float64, torch.bfloat16], 2):
            self.flow.to(dtype)
            self.x = self.x.to(dtype)
            self.check()
            self.flow.float()
            self.x = self.x.float()
            self.check()

    def another_size(self):
        self.batch(random.choice(SIZES))

    def modes(self):
        self.flow.eval()
        with torch.inference_mode():
            self.check()
        self.flow.train()

    def copies(self):
        loaded = build()
        loaded.load_state_dict(self.flow.state_dict())
        for twin in (copy.deepcopy(self.flow), loaded):
            self.check(twin)

    def write(self):
        for layer in invertible_layers(self.flow).values():
            for parameter in layer.parameters():
                parameter.data.mul_(random.uniform(0.99, 1.01))


def held():
    """Operators and tensors that are alive, and the memory of the process in MB."""
    gc.collect()
    alive = [type(o) for o in gc.get_objects()]
    operators = sum(issubclass(kind, ConvOperator) for kind in alive)
    tensors = sum(issubclass(kind, torch.Tensor) for kind in alive)
    return operators, tensors, psutil.Process().memory_info().rss / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["keep_fresh", "lazily"])
def test_two_thousand_steps_with_interruptions(kept):
    random.seed(0)
    torch.manual_seed(0)
    soak = Soak()
    handle = keep_fresh(soak.optimizer, soak.flow) if kept else None
    interruptions = [
        soak.checkpoint,
        soak.reload,
        soak.swap_averages,
        soak.dtypes,
        soak.another_size,
        soak.modes,
        soak.copies,
        soak.write,
    ]
    layers = 2 * len(invertible_layers(soak.flow))  # and those of the averages
    seen = []
    for step in range(STEPS):
        soak.step()
        soak.check()
        if random.random() < 0.25:
            random.choice(interruptions)()
            soak.check()
        if (step + 1) % (STEPS // 4) == 0:
            seen.append(held())
            assert seen[-1][0] <= layers * MOST
            print(f"step {step + 1}: {seen[-1][0]} operators, {seen[-1][1]} tensors, {seen[-1][2]:.0f} MB")
    assert handle is None or handle.steps == STEPS
    assert soak.checks > STEPS
    first, last = seen[0], seen[-1]
    assert last[1] <= 1.25 * first[1], "tensors pile up"
    assert last[2] < first[2] + 15, "memory grows"
