"""Arrays filled window by window hold what the layer gives in memory; nothing half-written is passed off as whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from invconv import (
    ConvOperator,
    InputError,
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    OutOfMemoryError,
    arrays,
)
from invconv.arrays import halo
from invconv.errors import UnfinishedError

LAYERS: dict[str, Any] = {
    "zeros": lambda: InvertibleConv2d(2, 2, 3, padding=1),
    "reflect": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="replicate"),
    "circular": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="circular"),
    "no bias, uneven": lambda: InvertibleConv2d(2, 2, (3, 2), padding=(1, 0), bias=False),
    "stride": lambda: InvertibleConv2d(1, 4, 2, stride=2),
    "stride, circular": lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular"),
    "stride, overlapping, tall": lambda: InvertibleConv2d(1, 8, 3, stride=2, padding=1),
    "tall": lambda: InvertibleConv2d(1, 2, 3, padding=1),
    "wide": lambda: InvertibleConv2d(4, 2, 3, padding=1, padding_mode="reflect"),
    "groups": lambda: InvertibleConv2d(2, 2, 3, padding=1, groups=2),
    "dilation": lambda: InvertibleConv2d(1, 1, 3, padding=2, dilation=2),
    "damped": lambda: InvertibleConv2d(2, 2, 3, padding=1, damping=0.5),
    "line": lambda: InvertibleConv1d(2, 2, 3, padding=1),
    "volume": lambda: InvertibleConv3d(1, 1, 3, padding=1, padding_mode="replicate"),
}
WINDOW = {"dilation": 112, "volume": 56, "stride, circular": 48, "stride, overlapping, tall": 48, "stride": 48}
"""Sides after the stride, other than 64: three halos or a little more."""
SIZE = {1: (5003,), 2: (137, 150), 3: (97, 12, 9)}


def layer(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(3)
    conv = LAYERS[name]().to(dtype)
    nn.init.normal_(conv.bias) if conv.bias is not None else None
    return conv.requires_grad_(False)


def size_of(conv: Any) -> tuple[int, ...]:
    """Sizes that a stride leaves a rest of, unless the borders wrap."""
    sizes = SIZE[conv.geometry.dims]
    if conv.padding_mode == "circular":
        return tuple(n - n % s for n, s in zip(sizes, conv.stride, strict=True))
    return sizes


def outputs_of(conv: Any, size: tuple[int, ...], batch: tuple[int, ...] = ()) -> torch.Tensor:
    """White noise: for tall layers, of which A x is no part."""
    shape = (*batch, conv.out_channels, *conv.geometry.output_size(size))
    return torch.randn(shape, dtype=conv.weight.dtype, generator=torch.Generator().manual_seed(4))


def mapped(path: Path, values: Any = None, shape: Any = None, dtype: Any = None, mode: Any = "w+") -> np.memmap:
    if values is not None:
        values = np.asarray(values)
        shape, dtype = values.shape, values.dtype
    array: Any = np.memmap(path, mode=mode, shape=tuple(shape), dtype=dtype)
    if values is not None:
        array[:] = values
        array.flush()
    return array


def relative(found: Any, expected: torch.Tensor) -> float:
    return float((torch.from_numpy(np.array(found)) - expected).norm() / expected.norm())


def worst(found: Any, expected: torch.Tensor) -> tuple[float, float]:
    """The largest error of a pixel, in root mean squares of the image and of all errors: a seam would stand out."""
    error = (torch.from_numpy(np.array(found)) - expected).abs()
    largest = float(error.max())
    return largest / float(expected.square().mean().sqrt()), largest and largest / float(error.square().mean().sqrt())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_inverse_is_that_of_the_whole_image(name, dtype, tmp_path):
    conv = layer(name, dtype)
    size = size_of(conv)
    y = outputs_of(conv, size)
    out = mapped(tmp_path / "x", shape=(conv.in_channels, *size), dtype=y.numpy().dtype)
    written = arrays.inverse(conv, mapped(tmp_path / "y", y), out, window=WINDOW.get(name, 64))
    assert written.windows >= 2 and written.halo > 0 and written.resumed == 0
    exact = conv.double().inverse(y.double(), output_size=size)
    condition = float(conv.condition_number(tuple(min(n, 24) for n in size)))
    bound = 50 * torch.finfo(dtype).eps * condition
    assert relative(out, exact) < bound
    if dtype == torch.float32:  # in float64 the answer for the whole image is no more exact than what it would judge
        largest, uneven = worst(out, exact)
        assert largest < bound or uneven < 20
    assert not list(tmp_path.glob("*.unfinished"))


@pytest.mark.parametrize("name", LAYERS)
def test_the_convolution_is_that_of_the_whole_image(name, tmp_path):
    conv = layer(name, torch.float64)
    size = size_of(conv)
    x = torch.randn(2, conv.in_channels, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    y = conv(x)
    out = mapped(tmp_path / "y", shape=y.shape, dtype=np.float64)
    written = arrays.apply(conv, mapped(tmp_path / "x", x), out, window=24)
    assert written.windows >= 8 and relative(out, y) < 1e-15


def test_batches_operators_types_and_several_processes(tmp_path):
    conv = layer("zeros", torch.float32)
    size = (130, 131)
    y = (100 * outputs_of(conv, size, (2,))).round()
    operator = ConvOperator(conv.weight, conv.geometry, size, conv.options)
    expected = operator.pseudo_inverse(y)
    for processes in (1, 2):
        out = np.zeros((2, 2, *size))
        written = arrays.inverse(operator, y.numpy().astype(np.int16), out, window=64, processes=processes)
        assert written.windows == 2 * 9 and relative(out, expected.double()) < 1e-6
    assert torch.get_num_threads() >= 1


def test_an_image_that_memory_has_room_for_is_one_window():
    conv = layer("reflect", torch.float64)
    y = outputs_of(conv, (30, 31))
    out = np.zeros((2, 30, 31))
    assert arrays.inverse(conv, y.numpy(), out) == (1, 0, (30, 31), 0)
    assert relative(out, conv.inverse(y)) < 1e-14


def test_windows_grow_with_memory():
    conv = layer("zeros", torch.float32)
    y, out = outputs_of(conv, (300, 300)).numpy(), np.zeros((2, 300, 300), np.float32)
    sides = [arrays.inverse(conv, y, out, memory=memory).size[0] for memory in (2**24, 2**25, 2**30)]
    assert sides[0] < sides[1] < sides[2] == 300
    with pytest.raises(OutOfMemoryError, match="MiB or more, and memory is 1 MiB"):
        arrays.inverse(conv, y, out, memory=2**20)


@pytest.mark.parametrize("kind", ["zarr", "h5py"])
def test_arrays_of_other_libraries(kind, tmp_path):
    library = pytest.importorskip(kind)
    conv = layer("circular", torch.float64)
    y = outputs_of(conv, (96, 80))
    if kind == "zarr":
        source, out = (library.open(str(tmp_path / n), mode="w", shape=y.shape, dtype="f8") for n in "yx")
    else:
        file = library.File(tmp_path / "file.h5", "w")
        source, out = (file.create_dataset(n, y.shape, "f8") for n in "yx")
    source[:] = y.numpy()
    arrays.inverse(conv, source, out, window=64, journal=tmp_path / "record")
    assert relative(out[:], conv.inverse(y)) < 1e-13 and not (tmp_path / "record").exists()


# -- interrupted -----------------------------------------------------------------------------------------------------


class Full(np.ndarray):
    """An array on a disk that is full after some writes, half of the next one included."""

    left = 0

    def __setitem__(self, place: Any, value: Any) -> None:
        if type(self).left == 0:
            half = value.shape[-1] // 2
            inner = slice(place[-1].start, place[-1].start + half)
            super().__setitem__((*place[:-1], inner), value[..., :half])
            raise OSError(28, "No space left on device")
        type(self).left -= 1
        super().__setitem__(place, value)


@pytest.mark.parametrize(("written", "processes"), [(0, 1), (1, 1), (4, 1), (2, 2)])
def test_a_run_that_was_interrupted_goes_on(written, processes, tmp_path):
    conv = layer("zeros", torch.float64)
    size = (140, 141)
    y, whole = outputs_of(conv, size).numpy(), np.zeros((2, *size))
    total = arrays.inverse(conv, y, whole, window=72).windows
    out, record = np.full((2, *size), np.nan), tmp_path / "record"
    Full.left = written
    with pytest.raises(UnfinishedError, match=rf"{written} of {total} windows .*No space left.* the same call goes on"):
        arrays.inverse(conv, y, out.view(Full), window=72, journal=record, processes=processes)
    assert record.exists() and np.isnan(out).any()
    again = arrays.inverse(conv, y, out, window=72, journal=record)
    assert again.resumed == written and again.windows == total
    assert np.array_equal(out, whole) and not record.exists()
    Full.left = 0
    with pytest.raises(UnfinishedError, match="give journal= a path"):
        arrays.inverse(conv, y, np.zeros((2, *size)).view(Full), window=72)


def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int = 3) -> tuple[Any, np.memmap, Path, Any]:
    """A layer, its outputs, and the file of an array that an interrupt has left unfinished."""
    conv = layer("reflect", torch.float64)
    y = mapped(tmp_path / "y", outputs_of(conv, (140, 141)))
    path = tmp_path / "x"
    whole = ConvOperator.pseudo_inverse
    calls: list[int] = []

    def interrupted(operator: ConvOperator, images: torch.Tensor) -> torch.Tensor:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(1)
        return whole(operator, images)

    out = mapped(path, shape=(2, 140, 141), dtype=np.float64)
    measured = halo.measured_halo(ConvOperator(conv.weight, conv.geometry, (140, 141), conv.options))
    with monkeypatch.context() as patch:
        patch.setattr("invconv.arrays.windows.measured_halo", lambda operator: measured)
        patch.setattr(ConvOperator, "pseudo_inverse", interrupted)
        with pytest.raises(KeyboardInterrupt):
            arrays.inverse(conv, y, out, window=72)
    return conv, y, path, conv.inverse(torch.from_numpy(np.array(y)))


def test_an_interrupt_leaves_its_record_beside_the_array(tmp_path, monkeypatch):
    conv, y, path, expected = stopped(tmp_path, monkeypatch)
    record = Path(f"{path}.unfinished")
    assert len(record.read_text().splitlines()) == 4
    record.write_text(record.read_text() + '{"window": 3, "che')  # torn
    out = mapped(path, shape=(2, 140, 141), dtype=np.float64, mode="r+")
    assert arrays.inverse(conv, y, out, window=72).resumed == 3
    assert relative(out, expected) < 1e-13 and not record.exists()


def test_windows_that_were_lost_are_written_anew(tmp_path, monkeypatch):
    """A file that is made once more is empty, and its record speaks of another."""
    conv, y, path, expected = stopped(tmp_path, monkeypatch)
    out = mapped(path, shape=(2, 140, 141), dtype=np.float64, mode="w+")
    assert arrays.inverse(conv, y, out, window=72).resumed == 0
    assert relative(out, expected) < 1e-13


def test_the_record_of_another_job_is_refused(tmp_path, monkeypatch):
    conv, y, path, _ = stopped(tmp_path, monkeypatch)
    out = mapped(path, shape=(2, 140, 141), dtype=np.float64, mode="r+")
    with pytest.raises(InputError, match="with another windows"):
        arrays.inverse(conv, y, out, window=80)
    conv.weight.data *= 1.01
    with pytest.raises(InputError, match=r"x\.unfinished is the record of an unfinished job with another layer"):
        arrays.inverse(conv, y, out, window=72)
    with pytest.raises(InputError, match="with another verb"):
        arrays.apply(conv, y, out, window=72)
    first = json.loads(Path(f"{path}.unfinished").read_text().splitlines()[0])
    assert first["verb"] == "inverse"


def test_a_disk_without_room_is_refused(tmp_path, monkeypatch):
    conv = layer("zeros", torch.float64)
    out = mapped(tmp_path / "x", shape=(2, 600, 600), dtype=np.float64)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 2**20})())
    with pytest.raises(OutOfMemoryError, match="needs 5 MiB more on its disk, where 1 MiB are free"):
        arrays.inverse(conv, np.zeros((2, 600, 600)), out)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_bar_moves_on(monkeypatch, capsys):
    conv = layer("zeros", torch.float32)
    y, out = outputs_of(conv, (130, 130)).numpy(), np.zeros((2, 130, 130), np.float32)
    arrays.inverse(conv, y, out, window=64, progress=True)
    assert "100%" in capsys.readouterr().out


# -- refused ---------------------------------------------------------------------------------------------------------


def test_what_does_not_decay_is_refused_with_numbers():
    torch.manual_seed(0)
    conv = InvertibleConv2d(2, 2, 3, padding=1, dtype=torch.float64)
    nn.init.normal_(conv.weight)
    y, out = outputs_of(conv, (1000, 1000)).numpy(), np.zeros((2, 1000, 1000))
    with pytest.raises(InputError, match=r"does not decay within a window: \de[-+]\d+ of an answer .* along axis 0"):
        arrays.inverse(conv, y, out, window=200)


REFUSED: dict[str, tuple[str, Any]] = {
    "out too small": (r"shapes \(2, 40, 39\) and \(2, 40, 40\)", lambda y: (y, np.zeros((2, 40, 39)))),
    "channels": (r"maps images \(2, 40, 40\)", lambda y: (y[:1], np.zeros((2, 40, 40)))),
    "batches differ": ("or batches of them", lambda y: (y[None], np.zeros((2, 2, 40, 40)))),
    "two batches": ("or a batch of them", lambda y: (y[None, None], np.zeros((1, 1, 2, 40, 40)))),
    "integers": ("out floating ones", lambda y: (y, np.zeros((2, 40, 40), int))),
    "complex": ("must hold real numbers", lambda y: (y * 1j, np.zeros((2, 40, 40)))),
    "tensor": ("numbers of NumPy", lambda y: (y, torch.zeros(2, 40, 40))),
    "list": ("must have shape", lambda y: (y.tolist(), np.zeros((2, 40, 40)))),
    "itself": ("share memory", lambda y: (y, y)),
    "a part of itself": ("share memory", lambda y: (y[:, ::-1], y)),
    "not finite": ("values that are not finite", lambda y: (y / (y != y[0, 3, 3]), np.zeros((2, 40, 40)))),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("name", REFUSED)
def test_arrays_that_do_not_fit_are_refused(name):
    conv = layer("zeros", torch.float64)
    text, make = REFUSED[name]
    y, out = make(outputs_of(conv, (40, 40)).numpy())
    with pytest.raises(InputError, match=text):
        arrays.inverse(conv, y, out)


def test_layers_and_files_that_cannot_be_are_refused(tmp_path):
    conv = layer("zeros", torch.float64)
    y, out = outputs_of(conv, (140, 140)).numpy(), np.zeros((2, 140, 140))
    with pytest.raises(InputError, match="got Conv2d"):
        arrays.inverse(nn.Conv2d(2, 2, 3), y, out)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="processes must be"):
        arrays.inverse(conv, y, out, processes=0)
    with pytest.raises(OutOfMemoryError, match="no window of a side of 12 has room for halos"):
        arrays.inverse(conv, y, out, window=12)
    conv.rtol = 1e-3
    with pytest.raises(InputError, match="rtol cuts off"):
        arrays.inverse(conv, y, out, window=72)
    file = mapped(tmp_path / "y", y)
    with pytest.raises(InputError, match="one file"):
        arrays.inverse(conv, file, mapped(tmp_path / "y", shape=y.shape, dtype=y.dtype, mode="r+"))
    with pytest.raises(InputError, match="open it with mode='r\\+'"):
        arrays.inverse(conv, y, mapped(tmp_path / "y", shape=y.shape, dtype=y.dtype, mode="r"))
    partly = InvertibleConv2d(2, 2, 3, padding=2, padding_mode="circular").double()
    with pytest.raises(InputError, match="wrap in part"):
        arrays.inverse(partly, np.zeros((2, 142, 142)), out, window=72)
