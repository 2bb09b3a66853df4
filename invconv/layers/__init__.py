"""Modules: the convolution layers that can be run backwards, their caches, and what keeps these fresh."""

from invconv.layers.conv import InvertibleConv, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.layers.frozen import FrozenInverse
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.transposed import (
    InvertibleConvTranspose,
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
)

__all__ = [
    "FrozenInverse",
    "InvertibleConv",
    "InvertibleConv1d",
    "InvertibleConv2d",
    "InvertibleConv3d",
    "InvertibleConvTranspose",
    "InvertibleConvTranspose1d",
    "InvertibleConvTranspose2d",
    "InvertibleConvTranspose3d",
    "InvertibleLayer",
]
