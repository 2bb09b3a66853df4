"""Log-determinants of kernels that are triangular by construction:  log |det A| = places * log |det K_0|.

K_0 is the tap of the own pixel, which the layer's parametrization names (`SharedKernel.own_tap`). Nothing is factored
that an inverse could use, and the gradient is that of K_0 alone: the parametrization lets no other one through.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from invconv.checks import compute_dtype
from invconv.engine.blocks import BATCH_UP_TO_ROWS
from invconv.engine.elimination import eliminate, judge
from invconv.engine.precision import exactly
from invconv.geometry import Size
from invconv.layers.eager import eager
from invconv.layers.kernel import own_tap, whole
from invconv.linear import is_transformed

Asked = tuple[Any, Tensor, Size]
"""An invertible convolution, its `effective_weight()`, and the spatial size of the image that it sees."""


def is_diagonal(layer: Any) -> bool:
    """Whether the log-determinant of a layer is that of one tap, by construction."""
    return own_tap(layer) is not None


@eager
def log_abs_det(asked: Sequence[Asked]) -> Tensor:
    """The sum of log |det A_i| of layers that are `is_diagonal`, nats for one image; one call for each shape.

    Raises:
        SingularMapError: if an own tap is singular, or cannot be told from a singular one.
        InputError: for a size of an image that the layer cannot take.
    """
    total = asked[0][1].new_zeros((), dtype=compute_dtype(asked[0][1].dtype))
    taps = [_tap(layer, weight) for layer, weight, _ in asked]
    with exactly(total.device):
        for shape in dict.fromkeys(tap.shape for tap in taps):
            places = [i for i, tap in enumerate(taps) if tap.shape == shape]
            counts = [math.prod(asked[i][0].geometry.check_input_size(asked[i][2])) for i in places]
            volumes = _log_volumes(torch.stack([taps[i] for i in places]), max(counts), asked[0][1].dtype)
            total = total + (volumes @ volumes.new_tensor(counts)).to(total.dtype)
    return total


def _tap(layer: Any, weight: Tensor) -> Tensor:
    """K_0: (groups, outputs, inputs), float64."""
    tap: Tensor = whole(weight).flatten(2)[..., own_tap(layer)].double().unflatten(0, (layer.groups, -1))
    return tap


def _log_volumes(taps: Tensor, places: int, dtype: torch.dtype) -> Tensor:
    """log |det K_0| of each layer, (layers, groups, c, c) to (layers,)."""
    if not is_transformed(taps):
        with torch.no_grad():
            error = places * eliminate(taps).error.max().item()
        judge(error, "the layer is triangular, and the tap of its own pixel singular, or nearly so", dtype)
    batches = taps.flatten(0, 1).split(1 if taps.shape[-1] > BATCH_UP_TO_ROWS else len(taps) * taps.shape[1])
    volumes = torch.cat([torch.linalg.slogdet(batch).logabsdet for batch in batches])
    return volumes.view(taps.shape[:2]).sum(1)
