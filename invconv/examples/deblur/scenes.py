"""Photographs of scikit-image, a shaken camera, and what stood beyond the edge of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invconv.errors import needs

with needs("pictures"):
    from skimage import color, data

NAMES = (
    "camera",
    "astronaut",
    "chelsea",
    "coffee",
    "rocket",
    "stereo_motorcycle",
    "coins",
    "moon",
    "brick",
    "grass",
    "gravel",
    "immunohistochemistry",
)
"""All are in the package, none has to be downloaded."""

PADDING_MODES = {"valid": "zeros", "zeros": "zeros", "reflect": "reflect"}
"""What stands beyond the edge, and the word that a layer has for it; "valid" reads what really stood there."""


def photograph(name: str) -> np.ndarray:
    """A photograph in grey, (height, width), float64 from 0 to 1."""
    image = getattr(data, name)()
    image = image[0] if isinstance(image, tuple) else image
    return color.rgb2gray(image[..., :3]) if image.ndim == 3 else image / 255.0


def shake(taps: int, seed: int = 3) -> Tensor:
    """The path of a hand-held camera during an exposure, (taps, taps), of sum one; the same for each seed."""
    random = np.random.default_rng(seed)
    speed = np.cumsum(random.normal(size=(400, 2)), axis=0)
    path = np.cumsum(speed - 0.7 * speed.mean(0), axis=0)
    low, high = path.min(0), path.max(0)
    path = (path - (low + high) / 2) * (taps - 3) / (high - low).max() + taps // 2
    kernel = np.zeros((taps, taps))
    for place in path:  # each moment of the exposure lies between four taps
        corner = np.floor(place).astype(int)
        part = place - corner
        for i, j in np.ndindex(2, 2):
            weight = (part[0] if i else 1 - part[0]) * (part[1] if j else 1 - part[1])
            kernel[corner[0] + i, corner[1] + j] += weight
    return torch.from_numpy(kernel / kernel.sum())


@dataclass(frozen=True)
class Scene:
    """A picture to be restored."""

    name: str
    truth: Tensor
    """(1, 1, side, side)."""
    blurred: Tensor
    """Of the same size."""
    kernel: Tensor
    """(taps, taps), as a convolution layer reads it: y[i] = sum_u kernel[u] x[i + u - taps // 2]."""
    border: str
    noise: float


def scenes(border: str, side: int, taps: int, noise: float, count: int) -> Iterator[Scene]:
    """The middle of each photograph, blurred; beyond its edge stands what the border says."""
    kernel = shake(taps)
    for i, name in enumerate(NAMES[:count]):
        image = torch.from_numpy(photograph(name))[None, None]
        whole = _middle(image, side + taps - 1)
        truth = _middle(whole, side)
        if border == "valid":
            wide = whole
        else:
            wide = F.pad(truth, (taps // 2,) * 4, mode="constant" if border == "zeros" else border)
        generator = torch.Generator().manual_seed(i)
        grain = noise * torch.randn(truth.shape, generator=generator, dtype=torch.float64)
        yield Scene(name, truth, F.conv2d(wide, kernel[None, None]) + grain, kernel, border, noise)


def _middle(image: Tensor, side: int) -> Tensor:
    """The square in the middle of an image."""
    top, left = ((n - side) // 2 for n in image.shape[-2:])
    return image[..., top : top + side, left : left + side]
