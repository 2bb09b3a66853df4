"""The pseudo-inverse without factors: SciPy's LSMR on the convolution and its transpose, preconditioned on the torus.

For what the direct ways cannot do: rings too large to factor, maps without full rank, and those for which the torus is
tall and the layer wide or the reverse.  LSMR (Fong and Saunders 2011) gives the x of least norm among the minimisers,
as A^+ does, and keeps doing so if the preconditioner stands on a side where A has full rank (which is tried out):

    tall A:  x = L z,  min |A L z - y|,  LL' = (C'C)^-1,        wide A:  min |x|  with  L'A x = L'y,  LL' = (CC')^-1,

with L in the windows.  A damped A is the tall map that has d times the identity below.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from invconv.engine import known
from invconv.engine.convolution import Convolution
from invconv.engine.cost import Cost
from invconv.engine.foresight import BEFORE, foreseen_cost
from invconv.engine.lsmr import caution_of, is_null, vector_bytes
from invconv.engine.mirror import mirror_root
from invconv.engine.power import largest_eigenvalue
from invconv.engine.preconditioner import Root, root_bytes, torus_root
from invconv.engine.solvers.one_image import OneImage
from invconv.engine.solvers.runs import Runs
from invconv.errors import SingularMapError, unsaid, warn
from invconv.options import Options
from invconv.report import Plan
from invconv.threads import cached_property

STEEPEST = 1e8
"""Condition number up to which tolerances follow it: beyond, the residual of the normal equations is all rounding."""

SHARE = 0.01
"""Share of one direction's part of white noise that is above all errors of an image that came back."""

MILD = 1e5
"""Condition number of a damped map up to which it is taken for known.  Speed only: beyond, an image is waited for."""

TRIAL = 200
"""Iterations in which a preconditioner has to show that it is one.  Speed only: without it LSMR takes longer."""


