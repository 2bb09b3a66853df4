"""Symmetric kernels at reflecting borders: a small matrix for each frequency of the cosine transform.

    A = W^-1/2 Q K Q W^1/2      (see `mirror`),      A^-1 = W^-1/2 Q K^-1 Q W^1/2,      log |det A| = sum log |det K_f|.

W keeps A from being symmetric, so that a damped inverse mixes the frequencies.  With K = U s V' at each of them,
c = U s / r,  t = V d / r,  r = (s^2 + d^2)^1/2,

    (A'A + d^2)^-1 A' = W^-1/2 Q (t / d) H^-1 c' Q W^-1/2,      H = c' M c + t' M t,      M = Q W^-1 Q,

where M is the identity and two ranks more along each axis, and H lies between 1 and 2^axes, whatever K and d are:
conjugate gradients take some twenty steps, in which nothing is transformed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from invconv.engine import cost, known, memory
from invconv.engine.blocks import norm_bound
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import Elimination, eliminate
from invconv.engine.mirror import edges, mirror_blocks, mirror_gradient, transform, weight_root, why_not_mirrored
from invconv.engine.solvers.base import MEASURE_ABOVE
from invconv.engine.solvers.judged import Judged
from invconv.options import DEFAULTS, Options
from invconv.report import Plan
from invconv.threads import cached_property

Map = Callable[[Tensor], Tensor]

STEPS = 20
"""Of conjugate gradients, for float64, about.  Speed only."""

MOST_STEPS = 100
"""After which nothing is expected any more: 50 bring a condition number of 8 to rounding."""


class Cosine(Judged):
    """A layer whose kernel is symmetric along each axis and whose borders reflect; as many channels out as in."""

    name = "cosine"
    explicit = True

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.exports = not options.damping

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:  # noqa: ARG003
        """Plan for the blocks and their factors, and for images."""
        outputs, inputs = conv.block_shape
        if outputs != inputs:
            return "it has not as many channels out as in"
        if refused := why_not_mirrored(conv, torch.finfo(conv.dtype).eps):
            return refused
        entries = math.prod(conv.input_size) * inputs * conv.out_channels
        peak = 8 * (6 * entries + 6 * conv.shape[1]) + known.bytes_for(conv)
        why = "the kernel is symmetric and the borders reflect"
        return memory.shortage(conv.device, peak, "its cosine transform") or Plan(cls.name, 0, peak, why)

    def cost(self) -> cost.Cost:
        """A matrix for each frequency; two transforms for an answer, and the steps where it is damped."""
        conv, side, damped = self.conv, self.conv.block_shape[0], self.options.damping > 0
        places, size = conv.shape[1], conv.input_size
        factors = places * side**2 * (cost.SVD if damped else 20 * cost.BLOCKS)
        factors += places / side * cost.BLOCK if side > 1 else 0
        answer = places * (4 * sum(size) + 2 * side)
        steps = STEPS * (cost.CALL + places * (8 * cost.BYTE * (4 * len(size) + 8) + 8 * side))
        return cost.Cost(20 * cost.CALL + factors, 4 * cost.CALL + answer + damped * steps)

    def keeps(self, error: float) -> bool:
        """Whether all singular values are kept, which are those of the blocks but for a factor, and digits remain."""
        if self.options.damping:
            return True
        eps, slack = torch.finfo(self.conv.dtype).eps, 2.0 ** len(self.conv.input_size)
        rtol = eps * max(self.conv.shape) if self.options.rtol is None else self.options.rtol
        return self.growth * eps < error and slack * self.growth * rtol < 1

    # -- factors ---------------------------------------------------------------------------------------------------

    @cached_property
    def _blocks(self) -> Tensor:
        """K_f: (groups, places, outputs, inputs)."""
        return mirror_blocks(self.conv)

    @cached_property
    def _eliminated(self) -> Elimination:
        """K_f^-1 and log |det K_f|."""
        return eliminate(self._blocks)

    @cached_property
    def _damped(self) -> tuple[Tensor, Tensor]:
        """The blocks c and t."""
        d, blocks = self.options.damping, self._blocks
        if self.conv.block_shape == (1, 1):
            r = torch.hypot(blocks, blocks.new_tensor(d))
            return blocks / r, d / r
        u, s, vh = torch.linalg.svd(blocks)
        r = torch.hypot(s, s.new_tensor(d))
        return u * (s / r)[..., None, :], vh.mT * (d / r)[..., None, :]

    @cached_property
    def _edges(self) -> list[Tensor]:
        """Columns of Q for the two ends of each axis."""
        return [edges(n).to(self._blocks) for n in self.conv.input_size]

    @cached_property
    def _cosine(self) -> Map:
        """Q."""
        return transform(self.conv.input_size, self._blocks)

    @cached_property
    def _root(self) -> Tensor:
        """The diagonal of W^1/2."""
        return weight_root(self.conv.input_size).to(self._blocks)

    # -- the pseudo-inverse ----------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Factor now; where that is in doubt, known images show what the inverse is worth."""
        places, d = math.sqrt(self.conv.shape[1]), self.options.damping
        factors = self._damped if d else self._eliminated
        gain = 0.5 / d if d else factors[0].norm().item() / places  # s / (s^2 + d^2) is at most 1 / 2 d
        rounding = torch.finfo(self.outputs).eps * self._blocks.norm().item() / places
        if not gain * rounding < MEASURE_ABOVE or self.scale.exponent:
            self.error = self.trial(self.outputs)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^-1 y, or (A'A + d^2)^-1 A' y."""
        if not self.options.damping:
            return self._between(self._eliminated.inverse, y * self._root) / self._root
        c, t = self._damped
        return self._solve(t, c, y) / self.options.damping

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^-1)' x, or A (A'A + d^2)^-1 x."""
        if not self.options.damping:
            return self._between(self._eliminated.inverse.mT, x / self._root) * self._root
        c, t = self._damped
        return self._solve(c, t, x) / self.options.damping

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^-1 x, or (A'A + d^2)^-1 x."""
        if not self.options.damping:
            return super().gram_inverse(x)
        t = self._damped[1]
        return self._solve(t, t, x) / self.options.damping**2

    def _between(self, blocks: Tensor, x: Tensor) -> Tensor:
        """The image Q (blocks) Q x."""
        return self._cosine(_times(blocks, self._cosine(x)))

    def _solve(self, left: Tensor, right: Tensor, x: Tensor) -> Tensor:
        """The image W^-1/2 Q left H^-1 right' Q W^-1/2 x, by conjugate gradients."""
        rest = _times(right.mT, self._cosine(x / self._root))
        answer, step, size = torch.zeros_like(rest), rest, _inner(rest, rest)
        enough = (torch.finfo(rest.dtype).eps ** 2 / 4) * size
        for _ in range(MOST_STEPS):
            if bool((size <= enough).all()):
                break
            image = self._bordered(step)
            length = size / _inner(step, image).clamp_min(torch.finfo(rest.dtype).tiny)
            answer = torch.addcmul(answer, length, step)
            rest = torch.addcmul(rest, length, image, value=-1)
            before, size = size, _inner(rest, rest)
            step = torch.addcmul(rest, size / before.clamp_min(torch.finfo(rest.dtype).tiny), step)
        return self._cosine(_times(left, answer)) / self._root

    def _bordered(self, x: Tensor) -> Tensor:
        """H x = c' M c x + t' M t x."""
        c, t = (_times(blocks.mT, self._heavier(_times(blocks, x))) for blocks in self._damped)
        return c.add_(t)

    def _heavier(self, x: Tensor) -> Tensor:
        """M x = Q W^-1 Q x: for each axis the identity, and once more what stands at its two ends."""
        shape, (*others, last) = x.shape, self._edges
        for axis, q in enumerate(others, start=2):
            lines = x.reshape(-1, shape[axis], math.prod(shape[axis + 1 :]))
            x = torch.baddbmm(lines, q.expand(len(lines), *q.shape), q.mT @ lines).view(shape)
        return x + (x @ last) @ last.mT

    # -- invariants ------------------------------------------------------------------------------------------------

    @cached_property
    def condition(self) -> float:
        """The condition number of K, which is that of A within a factor of two for each axis."""
        condition = norm_bound(self._blocks) * norm_bound(self._eliminated.inverse)
        return condition if condition == condition else math.inf

    @cached_property
    def log_volume(self) -> Tensor:
        """The sum of log |det K_f|, float64; of A itself, damped or not."""
        self.judge(self._eliminated.error.sum().item())
        return self._eliminated.log_volume.sum()

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, of any kernel, not of symmetric ones alone: A^-1 is as symmetric as A."""
        return mirror_gradient(self._eliminated.inverse.mT, self.conv)

    @property
    def bytes(self) -> int:
        """Memory held by what has been computed so far."""
        values = [v if isinstance(v, tuple) else (v,) for v in (self.conv.weight, *self.__dict__.values())]
        return sum(t.nbytes for parts in values for t in parts if isinstance(t, Tensor))


def _times(blocks: Tensor, x: Tensor) -> Tensor:
    """A matrix for each place of an image, (groups, places, rows, columns), times its channels."""
    groups, places, rows, columns = blocks.shape
    if rows == columns == 1:
        return blocks.view(groups, *x.shape[2:]) * x
    parts = x.reshape(len(x), groups, columns, places)
    return torch.einsum("gpoi,bgip->bgop", blocks, parts).reshape(len(x), groups * rows, *x.shape[2:])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each image with another."""
    products: Tensor = torch.linalg.vecdot(a.flatten(1), b.flatten(1))
    return products.view(-1, *[1] * (a.dim() - 1))
