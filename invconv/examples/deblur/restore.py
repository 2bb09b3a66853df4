"""Undo a blur whose kernel is known, at the borders that the picture has:  argmin ||A x - y||^2 + d^2 ||x - y||^2.

    invconv deblur --out deblurred.png                        # a photograph of scikit-image, shaken and restored
    invconv deblur --image blurred.jpg --kernel psf.png       # one of your own; the kernel a small grey picture
    invconv deblur --image blurred.png --kernel psf.npy --border reflect --damping 0.02
    invconv deblur --compare --help                           # twelve photographs, fifteen methods, a table

What stands beyond the edge: "valid", what was there and nobody knows, as in any photograph; "zeros", darkness;
"reflect", "replicate" and "circular" as PyTorch pads.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from invconv import InputError, InvertibleConv2d
from invconv.errors import needs
from invconv.examples.quality import psnr

BORDERS = ("valid", "zeros", "reflect", "replicate", "circular")


def restore(y: Tensor, kernel: Tensor, border: str = "valid", damping: float = 0.05) -> Tensor:
    """The picture that a blur was made of.

    Args:
        y: (channels, height, width), from 0 to 1.
        kernel: (taps, taps) or of two odd sides, as a convolution layer reads it: a point spread function turned round.
        border: what stands beyond the edge.
        damping: d, in units of singular values, of which the largest is 1: more for more noise.

    Returns:
        x: of the shape of y, float64.

    Raises:
        InputError: for a kernel with an even side, or larger than the picture.

    Example:
        >>> x = torch.rand(1, 24, 24, dtype=torch.float64)
        >>> box = torch.full((3, 3), 1 / 9, dtype=torch.float64)
        >>> y = F.conv2d(x[None], box[None, None], padding=1)[0]
        >>> bool((restore(y, box, "zeros", damping=1e-5) - x).abs().max() < 1e-2)
        True
    """
    sides = tuple(kernel.shape)
    if len(sides) != 2 or not all(n % 2 for n in sides) or any(n > m for n, m in zip(sides, y.shape[1:], strict=True)):
        raise InputError(f"the kernel has shape {sides}, expected two odd sides within the picture's {tuple(y.shape)}")
    reach = tuple(n // 2 for n in sides)
    padding, mode = (0, "zeros") if border == "valid" else (reach, border)
    conv = InvertibleConv2d(1, 1, sides, padding=padding, padding_mode=mode, bias=False, dtype=torch.float64)
    conv.weight.data.copy_(kernel)
    conv.requires_grad_(False)
    blurred = y.double().unsqueeze(1)
    beyond = (reach[1], reach[1], reach[0], reach[0]) if border == "valid" else (0, 0, 0, 0)
    x = conv.proximal(blurred, F.pad(blurred, beyond, mode="replicate"), damping)
    top, left = beyond[2], beyond[0]
    return x[:, 0, top : top + y.shape[1], left : left + y.shape[2]]


def main(words: Sequence[str]) -> None:
    """Restore a picture, and write it."""
    if "--compare" in words:
        from invconv.examples.deblur import compare

        compare.main([word for word in words if word != "--compare"])
        return
    parser = argparse.ArgumentParser(
        prog="invconv deblur", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image", type=Path, help="a blurred picture; none for the demonstration")
    parser.add_argument("--kernel", type=Path, help="point spread function: a grey picture or .npy, sides odd")
    parser.add_argument("--border", choices=BORDERS, default="valid", help="what stands beyond the edge (valid)")
    parser.add_argument("--damping", type=float, default=0.05, help="more for more noise (0.05)")
    parser.add_argument("--compare", action="store_true", help="methods side by side, with options of its own")
    parser.add_argument("--out", type=Path, default=Path("deblurred.png"), help="a picture file (deblurred.png)")
    asked = parser.parse_args(words)
    if (asked.image is None) != (asked.kernel is None):
        raise InputError("give both --image and --kernel, or neither for the demonstration")
    with needs("pictures"):
        from PIL import Image

    shown = _demonstration(asked) if asked.image is None else [restore(*_given(asked), asked.border, asked.damping)]
    levels = (torch.cat(shown, 2).clamp(0, 1) * 255).round().byte().movedim(0, -1).squeeze(-1).numpy()
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(asked.out)
    print(f"Picture: {asked.out}")


def _demonstration(asked: argparse.Namespace) -> list[Tensor]:
    """A photograph as it was shaken and as it is restored; what was gained is printed."""
    from invconv.examples.deblur.scenes import PADDING_MODES, scenes

    if asked.border not in PADDING_MODES:
        raise InputError(f"the demonstration has borders {', '.join(PADDING_MODES)}, got {asked.border}")
    scene = next(scenes(asked.border, 256, 15, 0.002, 1))
    x = restore(scene.blurred[0], scene.kernel, asked.border, asked.damping)
    before, after = psnr(scene.blurred[0], scene.truth[0]), psnr(x, scene.truth[0])
    print(f"{scene.name}, shaken and restored: {before:.1f} and {after:.1f} dB")
    return [scene.blurred[0], x]


def _given(asked: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """The picture, (channels, height, width) from 0 to 1, and the kernel of sum one, as a layer reads it."""
    kernel = np.load(asked.kernel) if asked.kernel.suffix == ".npy" else _read(asked.kernel).mean(0)
    spread = torch.as_tensor(kernel, dtype=torch.float64)
    if not bool(spread.isfinite().all()) or float(spread.sum()) <= 0:
        raise InputError(f"the kernel of {asked.kernel} has a sum of {float(spread.sum()):g}, expected a positive one")
    return torch.from_numpy(_read(asked.image)), (spread / spread.sum()).flip(0, 1)


def _read(path: Path) -> np.ndarray:
    """A picture file, (channels, height, width), float64 from 0 to 1."""
    from invconv.lightning.image_files import read_picture

    image = np.asarray(read_picture(path).image) / 255.0
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
