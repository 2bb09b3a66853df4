"""A class is not taken for what it computes: subclasses, hooks and options against the layer's own forward."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invconv import InputError, InvertibleConv2d
from invconv.inversion import Interval, Inversion, Place, invert, observe, registry, rule


class BatchNormAct2d(nn.BatchNorm2d):
    """Batch norm with an activation behind it, as timm has it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.drop, self.act = nn.Identity(), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        torch._assert(x.ndim == 4, "expected 4D input")
        statistics = (self.running_mean, self.running_var) if not self.training else (None, None)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps)
        return self.act(self.drop(x))


class Untraceable(nn.BatchNorm2d):
    """A forward of its own that torch.fx cannot look into."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x) if float(x.max()) > -1e9 else x


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, self.stride, self.padding)


class Same(nn.Conv2d):
    """Padding by the size of the image."""

    def forward(self, x: Tensor) -> Tensor:
        total = max((-(-x.shape[-1] // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - x.shape[-1], 0)
        pairs = (total // 2, total - total // 2)
        return F.conv2d(F.pad(x, pairs * 2), self.weight, self.bias, self.stride)


class Loud(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Named(nn.ReLU):
    """A subclass that computes the same."""

    def extra_repr(self) -> str:
        return "named"

    def helper(self) -> None:
        """Nothing to do with forward."""


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def normed(kind: Callable[[int], Any]) -> Any:
    norm = kind(12)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return norm


def hooked(module: Any, hook: Callable[..., Any]) -> Any:
    module.register_forward_hook(hook)
    return module


def patched(module: Any) -> Any:
    forward = module.forward
    module.forward = lambda x: 2 * forward(x)
    return module


def inverted(make: Callable[[], nn.Module], steps: int = 0, scale: float = 1.0) -> tuple[Inversion, Tensor]:
    """The inversion of a layer behind a convolution of four times as many channels, and what it should be."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), make()).eval(), scale * (2 * torch.rand(2, 3, 12, 12) - 1)
    r = invert(model, "1", image=x, steps=steps)
    with observe(model, ["1"]) as outputs, torch.no_grad():
        model(r.image.clone())
        again = outputs["1"]
        model(x.clone())
    again, truth = again.reshape(len(x), -1), outputs["1"].reshape(len(x), -1)
    error = (again - truth).norm(dim=1) / truth.norm(dim=1)
    assert torch.allclose(r.feature_error, error, rtol=1e-3, atol=1e-7), "by the model itself"
    return r, x


