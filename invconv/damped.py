r"""Answers that hang on their damping d, with derivatives by it.

With $G = (A'A + d^2)^{-1}$, $D = (AA' + d^2)^{-1}$, $P = G A'$ and $Q = P'$, a change of d changes

$\mathrm{d} P = -2 d\, G P, \quad \mathrm{d} Q = -2 d\, D Q, \quad \mathrm{d} G = -2 d\, G G, \quad
\mathrm{d} D = -2 d\, D D$

so that derivatives of all orders are made of the factors of one d.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from invconv.errors import InputError
from invconv.linear import folded, is_differentiated, is_transformed
from invconv.scalars import real_number

Damping = float | Tensor
Map = Callable[[Tensor], Tensor]


def damping_value(damping: Any) -> float:
    """The value of a damping that has to be there: positive, a number or a tensor of one.

    Raises:
        InputError: for zero, negative or infinite numbers, tensors of several, and where `torch.func` hides the value.
    """
    value = damping
    if isinstance(damping, Tensor):
        if is_transformed(damping):
            raise InputError(
                "the damping decides what is factored, so that its value must be seen, which torch.func hides: "
                "differentiate by it with torch.autograd"
            )
        if damping.numel() != 1 or not damping.is_floating_point():
            kind = f"{damping.dtype} of shape {tuple(damping.shape)}"
            raise InputError(f"damping must be one positive number, got a tensor of {kind}")
        value = damping.item()
    number = real_number("damping", value, "be a finite number above 0", lambda v: 0 < v < math.inf, optional=False)
    assert number is not None
    return number


class Maps(NamedTuple):
    """The four maps of one d."""

    P: Map
    Q: Map
    G: Map
    D: Map


TRANSPOSED = {"P": "Q", "Q": "P", "G": "G", "D": "D"}
BEFORE = {"P": "G", "Q": "D", "G": "G", "D": "D"}
"""Which map stands before another in what that changes by."""


def damped(x: Tensor, damping: Tensor, maps: Maps, name: str) -> Tensor:
    """One of the maps applied to images, differentiable in these and in d."""
    if not is_differentiated(x, damping):
        value: Tensor = getattr(maps, name)(x)
        return value
    answer: Tensor = _Damped.apply(x, damping, maps, name)
    return answer


class _Damped(torch.autograd.Function):
    """The function (x, d) -> P x, Q x, G x or D x."""

    @staticmethod
    def forward(x: Tensor, damping: Tensor, maps: Maps, name: str) -> Tensor:  # noqa: ARG004
        value: Tensor = getattr(maps, name)(x).data
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG004
        x, damping, ctx.maps, ctx.name = inputs
        ctx.save_for_backward(x, damping)
        ctx.save_for_forward(x, damping)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, damping = ctx.saved_tensors
        back = damped(grad, damping, ctx.maps, TRANSPOSED[ctx.name]) if ctx.needs_input_grad[0] else None
        by_d = (grad * _slope(x, damping, ctx.maps, ctx.name)).sum() if ctx.needs_input_grad[1] else None
        return back, None if by_d is None else by_d.to(damping.dtype).view(damping.shape), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor | None, by_d: Tensor | None, *_: None) -> Tensor:
        x, damping = ctx.saved_tensors
        changes = [] if tangent is None else [damped(tangent, damping, ctx.maps, ctx.name)]
        if by_d is not None:
            changes.append(by_d.to(x.dtype) * _slope(x, damping, ctx.maps, ctx.name))
        return sum(changes[1:], changes[0])

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, damping: Tensor, maps: Maps, name: str) -> tuple[Tensor, int]:  # noqa: ARG004
        return folded(x, in_dims[0], lambda images: damped(images, damping, maps, name)), 0


def _slope(x: Tensor, damping: Tensor, maps: Maps, name: str) -> Tensor:
    """What a map of x changes by along d."""
    return -2 * damping.to(x.dtype) * damped(damped(x, damping, maps, name), damping, maps, BEFORE[name])
