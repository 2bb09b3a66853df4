"""Derivatives as formulas that PyTorch can differentiate further, whose values come from elsewhere.

With P = A^+, Q = P', G = (A'A)^+ and D = (AA')^+, a change dA of the map changes what it is applied to by

    dP y = -P dA x + G dA' (y - A x) + (1 - P A) dA' D y,    x = P y,

and that of Q is the same with A and A', P and Q, G and D changed for each other.  Without damping G = P Q and D = Q P;
with damping d they are the inverses of A'A + d^2 and AA' + d^2, and the last two terms are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from invconv.checks import check_image, check_weight, compute_dtype
from invconv.engine import extremes, transposed
from invconv.engine.convolution import Convolution
from invconv.engine.kernels import kernel_to_blocks
from invconv.engine.precision import exactly
from invconv.engine.spectrum import Grid, multiplicity
from invconv.errors import InputError
from invconv.geometry import Geometry
from invconv.operator import ConvOperator
from invconv.options import DEFAULTS, Options
from invconv.threads import cached_property


class Operators:
    """The operator of whatever weight comes, for one geometry, image size and options.

    What the values of a weight are, a transform of `torch.func` shows inside of functions only, which ask here.

    Args:
        weight: one such weight, for its shape and dtype.
        geometry: of the convolution.
        input_size: spatial size of its images.
        options: how the inverse is computed.
        get: makes the operator of a weight, or finds one that is kept; None for `ConvOperator`.
    """

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        input_size: Sequence[int],
        options: Options = DEFAULTS,
        get: Callable[..., ConvOperator] | None = None,
    ) -> None:
        check_weight(weight, geometry, visible=False)
        self.options = options
        self.map = transposed.map_of(weight, geometry, input_size)
        self._get = get or ConvOperator
        self._latest: ConvOperator | None = None
        self.is_fixed = False
        self.outputs: torch.dtype | None = None
        """The dtype of the caller's y; None for that of the operator."""
        self.terms = (False, False)
        """Whether the gradient by the kernel has its second and third term, for any of the weights that came."""

    @classmethod
    def of(cls, operator: ConvOperator) -> Operators:
        """The operator that is at hand, whatever weight comes."""
        operators = cls(operator.source, operator.geometry, operator.input_size, operator.options)
        operators._latest = operator
        return operators.fixed()

    def fixed(self) -> Operators:
        """The operator that was asked for last, whatever weight comes: another thread may write into that."""
        twin = copy(self)
        twin.is_fixed = True
        return twin

    def check_open(self) -> None:
        """Raise InputError if several weights come, and there is an operator of one."""
        if self.is_fixed:
            raise InputError(
                f"{self._latest!r} is of one weight, torch.func.vmap gives several: use the verbs of a layer, or "
                "invconv.functional.conv_inverse and the like"
            )

    def __call__(self, weight: Tensor) -> ConvOperator:
        """The operator of a weight, given in the dtype that is computed in."""
        latest = self._latest
        if latest is None or not (self.is_fixed or torch.equal(latest.weight, weight)):
            source = weight.to(self.map.dtype)
            self._latest = latest = self._get(source, self.map.geometry, self.map.input_size, self.options)
        return latest

    def inverse(self, y: Tensor, weight: Tensor, turned: bool) -> Tensor:
        """A^+ y, or (A^+)' y if it is turned round."""
        operator = self(weight)
        operator.prepare(self.outputs)
        x = operator.pseudo_inverse_adjoint(y) if turned else operator.pseudo_inverse(y)
        second, third = operator.solver.terms
        self.terms = (second or self.terms[0], third or self.terms[1])
        return x

    def gradients(self, y: Tensor, x: Tensor | None, grad: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of <grad, A^+ y> by y and by the kernel; x is A^+ y, None if it is not at hand."""
        operator = self(weight)
        return operator.pseudo_inverse_gradient(y, operator.pseudo_inverse(y) if x is None else x, grad)

    def check_output(self, y: Tensor) -> Tensor:
        """`y` in the dtype that is computed in, if A^+ can be applied to it."""
        weight = self.map.weight.to(compute_dtype(self.map.dtype))
        return check_image("y", y, self.map.out_channels, self.map.output_size, weight)


Inverse = Callable[[Tensor, Tensor, Operators, bool], Tensor]


@dataclass(frozen=True)
class Inverses:
    """The maps P, Q, G and D of one weight, with derivatives.

    Args:
        inverse: P, or Q if its last argument is true.
        weight: the kernel.
        operators: give the values.
        damping: a tensor of one number where derivatives by it are wanted; None for the number that `operators` have.
    """

    inverse: Inverse
    weight: Tensor
    operators: Operators
    damping: Tensor | None = None

    @property
    def _d(self) -> Any:
        return self.operators.options.damping if self.damping is None else self.damping.to(self.weight.dtype)

    @cached_property
    def conv(self) -> Convolution:
        """A."""
        return replace(self.operators.map, weight=self.weight)

    def P(self, y: Tensor) -> Tensor:  # noqa: N802
        """A^+ y."""
        return self.inverse(y, self.weight, self.operators, False)

    def Q(self, x: Tensor) -> Tensor:  # noqa: N802
        """(A^+)' x."""
        return self.inverse(x, self.weight, self.operators, True)

    def G(self, x: Tensor) -> Tensor:  # noqa: N802
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        d = self._d
        return (x - self.P(self.conv.forward(x))) / d**2 if self.operators.options.damping else self.P(self.Q(x))

    def D(self, y: Tensor) -> Tensor:  # noqa: N802
        """(AA')^+ y, or (AA' + d^2)^-1 y."""
        d = self._d
        return (y - self.conv.forward(self.P(y))) / d**2 if self.operators.options.damping else self.Q(self.P(y))

    def by_weight(self, g: Tensor, y: Tensor) -> Tensor:
        """The gradient of <g, A^+ y> by the kernel."""
        conv, x, z = self.conv, self.P(y), self.Q(g)
        gradient = -conv.weight_gradient(x, z)
        second, third = self.operators.terms
        if second:
            gradient = gradient + conv.weight_gradient(self.G(g), y - conv.forward(x))
        if third:
            gradient = gradient + conv.weight_gradient(g - conv.adjoint(z), self.D(y))
        return gradient

    def change(self, y: Tensor, tangent: Tensor, turned: bool) -> Tensor:
        """What A^+ y, or (A^+)' y if it is turned round, changes by where the kernel changes along `tangent`."""
        conv, moved = self.conv, replace(self.conv, weight=tangent)
        maps: Any = self.P, self.G, self.D, conv.forward, moved.forward, moved.adjoint
        turned_maps: Any = self.Q, self.D, self.G, conv.adjoint, moved.adjoint, moved.forward
        P, G, D, A, dA, dAt = turned_maps if turned else maps
        x = P(y)
        change: Tensor = -P(dA(x))
        second, third = reversed(self.operators.terms) if turned else self.operators.terms
        if second:
            change = change + G(dAt(y - A(x)))
        if third:
            unseen = dAt(D(y))
            change = change + unseen - P(A(unseen))
        return change


def log_volume(weight: Tensor, operators: Operators) -> Tensor:
    """The log-volume 1/2 log det(A'A), or of AA', from the determinants of its blocks or of the whole matrix.

    Raises:
        InputError: where that matrix is too large; it is for second derivatives alone.
    """
    conv = replace(operators.map, weight=weight.double()).untransposed
    with exactly(weight.device):
        if conv.is_cyclic:
            grid = Grid(conv.geometry, conv.input_size)
            volumes = _volumes(kernel_to_blocks(conv.weight, grid)) * multiplicity(grid, conv.device)
            return volumes.sum().to(weight.dtype)
        rows, columns = conv.shape
        if not extremes.is_small(conv):
            raise InputError(
                f"second derivatives of a log-volume at borders that do not wrap need the {rows} x {columns} matrix, "
                "which is too large: take them on a smaller image, or at circular borders"
            )
        return _volumes(conv.to_dense()).to(weight.dtype)


def _volumes(matrices: Tensor) -> Tensor:
    """The log-volume of each of some matrices."""
    rows, columns = matrices.shape[-2:]
    if rows == columns:
        volumes: Tensor = torch.linalg.slogdet(matrices).logabsdet
    else:
        tall = matrices if rows > columns else matrices.mH
        volumes = 0.5 * torch.linalg.slogdet(tall.mH @ tall).logabsdet
    return volumes


def singular_values(weight: Tensor, operators: Operators, k: int | None) -> Tensor:
    """All singular values, or the k largest and smallest, of a cyclic layer or of a small one."""
    conv = replace(operators.map, weight=weight.double()).untransposed
    with exactly(weight.device):
        values = extremes.all_values(conv)
    return (values if k is None else torch.cat([values[:k], values[-k:]])).to(weight.dtype)


def spectral_norm(weight: Tensor, operators: Operators) -> Tensor:
    """The largest singular value, from all of them."""
    return _of_all(weight, operators)[0]


def smallest_singular_value(weight: Tensor, operators: Operators) -> Tensor:
    """The smallest singular value, from all of them."""
    return _of_all(weight, operators)[-1]


def condition_number(weight: Tensor, operators: Operators) -> Tensor:
    """The ratio of the largest and the smallest singular value, from all of them."""
    values = _of_all(weight, operators)
    return values[0] / values[-1]


def _of_all(weight: Tensor, operators: Operators) -> Tensor:
    """All singular values; InputError where they are out of reach: it is for second derivatives alone."""
    conv = operators.map
    if not extremes.is_decomposed(conv):
        rows, columns = conv.shape
        raise InputError(
            f"second derivatives of a singular value at borders that do not wrap need the {rows} x {columns} matrix, "
            "which is too large: take them on a smaller image, or at circular borders"
        )
    return singular_values(weight, operators, None)
