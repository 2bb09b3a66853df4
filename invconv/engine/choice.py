"""Which way a layer is inverted, what it will take, and what is tried when it fails.

| layer | way |
| --- | --- |
| cyclic | `Circulant`: nothing but the FFT |
| as many outputs as inputs | `Ring`: the FFT and a small dense system |
| torus and layer both tall, or both wide with borders of zeros | `Gram`: the FFT and a symmetric dense system |
| square, but lost in the ring | `Dense` if small, `SparseLU` if its factors are |
| any other, and all without full rank | `Dense` if small, else `Krylov` |
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from invconv.engine.memory import available_memory
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.dense import MOST_ENTRIES, Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.krylov import Krylov, root_bytes
from invconv.engine.solvers.ring import BENIGN, Ring
from invconv.engine.solvers.sparse import ENTRY, MOST_FILL, SparseLU, foreseen_fill
from invconv.engine.volumes.coarse import coarse
from invconv.engine.windows import smallest_torus
from invconv.errors import OutOfMemoryError, SingularMapError
from invconv.geometry import Geometry, Size
from invconv.options import Options

Method = Circulant | Ring | Gram | Dense | SparseLU | Krylov

MOST_UNKNOWNS = 20_000
"""The largest ring that `auto` factors: 3.2 GB in float64, a minute or two on two cores."""

HOPELESS = 1e-3
"""Relative error at which a ring is given up for another way."""

LOSSY, FEW = 1e7, 2_000
"""Growth at which a log-determinant is worth another attempt, and the unknowns up to which it is made."""

TILTS = (1.0, 0.5, 2.0, 0.25, 4.0)
"""Powers of which a kernel is tilted by, in each dimension, for a log-determinant that is lost otherwise."""


@dataclass(frozen=True)
class Plan:
    """What an inverse will take, known before anything is computed."""

    solver: str
    """"fft", "fft and ring", "fft and symmetric ring", "svd" or "lsmr"."""
    unknowns: int
    """Size of the dense system, for each group of channels; 0 where there is none."""
    bytes: int
    """Memory at the peak of the factorisation, about."""
    because: str

    def __str__(self) -> str:
        system = f"{self.unknowns} unknowns, " if self.unknowns else ""
        return f"{self.solver}: {system}about {self.bytes / 2**20:.0f} MiB; {self.because}"


def plan(weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> Plan:
    """The way that `method` will try first."""
    groups = geometry.groups
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    phases = math.prod(geometry.stride)
    inputs, outputs = columns * math.prod(input_size), rows * math.prod(geometry.output_size(input_size))
    entries = groups**2 * inputs * outputs
    vectors = 8 * groups * (5 * inputs + 2 * outputs)
    iterative = Plan("lsmr", 0, vectors + root_bytes(weight, geometry, input_size), "matrix-free")
    if geometry.is_cyclic(input_size):
        half = math.prod(input_size) // phases * rows * columns * phases * groups
        return Plan("fft", 0, 4 * half * weight.element_size(), "the layer is cyclic")
    if options.solver == "iterative":
        return replace(iterative, because="asked for")
    torus = smallest_torus(geometry, input_size)
    held = columns * (math.prod(torus) - math.prod(input_size))
    free = rows * (math.prod(torus) // phases - math.prod(geometry.output_size(input_size)))
    linked = geometry.padding_mode != "zeros" and any(map(any, geometry.padding))
    tall, wide = rows >= columns * phases and outputs >= inputs, rows <= columns * phases and outputs <= inputs
    if tall and wide and not options.damping:
        name, unknowns = "fft and ring", held
    elif (tall and not (linked and options.damping)) or (wide and not linked) or (options.damping and not linked):
        name, unknowns = "fft and symmetric ring", held + free
    elif entries <= MOST_ENTRIES:
        return Plan("svd", 0, 40 * entries, "the layer is small and has no ring")
    elif options.solver == "direct":
        raise OutOfMemoryError(
            f"the layer, {groups * outputs} x {groups * inputs}, has no direct way but its explicit matrix, which is "
            f"above the {MOST_ENTRIES} entries that are factored: use solver='iterative'"
        )
    else:
        return replace(iterative, because="the layer has no ring and its matrix is large")
    blocks = math.prod(torus) * rows * columns * groups
    peak = int(groups * unknowns**2 * 8 * 2.2) + 8 * 6 * blocks
    free_bytes = available_memory(weight.device)
    if peak > 0.9 * free_bytes or (unknowns > MOST_UNKNOWNS and options.solver == "auto"):
        if options.solver == "direct":
            raise OutOfMemoryError(
                f"the ring has {unknowns} unknowns in each of {groups} groups and needs about {peak / 2**30:.1f} GiB, "
                f"of which {free_bytes / 2**30:.1f} are free on {weight.device}: use solver='iterative', a smaller "
                "image, or circular borders"
            )
        return replace(iterative, because=f"a ring of {unknowns} unknowns would need {peak / 2**30:.1f} GiB")
    return Plan(name, unknowns, peak, "the ring is small enough to factor")


def method(weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> Method:
    """The way that works, factored as far as was needed to know that it does."""
    first = plan(weight, geometry, input_size, options)
    double = weight.double()
    lost = ""
    if first.solver == "fft":
        return Circulant(weight, geometry, input_size, options.rtol, options.damping)
    if first.solver == "fft and ring":
        if weight.dtype != torch.float64:
            ring = Ring(weight, geometry, input_size, weight.dtype)
            if _keeps(ring, options.tolerance(weight.dtype), options):
                return ring
        found: Ring | Gram = Ring(double, geometry, input_size, weight.dtype)
    elif first.solver == "fft and symmetric ring":
        found = Gram(double, geometry, input_size, options.damping)
    if first.solver.endswith("ring"):
        if _keeps(found, HOPELESS, options):
            return found
        lost = f"in the ring rounding errors grow about {found.growth:.0e} times"
    rows, columns = _shape(weight, geometry, input_size)
    if options.solver != "iterative" and rows * columns <= MOST_ENTRIES:
        return Dense(double, geometry, input_size, options.rtol, options.damping)
    if rows == columns and _sparse_fits(weight, geometry, input_size, options):
        sparse = SparseLU(double, geometry, input_size)
        if sparse.error < HOPELESS:
            return sparse
    if options.solver == "direct":
        raise SingularMapError(
            f"the {rows} x {columns} layer has no full rank to working precision, {lost}: "
            "use solver='iterative', damping, or a better conditioned kernel"
        )
    caution, growth = "", found.growth if lost else 1.0
    if lost:
        caution = (
            f"the {rows} x {columns} layer has no full rank to working precision, {lost}: it is solved iteratively, "
            "and what the smallest singular values carried is not recovered"
        )
    elif options.rtol is not None:
        caution = (
            f"rtol = {options.rtol:.1e} is not applied: the {rows} x {columns} layer is solved iteratively, which cuts "
            "nothing off; damping is the way to quiet small singular values here"
        )
    tol = options.tolerance(weight.dtype)
    return Krylov(double, geometry, input_size, options.damping, tol, options.max_iter, caution, growth)


def volume_method(found: Method, weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> Method:
    """The way to the log-volume, which can be exact where no digit of the inverse is.

    A cyclic layer may do with fewer frequencies.  A square layer with borders of zeros has the determinant of a tilted
    one, which may be well conditioned.
    """
    if isinstance(found, Circulant) and options.volume_tol is not None:
        return coarse(weight, geometry, input_size, options.rtol, options.volume_tol) or found
    rows, columns = _shape(weight, geometry, input_size)
    square = rows == columns and weight.shape[0] == weight.shape[1] * geometry.groups * math.prod(geometry.stride)
    if not square or geometry.padding_mode != "zeros" or options.damping or isinstance(found, Circulant | Gram):
        return found
    if isinstance(found, Ring) and (found.growth < LOSSY or found.unknowns > FEW):
        return found
    for tilt in sorted(product(TILTS, repeat=geometry.dims), key=lambda r: sum(abs(math.log(t)) for t in r))[1:]:
        ring = Ring(weight.double(), geometry, input_size, weight.dtype, tilt)
        if ring.torus.growth < BENIGN and ring.growth < LOSSY:
            return ring
    return found


def _keeps(ring: Ring | Gram, error: float, options: Options) -> bool:
    """True where a ring's rounding errors stay below `error` and no singular value can lie below rtol."""
    eps = torch.finfo(ring.weight.dtype).eps
    # The torus first: where it is bad enough, the ring need not be factored.
    return (
        ring.torus.growth * eps < error
        and ring.growth * eps < error
        and (options.rtol is None or ring.growth * options.rtol < 1)
    )


def _sparse_fits(weight: Tensor, geometry: Geometry, input_size: Size, options: Options) -> bool:
    """True where a sparse LU is allowed, and small enough."""
    if options.solver == "iterative" or options.damping or options.rtol is not None:
        return False
    fill = foreseen_fill(weight, geometry, input_size)
    return fill < MOST_FILL and ENTRY * fill < 0.8 * available_memory(torch.device("cpu"))


def _shape(weight: Tensor, geometry: Geometry, input_size: Size) -> tuple[int, int]:
    columns = weight.shape[1] * geometry.groups
    return weight.shape[0] * math.prod(geometry.output_size(input_size)), columns * math.prod(input_size)
