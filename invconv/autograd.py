r"""Gradients of the pseudo-inverse and of the log-volume, by the factors that gave their values.

With x = A^+ y, g the gradient by x, and wgrad(a, b) the gradient of <b, conv(a, K)> by the kernel K:

$\mathrm{grad}_y = (A^+)' g, \qquad
   \mathrm{grad}_K = -\mathrm{wgrad}(x, (A^+)' g) + \mathrm{wgrad}((A'A)^+ g, y - A x)
                     + \mathrm{wgrad}(g - A^+ A g, (AA')^+ y)$

$\mathrm{grad}_K \log \mathrm{vol} A = \sum_i \mathrm{wgrad}(e_i, (A^+)' e_i), \qquad e_i \text{ the unit images}$

(Golub and Pereyra 1973, eq. 4.12). `invconv.operator` computes them; here they are told to `torch.autograd`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invconv.operator import ConvOperator


class _Once(torch.autograd.Function):
    """A gradient that knows what it depends on, so that a second derivative is refused rather than left out."""

    @staticmethod
    def forward(_: Any, gradient: Tensor, *_causes: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_: Any, *_grads: Tensor) -> Any:
        raise NotImplementedError(
            "the inverse and the log-determinant of a convolution have no second derivatives here: "
            "do not differentiate through their gradients (create_graph=True), or detach these"
        )


class _PseudoInverse(torch.autograd.Function):
    """The function x = A^+ y; the weight is passed for its gradient, its values are the operator's."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, weight: Tensor, operator: ConvOperator) -> Tensor:
        x = operator.pseudo_inverse(y)
        ctx.operator = operator
        ctx.save_for_backward(y, weight, x)
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, weight, x = ctx.saved_tensors
        operator: ConvOperator = ctx.operator
        grad_weight = None
        with torch.no_grad():
            if ctx.needs_input_grad[1]:
                grad_y, grad_weight = operator.pseudo_inverse_gradient(y, x, grad)
            else:
                grad_y = operator.pseudo_inverse_adjoint(grad)
        if torch.is_grad_enabled():
            grad_y = _Once.apply(grad_y, grad, weight)
            grad_weight = None if grad_weight is None else _Once.apply(grad_weight, grad, y, weight)
        return grad_y, grad_weight, None


class _LogVolume(torch.autograd.Function):
    """The log-volume of A; its gradient is the pseudo-inverse, which the operator keeps for `inverse` as well."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, operator: ConvOperator) -> Tensor:
        ctx.operator = operator
        ctx.save_for_backward(weight)
        return operator.log_volume()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        with torch.no_grad():
            gradient = grad * ctx.operator.log_volume_gradient()
        return _Once.apply(gradient, grad, *ctx.saved_tensors) if torch.is_grad_enabled() else gradient, None


def pseudo_inverse(y: Tensor, weight: Tensor, operator: ConvOperator) -> Tensor:
    """The pseudo-inverse A^+ y, differentiable in y and in the weight that `operator` was made from; in y's dtype."""
    images = operator.check_output(y)
    operator.prepare(y.dtype)
    # The casts are outside the function, so that autograd turns them round.
    x: Tensor = _PseudoInverse.apply(images, weight.to(operator.dtype), operator)
    return x.to(y.dtype)


def log_volume(weight: Tensor, operator: ConvOperator) -> Tensor:
    """The log-volume 1/2 log det(A'A), or of AA', in nats, differentiable in the weight `operator` was made from."""
    volume: Tensor = _LogVolume.apply(weight.to(operator.dtype), operator)
    return volume
