"""Where images come from. Each source gives uint8 images, with a test set held out."""

from __future__ import annotations

import socket
import threading
import urllib.request
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset, random_split
from torchvision import datasets

from invconv.errors import InputError
from invconv.lightning.archives import archive_shape, read_archive
from invconv.lightning.folders import ImageFiles, look_at, parts_of


class _Nothing(Dataset):
    """A data set without an item."""

    def __len__(self) -> int:
        return 0


class Splits(NamedTuple):
    """Three disjoint data sets of `(x, y)`: x uint8 (channels, height, width), y an integer.

    `y` is -1 where there are no labels. `note` says what the images are, in one line. Where nothing was to be trained
    and the source does not tell its parts, `train` is empty, and `val` and `test` are the same.
    """

    train: Dataset = _Nothing()
    val: Dataset = _Nothing()
    test: Dataset = _Nothing()
    note: str = ""
    classes: int = 0
    """One more than the largest label; 0 without labels."""
    held_out: tuple[str, ...] = ()
    """Parts that were drawn at random."""
    remarks: tuple[str, ...] = ()
    """What else has to be said of the files."""


def cifar10(root: Path, val_fraction: float, seed: int) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009) as torchvision keeps it under `root`."""
    try:
        train, test = (datasets.CIFAR10(root, train=train) for train in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(f"no intact CIFAR-10 under {root.resolve()}; let prepare_data download it") from error
    sets = [_in_memory(np.asarray(d.data).transpose(0, 3, 1, 2), np.asarray(d.targets)) for d in (train, test)]
    parts: dict[str, Dataset] = {"train": sets[0], "test": sets[1]}
    return _splits(parts, val_fraction, seed, Splits(note="CIFAR-10", classes=_classes(*sets)))


def npz(path: Path, val_fraction: float, seed: int, split: bool = True) -> Splits:
    """Arrays `x_train`, `x_test` (and `x_val`; and `y_train`, ...), uint8, NCHW or NHWC.

    Without `split`, an archive may hold the test images only.
    """
    arrays = read_archive(path, ("train", "val", "test"))
    missing = [f"x_{part}" for part in ("train", "test") if part not in arrays]
    if missing and (split or "test" not in arrays):
        raise InputError(f"{path} lacks {missing}; it holds {[f'x_{part}' for part in arrays]}")
    sets = {part: _in_memory(*both) for part, both in arrays.items()}
    return _splits(dict(sets), val_fraction, seed, Splits(note=path.name, classes=_classes(*sets.values())))


def folder(
    path: Path,
    size: tuple[int, int],
    val_fraction: float,
    seed: int,
    channels: int | None = None,
    split: bool = True,
    whole: bool = True,
) -> Splits:
    """Image files under `path`, read when needed, scaled and cropped to `size`; each is looked at first.

    Folders directly below give the labels. With folders `train`, `val` and `test`, or some of them, these are the
    sets, and the folders below them give the labels; what is missing is held out, at random, of `train`. All other
    folders are split at random into three; without `split` they are taken whole.

    Args:
        path: of the folder.
        size: (height, width).
        val_fraction: share that is held out.
        seed: of what is held out.
        channels: 1 or 3; 1 if all files are grey, else 3, where not given.
        split: whether something is to be trained.
        whole: read each file to its end, or look at its head only.
    """
    roots, files = _image_files(path, size)
    if roots and split and "train" not in roots:
        raise InputError(f"{path} holds {[root.name for root in roots.values()]}, but no folder train")
    grey, remarks = look_at(files.values(), whole)
    classes = sorted({name for part in files.values() for name in part.classes})
    for part in files.values():
        part.classes, part.channels = classes, channels or (1 if grey else 3)
    note, sets = f"images in {path.resolve().name}", dict[str, Dataset](files)
    if not roots and split:
        sets, note = {"train": files["all"]}, f"{note}, split at random"
    elif not roots:
        sets, note = {"test": files["all"]}, f"{note}, all of them"
    return _splits(sets, val_fraction, seed, Splits(note=note, classes=len(classes), remarks=remarks))


def _image_files(path: Path, size: tuple[int, int]) -> tuple[dict[str, Path], dict[str, ImageFiles]]:
    """The folders below that are parts, and the images of each part, or "all"."""
    if not path.is_dir():
        what = f"{path} is a file, expected a folder" if path.exists() else f"no such file or folder: {path}"
        raise InputError(f"{what} (looked in {Path.cwd()})")
    roots = parts_of(path)
    return roots, {part: ImageFiles(root, size) for part, root in (roots or {"all": path}).items()}


def shape(kind: str, path: Path, size: tuple[int, int]) -> tuple[int, int, int]:
    """(channels, height, width) that the images of a source will have, by the heads of its files.

    Args:
        kind: as `ImageDataModule` names sources.
        path: of a folder or an archive.
        size: (height, width).

    Raises:
        InputError: for files that cannot be read.
    """
    if kind == "npz":
        return archive_shape(path)
    if kind == "folder":
        return (1 if look_at(_image_files(path, size)[1].values(), whole=False).grey else 3, *size)
    return (3, *((32, 32) if kind == "cifar10" else size))


def sides(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a side, or of both.

    Raises:
        InputError: for what is no size.
    """
    pair = tuple(size) if isinstance(size, Sequence) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, Integral) and side >= 1 for side in pair):
        raise InputError(f"image_size must be a side or (height, width), whole numbers from 1, got {size!r}")
    return int(pair[0]), int(pair[1])


