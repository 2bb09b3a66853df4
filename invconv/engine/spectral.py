"""Large kernels: the convolution, its transpose and its gradient by the FFT, on a torus on which nothing wraps.

    A x = crop F^-1 (K_f F(E x)),      E what fills in the borders, where they are neither zero nor the torus' own.

The kernel is transformed once and kept; each application transforms its input and its output.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from scipy.fft import next_fast_len
from torch import Tensor

from invconv.engine.blocks import TorusMap
from invconv.engine.kernels import FOLD_ABOVE_TAPS, kernel_to_blocks
from invconv.engine.padding import pad, pad_adjoint
from invconv.engine.spectrum import Grid, image_to_frequency, split_phases
from invconv.engine.windows import crop, embed, smallest_torus
from invconv.geometry import Geometry, Size

DIRECT_IS_FASTER = 8
"""Products of the direct sum that take the time of one product of the FFT.  Speed only.

Measured in float32 on one core: 5 to 20, by channels and cache.  In float64, which PyTorch unfolds, 1 to 4.
"""

COMPLEX_PRODUCT = 8
"""A product of complex numbers at a frequency, in those of a transform: it waits for memory.  Speed only."""


def _unpadded(geometry: Geometry, input_size: Size) -> bool:
    """Whether the torus brings the borders with it: they are zero or wrap round the image itself."""
    return geometry.padding_mode == "zeros" or geometry.is_cyclic(input_size)


def _padded_size(geometry: Geometry, input_size: Size) -> Size:
    """The size of the image with its borders filled in, as far as that has to be done."""
    if _unpadded(geometry, input_size):
        return input_size
    return tuple(n + left + right for n, (left, right) in zip(input_size, geometry.padding, strict=True))


def torus_of(geometry: Geometry, input_size: Size) -> Grid:
    """The torus on which a layer is convolved, of a size whose FFT is fast."""
    if geometry.is_cyclic(input_size):
        return Grid(geometry, input_size)
    size = _padded_size(geometry, input_size)
    if not _unpadded(geometry, input_size):
        geometry = replace(geometry, padding=((0, 0),) * geometry.dims)
    sides = zip(smallest_torus(geometry, size), geometry.stride, strict=True)
    return Grid(geometry, tuple(next_fast_len(n // s, real=True) * s for n, s in sides))


def spectral_bytes(weight_shape: Size, geometry: Geometry, input_size: Size) -> tuple[int, int]:
    """Memory in float64 that the kernel's spectrum takes, and that one application to one image takes besides."""
    outs, ins = weight_shape[0], weight_shape[1]
    places = 8 * math.prod(torus_of(geometry, input_size).size)
    phases = math.prod(geometry.stride)
    return places * outs * ins * phases, 3 * places * (outs + ins * geometry.groups * phases)


def pays(weight_shape: Size, geometry: Geometry, input_size: Size) -> bool:
    """Whether the FFT of one image takes less time than the sum over the taps; never for small kernels."""
    taps = math.prod(weight_shape[2:])
    if taps < FOLD_ABOVE_TAPS:
        return False
    outs, ins = weight_shape[0], weight_shape[1]
    places, phases = math.prod(torus_of(geometry, input_size).size), math.prod(geometry.stride)
    transforms = (outs + ins * geometry.groups * phases) * math.log2(places)
    by_fft = places * (transforms + COMPLEX_PRODUCT * outs * ins * phases)
    return outs * ins * taps * math.prod(geometry.output_size(input_size)) > DIRECT_IS_FASTER * by_fft


@dataclass(frozen=True, eq=False)
class Spectral:
    """A convolution whose kernel has been transformed.

    Args:
        torus: the map on the torus.
        geometry: of the layer.
        input_size: of an image.
    """

    torus: TorusMap
    geometry: Geometry
    input_size: Size

    @classmethod
    def of(cls, weight: Tensor, geometry: Geometry, input_size: Size) -> Spectral:
        """The transform of a kernel, differentiable."""
        grid = torus_of(geometry, input_size)
        blocks = kernel_to_blocks(weight, grid)
        return cls(TorusMap(blocks, grid, geometry.stride, (1,) * geometry.dims), geometry, input_size)

    @property
    def _pads(self) -> bool:
        return not _unpadded(self.geometry, self.input_size)

    def _spread(self, x: Tensor) -> Tensor:
        """The image on the torus, its borders filled in."""
        return embed(pad(x, self.geometry) if self._pads else x, self.torus.grid.input_size)

    def forward(self, x: Tensor) -> Tensor:
        """A x."""
        return crop(self.torus.map(self._spread(x)), self.geometry.output_size(self.input_size))

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y."""
        z = self.torus.adjoint(embed(y, self.torus.grid.size))
        z = crop(z, _padded_size(self.geometry, self.input_size))
        return pad_adjoint(z, self.geometry, self.input_size) if self._pads else z

    def weight_gradient(self, x: Tensor, z: Tensor, weight_size: torch.Size) -> Tensor:
        """d <z, A x> / d K, summed over the batch."""
        grid = self.torus.grid
        inputs = image_to_frequency(split_phases(self._spread(x), self.geometry.stride), grid)
        outputs = image_to_frequency(embed(z, grid.size), grid) / math.prod(grid.size)
        return replace(self.torus, blocks=outputs @ inputs.mH).kernel_gradient(weight_size)
