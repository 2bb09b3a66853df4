"""What is known of a tensor: for each entry, an interval that its value lies in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interval:
    """Bounds of a tensor, lower <= value <= upper, entry by entry.

    Equal ends are an equation, one finite end or two different ones an inequality, two infinite ones nothing.

    Example:
        >>> x = Interval(torch.tensor([1.0, -torch.inf]), torch.tensor([1.0, 0.0]))  # before ReLU gave 1 and 0
        >>> x.excess(torch.tensor([3.0, -5.0]))
        tensor([2., 0.])
        >>> x.equations, x.inequalities
        (1, 1)
    """

    lower: Tensor
    upper: Tensor

    @classmethod
    def point(cls, value: Tensor) -> Interval:
        """An interval of one point for each entry: all are known exactly."""
        return cls(value, value)

    @classmethod
    def between(cls, lower: float, upper: float, like: Tensor) -> Interval:
        """One interval for all entries of a tensor like this one."""
        return cls(torch.full_like(like, lower), torch.full_like(like, upper))

    def map(self, function: Callable[[Tensor], Tensor]) -> Interval:
        """The image of both ends: for increasing functions and for those that only move entries about."""
        if self.lower is self.upper:
            return Interval.point(function(self.lower))
        return Interval(function(self.lower), function(self.upper))

    def before(self, inverse: Callable[[Tensor], Tensor], low: float, high: float = math.inf) -> Interval:
        """What a function was given that rises from `low` to `high`: nothing is known where rounding has reached them.

        Args:
            inverse: of the function, between its ends.
            low, high: what it tends to and does not reach.
        """
        least, most = (torch.full((), end, dtype=self.lower.dtype, device=self.lower.device) for end in (low, high))
        inside, within = torch.nextafter(least, most), torch.nextafter(most, least)
        lower = torch.where(self.lower > least, inverse(self.lower.clamp(inside, within)), -math.inf)
        upper = torch.where(self.upper < most, inverse(self.upper.clamp(inside, within)), math.inf)
        return Interval(lower, upper)

    def scaled(self, scale: Tensor, shift: Tensor) -> Interval:
        """All scale v + shift with v in the interval: a negative scale changes the ends over."""
        a, b = self.lower * scale + shift, self.upper * scale + shift
        return Interval(torch.where(scale < 0, b, a), torch.where(scale < 0, a, b))

    def clamp(self, value: Tensor) -> Tensor:
        """The nearest value that is allowed."""
        return torch.minimum(torch.maximum(value, self.lower), self.upper)

    def excess(self, value: Tensor) -> Tensor:
        """How far `value` lies above (positive) or below (negative) what is allowed."""
        return value - self.clamp(value)

    @property
    def exact(self) -> Tensor:
        """Where the value itself is known."""
        return self.lower == self.upper

    @property
    def equations(self) -> int:
        """How many entries are known."""
        return int(self.exact.sum())

    @property
    def inequalities(self) -> int:
        """How many entries are bounded, but not known."""
        return int((~self.exact & (self.lower.isfinite() | self.upper.isfinite())).sum())
