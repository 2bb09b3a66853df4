"""Feature inversion: the solver against dense least squares, real networks, what is left behind, bad input."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from skimage import data
from torch import Tensor, nn
from torch.nn import functional as F

from invconv import IllConditionedWarning, InputError
from invconv.inversion import (
    Interval,
    Place,
    inputs,
    invert,
    layer_names,
    observe,
    registry,
    rule,
    site,
    total_variation,
)
from invconv.inversion.chain import _modules
from invconv.inversion.coordinates import Pixels
from invconv.inversion.graph import Network
from invconv.inversion.joint import JointSolve, feature_error
from invconv.inversion.layers import frozen
from invconv.inversion.least_squares import gauss_newton
from invconv.lightning import command
from invconv.lightning.networks import small_resnet, small_vgg


def photograph(size: int = 64) -> Tensor:
    """In the input space of torchvision's models."""
    image = torch.tensor(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (F.interpolate(image, size=(size, size), mode="area") - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)


def psnr(image: Tensor, truth: Tensor) -> float:
    return float(10 * torch.log10((truth.max() - truth.min()) ** 2 / (image - truth).square().mean()))


# -- the solver ----------------------------------------------------------------------------------------------------


def test_masked_least_squares_agree_with_dense_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(40, 12, dtype=torch.float64, generator=generator)
    truth = torch.randn(5, 12, dtype=torch.float64, generator=generator)
    y = truth @ matrix.T
    output = Interval(torch.where(y > 0, y, -torch.inf), y.clamp_min(0))
    box = Interval.between(-torch.inf, torch.inf, truth)
    solution = gauss_newton(lambda x: x @ matrix.T, output, truth * 0, box, affine=True, rounds=20, iterations=50)
    assert torch.allclose(solution.x, truth, atol=1e-8)


@pytest.mark.parametrize("mean", [None, [0.5, 0.4, 0.3]])
@pytest.mark.parametrize("weight", [0.0, 0.03])
def test_more_steps_never_give_a_worse_image(mean: list[float] | None, weight: float) -> None:
    torch.manual_seed(0)
    model, x = small_vgg(width=8).eval(), (photograph(32) / 5).clamp(-1, 1)
    box = inputs.pixel_box(mean, 0.25, x)
    network = Network(model, "9")
    network.run(x)
    features, start = network.apply(x).detach(), torch.randn(x.shape, generator=torch.Generator().manual_seed(0))

    def errors(steps: int) -> list[float]:
        seen: list[Tensor] = []
        solve = JointSolve(steps, total_variation, weight, lambda image: seen.append(image.clone()), Pixels(box))
        with frozen(model):
            image = solve.run(network.apply, features, start)
        assert box is None or not box.excess(image).any()
        with torch.no_grad():
            return [float(feature_error(network.apply, i, features)) for i in (image, *seen)]

    last = float("inf")
    for steps in range(1, 24):
        found, *seen = errors(steps)
        assert found == pytest.approx(min(seen), rel=1e-5), "the best that was seen"
        assert found <= last
        last = found
    assert last < 0.7 * seen[0]


def test_what_leaves_the_range_of_pixels_is_called_back() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 3, 5, 5, generator=generator)
    x = torch.rand(1, 3, 16, 16, generator=generator).round()  # black or white, and two equations for three unknowns
    features, start = F.conv2d(x, weight, padding=2), torch.full_like(x, 0.5)
    box = inputs.pixel_box(0.0, 1.0, x)
    errors = []
    for within in (box, None):
        image = (
            JointSolve(40, coordinates=Pixels(within))
            .run(lambda x: F.conv2d(x, weight, padding=2), features, start)
            .clamp(0, 1)
        )
        errors.append(float((F.conv2d(image, weight, padding=2) - features).norm() / features.norm()))
    assert errors[0] < 0.5 * errors[1]  # not so with a weight of 0.01, nor with one of 1e6


def test_api_and_command_have_one_default() -> None:
    ours, theirs = (inspect.signature(f).parameters for f in (invert, command.main))
    for name in ("steps", "prior_weight"):
        assert ours[name].default == theirs[name].default


