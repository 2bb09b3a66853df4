"""What arrays have to be before a window of them is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from invconv.errors import InputError, OutOfMemoryError
from invconv.layers.conv import InvertibleConv
from invconv.operator import ConvOperator


def operator_of(layer: Any, images: Any) -> tuple[ConvOperator, np.ndarray | None]:
    """The map on images like those of an array, and the bias of the layer.

    Raises:
        InputError: if it is no layer, or the array has none of its images.
    """
    shape = tuple(getattr(images, "shape", ()))
    if isinstance(layer, ConvOperator) and layer.conv is layer.conv.untransposed:
        return layer, None
    if not isinstance(layer, InvertibleConv):
        kind = "the operator of a transposed one" if isinstance(layer, ConvOperator) else type(layer).__name__
        raise InputError(f"expected an InvertibleConv or a ConvOperator of a convolution, got {kind}")
    dims = layer.geometry.dims
    if len(shape) not in (dims + 1, dims + 2):
        raise InputError(f"images are (channels, {dims} sizes), or a batch of them, got an array of shape {shape}")
    operator = ConvOperator(layer.effective_weight().detach(), layer.geometry, shape[-dims:], layer.options)
    return operator, None if layer.bias is None else layer.bias.detach().to(operator.dtype).cpu().numpy()


def check_arrays(operator: ConvOperator, inputs: Any, outputs: Any, source: Any, out: Any) -> None:
    """Raise InputError unless the arrays have the shapes of the map, and numbers, and `out` is another array."""
    for name, array in (("the source", source), ("out", out)):
        if not all(hasattr(array, word) for word in ("shape", "dtype", "__getitem__")):
            raise InputError(
                f"{name} must have shape, dtype and slices, as arrays of NumPy, got {type(array).__name__}"
            )
    wanted_inputs = (operator.in_channels, *operator.input_size)
    wanted_outputs = (operator.out_channels, *operator.output_size)
    batch = tuple(source.shape)[: max(0, len(source.shape) - len(wanted_inputs))]
    if (
        len(batch) > 1
        or tuple(inputs.shape) != (*batch, *wanted_inputs)
        or tuple(outputs.shape) != (*batch, *wanted_outputs)
    ):
        raise InputError(
            f"the layer maps images {wanted_inputs} to {wanted_outputs}, or batches of them, got arrays of shapes "
            f"{tuple(inputs.shape)} and {tuple(outputs.shape)}"
        )
    kinds = [_kind(array) for array in (source, out)]
    if kinds[0] not in "fiu" or kinds[1] != "f":
        raise InputError(
            f"the source must hold real numbers of NumPy and out floating ones, got {source.dtype} and {out.dtype}"
        )
    _check_apart(source, out)


def _kind(array: Any) -> str:
    try:
        return np.dtype(array.dtype).kind
    except TypeError:
        return "?"


def _check_apart(source: Any, out: Any) -> None:
    """Raise InputError if what is written would be read again, or cannot be written."""
    if isinstance(out, np.ndarray):
        if not out.flags.writeable:
            raise InputError("out cannot be written to: open it with mode='r+'")
        if isinstance(source, np.ndarray) and np.may_share_memory(source, out):
            raise InputError("the source and out share memory, and windows overlap: give out an array of its own")
    files = [array.filename for array in (source, out) if isinstance(array, np.memmap) and array.filename]
    if len(files) == 2 and os.path.samefile(*map(str, files)):
        raise InputError(f"the source and out are one file, {files[0]}: give out a file of its own")


def check_disk(out: Any) -> None:
    """Raise OutOfMemoryError if the disk cannot fill the holes in the file of `out`: it would kill who writes there."""
    filename = getattr(out, "filename", None)
    if not (isinstance(out, np.memmap) and filename):
        return
    file = Path(filename).stat()
    missing = file.st_size - 512 * getattr(file, "st_blocks", file.st_size)
    free = shutil.disk_usage(Path(filename).absolute().parent).free
    if missing > free:
        raise OutOfMemoryError(
            f"{filename} needs {missing / 2**20:,.0f} MiB more on its disk, where {free / 2**20:,.0f} MiB are free: "
            "make room, or give out another disk"
        )
