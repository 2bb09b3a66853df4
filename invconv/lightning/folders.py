"""Folders of image files: which of them are parts, which are classes, and a first look at each file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import functional as TF

from invconv.errors import InputError
from invconv.lightning.image_files import cover, read_picture
from invconv.lightning.image_modes import is_grey

PARTS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""Names of folders that are parts of a set of images, and of which part."""
NAMED = 3
"""Files that are named where more have the same fault."""


class ImageFiles(Dataset):
    """The images under a folder, scaled to cover `size` and cropped to its centre.

    Folders directly below give the classes, a label is the place of its name among them, and -1 for files that lie in
    none. `classes` and `channels` (1 or 3) may be set, so that several folders agree.

    Raises:
        InputError: if there is no image; on reading one, as `read_picture` says.
    """

    def __init__(self, root: Path, size: tuple[int, int]) -> None:
        self.root, self.size = root, size
        files = sorted(p for p in root.rglob("*") if p.is_file())
        self.files = [p for p in files if p.suffix.lower() in IMG_EXTENSIONS]
        self.others = [p for p in files if p.suffix.lower() not in IMG_EXTENSIONS and not p.name.startswith(".")]
        if not self.files:
            raise InputError(f"no image files ({', '.join(IMG_EXTENSIONS)}) under {root}")
        parts = [file.relative_to(root).parts for file in self.files]
        self.groups = [p[0] if len(p) > 1 else None for p in parts]
        self.classes = sorted({group for group in self.groups if group is not None})
        self.channels = 3

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        group = self.groups[index]
        image = cover(read_picture(self.files[index]).image, *self.size).convert("L" if self.channels == 1 else "RGB")
        return TF.pil_to_tensor(image), torch.tensor(-1 if group is None else self.classes.index(group))


class Findings(NamedTuple):
    """What a look at all files of some folders has shown."""

    grey: bool
    """Whether all of them are grey."""
    remarks: tuple[str, ...]


def parts_of(path: Path) -> dict[str, Path]:
    """Folders below that are parts, by the name of the part; none where the folders are classes.

    They are parts if there are both `train` and `test`, or nothing beside those with names of parts.

    Raises:
        InputError: for two folders of the same part.
    """
    inside = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    folders = [p for p in inside if p.is_dir()]
    named = [p for p in folders if p.name.lower() in PARTS]
    parts = {PARTS[p.name.lower()]: p for p in named}
    alone = len(named) == len(folders) and not any(p.suffix.lower() in IMG_EXTENSIONS for p in inside if p.is_file())
    if not alone and not {"train", "test"} <= parts.keys():
        return {}
    if len(parts) < len(named):
        raise InputError(f"{path} has two folders of one part ({', '.join(p.name for p in named)}): leave one of them")
    return parts


def look_at(sets: Iterable[ImageFiles], whole: bool) -> Findings:
    """Open every file; read it to its end if `whole`.

    Raises:
        InputError: for files that cannot be read; the text has the first ones' faults and how many there are.
    """
    sets = list(sets)
    files = [file for part in sets for file in part.files]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        looks = list(pool.map(_look if whole else _glance, files))
    faults = [look for look in looks if isinstance(look, InputError)]
    if faults:
        more = f"; {len(faults)} of {len(files)} files cannot be read" if len(faults) > 1 else ""
        raise InputError("; ".join(map(str, faults[:NAMED])) + more) from faults[0]
    seen = [look for look in looks if not isinstance(look, InputError)]
    counts = Counter(remark for _, remarks in seen for remark in remarks)
    first = {
        remark: str(file)
        for file, (_, remarks) in zip(reversed(files), reversed(seen), strict=True)
        for remark in remarks
    }
    said = [f"{first[remark]} {remark} ({n} of {len(files)} files)" for remark, n in counts.items()]
    others = [p for part in sets for p in part.others]
    if others:
        kinds = ", ".join(sorted({p.suffix or "no ending" for p in others}))
        said.append(f"left out of {sets[0].root}, as no images by their names ({kinds}): {len(others)}")
    return Findings(all(grey for grey, _ in seen), tuple(said))


def _look(file: Path) -> tuple[bool, tuple[str, ...]] | InputError:
    """Whether a file is grey, and what is to be said of it; or what is wrong with it."""
    try:
        image, remarks = read_picture(file)
    except InputError as error:
        return error
    return image.mode == "L", remarks


def _glance(file: Path) -> tuple[bool, tuple[str, ...]] | InputError:
    """Whether a file is grey, by its head."""
    try:
        with Image.open(file) as image:
            return is_grey(image), ()
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        return InputError(f"{file} is no readable image ({error}); repair or remove it")
