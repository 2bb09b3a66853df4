"""Layers taken together give what each gives alone, and leave nothing stale."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from invconv import InvertibleConv2d, SingularMapError, keep_fresh
from invconv.engine.volumes.cylinder import Cylinder
from invconv.flows import ActNorm, Chain, ConvFlow
from invconv.layers.cache import MOST
from invconv.layers.kernel import SharedKernel
from invconv.layers.together import LogDets, TakesTogether, kernels
from invconv.parametrizations import bounded

SIZE = (6, 5)


def layer(seed: int, channels: int = 4, kernel: int = 3, mode: str = "circular", rho: float | None = 0.5):
    torch.manual_seed(seed)
    conv = InvertibleConv2d(channels, channels, kernel, padding="same", padding_mode=mode, dtype=torch.float64)
    conv.weight.data += 0.1 * torch.randn_like(conv.weight)
    return conv if rho is None else bounded(conv, rho)


def mixture() -> list[InvertibleConv2d]:
    pruned = prune.l1_unstructured(layer(8, rho=None), "weight", amount=0.2)
    twice = layer(0)
    return [
        twice,
        layer(1),
        layer(2, kernel=5),
        layer(3, rho=0.8),
        layer(4, rho=None),
        layer(5, rho=None),
        twice,
        layer(6, mode="zeros"),
        layer(7, mode="zeros"),
        pruned,
        layer(9, channels=2),
        layer(10, kernel=1, rho=None),
    ]


def test_kernels_are_those_of_each_layer():
    layers = mixture()
    for found, conv in zip(kernels(layers), layers, strict=True):
        assert torch.allclose(found, conv.effective_weight(), rtol=1e-14, atol=1e-14)


def test_the_sum_and_its_gradient_are_those_of_each_layer():
    layers: Any = nn.ModuleList(mixture())
    sizes = [SIZE] * len(layers)
    sizes[1] = (3, 8)
    separate: Any = sum(conv.log_abs_det(size) for conv, size in zip(layers, sizes, strict=True))
    separate.backward()
    expected = {name: p.grad.clone() for name, p in layers.named_parameters() if p.grad is not None}
    total: Any = sum(conv.log_abs_det(size) for conv, size in zip(layers, sizes, strict=True))
    layers.zero_grad()
    found = LogDets().log_abs_det(list(layers), kernels(list(layers)), sizes)
    found.backward()
    assert torch.allclose(found, total, rtol=1e-13)
    assert expected
    for name, p in layers.named_parameters():
        assert (name in expected) == (p.grad is not None)
        if p.grad is not None:
            assert torch.allclose(p.grad, expected[name], rtol=1e-12, atol=1e-12)


def test_the_layers_keep_their_parts_of_the_factors(factored):
    layers = [layer(seed, rho=None) for seed in range(3)]
    weights = kernels(layers)
    LogDets().log_abs_det(layers, weights, [SIZE] * 3)
    assert len(factored) == 1
    x = torch.randn(2, 4, *SIZE).double()
    for conv, weight in zip(layers, weights, strict=True):
        assert torch.allclose(conv.inverse(conv(x), weight=weight), x)
        assert torch.isclose(conv.log_abs_det(SIZE), torch.linalg.slogdet(conv.operator(SIZE).to_dense())[1])
        assert conv.operator(SIZE).report().shape == (120, 120)
    assert len(factored) == 1
    layers[1].weight.data += 0.01
    assert torch.allclose(layers[1].inverse(layers[1](x)), x)
    assert len(factored) == 2


def chain(rho: float | None = 0.5) -> Chain:
    torch.manual_seed(0)
    return Chain(*(part for _ in range(3) for part in (ActNorm(4), ConvFlow(4, rho=rho)))).double()


def test_a_chain_is_its_layers_one_after_the_other(factored):
    flow, x = chain(), torch.randn(2, 4, *SIZE).double()
    flow(x)
    z, log_det = flow(x)
    h, total = x, torch.zeros(())
    for part in flow.layers:
        h, more = part(h)
        total = total + more
    assert torch.allclose(z, h) and torch.allclose(log_det, total)
    back, negative = flow.inverse(z)
    assert torch.allclose(back, x) and torch.allclose(negative, -log_det)


def test_a_chain_is_kept_fresh_in_one_call(factored):
    flow, x = chain(), torch.randn(2, 4, *SIZE).double()
    flow.inverse(flow(x)[0])
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    with keep_fresh(optimizer, flow):
        factored.clear()
        optimizer.zero_grad()
        (-flow(x)[1].sum()).backward()
        assert len(factored) == 0
        optimizer.step()
        assert len(factored) == 1
        z, _ = flow(x)
        assert torch.allclose(flow.inverse(z)[0], x)
        assert len(factored) == 1


def test_copies_share_nothing(factored):
    flow, x = chain(rho=None), torch.randn(2, 4, *SIZE).double()  # a parametrized module cannot be pickled
    flow(x)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        for p in other.parameters():
            p.data.mul_(1.1)
        assert not torch.allclose(other(x)[1], flow(x)[1])
        assert torch.allclose(other.inverse(other(x)[0])[0], x)
    assert not any("log_dets" in name for name in flow.state_dict())


def test_as_many_operators_are_kept_as_there_are_kinds(factored):
    kinds = MOST + 2
    layers = [layer(seed, channels=1 + seed // 2, rho=None) for seed in range(2 * kinds)]
    log_dets = LogDets()
    for _ in range(2):
        log_dets.log_abs_det(layers, kernels(layers), [SIZE] * len(layers))
        assert len(factored) == kinds


class Halves(nn.Module, TakesTogether):
    """A module that takes its layers together in a way of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([layer(0), layer(1)])
        self.refreshed = 0

    def refresh(self):
        self.refreshed += 1
        return [self.layers[0]]


