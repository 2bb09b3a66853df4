"""One axis of an image with real borders as a torus that is cut: what is dropped of the torus, and what is added to it.

On a torus long enough nothing wraps into the image, but the torus has places x and y that the image has not: they are
dropped.  Outputs that read a filled-in border (reflect, replicate) are dropped as well, and added again as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from invconv.geometry import Geometry


@dataclass(frozen=True)
class Cut:
    """One axis.

    Args:
        inputs: places of the image.
        outputs: places of the output.
        torus: places of the torus.
        added: outputs that are not those of the torus.
        reads: for each of these, the place that each tap reads.
        taps: of the kernel along this axis.
    """

    inputs: int
    outputs: int
    torus: int
    added: list[int]
    reads: list[list[int]]
    taps: int

    @classmethod
    def of(cls, geometry: Geometry, axis: int, inputs: int) -> Cut | str:
        """An axis of a layer without stride, or why there is none.

        Args:
            geometry: of the layer.
            axis: which of its axes.
            inputs: places of the image.
        """
        (left, right), e, step = geometry.padding[axis], geometry.extent[axis], geometry.dilation[axis]
        outputs, taps = inputs + left + right - e + 1, geometry.kernel_size[axis]
        linked = geometry.padding_mode != "zeros" and left + right > 0
        torus = max(inputs + (0 if linked else max(left, right)), outputs)
        wraps = linked and geometry.padding_mode == "circular"
        if e > torus:
            return f"a kernel of {e} places goes round the torus of {torus}"
        if wraps or not linked:
            if wraps and torus > inputs:
                return "its borders wrap round to more outputs than the image has places"
            return cls(inputs, outputs, torus, [], [], taps)
        places = F.pad(torch.arange(float(inputs)).view(1, 1, -1), (left, right), mode=geometry.padding_mode)
        source = places.flatten().long().tolist()
        added = [j for j in range(outputs) if j < left or j + e - left > inputs]
        reads = [[source[j + u * step] for u in range(taps)] for j in added]
        return cls(inputs, outputs, torus, added, reads, taps)

    @property
    def dropped_inputs(self) -> list[int]:
        """Places of the torus that the image has not."""
        return list(range(self.inputs, self.torus))

    @property
    def dropped_outputs(self) -> list[int]:
        """Places of the torus whose outputs are none, or other ones."""
        return [*self.added, *range(self.outputs, self.torus)]

    @property
    def touched(self) -> list[int]:
        """Places of the image that the added outputs read."""
        return sorted({place for line in self.reads for place in line})

    def added_rows(self, taps: Tensor) -> Tensor:
        """The added outputs of kernels along this axis.

        taps: (..., outs, ins, taps) -> (..., outs, added, ins, touched).
        """
        where = {place: index for index, place in enumerate(self.touched)}
        rows = taps.new_zeros(*taps.shape[:-1], len(self.added), len(where))
        for index, line in enumerate(self.reads):
            for u, place in enumerate(line):
                rows[..., index, where[place]] += taps[..., u]
        return rows.transpose(-3, -2)
