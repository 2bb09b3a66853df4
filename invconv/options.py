"""How an inverse is to be computed: what counts as zero, how exact, and by which way."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass
from typing import Any

import torch

from invconv.errors import InputError
from invconv.scalars import real_number, whole_number

SOLVERS = ("auto", "direct", "iterative")
NAMES = {
    "fft": "direct",
    "kronecker": "direct",
    "triangular": "direct",
    "cosine": "direct",
    "fft and ring": "direct",
    "fft and strips": "direct",
    "fft and symmetric ring": "direct",
    "svd": "direct",
    "cholesky": "direct",
    "sparse lu": "direct",
    "cut torus": "direct",
    "sections": "direct",
    "tiles": "direct",
    "lsmr": "iterative",
}
"""Names of ways, as `Plan.solver` and `Report.solver` have them, and the word of `SOLVERS` that allows each."""


@dataclass(frozen=True)
class Options:
    """The keyword-only options of layers and functions.

    Args:
        rtol: singular values below `rtol` times the largest count as zero; None for eps * max(rows, columns) of a
            block, as in `torch.linalg.pinv`.
        damping: Tikhonov parameter d, in units of singular values: each 1/s becomes s / (s^2 + d^2).
        solver: "direct" factors, "iterative" (LSMR) does not, "auto" does what is foreseen to be soonest: it factors
            where memory allows and digits remain, unless iterations reach `tol` in half the time.
        tol: relative error that is asked for. float32 factors that miss it are replaced by float64 ones, and
            iterations stop at it. None for 1e-5 in float32 and below, 1e-12 in float64.
        max_iter: most iterations of a run of the iterative solver; None for 20 times the unknowns, 2,000 at most.
        volume_tol: None for exact log-volumes. Else they may be off by `volume_tol` nats for each unknown. Those of
            cyclic layers come from the coarsest grid of frequencies that is known to be as good as that: the kernel is
            far from singular between its frequencies, and grids of other sides agree to a quarter of it. Where none
            does, all frequencies are taken. Those of other layers come from the smallest images that do, where they
            are soonest. About that is the relative error of the gradient.
        answers: images that one weight inverts, about: the more there are, the more a factorisation is worth.

    Raises:
        InputError: for a value of another type, or out of range.
    """

    rtol: float | None = None
    damping: float = 0.0
    solver: str = "auto"
    tol: float | None = None
    max_iter: int | None = None
    volume_tol: float | None = None
    answers: int = 16

    def __post_init__(self) -> None:
        checked = {
            "rtol": real_number("rtol", self.rtol, "lie in [0, 1)", lambda v: 0 <= v < 1),
            "damping": real_number(
                "damping", self.damping, "be a finite number of at least 0", lambda v: 0 <= v < math.inf, optional=False
            ),
            "tol": real_number("tol", self.tol, "lie in (0, 1)", lambda v: 0 < v < 1),
            "max_iter": None if self.max_iter is None else whole_number("max_iter", self.max_iter),
            "answers": whole_number("answers", self.answers),
            "volume_tol": real_number("volume_tol", self.volume_tol, "lie in (0, 1)", lambda v: 0 < v < 1),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)  # Python's own: equal options have equal hashes
        _check_solver(self.solver)

    def tolerance(self, dtype: torch.dtype) -> float:
        """Relative error that is asked for in this dtype: `tol`, or its default."""
        return self.tol or (1e-12 if dtype == torch.float64 else 1e-5)


def _check_solver(solver: Any) -> None:
    """Refuse what is none of `SOLVERS`; the name of a way that reports print is told the word that allows it."""
    if isinstance(solver, str) and solver in SOLVERS:
        return
    text = f"solver must be one of {SOLVERS}, got {solver!r}"
    known = NAMES.get(str(solver).lower())
    near = difflib.get_close_matches(str(solver).lower(), SOLVERS, n=1)
    if known:
        text += f": {str(solver).lower()!r} is the name of a way that solver={known!r} may take; use that"
    elif near:
        text += f": did you mean {near[0]!r}?"
    raise InputError(text)


DEFAULTS = Options()