def photos(size: tuple[int, int], stride: int = 5) -> Splits:
    """Crops of colour photographs that ship with scikit-image, at half their size.

    Training, validation and test each have a vertical band of every photograph to themselves, so
    that no pixel is shared: the left 70 %, the next 10 % (at least one crop wide), the rest.
    Labels are the numbers of the photographs.
    """
    height, width = size
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    labels: tuple[list[np.ndarray], ...] = ([], [], [])
    photographs = _photographs()
    for number, photo in enumerate(photographs):
        total = photo.shape[1]
        band = max(width, total // 10)
        edges = (0, total - band - max(width, total // 5), total - max(width, total // 5), total)
        for part, label, left, right in zip(parts, labels, edges, edges[1:], strict=False):
            view = photo[:, left:right]
            if view.shape[0] < height or view.shape[1] < width:
                raise InputError(
                    f"the photographs are too small for crops of {size}; ask for at most 32 x 32 or use another source"
                )
            crops = np.lib.stride_tricks.sliding_window_view(view, (height, width, 3))
            part.append(crops[::stride, ::stride, 0].reshape(-1, height, width, 3))
            label.append(np.full(len(part[-1]), number))
    # Neighbouring crops look alike: mixed, any batch shows all photographs.
    sets = []
    for part, label in zip(parts, labels, strict=True):
        images, numbers = np.concatenate(part), np.concatenate(label)
        order = np.random.default_rng(0).permutation(len(images))
        sets.append(_in_memory(images[order].transpose(0, 3, 1, 2), numbers[order]))
    train, val, test = sets
    return Splits(train, val, test, "photographs of scikit-image", len(photographs))


def cifar10_on_disk(root: Path) -> bool:
    """Whether an intact CIFAR-10 lies under `root`."""
    try:
        datasets.CIFAR10(root)
    except (RuntimeError, OSError):
        return False
    return True


def download_cifar10(root: Path, patience: float = 5.0) -> str | None:
    """Download CIFAR-10 to `root`; None, or why that failed, on a dead network within seconds."""
    outcome: list[str] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(datasets.CIFAR10.url, method="HEAD")
            with urllib.request.urlopen(request, timeout=patience):
                outcome.append("")
        except (OSError, ValueError) as error:
            outcome.append(str(getattr(error, "reason", error)))

    # In a thread, because a name server that never answers has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(patience)
    if not outcome:
        return f"no answer from its server within {patience:g} s"
    if outcome[0]:
        return f"its server cannot be reached ({outcome[0]})"
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(patience)
    try:
        datasets.CIFAR10(root, download=True)
    except (OSError, RuntimeError) as error:
        return f"the download broke off ({error})"
    finally:
        socket.setdefaulttimeout(before)
    return None


def _in_memory(images: np.ndarray, labels: np.ndarray | None) -> TensorDataset:
    """Arrays of images, channels first, and labels (-1 where there are none) as one data set."""
    y = np.full(len(images), -1) if labels is None else labels
    return TensorDataset(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(y.astype(np.int64)))


def _classes(*sets: TensorDataset) -> int:
    """One more than the largest label."""
    return 1 + max(int(part.tensors[1].max()) for part in sets)


def _splits(sets: dict[str, Dataset], val_fraction: float, seed: int, about: Splits) -> Splits:
    """Sets for training, validation and test; what is missing is held out of `train`, if there is one."""
    if "train" not in sets:
        test = sets.get("test", _Nothing())
        return about._replace(val=sets.get("val", test), test=test)
    drawn = {part: of for part, of in (("test", seed + 1), ("val", seed)) if part not in sets}
    for part, of in drawn.items():
        sets["train"], sets[part] = _hold_out(sets["train"], val_fraction, of)
    return about._replace(train=sets["train"], val=sets["val"], test=sets["test"], held_out=tuple(drawn))


def _hold_out(data: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Two disjoint parts of a data set, drawn at random; the second has the share `fraction`, at least one image."""
    count = len(data)  # type: ignore[arg-type]
    held = max(1, round(fraction * count))
    if held >= count:
        raise InputError(f"{count} images are too few to hold out a share of {fraction:g}")
    generator = torch.Generator().manual_seed(seed)
    first, second = random_split(data, [count - held, held], generator)
    return first, second


def _photographs() -> list[np.ndarray]:
    """Colour photographs of scikit-image at half their size, (height, width, 3)."""
    from skimage import data

    # One of the two views of the motorcycle only: they show the same pixels.
    photographs = [
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.immunohistochemistry(),
        data.stereo_motorcycle()[0],
    ]
    return [np.asarray(Image.fromarray(photo).reduce(2)) for photo in photographs]
