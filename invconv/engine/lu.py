"""LU factors of a batch of matrices, right also where PyTorch's are not."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGE = 128
"""The largest matrices of which a batch goes to `torch.linalg.lu_factor_ex` as a whole on the CPU."""


def lu_factor(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """LU and pivots as `torch.linalg.lu_solve` takes them; no error where a matrix is singular.

    After `torch.set_num_threads`, PyTorch factors the matrices of a batch in threads of its own, in which MKL is not
    safe: from 150 rows on the factors are wrong without a word (pytorch/pytorch#142815 and #141358, in 2.5 to 2.14).
    One at a time large ones are right, and take a quarter longer at 192 rows.
    """
    batch = matrices.shape[:-2]
    if matrices.device.type != "cpu" or matrices.shape[-1] <= LARGE or math.prod(batch) <= 1:
        lu, pivots, _ = torch.linalg.lu_factor_ex(matrices)
        return lu, pivots
    parts = [torch.linalg.lu_factor_ex(matrix) for matrix in matrices.flatten(0, -3)]
    lu = torch.stack([part.LU.mT for part in parts]).mT  # by columns, as LAPACK has them
    return lu.unflatten(0, batch), torch.stack([part.pivots for part in parts]).unflatten(0, batch)
