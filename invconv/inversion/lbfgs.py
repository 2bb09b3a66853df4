r"""L-BFGS (Nocedal 1980): the step $-H g$, with $H$ the inverse curvature that the last steps and gradients tell.

With $S$, $Y$ the rows of steps and of changes of the gradient, $R$ the upper triangle of $S Y^T$, $D$ its diagonal and
$\gamma$ the newest $s^T y / y^T y$, the two loops of Nocedal are two small triangular systems (Byrd, Nocedal and
Schnabel 1994), so that the rows are read twice for each step:

$$ R a = S g, \quad R^T b = D a - \gamma (Y g - Y Y^T a), \quad H g = \gamma (g - Y^T a) + S^T b $$
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Value = Callable[[Tensor], tuple[float, Tensor]]

DECREASE = 1e-4
"""Share of the decrease that the slope promises, which a step has to bring; speed only."""
FLATTER = 0.9
"""Share of the slope that may be left after a step: more, and it is made longer; speed only."""
TRIALS = 20
"""Evaluations for one step, after which the curvature is forgotten; speed only."""


def minimise(value: Value, x: Tensor, evaluations: int, history: int) -> None:
    """Walk downhill from `x`; what is found is known to `value`, which sees all that is evaluated.

    Args:
        value: gives what is minimised, at least 0, and its gradient.
        x: where to begin; it is evaluated first.
        evaluations: at most so many.
        history: pairs of steps and changes of the gradient that are kept.

    Example:
        >>> seen = []
        >>> def bowl(x):
        ...     seen.append(x)
        ...     return float((x - 1).square().sum()), 2 * (x - 1)
        >>> minimise(bowl, torch.zeros(4), 10, 5)
        >>> torch.allclose(seen[-1], torch.ones(4))
        True
    """
    budget = _Budget(value, evaluations)
    here = budget.at(x, torch.zeros_like(x), 0.0)
    curvature = Curvature(here.gradient, history)
    while budget.left and here.loss > 0:
        direction = -curvature.newton().view_as(x)
        slope = float(torch.dot(direction.flatten(), here.gradient.flatten()))
        # Without curvature, the step at which half of all would be gone, were the slope to last.
        step = 1.0 if curvature.places else 0.5 * here.loss / max(-slope, 1e-30)
        there = _searched(budget, here, direction, slope, step) if slope < 0 else None
        if there is not None:
            curvature.add(there.x - here.x, there.gradient)
            here = there
        elif curvature.places:
            curvature.forget()
        else:
            return


@dataclass
class _Point:
    """What is known at one x on a line."""

    x: Tensor
    step: float
    loss: float
    gradient: Tensor
    slope: float


class _Budget:
    """The function, for as many evaluations as there are."""

    def __init__(self, value: Value, evaluations: int) -> None:
        self.value, self.left = value, evaluations

    def at(self, x: Tensor, direction: Tensor, step: float) -> _Point:
        """The point x + step direction."""
        self.left -= 1
        x = torch.add(x, direction, alpha=step)
        loss, gradient = self.value(x)
        return _Point(x, step, loss, gradient, float(torch.dot(gradient.flatten(), direction.flatten())))


def _searched(budget: _Budget, here: _Point, direction: Tensor, slope: float, step: float) -> _Point | None:
    """A point on the line at which the weak conditions of Wolfe hold, or the best that there was time for.

    They can be met where there are kinks as well (Lewis and Overton 2013).
    """
    low, high = _Point(here.x, 0.0, here.loss, here.gradient, slope), None
    for _ in range(min(budget.left, TRIALS)):
        there = budget.at(here.x, direction, step)
        if not there.loss <= here.loss + DECREASE * step * slope:  # NaN as well
            high = there
        elif there.slope < FLATTER * slope:
            low = there
        else:
            return there
        step = _between(low, high)
    return low if low.step else None


def _between(low: _Point, high: _Point | None) -> float:
    """The step to try next: the least point of a cubic, or farther out as long as it goes down."""
    if high is None:
        return 4 * low.step
    width = high.step - low.step
    middle = low.slope + high.slope - 3 * (high.loss - low.loss) / width
    inner = middle * middle - low.slope * high.slope
    if not (inner >= 0 and math.isfinite(inner)):
        return low.step + width / 2
    root = math.sqrt(inner)
    across = high.slope - low.slope + 2 * root
    share = (root + middle - low.slope) / across if across > 0 else 0.5
    return low.step + width * min(0.9, max(0.1, share))


class Curvature:
    """The last steps and changes of the gradient, and their products; newest last, but for the rows themselves."""

    def __init__(self, gradient: Tensor, history: int) -> None:
        self.gradient = gradient.flatten()
        self.rows = gradient.new_empty(2 * history, gradient.numel())
        """Steps at even places, changes at odd ones."""
        self.forget()

    def forget(self) -> None:
        """Begin anew."""
        self.places: list[int] = []
        self.dots = torch.zeros(2, 0, dtype=torch.float64)  # S g and Y g
        self.products = torch.zeros(2, 0, 0, dtype=torch.float64)  # the upper triangle of S Y^T, and Y Y^T

    def add(self, step: Tensor, gradient: Tensor) -> None:
        """Go on to the next gradient, and keep one more pair in place of the oldest, if its curvature is above zero."""
        step, gradient = step.flatten(), gradient.flatten()
        change, self.gradient = gradient - self.gradient, gradient
        dots = (self.rows[: 2 * len(self.places)] @ gradient).double().cpu().view(-1, 2)[self.places].T
        changed, self.dots = dots - self.dots, dots
        products = [float(torch.dot(v, w)) for w in (change, gradient) for v in (step, change)]
        if not (products[0] > 0 and all(map(math.isfinite, products))):
            return
        full = 2 * len(self.places) == len(self.rows)
        place = self.places.pop(0) if full else len(self.places)
        self.places.append(place)
        self.rows[2 * place], self.rows[2 * place + 1] = step, change
        own = torch.tensor(products, dtype=torch.float64).view(2, 2, 1)
        self.dots = torch.cat([dots[:, full:], own[1]], 1)
        self.products = F.pad(self.products[:, full:, full:], (0, 1, 0, 1))
        self.products[:, :, -1] = torch.cat([changed[:, full:], own[0]], 1)
        self.products[1, -1] = self.products[1, :, -1]

    def newton(self) -> Tensor:
        """H times the gradient, flat."""
        if not self.places:
            return self.gradient
        (sg, yg), (sy, yy) = self.dots, self.products
        diagonal = sy.diagonal()
        gamma = float(diagonal[-1] / yy[-1, -1])
        a = torch.linalg.solve_triangular(sy, sg[:, None], upper=True)[:, 0]
        rest = diagonal * a - gamma * (yg - yy @ a)
        b = torch.linalg.solve_triangular(sy.T, rest[:, None], upper=False)[:, 0]
        weights = torch.empty(len(self.places), 2, dtype=torch.float64)
        weights[self.places] = torch.stack([b, -gamma * a], 1)
        return torch.addmv(self.gradient, self.rows[: weights.numel()].T, weights.flatten().to(self.rows), beta=gamma)
