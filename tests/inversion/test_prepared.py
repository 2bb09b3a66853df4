"""Networks that are made ready to be run often give what they gave before, and so do their derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from invconv.inversion.graph import Network
from invconv.inversion.prepared import Prepared


class Function(nn.Module):
    """A convolution as a function, its zeros added before."""

    def __init__(self, zeros: int | tuple[int, int, int, int], bias: bool = True, **options: Any) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d(zeros)
        self.conv = nn.Conv2d(3, 4, 3, bias=bias)
        self.options = options

    def forward(self, x: Tensor) -> Tensor:
        """Only weight and bias of the module are used."""
        return F.conv2d(self.pad(x), self.conv.weight, self.conv.bias, **self.options)


class Twice(nn.Module):
    """What a convolution gives is used again, beside the norm or the activation behind it."""

    def __init__(self, behind: nn.Module) -> None:
        super().__init__()
        self.conv, self.behind = nn.Conv2d(3, 4, 3), behind

    def forward(self, x: Tensor) -> Tensor:
        """A sum of the two."""
        y = self.conv(x)
        return y + self.behind(y)


class Viewed(nn.Module):
    """Code that takes the order of entries in memory for granted."""

    def forward(self, x: Tensor) -> Tensor:
        """One vector for each image."""
        return x.view(x.size(0), -1)


def norm(channels: int = 4, **options: Any) -> nn.BatchNorm2d:
    """A batch norm that has seen something."""
    bn = nn.BatchNorm2d(channels, **options)
    for p in (*bn.parameters(), *bn.buffers()):
        if p.is_floating_point():
            nn.init.uniform_(p, 0.5, 2.0)
    return bn


def hooked() -> nn.Module:
    """A norm that is looked on by a hook, which changes what it gives."""
    bn = norm()
    bn.register_forward_hook(lambda _module, _args, y: 2 * y)
    return bn


CASES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "norm and activation": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(), nn.ReLU6()), 2),
    "no bias": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), norm(affine=False), nn.ReLU()), 2),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, groups=3), norm(6)), 1),
    "two norms": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), norm(), norm()), 1),
    "a norm of its own statistics": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)),
        2,
    ),
    "a norm alone": (lambda: nn.Sequential(norm(3), nn.ReLU(), nn.Conv2d(3, 4, 3)), 3),
    "circular": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), norm()), 2),
    "function": (lambda: nn.Sequential(Function(0, stride=2), norm(), nn.ReLU()), 2),
    "zeros": (lambda: nn.Sequential(Function((1, 1, 2, 2)), norm()), 1),
    "zeros and more": (lambda: nn.Sequential(Function(1, padding=1)), 2),
    "zeros on one side": (lambda: nn.Sequential(Function((0, 1, 0, 1), bias=False), norm()), 2),
    "cropped": (lambda: nn.Sequential(Function(-1)), 2),
    "used twice, norm": (lambda: nn.Sequential(Twice(norm())), 3),
    "used twice, activation": (lambda: nn.Sequential(Twice(nn.ReLU())), 3),
    "hooks": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), hooked()), 2),
    "view": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), Viewed(), nn.Linear(400, 5)), 4),
}
"""Networks, and how many nodes are left to be run."""


def prepared(model: nn.Module, x: Tensor) -> Prepared:
    """The whole of a model, ready for images like `x`."""
    layer = [name for name, _ in model.named_children()][-1]
    network = Network(model.eval().requires_grad_(False), layer, x[:1])
    network.run(x)
    return Prepared(network)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_features_and_derivatives_are_those_of_the_model(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model, x = CASES[name][0]().to(dtype), torch.randn(2, 3, 12, 12, dtype=dtype)
    ready = prepared(model, x)
    assert len(ready.steps) == CASES[name][1]
    x.requires_grad_()
    for _ in range(2):  # nothing is left behind by a run
        y, wanted = ready(x), model(x)
        assert (y - wanted).norm() <= 20 * torch.finfo(dtype).eps * wanted.norm()
        weights = torch.randn_like(wanted)
        ours, theirs = (torch.autograd.grad(v, x, weights)[0] for v in (y, wanted))
        assert (ours - theirs).norm() <= 50 * torch.finfo(dtype).eps * theirs.norm()
