"""Figures: the input, and beside it what each layer still knows; or what excites the parts of a network."""

from __future__ import annotations

import base64
import io
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from invconv.errors import InputError, needs
from invconv.inversion.closed_form import LEFT
from invconv.inversion.invert import Inversion
from invconv.inversion.pictured import numbered
from invconv.inversion.visualize import Visualization

with needs("pictures"):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

WINDOW = 7
"""Side of the window of SSIM, as scikit-image has it."""
LETTERS = 22
"""In a line over a picture: more would run into the next."""
MOST_COLUMNS = 8
"""Pictures in a row: more would be too small to be looked at in the width of a page."""


class Figures(list[Figure]):
    """Figures of matplotlib that a notebook shows one below the other."""

    def _repr_html_(self) -> str:
        pictures = []
        for figure in self:
            file = io.BytesIO()
            figure.savefig(file, format="png", dpi=100)
            pictures.append(f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">')
        return "<br>".join(pictures)


def plot(
    found: Sequence[Inversion | Visualization],
    image: Tensor | None = None,
    *,
    mean: Sequence[float] | float = 0.0,
    std: Sequence[float] | float = 1.0,
    title: str = "",
    to: str | Path | None = None,
) -> Figures:
    """One figure for each image: the input, then each inversion with its feature error, PSNR and SSIM.

    PSNR, in dB, and SSIM are those of the pictures as they are shown, between black and white. The feature error is
    `invert`'s: of what is shown as well where it was given `mean=`. Below what `visualize` found stands its objective,
    before and after.

    Args:
        found: inversions of the same images, one for each layer, or visualizations.
        image: (batch, 1 or 3, height, width), in the model's input space; may be left out of visualizations.
        mean, std: per channel; std x + mean lies between 0 (black) and 1 (white).
        title: over each figure.
        to: a file to write; with several images, their numbers are put before its ending.

    Returns:
        A list of matplotlib figures; as the last value of a notebook's cell it is shown.

    Raises:
        InputError: for images that are not grey or in colours, inversions of other images or without one, or a file
            whose ending matplotlib cannot write.
    """
    found = list(found)
    if image is None and not (found and all(isinstance(r, Visualization) for r in found)):
        raise InputError("inversions are shown beside the image that they are of: give image=")
    like = found[0].image if image is None else image
    if like.dim() != 4 or like.shape[1] not in (1, 3):
        raise InputError(f"image has shape {tuple(like.shape)}, expected (batch, 1 or 3 channels, height, width)")
    for r in found:
        if r.image.shape != like.shape:
            raise InputError(f"the picture of {r.layer!r} has shape {tuple(r.image.shape)}, not {tuple(like.shape)}")
    if to is not None:
        check_ending(Path(to))

    def levels(x: Tensor) -> Tensor:
        scale, shift = (torch.as_tensor(v, dtype=x.dtype, device=x.device).reshape(-1, 1, 1) for v in (std, mean))
        return (x.detach() * scale + shift).clamp(0, 1).movedim(1, -1).cpu()

    truth, pictures = None if image is None else levels(image), [levels(r.image) for r in found]
    figures = Figures()
    for b in range(len(like)):
        cells: list[tuple[str, Tensor, str]] = [] if truth is None else [("input", truth[b], "")]
        for r, picture in zip(found, pictures, strict=True):
            cells.append((_title(r), picture[b], _below(r, b, truth, picture)))
        figures.append(_figure(cells, title))
        if to is not None:
            path = numbered(Path(to), b, len(like))
            path.parent.mkdir(parents=True, exist_ok=True)
            figures[-1].savefig(path, dpi=150)
    return figures


def check_ending(path: Path) -> None:
    """Refuse a file that matplotlib cannot write.

    Raises:
        InputError: for an unknown ending; the text lists those that are known.
    """
    endings = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix and path.suffix[1:].lower() not in endings:
        raise InputError(f"{path} has an ending that matplotlib cannot write: choose one of {', '.join(endings)}")


def _below(r: Inversion | Visualization, b: int, truth: Tensor | None, picture: Tensor) -> str:
    """What stands below a picture."""
    if isinstance(r, Visualization):
        return f"objective {float(r.start[b]):.3g} to {float(r.value[b]):.3g}"
    assert truth is not None
    return f"feature error {_short(float(r.feature_error[b]))}\n{_likeness(truth[b], picture[b])}"


def _likeness(truth: Tensor, picture: Tensor) -> str:
    """PSNR, and SSIM where the picture has room for its window."""
    a, b = truth.numpy(), picture.numpy()
    with np.errstate(divide="ignore"):  # of equal pictures the PSNR is infinite
        ratio = f"{peak_signal_noise_ratio(a, b, data_range=1.0):.1f} dB"
    if min(a.shape[:2]) < WINDOW:
        return ratio
    return f"{ratio}, SSIM {structural_similarity(a, b, channel_axis=2, data_range=1.0, win_size=WINDOW):.2f}"


def _title(r: Inversion | Visualization) -> str:
    """Name of the layer, and its kind where one layer was inverted; long names in lines."""
    top = r.layers[0] if isinstance(r, Inversion) and r.layers else None
    single = top and top.name == r.layer and "+" not in top.kind and top.kind != LEFT
    name = f"{r.layer} ({top.kind})" if top and single else r.layer
    return textwrap.fill(name.replace(".", ". "), LETTERS).replace(". ", ".")


def _figure(cells: list[tuple[str, Tensor, str]], title: str) -> Figure:
    """Pictures in rows, each with a name above and a text below."""
    rows = math.ceil(len(cells) / MOST_COLUMNS)
    columns = math.ceil(len(cells) / rows)
    figure = Figure(figsize=(1.75 * columns, 2.35 * rows + 0.3 * bool(title)), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (name, picture, below) in zip(axes.flat, cells, strict=False):
        axis.axis("on")
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=9)
        axis.set_xlabel(below, fontsize=8)
        grey = picture.shape[-1] == 1
        shown = picture.numpy()
        axis.imshow(shown[..., 0] if grey else shown, cmap="gray", vmin=0, vmax=1)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _short(error: float) -> str:
    """Two digits."""
    return f"{error:.1e}" if error < 0.01 else f"{error:.2f}"
