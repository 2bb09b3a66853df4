"""What threads and processes share: values computed when first asked for, locks that a fork leaves free, and BLAS.

Nobody waits for another object: what two threads may not do at once, they may not do to the *same* operator or cache.
A thread that holds the lock of an operator computes with tensors and asks no other operator, one that holds the lock of
a cache asks none at all; so there is no order of locks that could go round in a circle.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakSet

import torch
from threadpoolctl import ThreadpoolController

if TYPE_CHECKING:  # to a type checker they are the same
    from functools import cached_property as cached_property
else:

    class cached_property:  # noqa: N801  (as a decorator it is written like the one it stands for)
        """`functools.cached_property` without its lock, which before Python 3.12 all objects of a class share.

        Threads that ask at once may compute at once, and all get what the first to finish has published, whole. Where
        computing twice would be too dear, they ask under the lock of the object that owns this one. A class that uses
        it is pickled and copied by a snapshot, so that another thread may add values meanwhile.
        """

        def __init__(self, compute: Callable[[Any], Any]) -> None:
            self._compute = compute
            self.__doc__ = compute.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name
            if getattr(owner, "__getstate__", None) is getattr(object, "__getstate__", None):
                owner.__getstate__ = _snapshot

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            value = self._compute(instance)
            if getattr(type(instance), self._name) is not self:
                return value  # asked for by `super()`: the subclass keeps what it makes of it
            return instance.__dict__.setdefault(self._name, value)


def _snapshot(instance: Any) -> dict[str, Any]:
    """The attributes of an object as they are now."""
    return dict(instance.__dict__)


_locks: WeakSet[threading.RLock] = WeakSet()


def new_lock() -> threading.RLock:
    """A reentrant lock that is free in every forked child.

    `os.fork` copies locks as they are, and those that other threads hold would never be released in the child.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


def _free_locks() -> None:
    """Free what the threads held that only the parent has."""
    for lock in cast("WeakSet[Any]", _locks):
        if not lock._is_owned():  # noqa: SLF001  (as `threading` itself does it)
            lock._at_fork_reinit()  # noqa: SLF001


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_free_locks)


class ProcessSetting:
    """A setting of the whole process while anybody is inside, as a decorator of the context that makes it.

    The first to come enters the context, and the last to leave leaves it: each for itself, whoever comes and goes late
    would set back what another has set. A child that is forked meanwhile keeps it.
    """

    def __init__(self, context: Callable[[], Iterator[None]]) -> None:
        self._context, self._lock = contextmanager(context), new_lock()
        self._inside = 0
        self._entered: Any = None
        self.__doc__ = context.__doc__

    def __call__(self) -> ProcessSetting:
        """What to enter: within, the setting holds."""
        return self

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._entered = self._context()
                self._entered.__enter__()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._entered.__exit__(None, None, None)


def obey_number_of_threads() -> None:
    """Have this thread compute in as many as `torch.set_num_threads` has said.

    A new thread of Python starts with the number of the environment, and is told when PyTorch first runs a loop in
    parallel: until then, products and convolutions are summed up in another order, and end in other digits.
    """
    if not torch.compiler.is_compiling():
        torch.get_num_threads()


@cache
def _loaded(api: str) -> Any:
    """What sets the threads of the libraries of one kind: a limit that is taken back sets back all that it knows of."""
    return ThreadpoolController().select(user_api=api)


@ProcessSetting
def one_blas_thread() -> Iterator[None]:
    """NumPy's and SciPy's products in one thread, in the whole process, while anybody is inside.

    Their threads and PyTorch's, in turn on the same cores, wait for each other: 100 times slower.
    """
    limit = _loaded("blas").limit(limits=1)
    try:
        yield
    finally:
        limit.restore_original_limits()


SMALL = 2**17
"""Entries of the vectors of an iteration up to which PyTorch makes each in one thread: 4 milliseconds at 12 channels.

Speed only.  Threads wait for each other at the end of each loop, and where others want the core, as long as they have
it: some milliseconds, a thousand times in one run.
"""


@contextmanager
def few_threads(entries: int) -> Iterator[None]:
    """Threads for an iteration of short steps: BLAS has one, see `one_blas_thread`, and PyTorch too on small vectors.

    OpenMP keeps the number of threads for each thread that asks; neither another thread nor `torch.set_num_threads`
    hears of it, and it is the caller's again afterwards.

    Args:
        entries: of a vector.
    """
    with one_blas_thread():
        if entries > SMALL:
            yield
            return
        obey_number_of_threads()  # or PyTorch would tell a new thread of its number at the first loop
        limit = _loaded("openmp").limit(limits=1)
        try:
            yield
        finally:
            limit.restore_original_limits()
