"""Windows that cover an image: of one size, flush with its borders, overlapping by two halos.

What is kept of a window lies at least a halo away from its inner edges. Each window is the same layer on a smaller
image, so that all of them share their factors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from invconv.arrays.halo import measured_halo, reading_halo
from invconv.engine.cover import Axis, cover
from invconv.errors import InputError, OutOfMemoryError
from invconv.geometry import Size
from invconv.operator import ConvOperator

SIDES = tuple(2**k for k in range(14, 4, -1))
"""Sides of windows after the stride, the largest first: the larger, the less is computed twice."""

HALOS = 3
"""Halos that go into a window, at least.  Speed only: with two, nothing would be kept."""

COPIES = 4
"""Copies of a window's input and output that are held besides what the solver holds."""


@dataclass(frozen=True)
class Windows:
    """Windows over the inputs and outputs of a layer.

    Args:
        operator: the layer on one window.
        inputs: the windows of an input image, axis by axis.
        outputs: the windows of an output image, as many.
        halo: places after the stride between what is kept and the inner edges; 0 where one window is the whole image.
    """

    operator: ConvOperator
    inputs: tuple[Axis, ...]
    outputs: tuple[Axis, ...]
    halo: int

    @property
    def tiles(self) -> list[Size]:
        """The windows, by their places in each axis."""
        return list(itertools.product(*(range(len(axis.starts)) for axis in self.inputs)))


def windows_over(operator: ConvOperator, inverse: bool, memory: int, side: int | None = None) -> Windows:
    """The largest windows for which `memory` is enough.

    Args:
        operator: the layer on the whole image; nothing of it is factored.
        inverse: whether its inverse is asked for, rather than itself.
        memory: bytes.
        side: of the windows, after the stride, in place of the largest.

    Raises:
        InputError: for a layer whose inverse does not decay, or is no map of windows.
        OutOfMemoryError: if it is not enough for the smallest.
    """
    whole = operator.input_size
    if side is None and _bytes(operator, inverse) <= memory:
        return _cut(operator, whole, 0)
    _check_local(operator)
    halo = measured_halo(operator) if inverse else reading_halo(operator.geometry)
    needed = math.inf
    for each in SIDES if side is None else (side,):
        size = _window(operator, each, halo)
        if size is None or (size == whole and side is None):
            continue
        window = _on(operator, size)
        needed = min(needed, _bytes(window, inverse))
        if needed <= memory:
            return _cut(operator, size, halo)
    if needed < math.inf:
        raise OutOfMemoryError(
            f"windows with a halo of {halo} on an image of {whole} take {needed / 2**20:,.0f} MiB or more, and memory "
            f"is {memory / 2**20:,.0f} MiB: give more"
        )
    raise OutOfMemoryError(
        f"no window of a side of {side or SIDES[-1]} has room for halos of {halo}: give larger ones, or more memory"
    )


def _check_local(operator: ConvOperator) -> None:
    """Raise InputError for answers that no window can give."""
    if operator.options.rtol is not None:
        raise InputError(
            "singular values that rtol cuts off are of the whole image: use damping, or an image in memory"
        )
    if operator.geometry.padding_mode == "circular" and not operator.conv.is_cyclic:
        raise InputError(f"borders that wrap in part, as those of {operator.geometry}, are for images in memory only")


def _on(operator: ConvOperator, size: Size) -> ConvOperator:
    """The same layer on an image of another size."""
    return ConvOperator(operator.source, operator.geometry, size, operator.options)


def _bytes(operator: ConvOperator, inverse: bool) -> int:
    """What a window takes: what its solver plans, and its images."""
    images = COPIES * sum(operator.shape) * operator.weight.element_size()
    if not inverse:
        return images
    try:
        return operator.plan().bytes + images
    except OutOfMemoryError:
        return 2**62


def _window(operator: ConvOperator, side: int, halo: int) -> Size | None:
    """A window of this side after the stride, flush on the lattice of the stride; None where halos leave no room."""
    geometry, size = operator.geometry, []
    for n, s, e, pads in zip(operator.input_size, geometry.stride, geometry.extent, geometry.padding, strict=True):
        w = s * side - (s * side - n) % s
        if w >= n:
            w = n
        elif side < HALOS * halo or w < 2 * e + 2 * max(pads):
            return None
        size.append(w)
    return tuple(size)


def _cut(operator: ConvOperator, size: Size, halo: int) -> Windows:
    """Windows of this size over the image of an operator."""
    window = _on(operator, size)
    inputs, outputs = cover(operator.conv, window.conv, halo)
    return Windows(window, tuple(inputs), tuple(outputs), halo)


# -- arrays --------------------------------------------------------------------------------------------------------


def read(array: Any, lead: tuple[int, ...], axes: Sequence[Axis], tile: Size, dtype: Any) -> np.ndarray:
    """What a window holds of an array: (channels, *lengths), in parts where it goes round."""
    channels = array.shape[len(lead)]
    block = np.empty((channels, *(axis.length for axis in axes)), dtype)
    spans = [list(_spans(axis, index)) for axis, index in zip(axes, tile, strict=True)]
    for parts in itertools.product(*spans):
        there, here = zip(*parts, strict=True)
        block[(slice(None), *here)] = array[(*lead, slice(None), *there)]
    return block


def _spans(axis: Axis, index: int) -> Iterator[tuple[slice, slice]]:
    """Where a window lies in the image, and in itself."""
    here = 0
    while here < axis.length:
        there = (axis.starts[index] + here) % axis.size
        count = min(axis.length - here, axis.size - there)
        yield slice(there, there + count), slice(here, here + count)
        here += count
