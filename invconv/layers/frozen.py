"""The inverse of a layer as it is now, on images of one size, as a module that can be exported: x = A^+ (y - bias)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.kernel import whole

MOST_ENTRIES = 2**24
"""Entries up to which an inverse is written out as a matrix: 64 MiB in float32. Memory only, refused beyond."""


class FrozenInverse(nn.Module):
    r"""The inverse of a layer at its present weight, for `torch.export` and ONNX, with batches of any size.

    Args:
        conv: the layer; later changes of it change nothing here.
        input_size: spatial size of its images, or their shape.
        matrix: write the inverse out as a matrix, which everything can export, ONNX and TorchScript too; else the
            factors are exported, with `torch.export.export(..., strict=False)`, from PyTorch 2.7 on and, before 2.14,
            with `Dim.AUTO` for the size of the batch. LSMR and the sparse LU, which run in
            SciPy, and the symmetric ring, which refines until it is exact, are exported as a matrix only.

    Shape:
        - y: (batch, out_channels, \*output_size)
        - x: (batch, in_channels, \*input_size)

    Raises:
        InputError: for a matrix of more than 2^24 entries; for factors that cannot be exported.

    Example:
        >>> from invconv import InvertibleConv2d
        >>> conv = InvertibleConv2d(3, 3, 3, padding=1)
        >>> x = torch.randn(5, 3, 8, 8)
        >>> inverse = torch.jit.trace(FrozenInverse(conv, (8, 8), matrix=True), conv(x[:1]))
        >>> torch.allclose(inverse(conv(x)), x, atol=1e-5)
        True
    """

    bias: Tensor
    matrix: Tensor

    @torch.no_grad()
    def __init__(self, conv: InvertibleLayer, input_size: Sequence[int], matrix: bool = False) -> None:
        super().__init__()
        operator = conv.operator(input_size)
        outputs, inputs = operator.shape
        if matrix and outputs * inputs > MOST_ENTRIES:
            raise InputError(
                f"the inverse of the {outputs} x {inputs} layer has {outputs * inputs} entries, above the "
                f"{MOST_ENTRIES} that are written out as a matrix: use matrix=False, or a smaller image"
            )
        operator.prepare()
        if not (matrix or operator.solver.exports):
            raise InputError(
                f"the {outputs} x {inputs} layer is inverted by {operator.solver.name}, whose steps depend on values "
                "that an exported program has not yet: use matrix=True"
            )
        self.operator = operator if not matrix else None
        self.input_shape = (conv.in_channels, *operator.input_size)
        bias = torch.zeros(conv.out_channels) if conv.bias is None else whole(conv.bias)
        dims = (1,) * len(operator.input_size)
        self.register_buffer("bias", bias.to(operator.weight, copy=True).view(-1, *dims))
        if matrix:
            units = torch.eye(outputs, dtype=operator.dtype, device=operator.weight.device)
            images = units.view(outputs, operator.out_channels, *operator.output_size)
            self.register_buffer("matrix", operator.pseudo_inverse(images).flatten(1))

    def forward(self, y: Tensor) -> Tensor:
        """The image x of least norm among those that minimise ||conv(x) - y||, in the dtype of the layer."""
        y = y - self.bias
        if self.operator is not None:
            return self.operator.pseudo_inverse(y)
        x: Tensor = (y.flatten(1) @ self.matrix).unflatten(1, self.input_shape)
        return x
