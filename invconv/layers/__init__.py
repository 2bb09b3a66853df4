"""Modules: the convolution layers that can be run backwards, their caches, and what keeps these fresh."""

from invconv.layers.conv import InvertibleConv, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.layers.frozen import FrozenInverse

__all__ = ["FrozenInverse", "InvertibleConv", "InvertibleConv1d", "InvertibleConv2d", "InvertibleConv3d"]
