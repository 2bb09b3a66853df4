"""How near a picture is to what it should be."""

from __future__ import annotations

from torch import Tensor


def psnr(x: Tensor, truth: Tensor) -> float:
    """Peak signal to noise, dB, of values from 0 to 1."""
    return float(-10 * (x.clamp(0, 1) - truth).square().mean().log10())
