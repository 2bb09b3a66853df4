"""A convolution on a torus, whatever its borders are elsewhere, inverted: itself, or one of its Gram matrices.

Far from borders a layer is what it is on a torus.  Blocks at each frequency, inverted one by one:

    K_f^-1,      (K_f^H K_f + d^2)^-1,      (K_f K_f^H + d^2)^-1.
"""

from __future__ import annotations

import math
from enum import Enum

from torch import Tensor

from invconv.engine.blocks import TorusMap, factor, factor_damped, frobenius
from invconv.engine.convolution import Convolution
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.spectrum import Grid
from invconv.geometry import Size


class Inverted(Enum):
    """Which matrix it is that is inverted."""

    MAP = "A"
    INPUTS = "A'A + d^2"
    OUTPUTS = "AA' + d^2"

    @classmethod
    def of(cls, conv: Convolution, damping: float) -> Inverted:
        """The map itself where it is square; the smaller Gram matrix of others, and of damped ones."""
        (rows, columns), (outputs, inputs) = conv.block_shape, conv.shape
        if rows == columns and outputs == inputs and not damping:
            return cls.MAP
        return cls.INPUTS if outputs > inputs or (outputs == inputs and rows >= columns) else cls.OUTPUTS


class TorusInverse:
    """The inverse on a torus, and its transpose, as a map from image to image.

    Args:
        conv: the map, in the precision of the factors.
        size: places of the torus before the stride.
        damping: d.
        inverted: which matrix.
    """

    def __init__(self, conv: Convolution, size: Size, damping: float, inverted: Inverted) -> None:
        self.grid = Grid(conv.geometry, size)
        blocks = kernel_to_blocks(conv.weight, self.grid)
        there, back = conv.geometry.stride, (1,) * conv.geometry.dims
        if inverted is Inverted.MAP:
            self._map = TorusMap(factor(blocks).inverse, self.grid, back, there)
        else:
            side = there if inverted is Inverted.INPUTS else back
            root = blocks if inverted is Inverted.INPUTS else blocks.mH.resolve_conj()
            inverse = (factor_damped(root, damping) if damping else factor(root)).inverse
            self._map = TorusMap(inverse @ inverse.mH, self.grid, side, side)
        gains = [float(frobenius(b).max()) / math.sqrt(min(b.shape[-2:])) for b in (blocks, self._map.blocks)]
        self.growth = math.hypot(gains[0], damping) * (gains[1] if inverted is Inverted.MAP else math.sqrt(gains[1]))
        """By what factor rounding errors grow, about; infinite or NaN where a block is singular."""

    def solve(self, image: Tensor) -> Tensor:
        """The inverse, of a batch of images."""
        return self._map.map(image)

    def solve_adjoint(self, image: Tensor) -> Tensor:
        """Its transpose."""
        return self._map.adjoint(image)

    @property
    def bytes(self) -> int:
        """Memory that the blocks take."""
        return self._map.blocks.nbytes
