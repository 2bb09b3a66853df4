"""The FFT recipe: the pseudo-inverse of the kernel's spectrum times the image's, which takes the image for periodic."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Size = Sequence[int]


def spectrum(weight: Tensor, size: Size) -> Tensor:
    """K_f of the cyclic layer: (out, in, k, k) -> (height, width // 2 + 1, out, in), in the layout of the FFT."""
    k = weight.shape[2:]
    padded = F.pad(weight, (0, size[1] - k[1], 0, size[0] - k[0])).roll((-(k[0] // 2), -(k[1] // 2)), (2, 3))
    return torch.fft.rfft2(padded).conj().permute(2, 3, 0, 1)


def multiply(blocks: Tensor, x: Tensor) -> Tensor:
    """One matrix for each frequency. blocks: (height, width // 2 + 1, out, in), x: (batch, in, height, width)."""
    return torch.fft.irfft2(torch.einsum("hwoi,bihw->bohw", blocks, torch.fft.rfft2(x)), s=x.shape[2:])


def recipe(weight: Tensor, size: Size) -> Tensor:
    """The FFT recipe in print: `torch.linalg.pinv` for each frequency, to be applied with `multiply`."""
    return torch.linalg.pinv(spectrum(weight, size))
