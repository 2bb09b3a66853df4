"""The original question: undo y = F.conv2d(x, K, padding=1) with 32 channels, 128 x 128 and a random kernel.

    python benchmarks/borders.py

Ours against what else there is: least squares by iteration on the layer and its adjoint (SciPy, deepinv, pylops, all
optional), each with as many iterations as fit into `--seconds`, and the FFT recipe, which takes the image for periodic.

Setup is what is computed once for a kernel and an image size.  The error is ||x_hat - x|| / ||x||, the residual
||A x_hat - y|| / ||y||: a random kernel has small singular values, so that the one may be small and the other not.
Iterations are counted as applications of the layer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

# NumPy's threads and PyTorch's wait for each other on the same cores: all solvers are faster with one of the former.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import torch
from timing import in_turn, machine
from torch import Tensor
from torch.nn import functional as F

from invconv import InvertibleConv2d

Solve = Callable[[int], "np.ndarray | Tensor"]  # at most so many iterations -> x_hat


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


# -- least squares by iteration; each stops at its limit, or where nothing is left to gain -----------------------------


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


# -- the recipe --------------------------------------------------------------------------------------------------------


def recipe_pinv(weight: Tensor, side: int) -> Tensor:
    """The pseudo-inverse of the cyclic layer, frequency by frequency."""
    padded = weight.new_zeros(*weight.shape[:2], side, side)
    padded[:, :, :3, :3] = weight
    return torch.linalg.pinv(torch.fft.rfft2(padded.roll((-1, -1), (2, 3))).conj().permute(2, 3, 0, 1))


def recipe_apply(y: Tensor, pinv: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.einsum("hwio,bohw->bihw", pinv, torch.fft.rfft2(y)), s=y.shape[2:])


# -- the table ---------------------------------------------------------------------------------------------------------


def tell(name: str, setup: float | None, apply: float, x_hat: Tensor, x: Tensor, layer: Layer, count: int = 0) -> None:
    x_hat, x = x_hat.double(), x.double()
    y = layer.forward(x)
    error = ((x_hat - x).norm() / x.norm()).item()
    residual = ((layer.forward(x_hat) - y).norm() / y.norm()).item()
    once = "-" if setup is None else f"{setup:.2f}"
    print(f"{name:<36}{once:>9}{apply:>10.3f}{error:>10.1e}{residual:>10.1e}{count or '-':>12}", flush=True)


def ours(weight: Tensor, x: Tensor, layer: Layer, rounds: int) -> tuple[str, Tensor, Tensor]:
    """The row; the operator's own report, the outputs and the answer."""
    channels, side = x.shape[1], x.shape[-1]
    conv = InvertibleConv2d(channels, channels, 3, padding=1, bias=False, dtype=weight.dtype)
    conv.weight.copy_(weight)
    y = conv(x)
    start = time.perf_counter()
    conv.refresh((side, side))
    setup = time.perf_counter() - start
    times = in_turn({"forward": lambda: conv(x), "inverse": lambda: conv.inverse(y)}, rounds)
    dtype = str(weight.dtype).removeprefix("torch.")
    tell(f"invconv {dtype}", setup, statistics.median(times["inverse"]), conv.inverse(y), x, layer)
    forward = statistics.median(times["forward"])
    report = f"invconv {dtype}: {conv.operator((side, side)).report()}; one forward takes {forward:.3f} s"
    return report, y, conv.inverse(y)


@torch.no_grad()
def main(channels: int, side: int, seconds: float, rounds: int, seed: int) -> None:
    print(machine())
    print(f"c={channels}, {side} x {side}, 3 x 3, padding=1, batch 1; {seconds:g} s for each iteration")
    print(f"{'':<36}{'setup s':>9}{'apply s':>10}{'error':>10}{'residual':>10}{'iterations':>12}")
    torch.manual_seed(seed)
    weight = torch.randn(channels, channels, 3, 3, dtype=torch.float64)
    x = torch.randn(1, channels, side, side, dtype=torch.float64)
    layer = Layer(weight, side)
    reports = [ours(weight, x, layer, rounds)[0]]
    single = Layer(weight.float().double(), side)
    report, y, x_hat = ours(weight.float(), x.float(), single, rounds)
    # What float32 outputs determine: the float64 answer to those very outputs.
    conv = InvertibleConv2d(channels, channels, 3, padding=1, bias=False, dtype=torch.float64)
    conv.weight.copy_(weight.float())
    exact = conv.inverse(y.double())
    off = ((x_hat - exact).norm() / exact.norm()).item()
    lost = ((conv.inverse(conv(x.float().double()).float().double()) - x.float()).norm() / x.norm()).item()
    reports.append(f"{report}; {off:.1e} from the exact answer to its float32 outputs")
    reports.append(f"rounding the exact outputs to float32 and nothing else: error {lost:.1e}")

    y = layer.forward(x)
    start = time.perf_counter()
    pinv = recipe_pinv(weight, side)
    setup = time.perf_counter() - start
    times = in_turn({"apply": lambda: recipe_apply(y, pinv)}, rounds)
    tell("FFT recipe (periodic)", setup, statistics.median(times["apply"]), recipe_apply(y, pinv), x, layer)

    for name, peer in PEERS.items():
        try:
            solve = peer(layer, y)
        except ModuleNotFoundError as error:
            print(f"{name:<36}  not installed: pip install {(error.name or '').partition('.')[0]}")
            continue
        x_hat, apply = iterate(solve, layer, seconds)
        tell(name, None, apply, x_hat, x, layer, layer.count)
    print("\n".join(reports))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--side", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=150, help="for each of the iterative peers")
    parser.add_argument("--rounds", type=int, default=7, help="applications of which the median is told")
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
