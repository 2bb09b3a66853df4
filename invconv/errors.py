"""What can go wrong, by name: every error and warning that the library raises on purpose."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class InvconvError(Exception):
    """Base of all errors of this library."""

    reached: float | None = None
    """How far iterations had come, where they were for one number."""


class InputError(InvconvError, ValueError):
    """A shape, size, type or value that the map cannot take; the text names it and what to do."""


class CheckpointError(InputError, RuntimeError):
    """A checkpoint that does not belong to the module it is loaded into; the text names what differs."""


class NotSquareError(InputError):
    """A determinant was asked of a map that has none; its log-volume exists."""


class SingularMapError(InvconvError, RuntimeError):
    """The map is singular to working precision, so that the quantity asked for does not exist."""


class OutOfMemoryError(InvconvError, MemoryError):
    """What was asked for needs more memory than there is; the text says how much and what to do instead."""


class TooLongError(InvconvError, TimeoutError):
    """What was asked for takes more time than was given; the text says how much that was."""


class UnfinishedError(InvconvError, OSError):
    """An array could not be filled to its end; the text says how much of it is right and how to go on."""


class MissingPackageError(InvconvError, ImportError):
    """A plug was imported without the library it plugs into; the text names the extra that installs it."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what comes with an extra: where a package is missing, the error names the extra that installs it.

    Raises:
        MissingPackageError: in place of an `ImportError` of anybody else's package.
    """
    try:
        yield
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if isinstance(error, MissingPackageError) or package in ("", "invconv"):
            raise
        raise MissingPackageError(f'this module needs {package}: pip install "invconv[{extra}]"') from error


class IllConditionedWarning(UserWarning):
    """Digits were lost, or singular values cut off; the text carries the numbers."""


PASSED_OVER = ("invconv", "torch", "lightning", "functools", "contextlib")
"""Packages whose lines are no caller's."""


_unsaid = ContextVar("unsaid", default=False)


@contextmanager
def unsaid() -> Iterator[None]:
    """Say nothing of answers that nobody asked for: those by which a solver is tried."""
    token = _unsaid.set(True)
    try:
        yield
    finally:
        _unsaid.reset(token)


def warn(text: str, category: type[Warning] = IllConditionedWarning) -> None:
    """Give a warning at the caller's line: the nearest one outside of `PASSED_OVER`."""
    if _unsaid.get():
        return
    frame, level = sys._getframe(1), 1  # noqa: SLF001  (there is no public name for it)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PASSED_OVER:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, category, stacklevel=level + 1)


def warn_cut_off(rank: int, full_rank: int, rtol: float) -> None:
    """Say that a pseudo-inverse is one of lower rank."""
    warn(
        f"{full_rank - rank} of {full_rank} singular values lie below rtol = {rtol:.1e} times the largest "
        "and are cut off: what they carried is not recovered"
    )
