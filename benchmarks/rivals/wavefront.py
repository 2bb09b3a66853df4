"""The published parallel way back through masked convolutions: all pixels of an anti-diagonal at once.

Of a kernel of 2 x 2 taps the pixels of an anti-diagonal read each other's right, lower and lower right neighbours only,
which are on later ones: n + m - 1 steps in place of n m.  A port of the idea (emerging convolutions, 2019; FInC flow,
2023, in CUDA) with what makes it fast in PyTorch: pixels come first in memory, an anti-diagonal is a strided slice, the
inverse of the pixel's own tap is multiplied into the others beforehand, and each tap is one product.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Wavefront:
    """The inverse of z = K2 * (K1 * x), anti-diagonal by anti-diagonal.

    Args:
        first: K1, (channels, channels, 2, 2); a pixel reads itself, its right, lower and lower right neighbours.
        second: K2, where it reads itself last.
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.taps = [_normalised(first), _normalised(second.flip(2, 3))]

    def inverse(self, z: Tensor) -> Tensor:
        """`z: (batch, channels, height, width)` to x."""
        between = _solve(*self.taps[1], z.flip(2, 3)).flip(2, 3)
        return _solve(*self.taps[0], between)


def _normalised(kernel: Tensor) -> tuple[Tensor, list[Tensor]]:
    """K00^-1, and K00^-1 K of the right, lower and lower right neighbours, to be multiplied by from the right."""
    own = torch.linalg.inv(kernel[:, :, 0, 0])
    rest = [kernel[:, :, 0, 1], kernel[:, :, 1, 0], kernel[:, :, 1, 1]]
    return own.mT.contiguous(), [(own @ tap).mT.contiguous() for tap in rest]


def _solve(own: Tensor, rest: list[Tensor], z: Tensor) -> Tensor:
    """The x with `kernel * x = z`."""
    batch, channels, height, width = z.shape
    x = z.new_zeros(height + 1, width + 1, batch, channels)  # with the zeros beyond the right and lower borders
    x[:-1, :-1] = z.permute(2, 3, 0, 1) @ own
    pixels = x.flatten(0, 1)
    for diagonal in range(height + width - 2, -1, -1):
        first, last = max(0, diagonal - width + 1), min(height - 1, diagonal)
        start, count = first * width + diagonal, last - first + 1
        near = (pixels[start + step :: width][:count] for step in (1, width + 1, width + 2))
        known = sum(neighbours @ tap for neighbours, tap in zip(near, rest, strict=True))
        pixels[start::width][:count] -= known
    return x[:-1, :-1].permute(2, 3, 0, 1)
