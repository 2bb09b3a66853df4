"""Images of any size: the inverse of one small tile, applied to overlapping tiles, and refined by the true residual.

The inverse of a well-conditioned convolution decays with distance (Demko, Moss and Smith 1984), so the middle of a tile
needs nothing of what lies beyond its halo.  With T the sum over tiles of what is kept of their inverses,

    square A:  x <- x + T (y - A x),    tall:  x <- x + G A'(y - A x),    wide:  x = A'z,  z <- z + G (y - A A'z),

G the same of (A'A)^-1, or of (AA')^-1: restricted additive Schwarz (Cai and Sarkis 1999) as a stationary iteration,
whose rate is what the halo leaves.  A tile is the same layer on a smaller image, with borders of the same kind at all
edges.  Time grows with the pixels, memory beside the images is that of one tile.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.cover import CHUNK, Solve, sweep
from invconv.engine.decay import decay_of
from invconv.engine.power import largest_eigenvalue
from invconv.engine.solvers.base import Solver, Trip, sizes
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.one_image import OneImage
from invconv.engine.solvers.ring import BENIGN, Ring
from invconv.engine.tile_size import TileSize, tile_sizes, tiles_of
from invconv.engine.torus_inverse import Inverted, TorusInverse
from invconv.errors import SingularMapError, warn
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

STEPS = 12
"""Most steps of refinement."""

ENOUGH = 1.0
"""Residual, in roundings of the factors, that is foreseen after a step and not worth another.  Speed only."""

ATTEMPTS = 3
"""Sizes of tiles that are tried, each with a halo as much larger as the last fell short.  Speed only."""

FALLS = 0.1
"""What a step may leave of the residual of known images, at most: where it is more, tiles do not stand for an image."""

SHORT = 1e3
"""Residual, in units of the tolerance, from which an answer is warned of."""

LOOKS = 4
"""Steps that are looked at on known images, until the residual is `ROUNDINGS` roundings.  Speed only."""

ROUNDINGS = 100.0
"""See `LOOKS`.  Speed only."""

COPIES = 12
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
        *,
        given: tuple[TileSize, Solver, TorusInverse | None] | None = None,
    ) -> None:
        super().__init__(conv, options, outputs or conv.dtype, lost)
        if not self._square:  # what is squared needs the digits
            self.conv = conv.to(torch.float64)
        self._given = given
        self._slack = 1.0
        self._shortfall = ""

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for one tile and the images, if the inverse decays within it."""
        if reason := _refusal(conv, options):
            return reason
        size = cls(conv, options).foreseen
        if size is None:
            return "the inverse does not decay within any tile that could be factored"
        plan = size.kind.plan(size.tile, options)
        assert isinstance(plan, Plan)
        images = conv.weight.element_size() * (2 * conv.shape[0] + 3 * conv.shape[1])
        chunk = COPIES * CHUNK * conv.weight.element_size() + known.bytes_for(size.probe)
        needed = plan.bytes + images + chunk
        short = memory.shortage(conv.device, needed, "what tiles and images take")
        sides = " x ".join(map(str, size.size))
        because = f"{size.count} tiles of {sides} with a halo of {size.halo} hold its inverse"
        return short or Plan(cls.name, plan.unknowns, needed, because)

    def cost(self) -> cost.Cost:
        """A tile factored, known images, and all tiles solved as often as the halo needs."""
        size = self.foreseen
        assert size is not None  # it has a plan
        return size.cost(self.options)

    # -- tiles -----------------------------------------------------------------------------------------------------

    @property
    def foreseen(self) -> TileSize | None:
        """The cheapest tiles whose halo is foreseen to be enough."""
        decay = decay_of(self.conv, self.options)
        if decay is None:
            return None
        sizes = tile_sizes(self.conv, self.options, decay, torch.finfo(self.outputs).eps, self._slack)
        return min(sizes, key=lambda size: size.cost(self.options).of(self.options.answers), default=None)

    @cached_property
    def _tile(self) -> tuple[TileSize, Solver, TorusInverse | None]:
        """The tiles, the inverse of one that may touch borders, and where it is cheaper of one that does not."""
        if self._given is not None:
            return self._given
        size = self.foreseen
        assert size is not None
        solver = size.kind(size.tile, self.options)
        if isinstance(solver, (Ring, Gram)):
            solver.refine = False  # all of it is refined by the residual of the image
        inner = None
        if size.inside and not isinstance(solver, Circulant):
            inner = TorusInverse(self.conv, size.torus, self.options.damping, self._inverted)
            inner = inner if inner.growth < BENIGN else None
        return size, solver, inner

    @property
    def size(self) -> TileSize:
        """The tiles, and how they overlap."""
        return self._tile[0]

    @property
    def tile(self) -> Solver:
        """The inverse of one tile."""
        return self._tile[1]

    @cached_property
    def probe(self) -> Tiles:
        """The same tiles on an image of a few of them, on which known images are tried: they see no farther."""
        conv = self.size.probe
        probe = (
            self
            if conv.input_size == self.conv.input_size
            else Tiles(conv, self.options, self.outputs, given=(self.size.on(conv), *self._tile[1:]))
        )
        probe.scale = self.scale
        return probe

    @property
    def _inverted(self) -> Inverted:
        """A itself, or the Gram matrix that is inverted in its place."""
        return Inverted.of(self.conv, self.options.damping)

    @property
    def _square(self) -> bool:
        """Whether A itself is inverted, rather than its Gram matrix."""
        return self._inverted is Inverted.MAP

    @cached_property
    def tall(self) -> bool:
        """Whether A'A is the Gram matrix that is inverted, rather than AA'."""
        return self._inverted is not Inverted.OUTPUTS

    # -- one sweep -------------------------------------------------------------------------------------------------

    def _inverse(self, y: Tensor) -> Tensor:
        """T y."""
        edge, inner = self._tile[1:]
        return self._sweep(y, edge.pseudo_inverse, None if inner is None else inner.solve, True, False)

    def _inverse_adjoint(self, x: Tensor) -> Tensor:
        """The same of the transposed map."""
        edge, inner = self._tile[1:]
        return self._sweep(x, edge.pseudo_inverse_adjoint, None if inner is None else inner.solve_adjoint, False, True)

    def _gram(self, right: Tensor) -> Tensor:
        """G b, of (A'A + d^2)^-1, or of (AA' + d^2)^-1 if A is wide."""
        edge, inner = self._tile[1:]
        solve = edge.gram_inverse if self.tall else edge.dual_gram_inverse
        return self._sweep(right, solve, None if inner is None else inner.solve, not self.tall, not self.tall)

    def _sweep(self, image: Tensor, solve: Solve, inner: Solve | None, outputs: bool, to_outputs: bool) -> Tensor:
        """The middles of what is made of the tiles of an image: of those of outputs or inputs, as the one or other."""
        size = self.size
        source, target = (size.outputs if side else size.inputs for side in (outputs, to_outputs))
        torus = [t // s for t, s in zip(size.torus, self.conv.geometry.stride, strict=True)] if outputs else size.torus
        more = tuple(t - axis.length for t, axis in zip(torus, source, strict=True))
        out = image.new_zeros(len(image), *(self.conv.y_shape if to_outputs else self.conv.x_shape))
        return sweep(image, out, source, target, solve, inner, more)

    # -- answers ---------------------------------------------------------------------------------------------------

    def _refined(self, right: Tensor, solve: Solve, residual: Solve) -> Tensor:
        """What `solve` makes of a right side and of the residuals of its answers, until they are rounding."""
        answer, whole = solve(right), sizes(right).clamp_min(torch.finfo(right.dtype).tiny)
        enough = ENOUGH * torch.finfo(right.dtype).eps * whole
        before = whole
        for _ in range(STEPS):
            rest = residual(answer)
            left = sizes(rest)
            if not (left < 0.5 * before).any() or (left <= enough).all():
                break
            answer += solve(rest)
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
        conv = self.conv
        if self._square:
            return self._refined(y, self._inverse, lambda x: y - conv.forward(x))
        if not self.tall:
            return conv.adjoint(self._solve(y))
        pull = self.options.damping**2
        return self._refined(conv.adjoint(y), self._gram, lambda x: conv.adjoint(y - conv.forward(x)) - pull * x)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        conv = self.conv
        if self._square:
            return self._refined(x, self._inverse_adjoint, lambda y: x - conv.adjoint(y))
        if self.tall:
            return conv.forward(self._solve(x))
        pull = self.options.damping**2
        return self._refined(conv.forward(x), self._gram, lambda y: conv.forward(x - conv.adjoint(y)) - pull * y)

    def _solve(self, right: Tensor) -> Tensor:
        """(A'A + d^2)^-1 b, or (AA' + d^2)^-1 b if A is wide."""
        there, back = (self.conv.forward, self.conv.adjoint) if self.tall else (self.conv.adjoint, self.conv.forward)
        pull = self.options.damping**2
        return self._refined(right, self._gram, lambda z: right - back(there(z)) - pull * z)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        return self._solve(x) if self.tall and not self._square else super().gram_inverse(x)

    def dual_gram_inverse(self, y: Tensor) -> Tensor:
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        return super().dual_gram_inverse(y) if self.tall else self._solve(y)

    # -- what they are worth ---------------------------------------------------------------------------------------

    @cached_property
    def rate(self) -> float:
        """What a step leaves of the residual at most, on an image of a few tiles: of noise, and of one even colour."""
        solver = self.probe
        shape = solver.conv.x_shape if self.tall and not self._square else solver.conv.y_shape
        noise = self.known_images(shape)[:1]
        even = self.known_images((shape[0],))[:1].view(1, -1, *[1] * (len(shape) - 1)).expand(1, *shape)
        rest = torch.cat([noise, even]).to(self.conv.dtype)
        whole, rates = sizes(rest), [0.0]
        rounding = ROUNDINGS * torch.finfo(self.conv.dtype).eps * whole
        for _ in range(LOOKS):
            before, rest = sizes(rest), solver.left_of(rest)
            left = sizes(rest)
            rates += (left / before)[~(left < rounding)].tolist()
            if (left < rounding).all() or not left.isfinite().all():
                break
        return max(rate if rate == rate else math.inf for rate in rates)

    def left_of(self, rest: Tensor) -> Tensor:
        """What a step leaves of a residual."""
        if self._square:
            return rest - self.conv.forward(self._inverse(rest))
        z, (there, back) = self._gram(rest), (self.conv.forward, self.conv.adjoint)
        gram = back(there(z)) if self.tall else there(back(z))
        return rest - gram - self.options.damping**2 * z

    def keeps(self, error: float) -> bool:
        """Whether a step leaves little of the residual of known images, and they come back with less than `error`."""
        for _ in range(ATTEMPTS):
            if self.foreseen is None:
                return False
            if not self.tile.torus_growth * torch.finfo(self.conv.dtype).eps < error:
                self._shortfall = f"on a tile rounding errors grow about {self.tile.torus_growth:.0e} times"
                return False
            if self.rate < FALLS:
                self.error = self.trial(self.outputs)
                self._shortfall = f"known images come back with an error of {self.error:.0e}"
                return self.error < error
            sides = " x ".join(map(str, self.size.size))
            self._shortfall = f"tiles of {sides} with a halo of {self.size.halo} leave {self.rate:.0e} of a residual"
            self._slack *= max(2.0, self.rate / FALLS)
            for name in ("_tile", "probe", "rate"):
                self.__dict__.pop(name, None)
        return False

    @property
    def shortfall(self) -> str:
        """What tiles leave, where that is too much."""
        return self._shortfall or super().shortfall

    def prepare(self) -> None:
        """Factor a tile now, and find out on known images what its inverse is worth."""
        self.error = self.error or self.trial(self.outputs)

    def round_trip(self, outputs: torch.dtype) -> Trip:
        """What known images tell that are a few tiles large."""
        return super().round_trip(outputs) if self.probe is self else self.probe.round_trip(outputs)

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
        return self.tile.unknowns

    @property
    def bytes(self) -> int:
        """Memory held by the factors of a tile."""
        inner = self._tile[2]
        return self.tile.bytes + (inner.bytes if inner else 0)

    @property
    def log_volume(self) -> Tensor:
        """Refused: the factors are those of a tile."""
        raise SingularMapError(
            "the log-determinant needs the factors of the layer, and tiles have those of a small image"
            ": use solver='auto'"
        )

    @property
    def log_volume_gradient(self) -> Tensor:
        """Refused, as the log-volume is."""
        return self.log_volume


def _refusal(conv: Convolution, options: Options) -> str:
    """Why tiles are no way, whatever the weight; empty where they may be one."""
    (rows, columns), (outputs, inputs) = conv.block_shape, conv.shape
    if options.rtol is not None:
        return "it cuts no singular values off"
    if conv.blind_spots and not options.damping:
        return conv.blind_spots
    if conv.geometry.padding_mode == "circular" and conv.geometry.links_borders and not conv.is_cyclic:
        return "its borders wrap in part"
    if (rows > columns and outputs < inputs) or (rows < columns and outputs > inputs):
        return "the layer is tall and its torus wide, or the reverse"
    if next(tiles_of(conv, options), None) is None:
        sides = " x ".join(map(str, conv.input_size))
        return f"an image of {sides} is no larger than a tile"
    return ""
