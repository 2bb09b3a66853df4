"""The log-volume of a layer whose channels or groups are of very different scales, from that of one without them.

With D and E diagonal over channels,  log |det A| = log |det D A E| - log |det D| - log |det E|,  since the borders of
an image are filled in channel by channel.  The ring and the torus of a layer are judged by its largest channel, so its
smallest would seem to be lost.  Powers of two round nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.elimination import MOST_EXPONENT, exponents_of, times_two_to
from invconv.engine.solvers.base import Volume

UNEVEN = 8
"""Powers of two between the scales of channels up to which a layer is taken as it is.  Speed only."""


@dataclass(frozen=True, eq=False)
class Balance:
    """Powers of two by which a kernel is multiplied, and what they add to its log-volume.

    Args:
        factors: for each entry of the weight, float64.
        log_det: nats for one image.
    """

    factors: Tensor
    log_det: float

    def of(self, conv: Convolution) -> Convolution:
        """The balanced map."""
        return conv.times(self.factors.to(conv.dtype))


class Balanced(Volume):
    """The log-volume of a map, and its gradient, from those of the balanced one."""

    def __init__(self, volume: Volume, balance: Balance) -> None:
        self.volume = volume
        self.balance = balance

    @property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), or of AA' for wide A, float64."""
        return self.volume.log_volume - self.balance.log_det

    @property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K."""
        return self.volume.log_volume_gradient * self.balance.factors


def balance(conv: Convolution) -> Balance | None:
    """The balance of outputs and inputs, where that keeps the volume; None where a layer needs none.

    The volume of a tall map is another one if its outputs are scaled, that of a wide one if its inputs are.
    """
    (rows, columns), groups = conv.shape, conv.geometry.groups
    most = MOST_EXPONENT if conv.dtype == torch.float64 else MOST_EXPONENT // 8
    sizes = conv.weight.double().abs().flatten(2).amax(2).unflatten(0, (groups, -1))  # (groups, outputs, inputs)
    by_output, by_input = (torch.zeros_like(sizes.select(axis, 0), dtype=torch.long) for axis in (2, 1))
    if rows <= columns:
        by_output = exponents_of(sizes.amax(2), most)
        sizes = times_two_to(sizes, -by_output[:, :, None])
    if rows >= columns:
        by_input = exponents_of(sizes.amax(1), most)
    exponents = by_output[:, :, None] + by_input[:, None, :]
    if (exponents.amax() - exponents.amin()).item() <= UNEVEN:
        return None
    places = by_output.sum() * math.prod(conv.output_size) + by_input.sum() * math.prod(conv.input_size)
    factors = times_two_to(torch.ones_like(sizes), -exponents).flatten(0, 1)
    return Balance(factors.view(*factors.shape, *(1,) * conv.geometry.dims), -math.log(2) * places.item())
