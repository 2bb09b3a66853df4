"""An array filled window by window: each read, sent through the layer or back, and its middle written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from invconv.arrays.checks import check_arrays, check_disk, operator_of
from invconv.arrays.journal import Journal, job, place_beside
from invconv.arrays.progress import bar
from invconv.arrays.windows import Windows, read, windows_over
from invconv.arrays.work import Work, answers
from invconv.engine.cover import kept
from invconv.errors import InputError, InvconvError, UnfinishedError
from invconv.geometry import Size
from invconv.layers.conv import InvertibleConv
from invconv.operator import ConvOperator
from invconv.scalars import whole_number

MEMORY = 2**30
"""Bytes for the windows of one process, where nothing else is asked for."""


class Written(NamedTuple):
    """What it took to fill an array."""

    windows: int
    """Windows of all images."""
    resumed: int
    """Those of them that an interrupted run had written."""
    size: Size
    """Sides of a window, of the layer's inputs."""
    halo: int
    """Places after the stride between what is kept of a window and its inner edges; 0 if it is the whole image."""


def inverse(
    layer: InvertibleConv | ConvOperator,
    y: Any,
    out: Any,
    *,
    memory: int = MEMORY,
    window: int | None = None,
    processes: int = 1,
    progress: bool = False,
    journal: str | os.PathLike[str] | None = None,
) -> Written:
    r"""Fill `out` with `layer.inverse(y)`, whatever their size, in as much memory as a few windows take.

    The borders are those of the whole image. Windows overlap by as much as the inverse reaches, which is measured
    beforehand; the answer is that of the whole image in memory, to rounding.

    A run that was interrupted goes on where it stopped if it is called again with the same arguments: a record of the
    windows that are finished lies beside a `numpy.memmap`, as `FILE.unfinished`, or where `journal` says. It is there
    before anything is written and goes when all is: an array whose record lies beside it is not whole.

    Args:
        layer: an `InvertibleConv`, or the `ConvOperator` of an image of this size.
        y: (channels, \*size) or (batch, channels, \*size): anything that has `shape`, `dtype` and slices, read only.
        out: the same for the images; what is in it is overwritten.
        memory: bytes for the windows of a process; arrays that are mapped into memory come on top of it, as far as the
            system lets them stay there.
        window: side of the windows after the stride; None for the largest that `memory` allows.
        processes: that compute, while this one reads and writes; a script with more than one needs
            `if __name__ == "__main__":`.
        progress: whether to show a bar (by rich).
        journal: path of the record; None for its place beside a `numpy.memmap`, and no record for others.

    Raises:
        InputError: for arrays that do not fit the layer or each other, or share memory; for values that are not finite;
            if the inverse reaches farther than windows can; for the record of another job.
        OutOfMemoryError: if `memory` is too little for any window, or the disk for `out`.
        UnfinishedError: if a window cannot be read, computed or written, with how much is finished.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> conv = InvertibleConv2d(3, 3, 3, padding=1)
        >>> x = torch.randn(3, 64, 64)
        >>> y, out = conv(x).detach().numpy(), np.empty((3, 64, 64), np.float32)
        >>> inverse(conv, y, out).windows, np.allclose(out, x, atol=1e-5)
        (1, True)
    """
    return _fill("inverse", layer, y, out, memory, window, processes, progress, journal)


def apply(
    layer: InvertibleConv | ConvOperator,
    x: Any,
    out: Any,
    *,
    memory: int = MEMORY,
    window: int | None = None,
    processes: int = 1,
    progress: bool = False,
    journal: str | os.PathLike[str] | None = None,
) -> Written:
    r"""Fill `out` with `layer(x)`, the convolution: see `inverse`, whose arguments these are.

    Args:
        layer: an `InvertibleConv`, or the `ConvOperator` of an image of this size.
        x: (channels, \*size) or (batch, channels, \*size).
        out: the same for the outputs.
        memory: bytes for the windows of a process.
        window: side of the windows after the stride.
        processes: that compute.
        progress: whether to show a bar.
        journal: path of the record of an unfinished run.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> conv, x = InvertibleConv2d(3, 6, 3, stride=2), np.random.randn(3, 65, 65).astype("float32")
        >>> out = np.empty((6, 32, 32), np.float32)
        >>> apply(conv, x, out).halo, np.allclose(out, conv(torch.from_numpy(x)).detach(), atol=1e-5)
        (0, True)
    """
    return _fill("apply", layer, x, out, memory, window, processes, progress, journal)


