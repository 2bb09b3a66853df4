"""The layers that plans are held to: of every route, everyday ones and those at its edge."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from invconv import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d

LAYERS = {1: InvertibleConv1d, 2: InvertibleConv2d, 3: InvertibleConv3d}
Kernel = Callable[[Tensor], Tensor]


def near_identity(weight: Tensor) -> Tensor:
    """Noise of singular values about a third around the identity."""
    identity = torch.nn.init.dirac_(torch.empty_like(weight))
    return identity + torch.randn_like(weight) / math.sqrt(9 * weight[0].numel())


def random(weight: Tensor) -> Tensor:
    """Normal taps, as of a layer that nobody has conditioned."""
    return torch.randn_like(weight) / math.sqrt(weight[0].numel())


def default(weight: Tensor) -> Tensor:
    """As PyTorch initialises a layer."""
    return weight


def blur(line: Tensor) -> Kernel:
    """An outer product of a line of taps, of sum one."""
    line = line / line.sum()
    return lambda weight: torch.einsum("u,v->uv", line, line).expand_as(weight).clone()


def box(weight: Tensor) -> Tensor:
    """Equal taps of sum one."""
    return torch.full_like(weight, 1 / math.prod(weight.shape[1:]))


def gauss(sigma: float, taps: int) -> Kernel:
    """A Gaussian."""
    return blur((-0.5 * ((torch.arange(taps) - taps // 2) / sigma) ** 2).exp())


def disk(weight: Tensor) -> Tensor:
    """A lens out of focus."""
    places = torch.stack(torch.meshgrid(*(torch.arange(k) - k // 2 for k in weight.shape[2:]), indexing="ij"))
    inside = (places.double().norm(dim=0) <= weight.shape[-1] // 2 + 0.3).to(weight)
    return (inside / inside.sum()).expand_as(weight).clone()


def diagonal(weight: Tensor) -> Tensor:
    """A motion along the diagonal."""
    return (torch.eye(weight.shape[-1]) / weight.shape[-1]).expand_as(weight).clone()


@dataclass(frozen=True)
class Layer:
    """One layer on images of one size."""

    channels: tuple[int, int]
    kernel: int
    size: tuple[int, ...]
    weight: Kernel = near_identity
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, **more: Any) -> Any:
        """The layer, in float32 unless its options say otherwise."""
        torch.manual_seed(0)
        options = {"padding": self.kernel // 2, "bias": False, **self.options, **more}
        conv = LAYERS[len(self.size)](*self.channels, self.kernel, **options)
        with torch.no_grad():
            conv.weight.copy_(self.weight(conv.weight.detach().clone()))
        return conv


def _circular(c: int, n: int, k: int = 3, outs: int = 0, **options: Any) -> Layer:
    return Layer((c, outs or c), k, (n, n), default if outs else near_identity, {"padding_mode": "circular", **options})


EVERYDAY = {
    **{f"zeros c={c} {n}": Layer((c, c), 3, (n, n)) for c, n in [(3, 16), (3, 64), (12, 16), (12, 48), (32, 32)]},
    **{f"zeros c={c} {n}": Layer((c, c), 3, (n, n)) for c, n in [(48, 8), (64, 4), (64, 64), (3, 256), (1, 512)]},
    **{f"circular c={c} {n}": _circular(c, n) for c, n in [(3, 32), (12, 16), (64, 32), (256, 16), (3, 512)]},
    "reflect c=12 32": Layer((12, 12), 3, (32, 32), options={"padding_mode": "reflect"}),
    "replicate c=3 96": Layer((3, 3), 3, (96, 96), options={"padding_mode": "replicate"}),
    "random c=3 32": Layer((3, 3), 3, (32, 32), random),
    "random c=3 48": Layer((3, 3), 3, (48, 48), random),
    "random c=3 64": Layer((3, 3), 3, (64, 64), random),
    "random c=12 16": Layer((12, 12), 3, (16, 16), random),
    "random c=12 32": Layer((12, 12), 3, (32, 32), random),
    "float64 c=3 48": Layer((3, 3), 3, (48, 48), options={"dtype": torch.float64}),
    "damped c=3 48": Layer((3, 3), 3, (48, 48), options={"damping": 1e-2}),
    "damped c=8 24": Layer((8, 8), 3, (24, 24), random, {"damping": 1e-3}),
    "damped reflect c=3 48": Layer((3, 3), 3, (48, 48), options={"damping": 1e-2, "padding_mode": "reflect"}),
    "damped reflect c=1 128": Layer((1, 1), 5, (128, 128), random, {"damping": 1e-2, "padding_mode": "reflect"}),
}

TALL_AND_WIDE = {
    "tall 3 to 64, 16": Layer((3, 64), 3, (16, 16), default),
    "tall 3 to 64, 48": Layer((3, 64), 3, (48, 48), default),
    "tall 3 to 64, 128": Layer((3, 64), 3, (128, 128), default),
    "tall 3 to 12, 32": Layer((3, 12), 3, (32, 32), default),
    "tall 3 to 12, stride 2, 32": Layer((3, 12), 4, (32, 32), default, {"stride": 2, "padding": 1}),
    "stem 64": Layer((3, 64), 7, (64, 64), default, {"stride": 2}),
    "stem 128": Layer((3, 64), 7, (128, 128), default, {"stride": 2}),
    "audio encoder 4000": Layer((1, 512), 16, (4000,), default, {"stride": 8, "padding": 0}),
    "audio encoder 16000": Layer((1, 512), 16, (16000,), default, {"stride": 8, "padding": 0}),
    "audio 64 of 32, 8000": Layer((1, 64), 32, (8000,), default, {"stride": 4}),
    "patches 3 to 96, 64": Layer((3, 96), 4, (64, 64), default, {"stride": 4, "padding": 0}),
    "wide 64 to 3, 32": Layer((64, 3), 3, (32, 32), default),
    "wide 64 to 16, 32": Layer((64, 16), 3, (32, 32), default),
    "wide 32 to 16, 32": Layer((32, 16), 3, (32, 32), default),
    "wide 64 to 32, stride 2, 32": Layer((64, 32), 3, (32, 32), default, {"stride": 2}),
    "wide reflect 16 to 8, 32": Layer((16, 8), 3, (32, 32), default, {"padding_mode": "reflect"}),
    "tall reflect 4 to 8, 32": Layer((4, 8), 3, (32, 32), default, {"padding_mode": "reflect"}),
    "tall circular 3 to 64, 64": _circular(3, 64, outs=64),
    "wide circular 64 to 16, 32": _circular(64, 32, outs=16),
    "damped tall 3 to 16, 32": Layer((3, 16), 3, (32, 32), default, {"damping": 1e-2}),
    "damped wide 32 to 16, 24": Layer((32, 16), 3, (24, 24), default, {"damping": 1e-2}),
    "depthwise 32, 64": Layer((32, 32), 3, (64, 64), default, {"groups": 32}),
    "groups 4 of 64, 16": Layer((64, 64), 3, (16, 16), near_identity, {"groups": 1}),
}

BLURS = {
    **{f"box {k}, {n}": Layer((1, 1), k, (n, n), box) for k, n in [(5, 47), (5, 128), (9, 128), (5, 256), (5, 512)]},
    **{f"box {k}, {n}": Layer((1, 1), k, (n, n), box) for k, n in [(11, 44), (40, 40)]},
    "gauss 15, 128": Layer((1, 1), 15, (128, 128), gauss(2.5, 15)),
    "gauss 5, 64": Layer((1, 1), 5, (64, 64), gauss(0.8, 5)),
    "disk 9, 64": Layer((1, 1), 9, (64, 64), disk),
    "disk 9, 128": Layer((1, 1), 9, (128, 128), disk),
    "diagonal 15, 128": Layer((1, 1), 15, (128, 128), diagonal),
    "damped box 5, 128": Layer((1, 1), 5, (128, 128), box, {"damping": 1e-3}),
    "damped disk 9, 128": Layer((1, 1), 9, (128, 128), disk, {"damping": 1e-3}),
    "damped disk 9 reflect, 128": Layer((1, 1), 9, (128, 128), disk, {"damping": 1e-3, "padding_mode": "reflect"}),
    "damped diagonal 15, 256": Layer((1, 1), 15, (256, 256), diagonal, {"damping": 1e-3}),
    "random 40, 40": Layer((1, 1), 40, (40, 40), random),
    "random 11, 44": Layer((1, 1), 11, (44, 44), random),
    "random 31, 64": Layer((1, 1), 31, (64, 64), random),
    "damped random 63, 96": Layer((1, 1), 63, (96, 96), random, {"damping": 1e-2}),
    "circular random 63, 128": _circular(1, 128, 63),
}

EDGES = {
    "7 x 7, dilation 4, c=16 on 4 x 4": Layer((16, 16), 7, (4, 4), options={"dilation": 4, "padding": 12}),
    "7 x 7, dilation 4, c=32 on 4 x 4": Layer((32, 32), 7, (4, 4), options={"dilation": 4, "padding": 12}),
    "stride 2, dilation 4, 32": Layer((4, 16), 3, (32, 32), default, {"stride": 2, "dilation": 4, "padding": 4}),
    "dilation 8, c=8 24": Layer((8, 8), 3, (24, 24), options={"dilation": 8, "padding": 8}),
    "3-D c=3 8": Layer((3, 3), 3, (8, 8, 8)),
    "3-D c=3 16": Layer((3, 3), 3, (16, 16, 16)),
    "3-D c=1 32": Layer((1, 1), 3, (32, 32, 32)),
    "3-D circular c=4 24": Layer((4, 4), 3, (24, 24, 24), options={"padding_mode": "circular"}),
    "3-D tall 1 to 4, 16": Layer((1, 4), 3, (16, 16, 16), default),
    "1-D c=8 k=9 2000": Layer((8, 8), 9, (2000,)),
    "1-D c=1 k=101 4000": Layer((1, 1), 101, (4000,), options={"padding": 50}),
    "1-D c=1 k=3 1000000": Layer((1, 1), 3, (1_000_000,)),
}

ALL: dict[str, Layer] = {**EVERYDAY, **TALL_AND_WIDE, **BLURS, **EDGES}


def chosen(words: list[str]) -> dict[str, Layer]:
    """Those whose names contain one of these words."""
    return {name: layer for name, layer in ALL.items() if any(word in name for word in words)}
