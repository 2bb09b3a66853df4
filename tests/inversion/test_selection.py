"""Parts of layers, and several at once: what is read, what is found, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invconv import InputError
from invconv.inversion import invert, observe
from invconv.inversion.selection import select


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1), nn.LeakyReLU(0.3), nn.MaxPool2d(2), nn.Conv2d(24, 16, 3, padding=1)
    ).eval()


def image() -> Tensor:
    return torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))


def outputs_of(model: nn.Module, layers: list[str], x: Tensor) -> dict[str, Tensor]:
    with observe(model, layers) as outputs, torch.no_grad():
        model(x)
    return dict(outputs)


@pytest.mark.parametrize(
    ("index", "slices"),
    [
        ("[5]", (slice(5, 6),)),
        ("[-1]", (slice(-1, None),)),
        ("[-2, 3:]", (slice(-2, -1), slice(3, None))),
        ("[:, 2:5, 2:5]", (slice(None), slice(2, 5), slice(2, 5))),
        ("[ 7 , 3 , 4 ]", (slice(7, 8), slice(3, 4), slice(4, 5))),
        ("[::2]", (slice(None, None, 2),)),
    ],
)
def test_an_index_is_read_as_python_reads_it(index: str, slices: tuple[slice, ...]) -> None:
    model, x = network(), image()
    (part,) = select(model, f" 1 {index}").parts
    assert (part.layer, part.index) == ("1", slices)
    output = outputs_of(model, ["1"], x)["1"]
    wanted: Tensor = eval(f"output[:, {index.strip(' []')}]")
    assert torch.equal(part.of(output, 2).flatten(), wanted.flatten())


def test_channels_that_are_enough_give_the_image_and_the_rest_is_left_open() -> None:
    model, x = network(), image()
    r = invert(model, "1[3:9]", image=x, steps=0)
    assert torch.allclose(r.image, x, atol=1e-3) and r.feature_error.max() < 1e-5
    assert r.layers[0].equations == 6 * 144 and "copied" not in r.layers[0].note
    assert r.layers[1].equations == 6 * 144, "nothing is known of the other channels"
    region = invert(model, "1[:, 2:8, 2:8]", image=x, steps=0)
    assert torch.allclose(region.image[..., 3:7, 3:7], x[..., 3:7, 3:7], atol=1e-3)
    assert region.feature_error.max() < 1e-5 and not torch.allclose(region.image, x, atol=0.1)
    unit = invert(model, "3[7, 2, 3]", image=x, steps=20)
    assert unit.layers[0].equations == 1 and unit.feature_error.max() < 1e-3


@pytest.mark.parametrize("given", ["image", "features"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_several_layers_at_once(given: str, wrapped: bool) -> None:
    model, x = network(), image()
    outputs = outputs_of(model, ["1", "3"], x)
    features = [outputs["1"][:, 4:5], outputs["3"]]
    source: Any = {"image": x} if given == "image" else {"features": features, "input_size": (12, 12)}
    names = ["module.1[4]", "3"] if wrapped else ["1[4]", "3"]
    r = invert(nn.DataParallel(model) if wrapped else model, names, steps=200, **source)
    assert r.layer == "1[4] + 3"
    again = outputs_of(model, ["1", "3"], r.image)
    parts = [(again["1"][:, 4:5], features[0]), (again["3"], features[1])]
    squares = torch.zeros(2)
    for found, truth in parts:
        scale = truth.flatten(1).norm(dim=1).mean()
        squares += ((found - truth).flatten(1).norm(dim=1) / scale) ** 2
    norms = sum((truth.flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).mean()) ** 2 for _, truth in parts)
    assert torch.allclose(r.feature_error, (squares / norms).sqrt(), rtol=1e-3), "each counts by its relative error"
    assert r.feature_error.max() < 0.1
    text = invert(model, "1[4]+3", steps=200, **source)
    assert torch.equal(text.image, r.image)


def test_a_layer_on_which_the_others_depend_is_taken_as_it_is() -> None:
    model, x = network(), image()
    r = invert(model, ["3", "1"], image=x, steps=0)
    assert torch.allclose(r.image, x, atol=1e-3) and r.feature_error.max() < 1e-5
    outputs, other = outputs_of(model, ["1", "3"], x), outputs_of(model, ["3"], x.flip(0))
    mixed = invert(model, ["1", "3"], features=[outputs["1"], other["3"]], input_size=(12, 12), steps=20)
    taken = [(outputs_of(model, ["3"], image)["3"] - other["3"]).norm() for image in (mixed.image, x)]
    assert taken[0] < 0.9 * taken[1], "where they disagree, neither is forgotten"


def test_a_small_layer_counts_beside_a_large_one() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.Flatten(), nn.Linear(12 * 64, 20), nn.Linear(20, 20)
    ).eval()
    with torch.no_grad():
        model[2].weight.mul_(1e-4)
        model[2].bias.zero_()
    x = torch.rand(1, 3, 8, 8)
    r = invert(model, ["0[0, 2:6, 2:6]", "2"], image=x, steps=100)
    outputs, again = outputs_of(model, ["2"], x)["2"], outputs_of(model, ["2"], r.image)["2"]
    assert (again - outputs).norm() < 0.05 * outputs.norm()


def test_several_parts_of_one_layer_are_exact() -> None:
    model, x = network(), image()
    r = invert(model, "1[0:4] + 1[9] + 1[11]", image=x, steps=0)
    assert torch.allclose(r.image, x, atol=1e-3)
    assert r.layers[0].kind == "getitem + flatten + cat" and r.layers[0].note == ""


@pytest.mark.parametrize(
    ("layer", "text"),
    [
        ("1[3", "no closing bracket"),
        ("1[a]", "'a' in '1\\[a\\]' is no index"),
        ("1[1, ]", "'' in .* is no index"),
        ("1[0:4:-1]", "is no index"),
        ("1[1:2:3:4]", "is no index"),
        ("1[99]", r"'1' gives \(24, 12, 12\) for an image, of which \[99:100\] is no part"),
        ("1[0, 0, 0, 0]", r"of which \[0:1, 0:1, 0:1, 0:1\] is no part"),
        ("1[3:3]", "is no part"),
        ("9[1]", "no layer '9'"),
        (["1", "x"], "no layer 'x'"),
        ("1 +", "no layer ''"),
    ],
    ids=str,
)
def test_what_is_no_part_is_refused(layer: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        invert(network(), layer, image=image(), steps=0)


@pytest.mark.parametrize(
    ("features", "text"),
    [
        ([torch.zeros(2, 24, 12, 12)], "features has 1 tensors, expected one for each of 2 parts"),
        ([torch.zeros(2, 24, 12, 12)] * 3, "features has 3 tensors, expected one for each of 2 parts"),
        ([torch.zeros(2, 24, 12, 12), torch.zeros(1, 16, 6, 6)], "features is list, expected a tensor"),
        ([torch.zeros(2, 24, 12, 12), "3"], "features is list"),
        (3.0, "features is float"),
        ([torch.zeros(2, 24, 12, 12), torch.zeros(2, 16, 5, 6)], r"features have shape .* for images of size"),
        (torch.zeros(3), "features is Tensor, expected a tensor .batch"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_features_that_do_not_fit_are_refused(features: Any, text: str) -> None:
    with pytest.raises(InputError, match=text):
        invert(network(), ["1", "3"], features=features, input_size=(12, 12))
