"""Images for a flow, as a LightningDataModule."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import override

from invconv.errors import InputError, warn
from invconv.lightning import sources

USES = {"train": "images to train", "val": "to validate", "test": "to test"}
"""What the parts are for, in words."""
PARTS_OF = {
    "validate": {"val": "images to validate"},
    "test": {"test": "images to test"},
    "predict": {"test": "images to predict"},
}
"""Stages of a Trainer in which nothing is trained, and so nothing held out."""


class ImageDataModule(L.LightningDataModule):
    """Batches `(x, y)`: uint8 images (batch, channels, height, width) and labels (batch,).

    Images stay integer levels: dequantisation is the flow's. Where the source does not tell its parts, a test and a
    validation set are held out of the training set at random, the same ones for the same seed. Only training splits:
    where a Trainer does nothing but validate, test or predict, it sees all images of a folder that has no parts.
    How many images there are for what is always said.

    Files of images are turned upright, laid over white where they are transparent, and have 8 or 16 bits, or floats
    between 0 and 1; each is read once by `setup`, so that a damaged one is found before the training.

    A training epoch's order and mirrored images depend on seed and epoch alone, and the loader goes on in the middle
    of an epoch: a resumed run sees the batches that it would have seen.

    Args:
        source: `cifar10` (downloads), `npz:PATH` (arrays `x_train`, `x_test`, and, if any, `x_val`, `y_train`, ...),
            `folder:PATH` (with folders `train`, `val`, `test` of classes, or of classes), `photos` (crops of
            photographs that ship with scikit-image), or `auto`: CIFAR-10 where it is on disk or can be downloaded, else
            photos; `description`
            says which, and why.
        batch_size: images in a batch, of each process.
        image_size: side, or (height, width), of `folder` and `photos`; the others have theirs.
        flip: mirror each training image, left to right, with probability one half.
        val_fraction: share of the training set that is used for validation.
        data_dir: where CIFAR-10 lies or is put.
        num_workers: reading processes, worth while for `folder`.
        seed: of the validation split, the order and the mirroring.
        channels: 1 (grey) or 3 (RGB), of `folder`; where not given, 1 if all its files are grey.

    Raises:
        InputError: for an unknown source, a missing file or folder, an unreadable image or array.
        OutOfMemoryError: if an archive or an image needs more memory than there is.

    Example:
        >>> data = ImageDataModule("photos", batch_size=8)
        >>> data.setup()
        >>> x, y = next(iter(data.test_dataloader()))
        >>> x.shape, x.dtype, data.description
        (torch.Size([8, 3, 32, 32]), torch.uint8, 'photographs of scikit-image')
    """

    def __init__(
        self,
        source: str = "auto",
        batch_size: int = 64,
        image_size: int | tuple[int, int] = 32,
        flip: bool = False,
        val_fraction: float = 0.05,
        data_dir: str = "data",
        num_workers: int = 0,
        seed: int = 0,
        channels: Literal[1, 3] | None = None,
    ) -> None:
        super().__init__()
        kind, _, self.path = source.partition(":")
        if kind not in ("auto", "cifar10", "photos", "npz", "folder") or (
            (kind in ("npz", "folder")) != bool(self.path)
        ):
            raise InputError(f"unknown source {source!r}; use auto, cifar10, photos, npz:PATH or folder:PATH")
        if batch_size < 1 or num_workers < 0:
            raise InputError(
                f"expected batch_size of 1 or more and num_workers of 0 or more, got {batch_size}, {num_workers}"
            )
        if not 0 < val_fraction < 1:
            raise InputError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
        if channels not in (None, 1, 3):
            raise InputError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
        self.kind = kind
        self.batch_size = batch_size
        self.size = sources.sides(image_size)
        self.flip = flip
        self.val_fraction = val_fraction
        self.data_dir = Path(data_dir)
        self.num_workers = num_workers
        self.seed = seed
        self.channels = channels
        self.splits: sources.Splits | None = None
        self._is_split = False
        self._why_no_cifar10: str | None = None

    @property
    def description(self) -> str:
        """What the images are and, for `auto`, why these; known after `setup`."""
        note = self._loaded().note
        if self.kind == "auto" and note != "CIFAR-10":
            why = self._why_no_cifar10 or "it is not on disk"
            return f"{note}, as there is no CIFAR-10: {why}"
        return note

    @property
    def classes(self) -> int:
        """How many labels there are, 0 for none; known after `setup`."""
        return self._loaded().classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(channels, height, width); known after `setup`."""
        parts: Any = self._loaded()[:3]
        return tuple(next(part for part in parts if len(part))[0][0].shape)

    def image_channels(self) -> int:
        """Channels of the images, by the heads of their files; known before `setup`."""
        return self.channels or sources.shape(self.kind, Path(self.path), self.size)[0]

    def image_size(self) -> tuple[int, int]:
        """(height, width) of the images, known before `setup`; where CIFAR-10 may yet be downloaded, that asked for."""
        return self.size if self.kind == "folder" else sources.shape(self.kind, Path(self.path), self.size)[1:]

    @override
    def prepare_data(self) -> None:
        if self.kind in ("auto", "cifar10") and not sources.cifar10_on_disk(self.data_dir):
            self._why_no_cifar10 = sources.download_cifar10(self.data_dir)
            if self._why_no_cifar10 and self.kind == "cifar10":
                raise InputError(
                    f"no intact CIFAR-10 lies under {self.data_dir.resolve()}, and it cannot be downloaded: "
                    f"{self._why_no_cifar10}; use source auto, photos, npz:PATH or folder:PATH"
                )

    @override
    def setup(self, stage: str | None = None) -> None:
        split = stage not in PARTS_OF
        if self.splits is None or (split and not self._is_split):
            self.splits, self._is_split = self._load(split), split
            for remark in self.splits.remarks:
                self._warn(remark)
        parts = self.splits._asdict()
        counts = [f"{len(parts[part])} {use}" for part, use in PARTS_OF.get(stage or "", USES).items()]
        rank_zero_info(f"Data: {self.description}: {', '.join(counts)}")

    def _load(self, split: bool) -> sources.Splits:
        """The source's images; whole where nothing is to be split."""
        kind = self.kind
        if kind == "auto":
            kind = "cifar10" if sources.cifar10_on_disk(self.data_dir) else "photos"
        share = self.val_fraction, self.seed
        if kind == "cifar10":
            return sources.cifar10(self.data_dir, *share)
        if kind == "npz":
            return sources.npz(Path(self.path), *share, split)
        if kind == "folder":
            first = self._process()[1] == 0
            return sources.folder(Path(self.path), self.size, *share, self.channels, split, whole=first)
        return sources.photos(self.size)

    @override
    def state_dict(self) -> dict[str, Any]:
        """What was held out of which images, and how: a checkpoint keeps it."""
        held_out = self.splits.held_out if self.splits else ()
        source = str(Path(self.path).resolve()) if self.path else self.kind
        return {"source": source, "held_out": list(held_out), "seed": self.seed, "val_fraction": self.val_fraction}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn where images that a checkpoint's network was trained on are now among those that are held out."""
        here = self.state_dict()
        if here["source"] != state_dict["source"] or not state_dict["held_out"] or here == state_dict:
            return
        self._warn(
            f"The checkpoint was trained on a part of {here['source']}, drawn with seed {state_dict['seed']} and "
            f"val_fraction {state_dict['val_fraction']:g}, but {self._loaded().note} with seed {self.seed} and "
            f"{self.val_fraction:g} are read now: images that it was trained on are among those it is scored on. Give "
            "images of their own, or the same seed and val_fraction and call setup('fit') first."
        )

    @override
    def train_dataloader(self) -> DataLoader:
        data = _Mirrored(self._some(self._loaded().train, "train"))
        sampler = _EpochSampler(len(data), self.flip, self.seed, *self._process())
        return _ResumableLoader(
            data,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=len(sampler) >= self.batch_size,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
        )

    @override
    def val_dataloader(self) -> DataLoader:
        return self._in_order(self._some(self._loaded().val, "validate"))

    @override
    def test_dataloader(self) -> DataLoader:
        return self._in_order(self._some(self._loaded().test, "test"))

    @override
    def predict_dataloader(self) -> DataLoader:
        return self.test_dataloader()

    def _some(self, data: Dataset, use: str) -> Dataset:
        """A part of the images, if there is one."""
        if not len(data):  # type: ignore[arg-type]
            raise InputError(f"there are no images to {use} in {self.description}")
        return data

    def _in_order(self, data: Dataset) -> DataLoader:
        return DataLoader(data, batch_size=self.batch_size, num_workers=self.num_workers)

    def _loaded(self) -> sources.Splits:
        if self.splits is None:
            raise RuntimeError("setup() has not been called")
        return self.splits

    def _warn(self, text: str) -> None:
        """Say something of the data, in one process."""
        if self._process()[1] == 0:
            warn(text, UserWarning)

    def _process(self) -> tuple[int, int]:
        return (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)


