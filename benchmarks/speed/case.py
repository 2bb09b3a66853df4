"""The layer that the cases of `ratios` time, and images for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invconv import InvertibleConv2d


def layer(
    channels: int, side: int, batch: int, device: str, kernel: int = 3, **options: Any
) -> tuple[InvertibleConv2d, Tensor]:
    torch.manual_seed(0)
    options = {"padding": kernel // 2, "padding_mode": "circular", "bias": False, "device": device, **options}
    x = torch.randn(batch, channels, side, side, device=device)
    return InvertibleConv2d(channels, channels, kernel, **options), x
