"""How much memory there is to be had."""

from __future__ import annotations

import psutil
import torch


def available_memory(device: torch.device) -> int:
    """Bytes that can be had on a device.

    This function is looked up in this module at each call, so that a test can put another answer in its place.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return int(psutil.virtual_memory().available)
