"""How an inverse is to be computed: what counts as zero, how exact, and by which way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from invconv.errors import InputError

SOLVERS = ("auto", "direct", "iterative")


@dataclass(frozen=True)
class Options:
    """The keyword-only options of layers and functions.

    Args:
        rtol: singular values below `rtol` times the largest count as zero; None for eps * max(rows, columns) of a
            block, as in `torch.linalg.pinv`.
        damping: Tikhonov parameter d, in units of singular values: each 1/s becomes s / (s^2 + d^2).
        solver: "direct" factors, "iterative" does not, "auto" factors where memory allows and digits remain.
        tol: relative error that is asked for. float32 factors that miss it are replaced by float64 ones, and
            iterations stop at it. None for 1e-5 in float32 and below, 1e-12 in float64.
        max_iter: most iterations of the iterative solver; None for 4 times the unknowns, 2,000 at most.
        volume_tol: None for exact log-volumes. Else those of cyclic layers may be off by `volume_tol` nats for each
            unknown, and come from the coarsest grid of frequencies that is known to be as good as that: the kernel is
            far from singular between its frequencies, and grids of other sides agree to a quarter of it. Where none
            does, all frequencies are taken. About that is the relative error of the gradient.
    """

    rtol: float | None = None
    damping: float = 0.0
    solver: str = "auto"
    tol: float | None = None
    max_iter: int | None = None
    volume_tol: float | None = None

    def __post_init__(self) -> None:
        if self.rtol is not None and not 0 <= self.rtol < 1:
            raise InputError(f"rtol must lie in [0, 1), got {self.rtol}")
        if not 0 <= self.damping < math.inf:
            raise InputError(f"damping must be a finite number of at least 0, got {self.damping}")
        if self.solver not in SOLVERS:
            raise InputError(f"solver must be one of {SOLVERS}, got {self.solver!r}")
        if self.tol is not None and not 0 < self.tol < 1:
            raise InputError(f"tol must lie in (0, 1), got {self.tol}")
        if self.max_iter is not None and (not isinstance(self.max_iter, int) or self.max_iter < 1):
            raise InputError(f"max_iter must be a positive integer, got {self.max_iter!r}")
        if self.volume_tol is not None and not 0 < self.volume_tol < 1:
            raise InputError(f"volume_tol must lie in (0, 1), got {self.volume_tol}")

    def tolerance(self, dtype: torch.dtype) -> float:
        """Relative error that is asked for in this dtype: `tol`, or its default."""
        return self.tol or (1e-12 if dtype == torch.float64 else 1e-5)


DEFAULTS = Options()
