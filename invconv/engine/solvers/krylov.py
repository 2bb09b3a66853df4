"""The pseudo-inverse without factors: SciPy's LSMR on the convolution and its transpose, preconditioned on the torus.

For what the direct ways cannot do: rings too large to factor, maps without full rank, and those for which the torus is
tall and the layer wide or the reverse.  LSMR (Fong and Saunders 2011) gives the x of least norm among the minimisers,
as A^+ does, and keeps doing so if the preconditioner stands on a side where A has full rank (which is tried out):

    tall A:  x = L z,  min |A L z - y|,  LL' = (C'C)^-1,        wide A:  min |x|  with  L'A x = L'y,  LL' = (CC')^-1,

with L in the windows.  A damped A is the tall map that has d times the identity below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from threadpoolctl import threadpool_limits
from torch import Tensor

from invconv.engine import memory
from invconv.engine.blocks import TorusMap
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver
from invconv.engine.spectrum import Grid, kernel_to_blocks
from invconv.engine.windows import crop, embed, smallest_torus
from invconv.errors import SingularMapError, warn
from invconv.geometry import Size
from invconv.options import DEFAULTS, Options
from invconv.report import Plan

WORTH = 1e3
"""Condition number of the torus up to which it is used as a preconditioner."""

CHUNK = 4096
"""Frequencies that are factored at once.  Memory and speed only."""

MOST_ITERATIONS = 2_000
"""Most iterations unless `max_iter` says otherwise; a layer that needs more has lost most of its digits."""

TRIAL = 200
"""Iterations in which a preconditioner has to show that it is one.  Speed only: without it LSMR takes longer."""

Linear = Callable[[Tensor], Tensor]
Root = tuple[Linear, Linear]


class Krylov(Solver):
    """A layer of any kind, but without its log-volume; float64 inside.

    Args:
        conv: the map, in float64.
        options: how the inverse is to be computed.
        outputs: the dtype of the caller's y.
        lost: growth of rounding errors in the ways that were given up for this one; 0 where none was.
    """

    name = "lsmr"
    serves = ("auto", "iterative")
    gives_volume = False

    def __init__(
        self, conv: Convolution, options: Options = DEFAULTS, outputs: torch.dtype | None = None, lost: float = 0.0
    ) -> None:
        super().__init__(conv, options, outputs, lost)
        self.damping = options.damping
        self.tol = options.tolerance(self.outputs)
        self._seen_condition = 1.0
        self._seen_growth = lost or 1.0

    @classmethod
    def plan(cls, conv: Convolution, options: Options) -> Plan | str:
        """Plan for vectors of the size of the images, and the preconditioner."""
        because = "asked for" if options.solver == "iterative" else "matrix-free"
        return Plan(cls.name, 0, vector_bytes(conv) + root_bytes(conv), because)

    @property
    def condition(self) -> float:
        """LSMR's estimate for what it last solved, preconditioner included."""
        return self._seen_condition

    @property
    def growth(self) -> float:
        """Growth of rounding errors, at least: in the ring that was given up for this, and in what was last solved."""
        return self._seen_growth

    @property
    def caution(self) -> str:
        """What has to be said before any answer; empty where there is nothing."""
        (rows, columns), rtol, reasons = self.conv.shape, self.options.rtol, []
        if self.lost:
            reasons.append(
                f"the {rows} x {columns} layer has no full rank to working precision, in the ring rounding errors grow "
                f"about {self.lost:.0e} times: it is solved iteratively, and what the smallest singular values carried "
                "is not recovered"
            )
        elif self.conv.blind_spots and not self.damping and self.options.solver != "iterative":
            reasons.append(
                f"the {rows} x {columns} layer has no full rank, {self.conv.blind_spots}: it is solved iteratively, "
                "and what it does not see is not recovered"
            )
        if rtol is not None:
            reasons.append(
                f"rtol = {rtol:.1e} is not applied: the {rows} x {columns} layer is solved iteratively, which cuts "
                "nothing off; damping is the way to quiet small singular values here"
            )
        return "; ".join(reasons)

    def __getstate__(self) -> dict[str, Any]:
        """What a pickle or a copy takes along: the preconditioner is made anew."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_root", "_torus_root")}

    # -- preconditioner --------------------------------------------------------------------------------------------

    @property
    def _tall(self) -> bool:
        """Whether A has at least as many outputs as inputs, those of the damping counted."""
        return math.prod(self.conv.x_shape) <= math.prod(self.conv.y_shape) or self.damping > 0

    @cached_property
    def _root(self) -> Root | None:
        """L and its transpose; None where they are no help, or A has no full rank."""
        root = self._torus_root
        if root is None or self.damping:
            return root
        return root if self._reaches_everything(root) else None

    def _reaches_everything(self, root: Root) -> bool:
        """True if a random image is in the range of A' (of A, if that is wide), so that the rank is full."""
        shape = self.conv.x_shape if self._tall else self.conv.y_shape
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        stop = self._lsmr(image.to(self.conv.weight), not self._tall, None, root, TRIAL)[1]
        return stop in (0, 1, 4)

    @property
    def rank(self) -> int | None:
        """The full rank where a preconditioner shows it; None where it is not known."""
        full = self._root is not None and not self.damping
        return min(math.prod(self.conv.x_shape), math.prod(self.conv.y_shape)) if full else None

    @cached_property
    def _torus_root(self) -> Root | None:
        """L and its transpose, if the torus is well enough conditioned: Cholesky factors, a chunk at a time."""
        tall = self._tall
        if root_bytes(self.conv) > 0.8 * memory.available_memory(self.conv.device):
            return None
        grid = Grid(self.conv.geometry, smallest_torus(self.conv.geometry, self.conv.input_size))
        blocks = kernel_to_blocks(self.conv.weight, grid)
        blocks = blocks if tall else blocks.mH
        rows, columns = blocks.shape[-2:]
        if rows < columns and not self.damping:
            return None
        root = blocks.new_empty(*blocks.shape[:2], columns, columns)
        gains = []
        identity = torch.eye(columns, dtype=blocks.dtype, device=blocks.device)
        for part, out in zip(blocks.split(CHUNK, 1), root.split(CHUNK, 1), strict=True):
            lower, failed = torch.linalg.cholesky_ex(part.mH @ part + self.damping**2 * identity)
            torch.linalg.solve_triangular(lower.mH, identity.expand_as(lower), upper=True, out=out)
            gains.append(torch.stack([g.abs().square().sum((-2, -1)).max() for g in (lower, out)]))
            if failed.any():
                return None
        if not torch.stack(gains).amax(0).prod() < (WORTH * columns) ** 2:
            return None
        stride = self.conv.geometry.stride if tall else (1,) * self.conv.geometry.dims
        size = grid.input_size if tall else grid.size
        on_torus = TorusMap(root, grid, stride, stride)

        def windowed(image: Tensor, product: Linear) -> Tensor:
            return crop(product(embed(image, size)), image.shape[2:])

        return lambda z: windowed(z, on_torus.map), lambda x: windowed(x, on_torus.adjoint)

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        if self.caution:
            warn(self.caution)
        self._root  # noqa: B018

    # -- solutions ---------------------------------------------------------------------------------------------------

    def _least_squares(self, right: Tensor, forward: bool, below: Tensor | None = None) -> Tensor:
        """The minimiser of |A x - right| (of |A' y - right| if not `forward`) of least norm, image by image.

        `below`, for damped maps: of |A x - right|^2 + |d x - below|^2.
        """
        answers = [right.new_zeros(0, *(self.conv.x_shape if forward else self.conv.y_shape))]
        for index in range(len(right)):
            under = None if below is None else below[index : index + 1]
            answer, stop, said = self._lsmr(right[index : index + 1], forward, under, self._root)
            answers.append(answer)
            if stop == 7:
                warn(f"{said}; raise max_iter or tol, or use damping")
        return torch.cat(answers)

    def _lsmr(
        self, right: Tensor, forward: bool, below: Tensor | None, root: Root | None, most: int | None = None
    ) -> tuple[Tensor, int, str]:
        """One image's answer, SciPy's code for why it stopped, and how it went in words."""
        apply, transposed = (
            (self.conv.forward, self.conv.adjoint) if forward else (self.conv.adjoint, self.conv.forward)
        )
        solution, image = (self.conv.x_shape, self.conv.y_shape) if forward else (self.conv.y_shape, self.conv.x_shape)
        on_right, on_right_adjoint = root if root is not None and self._tall == forward else NO_ROOT
        on_left_adjoint, on_left = root if root is not None and self._tall != forward else NO_ROOT
        columns, rows = math.prod(solution), math.prod(image)
        stacked = self.damping if below is not None else 0.0

        def tensor(values: np.ndarray, shape: Size) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).view(1, *shape).to(self.conv.device)

        def matvec(v: np.ndarray) -> np.ndarray:
            z = on_right(tensor(v, solution))
            above = on_left(apply(z)).flatten()
            return (torch.cat([above, stacked * z.flatten()]) if stacked else above).cpu().numpy()

        def rmatvec(v: np.ndarray) -> np.ndarray:
            z = transposed(on_left_adjoint(tensor(v[:rows], image)))
            return on_right_adjoint(z + stacked * tensor(v[rows:], solution) if stacked else z).flatten().cpu().numpy()

        shape = (rows + columns if stacked else rows, columns)
        operator = LinearOperator(shape, matvec, rmatvec, dtype=np.float64)
        target = on_left(right).flatten()
        if below is not None:
            target = torch.cat([target, below.flatten()])
        most = most or self.options.max_iter or min(4 * min(shape), MOST_ITERATIONS)
        tol = 0.1 * self.tol
        # NumPy's threads and PyTorch's, in turn on the same cores, wait for each other: 100 times slower.
        with threadpool_limits(1, "blas"):
            outcome = lsmr(operator, target.cpu().numpy(), atol=tol, btol=tol, conlim=0, maxiter=most)
        z, stop, steps, residual, normal_residual, _, self._seen_condition = outcome[:7]
        self._seen_growth = max(self._seen_growth, self._seen_condition)
        said = (
            f"LSMR stopped after {steps} iterations, short of tol = {self.tol:.1e}: relative residual "
            f"{residual / max(target.norm().item(), 1e-300):.1e}, of the normal equations {normal_residual:.1e}, "
            f"condition number about {self.condition:.1e}"
        )
        return on_right(tensor(z, solution)), stop, said

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        below = y.new_zeros(len(y), *self.conv.x_shape) if self.damping else None
        return self._least_squares(y, True, below)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        return self.conv.forward(self.gram_inverse(x)) if self.damping else self._least_squares(x, False)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if not self.damping:
            return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))
        return self._least_squares(x.new_zeros(len(x), *self.conv.y_shape), True, x / self.damping)

    # -- invariants ------------------------------------------------------------------------------------------------

    @property
    def log_volume(self) -> Tensor:
        """Refused: without factors there is no log-volume."""
        lost = f"and in the ring rounding errors grow about {self.lost:.0e} times"
        why = lost if self.lost else f"that solver={self.options.solver!r} does without here"
        raise SingularMapError(
            f"the log-determinant needs the factors of the layer, {why}: use solver='direct', a smaller image, "
            "circular borders, or a better conditioned kernel"
        )

    @property
    def log_volume_gradient(self) -> Tensor:
        """Refused: without factors there is no log-volume, and no gradient of it."""
        return self.log_volume

    @property
    def bytes(self) -> int:
        """Memory of LSMR's vectors and of the preconditioner."""
        return vector_bytes(self.conv) + root_bytes(self.conv)


def vector_bytes(conv: Convolution) -> int:
    """Memory that LSMR's vectors take."""
    return 8 * (2 * conv.shape[0] + 5 * conv.shape[1])


def root_bytes(conv: Convolution) -> int:
    """Memory that the preconditioner takes at its peak: the blocks of C and of the root, in complex128."""
    (rows, columns), geometry = conv.block_shape, conv.geometry
    places = math.prod(smallest_torus(geometry, conv.input_size)) // math.prod(geometry.stride)
    return 8 * geometry.groups * places * (rows * columns + max(rows, columns) ** 2)


def _same(image: Tensor) -> Tensor:
    """The image itself."""
    return image


NO_ROOT: Root = (_same, _same)
"""The identity and its transpose, where there is no preconditioner."""