EXACT: dict[str, Callable[[], nn.Module]] = {
    "batch norm and activation": lambda: normed(BatchNormAct2d),
    "batch norm": lambda: normed(nn.BatchNorm2d),
    "a forward that cannot be traced": lambda: normed(Untraceable),
    "weight standardisation": lambda: Standardised(12, 24, 3, padding=1),
    "same padding": lambda: Same(12, 24, 3),
    "a layer of ours": lambda: InvertibleConv2d(12, 24, 3, padding=1),
    "pruned": lambda: nn.utils.prune.l1_unstructured(nn.Conv2d(12, 24, 3, padding=1), "weight", 0.3),  # type: ignore[no-untyped-call]
    "a subclass that doubles": lambda: Loud(),
    "a subclass that computes the same": lambda: Named(),
    "a forward put on the module": lambda: patched(nn.ReLU()),
    "a forward put on batch norm": lambda: patched(normed(nn.BatchNorm2d)),
    "a hook on batch norm": lambda: hooked(normed(nn.BatchNorm2d), lambda module, args, y: 2 * y),
    "a hook that looks on": lambda: hooked(nn.ReLU(), lambda module, args, y: None),
    "a reciprocal": lambda: Function(lambda x: 1 / (x + 30)),
    "one minus": lambda: Function(lambda x: 1 - x),
    "a quotient": lambda: Function(lambda x: torch.div(x, torch.linspace(1, 2, 12).view(-1, 1, 1))),
    "a multiple added": lambda: Function(lambda x: torch.add(x, 1.0, alpha=3)),
    "a sum in place": lambda: Function(lambda x: operator.iadd(x, 1.0)),
    "a function in place": lambda: Function(F.relu_),
    "a method in place": lambda: Function(lambda x: x.relu_()),
    "cut off from its gradient": lambda: Function(lambda x: F.leaky_relu(x.detach(), 0.1)),
    "no dropout": lambda: Function(lambda x: F.dropout(x, 0.3, training=False)),
    "batch norm as a function": lambda: Function(lambda x: F.batch_norm(x, torch.ones(12), 2 * torch.ones(12))),
    "PReLU as a function": lambda: Function(lambda x: F.prelu(x, torch.tensor([0.2]))),
    "clipped elsewhere": lambda: nn.Hardtanh(-2.0, 10.0),
    "clipped elsewhere, as a function": lambda: Function(lambda x: F.hardtanh(x, min_val=-10.0, max_val=3.0)),
    "softplus with a low threshold": lambda: nn.Softplus(2.0, threshold=1.0),
    "the batch moved": lambda: Function(lambda x: x.permute(2, 0, 1, 3)),
    "the batch merged": lambda: Function(lambda x: x.flatten(0, 1)),
    "instance norm by running statistics": lambda: nn.InstanceNorm2d(12, track_running_stats=True),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_a_layer_computes_is_undone_whatever_its_class(name: str) -> None:
    r, x = inverted(EXACT[name])
    assert r.feature_error.max() < 1e-5 and (r.image - x).norm() < 1e-4 * x.norm(), str(r)
    assert all(layer.residual < 1e-5 for layer in r.layers), str(r)


def test_what_falls_back_says_so() -> None:
    notes = {name: str(inverted(EXACT[name])[0]) for name in EXACT}
    own = "of its own: solved numerically, not by the rule of"
    assert f"Untraceable has a forward {own} BatchNorm2d" in notes["a forward that cannot be traced"]
    assert f"BatchNorm2d has a forward {own} BatchNorm2d" in notes["a forward put on batch norm"]
    assert "(BatchNorm2d)" in notes["a hook on batch norm"]
    assert "its rule left 1.0e+00: solved numerically" in notes["a hook on batch norm"]
    for name in ("batch norm and activation", "a subclass that computes the same", "a hook that looks on"):
        assert "solved numerically" not in notes[name]


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("wrong", [lambda y: 0.5 * y, lambda y: y + 1, lambda y: y * 0], ids=["half", "shift", "zero"])
def test_a_rule_that_is_wrong_does_not_report_that_it_is_right(wrong: Callable[[Tensor], Tensor]) -> None:
    class Softsign(nn.Softsign):
        pass

    @rule(Softsign)
    def undo(place: Place, output: Interval) -> Interval:
        place.note = "mistaken"
        return output.map(wrong)

    r, _ = inverted(Softsign)
    before = r.layers[0].residual
    assert before > 0.05 and r.layers[0].note == "mistaken"

    @rule(Softsign)
    def undo_without_a_word(_place: Place, output: Interval) -> Interval:
        return output.map(wrong)

    r, _ = inverted(Softsign)
    assert "its rule left" in r.layers[0].note and r.layers[0].residual < before
    assert wrong(torch.ones(())) != 0.5 or r.feature_error.max() < 1e-4, "solved instead"


@pytest.mark.parametrize("name", ["a hook on ReLU", "a square"])
@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
def test_what_is_not_found_is_reported_by_its_residual(name: str) -> None:
    make: Any = {
        "a hook on ReLU": lambda: hooked(nn.ReLU(), lambda module, args, y: 2 * y),
        "a square": lambda: Function(lambda x: x * x),
    }
    r, _ = inverted(make[name])
    assert max(layer.residual for layer in r.layers) > 0.3 * float(r.feature_error.mean()), str(r)
    assert inverted(make[name], steps=60)[0].feature_error.max() < 0.4, "the joint solve goes by the model"


@pytest.mark.parametrize("make", [nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU], ids=lambda make: make.__name__)
def test_what_has_reached_its_asymptote_is_an_inequality(make: Callable[[], nn.Module]) -> None:
    r, _ = inverted(make, scale=29.0)
    assert r.image.isfinite().all() and r.feature_error.max() < 1e-2, str(r)
    values = torch.tensor([[-400.0, -200.0, 200.0, 400.0]]).view(1, 1, 2, 2)
    model = nn.Sequential(make())
    r = invert(model, "0", features=model(values).detach(), input_size=(1, 2, 2), steps=0)
    assert r.image.isfinite().all() and r.layers[0].residual < 1e-5


def test_a_range_may_depend_on_options() -> None:
    """A box of -1 to 1, which is that of other options, would cut the input off."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.Hardtanh(-20.0, 20.0), nn.Conv2d(12, 24, 3, padding=1))
    x = 10 * torch.rand(1, 3, 8, 8)
    r = invert(model, "2", image=x, steps=0)
    assert (r.image - x).norm() < 1e-4 * x.norm()


class PreActivated(nn.Module):
    """A residual block whose first layer changes what is added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.relu, self.conv = nn.ReLU(inplace=True), nn.Conv2d(12, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.relu(x)) + x


class StaysInTraining(nn.BatchNorm2d):
    def train(self, mode: bool = True) -> StaysInTraining:
        return super().train(True)


class AlwaysDrops(nn.Dropout):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.p, training=True)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in place, and used again": (PreActivated, "other features of '1' than its traced graph.*inplace=False"),
    "dropout that is on": (lambda: AlwaysDrops(0.5), "other features of '1'.*at random"),
    "a function that drops": (lambda: Function(lambda x: F.dropout(x, 0.3)), "other features of '1'.*at random"),
    "training mode for ever": (lambda: StaysInTraining(12), r"1 \(StaysInTraining\) stays in training mode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_told_is_refused_and_left_as_it_was(name: str) -> None:
    make, text = REFUSED[name]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), make())
    state = {key: value.clone() for key, value in model.state_dict().items()}
    x = 2 * torch.rand(2, 3, 12, 12) - 1
    with pytest.raises(InputError, match=text):
        invert(model, "1", image=x, steps=0)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    features = torch.zeros(2, 12, 12, 12)
    with pytest.raises(InputError, match=text):
        invert(model, "1", features=features, input_size=(12, 12), steps=0)


