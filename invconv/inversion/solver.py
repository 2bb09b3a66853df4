"""Least squares under inequalities, for batches of images: Gauss-Newton with conjugate gradients, and L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invconv.inversion.interval import Interval

Map = Callable[[Tensor], Tensor]


@dataclass
class Solution:
    x: Tensor
    residual: float
    """Root of the summed squares of what is violated, over that of what was known; mean over the batch."""
    rounds: int


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(batch, 1, ..., 1): inner products of images."""
    return (a * b).flatten(1).sum(1).view(-1, *(1,) * (a.dim() - 1))


def squares(a: Tensor) -> Tensor:
    """(batch, 1, ..., 1): squared norms of images, to be held against images."""
    return dot(a, a)


def conjugate_gradients(apply: Map, rhs: Tensor, iterations: int, tol: float = 1e-6) -> Tensor:
    """Solve H x = rhs from zero for each image; an image that has converged stands still."""
    x, r = torch.zeros_like(rhs), rhs
    p, rho = r, dot(r, r)
    goal = tol**2 * rho
    for _ in range(iterations):
        busy = rho > goal
        if not busy.any():
            break
        hp = apply(p)
        alpha = torch.where(busy, rho / dot(p, hp).clamp_min(torch.finfo(rhs.dtype).tiny), 0)
        x = x + alpha * p
        r = r - alpha * hp
        rho, old = dot(r, r), rho
        p = r + torch.where(busy, rho / old.clamp_min(torch.finfo(rhs.dtype).tiny), 0) * p
    return x


def gauss_newton(
    apply: Map,
    known: Interval,
    start: Tensor,
    box: Interval,
    *,
    affine: bool,
    rounds: int,
    iterations: int,
    patience: int | None = None,
) -> Solution:
    """The x near `start` that violates what is known of apply(x), and of x itself, least.

    Minimises ||excess of apply(x)||^2 + ||excess of x over its box||^2.  Each round solves the damped equations of
    those entries that are equations, or inequalities violated now; the damping falls as rounds succeed (Levenberg,
    Marquardt), so that what the equations determine is found exactly and what they leave open stays as at the start.
    It ends after `rounds`, or when one gains little; after `patience` rounds each has to gain half a digit.
    """
    x = start
    scale = length(known.clamp(torch.zeros_like(known.lower)))
    origin = apply(torch.zeros_like(x)) if affine else None

    def violation(x: Tensor, y: Tensor) -> Tensor:
        return (squares(known.excess(y)) + squares(box.excess(x))).flatten()

    y, pull = _vjp(apply, x)
    error = violation(x, y)
    # Rademacher signs: their image has the length of the Jacobian's rows.
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    damping = 1e-3 * squares(_push(apply, x, signs, origin)) / squares(signs)
    done = 0
    for done in range(1, rounds + 1):
        excess, outside = known.excess(y), box.excess(x)
        rows = (known.exact | (excess != 0)).to(x.dtype)
        places = (outside != 0).to(x.dtype)
        here, pull_here, level = x, pull, damping

        def normal(
            v: Tensor,
            here: Tensor = here,
            pull_here: Callable[..., tuple[Tensor, ...]] = pull_here,
            rows: Tensor = rows,
            places: Tensor = places,
            level: Tensor = level,
        ) -> Tensor:
            return pull_here(rows * _push(apply, here, v, origin))[0] + places * v + level * v

        step = conjugate_gradients(normal, -(pull(excess)[0] + outside), iterations)
        before = error
        for shrink in (1.0, 0.3, 0.1):
            better = x + shrink * step
            y_better, pull_better = _vjp(apply, better)
            error_better = violation(better, y_better)
            if (error_better <= before).all() or shrink == 0.1:
                break
        good = (error_better < before).view(-1, *(1,) * (x.dim() - 1))
        damping = torch.where(good, damping * (0.03 if shrink == 1.0 else 1.0), damping * 10)
        if good.all():
            x, y, pull, error = better, y_better, pull_better, error_better
        else:
            x = torch.where(good, better, x)
            y, pull = _vjp(apply, x)
            error = violation(x, y)
        least = 0.5 if patience is None or done < patience else 0.1
        if (error > least * before).all() or (error.sqrt() < torch.finfo(x.dtype).eps * scale).all():
            break
    return Solution(x, float((error.sqrt() / scale).mean()), done)


def _vjp(apply: Map, x: Tensor) -> tuple[Tensor, Callable[..., tuple[Tensor, ...]]]:
    """The value at x, and the transposed derivative there."""
    result: Any = torch.func.vjp(apply, x)
    return result


def _push(apply: Map, x: Tensor, v: Tensor, origin: Tensor | None) -> Tensor:
    """The derivative of `apply` at x in the direction v."""
    return torch.func.jvp(apply, (x,), (v,))[1] if origin is None else apply(v) - origin


def length(value: Tensor) -> Tensor:
    """(batch,): Euclidean norms to divide by; 1 for zero, so that what is relative to nothing is absolute."""
    norm = value.flatten(1).norm(dim=1)
    return torch.where(norm > 0, norm, 1)


def total_variation(x: Tensor) -> Tensor:
    """(batch,): mean length of the gradient, forward differences, rounded off below 0.01.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]]))
        tensor([0.5050])
    """
    right, down = x.diff(dim=-1)[..., :-1, :], x.diff(dim=-2)[..., :, :-1]
    return (right.square() + down.square() + 1e-4).sqrt().flatten(1).mean(1)


def feature_error(apply: Map, x: Tensor, features: Tensor) -> Tensor:
    """(batch,): ||apply(x) - features|| / ||features||; absolute where the features are all zero."""
    return (apply(x) - features).flatten(1).norm(dim=1) / length(features)


def joint(
    apply: Map,
    features: Tensor,
    start: Tensor,
    steps: int,
    prior: Callable[[Tensor], Tensor] | None = None,
    weight: float = 0.0,
    watch: Callable[[Tensor], None] | None = None,
) -> Tensor:
    """Minimise the squared relative error of the features, plus a prior, over the whole network.

    The prior counts `weight` times, and times the squared error of the start where that is below 1: it chooses among
    the images that the features leave open, and does not blur what they determine.

    L-BFGS (Nocedal 1980) with a line search, at most `steps` evaluations, for one image after the other: each has a
    curvature of its own.  One that came out with a larger objective than it went in with is given back as it was.
    """
    return torch.cat(
        [
            _joint(apply, wanted, image, steps, prior, weight, watch)
            for wanted, image in zip(features.split(1), start.split(1), strict=True)
        ]
    )


def _joint(
    apply: Map,
    features: Tensor,
    start: Tensor,
    steps: int,
    prior: Callable[[Tensor], Tensor] | None,
    weight: float,
    watch: Callable[[Tensor], None] | None,
) -> Tensor:
    level = weight * float(feature_error(apply, start, features).square().clamp_max(1)) if weight else 0.0

    def objective(x: Tensor) -> Tensor:
        error = feature_error(apply, x, features).square().sum()
        return error if prior is None or level == 0 else error + level * prior(x).sum()

    with torch.no_grad():  # torch's L-BFGS forgets curvatures below 1e-10, so small errors are scaled up
        scale = 1e4 / objective(start).clamp_min(1e-20)
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x],
        max_iter=steps,
        max_eval=steps,
        history_size=20,
        line_search_fn="strong_wolfe",
        tolerance_grad=0,
        tolerance_change=0,
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = scale * objective(x)
        loss.backward()
        if watch is not None:
            watch(x.detach())
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    with torch.no_grad():
        return x.detach() if objective(x) <= objective(start) else start