def test_what_layers_below_cannot_follow_is_not_solved_to_the_last_digit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def noting(*args: Any, rounds: int, iterations: int, **options: Any) -> Any:
        asked.append((rounds, iterations))
        return gauss_newton(*args, rounds=rounds, iterations=iterations, **options)

    monkeypatch.setattr(site, "gauss_newton", noting)
    torch.manual_seed(0)
    x = torch.rand(1, 2, 8, 8)
    wide = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1))
    even = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 1, 3, padding=1))
    once = [(1, 400), (1, 40)]  # as many equations as unknowns, all known, and linear
    for model, expected in ((wide, [(2, 10), *once]), (even, [(10, 40), (10, 40)])):
        asked.clear()
        invert(model, "1", image=x, steps=0)
        assert asked == expected


@pytest.mark.parametrize(("mean", "std"), [([0.5, 0.5], 1.0), (0.5, [1.0, 0.0, 1.0]), (0.5, -1.0)])
def test_means_that_are_none_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(InputError, match=r"mean and std are .*each of the 3 channels"):
        invert(small_vgg(width=4), "2", image=torch.zeros(1, 3, 32, 32), mean=mean, std=std)


def test_what_no_equation_determines_stays_as_at_the_start() -> None:
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(6, 12, dtype=torch.float64, generator=generator)
    start, y = (torch.randn(2, n, dtype=torch.float64, generator=generator) for n in (12, 6))
    box = Interval.between(-torch.inf, torch.inf, start)
    x = gauss_newton(lambda x: x @ matrix.T, Interval.point(y), start, box, affine=True, rounds=20, iterations=50).x
    wanted = start + (y - start @ matrix.T) @ torch.linalg.pinv(matrix).T
    assert torch.allclose(x, wanted, atol=1e-7)


def test_a_batch_gives_what_its_images_give_alone() -> None:
    torch.manual_seed(0)
    model, x = small_vgg(width=8).eval(), torch.rand(2, 3, 32, 32)
    both = invert(model, "6", image=x, steps=20)
    for i in range(2):
        alone = invert(model, "6", image=x[i : i + 1], steps=20)
        assert abs(both.feature_error[i] - alone.feature_error[0]) < 0.3 * alone.feature_error[0] + 1e-4


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # random weights, few steps
def test_the_joint_solve_never_makes_it_worse() -> None:
    torch.manual_seed(0)
    model = small_vgg(width=8).eval()
    x = torch.rand(1, 3, 32, 32)
    for layer in ("2", "6", "13"):
        closed = invert(model, layer, image=x, steps=0)
        solved = invert(model, layer, image=x, steps=30)
        assert solved.feature_error <= closed.feature_error * 1.001
    start = torch.rand(1, 3, 32, 32)
    assert JointSolve(steps=1).run(model, model(x).detach(), start).shape == start.shape


# -- real networks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "layers"),
    [("vgg11", ["features.0", "features.1", "features.2"]), ("resnet18", ["conv1", "bn1", "relu"])],
)
def test_first_layers_are_inverted_to_the_last_digits(name: str, layers: list[str]) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None).eval(), photograph()
    for layer in layers:
        r = invert(model, layer, image=x, steps=0)
        assert psnr(r.image, x) > 120, str(r)
        assert r.feature_error < 1e-5
        assert r.layers[-1].equations >= r.layers[-1].unknowns


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("vgg11", ["features.9", "features.20", "avgpool"]),
        ("vgg16_bn", ["features.6", "features.43"]),
        ("resnet18", ["maxpool", "layer2.0", "layer4", "avgpool", "fc"]),
        ("mobilenet_v2", ["features.0", "features.2", "features.18"]),
        ("convnext_tiny", ["features.0", "features.1", "features.4", "avgpool"]),
        ("alexnet", ["features.2", "features.12", "avgpool"]),
    ],
)
def test_layers_of_torchvision_networks_are_inverted(name: str, layers: list[str]) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None), photograph()
    for layer in layers:
        r = invert(model, layer, image=x, steps=10)
        with observe(model, [layer]) as outputs, torch.no_grad():
            model(r.image)
            again = outputs[layer]
            model(x)
            truth = outputs[layer]
        assert torch.allclose((again - truth).norm() / truth.norm(), r.feature_error[0], rtol=1e-3, atol=1e-6)
        assert r.feature_error < 0.8, str(r)
        assert model.training, "left in the mode that it was in"


