"""Models as others wrap them, for several devices or compiled: the module inside is what is inverted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from invconv.threads import ProcessSetting

PARALLEL = nn.DataParallel, nn.parallel.DistributedDataParallel
COMPILED = "_orig_mod"
"""The name that `torch.compile` gives to the module inside."""


def inside(model: nn.Module) -> tuple[str, nn.Module | None]:
    """Name and module of what a wrapper calls; None for what is no wrapper."""
    name = "module" if isinstance(model, PARALLEL) else COMPILED
    inner = dict(model.named_children()).get(name)
    return name, inner


def unwrapped(model: nn.Module) -> tuple[nn.Module, str]:
    """The module inside all wrappers, and what stands before its names in those of the whole.

    Example:
        >>> model, prefix = unwrapped(nn.DataParallel(nn.Linear(2, 2)))
        >>> type(model).__name__, prefix
        ('Linear', 'module.')
    """
    prefix = ""
    while isinstance(model, nn.Module):
        name, inner = inside(model)
        if inner is None:
            break
        model, prefix = inner, f"{prefix}{name}."
    return model, prefix


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Within, nothing in `model` is compiled, nor spread over devices; on leaving, it is as before."""
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, nn.DataParallel):
                stack.callback(setattr, module, "device_ids", module.device_ids)
                module.device_ids = []
            own: dict[str, Any] = vars(module)
            if own.get("_compiled_call_impl") is not None:  # by module.compile()
                stack.callback(own.__setitem__, "_compiled_call_impl", own["_compiled_call_impl"])
                own["_compiled_call_impl"] = None
        if any(inside(module)[0] == COMPILED and inside(module)[1] is not None for module in model.modules()):
            stack.enter_context(_uncompiled())
        yield


@ProcessSetting
def _uncompiled() -> Iterator[None]:
    """Compiled functions run as they were written."""
    with torch.compiler.set_stance("force_eager"):
        yield
