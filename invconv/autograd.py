r"""Derivatives of the pseudo-inverse, the log-volume and the singular values, by the factors that gave their values.

With x = A^+ y, g the gradient by x, and wgrad(a, b) the gradient of <b, conv(a, K)> by the kernel K:

$\mathrm{grad}_y = (A^+)' g, \qquad
   \mathrm{grad}_K = -\mathrm{wgrad}(x, (A^+)' g) + \mathrm{wgrad}((A'A)^+ g, y - A x)
                     + \mathrm{wgrad}(g - A^+ A g, (AA')^+ y)$

$\mathrm{grad}_K \log \mathrm{vol} A = \sum_i \mathrm{wgrad}(e_i, (A^+)' e_i), \qquad e_i \text{ the unit images}$

(Golub and Pereyra 1973, eq. 4.12). `invconv.operator` computes them; here they are told to `torch.autograd` and to
`torch.func`. Further derivatives are those of `invconv.formulas`, made of A^+, its transpose and convolutions again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from invconv import formulas
from invconv.checks import check_square, compute_dtype
from invconv.engine import extremes, supremum
from invconv.engine.precision import exactly
from invconv.formulas import Inverses, Operators
from invconv.geometry import Geometry
from invconv.linear import folded, is_differentiated, is_transformed
from invconv.operator import ConvOperator


class _PseudoInverse(torch.autograd.Function):
    """The function x = A^+ y, or (A^+)' y if it is turned round; linear in y."""

    @staticmethod
    def forward(y: Tensor, weight: Tensor, operators: Operators, turned: bool) -> Tensor:
        # No view of what was computed on the way, which could not be changed in place.
        return operators.inverse(y, weight, turned).data

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        y, weight, operators, ctx.turned = inputs
        _keep(ctx, (y, weight), operators, output)
        # Not among what is saved, so that the caller may change it in place: then it is computed again.
        ctx.x = None if ctx.turned or is_transformed(output) else output.detach()
        ctx.version = None if ctx.x is None else ctx.x._version  # noqa: SLF001

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, weight = ctx.saved_tensors
        operators, turned, by_weight = ctx.operators, ctx.turned, ctx.needs_input_grad[1]
        if by_weight and not (turned or torch.is_grad_enabled()):
            x = None if ctx.x is None or ctx.x._version != ctx.version else ctx.x  # noqa: SLF001
            return *operators.gradients(y, x, grad, weight), None, None
        grad_y = _pseudo_inverse(grad, weight, operators, not turned)
        pair = (y, grad) if turned else (grad, y)
        return grad_y, _ByWeight.apply(*pair, weight, operators) if by_weight else None, None, None

    @staticmethod
    def jvp(ctx: Any, y_tangent: Tensor | None, weight_tangent: Tensor | None, *_: None) -> Tensor:
        y, weight = ctx.saved_tensors
        operators, turned = ctx.operators, ctx.turned
        with exactly(y.device):
            changes = []
            if y_tangent is not None:
                changes.append(_pseudo_inverse(y_tangent, weight, operators, turned))
            if weight_tangent is not None:
                changes.append(Inverses(_pseudo_inverse, weight, operators).change(y, weight_tangent, turned))
            return sum(changes[1:], changes[0])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, y: Tensor, weight: Tensor, operators: Operators, turned: bool
    ) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            return one_by_one(_PseudoInverse, info, in_dims, y, weight, operators, turned)
        return folded(y, in_dims[0], lambda images: _pseudo_inverse(images, weight, operators, turned)), 0


def _pseudo_inverse(y: Tensor, weight: Tensor, operators: Operators, turned: bool) -> Tensor:
    """A^+ y, or (A^+)' y if it is turned round, all in the dtype that is computed in."""
    if not is_differentiated(y, weight):
        return operators.inverse(y, weight, turned)
    x: Tensor = _PseudoInverse.apply(y, weight, operators, turned)
    return x