@pytest.mark.parametrize("name", ["vgg11", "vgg16_bn", "resnet18", "mobilenet_v2", "convnext_tiny", "alexnet"])
def test_networks_of_torchvision_have_rules_for_all_layers(name: str) -> None:
    model = torchvision.models.get_model(name, weights=None)
    network = Network(model.eval(), [n for n in layer_names(model) if not n.startswith("classifier")][-1])
    with torch.no_grad():
        network.run(photograph())
    called = {module for node in network.nodes for module in _modules(node)}
    assert called >= {n for n in layer_names(model) if not n.startswith("classifier")}, "the walk passes all layers"
    for node in network.nodes:
        assert node is network.input or node in network.values or registry.of_node(model, node), node


@pytest.mark.parametrize("name", ["alexnet", "resnet18"])
@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # a single step
def test_each_layer_by_name(name: str) -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.get_model(name, weights=None), photograph()
    for layer in layer_names(model):
        r = invert(model, layer, image=x, steps=0, rounds=1, iterations=2)
        assert r.image.isfinite().all() and r.feature_error < 1, str(r)


@pytest.mark.parametrize("make", [small_vgg, small_resnet])
@pytest.mark.parametrize("channels", [1, 3])
def test_small_networks_of_any_channel_count(make: object, channels: int) -> None:
    torch.manual_seed(0)
    model = make(channels, width=16)  # type: ignore[operator]
    x = torch.rand(1, channels, 32, 32)
    for layer in ("2", "6", "8"):
        assert invert(model, layer, image=x, steps=30).feature_error < 0.5


def test_features_alone_are_enough() -> None:
    torch.manual_seed(0)
    model, x = torchvision.models.resnet18(weights=None).eval(), photograph()
    with observe(model, ["relu"]) as outputs, torch.no_grad():
        model(x)
    r = invert(model, "relu", features=outputs["relu"], input_size=(64, 64), steps=0)
    assert psnr(r.image, x) > 60
    deeper = invert(model, "relu", features=outputs["relu"], input_size=(3, 64, 64), steps=0)
    assert torch.equal(deeper.image, r.image)


def test_a_full_convolution_takes_the_pseudo_inverse() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LeakyReLU(0.1)), torch.rand(1, 3, 32, 32)
    r = invert(model, "1", image=x, steps=0)
    assert r.layers[-1].note == "pseudo-inverse"
    assert psnr(r.image, x) > 100


