"""Images that were found, as pictures: between black and white, in files, beside what they are of."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from invconv.errors import InputError, needs


def numbered(path: Path, index: int, count: int) -> Path:
    """A file for one of several pictures, its number before the ending."""
    return path if count == 1 else path.with_stem(f"{path.stem}-{index}")


class Pictured:
    """What an image that was found in a model's input space can be shown as.

    Its `mean` and `std` are those of the call that found it: std x + mean lies between 0 (black) and 1 (white).
    """

    if TYPE_CHECKING:
        image: Tensor
        mean: Sequence[float] | float | None
        std: Sequence[float] | float

    def levels(self, image: Tensor | None = None) -> Tensor:
        """The image between black, 0, and white, 1: std x + mean, clipped; or another of the same input space."""
        x = (self.image if image is None else image).detach()
        values = (0.0 if self.mean is None else self.mean, self.std)
        shift, scale = (
            torch.as_tensor(v, dtype=x.dtype, device=x.device).reshape(-1, *(1,) * (x.dim() - 2)) for v in values
        )
        return (scale * x + shift).clamp(0, 1)

    def psnr(self, image: Tensor) -> Tensor:
        """Peak signal to noise against the true images, in dB, as both are shown: (batch,); infinite of equal ones.

        Args:
            image: of the shape of what was found, in the model's input space.

        Raises:
            InputError: for images of another shape.
        """
        if image.shape != self.image.shape:
            raise InputError(f"image has shape {tuple(image.shape)}, expected {tuple(self.image.shape)}")
        return -10 * (self.levels() - self.levels(image)).square().flatten(1).mean(1).log10()

    def save(self, path: str | Path) -> list[Path]:
        """Write the images to files of pictures, each pixel one pixel.

        Args:
            path: of a picture; with several images, their numbers are put before its ending.

        Returns:
            The files.

        Raises:
            InputError: for images that are not grey or in colours, and an ending that Pillow does not know.
            MissingPackageError: without the extra "pictures".
        """
        with needs("pictures"):
            from PIL import Image
        x = self.levels()
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            raise InputError(
                f"the images have shape {tuple(x.shape)}, expected (batch, 1 or 3 channels, height, width)"
            )
        path = Path(path)
        if path.suffix.lower() not in Image.registered_extensions():
            raise InputError(f"{path} has an ending that Pillow cannot write: choose .png")
        path.parent.mkdir(parents=True, exist_ok=True)
        files = [numbered(path, b, len(x)) for b in range(len(x))]
        for file, picture in zip(files, x, strict=True):
            pixels = (255 * picture).round().byte().movedim(0, -1).squeeze(-1).cpu().numpy()
            Image.fromarray(pixels).save(file)
        return files

    def plot(self, image: Tensor | None = None, *, title: str = "", to: str | Path | None = None) -> Any:
        """A figure for each image, as by `invconv.inversion.plot`: beside the image that it is of, if that is given.

        Args:
            image: the true images; needed for inversions.
            title: over each figure.
            to: a file to write.
        """
        figures = import_module("invconv.inversion.figures")  # which knows this class
        mean = 0.0 if self.mean is None else self.mean
        return figures.plot([self], image, mean=mean, std=self.std, title=title, to=to)