class _ByWeight(torch.autograd.Function):
    """The gradient of <g, A^+ y> by the kernel."""

    @staticmethod
    def forward(g: Tensor, y: Tensor, weight: Tensor, operators: Operators) -> Tensor:
        return operators.gradients(y, None, g, weight)[1]

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        *tensors, operators = inputs
        _keep(ctx, tensors, operators, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        turn_back = torch.func.vjp(partial(_by_weight, ctx.operators), *ctx.saved_tensors)[1]
        return *turn_back(grad), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor:
        return _directional(partial(_by_weight, ctx.operators), ctx.saved_tensors, tangents[:3])

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return one_by_one(_ByWeight, info, in_dims, *inputs)


def _by_weight(operators: Operators, g: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    with exactly(y.device):
        return Inverses(_pseudo_inverse, weight, operators).by_weight(g, y)


@dataclass(frozen=True)  # no tuple, which `torch.func.vmap` would look into
class Invariant:
    """A number that belongs to a weight."""

    value: Callable[[ConvOperator], Tensor]
    gradient: Callable[[ConvOperator], Tensor]
    formula: Callable[..., Tensor]
    """The number as PyTorch can differentiate it further, of a weight and its operators."""

    @classmethod
    def of(cls, name: str) -> Invariant:
        """The one of this name, which its value, its gradient and its formula share."""
        return cls(getattr(ConvOperator, name), getattr(ConvOperator, f"{name}_gradient"), getattr(formulas, name))


LOG_VOLUME = Invariant.of("log_volume")
"""Its gradient is the pseudo-inverse, which the operator keeps for `inverse` as well."""
LARGEST = Invariant.of("spectral_norm")
SMALLEST = Invariant.of("smallest_singular_value")
CONDITION = Invariant.of("condition_number")


class _Number(torch.autograd.Function):
    """An invariant of A as a function of the weight."""

    @staticmethod
    def forward(weight: Tensor, operators: Operators, invariant: Invariant) -> Tensor:
        return invariant.value(operators(weight))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        weight, operators, ctx.invariant = inputs
        _keep(ctx, (weight,), operators, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        return grad * _gradient(weight, ctx.operators, ctx.invariant), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        (weight,) = ctx.saved_tensors
        return (_gradient(weight, ctx.operators, ctx.invariant) * tangent).sum()

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return one_by_one(_Number, info, in_dims, *inputs)


def _gradient(weight: Tensor, operators: Operators, invariant: Invariant) -> Tensor:
    if not is_differentiated(weight):
        return invariant.gradient(operators(weight))
    formula = torch.func.grad(partial(invariant.formula, operators=operators))
    return _known(weight, operators, invariant.gradient, formula)


def _number(weight: Tensor, operators: Operators, invariant: Invariant) -> Tensor:
    weight = weight.to(compute_dtype(weight.dtype))
    if not is_differentiated(weight):
        return invariant.value(operators(weight))
    number: Tensor = _Number.apply(weight, operators, invariant)
    return number


class _Known(torch.autograd.Function):
    """What an operator knows of its weight, with the derivatives of a formula that gives the same."""

    @staticmethod
    def forward(weight: Tensor, operators: Operators, value: Callable[[ConvOperator], Tensor], _: Any) -> Tensor:
        return value(operators(weight)).to(weight.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        weight, operators, _, ctx.formula = inputs
        _keep(ctx, (weight,), operators, output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        turn_back = torch.func.vjp(ctx.formula, *ctx.saved_tensors)[1]
        return *turn_back(grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _directional(ctx.formula, ctx.saved_tensors, (tangent,))

    @staticmethod
    def vmap(info: Any, in_dims: Any, *inputs: Any) -> tuple[Tensor, int]:
        return one_by_one(_Known, info, in_dims, *inputs)


def _known(
    weight: Tensor, operators: Operators, value: Callable[[ConvOperator], Tensor], formula: Callable[[Tensor], Tensor]
) -> Tensor:
    known: Tensor = _Known.apply(weight, operators, value, formula)
    return known


def _keep(ctx: Any, tensors: Sequence[Tensor], operators: Operators, output: Tensor) -> None:
    """Keep for the derivatives what a function was called with, and the operator of just this weight if it is seen."""
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.operators = operators if is_transformed(output) else operators.fixed()


def one_by_one(function: Any, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
    """A batch of `torch.func.vmap`, one entry after the other: each weight has factors of its own."""
    for operators in inputs:
        if isinstance(operators, Operators):
            operators.check_open()
    rows = []
    for i in range(info.batch_size):
        row = (v if axis is None else v.select(axis, i) for v, axis in zip(inputs, in_dims, strict=True))
        rows.append(function.apply(*row))
    return torch.stack(rows), 0


def _directional(function: Any, at: tuple[Tensor, ...], tangents: tuple[Tensor | None, ...]) -> Tensor:
    """The derivative of a function along tangents, None for one that is zero."""
    along = tuple(torch.zeros_like(t) if d is None else d for t, d in zip(at, tangents, strict=True))
    derivative: Tensor = torch.func.jvp(function, at, along)[1]
    return derivative


def pseudo_inverse(y: Tensor, weight: Tensor, operator: ConvOperator | Operators) -> Tensor:
    """The pseudo-inverse A^+ y, differentiable in y and in the weight, which `operator` is of; in y's dtype."""
    operators = Operators.of(operator) if isinstance(operator, ConvOperator) else operator
    operators.outputs = y.dtype
    # The casts are outside the function, so that autograd turns them round.
    weight = weight.to(compute_dtype(weight.dtype))
    return _pseudo_inverse(operators.check_output(y), weight, operators, False).to(y.dtype)


def log_volume(weight: Tensor, operator: ConvOperator | Operators) -> Tensor:
    """The log-volume 1/2 log det(A'A), or of AA', in nats, differentiable in the weight, which `operator` is of."""
    operators = Operators.of(operator) if isinstance(operator, ConvOperator) else operator
    return _number(weight, operators, LOG_VOLUME)


def spectral_norm(weight: Tensor, operators: Operators) -> Tensor:
    """The largest singular value of A, differentiable in the weight."""
    return _number(weight, operators, LARGEST)


def smallest_singular_value(weight: Tensor, operators: Operators) -> Tensor:
    """The smallest singular value of A, differentiable in the weight."""
    return _number(weight, operators, SMALLEST)


def log_abs_det(weight: Tensor, operators: Operators) -> Tensor:
    """The log-determinant log |det A| of a square A, in nats, differentiable in the weight."""
    check_square(operators.map.shape)
    return log_volume(weight, operators)


def singular_values(weight: Tensor, operators: Operators, k: int | None = None) -> Tensor:
    """All singular values, or the k largest and the k smallest; differentiable where decomposed, or for k = 1."""
    extremes.check_count(operators.map.untransposed, k)
    weight = weight.to(compute_dtype(weight.dtype))
    if is_differentiated(weight) and extremes.is_decomposed(operators.map.untransposed):
        formula = partial(formulas.singular_values, operators=operators, k=k)
        return _known(weight, operators, lambda operator: operator.singular_values(k), formula)
    if is_differentiated(weight) and k == 1:
        return torch.stack([spectral_norm(weight, operators), smallest_singular_value(weight, operators)])
    return operators(weight).singular_values(k)


def norm_bound(weight: Tensor, geometry: Geometry) -> Tensor:
    """An upper bound of the norm of A on images of every size, differentiable in the weight; rounded upwards."""
    weight = weight.to(compute_dtype(weight.dtype))
    with exactly(weight.device):
        bound = supremum.supremum(weight, geometry)
    return (bound * (1 + 2 * torch.finfo(weight.dtype).eps)).to(weight.dtype)


def condition_number(weight: Tensor, operators: Operators) -> Tensor:
    """The ratio sigma_max / sigma_min of A, differentiable in the weight."""
    return _number(weight, operators, CONDITION)
