"""A limit of time that is kept: what is computed within it looks at the clock between its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from invconv.errors import TooLongError

_end = ContextVar("end", default=math.inf)
"""When time is up, by the clock of `time.monotonic`."""

_limit = ContextVar("limit", default=math.inf)
"""Seconds that there were."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Let what is computed take so long and no longer, or what is left of an outer limit."""
    end = _end.set(min(_end.get(), time.monotonic() + seconds))
    limit = _limit.set(min(_limit.get(), seconds))
    try:
        yield
    finally:
        _limit.reset(limit)
        _end.reset(end)


def is_set() -> bool:
    """Whether there is a limit."""
    return _end.get() < math.inf


def look(foreseen: float = 0.0) -> None:
    """Look at the clock before a step.

    Args:
        foreseen: seconds that the step will take, about.

    Raises:
        TooLongError: if the time is up, or would be.
    """
    if time.monotonic() + foreseen > _end.get():
        raise TooLongError(f"it would take more than {_limit.get():g} s")
