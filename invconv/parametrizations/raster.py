"""Raster orders by name, "right-down" and the like: which taps of a kernel read later pixels of an image.

An order names the way in which it walks along each axis, the fastest first. "right-down" is the order in which text is
read; a PixelCNN, which predicts pixels in that order from those before, has kernels that read "left-up".
"""

from __future__ import annotations

from typing import Any

from invconv.errors import InputError
from invconv.geometry import Geometry, Size

WORDS = {"right": (-1, 1), "left": (-1, -1), "down": (-2, 1), "up": (-2, -1), "in": (-3, 1), "out": (-3, -1)}
"""The axis of the image, counted from the last one, and the direction along it."""

SUPPORTS = ("quarter", "half")


def check_order(order: Any, support: Any, dims: int) -> str:
    """The name of an order, one for all that are the same to a support.

    Args:
        order: words joined by hyphens, one for each axis.
        support: "quarter" or "half"; in a quarter it does not matter which axis is the fastest.
        dims: axes of the image.

    Raises:
        InputError: for other words, or other axes.
    """
    if support not in SUPPORTS:
        raise InputError(f"support must be one of {SUPPORTS}, got {support!r}")
    words = order.split("-") if isinstance(order, str) else []
    axes = sorted(WORDS[word][0] for word in words if word in WORDS)
    if len(axes) != len(words) or axes != list(range(-dims, 0)):
        named = [word for word, (axis, _) in WORDS.items() if axis >= -dims]
        raise InputError(
            f"order must name one direction of {named} for each of the {dims} axes, the fastest first, as in "
            f"{'-'.join(['right', 'down', 'in'][:dims])!r}; got {order!r}"
        )
    return order if support == "half" else "-".join(sorted(words, key=lambda word: -WORDS[word][0]))


def opposite(order: str) -> str:
    """The order that goes through the pixels the other way round."""
    turned = {way: word for word, way in WORDS.items()}
    return "-".join(turned[axis, -sign] for axis, sign in (WORDS[word] for word in order.split("-")))


def later_taps(geometry: Geometry, order: str, support: str) -> list[int]:
    """The taps, as flat indices, that read pixels after their own.

    Args:
        geometry: without a stride.
        order: as `check_order` gives it.
        support: "half" for all pixels that come later; "quarter" for those that are before their own along no axis.
    """
    # From the slowest axis to the fastest, so that later pixels have larger words.
    ways = [WORDS[word] for word in reversed(order.split("-"))]

    def reads_later(shift: Size) -> bool:
        steps = tuple(sign * shift[axis] for axis, sign in ways)
        return any(steps) and (min(steps) >= 0 if support == "quarter" else steps > (0,) * len(steps))

    return [tap for tap, (shift, _) in enumerate(geometry.taps()) if reads_later(shift)]
