"""Which way a layer is inverted, what it will take, and what is tried when it fails: two tables, read from the top."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import islice

import torch

from invconv import deadline
from invconv.engine import cost
from invconv.engine.convolution import Convolution
from invconv.engine.raster import raster_of
from invconv.engine.scale import Scale
from invconv.engine.solvers.base import Solver, Volume
from invconv.engine.solvers.explicit import Explicit
from invconv.engine.solvers.kronecker import Kronecker
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.ring import OnTorus
from invconv.engine.solvers.sparse import SparseLU
from invconv.engine.solvers.tiles import Tiles
from invconv.engine.solvers.triangular import Triangular
from invconv.engine.volumes.balanced import Balanced, balance
from invconv.engine.volumes.coarse import coarse
from invconv.engine.volumes.cylinder import Cylinder, cylinder, fits
from invconv.engine.volumes.eliminated import eliminated
from invconv.engine.volumes.extrapolated import Candidate, Extrapolated, candidates, extrapolated
from invconv.engine.volumes.tilted import tilted
from invconv.engine.ways import SOON, not_refused, open_ways, sentences
from invconv.errors import InvconvError, OutOfMemoryError, SingularMapError
from invconv.options import Options
from invconv.report import Plan

LONGEST = 1.6e12
"""Operations above which a map that has lost its digits is refused rather than solved iteratively: 20 s, about."""

PIVOTING = 4
"""Times what is foreseen that a sparse LU may take of a map that has lost its digits: pivots fill it in."""

ADVICE = "use solver='iterative', damping, or a better conditioned kernel"


ACCURATE = 1e-9
"""Relative error to which an inverse is iterated from which singular values are taken.  Speed only: they need 1e-6."""

VOLUMES: tuple[Callable[[Solver], Volume | None], ...] = (
    eliminated,  # small: the explicit matrix
    tilted,  # square with borders of zeros, lost in the ring: a tilted one
)
"""Ways to a log-volume where the solver's has lost its digits."""

LOSSY = 1e7
"""Growth of rounding errors at which a log-volume, or its gradient, is worth another attempt."""


def plan(conv: Convolution, options: Options, factored: bool = False) -> Plan:
    """The plan of the first way that does not refuse; of the first that factors, if the log-volume is asked for.

    Raises:
        OutOfMemoryError: where all refuse.
        SingularMapError: where all refuse, and the map has no full rank whatever its weight.
    """
    refusals: dict[str, str] = {}
    for way, its_plan in open_ways(conv, options, refusals, factored):
        if way.solver.gives_volume or way.last or not factored:
            return timed(way.build(conv, options, 0.0), replace(its_plan, bytes_if_lost=_most_bytes(conv, options)))
    raise _refused(conv, options, refusals)


def _most_bytes(conv: Convolution, options: Options) -> int:
    """What the ways take at most that may be tried one after the other; those apart that would be too long then."""
    ways = [(way, its_plan) for way, its_plan in not_refused(conv, options, {}) if not way.haste]
    lost = [p.bytes for way, p in ways if way.last or not _too_long(way.build(conv, options, math.inf), options)]
    return max(lost, default=0)


def timed(solver: Solver, its_plan: Plan) -> Plan:
    """The plan of a solver with the seconds that it is foreseen to take on this machine."""
    factors, answer = (cost.seconds(operations, solver.conv.device) for operations in solver.cost())
    return replace(its_plan, seconds=factors, seconds_each=answer)


