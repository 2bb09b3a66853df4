"""Images of any size: the inverse of one small tile, applied to overlapping tiles, and refined by the true residual.

The inverse of a well-conditioned convolution decays with distance (Demko, Moss and Smith 1984), so the middle of a tile
needs nothing of what lies beyond its halo.  With T the sum over tiles of what is kept of their inverses,

    square A:  x <- x + T (y - A x),    tall:  x <- x + G A'(y - A x),    wide:  x = A'z,  z <- z + G (y - A A'z),

G the same of (A'A)^-1, or of (AA')^-1: restricted additive Schwarz (Cai and Sarkis 1999) as a stationary iteration,
whose rate is what the halo leaves.  A tile is the same layer on a smaller image, with borders of the same kind at all
edges.  Time grows with the pixels, memory beside the images is that of one tile.  Where the halo leaves more than a
tenth, T and G precondition stabilised bi-conjugate gradients on A, A'A or AA'.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.bands import BAND
from invconv.engine.convolution import Convolution
from invconv.engine.cover import CHUNK, Solve
from invconv.engine.decay import decay_of
from invconv.engine.power import largest_eigenvalue
from invconv.engine.precision import HOPELESS
from invconv.engine.solvers.base import Trip, sizes
from invconv.engine.solvers.one_image import OneImage
from invconv.engine.solvers.schwarz import Schwarz
from invconv.engine.solvers.tile_size import FALLS, SLOW, TileSize, best_tiles, refusal, too_slow
from invconv.engine.stabilised import stabilised
from invconv.engine.torus_inverse import Inverted
from invconv.errors import SingularMapError, warn
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

Sweep = Callable[[Tensor, Tensor | None], Tensor]

STEPS = 12
"""Most steps of refinement, each of which leaves a tenth at most of known images."""

MOST = 100
"""Most steps of a Krylov method where one leaves more.  Speed only: what they leave is told."""

ENOUGH = 1.0
"""Residual, in roundings of the factors, that is foreseen after a step and not worth another.  Speed only."""

ATTEMPTS = 3
"""Sizes of tiles that are tried, each with a halo as much larger as the last fell short.  Speed only."""

SHORT = 1e3
"""Residual, in units of the tolerance, from which an answer is warned of."""

COPIES = 8
"""Copies of the tiles that are solved at once which that takes, about.  Memory only: speed only."""


class Tiles(OneImage):
    """A layer of any kind whose inverse decays, on images that are larger than a tile."""

    name = "tiles"
    exports = False
    gives_volume = False
    advice = "float64 or a better conditioned kernel"

    def __init__(
        self,
        conv: Convolution,
        options: Options = DEFAULTS,
        outputs: torch.dtype | None = None,
        lost: float = 0.0,
    ) -> None:
        super().__init__(conv, options, outputs or conv.dtype, lost)
        self.inverted = Inverted.of(conv, options.damping)
        if self.inverted is not Inverted.MAP:  # what is squared needs the digits
            self.conv = conv.to(torch.float64)

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for one tile and the images, if the inverse decays within it."""
        if reason := refusal(conv, options):
            return reason
        decay = decay_of(conv, options)
        size = None if decay is None else best_tiles(conv, options, decay)
        if size is None:
            return too_slow(conv, options, decay)
        plan = size.kind.plan(size.tile, options)
        assert isinstance(plan, Plan)
        at_once = COPIES * min(CHUNK + max(size.tile.shape), size.count * max(size.tile.shape))
        of_bands = COPIES // 2 * min(BAND, sum(conv.shape))
        entry = 8 if Inverted.of(conv, options.damping) is not Inverted.MAP else conv.weight.element_size()
        needed = plan.bytes + known.bytes_for(size.probe) + entry * (sum(conv.shape) + max(at_once, of_bands))
        short = memory.shortage(conv.device, needed, "what tiles and images take")
        sides = " x ".join(map(str, size.size))
        because = f"{size.count} tiles of {sides} with a halo of {size.halo} hold its inverse"
        return short or Plan(cls.name, plan.unknowns, needed, because)

    def cost(self) -> cost.Cost:
        """A tile factored, known images, and all tiles solved as often as the halo needs."""
        size = self._foreseen(1.0)
        assert size is not None  # it has a plan
        return size.cost(self.options)

    # -- tiles -----------------------------------------------------------------------------------------------------

    def _foreseen(self, slack: float) -> TileSize | None:
        """The tiles that are foreseen to be soonest, if a step leaves `slack` times what is foreseen of the halo."""
        decay = decay_of(self.conv, self.options)
        return None if decay is None else best_tiles(self.conv, self.options, decay, self.outputs, slack)

    @cached_property
    def sweeps(self) -> Schwarz:
        """Sweeps over tiles of which a step leaves little; where none are found, the last that were tried."""
        slack, tried = 1.0, None
        for _ in range(ATTEMPTS):
            size = self._foreseen(slack)
            if size is None:
                break
            tried = Schwarz(size, self.options)
            if not self._is_regular(tried) or tried.probe.rate < FALLS:
                break
            slack *= max(2.0, tried.probe.rate / FALLS)
        assert tried is not None  # it has a plan
        return tried

    def _is_regular(self, sweeps: Schwarz) -> bool:
        """Whether a tile leaves digits to work with; else it need not be factored."""
        return sweeps.tile.torus_growth * torch.finfo(self.conv.dtype).eps < HOPELESS

    @cached_property
    def probe(self) -> Tiles:
        """This solver on an image of a few tiles."""
        sweeps = self.sweeps.probe
        if sweeps is self.sweeps:
            return self
        probe = Tiles(sweeps.conv, self.options, self.outputs)
        probe.__dict__["sweeps"] = sweeps
        return probe

    @property
    def _square(self) -> bool:
        """Whether A itself is inverted, rather than its Gram matrix."""
        return self.inverted is Inverted.MAP

    @cached_property
    def tall(self) -> bool:
        """Whether A'A is the Gram matrix that is inverted, rather than AA'."""
        return self.inverted is not Inverted.OUTPUTS

    # -- answers ---------------------------------------------------------------------------------------------------

    def _refined(self, right: Tensor, solve: Sweep, residual: Solve, apply: Solve) -> Tensor:
        """What `solve` makes of a right side and of the residuals of its answers, until they are rounding.

        Where it makes little of them, it only helps to solve M x = b, with `apply` for M.
        """
        if not self.sweeps.probe.rate < FALLS:
            nearly, tol = solve, max(torch.finfo(right.dtype).eps, self.options.tolerance(self.outputs) / SHORT)

            def solve(rest: Tensor, answer: Tensor | None) -> Tensor:
                found = stabilised(apply, lambda x: nearly(x, None), rest, tol, MOST)
                return found if answer is None else answer + found

        answer, whole = solve(right, None), sizes(right).clamp_min(torch.finfo(right.dtype).tiny)
        enough = ENOUGH * torch.finfo(right.dtype).eps * whole
        before = whole
        for _ in range(STEPS):
            rest = residual(answer)
            left = sizes(rest)
            if not (left < 0.5 * before).any() or (left <= enough).all():
                break
            answer = solve(rest, answer)
            foreseen, before = left * (left / before), left
            if (foreseen <= enough).all():
                return answer
        self._judge((left / whole).max().item() if len(right) else 0.0)
        return answer

    def _judge(self, left: float) -> None:
        """Warn where steps no longer help, and what is left is no rounding."""
        tol = self.options.tolerance(self.outputs)
        if not left < SHORT * tol:
            warn(
                f"tiles leave a residual of {left:.0e} where {tol:.0e} is asked for: what is left of this image does "
                "not decay within a tile. Use solver='iterative', damping or a better conditioned kernel"
            )

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y, or (A'A + d^2)^-1 A'y."""
        sweeps, bands = self.sweeps, self.sweeps.bands
        if self._square:
            return self._refined(y, sweeps.inverse, lambda x: bands.residual(y, x), bands.forward)
        if not self.tall:
            return bands.adjoint(self._solve(y))
        return self._refined(
            bands.adjoint(y), sweeps.gram_inverse, lambda x: self._pulled(bands.normal_residual(y, x), x), sweeps.gram
        )

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        sweeps, bands = self.sweeps, self.sweeps.bands
        if self._square:
            return self._refined(x, sweeps.inverse_adjoint, lambda y: x - bands.adjoint(y), bands.adjoint)
        if self.tall:
            return bands.forward(self._solve(x))
        return self._refined(
            bands.forward(x),
            sweeps.gram_inverse,
            lambda y: self._pulled(bands.forward(x - bands.adjoint(y)), y),
            sweeps.gram,
        )

    def _pulled(self, rest: Tensor, answer: Tensor) -> Tensor:
        """A residual with the part that damping takes."""
        return rest - self.options.damping**2 * answer if self.options.damping else rest

    def _solve(self, right: Tensor) -> Tensor:
        """(A'A + d^2)^-1 b, or (AA' + d^2)^-1 b if A is wide."""
        gram = self.sweeps.gram
        return self._refined(right, self.sweeps.gram_inverse, lambda z: right - gram(z), gram)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        return self._solve(x) if self.tall and not self._square else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        return super().dual_gram_inverse(y) if self.tall else self._solve(y)

    # -- what they are worth ---------------------------------------------------------------------------------------

    def keeps(self, error: float) -> bool:
        """Whether a step leaves little of the residual of known images, and they come back with less than `error`."""
        sweeps, eps = self.sweeps, torch.finfo(self.conv.dtype).eps
        if not sweeps.tile.torus_growth * eps < min(error, HOPELESS):
            self.shortfall = f"on a tile rounding errors grow about {sweeps.tile.torus_growth:.0e} times"
            return False
        rate, sides = sweeps.probe.rate, " x ".join(map(str, sweeps.size.size))
        if not rate < SLOW:
            self.shortfall = (
                f"tiles of {sides} with a halo of {sweeps.size.halo} leave {rate:.0e} of a residual at each step, "
                f"and {SLOW:.0e} is the most that is worth while"
            )
            return False
        self.error = self.trial(self.outputs)
        self.shortfall = f"with tiles of {sides} known images come back with an error of {self.error:.0e}"
        return self.error < error

    def prepare(self) -> None:
        """Factor a tile now, and find out on known images what its inverse is worth."""
        self.error = self.error or self.trial(self.outputs)

    def round_trip(self, outputs: torch.dtype) -> Trip:
        """What known images tell that are a few tiles large."""
        if self.probe is self:
            return super().round_trip(outputs)
        self.probe.scale = self.scale
        return self.probe.round_trip(outputs)

    @cached_property
    def condition(self) -> float:
        """The condition number, estimated from below on an image of a few tiles; with damping, of both together."""
        solver, damping = self.probe, self.options.damping
        conv = solver.conv
        images = self.known_images(conv.x_shape if self.tall else conv.y_shape)[:1].to(conv.dtype)
        there, back = (conv.forward, conv.adjoint) if self.tall else (conv.adjoint, conv.forward)
        norm = largest_eigenvalue(lambda x: back(there(x)), images) + damping**2
        inverse = largest_eigenvalue(solver.gram_inverse if self.tall else solver.dual_gram_inverse, images)
        return math.sqrt(norm * inverse)

    @property
    def growth(self) -> float:
        """By what factor rounding errors grow, about: on a tile."""
        return max(1.0, self.condition)

    @property
    def unknowns(self) -> int:
        """Size of the dense system of a tile."""
        return self.sweeps.tile.unknowns

    @property
    def bytes(self) -> int:
        """Memory held by the factors of a tile."""
        return self.sweeps.bytes

    @property
    def log_volume(self) -> Tensor:
        """Refused: the factors are those of a tile."""
        raise SingularMapError("the log-determinant needs the factors of the layer, not of a tile: use solver='auto'")

    @property
    def log_volume_gradient(self) -> Tensor:
        """Refused, as the log-volume is."""
        return self.log_volume
