"""A `LinearOperator` of SciPy: the layer's matrix on flattened images, for the solvers of SciPy and of its users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor

from invconv.errors import InputError
from invconv.operator import ConvOperator


class ConvLinearOperator(LinearOperator):
    """`A @ x`, `A.H @ y`, and `A.inverse @ y`, which is A^+ y: each column a flattened image.

    Args:
        operator: of a layer, `conv.operator(size)`, or of a weight, `functional.conv_operator(weight, size)`. It holds
            a copy of the weight: after a change, ask the layer for it anew.

    Columns are computed in the dtype of the operator, whatever theirs, and on its device.

    Raises:
        InputError: if `operator` is no `ConvOperator`.

    Example:
        >>> from scipy.sparse.linalg import gmres
        >>> from invconv import InvertibleConv2d
        >>> A = ConvLinearOperator(InvertibleConv2d(2, 2, 3, padding=1).double().operator((8, 8)))
        >>> x = np.random.default_rng(0).normal(size=A.shape[1])
        >>> np.allclose(A.inverse @ (A @ x), x)
        True
        >>> solution, failed = gmres(A, A @ x, M=A.inverse, maxiter=1)
        >>> np.allclose(solution, x), failed
        (True, 0)
    """

    def __init__(self, operator: ConvOperator) -> None:
        if not isinstance(operator, ConvOperator):
            raise InputError(f"expected a ConvOperator, such as conv.operator(size), got {type(operator).__name__}")
        super().__init__(_numpy_dtype(operator), operator.shape)
        self.operator = operator

    @property
    def inverse(self) -> LinearOperator:
        """A^+, factored at its first use."""
        return _PseudoInverse(self.operator)

    def _matmat(self, x: Any) -> Any:
        return _of_inputs(self.operator.forward, x, self.operator)

    def _rmatmat(self, y: Any) -> Any:
        return _of_outputs(self.operator.adjoint, y, self.operator)

    _matvec, _rmatvec = _matmat, _rmatmat


class _PseudoInverse(LinearOperator):
    """The operator `A.inverse`, by the factors of a `ConvOperator`."""

    def __init__(self, operator: ConvOperator) -> None:
        super().__init__(_numpy_dtype(operator), operator.shape[::-1])
        self.operator = operator

    def _matmat(self, y: Any) -> Any:
        return _of_outputs(self.operator.pseudo_inverse, y, self.operator)

    def _rmatmat(self, x: Any) -> Any:
        return _of_inputs(self.operator.pseudo_inverse_adjoint, x, self.operator)

    _matvec, _rmatvec = _matmat, _rmatmat


def _of_inputs(function: Callable[[Tensor], Tensor], columns: Any, operator: ConvOperator) -> Any:
    return _of_columns(function, columns, (operator.in_channels, *operator.input_size), operator)


def _of_outputs(function: Callable[[Tensor], Tensor], columns: Any, operator: ConvOperator) -> Any:
    return _of_columns(function, columns, (operator.out_channels, *operator.output_size), operator)


def _of_columns(
    function: Callable[[Tensor], Tensor], columns: Any, shape: tuple[int, ...], operator: ConvOperator
) -> Any:
    """Apply a function of images to columns: (entries of an image,) or (entries, count)."""
    if np.iscomplexobj(columns):
        real, imaginary = (_of_columns(function, part, shape, operator) for part in (columns.real, columns.imag))
        return real + 1j * imaginary
    rows = np.array(columns.reshape(len(columns), -1).T, dtype=_numpy_dtype(operator), order="C")
    images = torch.from_numpy(rows).to(operator.weight.device).view(len(rows), *shape)
    return function(images).flatten(1).T.cpu().numpy()


def _numpy_dtype(operator: ConvOperator) -> np.dtype:
    return torch.empty(0, dtype=operator.dtype).numpy().dtype
