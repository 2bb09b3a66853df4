"""Products of float32 in float32: networks may be allowed TF32 or bfloat16, an inverse has digits to lose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from invconv.threads import ProcessSetting


def full_products(device: torch.device) -> AbstractContextManager[None]:
    """Products and convolutions of float32 in all of its 24 bits, in the whole process, while anybody is inside.

    `torch.set_float32_matmul_precision` and the settings of `torch.backends` allow 11 or 8; for convolutions on a GPU
    that is PyTorch's default.
    """
    return _on_gpus() if device.type == "cuda" else _on_others()


@ProcessSetting
def _on_gpus() -> Iterator[None]:
    """Those of CUDA."""
    yield from _full("cuda")


@ProcessSetting
def _on_others() -> Iterator[None]:
    """Those of the CPU."""
    yield from _full("cpu")


def _full(device: str) -> Iterator[None]:
    """Set what is coarse, and take it back."""
    backends: Any = torch.backends
    if not hasattr(backends.cudnn, "conv"):  # before PyTorch 2.9
        yield from _full_globally(device)
        return
    cuda = (backends.cuda.matmul, backends.cudnn.conv)
    kinds = cuda if device == "cuda" else (backends.mkldnn.matmul, backends.mkldnn.conv)
    coarse = [(kind, kind.fp32_precision) for kind in kinds if kind.fp32_precision in ("tf32", "bf16")]
    for kind, _ in coarse:
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        for kind, precision in coarse:
            if kind is not backends.cudnn.conv:  # which has a precision of its own from the start
                kind.fp32_precision = "none"
            if kind.fp32_precision != precision:  # it had not got it from a wider setting
                kind.fp32_precision = precision


def _full_globally(device: str) -> Iterator[None]:
    """The same by the two settings that there were."""
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = convolutions and device != "cuda"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions
