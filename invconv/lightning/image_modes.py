"""What the samples of an image file mean: black, white and opacity of each mode that Pillow knows.

A sample s lies between black, 0, and white, the largest value t that the file's kind can hold; its level is 255 s / t,
rounded. With opacity a, in the unit interval, it is laid over white:  a s + (1 - a) t.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile

from invconv.errors import InputError

STRIP = 1 << 20
"""Samples that are computed with, in float64, at a time. Speed only."""
TWELVE_BITS = 4095
"""A file of 16 bits with no value above this one may well hold 12 bits: it is remarked on."""
BITS, PHOTOMETRIC, PLANES, OPACITY, SAMPLE_FORMAT = 258, 262, 284, 338, 339
"""Numbers of tags of TIFF; an OPACITY of 1 is of colours that are multiplied by it."""
OTHER_HALF = {"B": "L", "L": "B", "N": "L" if sys.byteorder == "big" else "B"}
"""Pillow keeps the upper byte of colours of 16 bits; taken for the other byte order, they give the lower one."""
SIXTEEN_BITS: tuple[str | None, ...] = ("PNG", "TIFF", "PPM", "JPEG2000", None)
"""Formats whose integers of 16 bits are between 0, black, and 65535, white; `None` is an image made in memory."""
FORMATS_OF: dict[str, tuple[str | None, ...]] = {"I": ("PNG", "PPM"), "HSV": (), "LAB": ()}
"""Those in which other modes are read; a mode that is not named is read in all."""
ADVICE = "save it as an image of 8 or 16 bits, grey or RGB"


class Picture(NamedTuple):
    """A picture of mode L or RGB, and what has to be said of how it was read."""

    image: Image.Image
    remarks: tuple[str, ...]


class Samples(NamedTuple):
    """(height, width) or (height, width, channels), between 0 and `top`; the last channel may be opacity."""

    values: np.ndarray
    top: int
    opacity: bool = False
    associated: bool = False
    """Whether colours are already multiplied by their opacity."""


def picture_of(image: Image.Image, name: str, samples: Samples | None = None) -> Picture:
    """An image of any of Pillow's modes as one of mode L or RGB.

    Args:
        image: as Pillow opened or made it.
        name: of the file, for errors.
        samples: all bits of the file, where Pillow keeps fewer.

    Raises:
        InputError: for modes and values whose black and white are not known; the text names them.
    """
    check_kind(image, name)
    grey = is_grey(image)
    samples = samples or _with_key(image) or _few_bits(image)
    if samples is None:
        return Picture(image.convert("L" if grey else "RGB"), ())
    if image.mode == "F":
        _check_floats(samples.values, name)
    levels = _levels(samples, _is_inverted(image), image.mode == "YCbCr")
    return Picture(Image.fromarray(levels[..., 0] if levels.shape[2:] == (1,) else levels), _remarks(samples))


def is_grey(image: Image.Image) -> bool:
    """Whether a file, as it was opened, is one of greys."""
    if image.mode in ("P", "PA"):
        palette = np.array(image.getpalette("RGB") or [0, 0, 0]).reshape(-1, 3)
        return bool((palette == palette[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;") or "LA;16B" in kinds_in(image)


def check_kind(image: Image.Image, name: str) -> None:
    """Refuse kinds of images whose samples have no known black and white, or that Pillow misreads.

    Raises:
        InputError: for these, with what to do.
    """
    tags = getattr(image, "tag_v2", {})
    formats = {int(f) for f in np.atleast_1d(tags.get(SAMPLE_FORMAT, 1))}
    bits = max(int(b) for b in np.atleast_1d(tags.get(BITS, 8)))
    known = SIXTEEN_BITS if image.mode.startswith("I;") else FORMATS_OF.get(image.mode)
    if known is not None and image.format not in known:
        what = {"I": "integers of 32 bits or with a sign"}.get(image.mode, f"mode {image.mode}")
    elif formats != {3 if image.mode == "F" else 1} and tags:
        what = "integers with a sign"
    elif len(image.getbands()) > 1 and tags.get(PLANES) == 2 and (bits > 8 or 1 in np.atleast_1d(tags.get(OPACITY, 0))):
        what = f"colours of {bits} bits in separate planes, premultiplied or deep, which Pillow misreads"
    else:
        return
    raise InputError(
        f"{name} has {what} (mode {image.mode}, {image.format or 'in memory'}), whose black and white are not known: "
        f"{ADVICE}"
    )


def _check_floats(values: np.ndarray, name: str) -> None:
    """Refuse floats that are not all between black and white; NaN is not."""
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= 1:
        raise InputError(
            f"{name} has floats from {low:g} to {high:g}; expected 0 (black) to 1 (white): scale them, or {ADVICE}"
        )


def _remarks(samples: Samples) -> tuple[str, ...]:
    """What was taken for granted of samples."""
    values, top, opacity, _ = samples
    remarks = []
    if top == 65535 and 0 < (values[..., :-1] if opacity else values).max() <= TWELVE_BITS:
        remarks.append(f"has 16 bits but no value above {TWELVE_BITS}: if it holds 12 bits, multiply them by 16")
    if opacity and values[..., -1].min() < top:
        remarks.append("has transparent pixels, which are laid over white")
    return tuple(remarks)


def kinds_in(image: Image.Image) -> set[str]:
    """Pillow's names of how samples lie in the file; none once they were read."""
    arguments = (tile[3] for tile in getattr(image, "tile", ()))
    return {str(a[0] if isinstance(a, tuple) and a else a) for a in arguments}


