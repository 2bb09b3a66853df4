"""Image <-> one vector per frequency, on the half spectrum: the torus, its frequencies, and transforms between them.

A real image needs half the frequencies; the others are their conjugates and are counted by `multiplicity`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from invconv.geometry import Geometry, Size
from invconv.linear import is_transformed
from invconv.threads import cached_property, new_lock

Build = TypeVar("Build", bound=Callable[..., Any])


@dataclass(frozen=True)
class Grid:
    """The frequencies of a cyclic layer on images of one size.

    Args:
        geometry: of the layer.
        input_size: places of the torus before the stride.
    """

    geometry: Geometry
    input_size: Size

    @cached_property
    def size(self) -> Size:
        """Places of the torus after the stride: m = n / stride."""
        return tuple(n // s for n, s in zip(self.input_size, self.geometry.stride, strict=True))

    @property
    def phases(self) -> int:
        """Places of the torus for each place after the stride."""
        return math.prod(self.geometry.stride)

    @cached_property
    def pointwise(self) -> bool:
        """Whether the kernel is 1 x 1 or as large as its stride: all blocks are then one and the same real matrix."""
        return all(a % m == 0 for shift, _ in self.geometry.taps() for a, m in zip(shift, self.size, strict=True))

    @cached_property
    def half_size(self) -> Size:
        """Frequencies of the half spectrum in each dimension."""
        return (*self.size[:-1], self.size[-1] // 2 + 1)

    @property
    def count(self) -> int:
        """Blocks that are stored."""
        return 1 if self.pointwise else math.prod(self.half_size)

    def frequency(self, index: int) -> Size:
        """The frequency of block `index`, as cycles over the torus in each dimension."""
        if self.pointwise:
            return (0,) * len(self.size)
        cycles = []
        for m in reversed(self.half_size):
            index, k = divmod(index, m)
            cycles.append(k)
        return tuple(reversed(cycles))


def outside_inference(build: Build) -> Build:
    """Keep what `build` made, the latest 64: ordinary tensors, whatever mode the caller is in."""
    tables: dict[tuple[Any, ...], Any] = {}
    lock = new_lock()

    def built(*args: Any) -> Any:
        table = tables.get(args)
        if table is not None:
            return table
        # A table made under inference_mode could not be used in a later training step.
        with torch.inference_mode(False), torch.no_grad():
            table = build(*args)
            # While a program is traced, by torch.export, or transformed, tensors are stand-ins of nobody else's use.
            new = torch.empty(0)
            if type(new) is Tensor and not is_transformed(new):
                with lock:
                    tables[args] = table
                    if len(tables) > 64:
                        del tables[next(iter(tables))]
        return table

    return cast(Build, built)


@outside_inference
def multiplicity(grid: Grid, device: torch.device) -> Tensor:
    """How many frequencies of the full spectrum each stored block stands for: (count,), float64."""
    if grid.pointwise:
        return torch.tensor([float(math.prod(grid.size))], dtype=torch.float64, device=device)
    last = torch.full((grid.half_size[-1],), 2.0, dtype=torch.float64)
    last[0] = 1.0
    if grid.size[-1] % 2 == 0:
        last[-1] = 1.0
    return last.expand(grid.half_size).flatten().to(device)


@dataclass(frozen=True)
class Halves:
    """Stored frequencies of which some are real and some the conjugates of others: their indices."""

    complex: Tensor
    real: Tensor
    mirrored: Tensor
    mirrors: Tensor
    """`blocks[mirrored]` are the conjugates of `blocks[mirrors]`, which are among the complex ones."""


@outside_inference
def halves(grid: Grid, device: torch.device) -> Halves:
    """Which stored frequencies are real and which conjugates of others.

    In the first and the middle column the half spectrum holds the negative of each frequency, too.
    """
    cycles = torch.cartesian_prod(*(torch.arange(m) for m in grid.half_size)).view(-1, len(grid.size))
    sizes = torch.tensor(grid.size)
    index = torch.arange(len(cycles))
    steps = torch.tensor([math.prod(grid.half_size[d + 1 :]) for d in range(len(grid.size))])
    negative = -cycles % sizes
    twin = torch.where(negative[:, -1] == cycles[:, -1], (negative * steps).sum(1), index)
    real = (negative == cycles).all(1)
    parts = (twin >= index) & ~real, real, twin < index
    unpaired, real, mirrored = (part.nonzero().flatten() for part in parts)
    return Halves(*(t.to(device) for t in (unpaired, real, mirrored, twin[mirrored])))


def split_phases(x: Tensor, stride: Size) -> Tensor:
    """x_p[q] = x[stride q + p]: (batch, channels, *size) -> (batch, channels * phases, *size / stride)."""
    if all(s == 1 for s in stride):
        return x
    dims = len(stride)
    folded = [extent for n, s in zip(x.shape[2:], stride, strict=True) for extent in (n // s, s)]
    order = [0, 1, *range(3, 3 + 2 * dims, 2), *range(2, 2 + 2 * dims, 2)]
    return x.reshape(*x.shape[:2], *folded).permute(order).flatten(1, 1 + dims)


def merge_phases(x: Tensor, stride: Size) -> Tensor:
    """x[stride q + p] = x_p[q], the inverse of `split_phases`."""
    if all(s == 1 for s in stride):
        return x
    dims, size = len(stride), x.shape[2:]
    x = x.unflatten(1, (-1, *stride))
    order = [0, 1, *(axis for d in range(dims) for axis in (2 + dims + d, 2 + d))]
    return x.permute(order).reshape(*x.shape[:2], *(m * s for m, s in zip(size, stride, strict=True)))


PRODUCT_UP_TO_PLACES = 81
"""Places up to which a transform is a product: a quarter of the time for 4 x 4, 0.6 to 0.9 for 9 x 9.  Speed only."""


@outside_inference
def _transform(grid: Grid, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """The real FFT of a small torus as a matrix, (places, 2 count), real and imaginary parts in turn; its inverse."""
    places, dims = math.prod(grid.size), tuple(range(1, 1 + len(grid.size)))
    units = torch.eye(places, dtype=torch.float64).view(places, *grid.size)
    there = torch.view_as_real(torch.fft.rfftn(units, dim=dims)).flatten(1)
    # x = 1/N sum over the full spectrum of Re conj(F) X: the stored half, each as often as it stands for.
    back = (there.view(places, -1, 2) * multiplicity(grid, units.device)[:, None] / places).flatten(1).mT
    return there.to(device, dtype), back.to(device, dtype).contiguous()


def rfft(x: Tensor, grid: Grid) -> Tensor:
    """The real FFT of images: (batch, channels, *grid.size) -> (batch, channels, count)."""
    if math.prod(grid.size) <= PRODUCT_UP_TO_PLACES:
        spectrum = x.flatten(2) @ _transform(grid, x.dtype, x.device)[0]
        return torch.view_as_complex(spectrum.unflatten(2, (grid.count, 2)))
    if x.shape[0] == 0:  # which not every FFT library takes
        return x.new_zeros(*x.shape[:2], grid.count, dtype=x.dtype.to_complex())
    half_spectrum: Tensor = torch.fft.rfftn(x, dim=tuple(range(-len(grid.size), 0)))
    return half_spectrum.flatten(2)


def irfft(spectrum: Tensor, grid: Grid) -> Tensor:
    """The inverse of the real FFT: (batch, channels, count) -> (batch, channels, *grid.size)."""
    if math.prod(grid.size) <= PRODUCT_UP_TO_PLACES:
        parts = torch.view_as_real(spectrum.resolve_conj()).flatten(2)
        image: Tensor = (parts @ _transform(grid, parts.dtype, parts.device)[1]).unflatten(2, grid.size)
        return image
    if spectrum.shape[0] == 0:
        return spectrum.real.new_zeros(*spectrum.shape[:2], *grid.size)
    dims = tuple(range(-len(grid.size), 0))
    image = torch.fft.irfftn(spectrum.unflatten(2, grid.half_size), s=grid.size, dim=dims)
    return image


def first_axis_to_frequency(x: Tensor, grid: Grid) -> Tensor:
    """The FFT over places, divided by their number: (groups, places, n) -> (groups, count, n)."""
    places = math.prod(grid.size)
    if places <= PRODUCT_UP_TO_PLACES:
        matrix = _transform(grid, x.dtype, x.device)[0].view(places, -1, 2).permute(2, 1, 0).flatten(0, 1)
        return torch.complex(*((matrix / places) @ x).unflatten(1, (2, -1)).unbind(1))
    axes = tuple(range(1, 1 + len(grid.size)))
    spectrum: Tensor = torch.fft.rfftn(x.unflatten(1, grid.size), dim=axes, norm="forward")
    return spectrum.flatten(1, len(grid.size))


def frequency_to_first_axis(spectrum: Tensor, grid: Grid) -> Tensor:
    """The inverse FFT: (groups, count, n) -> (groups, places, n)."""
    places = math.prod(grid.size)
    if places <= PRODUCT_UP_TO_PLACES:
        parts = torch.cat([spectrum.real, spectrum.imag], 1)
        return _transform(grid, parts.dtype, parts.device)[1].view(-1, 2, places).permute(2, 1, 0).flatten(1) @ parts
    axes = tuple(range(1, 1 + len(grid.size)))
    values: Tensor = torch.fft.irfftn(spectrum.unflatten(1, grid.half_size), s=grid.size, dim=axes)
    return values.flatten(1, len(grid.size))


def image_to_frequency(x: Tensor, grid: Grid) -> Tensor:
    """(batch, channels, *grid.size) -> (groups, count, channels/groups, batch), contiguous for the product.

    Where all blocks are one matrix no transform is needed: (groups, 1, channels/groups, batch * places).
    """
    groups = grid.geometry.groups
    if grid.pointwise:
        x = x.unflatten(1, (groups, -1)).flatten(3)
        return x.permute(1, 2, 0, 3).flatten(2).unsqueeze(1)
    by_group: Tensor = rfft(x, grid).unflatten(1, (groups, -1))
    return by_group.permute(1, 3, 2, 0).contiguous()


def frequency_to_image(spectrum: Tensor, grid: Grid) -> Tensor:
    """(groups, count, channels/groups, batch) -> (batch, channels, *grid.size), the inverse of `image_to_frequency`."""
    if grid.pointwise:
        places = math.prod(grid.size)
        by_place: Tensor = spectrum.squeeze(1).unflatten(2, (spectrum.shape[3] // places, places))
        image: Tensor = by_place.permute(2, 0, 1, 3).flatten(1, 2).unflatten(2, grid.size)
        return image
    return irfft(spectrum.permute(3, 0, 2, 1).flatten(1, 2), grid)
