"""Small layers that are no circulant: the explicit matrix of A and its singular value decomposition."""

from __future__ import annotations

import math
from functools import cached_property

import torch
from torch import Tensor

from invconv.engine import convolution
from invconv.errors import SingularMapError, warn_cut_off
from invconv.geometry import Geometry, Size

MOST_ENTRIES = 2**22
"""The largest matrix that is factored: 2,048 squared, a few seconds of SVD."""


class Dense:
    """A as a matrix, A = U diag(s) V', with the same verbs as `Circulant`."""

    solver = "svd"

    def __init__(self, weight: Tensor, geometry: Geometry, input_size: Size, rtol: float | None, damping: float):
        self.weight = weight
        self.geometry = geometry
        self.channels = weight.shape[1] * geometry.groups
        self.input_size = input_size
        self.output_size = geometry.output_size(input_size)
        rows = weight.shape[0] * math.prod(self.output_size)
        columns = self.channels * math.prod(input_size)
        self.eps = torch.finfo(weight.dtype).eps * max(rows, columns)
        self.rtol = self.eps if rtol is None else rtol
        self.damping = damping
        self.full_rank = min(rows, columns)

    @cached_property
    def matrix(self) -> Tensor:
        return convolution.to_dense(self.weight, self.geometry, self.input_size)

    @cached_property
    def _svd(self) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = torch.linalg.svd(self.matrix, full_matrices=False)
        return u, s, vh

    @cached_property
    def rank(self) -> int:
        s = self._svd[1]
        return self.full_rank if self.damping else int((s > self.rtol * s[0]).sum())

    @cached_property
    def _filter(self) -> Tensor:
        """1 / s, zero where cut off, or s / (s^2 + damping^2)."""
        s = self._svd[1]
        if self.damping:
            return s / (s**2 + self.damping**2)
        if self.rank < self.full_rank:
            warn_cut_off(self.rank, self.full_rank, self.rtol)
        return torch.cat([s[: self.rank].reciprocal(), s.new_zeros(len(s) - self.rank)])

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        self._filter  # noqa: B018

    def _spectral(self, left: Tensor, diagonal: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """left' diag(diagonal) right' applied to each image of x, as rows."""
        return ((x.flatten(1) @ right) * diagonal) @ left

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        u, _, vh = self._svd
        return self._spectral(vh, self._filter, u, y).view(-1, self.channels, *self.input_size)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        u, _, vh = self._svd
        return self._spectral(u.mT, self._filter, vh.mT, x).view(-1, self.weight.shape[0], *self.output_size)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if not self.damping:
            return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))
        _, s, vh = self._svd
        # Outside the row space of a wide A the operator is 1 / d^2.
        change = (s**2 + self.damping**2).reciprocal() - self.damping**-2
        return x / self.damping**2 + self._spectral(vh, change, vh.mT, x).view_as(x)

    @property
    def condition(self) -> float:
        """The condition number."""
        s = self._svd[1]
        return (s[0] / s[-1]).item()

    growth = condition

    @cached_property
    def log_volume(self) -> Tensor:
        """Sum of log s, float64."""
        s = self._svd[1]
        if not s[-1] > self.eps * s[0]:
            raise SingularMapError(
                "the log-determinant is minus infinity: the layer is singular to working precision, its singular "
                f"values go from {s[0].item():.1e} down to {s[-1].item():.1e} ({self.weight.dtype})"
            )
        return s.double().log().sum()

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        u, s, vh = self._svd
        images = convolution.unit_images(self.channels, self.input_size, u.dtype, u.device)
        outputs = ((u / s) @ vh).mT.reshape(-1, self.weight.shape[0], *self.output_size)
        return convolution.weight_gradient(images, outputs, self.weight.shape, self.geometry)

    @property
    def singular_values(self) -> Tensor:
        """All of them, descending."""
        return self._svd[1]

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        factors = vars(self).get("_svd", ())
        return sum(t.untyped_storage().nbytes() for t in factors)
