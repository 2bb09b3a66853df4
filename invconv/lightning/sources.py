"""Where images come from. Each source gives uint8 images, with a test set held out."""

from __future__ import annotations

import socket
import threading
import urllib.request
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset, random_split
from torchvision import datasets
from torchvision.transforms import functional as TF

from invconv.errors import InputError


class Splits(NamedTuple):
    """Three disjoint data sets of `(x, y)`: x uint8 (channels, height, width), y an integer.

    `y` is -1 where there are no labels. `note` says what the images are, in one line.
    """

    train: Dataset
    val: Dataset
    test: Dataset
    note: str


def cifar10(root: Path, val_fraction: float, seed: int) -> Splits:
    """CIFAR-10 (Krizhevsky, 2009) as torchvision keeps it under `root`."""
    try:
        train, test = (datasets.CIFAR10(root, train=train) for train in (True, False))
    except RuntimeError as error:
        raise InputError(f"no intact CIFAR-10 under {root.resolve()}; let prepare_data download it") from error
    sets = [_in_memory(d.data, np.asarray(d.targets), "CIFAR-10") for d in (train, test)]
    return Splits(*_hold_out(sets[0], val_fraction, seed), sets[1], "CIFAR-10")


def npz(path: Path, val_fraction: float, seed: int) -> Splits:
    """Arrays `x_train`, `x_test` (and `y_train`, `y_test`), uint8, NCHW or NHWC."""
    _must_exist(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no readable .npz file: {error}") from error
    missing = {"x_train", "x_test"} - arrays.keys()
    if missing:
        raise InputError(f"{path} lacks {sorted(missing)}; it holds {sorted(arrays)}")
    train, test = (
        _in_memory(arrays[f"x_{part}"], arrays.get(f"y_{part}"), f"x_{part} of {path}") for part in ("train", "test")
    )
    return Splits(*_hold_out(train, val_fraction, seed), test, path.name)


def folder(path: Path, size: tuple[int, int], val_fraction: float, seed: int) -> Splits:
    """Image files under `path`, read when needed, resized and cropped to `size`.

    Folders directly below give the labels. With `path/train` and `path/test` these are the two
    sets; else as large a share as for validation is held out for the test.
    """
    _must_exist(path)
    if (path / "train").is_dir() and (path / "test").is_dir():
        train: Dataset = ImageFiles(path / "train", size)
        test: Dataset = ImageFiles(path / "test", size)
    else:
        train, test = _hold_out(ImageFiles(path, size), val_fraction, seed + 1)
    return Splits(*_hold_out(train, val_fraction, seed), test, f"images in {path.name}")


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
        sets.append(_in_memory(images[order], numbers[order], "photographs"))
    train, val, test = sets
    return Splits(train, val, test, "photographs of scikit-image")


def cifar10_on_disk(root: Path) -> bool:
    """Whether an intact CIFAR-10 lies under `root`."""
    try:
        datasets.CIFAR10(root)
    except RuntimeError:
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


class ImageFiles(Dataset):
    """The images under a folder, RGB, resized to cover `size` and cropped to its centre.

    Raises:
        InputError: if there is no image, or, on reading it, naming a corrupt one.
    """

    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        self.size = size
        suffixes = datasets.folder.IMG_EXTENSIONS
        self.files = sorted(p for p in root.rglob("*") if p.suffix.lower() in suffixes)
        if not self.files:
            raise InputError(f"no image files ({', '.join(suffixes)}) under {root}")
        groups = [file.relative_to(root).parts[0] for file in self.files]
        nested = [len(file.relative_to(root).parts) > 1 for file in self.files]
        self.classes = sorted({g for g, inside in zip(groups, nested, strict=True) if inside})
        self.labels = [self.classes.index(g) if inside else -1 for g, inside in zip(groups, nested, strict=True)]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        height, width = self.size
        try:
            with Image.open(self.files[index]) as opened:
                image = opened.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(f"{self.files[index]} is no readable image ({error}); repair or remove it") from error
        scale = max(height / image.height, width / image.width)
        resized = [max(height, round(image.height * scale)), max(width, round(image.width * scale))]
        cropped = TF.center_crop(TF.resize(image, resized, antialias=True), [height, width])
        return TF.pil_to_tensor(cropped), torch.tensor(self.labels[index])


def _in_memory(images: np.ndarray, labels: np.ndarray | None, name: str) -> TensorDataset:
    """Arrays of images, channels first or last, and labels (-1 where there are none) as one data set."""
    if images.dtype != np.uint8 or images.ndim != 4:
        raise InputError(
            f"{name} must be uint8 images (n, channels, height, width), got {images.dtype} of shape {images.shape}"
        )
    if images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if labels is not None and labels.shape != (len(images),):
        raise InputError(f"{name}: {len(images)} images, but labels of shape {labels.shape}")
    y = np.full(len(images), -1) if labels is None else labels
    return TensorDataset(torch.from_numpy(np.ascontiguousarray(images)), torch.from_numpy(y.astype(np.int64)))


def _hold_out(data: Dataset, fraction: float, seed: int) -> tuple[Subset, Subset]:
    """Two disjoint parts of a data set, drawn at random; the second has the share `fraction`, at least one image."""
    count = len(data)  # type: ignore[arg-type]
    held = max(1, round(fraction * count))
    if held >= count:
        raise InputError(f"{count} images are too few to hold out a share of {fraction:g}")
    generator = torch.Generator().manual_seed(seed)
    first, second = random_split(data, [count - held, held], generator)
    return first, second


def _must_exist(path: Path) -> None:
    """Refuse a path that leads nowhere, with where it was looked for."""
    if not path.exists():
        raise InputError(f"no such file or folder: {path} (looked in {Path.cwd()})")


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
