"""Images and labels in .npz archives, judged by their headers before any memory is taken.

A header of a member says shape and type; it is believed only where these fill the member to the byte, and the member
its place in the archive.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.lib import format as npy

from invconv.engine import memory
from invconv.errors import InputError, InvconvError, OutOfMemoryError

DEFLATE_AT_BEST = 1032
"""Bytes that one compressed byte can stand for."""
MOST_CLASSES = 100_000
"""Larger labels are taken for something else: classes are numbered from 0."""
EXPECTED = "expected an .npz archive with arrays x_train, x_test and, for labels, y_train, y_test (numpy.savez)"


class Header(NamedTuple):
    """What an array is said to be."""

    shape: tuple[int, ...]
    dtype: np.dtype
    member: zipfile.ZipInfo
    start: int
    """Byte of the member at which the data begin."""


def read_archive(path: Path, parts: Iterable[str]) -> dict[str, tuple[np.ndarray, np.ndarray | None]]:
    """Images, uint8 (n, channels, height, width), and labels, int64 (n,) or None, for each part that is there.

    Args:
        path: of the archive.
        parts: names such as "train", for the arrays `x_train` and `y_train`.

    Raises:
        InputError: for what is no intact archive, and for arrays that are no images or labels; the text names the
            file, the array, and what was expected.
        OutOfMemoryError: if the arrays need more memory than there is.
    """
    with _opened(path) as archive:
        headers = _headers(archive, path)
        shapes = _shapes(headers, parts, path)
        for part in shapes:
            _check_label_header(headers.get(f"y_{part}"), headers[f"x_{part}"].shape[0], f"y_{part} of {path}")
        _check_memory([h for name, h in headers.items() if name[2:] in shapes and name[:2] in ("x_", "y_")], path)
        return {part: _read_part(archive, headers, part, path) for part in shapes}


def archive_shape(path: Path) -> tuple[int, int, int]:
    """(channels, height, width) of the images in an archive, by its headers.

    Raises:
        InputError: as `read_archive` does for the headers.
    """
    with _opened(path) as archive:
        return next(iter(_shapes(_headers(archive, path), ("train", "val", "test"), path).values()))


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """An archive, with errors of our own for whatever goes wrong within."""
    if not path.is_file():
        raise InputError(f"no such file: {path} (looked in {Path.cwd()}); {EXPECTED}")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except InvconvError:
        raise
    except Exception as error:  # a damaged archive can fail anywhere
        raise InputError(f"{path} is no readable .npz file: {_what(path, error)}; {EXPECTED}") from error


def _shapes(headers: dict[str, Header], parts: Iterable[str], path: Path) -> dict[str, tuple[int, int, int]]:
    """(channels, height, width) of the images of each part that is there, the same for all."""
    parts = [part for part in parts if f"x_{part}" in headers]
    if not parts:
        raise InputError(f"{path} holds {sorted(headers)}; {EXPECTED}")
    shapes = {part: _check_images(headers[f"x_{part}"], f"x_{part} of {path}") for part in parts}
    if len(set(shapes.values())) > 1:
        raise InputError(f"{path} has images of several shapes, {shapes}; expected the same in all parts")
    return shapes


def _what(path: Path, error: Exception) -> str:
    """Why a file is no archive, if it can be told."""
    with path.open("rb") as file:
        if file.read(6) == b"\x93NUMPY":
            return "it is one array (.npy) by another name"
    return str(error) or type(error).__name__


def _headers(archive: zipfile.ZipFile, path: Path) -> dict[str, Header]:
    """Headers of all arrays in an archive, by name: of those as well that nobody asked for."""
    headers: dict[str, Header] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in headers:
            raise InputError(f"{path} holds {name} twice; {EXPECTED}")
        with archive.open(member) as file:
            header = _header(file, member)
        if header is not None:
            _check_size(header, f"{name} of {path}", path.stat().st_size)
            headers[name] = header
        elif member.filename != name:
            raise InputError(f"{path}: {member.filename} is no array of NumPy; {EXPECTED}")
    return headers


def _header(file: IO[bytes], member: zipfile.ZipInfo) -> Header | None:
    """The header at the head of a file; None where there is none."""
    start = file.read(npy.MAGIC_LEN)
    if start[:6] != npy.MAGIC_PREFIX:
        return None
    read = npy.read_array_header_1_0 if start[6] == 1 else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return Header(shape, dtype, member, file.tell())


def _check_size(header: Header, name: str, length: int) -> None:
    """Refuse a header that claims more, or less, than its member can hold."""
    shape, dtype, member, start = header
    if dtype.hasobject:
        return  # pickled, of any size, and never read
    claimed, there = math.prod(shape) * dtype.itemsize, member.file_size - start
    if claimed != there or min(shape, default=0) < 0:
        raise InputError(f"{name} claims {claimed} bytes, {dtype} of shape {shape}, but {there} are there; {EXPECTED}")
    if member.header_offset + member.compress_size > length:
        raise InputError(f"{name} would end behind the file's {length} bytes: the file is cut off or damaged")
    stretch = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: DEFLATE_AT_BEST}.get(member.compress_type)
    if stretch and member.file_size > stretch * member.compress_size:
        raise InputError(f"{name} claims {claimed} bytes, packed into {member.compress_size}: it is damaged")


def _check_images(header: Header, name: str) -> tuple[int, int, int]:
    """(channels, height, width) of images, channels first or last.

    Raises:
        InputError: for what is no array of grey or RGB images of uint8.
    """
    shape, dtype = header.shape, header.dtype
    if dtype != np.uint8 or len(shape) != 4:
        raise InputError(
            f"{name} must be uint8 images (n, channels, height, width), got {dtype} of shape {shape}: round to levels "
            "of 0 to 255 and call .astype(numpy.uint8); grey images need an axis for their one channel"
        )
    if 0 in shape:
        raise InputError(f"{name} has shape {shape}, which holds no pixel")
    if shape[1] in (1, 3):
        return shape[1:]
    if shape[3] in (1, 3):
        return shape[3], *shape[1:3]
    four = " (RGBA: lay it over a colour and leave out its opacity)" if 4 in (shape[1], shape[3]) else ""
    raise InputError(
        f"{name} has shape {shape}, expected 1 or 3 channels, (n, channels, height, width) or "
        f"(n, height, width, channels){four}"
    )


def _check_label_header(header: Header | None, count: int, name: str) -> None:
    """Refuse labels that are no numbers, or not one for each image."""
    if header is None:
        return
    if header.dtype.kind not in "iuf":
        raise InputError(f"{name} has {header.dtype}, expected integers that number the classes from 0")
    if header.shape != (count,):
        raise InputError(f"{name}: {count} images, but labels of shape {header.shape}")


def _check_memory(headers: list[Header], path: Path) -> None:
    """Refuse what does not fit; images whose channels come last are held twice while they are turned."""
    needed = 2 * sum(h.member.file_size for h in headers)
    free = memory.available_memory(torch.device("cpu"))
    if needed > free:
        raise OutOfMemoryError(
            f"{path} takes up to {needed / 1e9:.1f} GB to read where {free / 1e9:.1f} GB are free: keep fewer images "
            "in it, or use folder:PATH, which reads them one by one"
        )


def _read_part(
    archive: zipfile.ZipFile, headers: dict[str, Header], part: str, path: Path
) -> tuple[np.ndarray, np.ndarray | None]:
    """Images, channels first, and labels."""
    images = _read(archive, headers[f"x_{part}"])
    if images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if f"y_{part}" not in headers:
        return images, None
    return images, check_labels(_read(archive, headers[f"y_{part}"]), f"y_{part} of {path}")


def _read(archive: zipfile.ZipFile, header: Header) -> np.ndarray:
    """An array; with its last byte the member's checksum is held against it."""
    with archive.open(header.member) as file:
        return npy.read_array(file, allow_pickle=False)


def check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    """Labels as int64.

    Raises:
        InputError: unless they are whole numbers from 0, or -1 where there is none.
    """
    low, high = labels.min(), labels.max()
    if not -1 <= low <= high < MOST_CLASSES:  # NaN as well
        raise InputError(
            f"{name} has labels from {low} to {high}, expected classes numbered from 0, at most {MOST_CLASSES}, "
            "and -1 for no label"
        )
    if (labels != np.rint(labels)).any():
        fraction = labels[labels != np.rint(labels)][0]
        raise InputError(f"{name} has a label {fraction}, expected whole numbers from 0")
    return labels.astype(np.int64)
