"""Panels of curves on logarithmic axes, for the figures of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, NullFormatter, NullLocator

STYLE = matplotlib.rc_params_from_file(
    Path(__file__).parents[2] / "docs" / "tools" / "matplotlibrc", fail_on_error=False, use_default_template=False
)
"""The look that all figures share."""
COLOURS: tuple[str, ...] = tuple(STYLE["axes.prop_cycle"].by_key()["color"])
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


@matplotlib.rc_context(STYLE)
def draw(path: Path, rows: list[list[Panel]], title: str, height: float = 2.7) -> None:
    """One legend for all panels; a name has the same colour in each."""
    columns = max(map(len, rows))
    size = 3.0 * columns + 0.4, height * len(rows) + 0.7
    figure, axes = plt.subplots(len(rows), columns, figsize=size, squeeze=False)
    names = list(dict.fromkeys(name for row in rows for panel in row for name in panel.curves))
    handles = {}
    for row, places in zip(rows, axes, strict=True):
        for panel, axis in zip(row, places, strict=False):
            for name, curve in panel.curves.items():
                index = names.index(name)
                colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
                dots = {"marker": marker, "markersize": 4} if curve.style == "-" else {}
                (handles[name],) = axis.plot(curve.x, curve.y, curve.style, color=colour, **dots)
                if curve.low and curve.high:
                    axis.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)
            _label(axis, panel)
        for axis in places[len(row) :]:
            axis.axis("off")
    figure.suptitle(title, fontsize=11)
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(len(names), 4))
    figure.savefig(path)
    plt.close(figure)
    print(path)


def _label(axis: plt.Axes, panel: Panel) -> None:
    axis.set(xscale="log", yscale="log", xlabel=panel.x, ylabel=panel.y)
    axis.set_title(panel.title)
    if panel.ticks:
        measured = sorted({x for curve in panel.curves.values() for x in curve.x})
        axis.set_xticks(measured, [f"{x:g}" for x in measured])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_minor_formatter(NullFormatter())
    low, high = axis.get_ylim()
    if high / low < 1000:  # 0.3, 1, 3 rather than powers of ten
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 20 else (1, 3)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    else:
        axis.yaxis.set_major_formatter(LogFormatterSciNotation())
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.grid(True)
