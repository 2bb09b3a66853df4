"""What a way costs, in operations of a product of matrices in float64: seconds are these by the speed of one.

Which way is taken is decided by operations, and so is the same on every machine; only how long it is said to take is
measured.  The factors below, by which other operations are slower than products, were measured on the layers of
`benchmarks/plans/layers.py` on one core that makes 8e10 of them in a second.  They decide nothing but the time: speed
only.
"""

from __future__ import annotations

import math
import time
from functools import cache
from typing import NamedTuple

import torch

from invconv.engine.convolution import Convolution
from invconv.engine.precision import exactly
from invconv.geometry import Size
from invconv.threads import few_threads

SIDE = 256
"""Of the matrices that are multiplied to measure the speed.  Speed only."""

LOOKS = 20
"""Products that are timed, of which the fastest counts: a busy machine is slow, never fast.  Speed only."""

CALL = 8e6
"""What Python and PyTorch take for a step of a few calls: 100 microseconds.  Speed only."""

SVD, SPARSE, CONVOLUTION, TRANSFORM, BLOCKS = 40.0, 8.0, 3.0, 25.0, 2.0
"""Operations for one of LAPACK's SVD (of n^3), of SuperLU, of PyTorch's convolution, of an FFT, and of the factors of a
batch of small matrices.  Speed only."""

UNFOLD = 80.0
"""What each entry of an unfolded image takes.  Speed only."""

BLOCK = 8e4
"""What each small matrix of a batch takes besides its arithmetic.  Speed only."""

BYTE = 20.0
"""What reading a byte takes that is in no cache.  Speed only."""


class Cost(NamedTuple):
    """Operations that a way takes."""

    factors: float
    """Until there can be answers."""
    answer: float
    """For each image."""

    def of(self, answers: int) -> float:
        """Operations for so many answers."""
        return self.factors + answers * self.answer


def seconds(operations: float, device: torch.device) -> float:
    """Time of so many operations, in one thread: more of them help where matrices are large."""
    return operations / _speed(str(device))


@cache
def _speed(device: str) -> float:
    """Operations of a product of matrices in a second."""
    fastest = math.inf
    with torch.inference_mode(False), torch.no_grad(), exactly(torch.device(device)), few_threads(SIDE):
        a = torch.ones(SIDE, SIDE, dtype=torch.float64, device=device)
        for _ in range(LOOKS):
            start = time.perf_counter()
            (a @ a)[0, 0].item()  # which waits for it
            fastest = min(fastest, time.perf_counter() - start)
    return 2 * SIDE**3 / fastest


def transforms(places: float, channels: int) -> float:
    """FFTs of so many real channels."""
    return TRANSFORM * 2.5 * channels * places * math.log2(max(places, 2))


def torus(conv: Convolution, size: Size) -> Cost:
    """The blocks of a torus factored, and one image sent through them."""
    (rows, columns), groups = conv.block_shape, conv.geometry.groups
    places = math.prod(size) / math.prod(conv.geometry.stride)
    if all(k == 1 for k in conv.geometry.kernel_size) or conv.geometry.kernel_size == conv.geometry.stride:
        count, spectra, there = float(groups), 0.0, 4 * places * groups * rows * columns  # each place by itself
    else:
        count = groups * places / 2.0
        spectra = transforms(places, groups * rows * columns)
        there = transforms(places, groups * (rows + columns)) + BYTE * 16 * count * rows * columns
    factors = count * (BLOCK + BLOCKS * 20 * rows * columns * min(rows, columns)) + spectra
    share = precision(conv)
    return Cost(20 * CALL + share * factors, 3 * CALL + share * there)


def precision(conv: Convolution) -> float:
    """What arithmetic takes in the precision of the map, in units of float64."""
    return 0.5 if conv.dtype == torch.float32 else 1.0


def convolution(conv: Convolution) -> float:
    """A x or A' y of one image, in float64, for which PyTorch unfolds the image, unless the kernel goes by the FFT."""
    (outs, ins), taps = conv.weight.shape[:2], math.prod(conv.geometry.kernel_size)
    places = math.prod(conv.output_size)
    if conv.goes_by_fft:
        around = math.prod(n + e for n, e in zip(conv.input_size, conv.geometry.extent, strict=True))
        return 3 * CALL + transforms(around, outs + conv.in_channels) + BYTE * 8 * around * outs * ins
    return CALL + CONVOLUTION * 2 * places * outs * ins * taps + UNFOLD * places * conv.in_channels * taps
