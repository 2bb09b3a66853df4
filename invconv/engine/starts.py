r"""Where iterations for the norm of a large map start: at a wave under a window, not at noise.

Away from its borders A is the same everywhere, and what it enlarges most is nearly

    v(x) = Re a exp(i <w, x>)  prod_j sin(pi (x_j + 1) / (n_j + 1)),

with the frequency w and the channels a of the largest block, which the power method tells on a small image. From noise,
iterations would have to find the long waves of the window as well, for which they take as many steps as the image has
pixels along a side.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.spectrum import merge_phases, split_phases
from invconv.engine.windows import crop

SIDE = 14
"""Places along each axis of the small image, in units of the stride.  Speed only."""

LARGE = 3
"""How many times as long an image has to be.  Speed only: 28 and 56 pixels with 64 channels are as fast from noise."""

STEPS = 40
"""Of the power method on the small image.  Speed only."""

FINER = 4
"""Frequencies that are looked at between those of the small image.  Speed only."""

NOISE = 0.1
"""Share of noise in a start, for what is no wave.  Speed only: Lanczos' method goes on from noise of its own where a
start leads nowhere else."""


def start(conv: Convolution) -> Tensor | None:
    """An image to start from, (1, in_channels, *input_size); None where the image is too small for it to pay.

    Each group starts at a wave of its own, so that none is overlooked.
    """
    geometry, generator = conv.geometry, torch.Generator().manual_seed(0)
    reach = [max(SIDE * s, e + s) for s, e in zip(geometry.stride, geometry.extent, strict=True)]
    if any(n < LARGE * r for n, r in zip(conv.input_size, reach, strict=True)):
        return None

    def noise(size: tuple[int, ...]) -> Tensor:
        return torch.randn(1, conv.in_channels, *size, generator=generator).to(conv.weight)

    # Whole multiples of the stride.
    side = tuple(math.ceil(r / s) * s for r, s in zip(reach, geometry.stride, strict=True))
    small, x = conv.on(side), noise(side)
    for _ in range(STEPS):
        x = _each_of_norm_one(small.adjoint(small.forward(x)), geometry.groups)
    image = _each_of_norm_one(_wave(x, conv), geometry.groups)
    rest = _each_of_norm_one(noise(conv.input_size), geometry.groups)
    return image + NOISE * rest


def _wave(x: Tensor, conv: Convolution) -> Tensor:
    """The strongest wave of each group of a small image, on the large one, under a window."""
    geometry = conv.geometry
    phases = split_phases(x, geometry.stride)[0].unflatten(0, (geometry.groups, -1))
    axes = tuple(range(2, phases.dim()))
    sides = tuple(FINER * n for n in phases.shape[2:])
    spectrum = torch.fft.fftn(phases, s=sides, dim=axes)
    strongest = spectrum.abs().square().sum(1).flatten(1).argmax(1)
    channels = spectrum.flatten(2).gather(2, strongest[:, None, None].expand(-1, spectrum.shape[1], 1))[..., 0]
    wave = channels.view(*channels.shape, *(1 for _ in axes))
    index = strongest
    counts = [-(-n // s) for n, s in zip(conv.input_size, geometry.stride, strict=True)]
    for axis in reversed(range(len(axes))):
        frequency, index = index % sides[axis], index.div(sides[axis], rounding_mode="floor")
        places = torch.arange(counts[axis], device=x.device)
        # Whole turns are left out before they are multiplied by a number that has been rounded.
        turns = (frequency[:, None] * places) % sides[axis] * (2 * math.pi / sides[axis])
        window = torch.sin(math.pi * (places + 1) / (counts[axis] + 1))
        line = torch.polar(window.expand(turns.shape).to(x), turns.to(x))
        wave = wave * line.view(-1, 1, *(counts[axis] if a == axis else 1 for a in range(len(axes))))
    image = merge_phases(wave.real.flatten(0, 1)[None], geometry.stride)
    return crop(image, conv.input_size)


def _each_of_norm_one(x: Tensor, groups: int) -> Tensor:
    """The image with the part that each group reads of norm one; parts of zeros stay."""
    parts = x.unflatten(1, (groups, -1))
    norms = torch.linalg.vector_norm(parts.flatten(2), dim=2).clamp_min(torch.finfo(x.dtype).tiny)
    scaled: Tensor = parts / norms.view(1, groups, *(1 for _ in parts.shape[2:]))
    return scaled.flatten(1, 2)
