"""What solvers by the explicit matrix of A have in common: its log-volume, by elimination."""

from __future__ import annotations

import torch
from torch import Tensor

from invconv.engine.elimination import Elimination, eliminate
from invconv.engine.solvers.judged import Judged
from invconv.threads import cached_property


class Explicit(Judged):
    """A layer whose matrix is small enough to be written down."""

    @cached_property
    def elimination(self) -> Elimination:
        """A^+ and the log-volume by LU or QR, which keep digits of a determinant that singular values have lost."""
        return eliminate(self.conv.to(torch.float64).to_dense())

    @cached_property
    def log_volume(self) -> Tensor:
        """1/2 log det(A'A), float64; of A itself, damped or not."""
        self.judge(self.elimination.error.item())
        return self.elimination.log_volume

    @cached_property
    def log_volume_gradient(self) -> Tensor:
        """d log_volume / d K, from tr(A^+ dA)."""
        return self.conv.to(torch.float64).dense_gradient(self.elimination.inverse)
