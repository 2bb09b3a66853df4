"""Methods that `torch.compile` leaves as they are, with the types that they have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

F = TypeVar("F", bound=Callable[..., Any])


def eager(function: F) -> F:
    """The function, one break in the graph of `torch.compile`, its signature still known to type checkers."""
    return cast(F, torch.compiler.disable(function))
