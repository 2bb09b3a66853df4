"""The singular values of a network's convolutions as a picture: all of them where they are known, else the two ends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from invconv.errors import InputError, needs
from invconv.summary.row import Row

FLOOR = 1e-7
"""Of the largest value of all layers: what lies below is an arrow to the edge.  Quality of the picture only."""

ENDS, ALL, GRID = "#2a6f97", "#a9d6e5", "#d9d9d9"


def draw(rows: Sequence[Row], path: str | Path) -> None:
    """A line for each convolution, from sigma_min to sigma_max on a logarithmic axis, and how its values spread.

    Args:
        rows: of a summary.
        path: of the file, whose ending says what kind it is.

    Raises:
        MissingPackageError: without matplotlib.
        InputError: if it cannot write such a file, or there is nothing to draw.
    """
    with needs("pictures"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    shown = [row for row in rows if row.sigma_max]
    if not shown:
        raise InputError("there is no sigma_max to draw: ask for the quantities 'sigma_max' and 'sigma_min'")
    figure = Figure(figsize=(8.0, 1.1 + 0.24 * len(shown)), dpi=150, layout="constrained")
    endings = FigureCanvasAgg(figure).get_supported_filetypes()
    if Path(path).suffix[1:].lower() not in endings:
        raise InputError(f"{path} has an ending that matplotlib cannot write: choose one of {', '.join(endings)}")
    axes = figure.subplots()
    edge = FLOOR * max(row.sigma_max or 0.0 for row in shown)
    for place, row in enumerate(shown):
        _line(axes, place, row, edge)
    axes.set_xscale("log")
    axes.set_xlim(left=max(axes.get_xlim()[0], edge))
    axes.set_yticks(range(len(shown)), [row.name for row in shown], fontsize=7)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("singular values of each convolution, at its real borders")
    axes.grid(axis="x", color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    figure.savefig(str(path))


def _line(axes: Any, place: int, row: Row, edge: float) -> None:
    """The values of one layer: their shares of the logarithmic axis, the ends as dots, and what is not known open."""
    largest, smallest = row.sigma_max or 0.0, row.sigma_min
    if largest and row.spectrum and row.spectrum[-1] > 0:
        # What share of the values lies below each, from none to all.
        last = len(row.spectrum) - 1
        shares = [place + 0.4 - 0.8 * (1 - index / last) for index in range(last + 1)]
        axes.fill_between(row.spectrum, place + 0.4, shares, color=ALL, linewidth=0)
    known = smallest is not None
    end = smallest if smallest is not None else row.reached.get("sigma_min")
    if end is not None:
        inside = end > edge
        left = max(end, edge)
        axes.plot([left, largest], [place, place], color=ENDS, linewidth=1.2)
        face = ENDS if known else "white"
        axes.plot([left], [place], "o" if known and inside else "<", color=ENDS, markerfacecolor=face, markersize=3.5)
        if not inside:
            axes.annotate(f"{end:.1g}", (left, place), (4, 2), textcoords="offset points", fontsize=6, color=ENDS)
    axes.plot([largest], [place], "o", color=ENDS, markersize=3.5)
