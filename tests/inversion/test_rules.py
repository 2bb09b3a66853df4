"""The rules of feature inversion against what really went in, and what a rule may ask of its place."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from undoing import dense_pseudo_inverse, undo

from invconv.inversion import Interval, Place, Site, invert, registry, rule
from invconv.inversion.chain import segments
from invconv.inversion.graph import Network
from invconv.inversion.site import kept

# -- rules: the interval holds the input that was there ------------------------------------------------------

ONE_TO_ONE = [
    nn.LeakyReLU(0.2),
    nn.PReLU(4, 0.3),
    nn.ELU(0.7),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.Softplus(2.0),
    nn.Identity(),
    nn.Dropout(0.5),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.ChannelShuffle(2),
    nn.Flatten(),
]
WITH_LOSS = [nn.ReLU(), nn.ReLU(inplace=True), nn.ReLU6(), nn.Hardtanh(-0.5, 0.8), nn.Hardsigmoid()]
WITH_LOSS += [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish()]
POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2),
    nn.MaxPool2d(3, 2, 1),
    nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.MaxPool2d(3, 1, 1),
    nn.MaxPool2d(2, 2, dilation=2),
    nn.MaxPool2d((3, 2), (2, 1)),
    nn.AdaptiveMaxPool2d(2),
    nn.AdaptiveMaxPool2d((4, 5)),
]


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(3, 4, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("module", ONE_TO_ONE, ids=str)
def test_one_to_one_layers_are_undone_exactly(module: nn.Module, x: Tensor) -> None:
    x = x[..., :8, :6].contiguous()
    x_hat = undo(module.double(), x)
    assert x_hat.exact.all()
    assert torch.allclose(x_hat.lower, x, atol=1e-9)


@pytest.mark.parametrize("module", WITH_LOSS, ids=str)
def test_intervals_hold_the_input(module: nn.Module, x: Tensor) -> None:
    x_hat = undo(module, x.clone())
    # Far below zero the tails of these functions are flat, and their inverses as uncertain as that makes them.
    assert x_hat.excess(x)[x > -4].abs().max() < 1e-6
    assert x_hat.excess(x).abs().max() < 1e-3
    positive = (x > 0.01) & (x < 0.49)
    assert (x_hat.upper - x_hat.lower)[positive].max() < 1e-6, "where the layer is one to one nothing is lost"


@pytest.mark.parametrize("module", POOLS, ids=str)
def test_pooling_keeps_equations_at_its_switches_and_inequalities_elsewhere(module: nn.Module, x: Tensor) -> None:
    x_hat = undo(module, x)
    assert x_hat.excess(x).abs().max() == 0
    maxima = module(x)
    kept = [set(image.tolist()) for image in maxima.flatten(1)]
    assert [set(a[b].tolist()) for a, b in zip(x, x_hat.exact, strict=True)] == kept
    seen = undo(module, x, switches=False)
    assert seen.equations > x_hat.equations


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        (nn.MaxPool1d(3, 2, 1), (3, 4, 63)),
        (nn.AdaptiveMaxPool1d(5), (3, 4, 63)),
        (nn.MaxPool3d((2, 3, 2), stride=(1, 2, 2), padding=(1, 0, 1)), (3, 2, 2, 9, 7)),
        (nn.MaxPool3d(2, dilation=(1, 2, 1), ceil_mode=True), (3, 2, 2, 9, 7)),
        (nn.AdaptiveMaxPool3d((1, 4, 3)), (3, 2, 2, 9, 7)),
    ],
    ids=str,
)
def test_pooling_of_rows_and_volumes(pool: nn.Module, shape: tuple[int, ...], x: Tensor) -> None:
    x = x.reshape(shape)
    x_hat = undo(pool, x)
    assert x_hat.excess(x).abs().max() == 0
    maxima = pool(x)
    assert [set(a[b].tolist()) for a, b in zip(x, x_hat.exact, strict=True)] == [
        set(i.tolist()) for i in maxima.flatten(1)
    ]
    blind = undo(pool, x, switches=False).upper
    covered = blind.isfinite()
    assert torch.equal(pool(blind.masked_fill(~covered, -100)), maxima), "the largest image with these maxima"


def test_batch_norm_with_negative_and_dead_scales(x: Tensor) -> None:
    norm = nn.BatchNorm2d(4).double()
    norm(x)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, -2.0, 0.0, 0.5]))
        norm.bias.uniform_()
    norm.eval()
    x_hat = undo(norm, x)
    alive = [0, 1, 3]
    assert torch.allclose(x_hat.lower[:, alive], x[:, alive])
    assert not x_hat.lower[:, 2].isfinite().any()
    clipped = nn.Sequential(norm, nn.ReLU())
    network = Network(clipped, "1")
    network.run(x)
    output = Interval(torch.full_like(x, -torch.inf), torch.zeros_like(x))
    segment = segments(network)[0]
    turned = registry.find(norm).function(Site(segment, x[:0], x), output)  # type: ignore[union-attr]
    assert turned.excess(x)[norm(x) <= 0].abs().max() < 1e-12, "an upper bound becomes a lower one"


LINEAR = [
    nn.Conv2d(4, 9, 3, padding=1),
    nn.Conv2d(4, 8, 3, padding=1, groups=2),
    nn.Conv2d(4, 16, 3, stride=2, padding=1, padding_mode="reflect"),
    nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"),
    nn.AvgPool2d(2),
    nn.AdaptiveAvgPool2d(1),
]


@pytest.mark.parametrize("module", LINEAR, ids=str)
def test_linear_layers_give_what_the_dense_pseudo_inverse_gives(module: nn.Module, x: Tensor) -> None:
    torch.manual_seed(0)
    module = module.double()
    x_hat, wanted = undo(module, x).lower, dense_pseudo_inverse(module, x)
    assert (x_hat - wanted).norm() < 1e-5 * wanted.norm()


# -- what a rule may ask -------------------------------------------------------------------------------------------


def promised(protocol: type) -> set[str]:
    """Names of attributes and methods that a protocol promises."""
    methods = {name for name in vars(protocol) if not name.startswith("_")}
    return methods | set(protocol.__annotations__)


class Pooled(nn.Module):
    """A function that takes an argument by position and one by name."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(x), 2, stride=2)


