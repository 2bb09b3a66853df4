r"""The gradient of the pseudo-inverse by y and by the kernel, and how many of its digits rounding leaves.

grad_y = (A^+)' g,   grad_K = -wgrad(x, (A^+)' g) + wgrad((A'A)^+ g, y - A x) + wgrad(g - A^+ A g, (AA')^+ y)

The second term vanishes where A has full row rank, the third where it has full column rank (Golub and Pereyra 1973,
eq. 4.12).  With damping d the two, then with A'A + d^2 and AA' + d^2, are equal, and one is taken: of a wide A the
second is a product of about 1 / d^2 and d^2, and of a tall one the third.

The differences carry rounding errors e of the size of what is subtracted, and the inverse beside them is that of A'A:
of white noise, over as many places as the image has,

    |wgrad(u, e)|  =  |u| |e| sqrt(taps / (groups places)).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from invconv.engine.solvers.base import Solver, sizes
from invconv.geometry import Size

ROUNDINGS = 2.0
"""Rounding errors of a difference, in units of eps and of the size of what is subtracted.

With 1 in its place, estimates were 0.2 to 8 times the true errors of 200 gradients of random layers, half as a median.
"""


class Gradients(NamedTuple):
    """Gradients of <g, A^+ y>."""

    by_y: Tensor
    by_weight: Tensor
    error: float
    """Relative error of `by_weight` by the rounding of its differences; 0 where it has none."""


def gradients(solver: Solver, y: Tensor, x: Tensor, grad: Tensor) -> Gradients:
    """Gradients of <g, A^+ y> by y and by the kernel.

    Args:
        solver: of A.
        y: an output.
        x: A^+ y, perhaps rounded to fewer digits than y.
        grad: g, an input.
    """
    conv = solver.conv
    by_weight = conv.weight_gradient
    grad_y = solver.pseudo_inverse_adjoint(grad)
    gradient, lost = -by_weight(x.to(y.dtype), grad_y), 0.0
    second, third = solver.terms
    if second:
        x = x if x.dtype == y.dtype else solver.pseudo_inverse(y)  # what is left of y needs all digits
        gram, (rest, subtracted) = solver.gram_inverse(grad), solver.residual(y, x)
        gradient += by_weight(gram, rest)
        lost += _noise(subtracted, gram, conv.output_size)
    if third:
        gram, (rest, subtracted) = solver.dual_gram_inverse(y), solver.unseen(grad, grad_y)
        gradient += by_weight(rest, gram)
        lost += _noise(subtracted, gram, conv.input_size)
    taps = math.prod(conv.geometry.kernel_size) / conv.geometry.groups
    error = ROUNDINGS * torch.finfo(gradient.dtype).eps * math.sqrt(taps) * lost
    return Gradients(grad_y, gradient, error and error / float(gradient.norm()))


def _noise(subtracted: Tensor, gram: Tensor, places: Size) -> float:
    """The size of what noise in images of these sizes makes beside an inverse, in units of noise and taps."""
    return float((subtracted * sizes(gram)).norm()) / math.sqrt(math.prod(places))