def choose(
    conv: Convolution,
    options: Options,
    scale: Scale = Scale(),  # noqa: B008  (frozen)
    factored: bool = False,
) -> tuple[Solver, Plan]:
    """The first way that keeps its digits, factored as far as was needed to know that it does, and its plan.

    Args:
        conv: the map.
        options: how the inverse is to be computed.
        scale: that of the caller's map.
        factored: whether ways that factor nothing come last, however soon they are.

    Raises:
        OutOfMemoryError: where all refuse.
        SingularMapError: where none keeps its digits.
    """
    refusals: dict[str, str] = {}
    lost = 0.0
    for way, its_plan in open_ways(conv, options, refusals, factored):
        if factored and not way.solver.gives_volume and not way.last:
            continue
        solver = way.build(conv, options, lost)
        solver.scale = scale
        if too_long := _too_long(solver, options):
            refusals[solver.name] = too_long
            continue
        if deadline.is_set():
            deadline.look(cost.seconds(_operations(solver, 0), conv.device))
        if way.last or solver.keeps(way.limit(conv, options)):
            return solver, its_plan
        if not way.double:
            continue  # it comes again in float64, and its growth, a factorisation, is nothing to be computed for a word
        refusals[solver.name] = solver.shortfall or f"rounding errors grow about {solver.growth:.0e} times"
        if isinstance(solver, OnTorus):
            lost = max(lost, solver.growth)
    if not lost:
        raise _refused(conv, options, refusals)
    rows, columns = conv.shape
    raise SingularMapError(
        f"the {rows} x {columns} layer has no full rank to working precision, in the ring rounding errors grow about "
        f"{lost:.0e} times ({'; '.join(sentences(refusals))}): use damping, solver='iterative' to insist, or a better "
        "conditioned kernel"
    )


def _too_long(solver: Solver, options: Options) -> str:
    """Why a way is not begun where digits are lost and nobody insists; empty where it is."""
    if not solver.lost or options.damping or options.solver != "auto":
        return ""
    if _operations(solver, 1) <= LONGEST:
        return ""
    return f"it might take {cost.seconds(solver.cost().of(1), solver.conv.device):.0f} s or more"


def _operations(solver: Solver, answers: int) -> float:
    """What a way may take for its factors and so many answers."""
    operations = solver.cost().of(answers)
    return operations * PIVOTING if isinstance(solver, SparseLU) and solver.lost else operations


def for_values(conv: Convolution, options: Options, chosen: Solver) -> Solver:
    """The solver that was chosen, or if it iterates, one that does so until more digits are there; prepared."""
    if chosen.gives_volume or isinstance(chosen, Tiles) or chosen.lost or options.solver == "iterative":
        return chosen
    tol = min(options.tolerance(conv.dtype), ACCURATE)
    solver = Krylov(conv.to(torch.float64), replace(options, tol=tol), torch.float64)
    solver.prepare()
    return solver


def joins(conv: Convolution, options: Options) -> bool:
    """Whether the way that will be tried first lets layers of one shape be groups of one layer."""
    return fits(conv) or next(open_ways(conv, options, {}))[0].solver.joins


def volume(conv: Convolution, options: Options, chosen: Callable[[], Solver]) -> Volume:
    """What gives the log-volume of a map: neither damping nor rtol, which are of its inverse, change it.

    Args:
        conv: the map.
        options: how the inverse is to be computed.
        chosen: the solver of its inverse, which serves where it can.

    Raises:
        OutOfMemoryError: where all refuse.
        SingularMapError: where none keeps its digits.
    """
    if conv.blind_spots:
        rows, columns = conv.shape
        raise SingularMapError(
            f"the log-determinant of the {rows} x {columns} layer is minus infinity whatever its weight, "
            f"{conv.blind_spots}: use another stride, dilation or padding"
        )
    if conv.is_cyclic:
        return coarse(chosen()) or chosen()
    plain = replace(options, damping=0.0, rtol=None)
    scales = balance(conv)
    if scales is not None:
        conv = scales.of(conv)
        return Balanced(_volume(conv, plain, lambda: choose(conv, plain)[0]), scales)
    return _volume(conv, plain, chosen if plain == options else lambda: choose(conv, plain)[0])


