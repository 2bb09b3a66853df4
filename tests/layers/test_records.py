"""Round trips of checkpoints between all options: the same map, or an error and nothing changed."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
from torch import nn

from invconv import CheckpointError, InvertibleConv1d, InvertibleConv2d
from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.flows import (
    ActNorm,
    AffineCoupling,
    Chain,
    ConvFlow,
    Dequantize,
    FlowLayer,
    GaussianPrior,
    MultiScaleFlow,
    PairFlow,
    Reversed,
    Split,
    Squeeze,
)
from invconv.layers.record import KEY, Recorded
from invconv.parametrizations import bounded


def bounded_layer(rho=0.5, kernel=3, **arguments):
    geometry: dict[str, Any] = {"padding": 1, "dtype": torch.float64} | arguments
    return bounded(InvertibleConv2d(2, 2 * geometry.get("stride", 1) ** 2, kernel, **geometry), rho)


def flow(**options):
    return MultiScaleFlow(**{"in_channels": 1, "image_size": 8, "scales": 2, "steps": 1, "hidden": 4} | options)


def autoencoder(**options):
    return PseudoInverseAutoencoder(**{"image_shape": (2, 8, 8), "compression": (1, 4)} | options)


class Turned(FlowLayer):
    """A layer of a user, with no tensors."""

    def forward(self, x, context=None):
        return x.flip(3), x.new_zeros(len(x))

    def inverse(self, z, context=None):
        return z.flip(3), z.new_zeros(len(z))


class Swapped(Turned):
    def forward(self, x, context=None):
        return x.flip(2), x.new_zeros(len(x))


# For each kind of module: those that are to be told apart.
FAMILIES: dict[str, dict[str, Any]] = {
    "bounded": {
        "as it is": bounded_layer,
        "rho 0.9": lambda: bounded_layer(0.9),
        "rho a little larger": lambda: bounded_layer(0.5000001),
        "no bound": lambda: InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float64),
        "circular": lambda: bounded_layer(padding_mode="circular"),
        "reflect": lambda: bounded_layer(padding_mode="reflect"),
        "dilation": lambda: bounded_layer(padding=2, dilation=2),
        "kernel 4": lambda: bounded_layer(kernel=4, padding="same", padding_mode="circular"),
        "kernel 4, centre elsewhere": lambda: bounded_layer(kernel=4, padding=1, padding_mode="circular"),
        "stride": lambda: bounded_layer(stride=2),
        "groups": lambda: bounded_layer(groups=2),
    },
    "coupling": {f"{bound}": lambda b=bound: AffineCoupling(4, 8, max_log_scale=b) for bound in (2.0, 1.0)},
    "split": {f"{bound}": lambda b=bound: Split(4, max_log_scale=b) for bound in (4.0, 1.0)},
    "prior": {f"{bound}": lambda b=bound: GaussianPrior(4, 0, b) for bound in (4.0, 1.0)},
    "squeeze": {f"{factor}": lambda f=factor: Squeeze(f) for factor in (2, 4)},
    "dequantize": {f"{bins}": lambda b=bins: Dequantize(b) for bins in (256, 32)},
    "conv flow": {
        f"{rho}, {mode}, {kernel}": lambda r=rho, m=mode, k=kernel: ConvFlow(4, k, m, r)
        for rho, mode, kernel in itertools.product((0.5, 0.9, None), ("zeros", "circular"), (3, 5))
    },
    "pair": {
        f"{rho}, {kernel}, {support}": lambda r=rho, k=kernel, s=support: PairFlow(4, k, r, s)
        for rho, kernel, support in itertools.product((0.5, 0.9, None), (3, 5), ("quarter", "half"))
    },
    "chain": {
        "actnorm, coupling": lambda: Chain(ActNorm(4), AffineCoupling(4, 8)),
        "coupling, actnorm": lambda: Chain(AffineCoupling(4, 8), ActNorm(4)),
        "turned": lambda: Chain(Turned(), ActNorm(4)),
        "swapped": lambda: Chain(Swapped(), ActNorm(4)),
        "reversed": lambda: Chain(ActNorm(4), Reversed(Turned())),
        "reversed, swapped": lambda: Chain(ActNorm(4), Reversed(Swapped())),
        "turned last": lambda: Chain(ActNorm(4), Turned()),
        "one more": lambda: Chain(Turned(), ActNorm(4), Turned()),
    },
    "flow": {
        "as it is": flow,
        "rho": lambda: flow(rho=0.9),
        "free": lambda: flow(rho=None),
        "zeros": lambda: flow(padding_mode="zeros"),
        "reflect": lambda: flow(padding_mode="reflect"),
        "free, zeros": lambda: flow(rho=None, padding_mode="zeros"),
        "1 x 1": lambda: flow(kernel_size=1),
        "pair": lambda: flow(mixing="pair"),
        "pair, reversed": lambda: flow(mixing="pair", reversed_mixing=True),
        "pair, rho": lambda: flow(mixing="pair", rho=0.9),
        "bins": lambda: flow(bins=32),
        "scales": lambda: flow(scales=1),
        "steps": lambda: flow(steps=2),
        "hidden": lambda: flow(hidden=8),
        "classes": lambda: flow(num_classes=3),
    },
    "autoencoder": {
        "as it is": autoencoder,
        "zeros": lambda: autoencoder(padding_mode="zeros"),
        "reflect": lambda: autoencoder(padding_mode="reflect"),
        "kernel": lambda: autoencoder(kernel_size=2),
        "mixing": lambda: autoencoder(mixing=2),
        "linear": lambda: autoencoder(activation=None),
        "leaky": lambda: autoencoder(activation="leaky_relu"),
        "compression": lambda: autoencoder(compression=(1, 2)),
    },
}
PAIRS = [
    pytest.param(FAMILIES[family][a], FAMILIES[family][b], id=f"{family}: {a} into {b}")
    for family in FAMILIES
    for a, b in itertools.permutations(FAMILIES[family], 2)
]
SAME = [pytest.param(make, id=f"{family}: {name}") for family in FAMILIES for name, make in FAMILIES[family].items()]


def stirred(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def values(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize(("saved", "into"), PAIRS)
def test_other_options_are_refused(saved, into):
    state, module = through_a_file(stirred(saved()).state_dict()), into()
    before = values(module)
    with pytest.raises(RuntimeError) as error:
        module.load_state_dict(state)
    if isinstance(error.value, CheckpointError):
        assert "the checkpoint was saved with" in str(error.value)
        after = values(module)
        assert all(torch.equal(before[name], after[name]) for name in before)
    else:
        assert "in loading state_dict" in str(error.value)  # PyTorch's own, for names and shapes


@pytest.mark.parametrize("make", SAME)
@pytest.mark.parametrize("assign", [True, False])
def test_the_same_options_are_taken(make, assign, recwarn):
    module, again = stirred(make()), make()
    again.load_state_dict(through_a_file(module.state_dict()), assign=assign)
    assert len(recwarn) == 0
    state = values(again)
    assert all(torch.equal(value, state[name]) for name, value in values(module).items())
    for layer, other in zip(module.modules(), again.modules(), strict=True):
        if isinstance(layer, InvertibleConv2d):
            assert torch.equal(layer.weight, other.weight)


@pytest.mark.parametrize("family", ["conv flow", "pair", "flow", "coupling"])
def test_a_refusal_is_one_where_strict_is_off_as_well(family):
    a, b = list(FAMILIES[family].values())[:2]
    with pytest.raises(CheckpointError):
        nn.Sequential(b()).load_state_dict(nn.Sequential(a()).state_dict(), strict=False)


def test_the_error_says_what_differs_and_how_to_go_on():
    layer, other = bounded_layer(0.9), bounded_layer(0.5)
    state = layer.state_dict()
    with pytest.raises(CheckpointError, match=r"saved with rho = 0\.9, and is loaded .* with rho = 0\.5") as error:
        other.load_state_dict(state)
    (key,) = (name for name in state if name.endswith(KEY))
    assert repr(key) in str(error.value) and "Make the module with rho = 0.9" in str(error.value)
    del state[key]
    with pytest.warns(
        UserWarning, match=r"does not say with which options .* Bounded\(rho=0\.5, .*padding_mode='zeros'"
    ):
        other.load_state_dict(state)
    assert torch.equal(other.parametrizations.weight.original1, layer.parametrizations.weight.original1)


def test_a_record_that_is_none_is_an_error():
    for record in (
        torch.zeros(3),
        torch.tensor([91, 93], dtype=torch.uint8),
        torch.tensor([7], dtype=torch.uint8),
        "x",
    ):
        layer = Squeeze()
        with pytest.raises(CheckpointError, match="is no record of options"):
            layer.load_state_dict({KEY: record})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_change_of_dtype_changes_no_record(dtype):
    module = flow(rho=0.9)
    flow(rho=0.9).load_state_dict(module.to(dtype).state_dict())
    again = flow(rho=0.9).to(dtype)
    again.load_state_dict(module.state_dict())
    assert all(
        torch.equal(v, w) for v, w in zip(module.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_a_state_of_no_values_is_taken_as_pytorch_takes_it():
    module = bounded_layer(padding_mode="reflect").to("meta")
    state = {name: value.to("meta") for name, value in bounded_layer(padding_mode="reflect").state_dict().items()}
    module.load_state_dict(state, assign=True)


def test_plain_layers_have_no_record():
    conv = InvertibleConv2d(2, 2, 3, padding=1)
    assert list(conv.state_dict()) == list(nn.Conv2d(2, 2, 3).state_dict())
    names = set(autoencoder().state_dict())
    assert {name for name in names if name.endswith(KEY)} == {KEY}


def test_every_value_of_a_state_dict_is_a_tensor():
    """What others average, clone, move or save by their own means must take it."""
    state = flow().state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    # Lightning takes the device of the first one for that of the module.
    assert next(iter(flow().to("meta").state_dict().values())).numel() > 0
    assert isinstance(next(m for m in flow().modules() if isinstance(m, Recorded)), Chain)


# -- earlier versions ----------------------------------------------------------------------------------------------


def test_a_bounded_kernel_of_before_repeats_were_counted_stays_what_it_was():
    conv = bounded(InvertibleConv1d(1, 1, 3, padding=1, padding_mode="replicate", dtype=torch.float64), 0.5)
    zeros: Any = bounded(InvertibleConv1d(1, 1, 3, padding=1, dtype=torch.float64), 0.5)
    with torch.no_grad():
        zeros.parametrizations.weight.original1.copy_(torch.tensor([3.0, 0, 2]).view(1, 1, 1, 3))
    state = zeros.state_dict()
    state["parametrizations.weight.0.version"] = torch.tensor(2.0)
    del state[f"parametrizations.weight.0.{KEY}"]
    with pytest.warns(UserWarning, match="may have a norm above rho = 0.5 at that border"):
        conv.load_state_dict(state)
    assert torch.equal(conv.weight, zeros.weight)
    again = bounded(InvertibleConv1d(1, 1, 3, padding=1, padding_mode="replicate", dtype=torch.float64), 0.5)
    with pytest.warns(UserWarning, match="may have a norm above rho"):
        again.load_state_dict(conv.state_dict())
    assert torch.equal(again.weight, zeros.weight)
    fresh = bounded(InvertibleConv1d(1, 1, 3, padding=1, padding_mode="replicate", dtype=torch.float64), 0.5)
    conv.load_state_dict(fresh.state_dict())
    assert torch.equal(conv.weight, fresh.weight)


def test_a_part_of_a_checkpoint_of_nothing_warns_of_nothing(recwarn):
    flow().load_state_dict({}, strict=False)
    assert len(recwarn) == 0