@pytest.mark.parametrize(
    ("module", "kind", "method"),
    [
        (BatchNormAct2d(4), nn.BatchNorm2d, "forward"),
        (Loud(), nn.ReLU, "forward"),
        (Named(), nn.ReLU, ""),
        (patched(nn.ReLU()), nn.ReLU, "forward"),
        (type("Inner", (nn.Conv2d,), {"_conv_forward": lambda _, x, w, b: x})(2, 2, 1), nn.Conv2d, "_conv_forward"),
        (type("Called", (nn.Tanh,), {"__call__": lambda _, x: x})(), nn.Tanh, "__call__"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 2, 1)), nn.Conv2d, ""),
        (nn.SyncBatchNorm(2), nn.SyncBatchNorm, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)
def test_a_rule_is_that_of_a_class_that_computes_the_same(module: nn.Module, kind: Any, method: str) -> None:
    nearest = registry.base(module)
    assert nearest is not None and nearest is kind
    assert registry.changed(module, nearest) == method
    assert (registry.find(module) is None) == bool(method)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "mode", [dict(padding=1), dict(stride=2, padding="valid"), dict(padding="same", groups=3)], ids=str
)
def test_a_convolution_as_a_function_takes_the_pseudo_inverse(mode: dict[str, Any], bias: bool) -> None:
    torch.manual_seed(0)
    weight, shift = torch.randn(12, 3 // mode.get("groups", 1), 3, 3), torch.randn(12) if bias else None
    model, x = nn.Sequential(Function(lambda x: F.conv2d(x, weight, shift, **mode))), torch.rand(2, 3, 9, 9)
    r = invert(model, "0", image=x, steps=0)
    assert r.layers[0].note.startswith("pseudo-inverse") and r.feature_error.max() < 1e-5
    assert "stride" in mode or (r.image - x).norm() < 1e-4 * x.norm()


ARGUMENTS: dict[str, list[Any]] = {
    "steps": [-1, 1.5, True, "3", None],
    "rounds": [-1, 2.0],
    "iterations": [-1, "all"],
    "prior_weight": [-0.1, float("nan"), float("inf"), "1", True, None],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in ARGUMENTS.items() for v in values], ids=str)
def test_arguments_are_checked_before_anything_is_run(name: str, value: Any) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("was run")

    model = nn.Sequential(nn.Conv2d(3, 12, 3))
    model.register_forward_pre_hook(fail)
    with pytest.raises(InputError, match=f"^{name} must be"):
        invert(model, "0", image=torch.rand(1, 3, 8, 8), **{name: value})


def test_a_class_without_a_forward_stands_for_its_subclasses() -> None:
    class Abstract(nn.Module):
        pass

    class Concrete(Abstract):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    @rule(Abstract)
    def undo(_place: Place, output: Interval) -> Interval:
        return output.map(lambda y: y / 2)

    match = registry.find(Concrete())
    assert match is not None and match.function is undo
