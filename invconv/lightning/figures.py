"""Figures of batches of images: labelled grids, one above the other."""

from __future__ import annotations

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.utils import make_grid


def image_grid(images: Tensor, columns: int) -> Tensor:
    """Images `(n, channels, height, width)` in the unit interval, side by side: `(height, width, 3)`."""
    return make_grid(images.cpu().float(), columns, 1, pad_value=1).permute(1, 2, 0).clamp(0, 1)


def stacked(panels: list[tuple[str, Tensor]]) -> Figure:
    """Labelled grids, one above the other, each pixel drawn as a square of pixels."""
    width = 9.0
    heights = [width * grid.shape[0] / grid.shape[1] for _, grid in panels]
    figure = Figure(figsize=(width, sum(heights) + 0.35 * len(panels)), dpi=150, layout="constrained")
    rows = FigureCanvasAgg(figure).figure.subplots(len(panels), squeeze=False, height_ratios=heights)
    for axes, (title, grid) in zip(rows[:, 0], panels, strict=True):
        axes.imshow(grid.numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=11, loc="left")
        axes.axis("off")
    return figure
