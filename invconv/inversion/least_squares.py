r"""Least squares under inequalities, for batches of images: Gauss-Newton with conjugate gradients.

$$ \min_x \; \|f(x) - [f(x)]_Y\|^2 + \|x - [x]_B\|^2 $$

where $[\cdot]_Y$ is the nearest value within what is known of the output, and $[\cdot]_B$ within the box of the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from invconv.inversion.interval import Interval
from invconv.threads import ProcessSetting

DAMPING = 1e-3
"""Of the first round of Gauss-Newton, relative to the mean squared gain: derivatives do not hold from afar."""
LITTLE = 1e-7
"""The same where they hold everywhere, and all equations are known."""

Map = Callable[[Tensor], Tensor]
Pull = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Solution:
    """The x that least squares end with."""

    x: Tensor
    residual: float
    """Root of the summed squares of what is violated, over that of what was known; mean over the batch."""
    rounds: int
    """How many rounds of Gauss-Newton it took."""


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(batch, 1, ..., 1): inner products of images."""
    return (a * b).flatten(1).sum(1).view(-1, *(1,) * (a.dim() - 1))


def squares(a: Tensor) -> Tensor:
    """(batch, 1, ..., 1): squared norms of images, to be held against images."""
    return dot(a, a)


def length(value: Tensor) -> Tensor:
    """(batch,): Euclidean norms to divide by; 1 for zero, so that what is relative to nothing is absolute."""
    norm = value.flatten(1).norm(dim=1)
    return torch.where(norm > 0, norm, 1)


def by_image(value: Tensor, images: Tensor) -> Tensor:
    """(batch, number): what belongs to each image, where a layer has cut them into parts that follow each other."""
    return value.reshape(len(images), -1) if value.numel() % len(images) == 0 else value.reshape(1, -1)


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
    output: Interval,
    start: Tensor,
    box: Interval,
    *,
    affine: bool,
    rounds: int,
    iterations: int,
    patience: int | None = None,
    damping: float = DAMPING,
) -> Solution:
    """The x near `start` that violates what is known of apply(x), and of x itself, least.

    Minimises ||excess of apply(x)||^2 + ||excess of x over its box||^2. Each round solves the damped equations of
    those entries that are equations, or inequalities violated now; the damping falls as rounds succeed (Levenberg,
    Marquardt), so that what the equations determine is found exactly and what they leave open stays as at the start.

    Args:
        apply: a differentiable function of batches.
        output: what is known of apply(x).
        start: (batch, ...), where to begin.
        box: what is known of x.
        affine: `apply` is linear but for a constant, which needs fewer derivatives.
        rounds: at most so many; it ends sooner when one gains little.
        iterations: of conjugate gradients in each round.
        patience: after so many rounds each has to gain half a digit; None for never.
        damping: of the first round, relative to the mean squared gain of the map.
    """
    x = start
    scale = length(by_image(output.clamp(torch.zeros_like(output.lower)), x))
    images = (-1, *(1,) * (x.dim() - 1))
    origin = apply(torch.zeros_like(x)) if affine else None

    def violation(x: Tensor, y: Tensor) -> Tensor:
        return by_image(output.excess(y), x).square().sum(1) + by_image(box.excess(x), x).square().sum(1)

    y, pull = _vjp(apply, x)
    error = violation(x, y)
    # Rademacher signs: their image has the length of the Jacobian's rows.
    signs = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0)).to(x) * 2 - 1
    gain = by_image(_push(apply, x, signs, origin), x).square().sum(1)
    damped = damping * gain.view(images) / squares(signs)
    done = 0
    for done in range(1, rounds + 1):
        excess, outside = output.excess(y), box.excess(x)
        rows = (output.exact | (excess != 0)).to(x.dtype)
        places = (outside != 0).to(x.dtype)
        normal = _normal_equations(partial(_push, apply, x, origin=origin), pull, rows, places, damped)
        step = conjugate_gradients(normal, -(pull(excess)[0] + outside), iterations)
        before = error
        for shrink in (1.0, 0.3, 0.1):
            better = x + shrink * step
            y_better, pull_better = _vjp(apply, better)
            error_better = violation(better, y_better)
            if (error_better <= before).all() or shrink == 0.1:
                break
        good = (error_better < before).view(images)
        damped = torch.where(good, damped * (0.03 if shrink == 1.0 else 1.0), damped * 10)
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


def _normal_equations(push: Map, pull: Pull, rows: Tensor, places: Tensor, damping: Tensor) -> Map:
    """The map v -> J^T R J v + P v + damping v, with R the rows and P the places that count."""
    return lambda v: pull(rows * push(v))[0] + places * v + damping * v


def _vjp(apply: Map, x: Tensor) -> tuple[Tensor, Pull]:
    """The value at x, and the transposed derivative there; zero where the layer cuts it off."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = apply(x)
    if not y.requires_grad:
        return y, lambda _: (torch.zeros_like(x),)
    return y.detach(), lambda u: torch.autograd.grad(y, x, u, retain_graph=True, materialize_grads=True)


def _push(apply: Map, x: Tensor, v: Tensor, origin: Tensor | None) -> Tensor:
    """The derivative of `apply` at x in the direction v: of layers without a forward mode by central differences."""
    if origin is not None:
        return apply(v) - origin
    try:
        with _plain_attention():
            return torch.func.jvp(apply, (x,), (v,))[1]
    except (NotImplementedError, RuntimeError):
        width = torch.finfo(x.dtype).eps ** (1 / 3) * length(x).max() / length(v).max()
        return (apply(x + width * v) - apply(x - width * v)) / (2 * width)


@ProcessSetting
def _plain_attention() -> Iterator[None]:
    """Attention step by step: fused, it has no forward mode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
