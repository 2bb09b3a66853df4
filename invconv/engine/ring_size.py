"""What a dense system of the border takes, before anything is computed: unknowns, memory, operations."""

from __future__ import annotations

import math

from invconv.engine import cost, known, memory
from invconv.engine.convolution import Convolution
from invconv.engine.windows import smallest_torus
from invconv.options import Options
from invconv.report import Plan

RING = 1.0
"""Operations of the dense system, half of whose unknowns are on lines, for each unknown cubed.  Speed only."""

MOST_UNKNOWNS = 20_000
"""The largest ring that `auto` factors: 3.2 GB in float64, a minute or two on two cores."""


def unknowns_of_inputs(conv: Convolution) -> int:
    """Values at the places of the smallest torus outside the image, for each group."""
    torus = smallest_torus(conv.geometry, conv.input_size)
    return conv.weight.shape[1] * (math.prod(torus) - math.prod(conv.input_size))


def unknowns_of_outputs(conv: Convolution) -> int:
    """Values at the places of the smallest torus, after the stride, outside the output, for each group."""
    torus = smallest_torus(conv.geometry, conv.input_size)
    places = math.prod(torus) // math.prod(conv.geometry.stride)
    return conv.block_shape[0] * (places - math.prod(conv.output_size))


def plan_system(name: str, conv: Convolution, options: Options, unknowns: int, more: int = 0) -> Plan | str:
    """The plan of a solver whose border is a dense system of so many unknowns, or why it is too large.

    Args:
        name: of the solver.
        conv: the map.
        options: how the inverse is to be computed.
        unknowns: in each group.
        more: bytes that the solver takes besides.
    """
    if conv.blind_spots and not options.damping:
        return conv.blind_spots
    groups = conv.geometry.groups
    torus = smallest_torus(conv.geometry, conv.input_size)
    blocks = math.prod(torus) * conv.weight.shape[1] * conv.out_channels
    peak = int(groups * unknowns**2 * 8 * 2.2) + 8 * 6 * blocks + conv.fft_bytes + known.bytes_for(conv) + more
    ring = f"its ring of {unknowns} unknowns in each of {groups} groups"
    if short := memory.shortage(conv.device, peak, ring):
        return short
    if unknowns > MOST_UNKNOWNS and options.solver == "auto":
        return f"{ring} is larger than the {MOST_UNKNOWNS} that are not left to other ways"
    return Plan(name, unknowns, peak, "the ring is small enough to factor")


def system_cost(conv: Convolution, unknowns: int) -> cost.Cost:
    """What the torus and a dense system of so many unknowns take, and known images that are sent through."""
    torus = cost.torus(conv, smallest_torus(conv.geometry, conv.input_size))
    entries = conv.geometry.groups * float(unknowns) ** 2
    share = cost.precision(conv)
    answer = 3 * cost.CALL + 2 * torus.answer + cost.convolution(conv) + share * 4 * cost.BYTE * entries
    return cost.Cost(30 * cost.CALL + torus.factors + share * RING * entries * unknowns + 4 * answer, answer)