class Uncommon(nn.Module):
    """What torchvision's networks have not: functions only, a size in `view`, a split, a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.twice = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.linear = nn.Linear(256, 10)

    def forward(self, view: Tensor) -> Tensor:  # named as a method that has a rule
        a, b = F.relu(self.twice(F.relu(self.twice(self.conv(view))))).chunk(2, 1)
        y = F.max_pool2d(a * torch.sigmoid(b), 2)
        return F.log_softmax(self.linear(y.view(y.size(0), -1)), 1)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # random weights, few steps
def test_a_network_of_ones_own() -> None:
    torch.manual_seed(0)
    model, x = Uncommon(), torch.rand(2, 1, 16, 16)
    for layer in ("conv", "twice", "linear"):
        r = invert(model, layer, image=x, steps=50)
        assert r.feature_error.max() < 0.3, str(r)
    names = [report.name for report in invert(model, "twice", image=x, steps=0).layers]
    assert names.count("twice") == 2, "back from the last use"


def test_a_prior_of_ones_own_chooses_among_what_is_left_open() -> None:
    torch.manual_seed(0)
    model, x = small_vgg(1, width=8).eval(), torch.rand(1, 1, 32, 32)

    def energy(image: Tensor) -> Tensor:
        return image.square().flatten(1).mean(1)

    large, small = (invert(model, "20", image=x, steps=40, prior=energy, prior_weight=w) for w in (0.0, 1.0))
    assert energy(small.image) < energy(large.image)


def test_small_errors_are_made_smaller() -> None:
    torch.manual_seed(0)
    model = nn.Conv2d(1, 4, 3).double()
    truth = torch.rand(1, 1, 12, 12).double()
    start = truth + 1e-5 * torch.randn_like(truth)
    with torch.no_grad():
        features = model(truth)
    model.requires_grad_(False)
    assert (JointSolve(steps=60).run(model, features, start) - truth).norm() < 1e-3 * (start - truth).norm()


def test_features_that_are_all_zero_have_an_absolute_error() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU())
    r = invert(model, "1", features=torch.zeros(1, 4, 6, 6), input_size=(8, 8))
    assert r.feature_error < 1e-3


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # random weights, few steps
def test_it_works_in_inference_mode_and_under_autocast() -> None:
    torch.manual_seed(0)
    model = small_vgg(width=8).eval()
    wanted = invert(model, "6", image=torch.full((1, 3, 32, 32), 0.5), steps=5).image
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        image = invert(model, "6", image=torch.full((1, 3, 32, 32), 0.5), steps=5).image
    assert torch.equal(image, wanted)


# -- what is left behind -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # random weights, few steps
def test_nothing_of_the_model_is_changed() -> None:
    torch.manual_seed(0)
    model: Any = small_resnet(width=8).train()
    model[4].eval()
    model[0].weight.requires_grad_(False)
    model[3].conv1.weight.grad = torch.ones_like(model[3].conv1.weight)
    modes = [m.training for m in model.modules()]
    wanted = [p.requires_grad for p in model.parameters()]
    state = {k: v.clone() for k, v in model.state_dict().items()}
    invert(model, "5", image=torch.rand(1, 3, 32, 32), steps=5)
    assert modes == [m.training for m in model.modules()]
    assert wanted == [p.requires_grad for p in model.parameters()]
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert torch.equal(model[3].conv1.weight.grad, torch.ones_like(model[3].conv1.weight))
    assert not any(m._forward_hooks for m in model.modules())


class Stop(Exception):
    """Raised from within."""


@pytest.mark.parametrize("where", ["watch", "prior", "rule"])
def test_nothing_of_the_model_is_changed_by_what_fails_midway(where: str) -> None:
    class Fails(nn.ReLU):
        pass

    def stop(*_: object) -> Tensor:
        raise Stop

    rule(Fails)(stop if where == "rule" else registry.find(nn.ReLU()).function)  # type: ignore[union-attr]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), Fails(inplace=True), nn.Conv2d(2, 2, 3), nn.Dropout())
    model[0].bias.requires_grad_(False)
    model[3].eval()
    options = {"watch": stop} if where == "watch" else {"prior": stop, "prior_weight": 1.0}
    with pytest.raises(Stop):
        invert(model, "3", image=torch.rand(1, 1, 8, 8), **options)  # type: ignore[arg-type]
    assert [m.training for m in model.modules()] == [True, True, True, True, False]
    assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
    assert model[1].inplace and not any(m._forward_hooks for m in model.modules())


def test_an_image_is_left_alone_by_layers_in_place() -> None:
    x = torch.randn(1, 1, 8, 8)
    before = x.clone()
    r = invert(nn.Sequential(nn.Hardtanh(-0.5, 0.5, inplace=True), nn.Conv2d(1, 4, 3)), "1", image=x, start=x, steps=0)
    assert torch.equal(x, before) and torch.equal(r.image, before)


def test_observe_takes_its_hooks_out_when_the_model_fails() -> None:
    model = small_vgg(width=8)
    with pytest.raises(RuntimeError), observe(model, ["0", "2"]):
        model(torch.zeros(1, 5, 32, 32))
    assert not any(m._forward_hooks for m in model.modules())
    assert model.training


def test_layers_in_place_do_not_spoil_what_was_seen() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True))
    with observe(model, ["0"]) as outputs, torch.no_grad():
        model(torch.randn(1, 1, 8, 8))
    assert outputs["0"].min() < 0


# -- bad input -----------------------------------------------------------------------------------------------------


def test_a_layer_without_a_rule_is_named_and_can_be_given_one() -> None:
    class Scale(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.special.erf(x)

    model, x = nn.Sequential(nn.Conv2d(1, 4, 3), Scale()), torch.rand(1, 1, 8, 8)
    solved = invert(model, "1", image=x, steps=0)
    assert solved.layers[0].note.startswith("special_erf has no rule: solved numerically (@invconv.inversion.rule(")
    assert psnr(solved.image, x) > 60

    @rule(Scale, range=(-1, 1))
    def undo_scale(place: Place, output: Interval) -> Interval:
        return output.map(torch.special.erfinv)

    assert psnr(invert(model, "1", image=x, steps=0).image, x) > 60


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # without a joint solve
def test_how_to_add_a_rule_depends_on_what_lacks_one() -> None:
    class Sines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sin()

    for module, key in ((Sines(), "rule('sin')"), (nn.LPPool2d(2, 2), "rule(LPPool2d)")):
        r = invert(nn.Sequential(nn.Conv2d(1, 4, 3), module), "1", image=torch.rand(1, 1, 8, 8), steps=0)
        assert key in r.layers[0].note


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(layer="layer1.0.convolution1"), "did you mean 'layer1.0.conv1'.*layer_names"),
        (dict(image=torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "uint8.*divide by 255"),
        (dict(image=torch.full((1, 3, 32, 32), 255.0)), "values up to 255.*normalise"),
        (dict(image=torch.full((1, 3, 32, 32), torch.nan)), "nan"),
        (dict(image=torch.zeros(3, 32, 32)), r"\(3, 32, 32\), expected \(batch, channels"),
        (dict(image=torch.zeros(1, 5, 32, 32)), r"cannot take images of shape \(1, 5, 32, 32\)"),
        (dict(image=torch.zeros(1, 3, 32, 32).double()), "float64.*float32"),
        (dict(image=np.zeros((1, 3, 32, 32))), "ndarray, expected a tensor"),
        (dict(start=torch.zeros(1, 3, 16, 16)), r"start has shape \(1, 3, 16, 16\), expected \(1, 3, 32, 32\)"),
        (dict(image=None), "either image= or features="),
        (dict(image=None, features=torch.zeros(1, 64, 8, 8)), "input_size="),
        (dict(image=None, features=torch.zeros(1, 64, 8, 8), input_size=32), r"input_size=\(height, width\).*32"),
        (dict(image=None, features=torch.zeros(1, 64, 8, 8), input_size=(0, 32)), r"input_size=.*\(0, 32\)"),
        (dict(image=None, features=torch.zeros(1, 64, 8, 8).double(), input_size=(32, 32)), "float64.*float32"),
        (dict(image=None, features=torch.zeros(1, 64, 9, 9), input_size=(32, 32)), r"\(1, 64, 9, 9\).*\(1, 64, 8, 8\)"),
        (dict(image=None, features=torch.full((1, 64, 8, 8), torch.inf), input_size=(32, 32)), "finite"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_bad_input(change: dict, text: str) -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(weights=None)
    arguments = {"layer": "layer1.0", "image": photograph(32), "steps": 0, **change}
    with pytest.raises(InputError, match=text):
        invert(model, **arguments)
    assert model.training


def test_half_precision_is_refused() -> None:
    with pytest.raises(InputError, match=r"float16.*model.float\(\)"):
        invert(small_vgg(width=4).half(), "2", image=torch.zeros(1, 3, 32, 32).half())


def test_a_hopeless_inversion_warns_with_its_error() -> None:
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100)
    features = torch.ones(1, 2, 6, 6)
    model[0].weight.data.zero_()
    with pytest.warns(IllConditionedWarning, match=r"feature error of 1\.00"):
        invert(model, "1", features=features, input_size=(8, 8), steps=2)


def test_names() -> None:
    assert layer_names(small_vgg(width=4))[:3] == ["0", "1", "2"]


@pytest.mark.parametrize(
    "padding", [nn.ZeroPad2d((0, 1, 0, 1)), nn.ReflectionPad2d(1), nn.UpsamplingNearest2d(scale_factor=2)]
)
def test_what_a_padding_adds_is_known_to_the_convolution_above_it(padding: nn.Module) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(16).eval()
    norm.running_var = torch.logspace(-1, 0, 16)  # what a convolution hardly gives counts as much
    model = nn.Sequential(padding, nn.Conv2d(3, 16, 3, stride=2), norm)
    x = torch.randn(1, 3, 24, 24)
    found = invert(model, "2", image=x, steps=0)
    assert [report.kind for report in found.layers] == [f"{type(padding).__name__} + Conv2d + BatchNorm2d"]
    assert float(found.feature_error) < 1e-5, found
    assert float((found.image - x).norm() / x.norm()) < 1e-3, found
