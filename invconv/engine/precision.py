"""The mode in which the engine computes: in the dtype of its tensors, whatever the caller has switched on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from invconv.threads import obey_number_of_threads

DOUBTFUL, HOPELESS = 1e-2, 0.5
"""Relative errors of known images from which an answer is warned of, and refused."""


@contextmanager
def exactly(device: torch.device, keep: bool = False) -> Iterator[None]:
    """No autocast; and where the result is kept, no inference mode, so that training can use it later.

    In as many threads as `torch.set_num_threads` has said, from the first product of a thread on.

    Args:
        device: of the tensors.
        keep: whether the result is kept; it then carries no gradient.
    """
    obey_number_of_threads()
    with ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        if keep:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
        yield
