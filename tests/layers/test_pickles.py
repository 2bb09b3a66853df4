"""Whole modules in pickles, copies and other processes, their weights parametrized or not."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from invconv import InvertibleConv, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.flows import Chain, ConvFlow, MultiScaleFlow, PairFlow, Squeeze
from invconv.parametrizations import bounded, causal


class Doubled(nn.Module):
    """The function of a user."""

    def forward(self, weight):
        return 2 * weight


def doubled(conv, name="weight"):
    parametrize.register_parametrization(conv, name, Doubled())
    return conv


def conv(**options):
    return InvertibleConv2d(4, 4, 3, padding=1, **options)


MODULES = {
    "plain": conv,
    "bounded": lambda: bounded(conv(damping=0.1), 0.4),
    "bounded, 1-D": lambda: bounded(InvertibleConv1d(3, 3, 3, padding=1)),
    "bounded, 3-D": lambda: bounded(InvertibleConv3d(2, 2, 3, padding=1)),
    "causal": lambda: causal(conv(), "left-up", 0.4, "half"),
    "causal, no mixing": lambda: causal(conv(), mixing=False),
    "two functions": lambda: doubled(bounded(conv())),
    "two tensors": lambda: doubled(bounded(conv()), "bias"),
    "orthogonal": lambda: parametrizations.orthogonal(InvertibleConv2d(4, 4, 1)),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()).eval(),
    "user's": lambda: doubled(conv()),
    "in a network": lambda: nn.Sequential(bounded(conv()), nn.ReLU(), conv()),
    "conv flow": lambda: ConvFlow(4),
    "pair": lambda: PairFlow(4),
    "chain": lambda: Chain(Squeeze(), ConvFlow(4)),
    "flow": lambda: MultiScaleFlow(1, 8, 2, 1, 4),
    "autoencoder": lambda: PseudoInverseAutoencoder((3, 8, 8), (1, 4)),
}
each_module = pytest.mark.parametrize("make", MODULES.values(), ids=MODULES)


def saved_whole(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "pickle 2": lambda module: pickle.loads(pickle.dumps(module, protocol=2)),
    "torch.save": saved_whole,
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "twice": lambda module: pickle.loads(pickle.dumps(saved_whole(module))),
}


@each_module
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_whole_module_comes_back(make, way):
    module = make()
    again = way(module)
    assert type(again).__name__ == type(module).__name__ and again.training == module.training
    assert list(again.state_dict()) == list(module.state_dict())
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in module.state_dict().items())
    assert [name for name, _ in again.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert repr(again) == repr(module)
    for layer, other in zip(module.modules(), again.modules(), strict=True):
        if isinstance(layer, InvertibleConv):
            assert isinstance(other, InvertibleConv) and torch.equal(layer.weight, other.weight)
            assert layer.options == other.options
    again.load_state_dict(module.state_dict())  # its hooks are there, too


@pytest.mark.parametrize("way", [WAYS["pickle"], WAYS["deepcopy"]])
def test_what_came_back_stands_alone(way):
    layer = bounded(conv())
    again = way(layer)
    before = again.weight.detach().clone()
    with torch.no_grad():
        original: Any = layer.parametrizations.weight.original0
        original.mul_(2)
    assert torch.equal(again.weight, before) and not torch.equal(layer.weight, before)
    again.weight = 0.5 * before
    assert torch.allclose(again.weight, 0.5 * before, atol=1e-6)
    assert torch.allclose(again.inverse(again(torch.ones(1, 4, 6, 6))), torch.ones(1, 4, 6, 6), atol=1e-5)
    parametrize.remove_parametrizations(again, "weight")
    assert type(again) is InvertibleConv2d and isinstance(again.weight, nn.Parameter)


def test_a_parameter_that_two_layers_share_is_shared_afterwards():
    first, second = bounded(conv()), bounded(conv())
    second.parametrizations.weight.original0 = first.parametrizations.weight.original0
    a, b = pickle.loads(pickle.dumps((first, second)))
    assert a.parametrizations.weight.original0 is b.parametrizations.weight.original0


def test_a_default_flow_reaches_another_process(tmp_path):
    flow = MultiScaleFlow(1, 8, 2, 1, 4)
    z = [torch.randn(2, *shape) for shape in flow.latent_shapes]
    path = tmp_path / "flow.pickle"
    path.write_bytes(pickle.dumps((flow, z, flow.decode(z)[0].detach())))
    script = f"import pickle, torch; flow, z, x = pickle.load(open({str(path)!r}, 'rb')); "
    script += "assert torch.allclose(flow.decode(z)[0], x, atol=1e-6); print('alike')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "alike\n", done.stderr
