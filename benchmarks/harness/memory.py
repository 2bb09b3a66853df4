"""The memory of PyTorch's tensors during one call."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from benchmarks.harness.machine import synchronize


def peak(call: Callable[[], object]) -> int:
    """Bytes: by how much the memory of PyTorch's tensors grows at most during one call.

    Of tensors rather than of the process, whose allocator keeps what it was given.  On the CPU the workspace of MKL and
    oneDNN is not seen, and tensors from before the call that it frees are not subtracted.
    """
    if torch.cuda.is_initialized():
        synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    live: dict[int, int] = {}
    held = most = 0
    for _, address, size in sorted(_allocations(profiler.profiler.kineto_results.experimental_event_tree())):
        if size > 0:
            live[address] = size
            held += size
        else:
            held -= live.pop(address, 0)  # the profiler may give a tensor from before the call another's size
        most = max(most, held)
    return most


def _allocations(events: Iterable[Any]) -> Iterator[tuple[int, int, int]]:
    """(time, address, bytes), negative where memory is freed."""
    for event in events:
        if event.tag == _EventType.Allocation:
            yield event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size
        yield from _allocations(event.children)


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler tells standard error, past Python, that it starts and of each tensor older than itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
