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
from invconv.errors import InputError
from invconv.geometry import Geometry, Size

DIRECT_IS_FASTER = 8
"""Products of the direct sum that take the time of one product of the FFT.  Speed only.

Measured in float32 on one core: 5 to 20, by channels and cache.
"""

DIRECT_IN_DOUBLE = 1
"""The same in float64, for which PyTorch unfolds the image: 0.02 to 4, least for one channel.  Speed only.

A disk of 9 x 9 pixels on 512 x 512 takes 209 ms there and back by its taps and 8 ms by the FFT.
"""

COMPLEX_PRODUCT = 8
"""A product of complex numbers at a frequency, in those of a transform: it waits for memory.  Speed only."""


AT_ONCE = 4
"""Images that memory is foreseen for, as many as are sent through to try a solver.  Speed only, and memory."""


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


def needed_bytes(weight_shape: Size, geometry: Geometry, input_size: Size) -> int:
    """Memory in float64: the transformed kernel and what it is made of; `AT_ONCE` images, their spectra and a copy."""
    outs, ins, phases = weight_shape[0], weight_shape[1], math.prod(geometry.stride)
    images = AT_ONCE * 3 * (outs + ins * geometry.groups * phases)
    return 8 * math.prod(torus_of(geometry, input_size).size) * (3 * outs * ins * phases + images)


def is_large(kernel_size: Size) -> bool:
    """Whether a kernel may go by the FFT at all."""
    return math.prod(kernel_size) >= FOLD_ABOVE_TAPS


def pays(
    weight_shape: Size, geometry: Geometry, input_size: Size, dtype: torch.dtype, batch: int | None = None
) -> bool:
    """Whether the FFT of an image takes less time than the sum over the taps; never for small kernels.

    Args:
        weight_shape: of the kernel.
        geometry: of the layer.
        input_size: of an image.
        dtype: of the image and the kernel.
        batch: images that the kernel is transformed for; None where it is kept for many.
    """
    if not is_large(weight_shape[2:]):
        return False
    outs, ins = weight_shape[0], weight_shape[1]
    places, phases = math.prod(torus_of(geometry, input_size).size), math.prod(geometry.stride)
    transforms = outs + ins * geometry.groups * phases + (outs * ins * phases / batch if batch else 0)
    by_fft = places * (transforms * math.log2(places) + COMPLEX_PRODUCT * outs * ins * phases)
    products = outs * ins * math.prod(weight_shape[2:]) * math.prod(geometry.output_size(input_size))
    return products > (DIRECT_IN_DOUBLE if dtype == torch.float64 else DIRECT_IS_FASTER) * by_fft


def pays_once(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """Whether `convolve` takes less time than PyTorch's convolution, and is as exact; not where a graph is recorded."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled(x.device.type):
        return False
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64) or x.dtype != weight.dtype:
        return False
    if x.dim() - geometry.dims not in (1, 2) or x.shape[-geometry.dims - 1] != weight.shape[1] * geometry.groups:
        return False  # PyTorch says what is wrong
    try:
        size = geometry.check_input_size(x.shape[-geometry.dims :])
    except InputError:
        return False
    return pays(weight.shape, geometry, size, x.dtype, max(1, len(x) if x.dim() == geometry.dims + 2 else 1))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """The convolution of one call, batched or not, differentiable by image, kernel and bias."""
    batched = x.dim() == geometry.dims + 2
    images = x if batched else x.unsqueeze(0)
    y = Spectral.of(weight, geometry, tuple(images.shape[2:])).forward(images)
    if bias is not None:
        y = y + bias.view(-1, *(1,) * geometry.dims)
    return y if batched else y.squeeze(0)


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
