"""What solvers by elimination have in common: a log-volume that is judged by the rounding error that it may have."""

from __future__ import annotations

from invconv.engine.elimination import judge_with_taps
from invconv.engine.solvers.base import Solver


class Judged(Solver):
    """A solver whose eliminations tell by how many nats rounding may have moved the log-volume."""

    def judge(self, error: float) -> None:
        """Warn of a log-volume, or refuse it, that may be off by `error` nats; or by more, as its taps are rounded.

        Warns:
            IllConditionedWarning: where it may be off by more than a hundredth of a nat.

        Raises:
            SingularMapError: where the map cannot be told from a singular one.
        """
        rows, columns = self.conv.shape
        what = f"the {rows} x {columns} layer is singular to the rounding of {self.outputs}, or nearly so"
        judge_with_taps(error, lambda: (self.log_volume_gradient * self.conv.weight).abs().sum(), what, self.outputs)
