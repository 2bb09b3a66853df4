"""One table of geometries that every property test walks through, and the oracle they are compared with."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import invconv

LAYERS = {1: invconv.InvertibleConv1d, 2: invconv.InvertibleConv2d, 3: invconv.InvertibleConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Case:
    """A layer and the size of its image."""

    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...] | int = 1
    dilation: int = 1
    groups: int = 1
    padding: Any = field(default=None)
    mode: str = "circular"

    @property
    def dims(self) -> int:
        return len(self.kernel)

    @property
    def arguments(self) -> dict[str, Any]:
        strides = (self.stride,) * self.dims if isinstance(self.stride, int) else self.stride
        padding = self.padding
        if padding is None:
            if all(s == 1 for s in strides):
                padding = "same"
            else:
                padding = tuple((k - 1) * self.dilation // 2 for k in self.kernel)
        return {
            "in_channels": self.channels[0],
            "out_channels": self.channels[1],
            "kernel_size": self.kernel,
            "stride": strides,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding": padding,
            "padding_mode": self.mode,
        }

    def layer(self, seed: int = 0, spread: float = 1.0, **options: Any) -> Any:
        """In float64, with a random weight of condition 10 to 1000 (`spread` 1) and a random bias."""
        torch.manual_seed(seed)
        conv = LAYERS[self.dims](**self.arguments, dtype=torch.float64, **options)
        with torch.no_grad():
            conv.weight += spread * torch.randn_like(conv.weight) / math.sqrt(conv.weight[0].numel())
            conv.bias.normal_()
        return conv

    def images(self, batch: int = 2, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels[0], *self.size, generator=generator, dtype=torch.float64)

    def __str__(self) -> str:
        kernel, size = ("x".join(map(str, v)) for v in (self.kernel, self.size))
        stride = self.stride if isinstance(self.stride, int) else "x".join(map(str, self.stride))
        text = f"{self.channels[0]}to{self.channels[1]}-k{kernel}-n{size}-s{stride}-d{self.dilation}-g{self.groups}"
        text = text if self.padding is None else f"{text}-p{self.padding}".replace(" ", "")
        return text if self.mode == "circular" else f"{text}-{self.mode}"


def dense(conv: Any, size: tuple[int, ...]) -> Tensor:
    """The explicit matrix of the plain `torch.nn` layer of the same weight, from unit images."""
    plain = PLAIN[len(size)](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=False,
        padding_mode=conv.padding_mode,
        dtype=torch.float64,
    )
    plain.weight = nn.Parameter(conv.weight.detach().double())
    count = conv.in_channels * math.prod(size)
    images = torch.eye(count, dtype=torch.float64).view(count, conv.in_channels, *size)
    with torch.no_grad():
        return plain(images).flatten(1).T


def _table() -> list[Case]:
    cases = []
    # 2-D, stride 1: square, tall and wide; odd and even kernels; odd and even sizes; dilation; groups.
    for channels, kernel, size in itertools.product(
        [(2, 2), (2, 3), (3, 2)],
        [(1, 1), (2, 2), (3, 3), (1, 3), (4, 3), (5, 5)],
        [(4, 4), (5, 4), (3, 5), (6, 7)],
    ):
        cases.append(Case(channels, kernel, size))
    for channels, groups in [((4, 4), 2), ((3, 3), 3), ((4, 2), 2), ((2, 6), 2)]:
        for kernel, dilation, size in itertools.product([(2, 2), (3, 3)], [1, 2], [(4, 5), (5, 6)]):
            cases.append(Case(channels, kernel, size, dilation=dilation, groups=groups))
    # Kernels that are larger than the image wrap onto themselves.
    for kernel, dilation, size in [((5, 5), 1, (3, 3)), ((7, 3), 1, (4, 2)), ((3, 3), 2, (3, 4)), ((9, 1), 1, (5, 5))]:
        for channels in [(2, 2), (2, 4), (4, 2)]:
            cases.append(Case(channels, kernel, size, dilation=dilation))
    # Strides: square (out = in * stride^2), tall, wide; patches; kernels smaller than the stride.
    for channels, kernel, size in itertools.product(
        [(1, 4), (2, 3), (1, 6), (2, 8)], [(2, 2), (3, 3), (4, 4), (5, 3)], [(4, 4), (6, 4), (2, 6)]
    ):
        cases.append(Case(channels, kernel, size, stride=2))
    for channels, kernel, size in [((1, 9), (3, 3), (6, 6)), ((1, 9), (5, 5), (6, 9)), ((2, 4), (5, 5), (9, 6))]:
        cases.append(Case(channels, kernel, size, stride=3))
    for stride, size in [((2, 1), (4, 5)), ((1, 3), (4, 6)), ((3, 2), (6, 4))]:
        for channels in [(1, 2), (2, 2), (1, 6)]:
            cases.append(Case(channels, (3, 3), size, stride=stride))
    cases += [
        Case((2, 4), (3, 3), (6, 6), stride=2, groups=2),
        Case((2, 8), (3, 3), (6, 6), stride=2, groups=2),
        Case((1, 4), (3, 3), (6, 6), stride=3, dilation=2),
        Case((1, 4), (2, 2), (6, 6), stride=2, dilation=3),
        Case((2, 2), (1, 1), (4, 4), stride=2),
    ]
    # 1-D and 3-D.
    for channels, kernel, size in itertools.product([(2, 2), (2, 3), (3, 2)], [(1,), (2,), (3,), (6,)], [(5,), (8,)]):
        cases.append(Case(channels, kernel, size))
    cases += [
        Case((2, 4), (3,), (8,), stride=2),
        Case((1, 3), (3,), (9,), stride=3),
        Case((1, 2), (4,), (8,), stride=2),
    ]
    for channels, kernel, size in itertools.product(
        [(1, 1), (2, 2), (1, 2), (2, 1)], [(3, 3, 3), (2, 1, 3)], [(3, 4, 2), (2, 3, 5)]
    ):
        cases.append(Case(channels, kernel, size))
    cases += [Case((1, 8), (2, 3, 2), (4, 2, 4), stride=2), Case((1, 4), (3, 3, 3), (4, 4, 3), stride=(2, 2, 1))]
    return cases


def _borders() -> list[Case]:
    cases = []
    modes = ("zeros", "reflect", "replicate")
    # Square, tall and wide, of 'same' size, in 1-D, 2-D and 3-D.
    for mode, channels in itertools.product(modes, [(2, 2), (2, 3), (3, 2)]):
        for kernel, size in [((3, 3), (4, 5)), ((3, 3), (6, 6)), ((5, 3), (5, 4)), ((1, 3), (4, 6)), ((2, 2), (4, 4))]:
            cases.append(Case(channels, kernel, size, mode=mode))
        cases += [Case(channels, (3,), (n,), mode=mode) for n in (2, 7, 12)]
        cases += [Case(channels, (5,), (8,), mode=mode), Case(channels, (4,), (7,), mode=mode)]
    for mode, channels in itertools.product(modes, [(1, 1), (1, 2), (2, 1)]):
        cases += [Case(channels, (3, 3, 3), size, mode=mode) for size in [(3, 2, 4), (2, 3, 2)]]
        cases.append(Case(channels, (1, 3, 2), (3, 4, 3), mode=mode))
    # Other amounts of padding: none, less and more than 'same', full, more than the kernel reaches, uneven.
    for mode, channels in itertools.product(modes, [(2, 2), (1, 3), (3, 1)]):
        cases += [Case(channels, (3, 3), (5, 4), padding=p, mode=mode) for p in [2, 3, (1, 0), (0, 2)]]
        cases += [Case(channels, (5, 2), (5, 6), padding=p, mode=mode) for p in [(2, 1), (3, 0)]]
    for channels in [(2, 2), (1, 3), (3, 1), (2, 3), (1, 12)]:
        cases += [Case(channels, (3, 3), (5, 4), padding=p, mode="zeros") for p in (0, "valid", 6)]
        cases += [Case(channels, (k,), (8,), padding=p, mode="zeros") for k, p in [(3, 0), (4, 3), (1, 1), (3, 5)]]
    # Dilation and groups.
    for mode, (channels, groups) in itertools.product(modes, [((4, 4), 2), ((3, 3), 3), ((4, 2), 2), ((2, 6), 2)]):
        cases += [Case(channels, (3, 3), (5, 6), dilation=d, groups=groups, mode=mode) for d in (1, 2)]
    # Strides.
    for mode, channels in itertools.product(modes, [(1, 4), (2, 3), (1, 6), (2, 8)]):
        for kernel, size in [((3, 3), (6, 4)), ((3, 3), (5, 6)), ((4, 4), (6, 6)), ((5, 3), (4, 7))]:
            cases.append(Case(channels, kernel, size, stride=2, mode=mode))
    for mode in modes:
        cases += [Case((1, 9), (5, 5), (6, 6), stride=3, mode=mode), Case((1, 4), (3, 3), (7, 6), stride=3, mode=mode)]
        cases += [Case((1, 12), (3, 3), (6, 7), stride=3, mode=mode), Case((1, 3), (5,), (9,), stride=3, mode=mode)]
        cases += [Case((1, 2), (3, 3), (4, 5), stride=(2, 1), mode=mode), Case((1, 2), (4,), (9,), stride=2, mode=mode)]
        cases += [Case((2, 8), (3, 3), (6, 6), stride=2, groups=2, mode=mode)]
        cases += [Case((1, 8), (3, 2, 3), (4, 2, 4), stride=2, padding=1, mode=mode)]
        cases += [Case((1, 4), (3, 3), (6, 6), stride=2, dilation=2, mode=mode)]
    # Circular borders that do not close the circle.
    for channels in [(2, 2), (2, 3), (3, 2), (1, 4), (4, 1)]:
        cases += [Case(channels, (3, 3), (5, 4), padding=p) for p in (0, 2, 3, (1, 0), (0, 2))]
        cases += [Case(channels, (3, 3), size, stride=2) for size in [(5, 5), (4, 7), (3, 6)]]
    return cases


CASES = _table()
BORDERS = _borders()
