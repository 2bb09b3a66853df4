"""Layers of one shape, taken together: their kernels in one call, their log-determinants in another.

Side by side they are one layer of as many groups.  In a flow, where the matrices are small and the calls many, four
take little more time so than one.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from invconv import functional
from invconv.engine.choice import joins
from invconv.engine.convolution import Convolution
from invconv.geometry import Size
from invconv.layers import InvertibleConv
from invconv.layers.cache import OperatorCache
from invconv.parametrizations import Bounded

SMALL = 2**14
"""Outputs of a layer with real borders up to which it is taken together with others."""


def kernels(layers: Sequence[InvertibleConv]) -> list[Tensor]:
    """`effective_weight()` of each; bounded kernels of one shape are computed together."""
    found: dict[int, Tensor] = {}
    for places in _alike([_bounded_kind(layer) or i for i, layer in enumerate(layers)]):
        if len(places) == 1:
            found[places[0]] = layers[places[0]].effective_weight()
            continue
        pairs = [_pair(layers[i]) for i in places]
        mixing, e = (torch.cat([getattr(pair, name) for pair in pairs]) for name in ("original0", "original1"))
        found.update(zip(places, pairs[0][0](mixing, e).chunk(len(places)), strict=True))
    return [found[i] for i in range(len(layers))]


class LogDets:
    """The sum of the log-determinants of some layers, kept by the value of their weights."""

    def __init__(self) -> None:
        self._cache = OperatorCache()
        self._sizes: list[Size] = []

    @torch.compiler.disable
    def log_abs_det(self, layers: Sequence[InvertibleConv], weights: Sequence[Tensor], sizes: Sequence[Size]) -> Tensor:
        """sum_i log |det A_i|, nats for one image; differentiable in the weights.

        The layers are left with their own parts of the factors, and need not compute them again for an inverse.
        """
        self._sizes = list(sizes)
        total = weights[0].new_zeros(())
        asked = zip(layers, weights, sizes, strict=True)
        kinds = [_group_kind(layer, w, size) or i for i, (layer, w, size) in enumerate(asked)]
        for places in _alike(kinds):
            first, size = layers[places[0]], sizes[places[0]]
            operator = None
            if len(places) > 1 and _pays(first, weights[places[0]], size):
                weight = torch.cat([weights[i] for i in places])
                geometry = replace(first.geometry, groups=first.groups * len(places))
                operator = self._cache.get(weight, geometry, size, first.options)
            # One layer whose ring is lost must not take the others from theirs.
            if operator is None or not operator.solver.joins:
                for i in places:
                    total = total + layers[i].log_abs_det(size, weight=weights[i])
                continue
            operator.check_square()
            known = operator.has_volume
            total = total + functional.log_volume(weight, operator)
            if not known:
                for i, part in zip(places, operator.split(len(places)), strict=False):
                    layers[i].adopt(part)
        return total

    @torch.no_grad()
    def refresh(self, layers: Sequence[InvertibleConv]) -> list[InvertibleConv]:
        """Compute now what was asked for last, and the inverses that the layers had at these sizes.

        Returns:
            the layers that were asked for nothing else.
        """
        if self._sizes and len(self._sizes) == len(layers):
            prepared = [size in layer.prepared_sizes() for layer, size in zip(layers, self._sizes, strict=True)]
            self.log_abs_det(layers, kernels(layers), self._sizes)
            for layer, size, wanted in zip(layers, self._sizes, prepared, strict=True):
                if wanted:
                    layer.refresh(size)
            return [layer for layer, size in zip(layers, self._sizes, strict=True) if layer.input_sizes() == [size]]
        return []

    def __deepcopy__(self, memo: object) -> LogDets:
        return LogDets()

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return LogDets, ()


def _alike(kinds: Sequence[Hashable]) -> list[list[int]]:
    """The places of equal kinds."""
    places: dict[Hashable, list[int]] = {}
    for i, kind in enumerate(kinds):
        places.setdefault(kind, []).append(i)
    return list(places.values())


def _pair(layer: InvertibleConv) -> Any:
    """W, E and the function from them to the kernel, as `torch.nn.utils.parametrize` holds them."""
    parametrizations: Any = layer.parametrizations
    return parametrizations.weight


def _bounded_kind(layer: InvertibleConv) -> Hashable:
    """Equal for layers whose bounded kernels can be computed together; None for those that stand alone."""
    if layer._forward_pre_hooks or not parametrize.is_parametrized(layer, "weight"):
        return None
    pair = _pair(layer)
    if len(pair) != 1 or type(pair[0]) is not Bounded:
        return None
    mixing, e = pair.original0, pair.original1
    return (layer.geometry, pair[0].rho, mixing.shape, e.shape, mixing.dtype, e.dtype, e.device)


def _group_kind(layer: InvertibleConv, weight: Tensor, size: Size) -> Hashable:
    """Equal for layers that can be one of several groups; None for those that stand alone."""
    # What does not fit, or is sharded, the layer itself complains of.
    if hasattr(weight, "full_tensor") or not layer.geometry.check_input_size(size):
        return None
    return (layer.geometry, layer.options, weight.shape, weight.dtype, weight.device, size)


def _pays(layer: InvertibleConv, weight: Tensor, size: Size) -> bool:
    """True for cyclic layers, and for rings where many calls, and not their work, take the time."""
    geometry = layer.geometry
    if geometry.is_cyclic(size):
        return True
    if weight.shape[0] * math.prod(geometry.output_size(size)) > SMALL:
        return False
    return joins(Convolution(weight, geometry, size), layer.options)
