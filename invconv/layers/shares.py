"""Log-determinants that the processes of a training share:  mean_r grad(P own_r) = grad(sum_r own_r).

Where the gradients of P processes are averaged, and a term of the loss depends on no image, each process can take some
of the layers only and count their gradient P times: the mean is that of all layers. Their values are added up over the
processes, so that each sees the whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from invconv.checks import compute_dtype
from invconv.engine.convolution import Convolution
from invconv.engine.ring_size import system_cost, unknowns_of_inputs
from invconv.errors import InputError, InvconvError, OutOfMemoryError, SingularMapError
from invconv.layers.diagonal import Asked
from invconv.linear import is_transformed

ERRORS = (InvconvError, InputError, SingularMapError, OutOfMemoryError)
"""What a process that fails tells the others, by its place from 1 on: the last that fits."""


class Sharing(NamedTuple):
    """The processes among which log-determinants are dealt out, and which of them this one is."""

    group: Any
    processes: int
    rank: int


_sharing: ContextVar[Sharing | None] = ContextVar("sharing", default=None)


@contextmanager
def shared_log_dets(group: Any = None) -> Iterator[None]:
    """Let each process compute the log-determinants of some layers of a flow only, within this context.

    For a training whose gradients are averaged over processes, as `DistributedDataParallel` does, and `fully_shard` on
    a mesh of them all. The average is then that of a training without, and the log-determinant that a flow returns is
    the whole one in all processes. Its gradient in one process is not: it is P times that of the layers which this
    process has taken, P being the number of processes.

    All processes run the same flow on images of the same size, as often as each other: each log-determinant of a flow
    is then one call of `all_reduce`, for a few numbers. Alone, or where `torch.distributed` is not in use, a process
    computes all, and so do functions of `torch.func`.

    Args:
        group: of the processes, as `DistributedDataParallel` has it; None for all.

    Raises:
        InputError: if this process is not in the group; within, if another process has other layers, or images of
            another size.
        SingularMapError, OutOfMemoryError: within, in all processes, if one of them finds a layer so.

    Example:
        >>> from invconv.flows import MultiScaleFlow
        >>> flow = MultiScaleFlow(image_size=8, scales=1, steps=1, hidden=8)
        >>> with shared_log_dets():
        ...     loss = flow.bits_per_dim(torch.randint(256, (2, 3, 8, 8))).mean()
        >>> loss.backward()
    """
    token = _sharing.set(_among(group))
    try:
        yield
    finally:
        _sharing.reset(token)


@contextmanager
def alone() -> Iterator[None]:
    """Share nothing within this context."""
    token = _sharing.set(None)
    try:
        yield
    finally:
        _sharing.reset(token)


def _among(group: Any) -> Sharing | None:
    """The processes of a group; None where there is one only."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    count, rank = dist.get_world_size(group), dist.get_rank(group)
    if rank < 0:
        raise InputError(f"process {dist.get_rank()} is not in the group that shares log-determinants: leave it out")
    return Sharing(group, count, rank) if count > 1 else None


def summed(asked: Sequence[Asked], total: Callable[[Sequence[Asked]], Tensor]) -> Tensor:
    """The sum of the log-determinants of some layers, dealt out among the processes that share them.

    Args:
        asked: the layers, all of them.
        total: their sum, for any of them.
    """
    sharing = _sharing.get()
    if sharing is None or is_transformed(asked[0][1]):
        return total(asked)
    own, error = asked[0][1].new_zeros((), dtype=compute_dtype(asked[0][1].dtype)), None
    try:
        mine = _share(asked, sharing)
        own = total(mine) if mine else own
    except Exception as caught:  # the others, who wait for the sum, are to hear of it first
        error = caught
    rows = _exchanged(own, error, asked, sharing)
    if error is not None:
        raise error
    _check_others(rows, sharing)
    return rows[:, 0].sum().to(own.dtype) + sharing.processes * (own - own.detach())


def _share(asked: Sequence[Asked], sharing: Sharing) -> list[Asked]:
    """The layers that this process takes."""
    owners = dealt([_work(*each) for each in asked], [(layer, size) for layer, _, size in asked], sharing.processes)
    return [each for each, owner in zip(asked, owners, strict=True) if owner == sharing.rank]


def dealt(work: Sequence[float], keys: Sequence[Any], count: int) -> list[int]:
    """The process that takes each of some pieces of work: the largest first, to who has least.

    Pieces of one key are one piece, which is computed once. Graham, *Bounds on multiprocessing timing anomalies*
    (1969): no process has more than 4/3 of the least that the busiest can have.

    Args:
        work: how much each is.
        keys: what each is.
        count: of processes.
    """
    pieces = dict(zip(keys, work, strict=True))
    load, owners = [0.0] * count, {}
    for key in sorted(pieces, key=lambda key: -pieces[key]):  # stable, so the same in all processes
        owners[key] = least = load.index(min(load))
        load[least] += pieces[key]
    return [owners[key] for key in keys]


def _work(layer: Any, weight: Tensor, size: Any) -> float:
    """Operations of a log-determinant, about, by shapes alone: neither values nor free memory may tell processes apart.

    Those of a torus and its ring; speed only.
    """
    conv = Convolution(weight.detach(), layer.geometry, layer.geometry.check_input_size(size))
    return system_cost(conv, unknowns_of_inputs(conv)).factors


def _exchanged(own: Tensor, error: Exception | None, asked: Sequence[Asked], sharing: Sharing) -> Tensor:
    """The sum of each process, what went wrong there, and what it was asked for: (processes, 3), the same in all."""
    what = [(layer.geometry, layer.options, tuple(weight.shape), weight.dtype, size) for layer, weight, size in asked]
    fitting = [place for place, kind in enumerate(ERRORS, start=1) if isinstance(error, kind)]
    rows = own.new_zeros(sharing.processes, 3, dtype=torch.float64)
    rows[sharing.rank, 0] = own.detach()
    rows[sharing.rank, 1] = 0 if error is None else max(fitting, default=1)
    rows[sharing.rank, 2] = zlib.crc32(repr(what).encode())
    dist.all_reduce(rows, group=sharing.group)  # of zeros but for one: no digit is lost
    return rows


def _check_others(rows: Tensor, sharing: Sharing) -> None:
    """Raise what another process has raised, or InputError if it was asked for something else."""
    for process, (_, failed, what) in enumerate(rows.tolist()):
        if failed:
            raise ERRORS[int(failed) - 1](
                f"process {process} cannot compute its share of the log-determinants: see there"
            )
        if what != rows[sharing.rank, 2]:
            raise InputError(
                f"processes {sharing.rank} and {process} share the log-determinants of different layers, or for images "
                "of different sizes: give all processes the same flow and images of one size, or share nothing"
            )
