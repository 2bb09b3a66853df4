"""What is right: the explicit matrix of `torch.nn.functional.conv*d` and its singular values, in float64.

The matrix is that of the weight as it is stored, times a power of two that brings it to order one, which is exact:

    A = 2^-exponent conv(K),      A = U diag(s) V',      A_r^+ = V_r diag(1/s_r) U_r',

with residuals in extended precision where A has full rank or is damped.

How far an answer may be off whatever one does is measured: the same formula is asked again with A and y changed by a
rounding of the caller's dtype.  A change keeps the rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.trust.cases import Case
from invconv import Geometry

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
EPS = torch.finfo(torch.float64).eps
REFINEMENTS = 5
SETTLED = 1e-14
"""Change in the last step of a refinement that has come to its end."""
TRIALS = 2
"""Times that everything is changed by a rounding."""
NARROW, WIDE = 0.1, 10.0
"""How near to the limit of what counts as zero a singular value may be kept or cut."""


def convolve(x: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    """The layer, as PyTorch computes it."""
    pads = [p for pair in reversed(geometry.padding) for p in pair]
    mode = {"zeros": "constant"}.get(geometry.padding_mode, geometry.padding_mode)
    x = F.pad(x, pads, mode=mode) if any(pads) else x
    return CONVOLVE[geometry.dims](x, weight, None, geometry.stride, 0, geometry.dilation, geometry.groups)


def relative(found: Tensor, truth: Tensor, least: float = 0.0) -> Tensor:
    """Error of each row, over its norm or `least`; zero of zero is right."""
    off, size = (found - truth).norm(dim=-1), truth.norm(dim=-1).clamp_min(least)
    return torch.where(off == 0, 0, off / size)


def rms(errors: Tensor) -> float:
    """The root mean square."""
    return errors.square().mean().sqrt().item()


@dataclass(frozen=True)
class Factors:
    """A of a given rank, or damped."""

    u: Tensor
    s: Tensor
    v: Tensor
    """Columns."""
    damping: float = 0.0

    def cut(self, rank: int) -> Factors:
        """The largest singular values only; all of them where there is damping."""
        return self if self.damping else Factors(self.u[:, :rank], self.s[:rank], self.v[:, :rank])

    def inverse(self, y: Tensor) -> Tensor:
        """A^+ y, or (A'A + d^2)^-1 A'y, of rows."""
        return ((y @ self.u) * self._filter) @ self.v.T

    def adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        return ((x @ self.v) * self._filter) @ self.u.T

    def gram(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if not self.damping:
            return ((x @ self.v) / self.s**2) @ self.v.T
        seen = x @ self.v
        inside = (seen / (self.s**2 + self.damping**2)) @ self.v.T
        return inside if len(self.s) == x.shape[-1] else inside + (x - seen @ self.v.T) / self.damping**2

    def residual(self, y: Tensor) -> Tensor:
        """y - A A^+ y, without cancellation where A is damped."""
        seen = y @ self.u
        outside = y - seen @ self.u.T if len(self.s) < y.shape[-1] else 0
        return (
            outside + (seen * self.damping**2 / (self.s**2 + self.damping**2)) @ self.u.T
            if self.damping
            else (torch.as_tensor(outside).expand(y.shape))
        )

    @property
    def _filter(self) -> Tensor:
        return self.s / (self.s**2 + self.damping**2)

    def cotangent(self, y: Tensor, c: Tensor) -> Tensor:
        """The gradient of <c, A^+ y> by A, for one y and c (Golub and Pereyra 1973): a matrix."""
        x, left, gram = self.inverse(y), self.adjoint(c), self.gram(c)
        g = -torch.outer(left, x) + torch.outer(self.residual(y), gram)
        if not self.damping:
            g = g + torch.outer(self.adjoint(x), c - (c @ self.v) @ self.v.T)
        return g

    def cotangent_size(self, y: Tensor, c: Tensor) -> Tensor:
        """The absolute values of what is summed in `cotangent`."""
        size = torch.outer(self.adjoint(c).abs(), self.inverse(y).abs())
        size = size + torch.outer(self.residual(y).abs(), self.gram(c).abs())
        if not self.damping:
            size = size + torch.outer(self.adjoint(self.inverse(y)).abs(), (c - (c @ self.v) @ self.v.T).abs())
        return size

    @property
    def log_volume(self) -> float:
        """1/2 log det(A'A), or of AA'."""
        return self.s.log().sum().item()

    def volume_cotangent(self) -> Tensor:
        """Its gradient by A: (A^+)'."""
        return (self.u * self._filter) @ self.v.T


class Reference:
    """The dense matrix of a case."""

    def __init__(self, case: Case) -> None:
        self.case, self.geometry, self.weight = case, case.geometry, case.weight()
        exact = self.weight.double()
        largest = exact.abs().max().item()
        self.exponent = math.frexp(largest)[1]
        self.scaled = times_two_to(exact, -self.exponent)
        inputs = case.channels[0] * math.prod(case.size)
        self.images = torch.eye(inputs, dtype=torch.float64).view(inputs, case.channels[0], *case.size)
        self.matrix = convolve(self.images, self.scaled, self.geometry).flatten(1).T.contiguous()
        self.x_shape = (case.channels[0], *case.size)
        self.y_shape = (case.channels[1], *self.geometry.output_size(case.size))
        self.eps = torch.finfo(case.torch_dtype).eps

    @cached_property
    def exact(self) -> bool:
        """Whether the matrix has no rounding: no entry is a sum of taps, or they are whole numbers or half as long."""
        taps = convolve(self.images, torch.ones_like(self.scaled), self.geometry)
        whole = bool((self.scaled * 2**20 == (self.scaled * 2**20).round()).all())
        return whole or self.case.dtype == "float32" or bool(taps.max() <= 1)

    # -- rank --------------------------------------------------------------------------------------------------------

    @cached_property
    def factors(self) -> Factors:
        """All singular values; damped where the case is."""
        return self._factor(self.matrix)

    def _factor(self, matrix: Tensor) -> Factors:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
        return Factors(u, s, vh.T, self.case.damping * self.unit)

    @cached_property
    def largest(self) -> float:
        """The largest singular value of A."""
        return torch.linalg.matrix_norm(self.matrix, 2).item()

    @property
    def unit(self) -> float:
        """What damping is a multiple of."""
        return self.largest or 1.0

    @cached_property
    def relative_values(self) -> Tensor:
        """Singular values over the largest; zeros of a zero matrix."""
        s = self.factors.s
        return s / s[0] if s[0] > 0 else s

    @property
    def noise(self) -> float:
        """Relative singular values that float64 cannot tell from zero."""
        return EPS * max(self.matrix.shape)

    @property
    def full(self) -> bool:
        """Whether the rank is full beyond doubt."""
        return bool(self.relative_values[-1] > WIDE * self.noise)

    @property
    def condition(self) -> float:
        smallest = self.relative_values[-1].item()
        return 1 / smallest if smallest else math.inf

    def ranks(self, said: bool) -> list[int]:
        """The ranks that an answer may have: what is cut has to be said, unless float64 cannot tell it from zero."""
        values, rows_and_columns = self.relative_values, max(self.matrix.shape)
        if self.case.damping:
            return [len(values)]
        low, high = NARROW * EPS, WIDE * self.noise
        if said:
            high = WIDE * self.eps * rows_and_columns
        if self.case.rtol is not None:
            low, high = max(low, NARROW * self.case.rtol), max(high, WIDE * self.case.rtol)
        least, most = int((values > high).sum()), int((values > low).sum())
        return list(range(least, most + 1))

    # -- answers ---------------------------------------------------------------------------------------------------

    def outputs(self, x: Tensor) -> np.ndarray:
        """A x, of rows, in extended precision."""
        product: np.ndarray = x.numpy().astype(np.longdouble) @ self._extended.T
        return product

    @cached_property
    def _extended(self) -> np.ndarray:
        return self.matrix.numpy().astype(np.longdouble)

    def answer(self, y: np.ndarray, rank: int) -> Tensor:
        """A^+ y, or with damping, of rows: refined in extended precision where A has full rank or is damped."""
        factors = self.factors.cut(rank)
        x = factors.inverse(torch.from_numpy(y.astype(np.float64)))
        if not self._refinable(factors):
            return x
        earlier, refined = (
            torch.from_numpy((self._tall if self._is_tall else self._wide)(factors, y, steps).astype(np.float64))
            for steps in (REFINEMENTS - 1, REFINEMENTS)
        )
        # Damping below the square root of the rounding squares it away: then the plain answer is the better one.
        return refined if rms(relative(earlier, refined)) < SETTLED else x

    @property
    def _is_tall(self) -> bool:
        rows, columns = self.matrix.shape
        return rows >= columns or self.case.damping > 0

    def _refinable(self, factors: Factors) -> bool:
        smallest = factors.damping if factors.damping else factors.s[-1].item() if len(factors.s) else 0.0
        return (bool(factors.damping) or self.full) and smallest > 1e3 * EPS * self.unit

    def _tall(self, factors: Factors, y: np.ndarray, steps: int) -> np.ndarray:
        """Of r + A x = y, A'r = d^2 x (Björck 1967)."""
        a, square = self._extended, np.longdouble(factors.damping) ** 2
        x, r = np.zeros((len(y), a.shape[1]), np.longdouble), y.copy()
        for _ in range(steps):
            f, g = y - r - x @ a.T, square * x - r @ a
            first, second = (torch.from_numpy(v.astype(np.float64)) for v in (f, g))
            step = (factors.inverse(first) - factors.gram(second)).numpy().astype(np.longdouble)
            x, r = x + step, r + f - step @ a.T
        return x

    def _wide(self, factors: Factors, y: np.ndarray, steps: int) -> np.ndarray:
        """Of x = A'w, A x = y."""
        a = self._extended
        w = np.zeros((len(y), a.shape[0]), np.longdouble)
        for _ in range(steps):
            left = torch.from_numpy((y - (w @ a) @ a.T).astype(np.float64))
            w = w + (((left @ factors.u) / factors.s**2) @ factors.u.T).numpy().astype(np.longdouble)
        product: np.ndarray = w @ a
        return product

    # -- inputs ------------------------------------------------------------------------------------------------------

    def stored(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Rows that belong to A, as images of the layer in its dtype; and the rows that were stored."""
        images = times_two_to(y, self.exponent).to(self.case.torch_dtype)
        return images.view(-1, *self.y_shape), times_two_to(images.double(), -self.exponent)

    # -- what no algorithm can undo ------------------------------------------------------------------------------------

    @cached_property
    def changed(self) -> list[Factors]:
        """Factors of A changed by a rounding of the dtype."""
        generator = torch.Generator().manual_seed(7)
        size = self.eps * self.largest / math.sqrt(max(self.matrix.shape))
        noise = torch.randn(TRIALS, *self.matrix.shape, generator=generator, dtype=torch.float64)
        return [self._factor(self.matrix + size * n) for n in noise]

    def unavoidable(self, ask: Callable[[Factors, Tensor], Tensor], y: Tensor, rank: int, least: float = 0.0) -> float:
        """How far an answer moves when A and the rows y are changed by a rounding, relative to its norm or `least`."""
        generator = torch.Generator().manual_seed(8)
        truth = ask(self.factors.cut(rank), y)
        errors = []
        for factors in self.changed:
            noise = torch.randn(y.shape, generator=generator, dtype=torch.float64) / math.sqrt(y.shape[-1])
            moved = ask(factors.cut(rank), y + 0.5 * self.eps * y.norm(dim=-1, keepdim=True) * noise)
            errors.append(rms(relative(moved.reshape(-1, truth.shape[-1]), truth.reshape(-1, truth.shape[-1]), least)))
        return max(errors)

    # -- gradients ---------------------------------------------------------------------------------------------------

    def by_weight(self, cotangent: Tensor) -> Tensor:
        """The gradient by the kernel, flattened, of one by A."""
        weight = self.scaled.clone().requires_grad_()
        outputs = convolve(self.images, weight, self.geometry).flatten(1)
        return torch.autograd.grad(outputs, weight, cotangent.T)[0].flatten()


def times_two_to(values: Tensor, exponent: int) -> Tensor:
    """Values times 2^exponent, exactly where the result is a normal number."""
    with np.errstate(over="ignore"):
        return torch.from_numpy(np.ldexp(values.numpy(), exponent))
