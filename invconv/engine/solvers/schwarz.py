"""One sweep over the tiles of an image: what is kept of the inverse of each, side by side.

T of A^-1, and G of (A'A + d^2)^-1 or (AA' + d^2)^-1: restricted additive Schwarz (Cai and Sarkis 1999).  A tile that
touches no border of the image may be taken as a torus, which takes no dense system.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from invconv.engine import known
from invconv.engine.bands import Bands
from invconv.engine.convolution import Convolution
from invconv.engine.cover import Solve, sweep
from invconv.engine.solvers.base import Solver, sizes
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.ring import BENIGN, Ring
from invconv.engine.solvers.tile_size import TileSize
from invconv.engine.torus_inverse import Inverted, TorusInverse
from invconv.options import Options
from invconv.threads import cached_property

LOOKS = 4
"""Steps that are looked at on known images, until the residual is `ROUNDINGS` roundings.  Speed only."""

ROUNDINGS = 100.0
"""See `LOOKS`.  Speed only."""


class Schwarz:
    """The factors of a tile, and sweeps over images of one size.

    Args:
        size: the tiles, and the map in the precision of the factors.
        options: how the inverse is to be computed.
    """

    def __init__(self, size: TileSize, options: Options) -> None:
        self.size, self.options = size, options
        self.conv = size.conv
        self.bands = Bands(self.conv)
        self.inverted = Inverted.of(self.conv, options.damping)

    @cached_property
    def tile(self) -> Solver:
        """The inverse of a tile with borders all round."""
        solver = self.size.kind(self.size.tile, self.options)
        if isinstance(solver, (Ring, Gram)):
            solver.refine = False  # all of it is refined, by the residual of the image
        return solver

    @cached_property
    def torus(self) -> TorusInverse | None:
        """The inverse of a tile without borders; None where there is no such tile, or no such inverse."""
        if not self.size.inside or isinstance(self.tile, Circulant):
            return None
        torus = TorusInverse(self.conv, self.size.torus, self.options.damping, self.inverted)
        return torus if torus.growth < BENIGN else None

    def on(self, conv: Convolution) -> Schwarz:
        """The same tiles over images of another size."""
        other = Schwarz(self.size.on(conv), self.options)
        other.__dict__.update(tile=self.tile, torus=self.torus)
        return other

    @cached_property
    def probe(self) -> Schwarz:
        """The same tiles over an image of a few of them, on which known images are tried: they see no farther."""
        conv = self.size.probe
        return self if conv.input_size == self.conv.input_size else self.on(conv)

    @property
    def bytes(self) -> int:
        """Memory of the factors."""
        return self.tile.bytes + (self.torus.bytes if self.torus else 0)

    # -- sweeps ----------------------------------------------------------------------------------------------------

    def inverse(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """T y, added to `out`."""
        inside = None if self.torus is None else self.torus.solve
        return self._sweep(y, out, self.tile.pseudo_inverse, inside, True, False)

    def inverse_adjoint(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """The same of the transposed map."""
        inside = None if self.torus is None else self.torus.solve_adjoint
        return self._sweep(x, out, self.tile.pseudo_inverse_adjoint, inside, False, True)

    def gram_inverse(self, right: Tensor, out: Tensor | None = None) -> Tensor:
        """G b, added to `out`."""
        outputs = self.inverted is Inverted.OUTPUTS
        solve = self.tile.dual_gram_inverse if outputs else self.tile.gram_inverse
        inside = None if self.torus is None else self.torus.solve
        return self._sweep(right, out, solve, inside, outputs, outputs)

    def _sweep(
        self, image: Tensor, out: Tensor | None, solve: Solve, inside: Solve | None, outputs: bool, to_outputs: bool
    ) -> Tensor:
        """The middles of what is made of the tiles of an image: of those of outputs or inputs, as the one or other."""
        size = self.size
        source, target = (size.outputs if side else size.inputs for side in (outputs, to_outputs))
        torus = [t // s for t, s in zip(size.torus, self.conv.geometry.stride, strict=True)] if outputs else size.torus
        more = tuple(t - axis.length for t, axis in zip(torus, source, strict=True))
        if out is None:
            out = image.new_zeros(len(image), *(self.conv.y_shape if to_outputs else self.conv.x_shape))
        return sweep(image, out, source, target, solve, inside, more)

    # -- what they are worth ---------------------------------------------------------------------------------------

    def gram(self, z: Tensor) -> Tensor:
        """(A'A + d^2) z, or (AA' + d^2) z."""
        there, back = self.bands.forward, self.bands.adjoint
        image = there(back(z)) if self.inverted is Inverted.OUTPUTS else back(there(z))
        return image + self.options.damping**2 * z if self.options.damping else image

    def left_of(self, rest: Tensor) -> Tensor:
        """What a step leaves of a residual."""
        if self.inverted is Inverted.MAP:
            return self.bands.residual(rest, self.inverse(rest))
        return rest - self.gram(self.gram_inverse(rest))

    @cached_property
    def rate(self) -> float:
        """What a step leaves of residuals at most: of noise, of one even colour, and of what it has left of these."""
        shape = self.conv.x_shape if self.inverted is Inverted.INPUTS else self.conv.y_shape
        noise, even = known.images(shape, 0)[:1], known.images((shape[0],), 1)[:1]
        rest = torch.cat([noise, even.view(1, -1, *[1] * (len(shape) - 1)).expand_as(noise)]).to(self.conv.weight)
        rounding, rates = ROUNDINGS * torch.finfo(rest.dtype).eps * sizes(rest), [0.0]
        for _ in range(LOOKS):
            before, rest = sizes(rest), self.left_of(rest)
            left = sizes(rest)
            rates += [math.inf if r != r else r for r in (left / before)[~(left < rounding)].tolist()]
            if (left < rounding).all() or not left.isfinite().all():
                break
        return max(rates)
