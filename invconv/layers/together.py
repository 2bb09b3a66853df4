"""Layers of one shape, taken together: their kernels in one call, their log-determinants in another.

Side by side they are one layer of as many groups:  log |det diag(A_1, ..., A_n)| = sum_i log |det A_i|.  In a flow,
where the matrices are small and the calls many, four take little more time so than one.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from invconv.autograd import log_volume
from invconv.checks import check_square
from invconv.engine.choice import joins
from invconv.engine.convolution import Convolution
from invconv.geometry import Size
from invconv.layers import diagonal
from invconv.layers.cache import MOST, OperatorCache
from invconv.layers.conv import InvertibleConv
from invconv.layers.eager import eager
from invconv.layers.kernel import shared_kernels, shared_kind
from invconv.layers.shares import alone, summed
from invconv.linear import is_transformed

MOST_RING_OUTPUTS = 2**14
"""Outputs of a layer with real borders up to which it is taken together with others; speed only."""


def kernels(layers: Sequence[InvertibleConv]) -> list[Tensor]:
    """`effective_weight()` of each layer; shared kernels of one kind are computed together."""
    weights: dict[int, Tensor] = {}
    for places in _alike([shared_kind(layer) or i for i, layer in enumerate(layers)]):
        if len(places) == 1:
            weights[places[0]] = layers[places[0]].effective_weight()
        else:
            weights.update(zip(places, shared_kernels([layers[i] for i in places]), strict=True))
    return [weights[i] for i in range(len(layers))]


class TakesTogether(ABC):
    """A module that computes for several layers at once what each could compute alone.

    `invconv.keep_fresh` calls it before the layers themselves.
    """

    @abstractmethod
    def refresh(self) -> list[InvertibleConv]:
        """Compute now what is stale, for the image sizes that were last seen.

        Returns:
            the layers that need no refresh of their own: they were asked for nothing else.
        """


class LogDets:
    """The sum of the log-determinants of some layers, kept by the value of their weights."""

    def __init__(self) -> None:
        self._cache = OperatorCache()
        self._asked: list[tuple[InvertibleConv, Size]] = []

    @eager
    def log_abs_det(self, layers: Sequence[InvertibleConv], weights: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """The sum of log |det A_i|, nats for one image; differentiable in the weights.

        The layers are left with their own parts of the factors, and need not compute them again for an inverse.
        Processes that share log-determinants (`invconv.layers.shares`) compute some of them each.

        Args:
            layers: one or more layers; one may come several times.
            weights: `effective_weight()` of each layer.
            sizes: spatial size of the image that each layer sees.
        """
        asked: list[diagonal.Asked] = []
        at_once: list[diagonal.Asked] = []
        for each in zip(layers, weights, sizes, strict=True):
            (at_once if diagonal.is_diagonal(each[0]) else asked).append(each)
        total = diagonal.log_abs_det(at_once) if at_once else weights[0].new_zeros(())
        self._asked = []
        return total + summed(asked, self._sum) if asked else total

    def _sum(self, asked: Sequence[diagonal.Asked]) -> Tensor:
        """The sum for layers that have to be factored."""
        self._asked = [(layer, size) for layer, _, size in asked]
        groups = _alike([_group_kind(*each) or i for i, each in enumerate(asked)])
        self._cache.most = MOST * len(groups)
        sums = []
        for places in groups:
            members = [asked[i] for i in places]
            sums.append(self._group([m[0] for m in members], [m[1] for m in members], members[0][2]))
        return sum(sums[1:], sums[0])

    def _group(self, layers: Sequence[InvertibleConv], weights: Sequence[Tensor], size: Size) -> Tensor:
        """The sum for layers of one kind, as one layer of several groups where that pays."""
        first, count = layers[0], len(layers)
        if count > 1 and not is_transformed(weights[0]) and _pays(first, weights[0], size):
            weight = torch.cat(list(weights))
            operator = self._cache.get(
                weight, replace(first.geometry, groups=first.groups * count), size, first.options
            )
            # One whose ring is lost must not take the others from theirs, nor one that is far larger their digits.
            known = operator.has_volume
            if operator.scale.exponent == 0 and operator.joins:
                check_square(operator.shape)
                volume = log_volume(weight, operator)
                if not known:
                    for layer, part in zip(layers, operator.split(count), strict=False):
                        layer.adopt(part)
                return volume
        total = weights[0].new_zeros(())
        for layer, weight in zip(layers, weights, strict=True):
            total = total + layer.log_abs_det(size, weight=weight)
        return total

    @torch.no_grad()
    def refresh(self) -> list[InvertibleConv]:
        """Compute now what was asked for last, and the inverses that the layers had at these sizes.

        Returns:
            the layers that were asked for nothing else.
        """
        asked = self._asked
        if not asked:
            return []
        layers, sizes = [layer for layer, _ in asked], [size for _, size in asked]
        prepared = [size in layer.prepared_sizes() for layer, size in asked]
        with alone():  # these are the share of this process already
            self.log_abs_det(layers, kernels(layers), sizes)
        for (layer, size), wanted in zip(asked, prepared, strict=True):
            if wanted:
                layer.refresh(size)
        return [layer for layer, size in asked if layer.input_sizes() == [size]]

    def __deepcopy__(self, memo: object) -> LogDets:
        return LogDets()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return LogDets, ()


def _alike(kinds: Sequence[Hashable]) -> list[list[int]]:
    """The places of equal kinds."""
    firsts = [i for i, kind in enumerate(kinds) if kind not in kinds[:i]]
    return [[i for i, kind in enumerate(kinds) if kind == kinds[first]] for first in firsts]


def _group_kind(layer: InvertibleConv, weight: Tensor, size: Size) -> Hashable:
    """A key that is equal for layers that can be one of several groups; None for those that stand alone."""
    # What does not fit, or is sharded, the layer itself complains of.
    if hasattr(weight, "full_tensor") or not layer.geometry.check_input_size(size):
        return None
    return (layer.geometry, layer.options, weight.shape, weight.dtype, weight.device, size)


def _pays(layer: InvertibleConv, weight: Tensor, size: Size) -> bool:
    """True for cyclic layers, and for rings where many calls, and not their work, take the time."""
    geometry = layer.geometry
    if geometry.is_cyclic(size):
        return True
    if weight.shape[0] * math.prod(geometry.output_size(size)) > MOST_RING_OUTPUTS:
        return False
    return joins(Convolution(weight, geometry, size), layer.options)
