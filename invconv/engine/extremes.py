"""Singular values, in float64: all of a cyclic, separable or small layer, the extreme ones of another large one.

Those come from SciPy's Lanczos method on A and on its inverse: the largest are those of A'A, the smallest come from
A^+ (A^+)', because the method finds the ends of a spectrum that stand apart, and the small singular values do so only
in the inverse.  What the inverse says is held against A itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from invconv import deadline
from invconv.engine.convolution import Convolution
from invconv.engine.solvers import dense
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.kronecker import Kronecker
from invconv.engine.spectrum import multiplicity
from invconv.engine.starts import start
from invconv.errors import InputError, SingularMapError, TooLongError
from invconv.linear import is_transformed
from invconv.options import DEFAULTS
from invconv.report import Plan
from invconv.threads import few_threads

TOLERANCE = 1e-6
"""Relative accuracy of the squared singular values."""

AGREEMENT = 1e-2
"""How far |A v| / |v| may lie from the singular value that the inverse gives for v."""

ALL_UP_TO_ROWS = 512
"""The largest explicit matrices of which all singular values are soonest had, where the ends would do. Speed only."""

FEW = 8
"""Unknowns up to which a map is written out, because Lanczos' method wants more of them than values.  Speed only."""

RESTARTS = 300
"""Most of Lanczos' method, twenty products each, after which it is an error: what rounding keeps from the accuracy
never comes to it."""

SINGLE = 1e-4
"""Accuracy from which on the vectors of Lanczos' method are kept in float32: half the memory, and half the time where
that decides.  Speed only."""

Linear = Callable[[Tensor], Tensor]


def all_in_reach(conv: Convolution) -> bool:
    """Whether all singular values can be had: those of a cyclic layer, a small matrix, or an outer product."""
    return is_decomposed(conv) or is_outer_product(conv)


def is_decomposed(conv: Convolution) -> bool:
    """Whether all singular values come from decompositions that PyTorch can differentiate by every tap."""
    return conv.is_cyclic or is_small(conv)


def is_outer_product(conv: Convolution) -> bool:
    """Whether the kernel of a map is seen to be one, which what hides its values in `torch.func` does not tell."""
    return not is_transformed(conv.weight) and isinstance(Kronecker.plan(conv, DEFAULTS), Plan)


def is_small(conv: Convolution) -> bool:
    """Whether the explicit matrix of a layer is."""
    return conv.shape[0] * conv.shape[1] <= dense.MOST_ENTRIES


def groups_are_small(conv: Convolution) -> bool:
    """Whether there are several groups, and all values of the explicit matrix of each are soon had."""
    groups = conv.geometry.groups
    return groups > 1 and max(conv.shape) <= ALL_UP_TO_ROWS * groups


def each_group(conv: Convolution) -> list[Convolution]:
    """The maps of the groups, on the channels that each reads and writes."""
    geometry = replace(conv.geometry, groups=1)
    return [Convolution(weight, geometry, conv.input_size) for weight in conv.weight.chunk(conv.geometry.groups)]


def check_count(conv: Convolution, k: int | None) -> None:
    """Raise InputError unless the k largest and the k smallest singular values, or all for None, can be had."""
    rows, columns = conv.shape
    count = min(conv.shape)
    if k is not None and not 1 <= k <= count // 2:
        raise InputError(f"k must lie between 1 and {count // 2}, half the {count} singular values, got {k}")
    if k is None and not all_in_reach(conv):
        raise InputError(
            f"all {count} singular values of a {rows} x {columns} layer with real borders are too many "
            f"(up to {dense.MOST_ENTRIES} matrix entries): give k= for the largest and the smallest"
        )


def _of_blocks(circulant: Circulant) -> Tensor:
    """All singular values of a cyclic layer, descending: those of each block, as often as its frequency is counted."""
    copies = multiplicity(circulant.grid, circulant.conv.device).long().repeat(circulant.blocks.shape[0])
    blocks = torch.arange(len(copies), device=copies.device).repeat_interleave(copies)
    per_block: Tensor = torch.linalg.svdvals(circulant.blocks).flatten(0, 1)
    return per_block[blocks].flatten().sort(descending=True).values


def all_values(conv: Convolution) -> Tensor:
    """All singular values of a layer of which they are in reach, descending; differentiable where `is_decomposed`."""
    if conv.is_cyclic:
        return _of_blocks(Circulant(conv))
    values: Tensor = torch.linalg.svdvals(conv.to_dense()) if is_small(conv) else Kronecker(conv).singular_values()
    return values


def extreme_singular_values(solver: Solver, k: int) -> Tensor:
    """The k largest and the k smallest singular values, descending: (2 k,), float64 on the CPU.

    Args:
        solver: of the map A, prepared.
        k: how many of each end.

    Raises:
        SingularMapError: where the solver has no inverse of full rank, or what it says of it is not true of A.
    """
    conv = solver.conv.to(torch.float64)
    accuracy = max(TOLERANCE, 100 * torch.finfo(solver.conv.dtype).eps)
    smallest, _ = smallest_pairs(solver, k, accuracy)
    largest, _ = largest_pairs(conv, k, accuracy)
    return torch.cat([largest, smallest])


def largest_pairs(conv: Convolution, k: int, accuracy: float) -> tuple[Tensor, Tensor]:
    """The k largest singular values, descending, and their vectors on the side that is the shorter.

    Args:
        conv: the map.
        k: how many.
        accuracy: of the squares, relative; what a square leaves of its vector is as small.

    Raises:
        TooLongError: where there is a limit of time; what it has reached is less than the largest.
    """
    tall = conv.shape[0] >= conv.shape[1]
    there, back = (conv.forward, conv.adjoint) if tall else (conv.adjoint, conv.forward)
    shape = conv.x_shape if tall else conv.y_shape
    image = start(conv)
    begin = image if image is None or tall else conv.forward(image)
    try:
        squares, vectors = _eigenpairs(lambda x: back(there(x)), shape, k, accuracy, conv.weight, begin)
    except TooLongError as error:
        error.reached = math.sqrt(error.reached or 0.0)
        raise
    return squares.clamp_min(0).sqrt(), vectors


def smallest_pairs(solver: Solver, k: int, accuracy: float) -> tuple[Tensor, Tensor]:
    """The k smallest singular values, descending, and their vectors on the side that is the shorter; float64.

    Args:
        solver: of the map A, prepared.
        k: how many.
        accuracy: of the squares of those of A^+, relative.

    Raises:
        SingularMapError: where the solver has no inverse of full rank, or what it says of it is not true of A.
        TooLongError: where there is a limit of time; what it has reached is more than the smallest.
    """
    conv, (rows, columns) = solver.conv.to(torch.float64), solver.conv.shape
    where = f"the smallest singular values of the {rows} x {columns} layer cannot be told"
    if solver.rank != solver.full_rank or solver.options.damping:
        raise SingularMapError(f"{where}: {solver.name} gives no inverse of full rank, undamped, to tell them from")

    tall = rows >= columns
    there, shape = (conv.forward, conv.x_shape) if tall else (conv.adjoint, conv.y_shape)

    def inverse(x: Tensor) -> Tensor:
        if rows == columns:
            return solver.double_inverse(solver.double_inverse_adjoint(x))
        gram_inverse = solver.gram_inverse if tall else solver.dual_gram_inverse
        return gram_inverse(x.to(solver.conv.dtype)).double()

    try:
        reciprocals, vectors = _eigenpairs(inverse, shape, k, accuracy, conv.weight)
    except TooLongError as error:
        error.reached = error.reached and 1 / math.sqrt(error.reached)
        raise
    smallest, vectors = reciprocals.flip(0).rsqrt(), vectors.flip(0)
    seen = there(vectors).flatten(1).norm(dim=1).cpu()
    apart = ((seen - smallest).abs() / smallest).max().item()
    if not apart < AGREEMENT:
        refused = SingularMapError(
            f"{where}: by the inverse of {solver.name} the least is {smallest[-1].item():.1e}, where A itself says "
            f"{seen[-1].item():.1e}: the layer is singular to working precision"
        )
        refused.reached = seen.min().item()
        raise refused
    return smallest, vectors


def _eigenpairs(
    apply: Linear, shape: tuple[int, ...], k: int, accuracy: float, like: Tensor, begin: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a symmetric map on images, descending, and their vectors, images `like` a tensor.

    Args:
        apply: the map.
        shape: of an image.
        k: how many.
        accuracy: of the values, relative.
        like: has the dtype and the device that the map takes.
        begin: an image to start from; None for noise. Never the vector of an earlier weight: where others have
            overtaken it since, iterations that start from it end at it all the same, a few thousandths too low.
    """
    count, dtype, reached = math.prod(shape), np.float32 if accuracy >= SINGLE else np.float64, 0.0

    def matvec(v: np.ndarray) -> np.ndarray:
        nonlocal reached
        deadline.look()
        image = torch.from_numpy(np.ascontiguousarray(v)).view(1, *shape).to(like)
        found: np.ndarray = apply(image).flatten().cpu().numpy().astype(dtype)
        reached = max(reached, float(np.linalg.norm(found)) / max(float(np.linalg.norm(v)), 1e-300))
        return found

    if count <= FEW:
        matrix = np.stack([matvec(unit) for unit in np.eye(count)])
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values, vectors = values[-k:], vectors[:, -k:]
    else:
        v0 = np.random.default_rng(0).standard_normal(count) if begin is None else begin.flatten().cpu().numpy()
        linear = LinearOperator((count, count), matvec, dtype=dtype)
        with few_threads(count):
            try:
                values, vectors = eigsh(linear, k=k, which="LM", v0=v0.astype(dtype), tol=accuracy, maxiter=RESTARTS)
            except ArpackNoConvergence as error:
                raise SingularMapError(
                    f"Lanczos' method has not told the ends of the spectrum of {count} values apart to {accuracy:.0e} "
                    f"after {RESTARTS} restarts: use a larger tol, or float64"
                ) from error
            except TooLongError as error:
                error.reached = reached
                raise
    order = np.argsort(values)[::-1]
    images = torch.from_numpy(np.ascontiguousarray(vectors[:, order].T)).view(-1, *shape).to(like)
    return torch.from_numpy(values[order].astype(np.float64)), images
