r"""Functions of a weight for transposed convolutions, the maps of `torch.nn.functional.conv_transpose1d` to `3d`.

$B x = A' x, \qquad B^+ y = (A^+)' y$

with A the convolution by the same weight. Singular values, condition and log-volume of B are those of A, of which
`invconv.functional` has functions: they are asked with the size of B's outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import Unpack

from invconv.arguments import Arguments, parse, spatial_size, without_bias
from invconv.autograd import pseudo_inverse
from invconv.errors import InputError
from invconv.formulas import Operators
from invconv.operator import ConvOperator
from invconv.transposed import TransposedGeometry


def conv_transpose_operator(
    weight: Tensor,
    input_size: Sequence[int],
    *,
    output_padding: int | Sequence[int] = 0,
    **arguments: Unpack[Arguments],
) -> ConvOperator:
    r"""The map x -> conv_transpose(x, weight) on images of spatial size `input_size` (a full shape is taken too).

    Args:
        weight: (in_channels, out_channels/groups, \*kernel_size).
        input_size: of x.
        output_padding: places by which the output is larger than it has to be.
        arguments: stride, padding, dilation, groups; the fields of `invconv.Options`. A `padding_mode` gives the
            transpose of a convolution with such borders.

    Raises:
        InputError: where PyTorch would make no image of this size, or `output_padding` is as large as the stride and
            the dilation.

    Example:
        >>> import torch
        >>> weight, x = torch.randn(4, 2, 2, 2).double(), torch.randn(1, 4, 5, 5).double()
        >>> op = conv_transpose_operator(weight, (5, 5), stride=2)
        >>> y = torch.nn.functional.conv_transpose2d(x, weight, stride=2)
        >>> torch.allclose(op.forward(x), y), torch.allclose(op.pseudo_inverse(y), x)
        (True, True)
    """
    plain, options = parse("conv_transpose_operator", weight, dict(arguments))
    geometry = TransposedGeometry.back(plain).enlarged(output_padding)
    return ConvOperator(weight, geometry, spatial_size(input_size, geometry.dims, weight.shape[0]), options)


def conv_transpose_inverse(
    y: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    output_size: Sequence[int] | None = None,
    **arguments: Unpack[Arguments],
) -> Tensor:
    r"""The image x of least norm among those that minimise ||conv_transpose(x, weight) + bias - y||.

    Args:
        y: (batch, out_channels, \*output size of the transposed convolution), with any output padding.
        weight: (in_channels, out_channels/groups, \*kernel_size).
        bias: (out_channels,) or None.
        output_size: spatial size of x, where an output padding of the stride and more leaves it open.
        arguments: stride, padding, dilation, groups, padding_mode; the fields of `invconv.Options`.

    Returns:
        x: (batch, in_channels, \*output_size), in the dtype of y; differentiable in y, weight and bias.

    Raises:
        InputError: if y or bias has another shape than the transposed convolution gives or takes.

    Example:
        >>> import torch
        >>> x, weight = torch.randn(1, 4, 5, 5).double(), torch.randn(4, 2, 3, 3).double()
        >>> y = torch.nn.functional.conv_transpose2d(x, weight, stride=2, padding=1, output_padding=1)
        >>> torch.allclose(conv_transpose_inverse(y, weight, stride=2, padding=1), x)
        True
    """
    plain, options = parse("conv_transpose_inverse", weight, dict(arguments))
    if not isinstance(y, Tensor):
        raise InputError(f"y must be a tensor, got {type(y).__name__}")
    geometry, outputs = TransposedGeometry.back(plain), tuple(y.shape[-plain.dims :])
    size = geometry.input_size(outputs) if output_size is None else output_size
    size = spatial_size(size, geometry.dims, weight.shape[0])
    operators = Operators(weight, geometry.between(size, outputs), size, options)
    operators.check_output(y)  # before the bias is taken off, which could broadcast a wrong shape into a right one
    return pseudo_inverse(without_bias(y, operators.map.out_channels, bias, geometry), weight, operators)
