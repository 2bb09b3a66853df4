"""Orders in which a layer reads its pixels: each its own pixel and later ones, so that A is block-triangular.

A raster order goes through one axis slowest and one fastest, each up or down. With borders of zeros and a kernel whose
taps lie in the half-plane of the later pixels, K_0, the tap of the own pixel, is all the diagonal of A.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import permutations, product

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.geometry import Size


@dataclass(frozen=True)
class Raster:
    """A raster order, and where the taps of a layer lie in it.

    Args:
        axes: of the image, from the slowest to the fastest.
        signs: for each axis of the image, 1 if the order goes up it, -1 if down.
        places: of each tap, from its own pixel.
    """

    axes: Size
    signs: Size
    places: tuple[Size, ...]

    @property
    def weights(self) -> list[int]:
        """How far a step along each axis leads: more than all that the axes after it can take back."""
        weights, total = [0] * len(self.axes), 0
        for d in reversed(self.axes):
            weights[d] = self.signs[d] * (total + 1)
            total += (total + 1) * max(abs(place[d]) for place in self.places)
        return weights

    @property
    def later(self) -> list[int]:
        """How far each tap is from its own pixel in the order."""
        return [sum(w * a for w, a in zip(self.weights, place, strict=True)) for place in self.places]

    @property
    def ordered(self) -> list[Size]:
        """The place of each tap along the axes in their order, upwards: no used one is below zero as a word."""
        return [tuple(self.signs[d] * place[d] for d in self.axes) for place in self.places]


def raster_of(conv: Convolution) -> Raster | None:
    """The order in which a layer reads its pixels, one in which none is earlier on any axis if there is; else None."""
    geometry = conv.geometry
    same = conv.output_size == conv.input_size and conv.out_channels == conv.in_channels
    if not same or geometry.padding_mode != "zeros" or any(s != 1 for s in geometry.stride):
        return None
    places = tuple(place for place, _ in geometry.taps())
    used = conv.weight.detach().flatten(2).ne(0).flatten(0, 1).any(0).tolist()
    read = {place for place, is_used in zip(places, used, strict=True) if is_used}
    if any(any(place) and tuple(-a for a in place) in read for place in read):
        return None
    none = (0,) * geometry.dims
    for signs in product((1, -1), repeat=geometry.dims):
        if all(s * a >= 0 for place in read for s, a in zip(signs, place, strict=True)):
            return Raster(tuple(range(geometry.dims)), signs, places)
    for axes, signs in product(permutations(range(geometry.dims)), product((1, -1), repeat=geometry.dims)):
        if all(tuple(signs[d] * place[d] for d in axes) >= none for place in read):
            return Raster(axes, signs, places)
    return None


def taps_of(conv: Convolution) -> Tensor:
    """The kernel: (taps, groups, outputs, inputs)."""
    taps: Tensor = conv.weight.flatten(2).permute(2, 0, 1).unflatten(1, (conv.geometry.groups, -1))
    return taps


def diagonal_of(conv: Convolution, raster: Raster) -> Tensor:
    """K_0: (groups, outputs, inputs), float64."""
    own, taps = (0,) * len(raster.axes), taps_of(conv)
    tap = taps[raster.places.index(own)] if own in raster.places else torch.zeros_like(taps[0])
    return tap.double()
