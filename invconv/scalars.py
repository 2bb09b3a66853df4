"""Numbers among the arguments: of Python or NumPy they are taken, all else is refused by name and value."""

from __future__ import annotations

import numbers
import operator
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from invconv.errors import InputError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """An integer of Python or NumPy, as Python's own.

    Raises:
        InputError: for anything else, and for numbers below `least`.
    """
    number = value if type(value) is int else None
    if number is None and not isinstance(value, (bool, np.bool_, torch.Tensor)):
        with suppress(TypeError):
            number = operator.index(value)
    if number is None or number < least:
        raise InputError(f"{name} must be an integer of at least {least}, got {_said(value)}")
    return number


def real_number(
    name: str, value: Any, where: str, allowed: Callable[[float], bool], optional: bool = True
) -> float | None:
    """A real number of Python or NumPy, as Python's own; None where that is allowed.

    Args:
        name: of the argument, for the error.
        value: what was given.
        where: in words, what the number must do to be allowed.
        allowed: which these are.
        optional: whether None is allowed.

    Raises:
        InputError: for anything else; the text says what was given.
    """
    if value is None and optional:
        return None
    real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
    if not real or not allowed(float(value)):  # NaN is nowhere
        raise InputError(f"{name} must {where}, got {_said(value)}")
    return float(value)


def whole_numbers(name: str, value: Any, count: int, least: int = 1) -> tuple[int, ...]:
    """So many integers; one number stands for all: `3` and `(3, 3)` are the same.

    Raises:
        InputError: for anything else, another count, and numbers below `least`.
    """
    if type(value) is tuple and len(value) == count and all(type(v) is int and v >= least for v in value):
        return value  # as it is nearly always
    try:
        values = tuple(value)
    except TypeError:  # no sequence
        values = (value,) * count
    try:
        whole = tuple(whole_number(name, v, least) for v in values)
    except InputError:
        whole = ()
    if len(whole) != count:
        given = _said(value) if isinstance(value, torch.Tensor) and not value.dim() else repr(value)
        raise InputError(f"{name} must be {count} integers of at least {least}, got {given}")
    return whole


def as_python(value: Any) -> Any:
    """Integers of NumPy, alone or in a sequence, as Python's own, which compilers take; all else as it is."""
    if isinstance(value, np.ndarray):
        value = tuple(value) if value.ndim else value[()]
    if isinstance(value, (tuple, list)):
        return type(value)(map(as_python, value))
    return int(value) if isinstance(value, np.integer) else value


def _said(value: Any) -> str:
    """A value in an error: its type where that is what is wrong."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}: call .item() on it, since options are numbers without gradient"
    return f"{value!r} of type {type(value).__name__}" if isinstance(value, (str, bool)) else repr(value)
