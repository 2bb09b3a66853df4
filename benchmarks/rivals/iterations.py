"""Least squares by iteration on a layer and its adjoint, as SciPy, deepinv and pylops offer it (all optional).

Each stops at its limit of iterations, or where nothing is left to gain.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Solve = Callable[[int], "np.ndarray | Tensor"]
"""Takes a limit of iterations, gives x_hat."""


class Layer:
    """conv2d(., K, padding=1) and its adjoint, of images and of flat arrays; `count` counts the applications."""

    def __init__(self, weight: Tensor, side: int):
        self.weight, self.shape = weight, (1, weight.shape[0], side, side)
        self.entries = weight.shape[0] * side * side
        self.count = 0

    def forward(self, x: Tensor, **_: object) -> Tensor:
        self.count += 1
        return F.conv2d(x, self.weight, padding=1)

    def adjoint(self, y: Tensor, **_: object) -> Tensor:
        return F.conv_transpose2d(y, self.weight, padding=1)

    def matvec(self, x: np.ndarray) -> np.ndarray:
        return self.forward(torch.from_numpy(x).view(self.shape)).flatten().numpy()

    def rmatvec(self, y: np.ndarray) -> np.ndarray:
        return self.adjoint(torch.from_numpy(y).view(self.shape)).flatten().numpy()


def scipy_lsmr(layer: Layer, y: Tensor) -> Solve:
    from scipy.sparse.linalg import LinearOperator, lsmr

    square = LinearOperator((layer.entries,) * 2, layer.matvec, layer.rmatvec, dtype=np.float64)
    return lambda limit: lsmr(square, y.flatten().numpy(), atol=0, btol=0, conlim=0, maxiter=limit)[0]


def scipy_lsqr(layer: Layer, y: Tensor) -> Solve:
    from scipy.sparse.linalg import LinearOperator, lsqr

    square = LinearOperator((layer.entries,) * 2, layer.matvec, layer.rmatvec, dtype=np.float64)
    return lambda limit: lsqr(square, y.flatten().numpy(), atol=0, btol=0, conlim=0, iter_lim=limit)[0]


def deepinv_default(layer: Layer, y: Tensor) -> Solve:
    """Conjugate gradients on A'A + 1e-8, which is what `A_dagger` does unless told otherwise."""
    from deepinv.physics import LinearPhysics

    physics = LinearPhysics(A=layer.forward, A_adjoint=layer.adjoint)
    return lambda limit: physics.A_dagger(y, max_iter=limit, tol=1e-16)


def deepinv_lsqr(layer: Layer, y: Tensor) -> Solve:
    from deepinv.physics import LinearPhysics

    physics = LinearPhysics(A=layer.forward, A_adjoint=layer.adjoint, implicit_backward_solver=False)
    return lambda limit: physics.A_dagger(y, solver="lsqr", max_iter=limit, tol=1e-16, conlim=1e16)


def pylops_cgls(layer: Layer, y: Tensor) -> Solve:
    import pylops

    square = pylops.FunctionOperator(layer.matvec, layer.rmatvec, layer.entries, dtype="float64")
    return lambda limit: pylops.cgls(square, y.flatten().numpy(), niter=limit, tol=0, rtol1=1e-15)[0]


PEERS = {
    "SciPy lsmr": scipy_lsmr,
    "SciPy lsqr": scipy_lsqr,
    "deepinv A_dagger (CG, its default)": deepinv_default,
    "deepinv A_dagger (lsqr)": deepinv_lsqr,
    "pylops cgls": pylops_cgls,
}


def iterate(solve: Solve, layer: Layer, seconds: float) -> tuple[Tensor, float]:
    """x_hat after as many iterations as fit into `seconds`, and the seconds they took."""
    limit, spent, tried = 10, 0.0, 0
    solve(limit)
    while spent < seconds / 10 and limit > tried:
        # A few iterations alone would be timed wrongly where something else wakes up on the same cores.
        layer.count, tried = 0, limit
        start = time.perf_counter()
        solve(limit)
        spent = time.perf_counter() - start
        limit = tried * 2 if layer.count >= tried else tried  # it converged: no more are needed
    limit = max(1, int(seconds / spent * tried))
    layer.count = 0
    start = time.perf_counter()
    x_hat = solve(limit)
    return torch.as_tensor(x_hat).view(layer.shape), time.perf_counter() - start
