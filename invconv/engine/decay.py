"""How fast the inverse of a convolution decays with distance, seen on a small torus.

The inverse of a banded matrix falls off exponentially, the faster the better conditioned it is (Demko, Moss and Smith
1984).  A torus of a few extents of the kernel shows at what rate.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.precision import exactly
from invconv.engine.torus_inverse import Inverted, TorusInverse
from invconv.geometry import Size
from invconv.options import Options

SIDES = {1: (256, 128), 2: (32, 24, 16), 3: (16, 12, 8)}
"""Sides of the torus that is looked at, after the stride: the largest that is not `DEAR`.  Speed only."""

DEAR = 4e10
"""Operations that a look at a torus may take: half a second.  Speed only."""

SOURCES = 4
"""Random outputs of one place whose answers are looked at.  Speed only: a size is tried before it is taken."""


@dataclass(frozen=True)
class Kernel:
    """A layer and its damping; equal where all that decides how its inverse decays is equal."""

    digest: bytes
    damping: float
    conv: Convolution = field(compare=False)

    @classmethod
    def of(cls, conv: Convolution, options: Options) -> Kernel:
        """The kernel in float64, whatever the precision of the map."""
        weight = conv.weight.detach().double()
        text = repr((conv.geometry, weight.shape)).encode()
        return cls(hashlib.sha1(text + weight.cpu().numpy().tobytes()).digest(), options.damping, conv)


@dataclass(frozen=True)
class Decay:
    """What of the answer for one output lies beyond a distance, in units of the output, by root mean squares."""

    beyond: tuple[float, ...]
    """Beyond each distance in places after the stride, from 0 on, times the norm of the kernel."""

    def at(self, distance: int) -> float:
        """Beyond this distance; what the torus is too small for as it goes on."""
        last = len(self.beyond) - 1
        if distance <= last:
            return self.beyond[distance]
        rate = (self.beyond[last] / self.beyond[last // 2]) ** (1 / (last - last // 2)) if self.beyond[last] else 0.0
        return float(self.beyond[last] * rate ** (distance - last))


def decay_of(conv: Convolution, options: Options) -> Decay | None:
    """How the inverse decays, or that of the Gram matrix where that is taken; None where nothing is to be seen."""
    return _decay(Kernel.of(conv, options))


@lru_cache(maxsize=16)
def _decay(kernel: Kernel) -> Decay | None:
    conv = kernel.conv.to(torch.float64)
    for side in SIDES[conv.geometry.dims]:
        size = tuple(
            s * max(side, -(-2 * e // s)) for s, e in zip(conv.geometry.stride, conv.geometry.extent, strict=True)
        )
        if cost.torus(conv.on(size), size).factors < DEAR:
            with exactly(conv.device, keep=True):
                return _look(conv, size, kernel.damping)
    return None


def _look(conv: Convolution, size: Size, damping: float) -> Decay | None:
    """What a torus shows."""
    inverted = Inverted.of(conv, damping)
    torus = TorusInverse(conv, size, damping, inverted)
    if not torus.growth * torch.finfo(torch.float64).eps < 1:
        return None
    on_inputs = inverted is Inverted.INPUTS
    places = size if on_inputs else torus.grid.size
    source = conv.weight.new_zeros(SOURCES, conv.in_channels if on_inputs else conv.out_channels, *places)
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(SOURCES, source.shape[1], generator=generator, dtype=torch.float64).to(source)
    source.flatten(2)[..., 0] = values
    answer = torus.solve(source).square().sum((0, 1)) / values.square().sum()
    distance = _distances(tuple(answer.shape), conv.geometry.stride if answer.shape != torus.grid.size else ())
    norm = conv.weight.norm().item() / math.sqrt(len(conv.weight))
    norm = norm if inverted is Inverted.MAP else norm**2
    beyond = [norm * answer[distance > d].sum().sqrt().item() for d in range(min(torus.grid.size) // 2)]
    return Decay(tuple(beyond)) if all(map(math.isfinite, beyond)) else None


def _distances(size: Size, stride: Size) -> Tensor:
    """The distance of each place of a torus from the first, after the stride, along the axis where it is largest."""
    farthest = torch.zeros(size, dtype=torch.long)
    for axis, n in enumerate(size):
        places = torch.arange(n)
        line = torch.minimum(places, n - places) // (stride[axis] if stride else 1)
        shape = [1] * len(size)
        shape[axis] = n
        farthest = torch.maximum(farthest, line.view(shape))
    return farthest
