"""What is plain Python here, and what PyTorch's compilers and tracers are shown in its place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """The function, one break in the graph of `torch.compile`, its signature still known to type checkers.

    As `torch.compiler.disable`, which would import the compiler, a second of time, when a layer is first heard of. Who
    compiles has imported it.
    """
    disabled: list[F] = []

    @wraps(function)
    def call(*args: Any, **arguments: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **arguments)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **arguments)

    return cast(F, call)


def read_as(shown: Callable[..., Any]) -> Callable[[F], F]:
    """Show another function to those who read signature or source: TorchScript, fx and `torch.export`.

    They find a method that takes no more than `torch.nn.Conv*d` does, and that they can compile; who calls it calls
    the function itself.
    """

    def decorate(function: F) -> F:
        function.__wrapped__ = shown  # type: ignore[attr-defined]  # what `inspect.unwrap` follows
        return function

    return decorate


def is_eager(x: Any) -> bool:
    """Whether this is a tensor with sizes that are numbers, rather than one that stands for tensors of any size."""
    return type(x) is Tensor and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
