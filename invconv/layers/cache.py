"""Operators kept by the value of the weight, so that none is stale: each serves while that is the layer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from invconv.checks import check_weight
from invconv.geometry import Geometry, Size
from invconv.operator import ConvOperator
from invconv.options import Options
from invconv.threads import new_lock

MOST = 4
"""How many operators (image sizes, dtypes, devices) one layer keeps."""


class OperatorCache:
    """The latest operators used, at most `most` of them.

    What is kept is compared with the weight's values, because fused optimizers, `.data` writes and swapped weights
    leave no other trace.  Copies and pickles of a cache are empty: a copied layer makes operators anew.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._lock = new_lock()
        # Replaced as a whole with each change: whoever looks, in a forked child too, sees it before or after.
        self._operators: dict[Any, ConvOperator] = {}

    def get(self, weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> ConvOperator:
        """The operator of this very weight, made where none is kept."""
        check_weight(weight, geometry)  # a sharded one cannot even be compared
        key = (geometry, input_size, options, weight.shape, weight.dtype, weight.device)
        with self._lock:
            operator = self._operators.get(key)
            if operator is None or not torch.equal(operator.source, weight.detach()):
                self._keep(key, None)  # its memory is free before the next is factored
                operator = ConvOperator(weight, geometry, input_size, options)
            if next(reversed(self._operators.values()), None) is not operator:
                self._keep(key, operator)
            return operator

    def adopt(self, operator: ConvOperator) -> None:
        """Keep an operator that was made elsewhere, unless one of the same weight has answered already."""
        source = operator.source
        key = (operator.geometry, operator.input_size, operator.options, source.shape, source.dtype, source.device)
        with self._lock:
            kept = self._operators.get(key)
            if kept is None or not (kept.ready or kept.has_volume) or not torch.equal(kept.source, source):
                self._keep(key, operator)

    def _keep(self, key: Any, operator: ConvOperator | None) -> None:
        """Publish the operators with this one as the latest; for None, without the one that was kept."""
        operators = dict(self._operators)
        operators.pop(key, None)
        if operator is not None:
            operators[key] = operator
        while len(operators) > self.most:
            del operators[next(iter(operators))]
        self._operators = operators

    def stale(self, weight: Tensor) -> list[ConvOperator]:
        """The operators that are kept of an earlier weight."""
        return [
            op
            for op in self._operators.values()
            if op.source.dtype != weight.dtype
            or op.source.device != weight.device
            or not torch.equal(op.source, weight.detach())
        ]

    def sizes(self, prepared: bool = False) -> list[Size]:
        """The image sizes that were asked for, the latest first; or only those that an inverse was prepared for."""
        operators = [op for op in reversed(self._operators.values()) if op.ready or not prepared]
        return list(dict.fromkeys(op.input_size for op in operators))

    def __len__(self) -> int:
        return len(self._operators)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OperatorCache, ()