def _volume(conv: Convolution, options: Options, chosen: Callable[[], Solver]) -> Volume:
    """The diagonal; what needs no solver; the solver that was chosen; or where it is lost the first of `VOLUMES`."""
    if raster_of(conv) is not None:
        return Triangular(conv.to(torch.float64), options, conv.dtype)
    cut = _cut(conv, options)
    if cut is not None:
        return cut
    try:
        solver = chosen()
        dear = not solver.gives_volume or solver.volume_cost() > SOON + solver.cost().of(options.answers)
        if dear and not (solver.lost or options.solver == "iterative"):
            solver = choose(conv, options, solver.scale, factored=True)[0]
    except (OutOfMemoryError, SingularMapError):  # of an inverse; the volume may yet be told
        solver = choose(conv, replace(options, solver="auto"), factored=True)[0]
    if isinstance(solver, (Explicit, Kronecker)) or (solver.gives_volume and solver.growth < LOSSY):
        return solver
    better = next((better for way in VOLUMES if (better := way(solver)) is not None), None)
    if better is None and not solver.gives_volume and options.solver != "iterative":
        raise _without_volume(conv, options, solver.growth)
    return better or solver


def joined_volume(conv: Convolution, options: Options) -> Volume | None:
    """What gives the log-volume of a map without an inverse, and joins layers; None where something else is better."""
    return None if _needs_solver(conv) else _cut(conv, replace(options, damping=0.0, rtol=None))


def volume_plan(conv: Convolution, options: Options, known: Volume | None) -> Plan | None:
    """The plan of a log-volume that needs no solver; None where it does.

    Args:
        conv: the map.
        options: how its inverse is to be computed.
        known: what the log-volume has come from; None where it has not been asked for.
    """
    cut = known if isinstance(known, (Extrapolated, Cylinder)) else None
    if known is None and not _needs_solver(conv):
        plain = replace(options, damping=0.0, rtol=None)
        few = list(islice(candidates(conv, plain, partial(_first_to_a_volume, options=plain)), 2))
        cut = few[1] if len(few) > 1 else Cylinder(conv) if fits(conv) and options.solver != "iterative" else None
    return None if cut is None else replace(cut.plan(), seconds=cost.seconds(cut.volume_cost(), conv.device))


def _needs_solver(conv: Convolution) -> bool:
    """Whether a log-volume is that of the frequencies or of the diagonal, or is one whose channels are balanced."""
    return conv.is_cyclic or bool(conv.blind_spots) or raster_of(conv) is not None or balance(conv) is not None


def _cut(conv: Convolution, options: Options) -> Volume | None:
    """A few small images, or the torus cut open; None where neither is sooner, or keeps its digits."""
    return extrapolated(conv, options, partial(_first_to_a_volume, options=options)) or cylinder(conv, options)


def _first_to_a_volume(conv: Convolution, options: Options) -> Candidate | None:
    """What would be tried first for a log-volume, nothing of it factored; None where nothing has one."""
    if fits(conv):
        return Cylinder(conv)
    ways = (way for way, _ in open_ways(conv, options, {}, factored=True) if way.solver.gives_volume)
    return next((way.build(conv, options, 0.0) for way in ways), None)


def _without_volume(conv: Convolution, options: Options, growth: float) -> InvconvError:
    """The error that says why no way gives the log-volume, whichever solver was asked for."""
    rows, columns = conv.shape
    which = f"the log-determinant needs the factors of the {rows} x {columns} layer"
    refusals: dict[str, str] = {}
    if list(not_refused(conv, replace(options, solver="direct"), refusals)):
        return SingularMapError(
            f"{which}, and in the ring rounding errors grow about {growth:.0e} times: "
            "use a smaller image, circular borders, or a better conditioned kernel"
        )
    return OutOfMemoryError(f"{which}: {'; '.join(sentences(refusals))}. Use a smaller image, or circular borders")


def _refused(conv: Convolution, options: Options, refusals: dict[str, str]) -> InvconvError:
    """The error that says why no way is open."""
    rows, columns = conv.shape
    if conv.blind_spots and not options.damping:
        return SingularMapError(f"the {rows} x {columns} layer has no full rank, {conv.blind_spots}: {ADVICE}")
    return OutOfMemoryError(
        f"the {rows} x {columns} layer has no way with solver={options.solver!r}: {'; '.join(sentences(refusals))}. "
        "Use solver='iterative', a smaller image, or circular borders"
    )