def _fill(
    verb: str,
    layer: Any,
    source: Any,
    out: Any,
    memory: int,
    window: int | None,
    processes: int,
    progress: bool,
    journal: Any,
) -> Written:
    """Both verbs."""
    inverts = verb == "inverse"
    window = None if window is None else whole_number("window", window)
    processes, memory = whole_number("processes", processes), whole_number("memory", memory)
    inputs, outputs = (out, source) if inverts else (source, out)
    operator, bias = operator_of(layer, inputs)
    check_arrays(operator, inputs, outputs, source, out)
    check_disk(out)
    windows = windows_over(operator, inverts, memory, window)
    size = windows.operator.input_size
    described = job(verb, operator, bias, source, out, [*size, windows.halo])
    record = Journal(place_beside(out) if journal is None else Path(journal), described)
    run = _Run(windows, Work(inverts, windows.operator, bias), source, out, record)
    resumed = run.through(processes, progress)
    record.close()
    return Written(len(run.jobs), resumed, size, windows.halo)


class _Run:
    """The windows of a job on their way, those of one image after those of another."""

    def __init__(self, windows: Windows, work: Work, source: Any, out: Any, record: Journal) -> None:
        self.work, self.source, self.out, self.record = work, source, out, record
        self.held, self.kept = windows.inputs, windows.outputs
        if work.inverts:
            self.held, self.kept = self.kept, self.held
        batch = source.shape[: len(source.shape) - 1 - len(self.held)]
        images: list[tuple[int, ...]] = [(i,) for i in range(batch[0])] if batch else [()]
        self.jobs = [(image, tile) for image in images for tile in windows.tiles]
        self.finished = 0

    def through(self, processes: int, progress: bool) -> int:
        """Do all that is not done yet; the number of those that are."""
        left = [index for index in range(len(self.jobs)) if not self.record.holds(index, self._written(index))]
        resumed = self.finished = len(self.jobs) - len(left)
        with bar(progress, len(self.jobs), resumed) as advance:
            try:
                for index, answer in answers(self.work, ((i, self._read(i)) for i in left), len(left), processes):
                    self._write(index, answer)
                    self.finished += 1
                    advance()
            except InvconvError:
                raise
            except Exception as error:
                raise self._unfinished(error) from error
        return resumed

    def _read(self, index: int) -> np.ndarray:
        """What a window holds of the source."""
        image, tile = self.jobs[index]
        block = read(self.source, image, self.held, tile, self.work.dtype)
        if not np.isfinite(block).all():
            starts = tuple(axis.starts[i] for axis, i in zip(self.held, tile, strict=True))
            raise InputError(f"the source has values that are not finite, in the window that begins at {starts}")
        return block

    def _write(self, index: int, answer: np.ndarray) -> None:
        """What is kept of an answer."""
        image, tile = self.jobs[index]
        answer, parts = answer.astype(self.out.dtype, copy=False), []
        for there, here in kept(self.kept, tile):
            parts.append(answer[(slice(None), *here)])
            self.out[(*image, slice(None), *there)] = parts[-1]
        flush = getattr(self.out, "flush", None)
        if flush is not None:
            flush()
        self.record.add(index, parts)

    def _written(self, index: int) -> Iterator[np.ndarray]:
        """What `out` holds in the place of a window."""
        image, tile = self.jobs[index]
        return (np.asarray(self.out[(*image, slice(None), *there)]) for there, _ in kept(self.kept, tile))

    def _unfinished(self, error: Exception) -> UnfinishedError:
        """What went wrong, with how much of the array is right."""
        advice = "give journal= a path to be able to go on from there"
        if self.record.path is not None:
            advice = f"{self.record.path} tells which, and the same call goes on from there"
        done = f"{self.finished} of {len(self.jobs)} windows are finished"
        return UnfinishedError(f"{done}, and the next failed, {type(error).__name__}: {error}; {advice}")
