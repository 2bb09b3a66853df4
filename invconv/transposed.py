"""What the arguments of a transposed convolution mean: it is the adjoint of a convolution, from its outputs back.

The convolution's stride leaves open how large an image it came from, `output_padding` says which of them is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from invconv.errors import InputError
from invconv.geometry import Geometry, Size, as_tuple
from invconv.threads import cached_property


@dataclass(frozen=True)
class TransposedGeometry(Geometry):
    """That of a transposed convolution: of the convolution that goes back, and how large the images are that it makes.

    Args:
        output_padding: places by which the output is larger than it has to be, in each dimension.

    Example:
        >>> geometry = TransposedGeometry.of((3, 3), stride=2, padding=1).enlarged(1)
        >>> geometry.output_size((8, 8)), geometry.input_size((16, 16))
        ((16, 16), (8, 8))
    """

    output_padding: Size = ()

    @classmethod
    def of(cls, *args: Any, **arguments: Any) -> TransposedGeometry:
        """Read the arguments of `Geometry.of`, which are those of the convolution that goes back."""
        return cls.back(Geometry.of(*args, **arguments))

    @classmethod
    def back(cls, convolution: Geometry) -> TransposedGeometry:
        """The way back through a convolution, without output padding."""
        values = {field.name: getattr(convolution, field.name) for field in fields(Geometry)}
        return cls(**values, output_padding=(0,) * convolution.dims)

    def enlarged(self, output_padding: int | Sequence[int]) -> TransposedGeometry:
        """The geometry with another output padding, which is checked.

        Raises:
            InputError: if it is as large as both stride and dilation.
        """
        extra = as_tuple("output_padding", output_padding, self.dims, least=0)
        if any(o >= max(s, d) for o, s, d in zip(extra, self.stride, self.dilation, strict=True)):
            raise InputError(
                f"output_padding must be below stride {self.stride} or dilation {self.dilation}, got {extra}"
            )
        return replace(self, output_padding=extra)

    @cached_property
    def convolution(self) -> Geometry:
        """The convolution that goes back, from what this makes to what it is given.

        Raises:
            InputError: where an output padding of the stride and more adds places that no tap reaches.
        """
        # Of the images that make one output size, it has to read the larger ones no further than this goes.
        sides = zip(self.padding, self.output_padding, self.stride, strict=True)
        padding = tuple((left, right - extra // s * s) for (left, right), extra, s in sides)
        if any(right < 0 for _, right in padding):
            raise InputError(
                f"output_padding {self.output_padding} at stride {self.stride} and padding {self.padding} adds places "
                "that no tap reaches: leave them out, and pad the output"
            )
        return Geometry(self.kernel_size, self.stride, padding, self.dilation, self.groups, self.padding_mode)

    def check_input_size(self, size: Sequence[int]) -> Size:
        """`size` as a tuple, if `torch.nn.ConvTranspose*d` makes an image of it."""
        sizes = as_tuple("input_size", size, self.dims)
        outputs = self.output_size(sizes)
        if min(outputs) < 1:
            raise InputError(f"an image of size {sizes} with padding {self.padding} gives an output of size {outputs}")
        self.convolution.check_input_size(outputs)
        return sizes

    def output_size(self, input_size: Sequence[int]) -> Size:
        """Size of the output: (n - 1) stride - left - right + e + output_padding in each dimension."""
        sizes = zip(input_size, self.padding, self.extent, self.stride, self.output_padding, strict=True)
        return tuple((n - 1) * s - left - right + e + extra for n, (left, right), e, s, extra in sizes)

    def input_size(self, output_size: Sequence[int]) -> Size:
        """The size of the image that an output of this size, or one larger by less than the stride, is made of."""
        outputs = as_tuple("output size", output_size, self.dims)
        sizes = self.convolution.output_size(outputs)
        if min(sizes) < 1:
            raise InputError(
                f"no image has an output of size {outputs}: the smallest is {self.output_size((1,) * self.dims)}"
            )
        return sizes

    def between(self, input_size: Sequence[int], output_size: Sequence[int]) -> TransposedGeometry:
        """The geometry with the output padding that makes this size of that one.

        Raises:
            InputError: where none does.
        """
        plain = replace(self, output_padding=(0,) * self.dims).output_size(input_size)
        extra = tuple(m - least for m, least in zip(output_size, plain, strict=True))
        most = tuple(max(s, d) - 1 for s, d in zip(self.stride, self.dilation, strict=True))
        if any(not 0 <= o <= limit for o, limit in zip(extra, most, strict=True)):
            raise InputError(
                f"an image of size {tuple(input_size)} has outputs of size {plain}, and up to {most} more with "
                f"output_padding, got {tuple(output_size)}"
            )
        return replace(self, output_padding=extra)

    def is_cyclic(self, input_size: Sequence[int]) -> bool:
        """Whether the layer is a block-circulant matrix, as the convolution that goes back is then."""
        return self.convolution.is_cyclic(self.output_size(input_size))
