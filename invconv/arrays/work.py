"""What is done to a window, in this process or in several: the parent reads and writes, the others compute."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np
import torch

from invconv.operator import ConvOperator


class Work:
    """What is done to a window; the same in all processes.

    Args:
        inverts: whether the inverse is asked for, rather than the layer itself.
        operator: of a window.
        bias: of the layer.
    """

    def __init__(self, inverts: bool, operator: ConvOperator, bias: np.ndarray | None) -> None:
        self.inverts, self.operator, self.bias = inverts, operator, bias

    @property
    def dtype(self) -> np.dtype:
        """In which windows are computed."""
        return torch.empty(0, dtype=self.operator.dtype).numpy().dtype

    def __call__(self, block: np.ndarray) -> np.ndarray:
        """(channels, *size) to the same of the answer."""
        bias = 0 if self.bias is None else self.bias.reshape(-1, *[1] * (block.ndim - 1))
        images = torch.from_numpy(block - bias if self.inverts else block)[None].to(self.operator.weight.device)
        with torch.no_grad():
            answer = self.operator.pseudo_inverse(images) if self.inverts else self.operator.forward(images)
        found: np.ndarray = answer[0].cpu().numpy()
        return found if self.inverts else found + bias


_work: Work


def answers(
    work: Work, blocks: Iterable[tuple[int, np.ndarray]], count: int, processes: int
) -> Iterator[tuple[int, np.ndarray]]:
    """The answers, in whatever order they come; of the windows no more are held than there are processes, and one."""
    if count and work.inverts:
        work.operator.prepare()  # what is to be said of the answers is said here, and once
    if processes == 1 or count < 2:
        yield from ((index, work(block)) for index, block in blocks)
        return
    threads = max(1, torch.get_num_threads() // processes)
    with ProcessPoolExecutor(processes, get_context("spawn"), _begin, (work, threads)) as pool:
        pending: dict[Future[np.ndarray], int] = {}
        try:
            for index, block in blocks:
                pending[pool.submit(_compute, block)] = index
                while len(pending) > processes:
                    yield from _done(pending)
            while pending:
                yield from _done(pending)
        except BrokenProcessPool as error:
            raise OSError(f"a process has ended, for want of memory perhaps ({error})") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _done(pending: dict[Future[np.ndarray], int]) -> Iterator[tuple[int, np.ndarray]]:
    """Those that are ready first, taken off."""
    for future in wait(pending, return_when=FIRST_COMPLETED).done:
        yield pending.pop(future), future.result()


def _begin(work: Work, threads: int) -> None:
    global _work
    torch.set_num_threads(threads)
    _work = work


def _compute(block: np.ndarray) -> np.ndarray:
    return _work(block)