def sites(model: nn.Module, layer: str, x: Tensor) -> list[Site]:
    """All places on the way to a layer, from the image up."""
    network = Network(model.eval(), layer)
    values = network.run(x)
    return [Site(segment, x[:0], values[segment.start]) for segment in segments(network)]


@torch.no_grad()
def test_a_site_has_all_that_a_place_promises(x: Tensor) -> None:
    conv, relu, pool = sites(nn.Sequential(nn.Conv2d(4, 8, 3).double(), Pooled()), "1", x)
    for site in (conv, relu, pool):
        assert isinstance(site, Place)
        assert {name for name in promised(Place) if not hasattr(site, name)} == set()
        assert site.shape == site.usual.shape and site.unknowns == site.usual[0].numel()
        assert (site.like.dtype, len(site.like)) == (x.dtype, 0)
    for name in ("option", "apply", "function", "solve"):
        wanted, given = (inspect.signature(getattr(kind, name)) for kind in (Place, Site))
        assert wanted == given, "what a rule may call takes what is promised"
    assert (conv.name, conv.module.out_channels, conv.box.inequalities) == ("0", 8, 0)
    assert (relu.name, relu.module, relu.args) == ("1", None, ())
    assert (pool.args, pool.kwargs["stride"], pool.option("kernel_size", 0), pool.option("stride", 1)) == (
        (2,),
        2,
        2,
        2,
    )
    assert pool.box.lower.max() == 0 and not pool.box.upper.isfinite().any(), "ReLU is below"
    assert torch.equal(relu.apply(x), relu.function(x)) and relu.solve(Interval.point(relu.usual.relu())).exact.all()


class Sorted(nn.Module):
    """Sorts the rows of an image: one to one only for those who have seen the order."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sort(dim=-1).values


def test_a_rule_of_ones_own_keeps_what_it_sees_on_the_forward_pass() -> None:
    seen: list[tuple[str, torch.Size]] = []

    def order(place: Place, x: Tensor) -> Tensor:
        assert isinstance(place, Place) and isinstance(place.module, Sorted)
        seen.append((place.name, x.shape))
        return x.argsort(dim=-1)

    @rule(Sorted, range=None, keep=order)
    def undo_sorted(place: Place, output: Interval) -> Interval:
        if place.kept is None:
            place.note = "as if it had been sorted before"
            return output
        ranks = place.kept.argsort(dim=-1)
        return output.map(lambda y: y.gather(-1, ranks))

    torch.manual_seed(0)
    model, x = nn.Sequential(nn.LeakyReLU(0.5), Sorted()), torch.randn(2, 3, 8, 8)
    r = invert(model, "1", image=x, steps=0)
    assert torch.allclose(r.image, x) and seen == [("1", x.shape)]
    assert [layer.note for layer in r.layers] == ["", ""]
    blind = invert(model, "1", image=x, steps=0, switches=False)
    assert torch.allclose(blind.image, x.sort(dim=-1).values) and len(seen) == 1, "turned off: nothing is asked for"
    features = model(x)
    alone = invert(model, "1", features=features, input_size=(3, 8, 8), steps=0)
    assert torch.equal(alone.image, blind.image) and len(seen) == 1, "no image: nothing can be kept"
    assert alone.layers[0].note == "as if it had been sorted before"


def test_the_switches_of_max_pooling_are_what_its_rule_keeps(x: Tensor) -> None:
    pool = nn.MaxPool2d(3, 2, 1, return_indices=True)
    wanted = pool(x)[1]
    pool.return_indices = False
    network = Network(nn.Sequential(pool), "0")
    values = network.run(x)
    seen = kept(network, values)
    assert torch.equal(values[network.target], pool(x)) and list(seen) == [network.target]
    assert torch.equal(seen[network.target], wanted)
    (segment,) = segments(network)
    site = Site(segment, x[:0], x, seen[network.target])
    assert site.kept is site.switches is seen[network.target]


@pytest.mark.parametrize("module", ["graph", "site", "inputs", "invert"])
def test_all_but_the_rules_themselves_name_no_rule(module: str) -> None:
    functions = [match.function for match in registry._RULES.values()]
    rules = {function.__name__ for function in functions if function.__module__.startswith("invconv.")}
    assert {"max_pool", "relu", "convolution"} <= rules
    tree = ast.parse(inspect.getsource(importlib.import_module(f"invconv.inversion.{module}")))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {*str(node.module).split("."), *(alias.name for alias in node.names)}
    assert not names & {*rules, "rules", "pooling"}
