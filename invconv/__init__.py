"""Convolution layers that can be run backwards, exactly."""

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
from invconv.layers.freshness import keep_fresh
from invconv.operator import ConvOperator
from invconv.options import Options
from invconv.report import Plan, Report
from invconv.summary import summary

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ConvOperator",
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
    "functional",
    "keep_fresh",
    "parametrizations",
    "summary",
]
