"""The ends of the spectrum with their vectors, from which their gradient is had in closed form.

    A v = sigma u,    A' u = sigma v,    |u| = |v| = 1:        d sigma = u' dA v,

which is the gradient of <u, A v> by the kernel, one product of the convolution's own.  Where a singular value is a
multiple one, as in cyclic layers, any of its pairs gives a subgradient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from invconv import deadline
from invconv.engine import extremes
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.kronecker import Kronecker
from invconv.engine.spectrum import frequency_to_image, merge_phases
from invconv.errors import SingularMapError

ROUNDING = 100
"""Least accuracy that is asked of squared singular values, in units of eps: less is never reached.  Speed only."""


SOON = 160
"""The largest explicit matrices that are soonest decomposed for their norm alone.  Speed only."""


class Triplet(NamedTuple):
    """A singular value and its vectors, images of norm one: an output u and an input v."""

    value: Tensor
    u: Tensor
    v: Tensor


class SingularValues:
    """The singular values of a map, and the two ends with their vectors, each computed once.

    Args:
        conv: the map.
        tolerance: relative accuracy of the squares of the ends, where these are iterated for.
    """

    def __init__(self, conv: Convolution, tolerance: float) -> None:
        self.conv, self.tolerance = conv, tolerance
        self._values: dict[int | None, Tensor] = {}
        self._ends: dict[bool, Triplet] = {}

    def __call__(self, k: int | None, solver: Callable[[], Solver]) -> Tensor:
        """All, descending, or the k largest and the k smallest; float64.

        Args:
            k: how many of each end; None for all.
            solver: gives the solver of the map, prepared, which the ends of a large one need.
        """
        extremes.check_count(self.conv, k)
        if k is not None and extremes.all_in_reach(self.conv):
            values = self(None, solver)
            return torch.cat([values[:k], values[-k:]])
        if k == 1:
            return torch.stack([end.value.double().cpu() for end in (self.largest(), self.smallest(solver))])
        if k not in self._values:
            conv = self.conv.to(torch.float64)
            self._values[k] = extremes.all_values(conv) if k is None else extremes.extreme_singular_values(solver(), k)
        return self._values[k]

    def largest(self) -> Triplet:
        """The largest, which needs no inverse."""
        if True not in self._ends:
            self._ends |= self._exact(largest=True) or {True: self._by_products()}
        return self._ends[True]

    def smallest(self, solver: Callable[[], Solver]) -> Triplet:
        """The smallest of the min(shape) that there are.

        Args:
            solver: gives the solver of the map, prepared, which large ones need.

        Raises:
            SingularMapError: where it has no inverse, or one that is not true of the map.
        """
        if False not in self._ends:
            self._ends |= self._exact(largest=False) or self._by_inverse(solver)
        return self._ends[False]

    def _by_products(self) -> Triplet:
        accuracy = max(self.tolerance, ROUNDING * torch.finfo(self.conv.dtype).eps)
        _, vectors = extremes.largest_pairs(self.conv, 1, accuracy)
        return _completed(self.conv, None, vectors)

    def _by_inverse(self, solver: Callable[[], Solver]) -> dict[bool, Triplet]:
        """The smallest from the inverse; from the whole matrix where there is none and that is small."""
        try:
            inverse = solver()
            eps = torch.finfo(inverse.conv.dtype).eps
            accuracy = max(self.tolerance, ROUNDING * eps * max(1.0, min(inverse.growth, 1 / eps**0.5)))
            values, vectors = extremes.smallest_pairs(inverse, 1, accuracy)
        except SingularMapError:
            if extremes.is_small(self.conv):
                return _of_matrix(self.conv.to(torch.float64))
            raise
        return {False: _completed(self.conv.to(torch.float64), values[0], vectors)}

    def _exact(self, largest: bool) -> dict[bool, Triplet]:
        """The one that is asked for, and the other where it comes with it; nothing of a large map."""
        conv = self.conv
        if conv.is_cyclic:
            return _of_blocks(Circulant(conv.to(torch.float64)))
        if extremes.is_small(conv) and max(conv.shape) <= (SOON if largest else extremes.ALL_UP_TO_ROWS):
            return _of_matrix(conv.to(torch.float64))
        if largest:
            return {}
        if extremes.groups_are_small(conv):
            return {False: _of_groups(conv.to(torch.float64))}
        if extremes.is_outer_product(conv):
            factors = Kronecker(conv.to(torch.float64))
            return {end: Triplet(*factors.end(end)) for end in (True, False)}
        return {}


def _completed(conv: Convolution, value: Tensor | None, vectors: Tensor) -> Triplet:
    """The triplet of a vector on the shorter side; its value that of the other vector where none is given."""
    tall = conv.shape[0] >= conv.shape[1]
    other = (conv.forward if tall else conv.adjoint)(vectors.to(conv.dtype))
    norm = torch.linalg.vector_norm(other).double()
    pair = other / norm.clamp_min(torch.finfo(conv.dtype).tiny).to(other), vectors
    u, v = pair if tall else pair[::-1]
    return Triplet(norm if value is None else value.to(norm), u, v)


def _of_matrix(conv: Convolution) -> dict[bool, Triplet]:
    """By the singular value decomposition of the explicit matrix."""
    u, values, vh = torch.linalg.svd(conv.to_dense(), full_matrices=False)

    def triplet(which: int) -> Triplet:
        return Triplet(values[which], u[:, which].view(1, *conv.y_shape), vh[which].view(1, *conv.x_shape))

    return {True: triplet(0), False: triplet(-1)}


def _of_groups(conv: Convolution) -> Triplet:
    """The smallest, by the explicit matrix of the group that has it."""
    groups, ends = extremes.each_group(conv), []
    for group in groups:
        deadline.look()
        ends.append(torch.linalg.svdvals(group.to_dense())[-1])
    index = int(torch.stack(ends).argmin())
    value, u, v = _of_matrix(groups[index])[False]

    def placed(part: Tensor, channels: int) -> Tensor:
        image = part.new_zeros(1, channels, *part.shape[2:])
        image.unflatten(1, (len(groups), -1))[:, index] = part
        return image

    return Triplet(value, placed(u, conv.out_channels), placed(v, conv.in_channels))


def _of_blocks(circulant: Circulant) -> dict[bool, Triplet]:
    """By those of the blocks."""
    values = torch.linalg.svdvals(circulant.blocks)
    return {
        True: _of_block(circulant, int(values[..., 0].argmax()), 0),
        False: _of_block(circulant, int(values[..., -1].argmin()), -1),
    }


def _of_block(circulant: Circulant, place: int, which: int) -> Triplet:
    """One of a block, whose vectors are waves of one frequency."""
    grid, conv, blocks = circulant.grid, circulant.conv, circulant.blocks
    group, index = divmod(place, grid.count)
    block = blocks[group, index]
    if all(2 * k % n == 0 for k, n in zip(grid.frequency(index), grid.size, strict=True)):
        block = block.real  # whose vectors are real, not of any phase
    u, values, vh = torch.linalg.svd(block, full_matrices=False)

    def image(vector: Tensor) -> Tensor:
        places = conv.output_size if grid.pointwise else ()
        spectrum = blocks.new_zeros(len(blocks), grid.count, len(vector), torch.Size(places).numel())
        spectrum[group, index, :, 0] = vector.to(spectrum)
        wave = frequency_to_image(spectrum, grid)
        unit: Tensor = wave / torch.linalg.vector_norm(wave)
        return unit

    v = merge_phases(image(vh[which].conj()), conv.geometry.stride)
    return Triplet(values[which], image(u[:, which]), v)
