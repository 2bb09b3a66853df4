"""The convolution as a linear map A: forward, adjoint, and the gradient of <z, A x> by the kernel.

Small kernels are PyTorch's, or on large images summed up tap by tap (see `tapwise`), and large ones go by the FFT (see
`spectral`); all give A x up to rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from invconv.engine import spectral, tapwise
from invconv.engine.padding import pad, pad_adjoint
from invconv.engine.spectral import Spectral
from invconv.geometry import Geometry, Size
from invconv.threads import cached_property

FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_WEIGHT: dict[int, Callable[..., Tensor]] = {
    1: conv_grad.conv1d_weight,
    2: conv_grad.conv2d_weight,
    3: conv_grad.conv3d_weight,
}


CHUNK = 2**20
"""Entries of a matrix that are looked up at once.  Memory and speed only."""


@dataclass(frozen=True, eq=False)
class Convolution:
    r"""One weight on images of one size: the linear map A, without bias.

    Args:
        weight: (out_channels, in_channels/groups, \*kernel_size).
        geometry: stride, padding, dilation, groups and padding mode.
        input_size: spatial size of x.
    """

    weight: Tensor
    geometry: Geometry
    input_size: Size

    # -- what it is ------------------------------------------------------------------------------------------------

    @cached_property
    def output_size(self) -> Size:
        """Spatial size of A x."""
        return self.geometry.output_size(self.input_size)

    @property
    def in_channels(self) -> int:
        """Channels of x."""
        return self.weight.shape[1] * self.geometry.groups

    @property
    def out_channels(self) -> int:
        """Channels of A x."""
        return self.weight.shape[0]

    @property
    def x_shape(self) -> tuple[int, ...]:
        """Shape of one image that goes in: (in_channels, *input_size)."""
        return (self.in_channels, *self.input_size)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Shape of one image that comes out: (out_channels, *output_size)."""
        return (self.out_channels, *self.output_size)

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of A for one image."""
        return math.prod(self.y_shape), math.prod(self.x_shape)

    @property
    def block_shape(self) -> tuple[int, int]:
        """(outputs, inputs) of one group at one place of the torus: the shape of a block in frequency."""
        return self.out_channels // self.geometry.groups, self.weight.shape[1] * math.prod(self.geometry.stride)

    @cached_property
    def is_cyclic(self) -> bool:
        """Whether A is a block-circulant matrix."""
        return self.geometry.is_cyclic(self.input_size)

    @cached_property
    def blind_spots(self) -> str:
        """Why A has no full rank whatever its weight; empty where its geometry leaves it one."""
        unread, blind = self.geometry.blind_spots(self.input_size)
        outputs, inputs = self.shape
        if unread and inputs <= outputs:
            return "some pixels are read by no output"
        return "some outputs see nothing but zeros" if blind and outputs <= inputs else ""

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weight, and so of what is computed."""
        return self.weight.dtype

    @property
    def device(self) -> torch.device:
        """Device of the weight."""
        return self.weight.device

    @property
    def _padded_size(self) -> Size:
        """Spatial size of x with its borders filled in."""
        return tuple(n + left + right for n, (left, right) in zip(self.input_size, self.geometry.padding, strict=True))

    @property
    def untransposed(self) -> Convolution:
        """The convolution that this map is, or is the transpose of: what the solvers see."""
        return self

    # -- other convolutions ----------------------------------------------------------------------------------------

    def to(self, dtype: torch.dtype) -> Convolution:
        """This map with its weight in another precision."""
        return self if self.dtype == dtype else replace(self, weight=self.weight.to(dtype))

    def on(self, input_size: Size) -> Convolution:
        """This kernel on images of another size."""
        return replace(self, input_size=input_size)

    def times(self, factors: Tensor | float) -> Convolution:
        """This map with each entry of its weight multiplied by a factor."""
        return replace(self, weight=self.weight * factors)

    # -- what it does ----------------------------------------------------------------------------------------------

    @cached_property
    def goes_by_fft(self) -> bool:
        """Whether the kernel is large enough for the FFT to take less time than the sum over its taps."""
        return spectral.pays(self.weight.shape, self.geometry, self.input_size, self.dtype)

    @property
    def fft_bytes(self) -> int:
        """Memory of the transforms, in float64, where the kernel goes by the FFT there."""
        kernel = self.weight.shape, self.geometry, self.input_size
        return spectral.needed_bytes(*kernel) if spectral.pays(*kernel, torch.float64) else 0

    @cached_property
    def _kept(self) -> Spectral:
        """The transformed kernel, which carries no gradient."""
        with torch.inference_mode(False), torch.no_grad():
            return Spectral.of(self.weight, self.geometry, self.input_size)

    @property
    def _spectral(self) -> Spectral:
        """The transformed kernel, kept where nobody differentiates by it."""
        return Spectral.of(self.weight, self.geometry, self.input_size) if self.weight.requires_grad else self._kept

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy takes along: the kernel is transformed anew."""
        return {name: value for name, value in dict(self.__dict__).items() if name != "_kept"}

    def forward(self, x: Tensor) -> Tensor:
        """A x. x: (batch, in_channels, *size)."""
        if self.goes_by_fft:
            return self._spectral.forward(x)
        x = pad(x, self.geometry)
        if tapwise.pays(self.weight, self.geometry, self._padded_size, x):
            return tapwise.forward(x, self.weight, self.geometry)
        conv = FORWARD[self.geometry.dims]
        return conv(x, self.weight, None, self.geometry.stride, 0, self.geometry.dilation, self.geometry.groups)

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y. y: (batch, out_channels, *output_size)."""
        if self.goes_by_fft:
            return self._spectral.adjoint(y)
        geometry, padded = self.geometry, self._padded_size
        if tapwise.pays(self.weight, geometry, padded, y):
            return pad_adjoint(tapwise.adjoint(y, self.weight, geometry, padded), geometry, self.input_size)
        # A stride may leave places at the end that no output reads: they get zeros.
        reached = [(m - 1) * s + e for m, s, e in zip(y.shape[2:], geometry.stride, geometry.extent, strict=True)]
        conv = _ADJOINT[geometry.dims]
        z = conv(y, self.weight, None, geometry.stride, 0, 0, geometry.groups, geometry.dilation)
        rest = [r for p, q in zip(reversed(padded), reversed(reached), strict=True) for r in (0, p - q)]
        return pad_adjoint(F.pad(z, rest) if any(rest) else z, geometry, self.input_size)

    def weight_gradient(self, x: Tensor, z: Tensor) -> Tensor:
        """d <z, A x> / d K, summed over the batch. x: an input, z: an output."""
        geometry, size = self.geometry, self.weight.shape
        if x.shape[0] == 0:
            return x.new_zeros(size)
        if self.goes_by_fft:
            return self._spectral.weight_gradient(x, z, size)
        x = pad(x, geometry)
        if tapwise.pays(self.weight, geometry, self._padded_size, x, z):
            return tapwise.weight_gradient(x, z, geometry)
        gradient = _WEIGHT[geometry.dims]
        return gradient(x, size, z, geometry.stride, 0, geometry.dilation, geometry.groups)

    # -- its matrix ------------------------------------------------------------------------------------------------

    def sources(self, taps: Sequence[Size] | None = None) -> Tensor:
        """The place of the image that each output reads by each of these taps, -1 for none: (taps, outputs).

        Args:
            taps: places in the kernel; None for all, in their order.
        """
        geometry = self.geometry
        taps = list(itertools.product(*map(range, geometry.kernel_size))) if taps is None else taps
        line = torch.arange(1, math.prod(self.input_size) + 1, dtype=torch.float64).view(1, 1, *self.input_size)
        read = pad(line, geometry)[0, 0].long() - 1
        steps = list(zip(geometry.dilation, geometry.stride, self.output_size, strict=True))
        slices = [
            tuple(slice(u * d, u * d + (m - 1) * s + 1, s) for u, (d, s, m) in zip(tap, steps, strict=True))
            for tap in taps
        ]
        return torch.stack([read[part].flatten() for part in slices])

    def to_dense(self) -> Tensor:
        """The explicit matrix of A, of this `shape`."""
        rows, columns = self.shape
        flat = self.weight.new_zeros(rows * columns + 1)
        for taps, entries in self._entries():
            flat.index_add_(0, entries.flatten(), taps.expand(entries.shape).flatten())
        return flat[:-1].view(rows, columns)

    def dense_gradient(self, inverse: Tensor) -> Tensor:
        """The gradient by K of tr(B A), for a matrix B of the shape of A'."""
        flat = torch.cat([inverse.mT.flatten(), inverse.new_zeros(1)])
        gradient = torch.cat([flat[entries].sum(-1) for _, entries in self._entries()])
        return gradient.movedim(0, -1).reshape(self.weight.shape)

    def _entries(self) -> Iterator[tuple[Tensor, Tensor]]:
        """A few taps at a time: (taps, outs, ins, 1), and the entries of the flat matrix that they are added to.

        The entries are (taps, outs, ins, outputs); one more than there are stands for the zeros of a border.
        """
        (outs, ins), places = self.weight.shape[:2], math.prod(self.input_size)
        of_taps = list(itertools.product(*map(range, self.geometry.kernel_size)))
        rows = torch.arange(self.shape[0]).view(outs, 1, -1)
        first = torch.arange(outs).div(outs // self.geometry.groups, rounding_mode="floor") * ins
        channels = (first[:, None] + torch.arange(ins))[..., None]
        weights = self.weight.flatten(2).movedim(2, 0)[..., None]
        count = max(1, CHUNK // (rows.numel() * ins))
        for start in range(0, len(of_taps), count):
            source = self.sources(of_taps[start : start + count])[:, None, None]
            entries = rows * self.shape[1] + channels * places + source
            entries = torch.where(source < 0, self.shape[0] * self.shape[1], entries)
            yield weights[start : start + count], entries.to(self.device)
