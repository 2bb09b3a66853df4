"""Where an invertible convolution starts: near an isometry, at a condition number of about 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import init

from invconv.geometry import Geometry


def centre_taps(geometry: Geometry) -> list[int]:
    """For each phase of the stride, the tap that reads it where the output stands, as flat indices.

    One tap for each of the `prod(stride)` phases makes a kernel that looks at every pixel once, and at no border: with
    stride 1 it is the centre tap.  Where no tap stands there, the one nearest to the kernel's centre is taken; phases
    that no tap reads are left out.
    """
    nearest: dict[tuple[int, ...], tuple[bool, float, int]] = {}
    for flat, (shift, phase) in enumerate(geometry.taps()):
        index, distance = flat, 0.0
        for k in reversed(geometry.kernel_size):
            index, u = divmod(index, k)
            distance += (u - (k - 1) / 2) ** 2
        candidate = (any(shift), distance, flat)
        nearest[phase] = min(nearest.get(phase, candidate), candidate)
    return [nearest[phase][-1] for phase in sorted(nearest)]


@torch.no_grad()
def near_isometry_(weight: Tensor, geometry: Geometry, noise: float = 0.3) -> Tensor:
    """Fill `weight` with a (semi-)orthogonal matrix on the centre taps plus noise of spectral norm about `noise`.

    The singular values of the layer then lie in about [1 - noise, 1 + noise]: at 0.3 the condition number is about 2,
    for every image size.  The norm of the noise is that of a Gaussian matrix, std * (sqrt(rows) + sqrt(columns)).

    Example:
        >>> geometry = Geometry.of((3, 3), padding=1, padding_mode="circular")
        >>> round(near_isometry_(torch.empty(16, 16, 3, 3), geometry, noise=0.0)[:, :, 1, 1].norm().item(), 4)
        4.0
    """
    if weight.is_meta:
        return weight
    taps = centre_taps(geometry)
    rows, columns = weight.shape[0] // geometry.groups, weight.shape[1]
    kernels = torch.zeros(geometry.groups, rows, columns, math.prod(geometry.kernel_size), dtype=torch.float64)
    for kernel in kernels:
        matrix = init.orthogonal_(torch.empty(rows, columns * len(taps), dtype=torch.float64))
        kernel[:, :, taps] = matrix.view(rows, columns, len(taps))
    per_frequency = math.sqrt(kernels.shape[-1] / math.prod(geometry.stride))
    wide = math.sqrt(rows) + math.sqrt(columns * math.prod(geometry.stride))
    kernels += torch.randn_like(kernels) * noise / (per_frequency * wide)
    return weight.copy_(kernels.view(weight.shape))