class _Mirrored(Dataset):
    """Indices beyond the data mean the same images, mirrored."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        mirrored, index = divmod(index, len(self))
        x, y = self.data[index]
        return (x.flip(-1) if mirrored else x), y


class _EpochSampler(DistributedSampler):
    """A fresh order in each epoch, and a coin for each image, by (seed, epoch) alone."""

    def __init__(self, count: int, flip: bool, seed: int, world_size: int, rank: int) -> None:
        indices = cast(Dataset, range(count))
        super().__init__(indices, num_replicas=world_size, rank=rank, seed=seed)
        self.count = count
        self.flip = flip
        self.start = 0

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        coins = torch.zeros(self.count, dtype=torch.long)
        if self.flip:
            generator = torch.Generator().manual_seed(self.seed + self.epoch)
            coins = torch.randint(2, (self.count,), generator=generator)
        start, self.start = self.start, 0
        for index in indices[start:]:
            yield index + self.count * int(coins[index])


class _ResumableLoader(DataLoader):
    """A loader that a checkpoint can set down, and take up, in the middle of an epoch."""

    _handed_out = 0
    _resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # As a generator this runs at the first batch, by which time Lightning has set the epoch.
        sampler = cast(_EpochSampler, self.sampler)
        resume, self._resume = self._resume, None
        self._handed_out = resume["batches"] if resume and resume["epoch"] == sampler.epoch else 0
        sampler.start = self._handed_out * cast(int, self.batch_size)
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"epoch": cast(_EpochSampler, self.sampler).epoch, "batches": self._handed_out}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = state
