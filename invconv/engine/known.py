"""Images that are known: how many of them are sent through a layer and back, and in how much memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution

KNOWN = 4
"""Known images that are sent through.  Where one singular value decides, the error of one image is a normal variable
and may be next to nothing by chance; four are together within 10 of its size but for 2 times in 10,000."""

MOST_KNOWN = 2**22
"""Entries that the known images have together, if there are several; memory and speed only."""

AT_ONCE = 2**18
"""Entries of images, or of their outputs, that make a round trip at once.  Memory and speed only."""

PASSING, WAITING = 8, 4
"""Copies in float64 of an image on its way, and of one that waits for the others.

Of 1024 x 1024 images, `report` takes 285 MiB by a ring, of which this foresees 192, and the ring's plan 119.
"""


def images(side: tuple[int, ...], seed: int) -> Tensor:
    """White noise in float64, as images of this shape: `KNOWN` of them, or as many as memory likes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(_count(math.prod(side)), *side, generator=generator, dtype=torch.float64)


def at_once(shape: tuple[int, int]) -> int:
    """How many images make a round trip together through a map of this shape."""
    return max(1, AT_ONCE // max(shape))


def bytes_for(conv: Convolution) -> int:
    """Memory of the images and of what is on its way, beside the factors; an answer for one image takes no more."""
    count = _count(conv.shape[1])
    passing = min(count, at_once(conv.shape)) * max(conv.shape)
    return 8 * (PASSING * passing + WAITING * count * conv.shape[1])


def _count(side: int) -> int:
    """How many images of so many entries are known."""
    return max(1, min(KNOWN, MOST_KNOWN // side))
