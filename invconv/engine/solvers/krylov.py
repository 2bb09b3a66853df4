"""The pseudo-inverse without factors: SciPy's LSMR on the convolution and its transpose, preconditioned on the torus.

For what the direct ways cannot do: rings too large to factor, maps without full rank, and those for which the torus is
tall and the layer wide or the reverse.  LSMR (Fong and Saunders 2011) gives the x of least norm among the minimisers,
as A^+ does, and keeps doing so if the preconditioner stands on a side where A has full rank (which is tried out):

    tall A:  x = L z,  min |A L z - y|,  LL' = (C'C)^-1,        wide A:  min |x|  with  L'A x = L'y,  LL' = (CC')^-1,

with L in the windows.  A damped A is the tall map that has d times the identity below.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, lsmr
from threadpoolctl import threadpool_limits
from torch import Tensor

from invconv.engine import convolution
from invconv.engine.memory import available_memory
from invconv.engine.solvers.circulant import multiply, multiply_adjoint
from invconv.engine.spectrum import Grid, kernel_to_blocks, merge_phases, split_phases
from invconv.engine.windows import crop, embed, smallest_torus
from invconv.errors import IllConditionedWarning, SingularMapError
from invconv.geometry import Geometry, Size

WORTH = 1e3
"""Condition number of the torus up to which it is used as a preconditioner."""

CHUNK = 4096
"""Frequencies that are factored at once."""

MOST_ITERATIONS = 2_000
"""Unless `max_iter` says otherwise; a layer that needs more has lost most of its digits."""

TRIAL = 200
"""Iterations in which a preconditioner has to show that it is one."""

Linear = Callable[[Tensor], Tensor]
Root = tuple[Linear, Linear]


class Krylov:
    """A layer of any kind, with the verbs of `Circulant` but without its log-volume; float64 inside."""

    solver = "lsmr"
    error = 0.0

    def __init__(
        self,
        weight: Tensor,
        geometry: Geometry,
        input_size: Size,
        damping: float,
        tol: float,
        max_iter: int | None,
        caution: str = "",
        growth: float = 1.0,
    ):
        self.caution = caution
        self.growth = growth
        """Of rounding errors, at least: in the ring that was given up for this, and in what was last solved."""
        self.weight = weight
        self.geometry = geometry
        self.input_size = input_size
        self.output_size = geometry.output_size(input_size)
        self.damping = damping
        self.tol = tol
        self.max_iter = max_iter
        self.x_shape = (weight.shape[1] * geometry.groups, *input_size)
        self.y_shape = (weight.shape[0], *self.output_size)
        self.condition = 1.0
        """LSMR's estimate for what it last solved, preconditioner included."""

    # -- preconditioner --------------------------------------------------------------------------------------------

    @property
    def _tall(self) -> bool:
        return math.prod(self.x_shape) <= math.prod(self.y_shape) or self.damping > 0

    @cached_property
    def _root(self) -> Root | None:
        """L and its transpose; None where they are no help, or A has no full rank."""
        root = self._torus_root
        if root is None or self.damping:
            return root
        return root if self._reaches_everything(root) else None

    def _reaches_everything(self, root: Root) -> bool:
        """True if a random image is in the range of A' (of A, if that is wide), so that the rank is full."""
        shape = self.x_shape if self._tall else self.y_shape
        image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        stop = self._lsmr(image.to(self.weight), not self._tall, None, root, TRIAL)[1]
        return stop in (0, 1, 4)

    @property
    def rank(self) -> int | None:
        """Full, or not known."""
        full = self._root is not None and not self.damping
        return min(math.prod(self.x_shape), math.prod(self.y_shape)) if full else None

    @cached_property
    def _torus_root(self) -> Root | None:
        """The same, if the torus is well enough conditioned: Cholesky factors, of a few frequencies at a time."""
        tall = self._tall
        if root_bytes(self.weight, self.geometry, self.input_size) > 0.8 * available_memory(self.weight.device):
            return None
        grid = Grid(self.geometry, smallest_torus(self.geometry, self.input_size))
        blocks = kernel_to_blocks(self.weight, grid)
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
        stride = self.geometry.stride if tall else (1,) * self.geometry.dims
        size = grid.input_size if tall else grid.size

        def windowed(image: Tensor, product: Callable[[Tensor, Tensor, Grid], Tensor]) -> Tensor:
            split = split_phases(embed(image, size), stride)
            return crop(merge_phases(product(root, split, grid), stride), image.shape[2:])

        return lambda z: windowed(z, multiply), lambda x: windowed(x, multiply_adjoint)

    def prepare(self) -> None:
        """Compute now what the pseudo-inverse needs."""
        if self.caution:
            warnings.warn(self.caution, IllConditionedWarning, stacklevel=5)
        self._root  # noqa: B018

    # -- solutions ---------------------------------------------------------------------------------------------------

    def _forward(self, x: Tensor) -> Tensor:
        return convolution.forward(x, self.weight, self.geometry)

    def _adjoint(self, y: Tensor) -> Tensor:
        return convolution.adjoint(y, self.weight, self.geometry, self.input_size)

    def _least_squares(self, right: Tensor, forward: bool, below: Tensor | None = None) -> Tensor:
        """The minimiser of |A x - right| (of |A' y - right| if not `forward`) of least norm, image by image.

        `below`, for damped maps: of |A x - right|^2 + |d x - below|^2.
        """
        answers = [right.new_zeros(0, *(self.x_shape if forward else self.y_shape))]
        for index in range(len(right)):
            under = None if below is None else below[index : index + 1]
            answer, stop, said = self._lsmr(right[index : index + 1], forward, under, self._root)
            answers.append(answer)
            if stop == 7:
                warnings.warn(f"{said}; raise max_iter or tol, or use damping", IllConditionedWarning, stacklevel=6)
        return torch.cat(answers)

    def _lsmr(
        self, right: Tensor, forward: bool, below: Tensor | None, root: Root | None, most: int | None = None
    ) -> tuple[Tensor, int, str]:
        """One image's answer, SciPy's code for why it stopped, and how it went in words."""
        apply, transposed = (self._forward, self._adjoint) if forward else (self._adjoint, self._forward)
        solution, image = (self.x_shape, self.y_shape) if forward else (self.y_shape, self.x_shape)
        on_right, on_right_adjoint = root if root is not None and self._tall == forward else NONE
        on_left_adjoint, on_left = root if root is not None and self._tall != forward else NONE
        columns, rows = math.prod(solution), math.prod(image)
        stacked = self.damping if below is not None else 0.0

        def tensor(values: np.ndarray, shape: Size) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(values)).view(1, *shape).to(self.weight.device)

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
        most = most or self.max_iter or min(4 * min(shape), MOST_ITERATIONS)
        tol = 0.1 * self.tol
        # NumPy's threads and PyTorch's, in turn on the same cores, wait for each other: 100 times slower.
        with threadpool_limits(1, "blas"):
            found = lsmr(operator, target.cpu().numpy(), atol=tol, btol=tol, conlim=0, maxiter=most)
        z, stop, steps, residual, normal_residual, _, self.condition = found[:7]
        self.growth = max(self.growth, self.condition)
        said = (
            f"LSMR stopped after {steps} iterations, short of tol = {self.tol:.1e}: relative residual "
            f"{residual / max(target.norm().item(), 1e-300):.1e}, of the normal equations {normal_residual:.1e}, "
            f"condition number about {self.condition:.1e}"
        )
        return on_right(tensor(z, solution)), stop, said

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y."""
        below = y.new_zeros(len(y), *self.x_shape) if self.damping else None
        return self._least_squares(y, True, below)

    def pseudo_inverse_adjoint(self, x: Tensor) -> Tensor:
        """(A^+)' x."""
        return self._forward(self.gram_inverse(x)) if self.damping else self._least_squares(x, False)

    def gram_inverse(self, x: Tensor) -> Tensor:
        """(A'A)^+ x, or (A'A + d^2)^-1 x."""
        if not self.damping:
            return self.pseudo_inverse(self.pseudo_inverse_adjoint(x))
        return self._least_squares(x.new_zeros(len(x), *self.y_shape), True, x / self.damping)

    # -- invariants ------------------------------------------------------------------------------------------------

    @property
    def log_volume(self) -> Tensor:
        raise SingularMapError(
            "the log-determinant needs the factors that solver='iterative' does without: "
            "use solver='direct', a smaller image, or circular borders"
        )

    log_volume_gradient = log_volume

    @property
    def bytes(self) -> int:
        """LSMR's own vectors, and the preconditioner."""
        vectors = 8 * (2 * math.prod(self.y_shape) + 5 * math.prod(self.x_shape))
        return vectors + root_bytes(self.weight, self.geometry, self.input_size)


def root_bytes(weight: Tensor, geometry: Geometry, input_size: Size) -> int:
    """Memory that the preconditioner takes at its peak: the blocks of C and of the root, in complex128."""
    phases = math.prod(geometry.stride)
    rows, columns = weight.shape[0] // geometry.groups, weight.shape[1] * phases
    places = math.prod(smallest_torus(geometry, input_size)) // phases
    return 8 * geometry.groups * places * (rows * columns + max(rows, columns) ** 2)


def _same(image: Tensor) -> Tensor:
    return image


NONE: Root = (_same, _same)
