"""A bar that moves on by one window, for those who ask for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from invconv.errors import needs


@contextmanager
def bar(wanted: bool, total: int, finished: int) -> Iterator[Callable[[], None]]:
    """What moves a bar on by one window; no bar where none is wanted.

    Raises:
        MissingPackageError: if one is wanted and there is no rich.
    """
    if not wanted:
        yield lambda: None
        return
    with needs("pictures"):
        from rich.progress import Progress
    with Progress() as progress:
        task = progress.add_task("windows", total=total, completed=finished)
        yield lambda: progress.advance(task)
