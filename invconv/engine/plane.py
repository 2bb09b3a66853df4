"""A torus of two axes that is cut open along one axis, then along the other: its sizes, and tables for its transforms.

A layer of one axis is one of two, the first of which has one place and is not cut.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invconv.engine.spectrum import PRODUCT_UP_TO_PLACES, outside_inference
from invconv.engine.windows import smallest_torus
from invconv.geometry import Geometry, Size


@dataclass(frozen=True)
class Plane:
    """How an image of one axis or two is cut; all sizes are counted in strides."""

    geometry: Geometry
    """Of a layer of two axes, the second of which is cut last."""
    torus: Size
    """Places of the torus, before the stride."""
    size: Size
    """T and U."""
    image: Size
    """n and m."""
    turned: bool
    """Whether the axes have changed places."""

    @property
    def outside(self) -> Size:
        """T - n and U - m."""
        return self.size[0] - self.image[0], self.size[1] - self.image[1]

    @property
    def places(self) -> int:
        """Places that S joins."""
        return self.image[0] * self.outside[1]

    @property
    def count(self) -> int:
        """Frequencies along the second axis that are stored."""
        return self.size[1] // 2 + 1


@lru_cache(maxsize=256)
def plane_of(geometry: Geometry, input_size: Size) -> Plane:
    """The plane whose S is the smaller one, and not empty."""
    if geometry.dims == 1:
        one = _axes(geometry, lambda each, first: (first, *each))
        return _cut_open(one, (1, *input_size), False)
    turned = _axes(geometry, lambda each, _: each[::-1])
    planes = [_cut_open(geometry, input_size, False), _cut_open(turned, input_size[::-1], True)]
    return min(planes, key=lambda plane: plane.places or math.inf)


def _axes(geometry: Geometry, change: Callable[[tuple[Any, ...], Any], tuple[Any, ...]]) -> Geometry:
    """A geometry with what it has for each axis changed; that is told what an axis has that is not convolved."""
    return replace(
        geometry,
        kernel_size=change(geometry.kernel_size, 1),
        stride=change(geometry.stride, 1),
        padding=change(geometry.padding, (0, 0)),
        dilation=change(geometry.dilation, 1),
    )


def _cut_open(geometry: Geometry, input_size: Size, turned: bool) -> Plane:
    """The plane of a layer of two axes."""
    torus = smallest_torus(geometry, input_size)
    size, image = (tuple(n // s for n, s in zip(each, geometry.stride, strict=True)) for each in (torus, input_size))
    return Plane(geometry, torus, size, image, turned)


class Tables(NamedTuple):
    """Where D_w(x) is read, and by what it is multiplied, for one plane.

    Places of the torus along the first axis are counted modulo T, offsets along the second from 1 - (U - m).
    """

    within: Tensor
    """x - x' and u - u' of each pair of places of S, flattened."""
    there: Tensor
    """x - l of each place and line."""
    back: Tensor
    """l - x' of each line and place."""
    between: Tensor
    """l - l' of each pair of lines."""
    shares: Tensor
    """What each stored frequency counts in a mean over all: (frequencies,)."""
    means: Tensor
    """Real and imaginary parts of the waves, by the shares: (2 offsets, frequencies)."""
    waves: Tensor
    """exp(2 pi i w (u - u') / U): (offsets, frequencies)."""
    turns: Tensor
    """exp(2 pi i w u / U), for each place of S: (places, frequencies, 1)."""
    first: Tensor
    """The inverse Fourier transform along the first axis: (T, T); empty where it goes by the FFT."""


@outside_inference
def tables_of(plane: Plane, real: torch.dtype, device: torch.device) -> Tables:
    """The tables of a plane in this precision."""
    (rows, width), (p, q) = plane.size, plane.outside
    lines = plane.image[0] + torch.arange(p)
    x, u = (t.flatten() for t in torch.meshgrid(torch.arange(plane.image[0]), torch.arange(q), indexing="ij"))
    steps = torch.arange(1 - q, q)
    cycles = torch.arange(plane.count)

    def wave(offsets: Tensor, cycles: Tensor, size: int) -> Tensor:
        turns = (offsets[:, None] * cycles % size).double() * (2 * math.pi / size)
        return torch.polar(torch.ones_like(turns), turns)

    def apart(a: Tensor, b: Tensor) -> Tensor:
        return ((a[:, None] - b) % rows).flatten()

    within = apart(x, x) * len(steps) + (u[:, None] - u + q - 1).flatten()
    indices = within, apart(x, lines), apart(lines, x), apart(lines, lines)
    shares = torch.where((cycles == 0) | (2 * cycles == width), 1.0, 2.0).double() / width
    waves = wave(steps, cycles, width)
    means = torch.stack([waves.real, waves.imag], 1).flatten(0, 1) * shares
    first = torch.arange(rows if rows <= PRODUCT_UP_TO_PLACES else 0)
    waved = waves, wave(u, cycles, width)[:, :, None], wave(first, first, rows) / rows
    numbers = [shares.to(real), means.to(real), *(t.to(real.to_complex()) for t in waved)]
    return Tables(*(t.to(device) for t in (*indices, *numbers)))