def test_keep_fresh_finds_what_takes_its_layers_together(factored):
    model = nn.Sequential(Halves())
    for conv in model[0].layers:
        conv.log_abs_det(SIZE)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with keep_fresh(optimizer, model):
        total: Any = sum(conv.log_abs_det(SIZE) for conv in model[0].layers)
        total.backward()
        factored.clear()
        optimizer.step()
    assert model[0].refreshed == 1 and len(factored) == 1  # only the layer that was not said to be done


def test_kernels_are_shared_by_what_says_so():
    class Scaled(SharedKernel):
        def __init__(self, factor):
            super().__init__()
            self.factor, self.calls = factor, []

        @property
        def kind(self):
            return self.factor

        def forward(self, weight):
            self.calls.append(len(weight))
            return self.factor * weight

    layers = [layer(seed, rho=None) for seed in range(3)]
    functions = [Scaled(factor) for factor in (2.0, 2.0, 3.0)]
    for conv, function in zip(layers, functions, strict=True):
        nn.utils.parametrize.register_parametrization(conv, "weight", function)
        function.calls.clear()
    weights = kernels(layers)
    assert [function.calls for function in functions] == [[8], [], [4]]
    assert all(torch.equal(weight, conv.weight) for weight, conv in zip(weights, layers, strict=True))


def test_a_layer_reports_the_bytes_of_its_own_part():
    layers = [layer(seed, rho=None) for seed in range(3)]
    alone = layers[0].operator(SIZE)
    alone.log_abs_det()
    expected = alone.solver.bytes
    LogDets().log_abs_det(layers, kernels(layers), [SIZE] * 3)
    assert layers[1].operator(SIZE).solver.bytes <= expected


def test_rings_are_taken_together_and_a_lost_one_alone(monkeypatch):
    layers = [layer(seed, mode="zeros") for seed in range(3)]
    made = []
    init = Cylinder.__init__
    monkeypatch.setattr(Cylinder, "__init__", lambda self, conv: made.append(self) or init(self, conv))
    LogDets().log_abs_det(layers, kernels(layers), [SIZE] * 3)
    assert [cut.conv.geometry.groups for cut in made if "growth" in vars(cut)] == [3]
    # A shift has a determinant of zero; the others keep their rings.
    lost = layer(3, mode="zeros", rho=None)
    rest = [layer(seed, mode="zeros", rho=None) for seed in range(2)]
    with torch.no_grad():
        lost.weight.zero_()[:, :, 0, 1] = torch.eye(4)
    with pytest.raises(SingularMapError):
        LogDets().log_abs_det([*rest, lost], kernels([*rest, lost]), [SIZE] * 3)
    found = LogDets().log_abs_det(rest, kernels(rest), [SIZE] * 2)
    assert torch.allclose(found, sum(conv.log_abs_det(SIZE) for conv in rest))
