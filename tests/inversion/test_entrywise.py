"""Rules of functions that work entry by entry, as modules, functions and methods: inverses, and inequalities."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from undoing import Function, site_of, undo, undo_all

from invconv.inversion import Interval
from invconv.inversion.graph import Network
from invconv.inversion.site import bounds

Make = Callable[[], nn.Module]


@pytest.fixture
def x() -> Tensor:
    return 2 * torch.randn(3, 4, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def as_function(function: Callable[[Tensor], Tensor]) -> Make:
    return lambda: Function(function)


def slopes(*values: float) -> nn.PReLU:
    module = nn.PReLU(4).double()
    module.weight.data.copy_(torch.tensor(values))
    return module


ONE_TO_ONE: dict[str, Make] = {
    "SELU": nn.SELU,
    "SELU as a function": as_function(F.selu),
    "CELU": lambda: nn.CELU(0.7),
    "CELU of a negative alpha": lambda: nn.CELU(-2.0),
    "softsign": nn.Softsign,
    "log sigmoid": nn.LogSigmoid,
    "softplus upside down": lambda: nn.Softplus(-1.0),
    "tanhshrink": nn.Tanhshrink,
    "RReLU": nn.RReLU,
    "RReLU as a function": as_function(lambda x: F.rrelu(x, 0.2, 0.4)),
    "exp": as_function(torch.exp),
    "expm1 and back": as_function(lambda x: x.expm1()),
    "log1p": as_function(lambda x: torch.log1p(x.exp())),
    "a reciprocal root": as_function(lambda x: x.exp().rsqrt()),
    "a reciprocal": as_function(lambda x: x.exp().reciprocal()),
    "log of exp": as_function(lambda x: x.exp().log()),
    "a cube": as_function(lambda x: x**3),
    "a cube as a method": as_function(lambda x: x.pow(3.0)),
    "a root of what is positive": as_function(lambda x: x.exp().sqrt()),
    "a square of what is positive": as_function(lambda x: torch.square(x.exp())),
    "an even power of what is positive": as_function(lambda x: x.sigmoid() ** 4),
    "a falling power": as_function(lambda x: x.exp() ** -1.5),
    "a reciprocal power": as_function(lambda x: x.exp() ** -1),
    "an absolute value of what is positive": as_function(lambda x: abs(x.exp())),
}


@pytest.mark.parametrize("name", ONE_TO_ONE)
def test_one_to_one_functions_are_undone_exactly(name: str, x: Tensor) -> None:
    x_hat = undo_all(ONE_TO_ONE[name](), x)
    assert x_hat.exact.all()
    flat = 1e-4 if name == "tanhshrink" else 1e-9  # a cube at zero, of which rounding leaves a third of the digits
    assert (x_hat.lower - x).abs().max() < flat


WITH_LOSS: dict[str, tuple[Make, Callable[[Tensor], Tensor]]] = {
    "Mish": (nn.Mish, lambda x: x > 0.01),
    "hardshrink": (lambda: nn.Hardshrink(0.7), lambda x: x.abs() > 0.7),
    "hardshrink of a negative width": (lambda: nn.Hardshrink(-1.0), lambda x: x == x),
    "softshrink": (lambda: nn.Softshrink(0.7), lambda x: x.abs() > 0.7),
    "threshold": (lambda: nn.Threshold(0.5, -3.0), lambda x: x > 0.5),
    "threshold to a value above it": (lambda: nn.Threshold(0.5, 1.0), lambda x: (x > 0.5) & (x != 1.0)),
    "leaky ReLU without a slope": (lambda: nn.LeakyReLU(0.0), lambda x: x > 0),
    "PReLU of slopes of all signs": (lambda: slopes(0.3, 0.0, -0.5, -2.0), lambda x: (x > 0) & below(x, 2)),
    "ELU without an alpha": (lambda: nn.ELU(0.0), lambda x: x > 0),
    "ELU turned up": (lambda: nn.ELU(-1.0), lambda x: x == 100),
    "clamp": (as_function(lambda x: x.clamp(-0.5, 0.8)), lambda x: (x > -0.5) & (x < 0.8)),
    "clamp by names": (as_function(lambda x: torch.clamp(x, max=0.8)), lambda x: x < 0.8),
    "clip from below": (as_function(lambda x: x.clip(min=0.8)), lambda x: x > 0.8),
    "clamp by tensors": (
        as_function(lambda x: x.clamp(-torch.ones(6, dtype=x.dtype), torch.ones(6, dtype=x.dtype))),
        lambda x: x.abs() < 1,
    ),
    "clamp_min": (as_function(lambda x: x.clamp_min(0.3)), lambda x: x > 0.3),
    "clamp_max": (as_function(lambda x: x.clamp_max(max=0.3)), lambda x: x < 0.3),
    "an absolute value": (as_function(torch.abs), lambda x: x == 100),
    "a square": (as_function(lambda x: x**2), lambda x: x == 100),
    "a root": (as_function(lambda x: x.clamp(min=0).sqrt()), lambda x: x > 0),
}


def below(x: Tensor, channels: int) -> Tensor:
    """Which entries lie in the first channels."""
    return (torch.arange(x.shape[1]) < channels).view(1, -1, 1, 1).expand_as(x)


@pytest.mark.parametrize("name", WITH_LOSS)
def test_intervals_hold_the_input_and_are_points_where_nothing_is_lost(name: str, x: Tensor) -> None:
    make, kept = WITH_LOSS[name]
    x_hat = undo_all(make(), x.clone())
    assert x_hat.excess(x).abs().max() < 1e-3
    assert x_hat.excess(x)[x > -4].abs().max() < 1e-6
    width = (x_hat.upper - x_hat.lower)[kept(x)]
    assert not width.numel() or width.max() < 1e-6
    assert not kept(x).all() or x_hat.exact.all()
    assert x_hat.upper.isfinite().any(), "something is known"


@pytest.mark.parametrize(
    ("module", "lower", "upper"),
    [
        (nn.Hardshrink(0.5), -0.5, 0.5),
        (nn.Softshrink(0.5), -0.5, 0.5),
        (nn.Threshold(0.5, -3.0), float("-inf"), 0.5),
        (nn.Threshold(0.5, 1.0), float("-inf"), 1.0),
    ],
    ids=str,
)
def test_what_is_cut_off_lies_within_these_bounds(module: nn.Module, lower: float, upper: float) -> None:
    x_hat = undo(module, torch.full((1, 1, 2, 2), 0.25))
    assert (x_hat.lower == lower).all() and (x_hat.upper == upper).all()


@pytest.mark.parametrize(
    ("module", "lower", "upper"),
    [
        (nn.LeakyReLU(0.1), -torch.inf, torch.inf),
        (nn.LeakyReLU(-0.1), 0.0, torch.inf),
        (slopes(-0.5, 0.0, -1.0, -2.0), 0.0, torch.inf),
        (slopes(-0.5, 0.0, 1.0, -2.0), -torch.inf, torch.inf),
        (nn.ELU(0.7), -0.7, torch.inf),
        (nn.ELU(-0.7), 0.0, torch.inf),
        (nn.CELU(0.7), -0.7, torch.inf),
        (nn.CELU(-0.7), -torch.inf, torch.inf),
        (nn.Softplus(-1.0), -torch.inf, 0.0),
        (Function(lambda x: x.clamp(-0.25, 2.0)), -0.25, 2.0),
        (Function(lambda x: x.clamp(max=2.0)), -torch.inf, 2.0),
        (Function(lambda x: x**2), 0.0, torch.inf),
        (Function(lambda x: x**3), -torch.inf, torch.inf),
        (Function(lambda x: x.roll(1, 2)), -torch.inf, torch.inf),
    ],
    ids=str,
)
def test_what_a_layer_can_give_is_known_to_the_one_above(
    module: nn.Module, lower: float, upper: float, x: Tensor
) -> None:
    network = Network(nn.Sequential(module.double(), nn.Identity()), "1")
    network.run(x)
    low, high = bounds(network, network.target)
    y = module(x)
    assert (low, high) == (lower, upper)
    assert low <= y.min() and y.max() <= high


def test_a_function_that_falls_leaves_both_sides_open() -> None:
    x_hat = undo(nn.PReLU(init=-0.5), torch.tensor([[[[3.0, -4.0]]]]))
    assert torch.allclose(x_hat.lower, torch.tensor([-6.0, -4.0])) and torch.allclose(
        x_hat.upper, torch.tensor([3.0, 2.0])
    )
    folded = undo(Function(torch.abs), torch.tensor([[[[3.0, -4.0]]]]))
    assert torch.equal(folded.lower, -folded.upper) and folded.upper.flatten().tolist() == [3, 4]


def test_inequalities_pass_through_jumps() -> None:
    """Of what is known to lie between two values, no input that gives one of them is shut out."""
    values = torch.linspace(-3, 3, 241, dtype=torch.float64)
    modules = [
        nn.Hardshrink(0.7),
        nn.Softshrink(0.7),
        nn.Threshold(0.5, -1.0),
        nn.Threshold(0.5, 1.0),
        slopes(-0.5, 0, 1, 2),
    ]
    for module in modules:
        x = values.view(1, 1, -1, 1).expand(1, 4, -1, 1).contiguous()
        with torch.no_grad():
            site, y = site_of(module, x)
            for low, high in ((-2.0, -0.5), (-0.5, 0.0), (0.0, 0.6), (-0.3, 0.3), (0.4, 1.0), (1.0, 2.0)):
                output = Interval.between(low, high, y)
                x_hat = site.segment.rule.function(site, output)  # type: ignore[union-attr]
                inside = (y >= low) & (y <= high)
                assert not x_hat.excess(x)[inside].any(), (module, low, high)
