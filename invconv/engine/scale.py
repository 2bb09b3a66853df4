"""Every question about A is homogeneous: kernels are brought to order one, and answers back.

    A = 2^e B:      A^+ = 2^-e B^+,      sigma(A) = 2^e sigma(B),      log det(A'A) = log det(B'B) + 2 e n log 2.

Powers of two round nothing, and squares of what lies near one neither overflow nor vanish.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.options import Options

NEAR_ONE = 16
"""Kernels whose largest entry, or damping, lies within this power of two of one stay as they are.  Speed only."""


@dataclass(frozen=True)
class Scale:
    """The factor 2^exponent by which a kernel and its damping exceed those of order one."""

    exponent: int = 0

    @classmethod
    def of(cls, weight: Tensor, options: Options) -> Scale:
        """The scale of a kernel, or of its damping where that is larger."""
        largest = max(weight.detach().abs().max().item() if weight.numel() else 0.0, options.damping)
        exponent = math.frexp(largest)[1]
        return cls(exponent if abs(exponent) > NEAR_ONE else 0)

    def times(self, tensor: Tensor, power: int) -> Tensor:
        """The tensor times 2^(exponent * power), in two steps, because 2^149 is no float32."""
        exponent = self.exponent * power
        if not exponent:
            return tensor
        return tensor * 2.0 ** (exponent // 2) * 2.0 ** (exponent - exponent // 2)

    def reduced(self, conv: Convolution, options: Options) -> tuple[Convolution, Options]:
        """The map and its options with this factor taken out."""
        if not self.exponent:
            return conv, options
        damping = math.ldexp(options.damping, -self.exponent)
        return replace(conv, weight=self.times(conv.weight, -1)), replace(options, damping=damping)

    def log(self, count: int) -> float:
        """The logarithm of the factor, `count` times."""
        return self.exponent * count * math.log(2.0)
