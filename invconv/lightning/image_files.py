"""One reader of image files: upright, opaque, 8 bits, grey or RGB. What cannot be scaled honestly is refused."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from invconv.engine import memory
from invconv.errors import InputError, InvconvError, OutOfMemoryError
from invconv.lightning.image_modes import Picture, all_bits, check_kind, kinds_in, picture_of

MOST_STRETCHED = 100
"""Longest side over shortest: cropped to a square, of a longer picture less than a hundredth would be seen."""
BYTES_PER_PIXEL, OF_DEEP_ONES = 16, 40
"""What reading takes at most, with samples of 8 bits, and of more, which are read in two halves."""
ORIENTATION = 274
"""Number of the tag of EXIF."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each orientation of EXIF."""


def read_picture(path: Path) -> Picture:
    """The picture in a file: turned upright as its EXIF data say, laid over white where it is transparent.

    Grey files give mode L, all others RGB. Of several frames it is the first; profiles of colour are not heeded.

    Raises:
        InputError: for a file that is missing, damaged, too large for Pillow's limit or too long and narrow, and for
            samples whose black and white the file does not tell; the text names the file.
        OutOfMemoryError: if it needs more memory than there is.
    """
    if not path.is_file():
        raise InputError(f"{path} cannot be read as an image: there is no such file (looked in {Path.cwd()})")
    try:
        # From an open file: one that is given by its name Pillow maps into memory, and a turned TIFF is scrambled.
        with path.open("rb") as file, Image.open(file) as opened:
            check_size(opened, path)
            # An MPO's other frames are its own views of the picture, such as a smaller one.
            several = opened.format != "MPO" and getattr(opened, "is_animated", False)
            check_kind(opened, str(path))
            samples = all_bits(opened, path)
            image, remarks = picture_of(opened, str(path), samples)
            opened.load()  # Pillow itself turns a TIFF when it is read, and then forgets its orientation
            turn = UPRIGHT.get(opened.getexif().get(ORIENTATION, 1))
    except InvconvError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: {error} Scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS") from error
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise InputError(f"{path} is no readable image ({error}); repair or remove it") from error
    more = ("is the first of several frames",) if several else ()
    return Picture(image if turn is None else image.transpose(turn), (*remarks, *more))


def check_size(image: Image.Image, path: Path) -> None:
    """Refuse, by its header, what would take too much memory or be nothing but a line.

    Raises:
        InputError: for a picture much longer than wide, or the other way round.
        OutOfMemoryError: if it needs more memory than there is.
    """
    short, long = sorted(image.size)
    if long > MOST_STRETCHED * short:
        raise InputError(
            f"{path} has {image.width} x {image.height} pixels; expected a picture whose sides differ by a factor of "
            f"{MOST_STRETCHED} at most: remove it, or cut it into pieces"
        )
    deep = any(bits in kind for kind in kinds_in(image) for bits in ("16", "32"))
    needed, free = (
        (OF_DEEP_ONES if deep else BYTES_PER_PIXEL) * short * long,
        memory.available_memory(torch.device("cpu")),
    )
    if needed > free:
        raise OutOfMemoryError(
            f"{path} has {image.width} x {image.height} pixels, which take up to {needed / 1e9:.1f} GB to read where "
            f"{free / 1e9:.1f} GB are free: scale it down"
        )


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image scaled until it covers `height` x `width`, and cropped to its centre."""
    scale = max(height / image.height, width / image.width)
    x, y = (image.width - width / scale) / 2, (image.height - height / scale) / 2
    box = max(x, 0), max(y, 0), min(image.width - x, image.width), min(image.height - y, image.height)
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)
