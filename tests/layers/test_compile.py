"""What `torch.compile`, `torch.export` and autocast make of the layers; the whole table is `test_drop_in.py`."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from invconv import InvertibleConv2d
from invconv.flows import MultiScaleFlow

MODES = ["circular", "zeros"]
FLOWS = [*MODES, "pair"]


@pytest.fixture(autouse=True)
def _anew():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _flow(kind):
    options = {"mixing": "pair"} if kind == "pair" else {"padding_mode": kind}
    flow = MultiScaleFlow(image_size=16, scales=2, steps=1, hidden=8, **options)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    flow.bits_per_dim(images)  # ActNorm looks at its first batch
    return flow, images


def _step(flow, loss):
    torch.manual_seed(1)  # dequantisation
    flow.zero_grad()
    value = loss()
    value.backward()
    return value.detach(), [p.grad.clone() for p in flow.parameters() if p.grad is not None]


@pytest.mark.parametrize("kind", FLOWS)
def test_a_compiled_training_step_is_the_eager_one(kind):
    flow, images = _flow(kind)
    compiled = torch.compile(lambda: flow.bits_per_dim(images).mean(), backend="aot_eager")
    for _ in range(2):
        value, gradients = _step(flow, lambda: flow.bits_per_dim(images).mean())
        found, compiled_gradients = _step(flow, compiled)
        assert torch.allclose(found, value, rtol=1e-6)
        assert len(gradients) == len(compiled_gradients) > 0
        for expected, gradient in zip(gradients, compiled_gradients, strict=True):
            assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-6)
        with torch.no_grad():  # and it is not stale after a step
            for p in flow.parameters():
                p -= 0.01 * p.grad


@pytest.mark.parametrize("kind", FLOWS)
def test_a_compiled_flow_takes_batches_of_any_size(kind):
    flow, images = _flow(kind)
    compiled = torch.compile(flow.bits_per_dim, backend="aot_eager")
    for count in (4, 3, 2):
        torch.manual_seed(count)
        expected = flow.bits_per_dim(images[:count])
        torch.manual_seed(count)
        assert torch.allclose(compiled(images[:count]), expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["circular", "pair"])
def test_all_layers_of_a_flow_are_one_graph(kind):
    flow, images = _flow(kind)
    found = torch._dynamo.explain(lambda: flow.bits_per_dim(images))()
    assert all("_log_abs_det" in reason.reason for reason in found.break_reasons)
    convolutions = [sum(node.target is torch.conv2d for node in graph.graph.nodes) for graph in found.graphs]
    total = sum(isinstance(module, nn.Conv2d) for module in flow.modules())
    assert sorted(convolutions) == [0] * (len(convolutions) - 1) + [total]


@pytest.mark.parametrize("padding_mode", MODES)
def test_forward_and_a_frozen_inverse_are_exported(padding_mode):
    conv = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode, bias=False)
    x = torch.randn(2, 3, 8, 8)
    forward = torch.export.export(conv, (x,)).module()
    y = conv(x).detach()
    assert torch.allclose(forward(x), y)

    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.operator = conv.operator((8, 8))
            self.operator.prepare()

        def forward(self, y):
            return self.operator.pseudo_inverse(y)

    inverse = torch.export.export(Inverse(), (y,), strict=False).module()
    assert torch.allclose(inverse(y), x, atol=1e-5)
    # No stand-in of the traced program is left in a table that other layers of this shape use.
    other = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode, bias=False)
    assert torch.allclose(other.inverse(other(x)), x, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("padding_mode", MODES)
def test_autocast_reconstructs_to_the_accuracy_of_its_dtype(padding_mode, dtype):
    conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode=padding_mode)
    x = torch.randn(2, 4, 8, 8)
    log_det = conv.log_abs_det((8, 8))
    with torch.autocast("cpu", dtype):
        y = conv(x)
        assert y.dtype == dtype
        found = conv.inverse(y)
        assert torch.equal(conv.log_abs_det((8, 8)), log_det)
    assert (found.float() - x).norm() < 10 * torch.finfo(dtype).eps * x.norm()


FRESH = """
import sys, torch, invconv
heavy = {"torch._dynamo", "sympy", "lightning", "matplotlib", "torchvision", "PIL", "skimage", "rich"}
assert not heavy & (set(sys.modules) - before), heavy & set(sys.modules)
conv, x = invconv.InvertibleConv2d(2, 2, 3, padding=1), torch.rand(1, 2, 8, 8)
expected = conv.inverse(2 * conv(x))
assert "torch._dynamo" not in sys.modules
def both(x):
    return conv.inverse(2 * conv(x))
found = torch.compile(both, backend="aot_eager")(x)
assert torch.allclose(found, expected, atol=1e-5)
explained = torch._dynamo.explain(both)(x)
assert explained.graph_break_count <= 1, explained
"""


def test_the_compiler_is_not_imported_before_somebody_compiles():
    """It takes a second; and a verb that was called before is afterwards as it is to who compiled from the start."""
    code = "import sys, torch\nbefore = set(sys.modules)\n" + FRESH
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
