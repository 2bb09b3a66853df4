"""What kernel size, stride, padding, dilation and groups mean: sizes, and where each tap looks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

from invconv.errors import InputError
from invconv.scalars import whole_number, whole_numbers
from invconv.threads import cached_property

PADDING_MODES = ("zeros", "circular", "reflect", "replicate")

_NUMPY_PADDING: dict[str, Any] = {
    "zeros": {"mode": "constant", "constant_values": -1},  # -1 stands for a zero of the border
    "circular": {"mode": "wrap"},
    "reflect": {"mode": "reflect"},
    "replicate": {"mode": "edge"},
}

Size = tuple[int, ...]
Padding = str | int | Sequence[int | Sequence[int]]


def as_tuple(name: str, value: int | Sequence[int], dims: int, least: int = 1) -> Size:
    """One integer for every dimension: `3` and `(3, 3)` are the same."""
    return whole_numbers(name, value, dims, least)


@dataclass(frozen=True)
class Geometry:
    """Everything about a convolution layer but its weights and the size of its image.

    Args:
        kernel_size: taps in each spatial dimension.
        stride: steps between outputs in each dimension.
        padding: one pair (left, right) for each dimension.
        dilation: steps between taps in each dimension.
        groups: of channels that do not mix.
        padding_mode: what stands on the border: "zeros", "circular", "reflect" or "replicate".
    """

    kernel_size: Size
    stride: Size
    padding: tuple[tuple[int, int], ...]
    dilation: Size
    groups: int
    padding_mode: str

    @classmethod
    def of(
        cls,
        kernel_size: Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: Padding = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> Geometry:
        """Read the arguments of `torch.nn.Conv*d`; a padding may also be a pair (left, right).

        >>> Geometry.of((3, 2), padding="same", padding_mode="circular").padding
        ((1, 1), (0, 1))
        """
        given: Any = (kernel_size, stride, padding, dilation, groups, padding_mode)
        return (_known if all(map(_is_plain, given)) else _read)(*given)

    @property
    def dims(self) -> int:
        """Spatial dimensions."""
        return len(self.kernel_size)

    @property
    def links_borders(self) -> bool:
        """Whether places of the border take their values from places of the image, rather than being zero."""
        return self.padding_mode != "zeros" and any(map(any, self.padding))

    @cached_property
    def extent(self) -> Size:
        """Places from the first tap to the last: e = (k - 1) dilation + 1."""
        return tuple((k - 1) * d + 1 for k, d in zip(self.kernel_size, self.dilation, strict=True))

    def check_input_size(self, size: Sequence[int]) -> Size:
        """`size` as a tuple, if `torch.nn.Conv*d` can take it."""
        sizes = as_tuple("input_size", size, self.dims)
        for n, (left, right), e in zip(sizes, self.padding, self.extent, strict=True):
            if n + left + right < e:
                raise InputError(
                    f"input size {sizes} with padding {self.padding} is below the kernel's extent {e}: use a larger "
                    "image, more padding or a smaller kernel"
                )
            most = {"circular": n, "reflect": n - 1}.get(self.padding_mode)
            if most is not None and max(left, right) > most:
                raise InputError(
                    f"{self.padding_mode} padding {self.padding} goes round more than once on an image of size "
                    f"{sizes}: it may be at most {most} there; use a larger image or less padding"
                )
        return sizes

    def output_size(self, input_size: Sequence[int]) -> Size:
        """Size of the output: (n + left + right - e) // stride + 1 in each dimension."""
        sizes = zip(input_size, self.padding, self.extent, self.stride, strict=True)
        return tuple((n + left + right - e) // s + 1 for n, (left, right), e, s in sizes)

    def input_size(self, output_size: Sequence[int]) -> Size:
        """The size that a stride leaves open, settled: of the `stride` many, the multiple of the stride.

        >>> Geometry.of((3, 3), stride=2, padding=1, padding_mode="circular").input_size((8, 8))
        (16, 16)
        """
        outputs = as_tuple("output size", output_size, self.dims)
        sizes = []
        for m, (left, right), e, s in zip(outputs, self.padding, self.extent, self.stride, strict=True):
            largest = m * s + e - left - right - 1
            sizes.append(largest - largest % s)
        if min(sizes) < 1 or self.output_size(sizes) != outputs:
            raise InputError(f"no image has an output of size {outputs}; give output_size, the size of the image")
        return tuple(sizes)

    def between(self, input_size: Sequence[int], output_size: Sequence[int]) -> Geometry:  # noqa: ARG002
        """This geometry, whatever the sizes: only a transposed one leaves open what it makes of an image."""
        return self

    def is_cyclic(self, input_size: Sequence[int]) -> bool:
        """Whether the layer is a block-circulant matrix: it never reads across a border that does not wrap."""
        whole = all(m * s == n for m, s, n in zip(self.output_size(input_size), self.stride, input_size, strict=True))
        return whole and (self.padding_mode == "circular" or not any(map(any, self.padding)))

    def blind_spots(self, input_size: Sequence[int]) -> tuple[bool, bool]:
        """Whether some pixels are read by no output, and whether some outputs see nothing but zeros of the border.

        >>> Geometry.of((3, 3), stride=2, dilation=2, padding=2).blind_spots((8, 8))
        (True, False)
        """
        unread, blind = False, False
        sizes = zip(input_size, self.output_size(input_size), self.kernel_size, self.padding, strict=True)
        for (n, m, k, (left, right)), s, d in zip(sizes, self.stride, self.dilation, strict=True):
            places = np.arange(m)[:, None] * s + np.arange(k) * d  # of the padded image
            line = np.pad(np.arange(n), (left, right), **_NUMPY_PADDING[self.padding_mode])
            sources = line[places]
            unread |= len(np.unique(sources[sources >= 0])) < n
            blind |= bool((sources < 0).all(1).any())
        return unread, blind

    @property
    def taps_of_a_phase(self) -> int:
        """How many taps an entry of a block is a sum of, at most: each of them is rounded."""
        along = zip(self.kernel_size, self.stride, self.dilation, strict=True)
        return math.prod(math.ceil(k * math.gcd(s, d) / s) for k, s, d in along)

    def taps(self) -> tuple[tuple[Size, Size], ...]:
        """Shift and phase of every tap u, in the order of the flattened kernel.

        With x_p[q] = x[stride q + p], the layer is y[j] = sum_u K[u] x_phase(u)[j + shift(u)]:
        the polyphase form, in which a strided convolution is one without a stride on `prod(stride)` times the channels.
        """
        taps = []
        for u in product(*map(range, self.kernel_size)):
            places = [v * d - left for v, d, (left, _) in zip(u, self.dilation, self.padding, strict=True)]
            pairs = [divmod(place, s) for place, s in zip(places, self.stride, strict=True)]
            taps.append((tuple(a for a, _ in pairs), tuple(p for _, p in pairs)))
        return tuple(taps)


def _read(
    kernel_size: Sequence[int],
    stride: int | Sequence[int],
    padding: Padding,
    dilation: int | Sequence[int],
    groups: int,
    padding_mode: str,
) -> Geometry:
    """What the arguments of `Geometry.of` mean."""
    dims = len(kernel_size)
    kernel = as_tuple("kernel_size", kernel_size, dims)
    strides = as_tuple("stride", stride, dims)
    dilations = as_tuple("dilation", dilation, dims)
    if padding_mode not in PADDING_MODES:
        raise InputError(f"padding_mode must be one of {PADDING_MODES}, got {padding_mode!r}")
    groups = whole_number("groups", groups)
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise InputError(f"padding must be 'same', 'valid' or integers, got {padding!r}")
        if padding == "same" and any(s != 1 for s in strides):
            raise InputError(f"padding='same' needs stride 1, got {strides}")
        reach = [(k - 1) * d if padding == "same" else 0 for k, d in zip(kernel, dilations, strict=True)]
        pairs = tuple((r // 2, r - r // 2) for r in reach)
    else:
        sides = tuple(padding) if isinstance(padding, Iterable) else (padding,) * dims
        if len(sides) != dims:
            raise InputError(f"padding must have {dims} entries, got {padding!r}")
        pairs = tuple((pair[0], pair[1]) for pair in (whole_numbers("padding", side, 2, 0) for side in sides))
    return Geometry(kernel, strides, pairs, dilations, groups, padding_mode)


def _is_plain(value: Any) -> bool:
    """Whether this is an integer or a text of Python, or a tuple of integers, which are what they are equal to."""
    return type(value) in (int, str) or (type(value) is tuple and set(map(type, value)) == {int})


_known = lru_cache(maxsize=1024)(_read)
"""Layers are asked for their geometry at each call."""
