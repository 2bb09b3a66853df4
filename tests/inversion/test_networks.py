"""Networks of all kinds: none is refused, what has no exact rule says so, and errors are those of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from undoing import Function

from invconv import InputError
from invconv.inversion import Inversion, invert, layer_names, observe, spread
from invconv.inversion.least_squares import _push, _vjp
from invconv.inversion.trace import reached
from invconv.inversion.wrappers import eager, unwrapped

pytestmark = pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")  # random weights, few steps


def checked(model: nn.Module, layer: str, x: Tensor, **options: Any) -> Inversion:
    """An inversion whose error is held against the model's own."""
    r = invert(model, layer, image=x, **options)
    with observe(model, [layer]) as outputs, torch.no_grad():
        model(r.image)
        again = outputs[layer].reshape(len(x), -1)
        model(x)
        truth = outputs[layer].reshape(len(x), -1)
    assert torch.allclose(r.feature_error, (again - truth).norm(dim=1) / truth.norm(dim=1), rtol=1e-3, atol=1e-6)
    assert r.image.isfinite().all() and r.image.shape == x.shape
    return r


# -- layers without an exact rule ----------------------------------------------------------------------------------


def tokens(module: Any) -> Callable[[Tensor], Any]:
    """A layer for rows of a sequence, given the pixels of an image."""
    return lambda x: module(x.flatten(2).transpose(1, 2))


def holding(module: nn.Module, function: Callable[[Tensor], Any]) -> nn.Module:
    """A function that uses a module."""
    holder = Function(function)
    holder.inner = module
    return holder


def attention(**options: Any) -> nn.Module:
    module = nn.MultiheadAttention(12, 3, batch_first=True)
    return holding(module, tokens(lambda x: module(x, x, x, **options)[0]))


def encoder() -> nn.Module:
    module = nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)
    return holding(module, tokens(module))


def recurrent() -> nn.Module:
    module = nn.LSTM(12, 6, batch_first=True)
    return holding(module, lambda x: tokens(module)(x)[0])


def deformed() -> nn.Module:
    """Its offsets depend on the image."""
    module = torchvision.ops.DeformConv2d(12, 12, 3)
    return holding(module, lambda x: module(x, x.repeat(1, 2, 1, 1)[:, :18, 1:-1, 1:-1] / 3))


def grid(images: Any) -> Any:
    places = 1.8 * torch.rand(1, 9, 9, 2, generator=torch.Generator().manual_seed(0)) - 0.9
    return places.expand(images.shape[0], -1, -1, -1)


WITHOUT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a power mean": (lambda: Function(lambda x: F.lp_pool2d(x, 2, 2)), "no rule"),
    "gated": (lambda: nn.GLU(1), "two unknowns for each equation"),
    "layer norm": (lambda: nn.LayerNorm([12, 8, 8]), "together"),
    "RMS norm": (lambda: nn.RMSNorm([12, 8, 8]), "together"),
    "a norm as a function": (lambda: Function(lambda x: F.rms_norm(x, [8])), "together"),
    "softmax": (lambda: nn.Softmax(1), "together"),
    "log-softmax": (lambda: nn.LogSoftmax(1), "together"),
    "attention": (attention, "together"),
    "attention without weights": (lambda: attention(need_weights=False), "together"),
    "scaled dot products": (lambda: Function(lambda x: F.scaled_dot_product_attention(x, x, x)), "no rule"),
    "an encoder": (encoder, "no rule"),
    "recurrent": (recurrent, "together"),
    "distances": (lambda: Function(lambda x: torch.cdist(x.flatten(2), x[:, :4].flatten(2))), "together"),
    "a warp by itself": (
        lambda: Function(lambda x: F.grid_sample(x, grid(x) + 0.01 * x.mean(), align_corners=False)),
        "together",
    ),
    "a spectrum": (lambda: Function(lambda x: torch.fft.rfft2(x).abs()), "together"),
    "an exponent that moves": (lambda: Function(lambda x: 2.0**x), "numerically"),
    "deformed by itself": (deformed, "together"),
    "what has no derivative": (lambda: Function(lambda x: x.argsort(1).float()), "together"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_what_has_no_exact_rule_is_solved_and_says_so(name: str) -> None:
    torch.manual_seed(0)
    make, remark = WITHOUT[name]
    model, x = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), make()), 2 * torch.rand(2, 3, 8, 8) - 1
    r = checked(model, "1", x, steps=0)
    assert remark in " ".join(report.note for report in r.layers), str(r)
    solved = checked(model, "1", x, steps=10)
    assert name == "what has no derivative" or (solved.feature_error < 0.9).all()


def test_a_warp_by_a_grid_is_linear() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Function(lambda x: F.grid_sample(x, grid(x), align_corners=False)))
    assert checked(model, "1", torch.rand(2, 3, 6, 6), steps=0).feature_error.max() < 1e-4


