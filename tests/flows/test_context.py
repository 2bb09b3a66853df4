"""What a flow hands to its layers: labels, noise, kernels in one call, and log-determinants that are added up once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from invconv import functional, keep_fresh
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Chain,
    Context,
    ConvFlow,
    Dequantize,
    GaussianPrior,
    MultiScaleFlow,
    PairFlow,
    Reversed,
    Split,
    Squeeze,
)
from invconv.layers.together import LogDets, TakesTogether
from invconv.parametrizations import Bounded, Causal

LAYERS: dict[str, Any] = {
    "squeeze": Squeeze,
    "actnorm": lambda: ActNorm(4),
    "conv": lambda: ConvFlow(4),
    "pair": lambda: PairFlow(4),
    "reversed": lambda: Reversed(PairFlow(4)),
    "coupling": lambda: AffineCoupling(4, 8),
    "split": lambda: Split(4),
    "prior": lambda: GaussianPrior(4),
    "chain": lambda: Chain(ActNorm(4), ConvFlow(4)),
}


@pytest.fixture
def asked(monkeypatch):
    """Grows with each sum of log-determinants by the number of layers in it."""
    counts = []
    whole = LogDets.log_abs_det
    monkeypatch.setattr(
        LogDets, "log_abs_det", lambda self, layers, *rest: counts.append(len(layers)) or whole(self, layers, *rest)
    )
    return counts


def images(channels=4, dtype=torch.float64):
    return torch.randn(2, channels, 6, 8, dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_takes_a_context_in_both_directions(name):
    layer = LAYERS[name]().double().eval()
    x = images()
    z, log_det = layer(x)
    for context in (None, Context()):
        again, total = layer(x, context)
        parts = zip(z, again, strict=True) if isinstance(z, tuple) else [(z, again)]
        assert all(torch.equal(a, b) for a, b in parts) and torch.equal(total, log_det)
        x_hat, back = layer.inverse(z, context)
        assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_labels_and_generator_are_taken_in_the_place_of_a_context():
    prior, x, y = GaussianPrior(4, num_classes=3).double(), images(), torch.tensor([2, 0])
    nn.init.normal_(prior.moments.weight)
    for direction in (prior, prior.inverse):
        expected, log_det = direction(x, Context(y=y))
        for z, total in (direction(x, y), direction(x, y=y)):
            assert torch.equal(z, expected) and torch.equal(total, log_det)
    levels = torch.randint(256, (2, 3, 4, 4))
    noise = [torch.Generator().manual_seed(1) for _ in range(3)]
    z = [Dequantize()(levels, Context(generator=noise[0])), Dequantize()(levels, noise[1])]
    z.append(Dequantize()(levels, generator=noise[2]))
    assert torch.equal(z[0][0], z[1][0]) and torch.equal(z[0][0], z[2][0])


def test_labels_reach_the_layers_of_a_chain():
    chain = Chain(Chain(ConvFlow(4)), GaussianPrior(4, num_classes=3)).double()
    nn.init.normal_(chain.layers[1].moments.weight)
    x, y = images(), torch.tensor([2, 0])
    z, log_det = chain(x, Context(y=y))
    h, first = chain.layers[0](x)
    expected, second = chain.layers[1](h, y)
    assert torch.allclose(z, expected) and torch.allclose(log_det, first + second)
    x_hat, back = chain.inverse(z, Context(y=y))
    assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_the_maker_of_a_context_adds_what_it_has_noted():
    layer, x = ConvFlow(4).double(), images()
    context = Context(convolutions=layer.convolutions)
    z, log_det = layer(x, context)
    expected_z, expected = layer(x)
    assert torch.equal(z, expected_z) and not log_det.any() and context.noted(-1) == []
    ((conv, kernel, size),) = context.noted(1)
    assert conv is layer.conv and size == (6, 8)
    assert torch.allclose(functional.conv_log_abs_det(kernel, size, padding=1, padding_mode="circular"), expected[0])
    layer.inverse(z, context)
    assert len(context.noted(-1)) == 1


def test_a_convolution_that_no_context_knows_adds_its_log_determinant_itself():
    layer, x = ConvFlow(4).double(), images()
    other = Context(convolutions=ConvFlow(4).double().convolutions)
    assert torch.equal(layer(x, other)[1], layer(x)[1]) and other.noted(1) == []


def test_all_scales_are_one_call(asked):
    flow = MultiScaleFlow(1, 8, scales=2, steps=2, hidden=8)
    z, log_det = flow.encode(torch.rand(2, 1, 8, 8))
    assert asked == [4]
    _, back = flow.decode(z)
    assert asked == [4, 4]
    torch.testing.assert_close(back, -log_det, rtol=1e-5, atol=1e-4)


def test_a_level_that_is_called_by_itself_adds_up_its_part(asked):
    flow = MultiScaleFlow(1, 8, scales=2, steps=2, hidden=8).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    z, log_det = flow.levels[0](x)
    assert asked == [2]
    h, total = x, torch.zeros(())
    for layer in flow.levels[0].layers:
        h, more = layer(h)
        total = total + more
    assert torch.allclose(z, h) and torch.allclose(log_det, total)
    x_hat, back = flow.levels[0].inverse(z)
    assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_nested_chains_are_one_call(asked):
    chain = Chain(Chain(ConvFlow(4)), ActNorm(4), Chain(Chain(ConvFlow(4)), ConvFlow(4, 1))).double()
    x = images()
    z, log_det = chain(x)
    assert asked == [3]
    h, total = x, torch.zeros(())
    for layer in chain.layers:
        h, more = layer(h)
        total = total + more
    assert torch.allclose(z, h) and torch.allclose(log_det, total)


def test_a_layer_run_backwards_counts_with_the_other_sign():
    chain, x = Chain(ConvFlow(4), Reversed(ConvFlow(4))).double(), images()
    z, log_det = chain(x)
    first, second = (layer.convolutions[0].log_abs_det((6, 8)) for layer in chain.layers)
    assert torch.allclose(log_det, (first - second).expand(2))
    x_hat, back = chain.inverse(z)
    assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_kernels_of_one_kind_are_computed_in_one_call(monkeypatch):
    chain = Chain(*[ConvFlow(4) for _ in range(3)])
    calls = []
    forward = Bounded.forward
    monkeypatch.setattr(Bounded, "forward", lambda self, *p: calls.append(len(p[0])) or forward(self, *p))
    chain(images(dtype=torch.float32))
    assert calls == [3]


def test_kernels_of_pairs_are_computed_in_one_call_for_each_order(monkeypatch):
    chain = Chain(*[PairFlow(4) for _ in range(3)])
    calls = []
    forward = Causal.forward
    monkeypatch.setattr(Causal, "forward", lambda self, *p: calls.append(len(p[0])) or forward(self, *p))
    chain(images(dtype=torch.float32))
    assert calls == [3, 3]


def test_log_determinants_of_pairs_are_one_call_and_factor_nothing(factored, monkeypatch):
    chain = Chain(*[PairFlow(4) for _ in range(3)], Reversed(PairFlow(4)), ConvFlow(4)).double()
    calls = []
    slogdet = torch.linalg.slogdet
    monkeypatch.setattr(torch.linalg, "slogdet", lambda a: calls.append(a.shape) or slogdet(a))
    x = images()
    z, log_det = chain(x)
    # The chain adds up those that go forwards, then those that go backwards.
    assert calls == [(3, 4, 4), (1, 4, 4)] and len(factored) == 1  # of the dense one
    expected = torch.zeros(())
    for layer, sign in zip(chain.layers, (1, 1, 1, -1, 1), strict=True):
        expected = expected + sign * sum(conv.log_abs_det((6, 8)) for conv in layer.convolutions)
    assert torch.allclose(log_det, expected.expand(2))
    x_hat, back = chain.inverse(z)
    assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_a_convolution_that_comes_twice_counts_twice():
    layer = ConvFlow(4).double()
    chain = Chain(layer, ActNorm(4), layer).double().eval()
    x = images()
    z, log_det = chain(x)
    assert torch.allclose(log_det, 2 * layer(x)[1])
    x_hat, back = chain.inverse(z)
    assert torch.allclose(x_hat, x) and torch.allclose(back, -log_det)


def test_both_directions_and_all_scales_share_their_factors(factored):
    flow = MultiScaleFlow(1, 16, scales=3, steps=2, hidden=8).eval()
    x = torch.rand(2, 1, 16, 16)
    z, _ = flow.encode(x)
    assert len(factored) == 3  # one for each scale
    flow.decode(z)
    flow.encode(x)
    assert len(factored) == 3


def test_a_flow_of_pairs_is_kept_fresh():
    flow = MultiScaleFlow(1, 8, scales=2, steps=1, hidden=8, mixing="pair").double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    flow.decode(flow.encode(x)[0])
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-2)
    with keep_fresh(optimizer, flow):
        z, log_det = flow.encode(x)
        (sum(part.square().sum() for part in z) / 2 - log_det.sum()).backward()
        before = [conv.weight.detach().clone() for conv in flow.convolutions]
        optimizer.step()
        for conv, old in zip(flow.convolutions, before, strict=True):
            (size,) = conv.prepared_sizes()
            assert not torch.equal(conv.weight, old)
            assert conv.operator(size).ready and torch.equal(conv.operator(size).weight, conv.weight)
        assert torch.allclose(flow.decode(flow.encode(x)[0])[0], x, atol=1e-9)


def test_a_flow_is_kept_fresh_in_one_call(factored, asked):
    flow = MultiScaleFlow(1, 8, scales=2, steps=2, hidden=8)
    assert isinstance(flow, TakesTogether) and all(isinstance(level, TakesTogether) for level in flow.levels)
    x = torch.rand(2, 1, 8, 8)
    flow.encode(x)
    optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
    with keep_fresh(optimizer, flow):
        (-flow.encode(x)[1].sum()).backward()
        factored.clear(), asked.clear()
        optimizer.step()
        assert len(factored) == 2 and asked == [4]
        flow.decode(flow.encode(x)[0])
        assert len(factored) == 2
