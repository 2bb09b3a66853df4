"""One run of SciPy's LSMR on a linear map of PyTorch, and what it was worth (Fong and Saunders 2011).

min |M z - b|:      the z of least norm among the minimisers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor

from invconv import deadline
from invconv.engine.convolution import Convolution
from invconv.engine.precision import DOUBTFUL
from invconv.geometry import Size
from invconv.options import Options
from invconv.threads import few_threads

LEAST = 1e-15
"""The least tolerance that LSMR is given, at which it stagnates.  Speed only."""

RESTARTS = 3
"""Most runs for an answer after the first: each solves for what the residual has left.  Speed only: LSMR says so."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run came to, in LSMR's own words, for a b whose largest entry is one."""

    answer: Tensor
    """z, as an image; for b as it is."""
    steps: int
    residual: float
    """|M z - b|."""
    normal_residual: float
    """|M'(M z - b)|."""
    norm: float
    """|M|, as far as it was seen."""
    condition: float
    """Condition number of M, as far as it was seen."""
    size: float
    """|z|."""
    right: float
    """|b|."""
    unit: float
    """The largest entry of b as it is."""

    def error(self, share: float) -> float:
        """|z - z*| / |z|, by its bounds kappa |r| / |M| |z| and kappa^2 |M'r| / |M|^2 |z|.

        A smaller z counts as the `share` of |b| / |M|, the size of everyday answers.
        """
        size = max(self.size, share * self.right / self.norm) if self.norm else 0.0
        if not size:
            return 0.0
        scale, kappa = self.norm * size, self.condition
        return kappa * min(self.residual / scale, kappa * self.normal_residual / (self.norm * scale))

    def __str__(self) -> str:
        return (
            f"LSMR stopped after {self.steps} iterations at a residual of {self.residual:.1e}, of the normal equations "
            f"{self.normal_residual:.1e}, with a condition number of about {self.condition:.1e}"
        )


def run_lsmr(
    there: Callable[[Tensor], Sequence[Tensor]],
    back: Callable[[Sequence[Tensor]], Tensor],
    right: Sequence[Tensor],
    solution: Size,
    tolerances: tuple[float, float],
    most: int,
) -> Run:
    """One run for one image, in float64.

    Args:
        there: M, from z to images one above the other.
        back: its transpose.
        right: b, images as `there` gives them.
        solution: shape of z.
        tolerances: of the residual of the normal equations, and of the residual, relative.
        most: most iterations.
    """
    rows = [part.numel() for part in right]
    device = right[0].device

    def column(parts: Sequence[Tensor]) -> np.ndarray:
        values: np.ndarray = torch.cat([part.flatten() for part in parts]).cpu().numpy()
        return values

    def image(values: np.ndarray, shape: Size) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).view(1, *shape).to(device)

    def transposed(values: np.ndarray) -> np.ndarray:
        parts = np.split(values, np.cumsum(rows)[:-1])
        return column([back([image(part, r.shape[1:]) for part, r in zip(parts, right, strict=True)])])

    def plain(values: np.ndarray) -> np.ndarray:
        deadline.look()
        return column(there(image(values, solution)))

    operator = LinearOperator((sum(rows), math.prod(solution)), plain, transposed, dtype=np.float64)
    target = column(right)
    size = float(abs(target).max()) or 1.0  # squares of what is near one neither overflow nor vanish
    atol, btol = (max(tolerance, LEAST) for tolerance in tolerances)
    with few_threads(max(operator.shape)):
        z, _, steps, residual, normal_residual, norm, condition, length = lsmr(
            operator, target / size, atol=atol, btol=btol, conlim=0, maxiter=most
        )
    length_of_b = float(np.linalg.norm(target / size))
    return Run(image(z, solution) * size, steps, residual, normal_residual, norm, condition, length, length_of_b, size)


def until_small(run: Callable[[Tensor | None], Run], tol: float, most: int, eps: float) -> tuple[Tensor, str]:
    """The answer of a first run, to which those of runs for what is left are added; and what has to be said of it.

    Of a b that M hardly reaches, as the gradient of a reconstruction is none but what the layer does not see, the
    rounding of b leaves next to no digits of z: errors as small as that are no errors.

    Args:
        run: a run for what an answer leaves; for all of it, if there is none.
        tol: relative error that is asked for.
        most: most iterations of a run, which a run that was cut short has taken.
        eps: relative rounding of b.
    """
    last, share = run(None), eps / tol
    answer, error = last.answer, last.error(share)
    least = share * last.right * last.unit / last.norm if last.norm else 0.0
    for _ in range(RESTARTS):
        cut_short = last.steps >= most
        if error < tol and not cut_short:
            break
        last = run(answer)
        found = (last.answer.norm() / answer.norm().clamp_min(max(least, 1e-300))).item()
        if not found < 0.5 * error:
            error = max(error, found)
            break
        answer, error = answer + last.answer, found
        if cut_short:
            break
    said = "" if error < DOUBTFUL else f"the answer may have a relative error of {min(error, 1.0):.0e}: {last}"
    return answer, said


def is_null(x: Tensor, apply: Callable[[Tensor], Tensor], run: Callable[[Tensor], Run], rounding: float) -> bool:
    """Whether a map M makes nothing but rounding of an image, or of what runs for M x leave of it.

    Args:
        x: what did not come back of an image: of what came back, some digits are left in it.
        apply: M.
        run: a run for a right side.
        rounding: |M x| / |x| that may be rounding.
    """
    for _ in range(2):
        x = x - run(apply(x)).answer
    return bool(apply(x).norm() <= rounding * x.norm())


def vector_bytes(shape: tuple[int, int]) -> int:
    """Memory that LSMR's vectors take for a map of this shape."""
    return 8 * (2 * shape[0] + 5 * shape[1])


def caution_of(conv: Convolution, options: Options, lost: float) -> str:
    """What has to be said before any answer of LSMR; empty where there is nothing.

    Args:
        conv: the map.
        options: how the inverse is to be computed.
        lost: growth of rounding errors in the ways that were given up for this one; 0 where none was.
    """
    (rows, columns), rtol, reasons = conv.shape, options.rtol, []
    if lost:
        reasons.append(
            f"the {rows} x {columns} layer has no full rank to working precision, in the ring rounding errors grow "
            f"about {lost:.0e} times: it is solved iteratively, and what the smallest singular values carried "
            "is not recovered"
        )
    elif conv.blind_spots and not options.damping and options.solver != "iterative":
        reasons.append(
            f"the {rows} x {columns} layer has no full rank, {conv.blind_spots}: it is solved iteratively, "
            "and what it does not see is not recovered"
        )
    if rtol is not None:
        reasons.append(
            f"rtol = {rtol:.1e} is not applied: the {rows} x {columns} layer is solved iteratively, which cuts "
            "nothing off; damping is the way to quiet small singular values here"
        )
    return "; ".join(reasons)
