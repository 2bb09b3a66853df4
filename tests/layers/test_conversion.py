"""Whole networks made invertible and plain again: forwards, weights and names stay as they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

import invconv
from invconv import InputError, InvertibleConv, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d, convert, revert
from invconv.parametrizations import bounded


def convolutions(model: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return {name: part for name, part in model.named_modules() if isinstance(part, kinds)}


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_1", "mobilenet_v3_small"])
def test_a_network_stays_what_it_was(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.rand(2, 3, 64, 64)
    before, state, parameters = model(x), model.state_dict(), list(model.parameters())
    plain = convolutions(model)
    conversion = convert(model, damping=0.1)
    assert conversion.model is model and conversion.converted == list(plain) and conversion.skipped == {}
    assert torch.equal(model(x), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert list(model.state_dict()) == list(state)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True)), "an optimizer goes on"
    layers = convolutions(model)
    assert all(isinstance(layer, InvertibleConv) and layer.damping == 0.1 for layer in layers.values())
    assert [layer.training for layer in layers.values()] == [False] * len(layers)
    assert revert(model) is model and torch.equal(model(x), before)
    assert [type(part) for part in convolutions(model).values()] == [type(part) for part in plain.values()]


def test_all_dimensions_and_a_single_layer() -> None:
    for plain, kind in ((nn.Conv1d, InvertibleConv1d), (nn.Conv2d, InvertibleConv2d), (nn.Conv3d, InvertibleConv3d)):
        conv = plain(2, 2, 3, padding=1)
        conversion = convert(conv)
        assert type(conversion.model) is kind and conversion.converted == [""]
        assert conversion.model.weight is conv.weight
        assert type(revert(conversion.model)) is plain


class Own(nn.Conv2d):
    """A convolution that is none by its weight."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * x)


def test_what_is_left_is_told_with_its_reason() -> None:
    hooked, before, observed = (nn.Conv2d(2, 2, 3) for _ in range(3))
    hooked.register_forward_hook(lambda *_: None)
    before.register_forward_pre_hook(lambda *_: None)
    observed.register_full_backward_hook(lambda *_: None)
    parts: dict[str, nn.Module] = {
        "own": Own(2, 2, 3),
        "lazy": nn.LazyConv2d(2, 3),
        "transposed": nn.ConvTranspose1d(2, 2, 3),
        "invertible": InvertibleConv2d(2, 2, 3),
        "hooked": hooked,
        "before": before,
        "observed": observed,
        "plain": nn.Conv2d(2, 2, 3),
    }
    model = nn.ModuleDict(parts)
    conversion = convert(model)
    reasons = {
        "own": "forward of its own",
        "lazy": "no weight yet",
        "invertible": "already",
        **dict.fromkeys(("hooked", "before", "observed"), "hooks"),
    }
    assert conversion.converted == ["transposed", "plain"] and list(conversion.skipped) == list(reasons)
    assert all(word in conversion.skipped[name] for name, word in reasons.items())
    assert all(model[name] is parts[name] for name in reasons)
    assert str(conversion).splitlines()[0] == "2 convolutions made invertible, 6 left"


def test_weights_that_are_made_are_shared() -> None:
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(2, 2, 3)), prune.l1_unstructured(nn.Conv2d(2, 2, 3), "weight", 0.5)
    )
    x = torch.rand(1, 2, 8, 8)
    before, parameters = model(x), list(model.parameters())
    assert convert(model).converted == ["0", "1"]
    torch.testing.assert_close(model(x), before)
    assert {id(p) for p in model.parameters()} == {id(p) for p in parameters}
    layer: Any = model[1]
    x_hat = layer.inverse(layer(x), output_size=(8, 8))
    assert x_hat.shape == x.shape
    revert(model)
    torch.testing.assert_close(model(x), before)
    assert sorted(model.state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_a_layer_of_two_names_gets_one_successor() -> None:
    shared = nn.Conv2d(2, 2, 3, padding=1)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert convert(model).converted == ["0", "2"] and model[0] is model[2] is not shared
    revert(model)
    assert model[0] is model[2] and type(model[0]) is nn.Conv2d


def test_some_layers_of_a_network() -> None:
    model = nn.Sequential(*(nn.Conv2d(2, 2, 3) for _ in range(3)))
    conversion = convert(model, ["1"])
    assert conversion.converted == ["1"] and conversion.skipped == {}
    assert [isinstance(part, InvertibleConv) for part in model] == [False, True, False]


def test_what_cannot_be_asked_leaves_the_network_alone() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 3))
    with pytest.raises(InputError, match="no convolution '00': did you mean '0'"):
        convert(model, ["0", "00"])
    with pytest.raises(TypeError, match=r"convert\(\) .* 'dampng'; did you mean 'damping'"):
        convert(model, dampng=0.1)
    with pytest.raises(InputError, match="damping"):
        convert(model, damping=-1.0)
    assert type(model[0]) is nn.Conv2d


def test_what_holds_a_kernel_is_left_behind_on_the_way_back() -> None:
    conv = bounded(InvertibleConv2d(2, 2, 3, padding=1))
    plain: Any = revert(nn.Sequential(conv))[0]  # type: ignore[index]
    assert torch.equal(plain.weight, conv.weight) and plain.weight.data_ptr() != conv.weight.data_ptr()


# -- what is printed and offered -----------------------------------------------------------------------------------


def test_repr_tells_the_options_that_were_set() -> None:
    plain = repr(nn.Conv2d(2, 2, 3, padding=1))
    assert repr(InvertibleConv2d(2, 2, 3, padding=1)) == f"Invertible{plain}"
    conv = InvertibleConv2d(2, 2, 3, padding=1, solver="iterative")
    conv.damping = 0.2
    assert repr(conv) == f"Invertible{plain[:-1]}, damping=0.2, solver='iterative')"


def test_completion_offers_public_names() -> None:
    offered = [name for name in dir(invconv) if not name.startswith("__")]
    assert offered == sorted(invconv.__all__) and "flows" in offered and "engine" not in offered
    with pytest.raises(AttributeError, match="no attribute 'flws'"):
        invconv.flws  # noqa: B018
