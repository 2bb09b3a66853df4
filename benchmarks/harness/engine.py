"""The one place where benchmarks reach below the public API: for work that is never done by itself there.

- `Torus`: the blocks of a circular layer and their factorisation, alone.
- `log_dets_together`: the log-determinants of several layers in one call, as a flow takes them.
- `without_log_dets`: a flow that leaves them out.

All other files of this folder import what any user can import.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from invconv import Geometry, InvertibleConv2d
from invconv.engine.blocks import TorusMap
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.spectrum import Grid, halves
from invconv.flows import MultiScaleFlow
from invconv.layers.together import LogDets, kernels


class Factors(NamedTuple):
    """One factorisation of blocks: their inverses, and the logarithm of each |det|."""

    inverse: Tensor
    log_volume: Tensor


class Torus:
    """Circular 3 x 3 layers of one shape side by side, on square images: one matrix for each layer and frequency.

    Args:
        count: how many layers.
        side: of the images, in pixels.
    """

    def __init__(self, count: int, side: int) -> None:
        geometry = Geometry.of((3, 3), padding=1, padding_mode="circular", groups=count)
        self._grid = Grid(geometry, (side, side))
        self.side = side

    def blocks(self, weights: Sequence[Tensor]) -> Tensor:
        """K_f of all kernels: (count, frequencies, c, c), complex."""
        return kernel_to_blocks(torch.cat([weight.detach() for weight in weights]), self._grid)

    def factor(self, blocks: Tensor) -> Factors:
        """LU of all blocks, and the inverses from it."""
        return Factors(*TorusMap(blocks, self._grid, (1, 1), (1, 1)).factor())

    def distinct(self) -> Tensor:
        """The frequencies whose blocks are factored; all others are conjugates of these."""
        parts = halves(self._grid, torch.device("cpu"))
        return torch.cat([parts.complex, parts.real])


def log_dets_together() -> Callable[[Sequence[InvertibleConv2d], tuple[int, int]], Tensor]:
    """A function of layers and an image size: the sum of their log-determinants, layers of one shape in one call."""
    log_dets = LogDets()
    return lambda convs, size: log_dets.log_abs_det(convs, kernels(convs), [size] * len(convs))


def without_log_dets(flow: MultiScaleFlow) -> MultiScaleFlow:
    """The flow with 0 in place of its convolutions' log-determinants: what no faster ones could go below."""
    setattr(flow, "_log_abs_det", lambda *_: 0.0)  # noqa: B010  (it is no method of this name to mypy)
    return flow
