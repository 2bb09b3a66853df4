"""Linear maps that are computed by what PyTorch cannot differentiate: derivatives of all orders are the map itself.

f(y) = M y:      the derivative along t is M t,  the gradient by y is M' g.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd.forward_ad import unpack_dual

Map = Callable[[Tensor], Tensor]


def is_transformed(tensor: Tensor) -> bool:
    """Whether a transform of `torch.func` hides the values of a tensor."""
    return bool(is_functorch_wrapped_tensor(tensor))


def is_differentiated(*tensors: Tensor) -> bool:
    """Whether derivatives of these are to be kept, or `torch.func` hides their values."""
    recorded = torch.is_grad_enabled()
    return any(
        is_transformed(t) or (recorded and t.requires_grad) or unpack_dual(t).tangent is not None for t in tensors
    )


def linear(x: Tensor, there: Map, back: Map) -> Tensor:
    """M x, image by image, differentiable.

    Args:
        x: a batch of images.
        there: M.
        back: M'.
    """
    y: Tensor = _Linear.apply(x, there, back) if is_differentiated(x) else there(x)
    return y


class _Linear(torch.autograd.Function):
    """The function x -> M x."""

    @staticmethod
    def forward(x: Tensor, there: Map, _: Map) -> Tensor:
        return there(x).data  # no view of what was computed on the way, which could not be changed in place

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:  # noqa: ARG004
        _, ctx.there, ctx.back = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return linear(grad, ctx.back, ctx.there), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return linear(tangent, ctx.there, ctx.back)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], x: Tensor, there: Map, back: Map) -> tuple[Tensor, int]:  # noqa: ARG004
        return folded(x, in_dims[0], lambda images: linear(images, there, back)), 0


def folded(x: Tensor, axis: int, function: Map) -> Tensor:
    """A function of images for batches of batches of them: (..., batch, *image), the batches along `axis` first."""
    x = x.movedim(axis, 0)
    y: Tensor = function(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return y
