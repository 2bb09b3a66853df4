"""The oracle: the explicit matrix of `torch.nn.Conv*d` in float64, and how near to it an answer has to be.

Errors are relative and bounded by CONSTANT * eps * condition number; the first-order theory has the same form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import torch
from tables import PLAIN, Case
from torch import Tensor

CONSTANT = 50
EPS = torch.finfo(torch.float64).eps
RANK_TOLERANCE = 1e-11


def plain(conv: Any, images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the plain `torch.nn` layer of the geometry of `conv` makes of images, with this weight and bias."""
    layer = PLAIN[images.dim() - 2](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        bias=bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    values = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    return torch.func.functional_call(layer, values, images)


def dense(conv: Any, size: tuple[int, ...], weight: Tensor | None = None) -> Tensor:
    """The explicit matrix of the plain `torch.nn` layer, from unit images; by default of the weight in float64."""
    weight = conv.weight.detach().double() if weight is None else weight
    count = conv.in_channels * math.prod(size)
    images = torch.eye(count, dtype=weight.dtype).view(count, conv.in_channels, *size)
    return plain(conv, images, weight).flatten(1).T


def relative(error: Tensor, to: Tensor) -> float:
    """||error|| / ||to||."""
    return (torch.linalg.norm(error) / torch.linalg.norm(to)).item()


@dataclass(frozen=True, eq=False)
class Matrix:
    """A, written out."""

    a: Tensor

    @cached_property
    def values(self) -> Tensor:
        """All singular values, descending."""
        return torch.linalg.svdvals(self.a)

    @cached_property
    def rank(self) -> int:
        return int((self.values > RANK_TOLERANCE * self.values[0]).sum())

    @property
    def full(self) -> bool:
        return self.rank == len(self.values)

    @property
    def condition(self) -> float:
        """Largest over smallest singular value that is kept."""
        return (self.values[0] / self.values[self.rank - 1]).item()

    @property
    def bound(self) -> float:
        """Relative error that an answer may have."""
        return CONSTANT * EPS * self.condition

    @cached_property
    def pinv(self) -> Tensor:
        return torch.linalg.pinv(self.a, rtol=RANK_TOLERANCE)

    def tikhonov(self, damping: float) -> Tensor:
        """(A'A + d^2)^-1 A'."""
        return torch.linalg.solve(self.gram(damping), self.a.T)

    def gram(self, damping: float) -> Tensor:
        """A'A + d^2."""
        return self.a.T @ self.a + damping**2 * torch.eye(self.a.shape[1], dtype=torch.float64)


@cache
def matrix_of(case: Case) -> Matrix:
    """The matrix of the layer of a case."""
    return Matrix(dense(case.layer(), case.size))


def volume_gradient(conv: Any) -> Tensor:
    """The gradient of 1/2 log det(A'A), or of AA', by the kernel: that of the dense matrix, by autograd.

    conv: an `invconv.engine.convolution.Convolution`.
    """
    weight = conv.weight.detach().clone().requires_grad_()
    with torch.enable_grad():
        a = replace(conv, weight=weight).to_dense()
        gram = a.T @ a if a.shape[0] >= a.shape[1] else a @ a.T
        if a.shape[0] == a.shape[1]:
            return torch.autograd.grad(torch.linalg.slogdet(a).logabsdet, weight)[0]
        return torch.autograd.grad(0.5 * torch.linalg.slogdet(gram).logabsdet, weight)[0]


def solution(conv: Any, y: Tensor, weight: Tensor, bias: Tensor, damping: float = 0.0) -> Tensor:
    """A^+ (y - bias), or with damping that of Tikhonov, from the matrix; PyTorch has its gradients by all three.

    conv: an `invconv.engine.convolution.Convolution`, whose weight is replaced.
    """
    a = replace(conv, weight=weight).to_dense()
    right = (y - bias.view(-1, *(1,) * (y.dim() - 2))).flatten(1).T
    if damping:
        x = torch.linalg.solve(a.T @ a + damping**2 * torch.eye(a.shape[1], dtype=a.dtype), a.T @ right)
    else:
        x = torch.linalg.pinv(a) @ right
    return x.T.view(-1, *conv.x_shape)


def damped(conv: Any, y: Tensor, grad: Tensor, damping: float) -> tuple[Tensor, Tensor, Tensor]:
    """(A'A + d^2)^-1 A' y, and the gradients of <grad, that> by y and by the kernel, from the SVD of the matrix.

    With u = (A'A + d^2)^-1 g and r = y - A x the gradient by the kernel is  wgrad(d u, r / d) - wgrad(x, A u),  and
    nothing cancels where the d of both are drawn into the singular values.

    conv: an `invconv.engine.convolution.Convolution`.
    """
    conv = conv.to(torch.float64)
    u, s, vh = torch.linalg.svd(conv.to_dense())
    rows, columns = conv.shape
    right, left = (torch.cat([s, s.new_zeros(count - len(s))]) for count in (columns, rows))
    y, grad = y.double().flatten(1), grad.double().flatten(1)
    kept = s / (s**2 + damping**2)
    x = ((y @ u)[:, : len(s)] * kept) @ vh[: len(s)]
    by_y = ((grad @ vh.T)[:, : len(s)] * kept) @ u[:, : len(s)].T
    unseen = (grad @ vh.T * (damping / (right**2 + damping**2))) @ vh
    rest = (y @ u * (damping / (left**2 + damping**2))) @ u.T
    x, unseen = x.view(-1, *conv.x_shape), unseen.view(-1, *conv.x_shape)
    by_y, rest = by_y.view(-1, *conv.y_shape), rest.view(-1, *conv.y_shape)
    return x, by_y, conv.weight_gradient(unseen, rest) - conv.weight_gradient(x, by_y)
