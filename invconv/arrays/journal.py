"""The record of what has been written: a file that is there for as long as an array is unfinished.

A line for the job, and one for each window with a checksum of what was written, so that a window counts as finished
only if the array still holds it.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from invconv.errors import InputError
from invconv.operator import ConvOperator


class Journal:
    """A file, beside the array that it tells of; or, with no path, nothing.

    Args:
        path: of the file, made where there is none.
        job: what is computed, of what, and in which windows.

    Raises:
        InputError: if the file is of another job.
    """

    def __init__(self, path: Path | None, job: dict[str, Any]) -> None:
        self.path = path
        self.checksums: dict[int, int] = {}
        if path is None:
            return
        lines = list(_lines(path))
        if lines and lines[0] != json.loads(json.dumps(job)):
            other = [name for name, value in json.loads(json.dumps(job)).items() if lines[0].get(name) != value]
            raise InputError(
                f"{path} is the record of an unfinished job with another {', '.join(other) or 'content'}: finish that "
                "with the arguments that it had, or delete the file to begin anew"
            )
        self.checksums = {line["window"]: line["checksum"] for line in lines[1:]}
        path.write_text("".join(json.dumps(line) + "\n" for line in (lines or [job])))  # without a torn last line

    def add(self, window: int, parts: Iterable[np.ndarray]) -> None:
        """Note a window that has been written, and is on its way to the disk before this is."""
        if self.path is not None:
            with self.path.open("a") as file:
                file.write(json.dumps({"window": window, "checksum": checksum(parts)}) + "\n")
                file.flush()
                os.fsync(file.fileno())

    def holds(self, window: int, parts: Iterable[np.ndarray]) -> bool:
        """Whether a window has been written, and is still what is in the array."""
        return window in self.checksums and self.checksums[window] == checksum(parts)

    def close(self) -> None:
        """Say that all is written: the file goes."""
        if self.path is not None:
            self.path.unlink()


def job(
    verb: str, operator: ConvOperator, bias: np.ndarray | None, source: Any, out: Any, window: Any
) -> dict[str, Any]:
    """What tells one job from another."""
    weight = hashlib.sha256(operator.source.detach().float().cpu().numpy().tobytes())
    if bias is not None:
        weight.update(bias.tobytes())
    return {
        "verb": verb,
        "layer": [repr(operator.geometry), repr(operator.options), str(operator.source.dtype), weight.hexdigest()],
        "source": [list(source.shape), str(source.dtype), *_file(source)],
        "out": [list(out.shape), str(out.dtype)],
        "windows": window,
    }


def checksum(parts: Iterable[np.ndarray]) -> int:
    """CRC-32 of arrays, one after the other."""
    value = 0
    for part in parts:
        value = zlib.crc32(np.ascontiguousarray(part).data.cast("B") if part.size else b"", value)
    return value


def place_beside(out: Any) -> Path | None:
    """Where the record of an array on disk is, if it is known where that lies."""
    filename = getattr(out, "filename", None)
    return Path(f"{filename}.unfinished") if isinstance(out, np.memmap) and filename else None


def _file(array: Any) -> list[Any]:
    """The file of an array on disk, and when it was last written."""
    filename = getattr(array, "filename", None)
    if not (isinstance(array, np.memmap) and filename):
        return []
    return [str(filename), os.stat(filename).st_mtime_ns]


def _lines(path: Path) -> Iterator[Any]:
    """What a file records, up to a line that was being written when the process ended."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                return
