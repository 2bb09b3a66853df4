"""What excites a part of a network: how far it is excited, where, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from invconv import InputError
from invconv.inversion import observe, visualize
from invconv.inversion.coordinates import Natural

BOX: Any = {"mean": [0.5, 0.4, 0.5], "std": 0.25}


def network(first_bias: float | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 5, padding=2)
    if first_bias is not None:
        nn.init.constant_(first.bias, first_bias)  # type: ignore[arg-type]
    return nn.Sequential(
        first,
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 6, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def features(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    with observe(model, [layer]) as outputs, torch.no_grad():
        model(x)
    return outputs[layer]


def levels(x: Tensor) -> Tensor:
    return x * BOX["std"] + torch.tensor(BOX["mean"]).view(1, 3, 1, 1)


def photographs(count: int, box: Any) -> Tensor:
    """Noise with the spectrum of photographs."""
    like = torch.zeros(count, 3, 24, 24)
    coordinates = Natural(like[:0], like.shape, box)
    return coordinates.decode(torch.randn(like.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("layer", ["1[5]", "6[2]", "3[1, 4:8, 4:8]"])
def test_no_photograph_excites_it_so_much(layer: str) -> None:
    model = network()
    r = visualize(model, layer, input_size=(24, 24), batch=2, steps=80, **BOX)
    name, _, index = layer.partition("[")
    part = eval(f"lambda f: f[:, {index}")
    assert torch.allclose(r.value, part(features(model, name, r.image)).reshape(2, -1).mean(1), atol=1e-6)
    assert 0 <= levels(r.image).min() and levels(r.image).max() <= 1
    others = (photographs(100, None).sigmoid() - torch.tensor(BOX["mean"]).view(1, 3, 1, 1)) / BOX["std"]
    best = part(features(model, name, others)).reshape(100, -1).mean(1).max()
    assert (r.value > 1.2 * best.abs()).all() and (r.value > r.start).all()
    assert not torch.allclose(r.image[0], r.image[1], atol=0.1), "each from a start of its own"


def test_without_bounds_the_contrast_is_that_of_photographs() -> None:
    model = network()
    r = visualize(model, "1[5]", input_size=(24, 24), steps=40)
    assert r.image.square().mean().sqrt() == pytest.approx(1, rel=1e-5)
    assert (r.value > 1.2 * features(model, "1", photographs(100, None))[:, 5].mean((1, 2)).max()).all()


def test_a_unit_is_excited_where_it_looks() -> None:
    model = network()
    r = visualize(model, "0[2, 6, 18]", input_size=(24, 24), steps=60, **BOX)
    grey = levels(r.image) - 0.5
    energy = grey.square().sum(1)[0]
    assert energy[2:11, 14:23].mean() > 1.5 * energy[14:, :10].mean()


def test_a_caricature_has_the_features_of_its_image_and_more_of_them() -> None:
    model = network()
    x = (photographs(2, None).sigmoid() - torch.tensor(BOX["mean"]).view(1, 3, 1, 1)) / BOX["std"]
    r = visualize(model, "1", image=x, steps=80, **BOX)
    wanted, found = features(model, "1", x).flatten(1), features(model, "1", r.image).flatten(1)
    cosine = nn.functional.cosine_similarity(wanted, found)
    assert (cosine > 0.5).all() and (r.value > 1).all(), "of the image itself it is 1"
    assert torch.allclose(r.value, (wanted * found).sum(1) / wanted.square().sum(1) * cosine**2, rtol=1e-4)


def test_an_objective_of_ones_own_and_parts_that_are_added() -> None:
    model = network()
    less = visualize(model, "6[2]", input_size=(24, 24), objective=lambda f: -f.flatten(1).mean(1), steps=40, **BOX)
    assert (features(model, "6", less.image)[:, 2] == -less.value).all() and (less.value > less.start).all()
    both = visualize(model, "6[2] + 1[5]", input_size=(24, 24), steps=10, **BOX)
    sum_ = features(model, "6", both.image)[:, 2] + features(model, "1", both.image)[:, 5].mean((1, 2))
    assert torch.allclose(both.value, sum_, atol=1e-6)


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv3d])
def test_images_of_other_dimensions(conv: Any) -> None:
    torch.manual_seed(0)
    dims = {nn.Conv1d: 1, nn.Conv3d: 3}[conv]
    model = nn.Sequential(conv(2, 4, 3), nn.ReLU()).double()
    r = visualize(model, "1[3]", input_size=(12,) * dims, steps=20)
    assert r.image.shape == (1, 2, *(12,) * dims) and r.image.dtype == torch.float64 and r.value > r.start


def test_the_same_seed_gives_the_same_and_the_model_is_left_as_it_was() -> None:
    model = network().train()
    model[1] = nn.ReLU(inplace=True)
    model[3].weight.requires_grad_(False)
    options: Any = {"input_size": (24, 24), "steps": 10, **BOX}
    with torch.no_grad():
        first, again = (visualize(nn.DataParallel(model), "module.6[2]", **options) for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        other = visualize(model, "6[2]", seed=1, **options)
    assert torch.equal(first.image, again.image) and not torch.allclose(first.image, other.image, atol=1e-3)
    assert first.layer == other.layer == "6[2]" and other.image.dtype == torch.float32
    assert model.training and all(p.grad is None for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, True, True, True]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_unit_that_is_off_on_grey_is_found() -> None:
    model = network(first_bias=-0.7)
    assert (features(model, "1", torch.zeros(1, 3, 16, 16)) == 0).all()
    assert (visualize(model, "1[3]", input_size=(16, 16), steps=30).value > 0).all()


@pytest.mark.parametrize(
    ("layer", "options", "words"),
    [
        ("7", {}, "no layer '7'"),
        ("6[9]", {}, "no part"),
        ("1", {"input_size": None}, "needs input_size"),
        ("1", {"input_size": (1, 24, 24), "mean": None}, "cannot take images of shape"),
        ("1", {"batch": 0}, "batch"),
        ("1", {"steps": -1}, "steps"),
        ("1", {"objective": lambda f: f.mean()}, r"gives \(\) for 1 images, expected \(1,\)"),
        ("1", {"objective": lambda f: 3.0}, "gives float for 1 images"),
        ("1", {"objective": lambda f: (f.flatten(1).sum(1) - 1e6).log()}, "expected finite numbers"),
        ("1", {"objective": lambda f: f.flatten(1).sum(1).detach()}, "does not change with the image"),
        ("1", {"image": torch.full((1, 3, 24, 24), 9.0)}, "a pixel of level"),
        ("1", {"std": 0.0}, "every std above 0"),
    ],
)
def test_bad_input_is_refused(layer: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        visualize(network(), layer, **{"input_size": (24, 24), "steps": 2, **BOX, **options})


def test_a_dead_unit_is_refused() -> None:
    model = network(first_bias=-1e3)
    with pytest.raises(InputError, match="does not change with the image: it has no derivative"):
        visualize(model, "1[3]", input_size=(24, 24), **BOX)
