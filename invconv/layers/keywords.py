"""Keywords that do not exist: an error that names what was called, and the nearest keyword that does."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from functools import wraps
from typing import Any, TypeVar

C = TypeVar("C", bound=Callable[..., None])


def check_keywords(function: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse keywords that a function does not take.

    Raises:
        TypeError: for the first of `names` that is not among `known`.
    """
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}; {hint}")


def names_itself(init: C) -> C:
    """Have a constructor that several classes share name the class that was called where a keyword is misspelt."""
    known = [name for name in inspect.signature(init).parameters if name != "self"]

    @wraps(init)
    def checked(self: Any, *args: Any, **arguments: Any) -> None:
        check_keywords(type(self).__name__, arguments, known)
        init(self, *args, **arguments)

    return checked  # type: ignore[return-value]
