r"""Geometries whose centre taps are an isometry, for which the bound of `invconv.parametrizations.bounded` holds.

A layer is $A = W (\Delta + E)$: $\Delta$ reads, for each of the s = prod(stride) phases of the image, the centre tap
of that phase, E is the rest, $||E|| < \rho$, and W mixes channels in one place. If $\Delta$ is an isometry,

    ||A x|| >= sigma_min(W) ||(Delta + E) x|| >= sigma_min(W) (1 - rho) ||x||        for W with as many rows or more,

and if its transpose is one, $||A^T y|| \ge \sigma_{min}(W) (1 - \rho) ||y||$ for W with as many columns or more. With
$||A|| \le \sigma_{max}(W) (1 + \rho)$ the condition number is at most cond(W) (1 + rho) / (1 - rho) in both cases.

Let an image have N places in each phase along one side, its sides being multiples of the stride. The layer then has
N + d places there, d = floor((left + right - extent) / stride) + 1, and the tap of shift a reads the places a to
a + N + d - 1: one place after the other, none of them twice, but perhaps some beyond the border.

    Delta is an isometry if it reads all of 0 to N - 1:      a <= 0 <= a + d       what lies beyond must read as zeros
    its transpose is, if it reads nothing beyond them:       0 <= a, a + d <= 0

In circular borders nothing lies beyond, and the places are read once if d <= 0: there, a may be anything.
"""

from __future__ import annotations

import math

from invconv.errors import InputError
from invconv.geometry import Geometry
from invconv.layers.init import centre_taps


def check_isometry(geometry: Geometry, rows: int, columns: int) -> None:
    """Refuse a geometry for which no bound of the off-centre part would bound the condition number.

    Args:
        geometry: of the layer.
        rows: out_channels / groups.
        columns: in_channels / groups.

    Raises:
        InputError: naming what is lost of the image, and the padding that loses nothing.
    """
    phases = math.prod(geometry.stride)
    reached = len(centre_taps(geometry))
    if reached < phases:
        raise InputError(
            f"kernel size {geometry.kernel_size} with stride {geometry.stride} and dilation {geometry.dilation} reads "
            f"only {reached} of {phases} pixels: the layer cannot be invertible"
        )
    keeps, covers = _isometries(geometry)
    wide, tall = rows < columns * phases, rows > columns * phases
    if (keeps or covers) if not (wide or tall) else (keeps if tall else covers):
        return
    lost = "read beyond the image, or a pixel twice" if wide else "miss pixels, or read some twice"
    raise InputError(
        f"the condition number has no bound: with kernel size {geometry.kernel_size}, stride {geometry.stride}, "
        f"padding {geometry.padding}, dilation {geometry.dilation} and padding_mode={geometry.padding_mode!r} the "
        f"centre taps of a layer from {columns} to {rows} channels {lost}. {_advice(geometry)}"
    )


def _isometries(geometry: Geometry) -> tuple[bool, bool]:
    """Whether the centre taps, and their transpose, are an isometry."""
    keeps, covers = True, True
    taps = geometry.taps()
    shifts = [taps[tap][0] for tap in centre_taps(geometry)]
    for axis, d in enumerate(surplus(geometry)):
        for a in {shift[axis] for shift in shifts}:
            if geometry.padding_mode == "circular":
                keeps, covers = keeps and d == 0, covers and d <= 0
            else:
                beyond = geometry.padding_mode == "zeros" or a == d == 0
                keeps, covers = keeps and beyond and a <= 0 <= a + d, covers and 0 <= a and a + d <= 0
    return keeps, covers


def surplus(geometry: Geometry) -> list[int]:
    """Places of the output beyond those of each phase of the image, along each side."""
    sides = zip(geometry.padding, geometry.extent, geometry.stride, strict=True)
    return [(left + right - e) // s + 1 for (left, right), e, s in sides]


def reads(geometry: Geometry, shift: tuple[int, ...]) -> int:
    """How often a tap of one shift reads a pixel, at most: more than once only beyond a border that repeats pixels.

    A tap that is |a| places off reads as many places beyond the border: of a reflection all are other pixels, of a
    replicating border all are the last one.
    """
    most = 1
    for a, (left, right) in zip(shift, geometry.padding, strict=True):
        beyond = min(abs(a), left if a < 0 else right)
        most *= 1 + {"reflect": min(beyond, 1), "replicate": beyond}.get(geometry.padding_mode, 0)
    return most


def _advice(geometry: Geometry) -> str:
    """What to do about it."""
    if all(s == 1 for s in geometry.stride):
        odd = all(k % 2 for k in geometry.kernel_size) or all(d == 1 for d in geometry.dilation)
        return "Use padding='same'" if odd else "Use an odd kernel size and padding='same', or padding_mode='circular'"
    return "Use an image and a padding with which the output is the image divided by the stride"
