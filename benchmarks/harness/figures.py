"""Panels of curves on logarithmic axes, for the figures of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter, NullLocator

# Okabe and Ito's colours, told apart by everyone.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"


@dataclass(frozen=True)
class Curve:
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    """The lower quartile; from it to `high` a band is drawn."""
    high: list[float] | None = None
    style: str = "-"


@dataclass(frozen=True)
class Panel:
    title: str
    x: str
    y: str
    curves: dict[str, Curve] = field(default_factory=dict)
    ticks: bool = True
    """Whether only the measured places are marked on the x axis."""


def draw(path: Path, rows: list[list[Panel]], title: str, height: float = 3.1) -> None:
    """One legend for all panels; a name has the same colour in each."""
    columns = max(map(len, rows))
    size = 3.3 * columns + 0.6, height * len(rows) + 0.9
    figure, axes = plt.subplots(len(rows), columns, figsize=size, layout="constrained", squeeze=False)
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.curves))
    handles = {}
    for row, places in zip(rows, axes, strict=True):
        for panel, axis in zip(row, places, strict=False):
            for name, curve in panel.curves.items():
                index = names.index(name)
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                dots = {"marker": marker, "markersize": 4} if curve.style == "-" else {}
                (handles[name],) = axis.plot(curve.x, curve.y, curve.style, color=colour, linewidth=1.5, **dots)
                if curve.low and curve.high:
                    axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
            _label(axis, panel)
        for axis in places[len(row) :]:
            axis.axis("off")
    figure.suptitle(title, fontsize=11)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(names), 4), fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(path)


def _label(axis: plt.Axes, panel: Panel) -> None:
    axis.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y)
    axis.set_title(panel.title, fontsize=9)
    if panel.ticks:
        measured = sorted({x for curve in panel.curves.values() for x in curve.x})
        axis.set_xticks(measured, [f"{x:g}" for x in measured])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(alpha=0.25)