def _loaded(image: Image.Image) -> np.ndarray:
    """The samples of an image, read first: a TIFF is turned when it is read, and its size with it."""
    image.load()
    return np.asarray(image)


def _read_as(path: Path, kind: str) -> np.ndarray:
    """The samples of a file, taken for another kind."""
    with path.open("rb") as file, Image.open(file) as image:
        image.tile = [
            tile._replace(args=(kind, *tile.args[1:]) if isinstance(tile.args, tuple) else kind) for tile in image.tile
        ]
        return _loaded(image)


def all_bits(image: ImageFile.ImageFile, path: Path) -> Samples | None:
    """Samples of which Pillow would not keep all bits in their order; None where it does."""
    (kind, *others) = sorted(kinds_in(image)) or ("",)
    if kind == "F;32BF" and image.tile[0].codec_name == "libtiff":  # which has put the bytes in order
        return Samples(_read_as(path, "F;32NF"), 1)
    if kind == "LA;16B":
        return Samples(_read_as(path, "RGBA").copy().view(">u2"), 65535, opacity=True)
    if kind == "RGBa" and not others:
        return Samples(_read_as(path, "RGBA"), 255, opacity=True, associated=True)
    if kind[:-1] in ("RGB;16", "RGBA;16", "RGBX;16", "CMYK;16") and not others and kind[-1] in OTHER_HALF:
        lower = _read_as(path, kind[:-1] + OTHER_HALF[kind[-1]])
        values = np.left_shift(_loaded(image), 8, dtype=np.uint16) | lower
        if image.mode == "CMYK":
            return Samples(_rgb(values), 65535)
        return _with_key(image, values) or Samples(values, 65535, opacity=image.mode == "RGBA")
    if kind.startswith("RGBa") or (";16" in kind and not kind.startswith("I;")):
        raise InputError(f"{path} has samples of a kind ({kind}) of which Pillow loses digits: {ADVICE}")
    return None


def _rgb(cmyk: np.ndarray) -> np.ndarray:
    """Inks of 16 bits as light."""
    light = 65535 - cmyk.astype(np.uint32)
    return ((light[..., :3] * light[..., 3:] + 32767) // 65535).astype(np.uint16)


def _with_key(image: Image.Image, values: np.ndarray | None = None) -> Samples | None:
    """Samples and their opacity, where one value or colour of a file stands for transparency."""
    key = image.info.get("transparency")
    if key is None or image.mode not in ("1", "L", "RGB", "I;16", "I;16B", "I;16L", "I;16N", "I"):
        return None
    key = np.array(key) * {"L;2": 85, "L;4": 17}.get("".join(kinds_in(image)), 1)
    if values is None:
        values = _loaded(image.convert("L") if image.mode == "1" else image)
    top = 65535 if values.dtype.itemsize > 1 else 255
    values = values.reshape(*values.shape[:2], -1)
    opacity = np.where((values == key).all(-1, keepdims=True), 0, top).astype(values.dtype)
    return Samples(np.concatenate([values, opacity], -1), top, opacity=True)


def _few_bits(image: Image.Image) -> Samples | None:
    """Samples of the modes that Pillow does not itself turn into the nearest levels of grey or RGB."""
    mode = image.mode
    if mode == "PA" or (mode == "P" and "transparency" in image.info):
        rgba = np.asarray(image.convert("RGBA"))
        return Samples(rgba[..., [0, 3]] if is_grey(image) else rgba, 255, opacity=True)
    if mode in ("LA", "La", "RGBA", "RGBa"):
        return Samples(_loaded(image), 255, opacity=True, associated=mode.endswith("a"))
    if mode == "I" or mode.startswith("I;"):
        bits = int(np.max(getattr(image, "tag_v2", {}).get(BITS, 16)))
        return Samples(_loaded(image), 2**bits - 1)
    if mode == "F":
        return Samples(_loaded(image), 1)
    if mode == "YCbCr":
        return Samples(_loaded(image), 255)
    return None


def _is_inverted(image: Image.Image) -> bool:
    """Whether 0 is white; Pillow sees to it in files of 8 bits."""
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0 and (image.mode == "F" or image.mode.startswith("I"))


def _levels(samples: Samples, inverted: bool, luma: bool) -> np.ndarray:
    """Samples as the nearest of 256 levels, strip by strip."""
    values, top, opacity, associated = samples

    def unit(strip: np.ndarray) -> np.ndarray:
        s = strip.astype(np.float64) / top
        s = 1 - s if inverted else s
        if luma:
            y, cb, cr = s[..., 0], s[..., 1] - 128 / 255, s[..., 2] - 128 / 255
            return np.stack([y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb], -1)
        if not opacity:
            return s
        colours, a = s[..., :-1], s[..., -1:]
        return (colours if associated else colours * a) + 1 - a

    return _in_strips(lambda strip: np.rint(255 * unit(strip)).clip(0, 255).astype(np.uint8), values)


def _in_strips(of: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """A function of pixels, a few rows at a time."""
    return np.concatenate([of(strip) for strip in np.array_split(values, 1 + values.size // STRIP)])
