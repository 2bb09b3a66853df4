"""The table of the ways to invert a layer, and in which order those that do not refuse are tried."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from invconv.engine.convolution import Convolution
from invconv.engine.solvers.cholesky import Cholesky
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.cosine import Cosine
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.kronecker import Kronecker
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU
from invconv.engine.solvers.strips import Strips
from invconv.engine.solvers.tiles import Tiles
from invconv.engine.solvers.triangular import Triangular
from invconv.engine.way import Way
from invconv.options import Options
from invconv.report import Plan

SOON = 4e9
"""Operations up to which a way that is open is tried without a look at others: 50 ms.  Speed only."""

SLOWER = 1.5
"""How often the time of the soonest way one may take that stands before it in the table, twice where the soonest are
iterations, which stop at the tolerance.  Speed only."""

WAYS: tuple[Way, ...] = (
    Way(Circulant, double=False, error=None),  # cyclic: nothing but the FFT
    Way(Circulant),  # the same in float64, where damping is too little for float32
    Way(Kronecker),  # the kernel is an outer product: a small matrix for each axis
    Way(Triangular, double=False, error=None),  # pixels are read in one order: substitution
    Way(Triangular),  # the same in float64
    Way(Cosine),  # symmetric kernels at reflecting borders: the cosine transform
    Way(Ring, double=False, error=None),  # as many outputs as inputs: the FFT and a small dense system
    Way(Ring),  # the same in float64
    Way(Strips),  # damped: the FFT, one axis after the other
    Way(Gram),  # rectangular or damped: the FFT and a symmetric dense system
    Way(Dense),  # small
    Way(Cholesky),  # not as small, well conditioned
    Way(Tiles, double=False, error=None),  # large, and the inverse decays: a small image, many times
    Way(Tiles),  # the same in float64
    Way(SparseLU),  # square, but lost in the ring
    Way(Krylov, error=None, haste=True),  # any, where it converges so fast that nothing is worth factoring
    Way(Krylov, last=True),  # all others
)
"""The solvers in the order in which they are tried, those that take longer than `SOON` by what they take."""


def open_ways(
    conv: Convolution, options: Options, refusals: dict[str, str], factored: bool = False
) -> Iterator[tuple[Way, Plan]]:
    """The rows of `WAYS` that do not refuse, each with its plan, which says why the rows before it are not taken.

    What the others give as their reason is noted in `refusals`.  `factored`: those soonest to a log-volume come first.
    """
    cost_of = partial(_operations, conv=conv, options=options, factored=factored)
    for way, answer in _soonest(conv, cost_of, not_refused(conv, options, refusals)):
        reasons = sentences({name: reason for name, reason in refusals.items() if name != way.solver.name})
        yield way, replace(answer, because="; ".join([answer.because, *reasons]))


def not_refused(conv: Convolution, options: Options, refusals: dict[str, str]) -> Iterator[tuple[Way, Plan]]:
    """The rows of `WAYS` that do not refuse, in their order, and their plans."""
    for way in WAYS:
        if options.solver not in way.solver.serves or (options.solver == "iterative" and way.haste):
            continue
        answer = way.plan(conv, options)
        if isinstance(answer, str):
            refusals[way.solver.name] = answer
        else:
            refusals.pop(way.solver.name, None)  # of its row in another precision
            yield way, answer


def _soonest(
    conv: Convolution, cost_of: Callable[..., float], ways: Iterator[tuple[Way, Plan]]
) -> Iterator[tuple[Way, Plan]]:
    """The same ways, but where the next takes long, first one that takes about as long as the soonest."""
    for way, its_plan in ways:
        operations = 0.0 if conv.is_cyclic or way.last else cost_of(way)
        if operations < SOON:
            yield way, its_plan
            continue
        rest = [(way, its_plan, operations)]
        for other, plan in ways:
            rest.append((other, plan, cost_of(other, within=min(operations for *_, operations in rest))))
        while rest:
            enough = max(SOON, SLOWER * min(operations for *_, operations in rest))
            place = next(i for i, (*_, operations) in enumerate(rest) if operations <= enough)
            way, its_plan, _ = rest.pop(place)
            yield way, its_plan


def _operations(way: Way, conv: Convolution, options: Options, factored: bool, within: float = math.inf) -> float:
    """What a way is held to take, for all answers; for a log-volume and its gradient if `factored`.

    Haste is out of place where it might take longer than `within`, what others take.
    """
    if way.last or (factored and not way.solver.gives_volume):
        return math.inf
    solver = way.build(conv, options, 0.0)
    if way.haste:
        assert isinstance(solver, Krylov)
        return SLOWER * solver.cost(within / SLOWER).of(options.answers)
    return solver.volume_cost() if factored else solver.cost().of(options.answers)


def sentences(refusals: dict[str, str]) -> list[str]:
    """Each refusal with the name of the solver that gave it."""
    return [f"{name}: {reason}" for name, reason in refusals.items()]
