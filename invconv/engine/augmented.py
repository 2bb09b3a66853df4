"""A map with d times the identity beside it, B' = [A' d]: whatever A is, it reaches every image.

B'w = b,  |w| least:      w = [z; t],      z = A (A'A + d^2)^-1 b,      t = d (A'A + d^2)^-1 b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from invconv.engine.convolution import Convolution
from invconv.engine.preconditioner import Linear, Root
from invconv.geometry import Size


@dataclass(frozen=True, eq=False)
class Augmented:
    """L'B' and its transpose, as `run_lsmr` takes them; w is one row.

    Args:
        apply: A'.
        transposed: A.
        damping: d.
        shapes: of z and of t, as images.
        root: L and L'.
    """

    apply: Linear
    transposed: Linear
    damping: float
    shapes: tuple[Size, Size]
    root: Root

    @classmethod
    def of(cls, conv: Convolution, damping: float, forward: bool, root: Root) -> Augmented:
        """The map with A' for A where `forward` is given."""
        if forward:
            return cls(conv.forward, conv.adjoint, damping, (conv.x_shape, conv.y_shape), root)
        return cls(conv.adjoint, conv.forward, damping, (conv.y_shape, conv.x_shape), root)

    def problem(
        self, b: Tensor, w: Tensor | None
    ) -> tuple[Callable[[Tensor], list[Tensor]], Callable[[Sequence[Tensor]], Tensor], list[Tensor], Size]:
        """What `run_lsmr` takes, to solve for what w leaves of b."""
        left = b if w is None else b - self.plain(w)
        return self.there, self.back, [self.root[1](left)], self.solution

    @property
    def solution(self) -> Size:
        """The shape of w."""
        return (sum(math.prod(shape) for shape in self.shapes),)

    def split(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """The z and t of w."""
        z, t = w.split([math.prod(shape) for shape in self.shapes], 1)
        return z.view(-1, *self.shapes[0]), t.view(-1, *self.shapes[1])

    def plain(self, w: Tensor) -> Tensor:
        """A'z + d t."""
        z, t = self.split(w)
        return self.apply(z) + self.damping * t

    def there(self, w: Tensor) -> list[Tensor]:
        """L'B'w."""
        return [self.root[1](self.plain(w))]

    def back(self, parts: Sequence[Tensor]) -> Tensor:
        """B L v."""
        b = self.root[0](parts[0])
        return torch.cat([self.transposed(b).flatten(1), self.damping * b.flatten(1)], 1)
