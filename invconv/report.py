"""What an inverse will take, and what it turned out to be worth."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Plan:
    """What an inverse will take, known before anything is computed; afterwards, the plan of the way that was taken."""

    solver: str
    """"fft" (cyclic, block-diagonal), "kronecker" (an outer product: a matrix for each axis),
    "triangular" (pixels read in one order: substitution), "cosine" (symmetric kernels at reflecting borders),
    "fft and ring", "fft and symmetric ring" (real borders), "fft and strips" (the same, damped), "tiles" (large images,
    the inverse of a small one), "svd" (the explicit matrix of a small layer), "cholesky" (its Gram matrix), "sparse lu"
    (a square one that the torus cannot invert) or "lsmr" (iterative); of a log-volume with borders of zeros also
    "cut torus", and of one of a large image "sections" (a few small images)."""
    unknowns: int
    """Size of the dense system, for each group of channels; 0 where there is none."""
    bytes: int
    """Memory at the peak of the factorisation, about."""
    because: str
    """Why this way, and why none of those that come before it."""
    seconds: float = 0.0
    """Time until there can be answers, about, on this machine with nothing else to do."""
    seconds_each: float = 0.0
    """Time of an answer for one image, about."""
    bytes_if_lost: int = 0
    """Memory at the peak, about, where this way loses its digits and others are tried; 0 once a way has been taken."""

    def seconds_for(self, answers: int) -> float:
        """Time for so many answers, about."""
        return self.seconds + answers * self.seconds_each

    def __str__(self) -> str:
        system = f"{self.unknowns} unknowns, " if self.unknowns else ""
        time = f"{self.seconds:.1g} s and {self.seconds_each:.1g} s for each image"
        lost = (
            f" ({self.bytes_if_lost / 2**20:.0f} MiB if its digits are lost)" if self.bytes_if_lost > self.bytes else ""
        )
        return f"{self.solver}: {system}about {self.bytes / 2**20:.0f} MiB{lost}, {time}; {self.because}"


@dataclass(frozen=True)
class Report:
    """How far to trust an operator's answers."""

    shape: tuple[int, int]
    """(outputs, inputs) of A per image."""
    solver: str
    """Name of the way that was taken, as `Plan.solver` lists them."""
    unknowns: int
    """Size of the dense system of the ring, for each group of channels."""
    dtype: torch.dtype
    """Precision of the factors."""
    rank: int | None
    """Singular values that the pseudo-inverse keeps; None where they were not counted."""
    condition: float
    """Condition number of A: the value ("svd", "kronecker"), a few hundredths above it at most ("fft"), or
    an estimate (else).

    That of "lsmr" is of what it reached, preconditioned, and can lie far below; `growth` tells more, and
    `condition_number()` all.
    """
    torus_growth: float
    """By what factor rounding errors grow on the torus, about: a condition number in the root mean square."""
    growth: float
    """By what factor rounding errors grow in the whole solution, the ring included."""
    relative_residual: float
    """||A A^+ y - y|| / ||y|| for a random y in the range of A."""
    relative_error: float
    """||x_hat - A^+ A x|| / ||A^+ A x|| for random x, where x_hat is the answer for A x as it is rounded.

    With damping, A^+ is (A'A + d^2)^-1 A': what the damping itself takes from x is `bias`.
    """
    bias: float
    """||(A'A + d^2)^-1 A' A x - x|| / ||x|| for random x: the share of a white image that damping quiets; else 0."""
    seconds: float
    """Time that the factorisation took."""
    bytes: int
    """Memory that the factors hold."""

    def __str__(self) -> str:
        rank = "" if self.rank is None else f", rank {self.rank}"
        ring = f" of {self.unknowns} unknowns" if self.unknowns else ""
        bias = f", bias of the damping {self.bias:.1e}" if self.bias else ""
        return (
            f"{self.shape[0]} x {self.shape[1]}{rank}, condition about {self.condition:.1e}; {self.solver}{ring} in "
            f"{str(self.dtype).removeprefix('torch.')}, relative residual {self.relative_residual:.1e}, error "
            f"{self.relative_error:.1e}{bias}, {self.seconds:.3f} s, {self.bytes / 2**20:.2f} MiB"
        )
