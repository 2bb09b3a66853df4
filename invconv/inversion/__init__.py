"""Pictures of what a layer of a trained network still knows of an image, and of what excites it."""

from typing import TYPE_CHECKING, Any

from invconv.inversion import entrywise, moved, pooling, powers, rules  # noqa: F401  (imported to register the rules)
from invconv.inversion.closed_form import LayerReport
from invconv.inversion.coordinates import total_variation
from invconv.inversion.interval import Interval
from invconv.inversion.invert import Inversion, invert
from invconv.inversion.layers import layer_names, observe, spread
from invconv.inversion.place import Place
from invconv.inversion.registry import rule
from invconv.inversion.site import Site
from invconv.inversion.visualize import Visualization, visualize

if TYPE_CHECKING:
    from invconv.inversion.figures import plot

__all__ = [
    "Interval",
    "Inversion",
    "LayerReport",
    "Place",
    "Site",
    "Visualization",
    "invert",
    "layer_names",
    "observe",
    "plot",
    "rule",
    "spread",
    "total_variation",
    "visualize",
]


def __getattr__(name: str) -> Any:
    """`plot` only when it is asked for: it needs matplotlib."""
    if name != "plot":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from invconv.inversion.figures import plot

    return plot


def __dir__() -> list[str]:
    return sorted(__all__)