@pytest.mark.parametrize(
    ("make", "digits"),
    [(attention, 1e-5), (lambda: attention(need_weights=False), 1e-5), (encoder, 1e-5), (recurrent, 2e-3)],
    ids=["attention", "without weights", "an encoder", "recurrent"],
)
def test_derivatives_of_fused_layers(make: Callable[[], nn.Module], digits: float) -> None:
    """Step by step where that has a forward mode, else by differences; and settings of the process come back."""
    torch.manual_seed(0)
    module, (x, v) = make().eval(), torch.randn(2, 2, 12, 4, 4)
    module.requires_grad_(False)
    fast = torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()
    with torch.no_grad():
        y, pull = _vjp(module, x)
        u = torch.randn(y.shape)
        pushed = _push(module, x, v, None)
    assert fast == (torch.backends.mha.get_fastpath_enabled(), torch.backends.cuda.flash_sdp_enabled()) == (True, True)
    exact, size = float((pull(u)[0] * v).sum()), float(pushed.norm() * u.norm())
    assert abs(float((u * pushed).sum()) - exact) < digits * size
    module, x, v = module.double(), x.double(), 1e-5 * v.double()
    with torch.no_grad():
        wanted = (module(x + v) - module(x - v)) / 2e-5
    assert (pushed - wanted).norm() < digits * wanted.norm()


# -- networks ------------------------------------------------------------------------------------------------------


class UNet(nn.Module):
    """Down, up by a transposed convolution, and beside it what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 64, 3, padding=1)
        self.pool, self.act = nn.MaxPool2d(2), nn.Mish()
        self.up, self.last = nn.ConvTranspose2d(64, 16, 2, stride=2), nn.Conv2d(32, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        side = self.act(self.first(x))
        up = self.up(self.act(self.down(self.pool(side))))
        up = F.pad(up, (0, side.shape[3] - up.shape[3], 0, side.shape[2] - up.shape[2]))
        out: Tensor = self.last(torch.cat([side, up], 1))
        return F.interpolate(out, size=x.shape[2:], mode="bilinear")


class Transformer(nn.Module):
    """Patches, a class token, places, an encoder; the class at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.token = nn.Conv2d(3, 48, 4, stride=4), nn.Parameter(torch.zeros(1, 1, 48))
        self.places = nn.Parameter(torch.randn(1, 17, 48) / 10)
        self.norm, self.attend = nn.LayerNorm(48), nn.MultiheadAttention(48, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.RMSNorm(48), nn.Linear(48, 96), nn.GELU(), nn.Linear(96, 48))
        self.head = nn.Linear(48, 40)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patch(x).flatten(2).transpose(1, 2)
        y = torch.cat([self.token.expand(x.shape[0], -1, -1), y], 1) + self.places
        z = self.norm(y)
        y = y + self.attend(z, z, z)[0]
        y = y + self.mlp(y)
        head: Tensor = self.head(y[:, 0])
        return head


@pytest.mark.parametrize("kind", [UNet, Transformer])
def test_each_layer_by_name(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = kind(), 2 * torch.rand(2, 3, 16, 16) - 1
    for layer in layer_names(model):
        if layer.endswith("out_proj"):  # attention takes its weight alone
            continue
        r = invert(model, layer, image=x, steps=0, rounds=2, iterations=5)
        assert r.image.isfinite().all()
    assert checked(model, layer, x, steps=30).feature_error.max() < 0.2


def test_what_lies_below_a_class_token_is_exact() -> None:
    torch.manual_seed(0)
    model: Any = Transformer()
    x = torch.rand(2, 3, 16, 16)
    tokens = nn.Sequential(model)
    model.norm = nn.Identity()  # a layer that gives what the tokens are
    r = invert(tokens, "0.norm", image=x, steps=0)
    assert [report.note for report in r.layers] == [""] * (len(r.layers) - 1) + ["pseudo-inverse"]
    assert torch.allclose(r.image, x, atol=1e-4)


def test_a_layer_that_gives_several_tensors_stands_for_the_first() -> None:
    torch.manual_seed(0)
    model, x = Transformer(), torch.rand(1, 3, 16, 16)
    assert checked(model, "attend", x, steps=20).feature_error.max() < 0.5


def test_windows_that_are_counted_as_images_belong_to_their_image() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(12, 16)

        def forward(self, x: Tensor) -> Tensor:
            y = x.unflatten(3, (4, 4)).unflatten(2, (4, 4)).permute(0, 2, 4, 3, 5, 1).flatten(0, 2).flatten(1, 2)
            mixed: Tensor = self.mix(y)
            return mixed.mean(1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), Windows())
    x = torch.rand(2, 3, 16, 16)
    r = checked(model, "1.mix", x, steps=5)
    assert r.feature_error.shape == (2,) and torch.allclose(r.image, x, atol=1e-3)
    assert checked(model, "1", x, steps=5).feature_error.shape == (2,)


