"""The device that a command is to compute on, by its name."""

from __future__ import annotations

import torch

from invconv.errors import InputError


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: if it cannot be used here.

    Example:
        >>> usable_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch without CUDA asserts
        reason = " ".join(str(error).split())
        raise InputError(f"device {name!r} cannot be used here ({reason[:200]}): cpu always can") from error
    return device
