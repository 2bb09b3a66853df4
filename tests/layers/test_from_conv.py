"""A plain convolution made invertible: what it computes decides, not its class; what computes another is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tables import LAYERS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

from invconv import InputError, InvertibleConv2d
from invconv.parametrizations import bounded

PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class Standardised(nn.Conv2d):
    """Weight standardisation, as Big Transfer has it."""

    def forward(self, x: Tensor) -> Tensor:
        mean, std = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / std, self.bias)


class StandardisedByBatchNorm(nn.Conv2d):
    """The same in the way of timm's StdConv2d."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True, momentum=0.0)
        weight = weight.reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Same(nn.Conv2d):
    """Padding as TensorFlow has it: the number of outputs is that of inputs by the stride, more on the right."""

    def forward(self, x: Tensor) -> Tensor:
        pairs: list[int] = []
        for n, k, s in zip(x.shape[2:], self.kernel_size, self.stride, strict=True):
            total = max((-(-n // s) - 1) * s + k - n, 0)
            pairs = [total // 2, total - total // 2, *pairs]
        return F.conv2d(F.pad(x, pairs), self.weight, self.bias, self.stride)


class Gated(nn.Conv2d):
    """A second kernel that is zero at first, as low-rank adapters have it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.more = nn.Parameter(torch.zeros_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight + self.more, self.bias)


class NoisyInTraining(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y + torch.randn_like(y) if self.training else y


class Inner(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, 2 * weight, bias)


class Clipped(nn.Conv2d):
    """What it was given for small images only."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).clamp(-50, 50)


class Styled(nn.Conv2d):
    def forward(self, x: Tensor, style: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * style


class Activated(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Spelt(nn.Conv2d):
    """A forward of its own that does what the class does."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Helped(nn.Conv2d):
    def helper(self) -> None:
        """Nothing to do with forward."""


def replaced(conv: Any, function: Callable[[Tensor], Tensor]) -> Any:
    conv.forward = function
    return conv


def hooked(conv: Any, hook: Callable[..., Any], before: bool = False) -> Any:
    (conv.register_forward_pre_hook if before else conv.register_forward_hook)(hook)
    return conv


def conv(kind: type = nn.Conv2d, **arguments: Any) -> Any:
    torch.manual_seed(1)
    return kind(4, 4, 3, **{"padding": 1, **arguments})


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "weight standardisation": (lambda: conv(Standardised), "Standardised, which has a forward of its own.*eval mode"),
    "the same by batch norm": (lambda: conv(StandardisedByBatchNorm), "relative difference"),
    "same padding": (lambda: conv(Same, padding=0), r"\(3, 4, 4, 5\) in place of \(3, 4, 2, 3\)"),
    "same padding and a stride": (lambda: conv(Same, stride=2), "Same.*relative difference"),
    "a gate that is closed": (lambda: conv(Gated), "Gated.*relative difference"),
    "noise in training": (lambda: conv(NoisyInTraining).eval(), "training mode"),
    "an inner method": (lambda: conv(Inner), r"Inner.*relative difference 1\.0e\+00"),
    "large values only": (lambda: conv(Clipped), "Clipped"),
    "another argument": (lambda: conv(Styled), "missing 1 required positional argument: 'style'"),
    "weights of NaN": (lambda: _set_weight(conv(Standardised), float("nan")), "Standardised.*relative difference"),
    "weights without a limit": (lambda: _set_weight(conv(Gated), float("inf")), "Gated.*relative difference"),
    "an activation": (lambda: conv(Activated), "Activated"),
    "a layer of ours": (lambda: conv(type("Mine", (InvertibleConv2d,), {"forward": lambda _, x: x + 1})), "Mine"),
    "parametrized, and a forward": (lambda: parametrizations.weight_norm(conv(Standardised)), "Standardised"),
    "a forward put on the module": (lambda: replaced(conv(), lambda x: 2 * x), "Conv2d, which has a forward"),
    "a hook": (lambda: hooked(conv(), lambda module, args, y: 2 * y), "Conv2d with its hooks.*relative difference"),
    "a hook before": (lambda: hooked(conv(), lambda module, args: (2 * args[0],), True), "Conv2d with its hooks"),
    "a stale padding": (lambda: _set(conv(padding_mode="reflect"), padding=(2, 2)), "with what was changed in it"),
    "the meta device": (lambda: conv(Standardised, device="meta"), "meta device: load its weights first"),
    "no weight yet": (lambda: nn.LazyConv2d(2, 1), "LazyConv2d, which has no weight yet: run it on an image"),
    "complex numbers": (lambda: conv(dtype=torch.complex64), "floating point, got torch.complex64"),
    "no parameter": (lambda: _plain_weight(conv()), "takes a weight that is a parameter, got Tensor"),
    "another dimension": (lambda: nn.Conv1d(2, 2, 1), r"takes a torch\.nn\.Conv2d, got Conv1d"),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 1), r"takes a torch\.nn\.Conv2d, got ConvTranspose2d"),
}


def _set(module: Any, **values: Any) -> Any:
    for name, value in values.items():
        setattr(module, name, value)
    return module


def _set_weight(module: Any, value: float) -> Any:
    with torch.no_grad():
        module.weight[:, 0, 0, 0] = value
    return module


def _plain_weight(module: Any) -> Any:
    weight = module.weight.data
    del module.weight
    module.weight = weight
    return module


@pytest.mark.parametrize("name", REFUSED)
def test_what_computes_something_else_is_refused_and_left_as_it_was(name: str) -> None:
    make, text = REFUSED[name]
    module = make()
    state, mode, generator = _copied(module), module.training, torch.get_rng_state()
    with pytest.raises(InputError, match=text):
        InvertibleConv2d.from_conv(module)
    _assert_untouched(module, state, mode, generator)


def test_a_fake_quantised_convolution_is_refused_and_left_as_it_was() -> None:
    qat = pytest.importorskip("torch.ao.nn.qat")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = qat.Conv2d(4, 4, 3, qconfig=torch.ao.quantization.get_default_qat_qconfig())
    state, generator = _copied(module), torch.get_rng_state()
    with pytest.raises(InputError, match="Conv2d, which has a forward of its own"):
        InvertibleConv2d.from_conv(module)
    _assert_untouched(module, state, True, generator)


def _copied(module: Any) -> dict[str, Tensor]:
    lazy = isinstance(module, nn.LazyConv2d)
    return {} if lazy else {name: value.clone() for name, value in module.state_dict().items()}


def _assert_untouched(module: Any, state: dict[str, Tensor], mode: bool, generator: Tensor) -> None:
    assert module.training == mode and torch.equal(torch.get_rng_state(), generator)
    for name, value in state.items():
        assert value.is_meta or torch.allclose(module.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert all(value.dtype != torch.float64 for value in vars(module).values() if isinstance(value, Tensor))


TAKEN: dict[str, Callable[[], Any]] = {
    "a forward that is the same": lambda: conv(Spelt),
    "a subclass without a forward": lambda: conv(Helped),
    "same padding without a stride": lambda: conv(Same),
    "a hook that looks on": lambda: hooked(conv(), lambda module, args, y: None),
    "a lazy one that has its weight": lambda: _run(nn.LazyConv2d(4, 3, padding=1)),
    "circular": lambda: conv(padding_mode="circular"),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "orthogonal": lambda: parametrizations.orthogonal(conv()),
    "bounded": lambda: bounded(conv(InvertibleConv2d)),
    "a layer of ours": lambda: conv(InvertibleConv2d, padding_mode="circular"),
    "the older weight norm": lambda: _older(nn.utils.weight_norm),
    "the older spectral norm": lambda: _older(nn.utils.spectral_norm),
    "pruned": lambda: prune.l1_unstructured(conv(), "weight", 0.3),
    "pruned twice, the bias too": lambda: prune.l1_unstructured(
        prune.random_unstructured(prune.l1_unstructured(conv(), "weight", 0.3), "weight", 0.2), "bias", 0.5
    ),
    "pruned for good": lambda: prune.remove(prune.l1_unstructured(conv(), "weight", 0.3), "weight"),
}


def _run(module: Any) -> Any:
    module(torch.randn(1, 4, 5, 5))
    return module


def _older(norm: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return norm(conv())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", TAKEN)
def test_what_computes_the_same_is_taken_and_shares_its_parameters(name: str, training: bool) -> None:
    module = TAKEN[name]().train(training)
    state, generator = _copied(module), torch.get_rng_state()
    ours = InvertibleConv2d.from_conv(module)
    _assert_untouched(module, state, training, generator)
    assert ours.training == training
    assert {n: id(p) for n, p in ours.named_parameters()} == {n: id(p) for n, p in module.named_parameters()}
    assert set(ours.state_dict()) == set(module.state_dict())
    module.eval(), ours.eval()
    x = torch.randn(2, 4, 6, 7)
    for _ in range(2):  # as it is, and after a step
        assert torch.equal(ours(x), module(x))
        dense = ours.operator((6, 7))
        assert torch.allclose(dense.forward(x), module(x) - module.bias.view(-1, 1, 1), atol=1e-5)
        assert torch.equal(dense.source, module.weight)
        for p in module.parameters():
            p.data.add_(0.05 * torch.randn_like(p))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_forward_is_compared_in_all_dimensions(dims: int, stride: int) -> None:
    plain = PLAIN[dims]

    def scaled(self: Any, x: Tensor) -> Tensor:
        return (1 + 1e-6) * plain.forward(self, x)

    def same(self: Any, x: Tensor) -> Tensor:
        return plain.forward(self, x)

    for mode in ("zeros", "circular", "reflect", "replicate"):
        arguments: Any = dict(stride=stride, padding=2, dilation=2, groups=2, padding_mode=mode)
        taken = type("Spelt", (plain,), {"forward": same})(2, 4, 3, **arguments)
        assert LAYERS[dims].from_conv(taken).weight is taken.weight
        with pytest.raises(InputError, match=r"relative difference 1\.\de-06"):
            LAYERS[dims].from_conv(type("Scaled", (plain,), {"forward": scaled})(2, 4, 3, **arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_forward_is_compared_in_every_precision(dtype: torch.dtype) -> None:
    taken = conv(Spelt, dtype=dtype)
    assert InvertibleConv2d.from_conv(taken).weight is taken.weight
    with pytest.raises(InputError, match="Standardised"):
        InvertibleConv2d.from_conv(conv(Standardised, dtype=dtype))


def test_the_hooks_of_a_module_see_nothing_where_they_need_not_be_compared_and_may_not_fail() -> None:
    class Fails(Exception):
        pass

    def fail(*_: object) -> None:
        raise Fails("from a hook")

    with pytest.raises(InputError, match="Fails: from a hook"):
        InvertibleConv2d.from_conv(hooked(conv(), fail))
    backward = conv()
    backward.register_full_backward_hook(fail)
    InvertibleConv2d.from_conv(backward)


def test_a_copy_of_what_was_taken_stands_alone() -> None:
    module = parametrizations.weight_norm(conv())
    twin = copy.deepcopy(InvertibleConv2d.from_conv(module, damping=0.1))
    x = torch.randn(1, 4, 5, 5)
    before = twin(x)
    module.parametrizations.weight.original0.data.mul_(2)
    assert torch.equal(twin(x), before) and twin.damping == 0.1


@pytest.mark.parametrize("keyword", ["dampng", "stride", "slover"])
def test_a_keyword_that_does_not_exist_is_named_with_the_function(keyword: str) -> None:
    with pytest.raises(TypeError, match=rf"InvertibleConv2d\.from_conv\(\) got an unexpected keyword.*'{keyword}'"):
        InvertibleConv2d.from_conv(conv(), **{keyword: 1})
