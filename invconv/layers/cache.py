"""Operators kept by the value of the weight, so that none is stale: each serves while that is the layer's."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from invconv.geometry import Geometry, Size
from invconv.operator import ConvOperator, check_weight
from invconv.options import Options

MOST = 4
"""How many operators (image sizes, dtypes, devices) one layer keeps."""


class OperatorCache:
    """The latest operators used, at most `most` of them.

    What is kept is compared with the weight's values, because fused optimizers, `.data` writes and swapped weights
    leave no other trace.  Copies and pickles of a cache are empty: a copied layer makes operators anew.
    """

    def __init__(self, most: int = MOST) -> None:
        self.most = most
        self._lock = threading.Lock()
        self._operators: OrderedDict[Any, ConvOperator] = OrderedDict()

    def get(self, weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> ConvOperator:
        """The operator of this very weight, made where none is kept."""
        check_weight(weight, geometry)  # a sharded one cannot even be compared
        key = (geometry, input_size, options, weight.shape, weight.dtype, weight.device)
        with self._lock:
            operator = self._operators.get(key)
            if operator is None or not torch.equal(operator.source, weight.detach()):
                self._operators.pop(key, None)  # its memory is free before the next is made
                operator = ConvOperator(weight, geometry, input_size, options)
            self._keep(key, operator)
            return operator

    def adopt(self, operator: ConvOperator) -> None:
        """Keep an operator that was made elsewhere, in place of one of an earlier weight."""
        source = operator.source
        key = (operator.geometry, operator.input_size, operator.options, source.shape, source.dtype, source.device)
        with self._lock:
            self._keep(key, operator)

    def _keep(self, key: Any, operator: ConvOperator) -> None:
        self._operators[key] = operator
        self._operators.move_to_end(key)
        while len(self._operators) > self.most:
            self._operators.popitem(last=False)

    def stale(self, weight: Tensor) -> list[ConvOperator]:
        """The operators that are kept of an earlier weight."""
        with self._lock:
            return [
                op
                for op in self._operators.values()
                if op.source.dtype != weight.dtype
                or op.source.device != weight.device
                or not torch.equal(op.source, weight.detach())
            ]

    def sizes(self, prepared: bool = False) -> list[Size]:
        """The image sizes that were asked for, the latest first; or only those that an inverse was prepared for."""
        with self._lock:
            operators = [op for op in reversed(self._operators.values()) if op.ready or not prepared]
        return list(dict.fromkeys(op.input_size for op in operators))

    def __len__(self) -> int:
        return len(self._operators)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return OperatorCache, ()
