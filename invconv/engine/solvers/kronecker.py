"""Kernels that are outer products: the SVD of A is the product of those of one small matrix for each axis.

    A = M (x) A_1 (x) A_2,    A_d = U_d diag(s_d) V_d':      sigma(A) = all products of a singular value of each.

Everyday blurs are such, and rank-deficient or nearly so: at any size they are answered as the explicit matrix would be.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import Elimination, eliminate
from invconv.engine.separable import Separable, is_separable
from invconv.engine.solvers.base import MEASURE_ABOVE
from invconv.engine.solvers.judged import Judged
from invconv.errors import warn_cut_off
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

LEAST_DAMPING = 1e-6
"""Damping, in units of the largest sum of taps, below which singular values of zero, as they are rounded, outweigh it.

Speed only: other ways have the answer, or say that they have not.
"""

MOST_ENTRIES = 2**23
"""The largest matrix of an axis that is factored: a little above 2,048 squared, ten seconds of SVD.  Speed only."""


class Kronecker(Judged):
    """A as a Kronecker product, and the singular value decomposition of its factors.

    Args:
        conv: the map, in float64.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one.
    """

    name = "kronecker"

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.rtol = torch.finfo(conv.dtype).eps * max(conv.shape) if options.rtol is None else options.rtol
        self.damping = options.damping

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for the factors of the small matrices, and for known images that are sent through them."""
        if conv.is_cyclic:
            return "it is cyclic, and the FFT takes it apart"
        outputs = conv.out_channels // conv.geometry.groups
        sides = [(outputs, conv.weight.shape[1]), *zip(conv.output_size, conv.input_size, strict=True)]
        entries = [rows * columns for rows, columns in sides]
        if sum(count > 1 for count in entries) < 2:
            return "it has but one axis"
        if 0 < options.damping < LEAST_DAMPING * conv.weight.abs().flatten(1).sum(1).max():
            return "so little damping is lost in the rounding of its factors"
        if not is_separable(conv, torch.finfo(conv.dtype).eps):
            return "its kernel is no outer product"
        if max(entries) > MOST_ENTRIES:
            return f"an axis has a matrix of {max(entries)} entries, above the {MOST_ENTRIES} that are factored"
        needed = 8 * (8 * conv.geometry.groups * sum(entries) + 3 * max(conv.shape)) + known.bytes_for(conv)
        short = memory.shortage(conv.device, needed, "its outer product")
        return short or Plan(cls.name, 0, needed, "the kernel is an outer product")

    def cost(self) -> cost.Cost:
        """The SVD of each factor, and a product with each for an answer."""
        conv, sides = self.conv, list(zip(self.conv.y_shape, self.conv.x_shape, strict=True))
        svds = sum(cost.SVD * rows * columns * min(rows, columns) for rows, columns in sides[1:])
        answer = (
            10 * cost.CALL
            + sum(4 * max(side) * max(conv.shape) for side in sides[1:])
            + 8 * cost.BYTE * max(conv.shape)
        )
        return cost.Cost(30 * cost.CALL + conv.geometry.groups * svds + 10 * answer, answer)

    @cached_property
    def map(self) -> Separable:
        """A by its factors, in float64."""
        return Separable.of(self.conv)

    # -- the pseudo-inverse ----------------------------------------------------------------------------------------

    @cached_property
    def _svds(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """U, s and V' of each factor."""
        return [tuple(torch.linalg.svd(m, full_matrices=False)) for m in self.map.matrices]

    @cached_property
    def _values(self) -> Tensor:
        """All products of singular values of the factors: (groups, *counts)."""
        grid = torch.ones(self.conv.geometry.groups, *[1] * len(self._svds), dtype=torch.float64).to(self.conv.device)
        for axis, (_, s, _) in enumerate(self._svds, start=1):
            shape = [len(s), *[1] * len(self._svds)]
            shape[axis] = -1
            grid = grid * s.view(shape)
        return grid

    @property
    def _is_full(self) -> bool:
        """Whether all factors are tall, or all are wide: else A has no full rank."""
        return self._values.numel() == self.full_rank

    @cached_property
    def rank(self) -> int:
        """Singular values above rtol; all of them with damping."""
        values = self._values
        return self.full_rank if self.damping else int((values > self.rtol * values.max()).sum())

    @cached_property
    def _filter(self) -> Tensor:
        """1 / s, zero where cut off, or s / (s^2 + damping^2)."""
        values = self._values
        if self.damping:
            return values / (values**2 + self.damping**2)
        if self.rank < self.full_rank:
            warn_cut_off(self.rank, self.full_rank, self.rtol)
        return torch.where(values > self.rtol * values.max(), values.reciprocal(), 0.0)

    def prepare(self) -> None:
        """Factor now; where it is in doubt what the inverse is worth, known images show it.

        What the kernel is besides an outer product is white noise as the rounding of the outputs is.
        """
        gain = (self._filter.norm() / math.sqrt(self.conv.shape[1])).item()
        rounding = torch.finfo(self.outputs).eps * self._values.norm().item() / math.sqrt(self.conv.shape[0])
        if not gain * rounding < MEASURE_ABOVE or self.scale.exponent:
            self.error = self.trial(self.outputs)

    def trial(self, outputs: torch.dtype) -> float:
        """The error of `round_trip`, and that of taking the kernel for an outer product."""
        gains = self._filter.flatten(1).norm(dim=1) / math.sqrt(self.conv.shape[1])
        return math.hypot(super().trial(outputs), (gains * self.map.rest).norm().item())

    def _spectral(self, left: list[Tensor], diagonal: Tensor, right: list[Tensor], x: Tensor) -> Tensor:
        """left diag(diagonal) right applied to images, left and right Kronecker products."""
        return self.map.map(left, self.map.map(right, x, diagonal))

    @property
    def _bases(self) -> tuple[list[Tensor], list[Tensor]]:
        """U and V of each factor."""
        return [u for u, _, _ in self._svds], [vh.mT for _, _, vh in self._svds]

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        u, v = self._bases
        return self._spectral(v, self._filter, [m.mT for m in u], y)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        u, v = self._bases
        return self._spectral(u, self._filter, [m.mT for m in v], x)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        basis = self._bases[1]
        return self._damped_gram(basis, x) if self.damping and _is_whole(basis) else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        basis = self._bases[0]
        return self._damped_gram(basis, y) if self.damping and _is_whole(basis) else super().dual_gram_inverse(y)

    def _damped_gram(self, basis: list[Tensor], x: Tensor) -> Tensor:
        """1 / (s^2 + d^2) in a basis of all of the space."""
        damped = (self._values**2 + self.damping**2).reciprocal()
        return self._spectral(basis, damped, [m.mT for m in basis], x)

    # -- invariants ------------------------------------------------------------------------------------------------

    @property
    def condition(self) -> float:
        """The condition number."""
        least = self._values.min().item() if self._is_full else 0.0
        return self._values.max().item() / least if least else math.inf

    @cached_property
    def _eliminations(self) -> list[Elimination]:
        """The inverse and the log-volume of each factor, by LU or QR."""
        return [eliminate(matrix) for matrix in self.map.matrices]

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), float64: each factor's as often as the others have singular values; of A, damped or not."""
        shape = self._values.shape
        total, error = torch.zeros((), dtype=torch.float64, device=self.conv.device), 0.0 if self._is_full else math.inf
        for count, part in zip(shape[1:], self._eliminations, strict=True):
            copies = shape[1:].numel() // count
            total = total + copies * part.log_volume.expand(shape[0]).sum()
            error += copies * part.error.expand(shape[0]).sum().item()
        self.judge(error)
        return total

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K of any kernel, not of outer products alone: from tr(A^+ dA), a product of traces."""
        inverse, *lines = [part.inverse for part in self._eliminations]
        gradient = inverse.mT
        for line, matrix in zip(self.map.axes, lines, strict=True):
            taps = line.dense_gradient(matrix.transpose(0, 1).flatten(1))
            gradient = gradient.unsqueeze(-1) * taps.view(len(taps), *[1] * (gradient.dim() - 1), -1)
        return gradient.flatten(0, 1)

    def singular_values(self) -> Tensor:
        """All singular values of A, descending."""
        values = self._values.flatten().sort(descending=True).values
        return torch.cat([values, values.new_zeros(self.full_rank - len(values))])

    def end(self, largest: bool) -> tuple[Tensor, Tensor, Tensor]:
        """The largest or the smallest singular value, and its vectors u and v, images.

        They are products of those of the factors. Where A has no full rank, whatever the kernel's values are, the
        smallest is zero, which has no gradient, and its vectors are zero too.
        """
        values = self._values
        if not (largest or self._is_full):
            return (
                values.new_zeros(()),
                values.new_zeros(1, *self.conv.y_shape),
                values.new_zeros(1, *self.conv.x_shape),
            )
        place = values.argmax() if largest else values.argmin()
        group, *indices = (int(i) for i in torch.unravel_index(place, values.shape))

        def image(vectors: list[Tensor]) -> Tensor:
            found = vectors[0]
            for vector in vectors[1:]:
                found = found.unsqueeze(-1) * vector
            whole = found.new_zeros(self.conv.geometry.groups, *found.shape)
            whole[group] = found
            return whole.flatten(0, 1)[None]

        def column(m: Tensor, index: int) -> Tensor:
            return m[min(group, len(m) - 1), :, index]

        u, v = (image([column(m, i) for m, i in zip(basis, indices, strict=True)]) for basis in self._bases)
        return values.flatten()[place], u, v

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        held = [*self.map.matrices, *(t for factors in self.__dict__.get("_svds", ()) for t in factors)]
        held += [self.__dict__[name] for name in ("_values", "_filter") if name in self.__dict__]
        return sum(t.untyped_storage().nbytes() for t in held)


def _is_whole(basis: list[Tensor]) -> bool:
    """Whether these vectors, as columns, are a basis of all of the space."""
    return all(m.shape[-1] == m.shape[-2] for m in basis)
