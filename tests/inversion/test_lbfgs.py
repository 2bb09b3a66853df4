"""L-BFGS: its steps are those of the two loops, and it ends where a function is least."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from invconv.inversion.lbfgs import Curvature, minimise


def valued(function: Callable[[Tensor], Tensor], losses: list[float]) -> Callable[[Tensor], tuple[float, Tensor]]:
    """A function with its gradient, which notes what it gives."""

    def value(x: Tensor) -> tuple[float, Tensor]:
        x = x.detach().requires_grad_()
        loss = function(x)
        losses.append(float(loss.detach()))
        return losses[-1], torch.autograd.grad(loss, x)[0]

    return value


def two_loops(steps: list[Tensor], changes: list[Tensor], gradient: Tensor) -> Tensor:
    """H times the gradient, as Nocedal (1980) writes it."""
    q, weights = gradient, []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        weights.append(s @ q / (s @ y))
        q = q - weights[-1] * y
    r = q * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y, weight in zip(steps, changes, reversed(weights), strict=True):
        r = r + s * (weight - y @ r / (s @ y))
    return r


@pytest.mark.parametrize("count", [1, 3, 7, 12])
def test_steps_are_those_of_the_two_loops(count: int) -> None:
    torch.manual_seed(0)
    n, history = 40, 7
    hessian = torch.randn(n, n, dtype=torch.float64)
    hessian = hessian @ hessian.T + torch.eye(n)
    gradient = torch.randn(n, dtype=torch.float64)
    curvature = Curvature(gradient, history)
    steps = list(torch.randn(count, n, dtype=torch.float64))
    for i, step in enumerate(steps):
        gradient = gradient + hessian @ step
        curvature.add(step, gradient)
        if i == 1:  # one that bends the wrong way is left out
            other = gradient - hessian @ steps[0]
            curvature.add(steps[0], other)
            curvature.add(0 * steps[0], gradient)
    kept = steps[-history:]
    wanted = two_loops(kept, [hessian @ s for s in kept], gradient)
    assert torch.allclose(curvature.newton(), wanted, rtol=1e-10, atol=1e-10 * float(wanted.norm()))


def test_rosenbrock() -> None:
    losses: list[float] = []
    value = valued(lambda x: (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), losses)
    minimise(value, torch.zeros(10, dtype=torch.float64), 200, 10)
    assert min(losses) < 1e-20 and len(losses) <= 200


def test_kinks_are_crossed_whatever_the_scale() -> None:
    weights = torch.arange(1.0, 21.0, dtype=torch.float64)

    def walked(scale: float) -> Tensor:
        losses: list[float] = []
        minimise(valued(lambda x: scale * (weights * (x - 1)).abs().sum(), losses), torch.zeros(20).double(), 300, 20)
        return torch.tensor(losses) / scale

    plain = walked(1.0)
    assert plain.min() < 0.02 * plain[0]
    for scale in (2.0**-40, 2.0**40):
        assert torch.equal(walked(scale), plain)


def test_where_there_is_no_value_it_turns_back() -> None:
    losses: list[float] = []
    minimise(valued(lambda x: (x - x.log() - 1).sum(), losses), torch.full((5,), 1e-3).double(), 100, 5)
    assert min(losses) < 1e-12


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_no_more_evaluations_than_there_are(evaluations: int) -> None:
    losses: list[float] = []
    minimise(valued(lambda x: (x**4).sum() + x.square().sum(), losses), torch.ones(3), evaluations, 5)
    assert len(losses) == evaluations


def test_flat_ground_is_the_end() -> None:
    losses: list[float] = []
    minimise(valued(lambda x: 1 + 0 * x.sum(), losses), torch.ones(3), 50, 5)
    assert len(losses) == 1
