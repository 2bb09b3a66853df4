"""Cyclic layers: block-diagonal under the FFT, so every question is answered one small matrix at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.blocks import Factors, TorusMap, factor_damped, frobenius, norm_bound, truncate
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import eliminate, judge
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.solvers.base import MEASURE_ABOVE, Solver
from invconv.engine.spectrum import Grid, multiplicity
from invconv.errors import warn_cut_off
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

TAP_CONSTANT = 4
"""Rounding of a block in units of eps and of the sum of its taps: theirs, and that of the sum.

Kernels less their mean, whose blocks of frequency zero are all rounding, reach 2.
"""


class Circulant(Solver):
    """C, block-circulant, and its pseudo-inverse C^+; what is asked for is computed once and kept.

    Singular values below `rtol` times the largest count as zero.  With `damping` = d the pseudo-inverse is
    (C'C + d^2)^-1 C' (Tikhonov), that is the first columns of the pseudo-inverse of C stacked on d times the identity.
    """

    name = "fft"
    serves = ("auto", "direct", "iterative")
    joins = True
    explicit = True

    def __init__(
        self,
        conv: Convolution,
        options: Options = DEFAULTS,
        outputs: torch.dtype | None = None,
        lost: float = 0.0,
        *,
        parts: tuple[Tensor, Factors] | None = None,
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.grid = Grid(conv.geometry, conv.input_size)
        self.eps = torch.finfo(conv.dtype).eps * max(conv.block_shape) * conv.geometry.taps_of_a_phase
        self.unit = torch.finfo(self.outputs).eps
        self.rtol = self.eps if options.rtol is None else options.rtol
        self.damping = options.damping
        if parts is not None:  # blocks and factors that were computed with those of others
            self.blocks, self.factors = parts

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for four times the blocks: K_f, their inverses, and what LAPACK and the transforms need besides."""
        if not conv.is_cyclic:
            return "its borders do not wrap"
        blocks = math.prod(conv.input_size) * conv.weight.shape[1] * conv.out_channels
        peak = (
            4 * blocks * (8 if options.damping else conv.weight.element_size()) + conv.fft_bytes + known.bytes_for(conv)
        )
        return memory.shortage(conv.device, peak, "its FFT") or Plan(cls.name, 0, peak, "the layer is cyclic")

    def cost(self) -> cost.Cost:
        """The blocks and their factors."""
        return cost.torus(self.conv, self.conv.input_size)

    @property
    def full_rank(self) -> int:
        """The largest rank that C can have."""
        return min(self.conv.block_shape) * self.conv.geometry.groups * math.prod(self.grid.size)

    def keeps(self, error: float) -> bool:
        """Whether rounding errors stay below `error`; asked in float32 of damped layers alone.

        Their gradients grow with the square, where a small d divides what rounding leaves of y - A x.
        """
        double = self.conv.dtype == torch.float64
        return double or not self.damping or self.growth * torch.finfo(self.conv.dtype).eps < error

    def split(self, count: int) -> Sequence[Circulant]:
        """Maps of an equal share of the groups each, with their parts of the factors; none before there are factors."""
        if "factors" not in self.__dict__:
            return ()
        geometry = replace(self.conv.geometry, groups=self.conv.geometry.groups // count)
        shares = zip(*(t.chunk(count) for t in (self.conv.weight, self.blocks, *self.factors)), strict=True)
        return [
            Circulant(replace(self.conv, weight=weight, geometry=geometry), self.options, self.outputs, parts=parts)
            for weight, parts in ((weight, (blocks, Factors(*factors))) for weight, blocks, *factors in shares)
        ]

    # -- the map ---------------------------------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> Tensor:
        """K_f: (groups, count, rows, columns)."""
        return kernel_to_blocks(self.conv.weight, self.grid)

    def drop_blocks(self) -> None:
        """Free the blocks once the factors are there; they are computed again if they are asked for."""
        self.__dict__.pop("blocks", None)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """C^+ y."""
        return self.inverse_map(self.inverse_blocks).map(y)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(C^+)' x."""
        return self.inverse_map(self.inverse_blocks).adjoint(x)

    def map_of(self, blocks: Tensor) -> TorusMap:
        """Blocks shaped as K_f, as a map from inputs to outputs."""
        stride = self.conv.geometry.stride
        return TorusMap(blocks, self.grid, stride, (1,) * len(stride))

    def inverse_map(self, blocks: Tensor) -> TorusMap:
        """Blocks shaped as K_f^+, as a map from outputs to inputs."""
        stride = self.conv.geometry.stride
        return TorusMap(blocks, self.grid, (1,) * len(stride), stride)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(C'C)^+ x, or (C'C + d^2)^-1 x."""
        return self._damped_gram(x) if self.damping and self.tall else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(CC')^+ y, or (CC' + d^2)^-1 y."""
        return self._damped_gram(y) if self.damping and not self.tall else super().dual_gram_inverse(y)

    def _damped_gram(self, x: Tensor) -> Tensor:
        """The inverse of the smaller of C'C + d^2 and CC' + d^2."""
        stride = self.conv.geometry.stride if self.tall else (1,) * self.conv.geometry.dims
        return TorusMap(self._damped @ self._damped.mH, self.grid, stride, stride).map(x)

    # -- factors ---------------------------------------------------------------------------------------------------

    @cached_property
    def factors(self) -> Factors:
        """K_f^+ and the log-volume of each block."""
        return self.map_of(self.blocks).factor()

    @cached_property
    def _damped(self) -> Tensor:
        """The pseudo-inverse of K_f, of K_f^H where that is tall, stacked on d times the identity."""
        return factor_damped(self.blocks if self.tall else self.blocks.mH, self.damping).inverse

    @cached_property
    def _inverse_norm(self) -> Tensor:
        """||K_f^+||_F, an upper bound of 1 / sigma_min(K_f), infinite or NaN where K_f is singular."""
        return frobenius(self.factors.inverse).double()

    @cached_property
    def largest_norm(self) -> Tensor:
        """max_f ||K_f||_F of each group."""
        return frobenius(self.blocks).double().amax(1)

    @property
    def full_inverse(self) -> Tensor:
        """K_f^+ with no singular value cut off."""
        return self.factors.inverse

    @property
    def full_log_volume(self) -> Tensor:
        """The log-volume, whatever it is worth, for kernels that may be singular."""
        return (self.factors.log_volume * multiplicity(self.grid, self.conv.device)).sum()

    @property
    def mean(self) -> Tensor:
        """The mean of the log-volume over all frequencies, nats for each unknown: (groups,)."""
        return self.mean_over(multiplicity(self.grid, self.conv.device))

    def mean_over(self, counts: Tensor) -> Tensor:
        """The mean over the stored frequencies, each counted so often: (groups,)."""
        return (self.factors.log_volume * counts).sum(-1) / (counts.sum() * min(self.conv.block_shape))

    @cached_property
    def inverse_gain(self) -> float:
        """The root mean square gain of K_f^+ at the frequency where it is largest."""
        return (self._inverse_norm.max() / math.sqrt(self.full_inverse.shape[-1])).item()

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about: the root mean square gains of C and C^+, multiplied.

        With damping, of C^+ on top of d times the identity, which may be larger: 1 / d where C is singular.
        """
        inverse_norm = frobenius(self._damped).double() if self.damping else self._inverse_norm
        growth = (inverse_norm.amax(1) * self.largest_norm).max() / math.sqrt(math.prod(self.conv.block_shape))
        return growth.nan_to_num(nan=math.inf).item()

    @cached_property
    def condition(self) -> float:
        """The condition number, at most a few hundredths above it."""
        condition = norm_bound(self.blocks) * norm_bound(self.full_inverse)
        return condition if condition == condition else math.inf

    @cached_property
    def _truncated(self) -> tuple[Tensor, int]:
        """K_f^+ with singular values below rtol * sigma_max cut off, and the rank of C.

        An SVD is taken only at the frequencies where a cheap bound cannot exclude that there is something to cut.
        """
        doubtful = ~(self._inverse_norm * self.largest_norm.max() * self.rtol < 1)
        if not doubtful.any():
            return self.factors.inverse, self.full_rank
        inverse, cut = truncate(self.blocks, self.factors.inverse, doubtful, self.rtol)
        return inverse, self.full_rank - round((cut * multiplicity(self.grid, self.conv.device)).sum().item())

    @property
    def rank(self) -> int:
        """Number of singular values that are kept."""
        return self.full_rank if self.damping else self._truncated[1]

    @cached_property
    def inverse_blocks(self) -> Tensor:
        """The blocks that `pseudo_inverse` multiplies by: (groups, count, columns, rows)."""
        if self.damping:
            inverse = self._damped[..., : max(self.blocks.shape[-2:])]
            return inverse.contiguous() if self.tall else inverse.mH.contiguous()
        if self.rank < self.full_rank:
            warn_cut_off(self.rank, self.full_rank, self.rtol)
        return self._truncated[0]

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs; where that is in doubt, known images show what it is worth.

        Rounding errors of taps and y are white noise, and come out of C^+ with its root mean square gain.
        """
        places = multiplicity(self.grid, self.conv.device)
        norms = [(frobenius(b).double().square() * places).sum(1) for b in (self._sizes, self.inverse_blocks)]
        gain = (norms[0] * norms[1]).max().sqrt().item() * self.conv.geometry.groups / self.full_rank
        if not gain * torch.finfo(self.conv.dtype).eps < MEASURE_ABOVE or self.damping or self.scale.exponent:
            self.error = self.trial(self.outputs)

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def _sizes(self) -> Tensor:
        """Sum over taps of |K|, which the rounding of a block is in proportion to: (groups, 1, rows, columns)."""
        geometry = self.conv.geometry
        return kernel_to_blocks(self.conv.weight.abs(), Grid(geometry, geometry.stride))

    @cached_property
    def _safe(self) -> Factors:
        """K_f^+ and the log-volume of each block; those that may have lost half their digits eliminated in float64.

        A block is judged by its own scale: by the rounding of the taps of its group.
        """
        factors = self.factors
        doubtful = ~(self._inverse_norm * frobenius(self._sizes).double() * self.unit < math.sqrt(self.unit))
        if not doubtful.any():
            return factors
        blocks = kernel_to_blocks(self.conv.weight.double(), self.grid)[doubtful]
        exact = eliminate(blocks)
        sizes = self._sizes.double().expand(*doubtful.shape, -1, -1)[doubtful]
        moves = TAP_CONSTANT * (exact.inverse.abs().mT * sizes).sum((-2, -1))
        moves = torch.nan_to_num(moves, nan=math.inf, posinf=math.inf)
        worst = torch.maximum(exact.error, moves * self.unit)
        copies = multiplicity(self.grid, self.conv.device).expand(doubtful.shape)[doubtful]
        error = (copies * (exact.error + moves * torch.finfo(torch.float64).eps)).sum().item()
        judge(error, self._words_for(int(worst.argmax()), doubtful, blocks), self.outputs, worst.max().item())
        inverse = factors.inverse.to(exact.inverse.dtype, copy=True)
        log_volume = factors.log_volume.clone()
        inverse[doubtful], log_volume[doubtful] = exact.inverse, exact.log_volume
        return Factors(inverse, log_volume)

    def _words_for(self, worst: int, doubtful: Tensor, blocks: Tensor) -> str:
        """What is said of the worst of the doubtful blocks."""
        values = torch.linalg.svdvals(blocks[worst]).tolist()
        return (
            f"at frequency {self.grid.frequency(int(doubtful.nonzero()[worst, 1]))} of the {self.grid.size} torus the "
            f"kernel's singular values go from {values[0]:.1e} down to {values[-1]:.1e}, where {self.outputs} rounds "
            f"them by about {self.unit * self._sizes.max().item():.0e}"
        )

    @cached_property
    def log_volume(self) -> Tensor:
        """Sum over the full spectrum of 1/2 log det(K_f^H K_f), float64; of C itself, damped or not."""
        return (self._safe.log_volume * multiplicity(self.grid, self.conv.device)).sum()

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K = the transposed inverse, read at the taps."""
        return self.map_of(self._safe.inverse.mH).kernel_gradient(self.conv.weight.shape)

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        values = [v if isinstance(v, tuple) else (v,) for v in (self.conv.weight, *self.__dict__.values())]
        tensors = [t for parts in values for t in parts if isinstance(t, Tensor)]
        return sum({t.data_ptr(): t.nbytes for t in tensors}.values())  # of its own part where the storage is shared