class Krylov(OneImage, Runs):
    """A layer of any kind, but without its log-volume; float64 inside, with the arguments of `Runs`."""

    name = "lsmr"
    exports = False
    serves = ("auto", "iterative")
    advice = "float64, damping or a larger max_iter"
    gives_volume = False

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for vectors of the size of the images, and the preconditioner."""
        why = "asked for" if options.solver == "iterative" else "matrix-free"
        tall = conv.shape[0] >= conv.shape[1] or options.damping > 0
        peak = vector_bytes(conv.shape) + root_bytes(conv, tall) + conv.fft_bytes + known.bytes_for(conv)
        return Plan(cls.name, 0, peak, why)

    def cost(self, within: float = math.inf) -> Cost:
        """The preconditioner, and as many iterations as a small image takes, if all answers might be had `within`."""
        worth = within / (BEFORE + self.options.answers)
        return foreseen_cost(self.conv, self._tall, self._most_steps, self._bound, self._look, worth)

    @property
    def _bound(self) -> float:
        """Iterations after which a damped answer is there: kappa / 2 log(2 / tol), kappa from the sums of taps."""
        if not self.damping:
            return math.inf
        sizes = self.conv.weight.abs().flatten(2).sum(2)
        kappa = math.hypot(math.sqrt(float(sizes.sum(1).amax() * sizes.sum(0).amax())) / self.damping, 1.0)
        return 0.5 * kappa * math.log(20 * kappa**2 / self.tol)

    def _look(self, small: Convolution, most: int) -> tuple[int, bool]:
        """Iterations for an image that is not known, and whether a preconditioner takes part."""
        solver = Krylov(small, replace(self.options, max_iter=most), self.outputs)
        with unsaid():
            y = solver.as_told(small.forward(solver.known_images(small.x_shape, seed=3)[:1]), self.outputs)
            below = y.new_zeros(1, *small.x_shape) if self.damping else None
            return solver._lsmr(y, True, below, solver._root[0]).steps, solver._root[0] is not None

    def keeps(self, error: float) -> bool:
        """Whether A has full rank, and known images come back with less than `error`."""
        self.error = self.trial(self.outputs) if self._root[1] else math.inf
        return self.error < error

    @property
    def condition(self) -> float:
        """LSMR's estimate for what it solved, preconditioner included."""
        return self._steepness

    @property
    def growth(self) -> float:
        """Growth of rounding errors, at least: in the ring that was given up for this, and in what was solved."""
        return max(self.lost, self._steepness)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy takes along: the preconditioner is made anew."""
        return {name: value for name, value in dict(self.__dict__).items() if name != "_root"}

    # -- preconditioner --------------------------------------------------------------------------------------------

    @cached_property
    def _root(self) -> tuple[Root | None, bool]:
        """L and its transpose, None where they are no help; and whether A has full rank.

        An image comes back from A (from A', if A is wide) just if the rank is full and LSMR reaches all of it.  The
        steepness of the singular values decides how small a residual has to be, and comes out on the way.
        """
        mirror = mirror_root(self.conv, torch.finfo(self.outputs).eps, self.damping)
        if self.damping and self._damped_steepness < MILD:
            return self._faster(mirror), True
        torus = None if self.damping else mirror or torus_root(self.conv, self._tall, self.damping)
        known = self.known_images(self.conv.x_shape if self._tall else self.conv.y_shape)[:1]
        apply = self.conv.forward if self._tall else self.conv.adjoint
        right, below = apply(known), self.damping * known if self.damping else None

        def comes_back(answer: Tensor) -> bool:
            # A direction that is not seen takes its part of the noise with it.
            return bool((answer - known).norm() < SHARE / math.sqrt(known.numel()) * known.norm())

        for root in (torus, None) if torus else (None,):
            self._steepness, before = 1.0, 0.0
            while self._steepness > 2 * before:
                before = self._steepness
                run = self._lsmr(right, self._tall, below, root, TRIAL if root else None)
                self._steepness = min(max(before, run.condition), STEEPEST)
                if comes_back(run.answer):
                    return root, True
        # Either nothing is there that comes back, or LSMR cannot see it with these tolerances.
        self._steepness = STEEPEST
        steep = self._lsmr(right, self._tall, below, None).answer
        if (steep - run.answer).norm() < self.tol * steep.norm():
            self._steepness = before
        if self.damping or comes_back(steep):
            return None, True
        rounding = torch.finfo(known.dtype).eps * max(self.conv.shape) * self.conv.weight.norm().item()
        # What is small, but there, has lost digits and no more: gradients have none of the terms of lower ranks.
        return None, not is_null(known - steep, apply, lambda b: self._lsmr(b, self._tall, None, None), rounding)

    @cached_property
    def _damped_steepness(self) -> float:
        """The condition number of A on top of d times the identity, from above."""
        known = self.known_images(self.conv.x_shape)[:1]
        largest = largest_eigenvalue(lambda x: self.conv.adjoint(self.conv.forward(x)), known)
        return math.hypot(math.sqrt(largest) / self.damping, 1.0)

    def _faster(self, mirror: Root | None) -> Root | None:
        """L, that of the torus if a damped answer comes nearer by it; |A| / d bounds the condition beforehand."""
        known = self.known_images(self.conv.x_shape)[:1]
        self._steepness = self._damped_steepness
        torus = None if mirror else torus_root(self.conv, self._tall, self.damping)
        if torus is None:
            return mirror
        right, below = self.conv.forward(known), self.damping * known
        plain = self._lsmr(right, True, below, None, TRIAL)
        helped = self._lsmr(right, True, below, torus, plain.steps)  # each of which takes longer
        return torus if (helped.answer - known).norm() <= (plain.answer - known).norm() else None

    @property
    def rank(self) -> int | None:
        """The full rank where an image shows it that came back, or whose rest is seen; None where it is not known."""
        return self.full_rank if self._root[1] and not self.damping else None

    def damped_correction(self, x: Tensor, rest: Tensor) -> Tensor:
        """What an answer x lacks of the exact one, in one run, which nothing cancels in."""
        return torch.cat([self._refined(r[None], True, -self.damping * a[None]) for r, a in zip(rest, x, strict=True)])

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs, and find out on a known image what it is worth."""
        if caution := caution_of(self.conv, self.options, self.lost):
            warn(caution)
        self.error = self.error or self.trial(self.outputs)

    # -- invariants ------------------------------------------------------------------------------------------------

    @property
    def log_volume(self) -> Tensor:
        """Refused: without factors there is no log-volume."""
        raise SingularMapError(
            f"the log-determinant needs the factors of the layer, that solver={self.options.solver!r} does without "
            "here: use solver='auto' or solver='direct'"
        )

    @property
    def log_volume_gradient(self) -> Tensor:
        """Refused: without factors there is no log-volume, and no gradient of it."""
        return self.log_volume

    @property
    def bytes(self) -> int:
        """Memory of LSMR's vectors, of the preconditioner and of the transforms."""
        return vector_bytes(self.conv.shape) + root_bytes(self.conv, self._tall) + self.conv.fft_bytes
