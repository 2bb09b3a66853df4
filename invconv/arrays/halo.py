"""How far away an answer needs to be from an edge that is none of the image: measured on small images.

The inverse of a well-conditioned convolution decays with distance (Demko, Moss and Smith 1984). Noise and an even
colour are inverted on a long image and on the middle of it: where both agree, at some distance from the ends of the
middle, nothing beyond them is missed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from invconv.errors import InputError, SingularMapError, unsaid
from invconv.geometry import Geometry
from invconv.operator import ConvOperator

LENGTHS = {1: (16, 32, 64, 128, 256, 512), 2: (16, 32, 64, 128, 256), 3: (16, 32, 48)}
"""Places after the stride of the middle, by the dimensions of the image, until it is long enough."""

ACROSS = {1: 0, 2: 16, 3: 8}
"""Places after the stride along the other axes.  Speed only."""

AGREE = 0.25
"""Share of the rounding of a float32 answer that may be missed."""

DIGITS = 16.0
"""Roundings, times the condition, that may be missed of a float64 answer, since the measure has them itself."""


def measured_halo(operator: ConvOperator) -> int:
    """Places after the stride from which on an inverse does not see an edge, to rounding.

    Raises:
        InputError: if there are none within the longest image that is tried.
    """
    return max(_along(operator, axis) for axis in range(operator.geometry.dims))


def reading_halo(geometry: Geometry) -> int:
    """Places after the stride from which on a convolution does not see an edge."""
    return max(-(-(e - 1) // s) + 1 for e, s in zip(geometry.extent, geometry.stride, strict=True))


def _along(operator: ConvOperator, axis: int) -> int:
    """The halo along one axis."""
    dims, stride = operator.geometry.dims, operator.geometry.stride[axis]
    left, far = 1.0, 0
    for length in LENGTHS[dims]:
        long, middle = (_on(operator, axis, count) for count in (3 * length, length))
        if long is None or middle is None:
            continue
        try:
            with unsaid():
                missed, allowed = _missed(long, middle, axis, length, operator.dtype)
        except SingularMapError:  # what grows with the image does not decay
            break
        farthest = 3 * length // 8  # beyond it there is to be something that the measure has seen
        reached = [halo for halo in range(1, farthest + 1) if float(missed[stride * halo]) <= allowed]
        if reached:
            return reached[0]
        left, far = float(missed[stride * farthest]), farthest
    raise InputError(
        f"the inverse does not decay within a window: {left:.0e} of an answer hangs on what is more than {far} places "
        f"away along axis {axis}. Use damping, a better conditioned kernel, or memory= for one window"
    )


def _on(operator: ConvOperator, axis: int, length: int) -> ConvOperator | None:
    """The layer in float64 on an image that is so long along one axis; None if it is too small for the kernel."""
    geometry, size = operator.geometry, []
    for dim, (n, s, e, pads) in enumerate(
        zip(operator.input_size, geometry.stride, geometry.extent, geometry.padding, strict=True)
    ):
        places = length if dim == axis else ACROSS[geometry.dims] + 2 * -(-(e + max(pads)) // s)
        w = s * places - (s * places - n) % s
        size.append(w if dim == axis else min(w, n))
        if size[-1] < min(n, e + 2 * max(pads)):
            return None
    return ConvOperator(operator.source.double(), geometry, tuple(size), operator.options)


def _missed(
    long: ConvOperator, middle: ConvOperator, axis: int, start: int, dtype: torch.dtype
) -> tuple[Tensor, float]:
    """What an answer for the middle lacks at each distance from its ends or farther, and what it may; shares of it."""
    generator, shape = torch.Generator().manual_seed(0), (1, long.out_channels, *long.output_size)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    colour = torch.randn(*shape[:2], *[1] * (len(shape) - 2), generator=generator, dtype=torch.float64)
    y = torch.cat([noise, colour.expand(shape)]).to(long.weight.device)
    dim, stride = axis + 2, long.geometry.stride[axis]
    x = long.pseudo_inverse(y).narrow(dim, stride * start, middle.input_size[axis])
    x_hat = middle.pseudo_inverse(y.narrow(dim, start, middle.output_size[axis]))
    error = (x - x_hat).abs().movedim(dim, 0).flatten(1).amax(1) / x.square().mean().sqrt()
    half = len(error) // 2
    ends = torch.maximum(error[:half], error.flip(0)[:half])
    missed = ends.flip(0).cummax(0).values.flip(0)
    allowed = AGREE if dtype == torch.float32 else DIGITS * middle.solver.condition
    return missed, allowed * torch.finfo(dtype).eps
