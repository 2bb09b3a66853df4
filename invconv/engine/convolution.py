"""The convolution as a linear map A: forward, adjoint, and the gradient of <z, A x> by the kernel.

Padding is a gather (each padded place reads one place of the image, or none), so its adjoint is a scatter.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn import grad as conv_grad

from invconv.geometry import Geometry, Size
from invconv.linear import is_transformed
from invconv.threads import cached_property

FORWARD = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_ADJOINT = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_WEIGHT: dict[int, Callable[..., Tensor]] = {
    1: conv_grad.conv1d_weight,
    2: conv_grad.conv2d_weight,
    3: conv_grad.conv3d_weight,
}


def wrap(x: Tensor, padding: Sequence[tuple[int, int]]) -> Tensor:
    """The image continued periodically along its last axes: copies of slices, in two thirds of the time of `F.pad`."""
    for axis, (left, right) in enumerate(padding, start=-len(padding)):
        n = x.shape[axis]
        if left or right:
            x = torch.cat([x.narrow(axis, n - left, left), x, x.narrow(axis, 0, right)], axis)
    return x


def pad(x: Tensor, geometry: Geometry) -> Tensor:
    """E x: the image with its borders filled in as `padding_mode` says."""
    amounts = [p for pair in reversed(geometry.padding) for p in pair]
    if not any(amounts):
        return x
    if geometry.padding_mode == "circular":
        return wrap(x, geometry.padding)
    mode = {"zeros": "constant"}.get(geometry.padding_mode, geometry.padding_mode)
    return F.pad(x, amounts, mode=mode)


def pad_adjoint(z: Tensor, geometry: Geometry, input_size: Size) -> Tensor:
    """E' z: what lies on the border goes back to the places it was read from."""
    for axis, (n, (left, right)) in enumerate(zip(input_size, geometry.padding, strict=True)):
        if left == right == 0:
            continue
        dim = axis - geometry.dims
        if geometry.padding_mode == "zeros":
            z = z.narrow(dim, left, n)
            continue
        line = torch.arange(n, dtype=torch.float64).view(1, 1, n)
        source = F.pad(line, (left, right), mode=geometry.padding_mode).flatten().long().to(z.device)
        shape = list(z.shape)
        shape[dim] = n
        z = z.new_zeros(shape).index_add(dim, source, z)
    return z


UNFOLDED = 2**22
"""Bytes of an unfolded image in float64 from which a product for each tap is faster than PyTorch's convolution.

Speed only: both ways are the same sum.
"""


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

    def forward(self, x: Tensor) -> Tensor:
        """A x. x: (batch, in_channels, *size)."""
        x = pad(x, self.geometry)
        if _pays_by_taps(x, self.weight, self.geometry):
            return _by_taps(x, self.weight, self.geometry)
        conv = FORWARD[self.geometry.dims]
        return conv(x, self.weight, None, self.geometry.stride, 0, self.geometry.dilation, self.geometry.groups)

    def adjoint(self, y: Tensor) -> Tensor:
        """A' y. y: (batch, out_channels, *output_size)."""
        geometry = self.geometry
        padded = [n + left + right for n, (left, right) in zip(self.input_size, geometry.padding, strict=True)]
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
        gradient = _WEIGHT[geometry.dims]
        return gradient(pad(x, geometry), size, z, geometry.stride, 0, geometry.dilation, geometry.groups)

    def unit_images(self) -> Tensor:
        """The identity, each row an image: (inputs, in_channels, *size)."""
        count = self.shape[1]
        return torch.eye(count, dtype=self.dtype, device=self.device).view(count, *self.x_shape)

    def to_dense(self) -> Tensor:
        """The explicit matrix of A, of this `shape`."""
        return self.forward(self.unit_images()).flatten(1).mT


def _pays_by_taps(x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
    """In float64 on a CPU, PyTorch unfolds the image: k * k copies of it, which may not fit into the cache."""
    slow = x.dtype == torch.float64 and x.device.type == "cpu" and all(s == 1 for s in geometry.stride)
    slow = slow and weight.shape[1] >= 8  # else the products are too thin
    slow = slow and not (is_transformed(x) or is_transformed(weight))  # which cannot be summed up in place
    return slow and x.shape[1:].numel() // geometry.groups * math.prod(geometry.kernel_size) * 8 >= UNFOLDED


def _by_taps(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The convolution of stride 1 as a sum over its taps, each a product with the flattened image, moved.

    At 32 channels and 128 x 128 in a third of the time.  What wraps round at the end of a line is cut off.
    """
    groups, size = geometry.groups, x.shape[2:]
    steps = [math.prod(size[d + 1 :]) for d in range(len(size))]
    outputs = [n - e + 1 for n, e in zip(size, geometry.extent, strict=True)]
    reach = 1 + sum((m - 1) * step for m, step in zip(outputs, steps, strict=True))
    flat = x.reshape(len(x) * groups, weight.shape[1], math.prod(size))
    taps = weight.reshape(groups, -1, *weight.shape[1:]).flatten(3)
    y = x.new_zeros(len(flat), taps.shape[1], flat.shape[2])
    for index, place in enumerate(itertools.product(*map(range, geometry.kernel_size))):
        start = sum(u * d * step for u, d, step in zip(place, geometry.dilation, steps, strict=True))
        matrix = taps[..., index].expand(len(x), *taps.shape[:3]).flatten(0, 1)
        y[..., :reach].baddbmm_(matrix, flat[..., start : start + reach])
    y = y.view(len(x), len(weight), *size)
    for axis, m in enumerate(outputs, start=2):
        y = y.narrow(axis, 0, m)
    return y
