"""Checkpoints: those of plain layers, and those that earlier versions wrote."""

from __future__ import annotations

import io

import pytest
import torch
from make_checkpoint import DATA, build_layer, flow_outcome, layer_outcome
from tables import LAYERS, PLAIN
from torch import nn

from invconv import InvertibleConv2d, Options
from invconv.flows import MultiScaleFlow

KEPT = sorted(DATA.glob("*.pt"))


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# -- plain layers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("assign", [True, False])
@pytest.mark.parametrize("padding_mode", ["zeros", "circular"])
def test_a_plain_checkpoint_loads_and_the_reverse(dims, bias, assign, padding_mode):
    arguments = dict(padding=1, bias=bias, padding_mode=padding_mode)
    plain, ours = PLAIN[dims](3, 3, 3, **arguments), LAYERS[dims](3, 3, 3, **arguments)
    with torch.no_grad():
        plain.weight.copy_(1.5 * ours.weight)
    size = (6, 5, 4)[:dims]
    x = torch.randn(2, 3, *size)
    ours.inverse(x), ours.log_abs_det(size)  # so that there is something to be stale
    assert ours.load_state_dict(through_a_file(plain.state_dict()), assign=assign).missing_keys == []
    assert torch.equal(ours(x), plain(x))
    assert torch.allclose(ours.inverse(plain(x)), x, atol=1e-4)
    with torch.no_grad():
        ours.weight.mul_(1.1)
    assert plain.load_state_dict(through_a_file(ours.state_dict()), assign=assign).unexpected_keys == []
    assert torch.equal(ours(x), plain(x))


def test_a_checkpoint_of_a_network_of_plain_layers_loads():
    def network(conv):
        return nn.Sequential(conv(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 12, 2, stride=2))

    plain, ours = network(nn.Conv2d).eval(), network(InvertibleConv2d).eval()
    ours.load_state_dict(through_a_file(plain.state_dict()))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(ours(x), plain(x))
    fresh = InvertibleConv2d.from_conv(plain[0])
    assert torch.equal(ours[0].log_volume((8, 8)), fresh.log_volume((8, 8)))


def test_a_whole_module_of_before_the_cache_was_filled_is_as_large_as_after():
    conv = InvertibleConv2d(3, 3, 3, padding=1)
    sizes = []
    for _ in range(2):
        file = io.BytesIO()
        torch.save(conv, file)
        sizes.append(file.tell())
        conv.inverse(torch.randn(1, 3, 16, 16))
    assert sizes[0] == sizes[1]


# -- earlier versions ----------------------------------------------------------------------------------------------


@pytest.fixture(params=KEPT, ids=lambda path: path.stem)
def kept(request):
    assert request.param.stat().st_size < 50_000
    return torch.load(request.param, weights_only=True)


def same(found, expected):
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def test_there_is_one():
    assert KEPT


def test_a_flow_of_an_earlier_version_gives_the_latents_it_gave(kept):
    saved = kept["flow"]
    flow = MultiScaleFlow(**saved["arguments"]).double()  # parameters that are converted are not rounded again
    flow.load_state_dict(saved["state"])
    same(flow_outcome(flow, saved["x"], saved["y"]), saved)
    again, _ = flow.decode(saved["z"], saved["y"])
    torch.testing.assert_close(again, saved["x"], rtol=1e-9, atol=1e-9)


def test_layers_of_an_earlier_version_give_the_answers_they_gave(kept):
    for saved in kept["layers"].values():
        conv = build_layer(**saved["arguments"]).double()
        conv.inverse(torch.randn(1, conv.out_channels, 3, 2).double())
        conv.load_state_dict(saved["state"])
        same(layer_outcome(conv, saved["input"]), saved)


def test_what_is_saved_now_is_not_converted():
    conv, twin = (build_layer(padding=1, rho=0.4) for _ in range(2))
    state = {name: value.clone() for name, value in conv.state_dict().items()}  # with no metadata, as others save it
    twin.load_state_dict(through_a_file(state))
    assert torch.equal(twin.weight, conv.weight)


def test_a_layer_that_0_1_0_pickled_whole():
    saved = torch.load(DATA / "pickles" / "layer-0.1.0.pt", weights_only=False)
    layer = saved["layer"]
    assert isinstance(layer, InvertibleConv2d)
    assert layer.options == Options(damping=0.1, tol=1e-4)
    assert torch.allclose(layer.inverse(saved["x"]), saved["inverse"], rtol=1e-5, atol=1e-6)
