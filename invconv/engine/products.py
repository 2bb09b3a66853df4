"""Products of float32 in float32: networks may be allowed TF32 or bfloat16, an inverse has digits to lose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from invconv.threads import new_lock

_lock = new_lock()
_inside: dict[str, int] = {}
_taken_back: dict[str, list[Callable[[], None]]] = {}
"""For each kind of device how many are inside, and what the last to leave has to do."""


@contextmanager
def full_products(device: torch.device) -> Iterator[None]:
    """Products and convolutions of float32 in all of its 24 bits, in the whole process, while anybody is inside.

    `torch.set_float32_matmul_precision` and the settings of `torch.backends` allow 11 or 8; for convolutions on a GPU
    that is PyTorch's default.  The last to leave sets back what the first has found.
    """
    kind = device.type
    with _lock:
        if not _inside.get(kind):
            _taken_back[kind] = _made_full(kind)
        _inside[kind] = _inside.get(kind, 0) + 1
    try:
        yield
    finally:
        with _lock:
            _inside[kind] -= 1
            if not _inside[kind]:
                for take_back in _taken_back.pop(kind):
                    take_back()


def _made_full(device: str) -> list[Callable[[], None]]:
    """Set what is coarse; what takes that back."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # before PyTorch 2.9
        return _made_full_globally(device)
    kinds = (
        (backends.cuda.matmul, backends.cudnn.conv)
        if device == "cuda"
        else (
            backends.mkldnn.matmul,
            backends.mkldnn.conv,
        )
    )
    taken_back: list[Callable[[], None]] = []
    for kind in kinds:
        if kind.fp32_precision in ("tf32", "bf16"):
            taken_back.append(partial(_set_back, kind, kind.fp32_precision))
            kind.fp32_precision = "ieee"
    return taken_back


def _set_back(kind: Any, precision: str) -> None:
    """To the precision that it had, by itself only if it has not got it from a wider setting."""
    kind.fp32_precision = "none"
    if kind.fp32_precision != precision:
        kind.fp32_precision = precision


def _made_full_globally(device: str) -> list[Callable[[], None]]:
    taken_back: list[Callable[[], None]] = []
    precision = torch.get_float32_matmul_precision()
    if precision != "highest":
        torch.set_float32_matmul_precision("highest")
        taken_back.append(partial(torch.set_float32_matmul_precision, precision))
    if device == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.backends.cudnn.allow_tf32 = False
        taken_back.append(partial(setattr, torch.backends.cudnn, "allow_tf32", True))
    return taken_back
