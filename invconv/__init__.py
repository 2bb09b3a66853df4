"""Convolution layers that can be run backwards, exactly."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from invconv import functional, parametrizations
from invconv.errors import (
    CheckpointError,
    IllConditionedWarning,
    InputError,
    InvconvError,
    MissingPackageError,
    NotSquareError,
    OutOfMemoryError,
    SingularMapError,
    UnfinishedError,
)
from invconv.geometry import Geometry
from invconv.layers import (
    InvertibleConv,
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    InvertibleConvTranspose,
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
)
from invconv.layers.conversion import Conversion, convert, revert
from invconv.layers.freshness import keep_fresh
from invconv.operator import ConvOperator
from invconv.options import Options
from invconv.report import Plan, Report
from invconv.summary import summary

if TYPE_CHECKING:
    from invconv import arrays, autoencoder, flows, interop, inversion, lightning

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConvOperator",
    "Conversion",
    "Geometry",
    "IllConditionedWarning",
    "InputError",
    "InvconvError",
    "InvertibleConv",
    "InvertibleConv1d",
    "InvertibleConv2d",
    "InvertibleConv3d",
    "InvertibleConvTranspose",
    "InvertibleConvTranspose1d",
    "InvertibleConvTranspose2d",
    "InvertibleConvTranspose3d",
    "MissingPackageError",
    "NotSquareError",
    "Options",
    "OutOfMemoryError",
    "Plan",
    "Report",
    "SingularMapError",
    "UnfinishedError",
    "arrays",
    "autoencoder",
    "convert",
    "errors",
    "flows",
    "functional",
    "interop",
    "inversion",
    "keep_fresh",
    "lightning",
    "parametrizations",
    "revert",
    "summary",
]
LATER = ("arrays", "autoencoder", "flows", "interop", "inversion", "lightning")
"""Rooms that are opened when they are asked for."""


def __getattr__(name: str) -> Any:
    """A room that is not open yet."""
    if name not in LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    """What completion offers: the public names, open or not."""
    return sorted([*__all__, "__version__", "__doc__", "__file__", "__name__", "__path__"])