@pytest.mark.parametrize(
    ("name", "layer", "options"),
    [
        ("lraspp_mobilenet_v3_large", "classifier.high_classifier", {"weights_backbone": None}),
        ("deeplabv3_mobilenet_v3_large", "classifier.4", {"weights_backbone": None}),
        ("swin_v2_t", "features.0", {}),
        ("shufflenet_v2_x0_5", "stage3", {}),
    ],
)
def test_networks_of_torchvision(name: str, layer: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None, **options)
    x = torch.rand(1, 3, 64, 64)
    checked(model, layer, x, steps=0, rounds=1, iterations=2)


# -- wrapped -------------------------------------------------------------------------------------------------------


def plain() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.ReLU()), nn.Conv2d(12, 24, 3, padding=1))


def compiled_inside(model: Any) -> nn.Module:
    model[0] = torch.compile(model[0])
    return model  # type: ignore[no-any-return]


def compiled_in_place(model: Any) -> nn.Module:
    model[0].compile()
    model.compile()
    return model  # type: ignore[no-any-return]


def parallel_inside(model: Any) -> nn.Module:
    model[0] = nn.DataParallel(model[0], device_ids=None)
    return model  # type: ignore[no-any-return]


WRAPPED: dict[str, tuple[Callable[[Any], Any], list[str]]] = {
    "data parallel": (nn.DataParallel, ["1", "module.1"]),
    "compiled": (torch.compile, ["1", "_orig_mod.1"]),
    "both": (lambda model: torch.compile(nn.DataParallel(model)), ["0.1", "_orig_mod.module.0.1"]),
    "compiled inside": (compiled_inside, ["1", "0._orig_mod.1"]),
    "compiled in place": (compiled_in_place, ["1", "0.1"]),
    "parallel inside": (parallel_inside, ["1", "0.module.0"]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_models_are_inverted_as_the_module_inside(name: str) -> None:
    wrap, layers = WRAPPED[name]
    x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for layer in layers:
        bare = layer.replace("module.", "").replace("_orig_mod.", "")
        wanted, r = invert(plain(), bare, image=x, steps=3), invert(wrap(plain()), layer, image=x, steps=3)
        assert torch.equal(r.image, wanted.image)
        assert [report.note for report in r.layers] == [report.note for report in wanted.layers]


def test_what_was_compiled_or_spread_is_so_afterwards() -> None:
    model = parallel_inside(compiled_in_place(plain()))
    part: Any = dict(model.named_modules())["0"]
    part.device_ids = [0]

    def compiled() -> list[Any]:
        return [vars(module).get("_compiled_call_impl") for module in model.modules()]

    before = compiled()
    assert any(before)
    with eager(model):
        assert not any(compiled()) and part.device_ids == []
    assert compiled() == before
    assert part.device_ids == [0]


def test_a_module_of_that_name_is_no_wrapper() -> None:
    class Holds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.module(x)  # type: ignore[no-any-return]

    model = Holds()
    assert unwrapped(model) == (model, "")
    assert invert(model, "module", image=torch.rand(1, 1, 6, 6), steps=0).layers[0].kind == "Conv2d"


def test_a_layer_that_no_image_reaches_is_refused() -> None:
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.conv = nn.Linear(2, 1), nn.Conv2d(1, 2, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.table(torch.ones(1, 2))  # type: ignore[no-any-return]

    model, x = Aside(), torch.rand(1, 1, 6, 6)
    with pytest.raises(InputError, match="layer 'table' does not depend on the image"):
        invert(model, "table", image=x)
    assert reached(model, x) == ["conv"]
    assert spread(nn.Sequential(model, nn.ReLU()), among=["0.conv"]) == ["0.conv"]


def test_torchscript_is_solved_through_but_not_looked_into() -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        inner = torch.jit.script(nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU()))
    model, x = nn.Sequential(inner, nn.Conv2d(12, 8, 1)).eval(), torch.rand(1, 3, 8, 8)
    assert checked(model, "1", x, steps=20).feature_error.max() < 0.3
    for layer in ("0", "0.0"):
        with pytest.raises(InputError, match="is TorchScript"):
            invert(model, layer, image=x)


def test_the_layers_that_an_image_reaches() -> None:
    model, x = UNet().eval(), torch.rand(1, 3, 16, 16)
    assert reached(model, x) == ["first", "act", "pool", "down", "up", "last"]
    turning = nn.Sequential(nn.Conv2d(3, 4, 1), Function(lambda y: y if y.sum() > 0 else -y))
    assert reached(turning, x) == ["0", "1"], "of what nothing can look into, all"
