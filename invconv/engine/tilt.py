"""A tilt: x_i = r^i x'_i and y_j = r^(stride j) y'_j make of a convolution one of kernel r^(place of the tap) K.

It is a change of scale along the image, exact where borders are zero, since nothing then ties the ends together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.geometry import Size


@dataclass(frozen=True)
class Tilt:
    """A change of scale along the image, r in each dimension.

    Args:
        ratios: r in each dimension.
    """

    ratios: tuple[float, ...]

    @classmethod
    def level(cls, dims: int) -> Tilt:
        """No tilt: r = 1."""
        return cls((1.0,) * dims)

    @classmethod
    def once_round(cls, factor: float, torus: Size) -> Tilt:
        """The tilt that multiplies by `factor` once round the torus in each dimension."""
        return cls(tuple(factor ** (1 / n) for n in torus))

    def tilted(self, conv: Convolution) -> Convolution:
        """The convolution of kernel r^(place of the tap) K."""
        return conv.times(self.of_taps(conv))

    def of_taps(self, conv: Convolution) -> Tensor | float:
        """r^(place of the tap): what each tap is multiplied by."""
        left = tuple(-left for left, _ in conv.geometry.padding)
        return self._powers(conv, conv.geometry.kernel_size, conv.geometry.dilation, left)

    def of_inputs(self, conv: Convolution) -> Tensor | float:
        """r^i for each place of an input image."""
        return self._powers(conv, conv.input_size, (1,) * len(self.ratios), (0,) * len(self.ratios))

    def of_outputs(self, conv: Convolution) -> Tensor | float:
        """r^(stride j) for each place of an output image."""
        return self._powers(conv, conv.output_size, conv.geometry.stride, (0,) * len(self.ratios))

    def log_det(self, conv: Convolution) -> float:
        """What log |det A| has more than that of the tilted map."""
        total = 0.0
        for d, r in enumerate(self.ratios):
            outputs = _sum_of_coordinates(conv.output_size, d) * conv.geometry.stride[d] * conv.out_channels
            inputs = _sum_of_coordinates(conv.input_size, d) * conv.in_channels
            total += math.log(r) * (outputs - inputs)
        return total

    def _powers(self, conv: Convolution, size: Size, step: Size, start: Size) -> Tensor | float:
        """r^(start + step i) for each place i of an image."""
        if all(r == 1 for r in self.ratios):
            return 1.0
        powers = torch.ones(size, dtype=torch.float64, device=conv.device)
        for d, (n, r) in enumerate(zip(size, self.ratios, strict=True)):
            line = r ** (start[d] + step[d] * torch.arange(n, dtype=torch.float64, device=powers.device))
            powers = powers * line.view(-1, *(1,) * (len(size) - 1 - d))
        return powers.to(conv.weight)


def _sum_of_coordinates(size: Size, d: int) -> int:
    """The sum of the coordinates d of all places of an image."""
    return math.prod(size) * (size[d] - 1) // 2
