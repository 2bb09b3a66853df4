"""Models that no symbolic trace follows: code that decides by shapes, and images of one and of three dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from invconv import InputError
from invconv.inversion import invert, total_variation
from invconv.inversion.graph import Network


class Shaped(nn.Module):
    """Decides by the size of its input, in place and out of place, with functions, methods, and a loop."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Conv2d(32, 40, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1, 0, 1))
        x = self.act(self.first(1.5 - x))
        while min(x.shape[2:]) > 8:
            x = self.pool(x)
        return self.last(x) / 2


class Turned(nn.Module):
    """Cuts its input into parts, as many as there are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(2, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.chunk(x.shape[1] // 2, dim=1)
        rows = [self.mix(part) for part in parts[: len(parts)]]
        return torch.cat(rows, 1) if x.shape[1] > 2 else rows[0]


class Decides(nn.Module):
    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.decide, self.conv = decide, nn.Conv2d(1, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x if self.decide(x.sum()) else -x)


@pytest.mark.parametrize(("model", "layer", "channels"), [(Shaped(), "pool", 3), (Turned(), "mix", 2)])
@pytest.mark.parametrize("given", ["image", "features"])
def test_code_that_decides_by_shapes_is_inverted(model: nn.Module, layer: str, channels: int, given: str) -> None:
    with pytest.raises((fx.proxy.TraceError, RuntimeError)):
        fx.Tracer().trace(model)
    x = torch.rand(2, channels, 16, 16, generator=torch.Generator().manual_seed(1))
    network = Network(model, layer, x[:1])
    network.run(x)
    features = network.apply(x).detach()
    source: Any = {"image": x} if given == "image" else {"features": features, "input_size": (16, 16)}
    r = invert(model, layer, steps=0, **source)
    if given == "image" or layer == "mix":
        assert torch.allclose(r.image, x, atol=2e-3)
    assert r.layers[0].name == layer


class Reads(nn.Module):
    """Reads the number of images, in every way, beside a decision by the size."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.token = nn.Conv2d(2, 24, 1), nn.Parameter(torch.ones(1, 1, 24))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 6
        batch = x.shape[0]
        y = self.conv(x).reshape(batch * 2, -1).view(x.size(0), 24, -1).transpose(1, 2)
        y = torch.cat([self.token.expand(batch, -1, -1), y, torch.zeros(2 * y.size()[0] // 2, 1, 24)], 1)
        return y.reshape((*y.shape[:1], -1))


@pytest.mark.parametrize("given", ["image", "features"])
def test_the_number_of_images_is_no_constant(given: str) -> None:
    model = nn.Sequential(Reads(), nn.LeakyReLU(0.5))
    x = torch.rand(3, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    with pytest.raises((fx.proxy.TraceError, TypeError)):
        fx.Tracer().trace(model)
    network = Network(model, "1", x[:1])
    network.run(x)
    with torch.no_grad():
        for images in (x, x[:2], x[:1]):
            assert torch.equal(network.apply(images), model(images))
        source: Any = {"image": x} if given == "image" else {"features": model(x), "input_size": (6, 6)}
    r = invert(model, "1", steps=3, **source)
    assert torch.allclose(r.image, x, atol=1e-4), str(r)


def test_what_ran_is_what_is_recorded() -> None:
    model, x = Shaped(), torch.rand(2, 3, 15, 15, generator=torch.Generator().manual_seed(1))
    network = Network(model, "last", x[:1])
    network.run(x)
    assert torch.equal(network.apply(x), 2 * model(x))
    assert [node.op for node in network.nodes].count("call_module") == 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("decide", "name"),
    [(lambda s: s > 0, "__bool__"), (lambda s: s.item() > 0, "item"), (lambda s: float(s) > 0, "__float__")],
)
def test_code_that_decides_by_values_is_solved_as_a_whole(decide: Callable[[Tensor], Any], name: str) -> None:
    torch.manual_seed(0)
    model, x = Decides(decide), torch.rand(2, 1, 8, 8)
    r = invert(model, "conv", image=x, steps=30)
    assert r.feature_error.max() < 0.02
    assert f"Decides is solved as a whole, since it cannot be traced (in Decides, Tensor.{name}" in r.layers[0].note
    both = invert(model, ["conv[0]", "conv[1]"], image=x, steps=0)
    assert [report.kind for report in both.layers] == ["getitem + flatten + cat", "Decides"]
    assert both.feature_error.max() < 0.1
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("given", ["image", "features"])
def test_images_of_other_dimensions_are_inverted(dims: int, given: str) -> None:
    torch.manual_seed(0)
    conv: Any = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    kinds = [nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d]
    model = nn.Sequential(conv(2, 24, 3, padding=1), kinds[dims - 1](24), nn.ReLU(), conv(24, 60, 3, padding=1)).eval()
    size = (20,) if dims == 1 else (5, 6, 7)
    x = torch.rand(2, 2, *size, generator=torch.Generator().manual_seed(1))
    source: Any = {"image": x} if given == "image" else {"features": model(x).detach(), "input_size": size}
    r = invert(model, "3", steps=100, mean=0.0, **source)
    assert r.feature_error.max() < 1e-2
    assert r.image.shape == x.shape
    assert r.image.min() >= 0 and r.image.max() <= 1
    first = invert(model, "2", image=x, steps=0)
    assert torch.allclose(first.image, x, atol=1e-3)


def test_the_sides_asked_for_are_those_of_the_model() -> None:
    with pytest.raises(InputError, match=r"input_size=\(length\).*\(3, 4, 5\)"):
        invert(nn.Sequential(nn.Conv1d(1, 2, 3)), "0", features=torch.zeros(1, 2, 6), input_size=(3, 4, 5))
    with pytest.raises(InputError, match=r"input_size=\(depth, height, width\).*\(8, 8\)"):
        invert(nn.Sequential(nn.Conv3d(1, 2, 3)), "0", features=torch.zeros(1, 2, 6, 6, 6), input_size=(8, 8))
    with pytest.raises(InputError, match=r"image has shape \(1, 4\), expected \(batch, channels, length\) or \(batch"):
        invert(nn.Sequential(nn.Linear(4, 4)), "0", image=torch.zeros(1, 4))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_total_variation_of_a_ramp(dims: int) -> None:
    axes = torch.meshgrid(*(torch.arange(5.0),) * dims, indexing="ij")
    ramp = sum((i + 1) * axis for i, axis in enumerate(axes))
    slope = (sum((i + 1) ** 2 for i in range(dims)) + 1e-4) ** 0.5
    assert torch.allclose(total_variation(torch.as_tensor(ramp)[None, None]), torch.tensor([slope]))
