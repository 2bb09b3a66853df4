"""The mode in which the engine computes: in the dtype of its tensors, whatever the caller has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from invconv.engine.products import full_products
from invconv.threads import obey_number_of_threads

DOUBTFUL, HOPELESS = 1e-2, 0.5
"""Relative errors of known images from which an answer is warned of, and refused."""


def without_autocast(kind: str) -> AbstractContextManager[object]:
    """No autocast on this kind of device, where there is one: a switch that is off already, no export has to record."""
    off = kind == "meta" or not torch.is_autocast_enabled(kind)  # "meta" knows no autocast
    return nullcontext() if off else torch.autocast(kind, enabled=False)


@contextmanager
def exactly(device: torch.device, keep: bool = False) -> Iterator[None]:
    """No autocast, no products of fewer bits, and no inference mode where the result is kept: training may use it.

    In as many threads as `torch.set_num_threads` has said, from the first product of a thread on.

    Args:
        device: of the tensors.
        keep: whether the result is kept; it then carries no gradient.
    """
    obey_number_of_threads()
    with without_autocast(device.type), full_products(device):
        if not keep:
            yield
            return
        with torch.inference_mode(False), torch.no_grad():
            yield
