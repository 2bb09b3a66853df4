"""The closed form: from what is known of a layer's output to what is known of its input, from the top down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from invconv.inversion.chain import Segment, segments
from invconv.inversion.graph import Network
from invconv.inversion.interval import Interval
from invconv.inversion.site import Site, bounds, without_rule

WRONG = 1e-2
"""Relative residual from which on the answer of a rule that solves nothing is taken for wrong: far above rounding
errors, and below what any option, hook or forward that the rule does not know would leave."""
LEFT = "joint solve"
"""Kind of a report for the layers that are left to it."""
PLENTY = 1.5
"""Equations for each number of the image from which on layers may lack some on the way: a small VGG's `6` 0.006
with the closed form and 0.115 without; at 1.3 (EfficientNet-Lite0, `_blocks.0`, equal time) the
error would be 0.004 in place of 0.007, and the PSNR 0.9 dB lower."""
LEAST = 0.5
"""Equations for each unknown that make a closed form worth its while, if inequalities make up for the rest:
SqueezeNet's first pooling has 0.65 and comes back with an error of 0.003 in place of 0.16."""


@dataclass(frozen=True)
class LayerReport:
    """What one rule did; counts are for one image."""

    name: str
    """The layer, as in `model.named_modules()`."""
    kind: str
    """Class of the module, or name of the function; of several, joined by plus signs."""
    equations: int
    """Outputs whose value was known."""
    inequalities: int
    """Outputs of which a bound was known."""
    unknowns: int
    """Numbers in the input."""
    residual: float
    """What the input leaves of the equations and inequalities, relative, by a run of the layer itself; NaN for layers
    that are left to the joint solve."""
    note: str
    """What was lost, or how it was solved."""

    def __str__(self) -> str:
        counts = f"{self.equations} equations, {self.inequalities} inequalities, {self.unknowns} unknowns"
        residual = "" if math.isnan(self.residual) else f", residual {self.residual:.1e}"
        return f"{self.name} ({self.kind}): {counts}{residual}{'; ' * bool(self.note)}{self.note}"


def noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """A picture of smooth noise, always the same, with the mean 0 and variance 1 of a normalised image."""
    coarse = torch.randn(*shape[:2], *((n + 3) // 4 for n in shape[2:]), generator=torch.Generator().manual_seed(0))
    mode = {3: "linear", 4: "bicubic", 5: "trilinear"}[len(shape)]
    fine = F.interpolate(coarse, size=tuple(shape[2:]), mode=mode, align_corners=False)
    scale = fine.std() if fine.numel() > 1 else torch.zeros(())
    return (fine / scale if scale > 0 else fine).to(like)  # of a few pixels all may be one


def closed_form(
    network: Network,
    features: Tensor,
    keep: Callable[[], dict[fx.Node, Tensor]],
    rounds: int,
    iterations: int,
    rough: Callable[[], Tensor] | None,
) -> tuple[Tensor | None, list[LayerReport]]:
    """An image, and a report of each layer, from the top down.

    What least squares hand on where equations lack is filled up from noise, and counts for no more equations than
    there were. Where a joint solve follows, it is filled up from a `rough` picture of that, and layers that lack most
    of their equations are left to it: there is no image then.
    """
    output, reports = Interval.point(features), []
    chain = segments(network)
    known = features[0].numel()
    most = int((features != 0).sum()) // len(features)
    left = rough is not None and most < PLENTY * chain[0].unknowns
    if left:
        for i, segment in reversed(list(enumerate(chain))):
            if _lacking(most, math.prod(network.shapes[segment.stop][1:]) - most, segment):
                return None, [_left(chain, i, most)]
    picture = noise(network.shapes[network.input], features) if rough is None else rough()
    usual, kept = network.record(picture), keep()
    for i, segment in reversed(list(enumerate(chain))):
        known = min(known, output.equations // len(features))
        inequalities = output.inequalities // len(features)
        if left and _lacking(known, inequalities, segment):
            reports.append(_left(chain, i, known, inequalities))
            return None, reports
        narrow = any(below.unknowns < segment.unknowns for below in chain[:i])
        seen = kept.get(segment.stop)
        site = Site(segment, features[:0], usual[segment.start], seen, rounds, iterations, narrow, known)
        output = _undo(site, output)  # the input of this layer is the output of the one below
        reports.append(
            LayerReport(segment.name, segment.kind, known, inequalities, segment.unknowns, site.residual, site.note)
        )
    return output.clamp(usual[network.input]), reports


def _left(chain: list[Segment], lacking: int, known: int, inequalities: int = 0) -> LayerReport:
    """The report of all layers that are left to the joint solve, since one of them lacks equations."""
    segment = chain[lacking]
    name = " to ".join(dict.fromkeys((chain[-1].name, chain[0].name)))
    note = f"at most {known} equations for {segment.unknowns} unknowns at {segment.name!r}: left to the joint solve"
    return LayerReport(name, LEFT, known, inequalities, chain[0].unknowns, math.nan, note)


def _lacking(known: int, inequalities: int, segment: Segment) -> bool:
    """Whether a segment that is solved for its input has so few equations that most of it would be noise."""
    rule = segment.rule
    if rule is not None and not rule.solves:
        return False
    return known < LEAST * segment.unknowns or known + inequalities < segment.unknowns


def _undo(site: Site, output: Interval) -> Interval:
    """What is known of a segment's input; what that leaves, the layers themselves tell, not their rules."""
    rule = site.segment.rule
    given = _solved(site, output) if rule is None else rule.function(site, output)
    site.residual = site.measure(output, given)
    if rule is not None and not rule.solves and not site.note and not site.residual < WRONG:
        return _mended(site, output, given)
    return given


def _solved(site: Site, output: Interval) -> Interval:
    """What is known of the input of several layers, or of one that no rule holds for, by least squares."""
    segment = site.segment
    together = "one linear map" if segment.affine else "solved together"
    site.note = together if segment.single is None else without_rule(segment)
    starts = [site.usual, torch.zeros_like(site.usual)]
    if output.lower.shape == segment.shape:  # the straight way of a residual sum, and near to many functions
        starts.insert(0, output.clamp(torch.zeros_like(output.lower)))
    told = segment.network.told(output.lower, segment.start) if segment.stop is segment.network.target else None
    if told is not None:  # one of several layers, on which the others depend
        starts.insert(0, told)
    low, high = bounds(segment.network, segment.start)
    starts = [start.clamp(low, high) for start in starts]
    if segment.affine:
        starts.insert(0, _one_by_one(site, output))
    elif segment.single is None:
        return site.solve(output, starts[0])
    nearest = min(starts, key=lambda start: site.measure(output, Interval.point(start)))
    return site.solve(output, nearest, affine=segment.affine)


def _one_by_one(site: Site, output: Interval) -> Tensor:
    """The input of several affine layers by their rules, one after the other, as far as these iterate nothing."""
    network, chain = site.segment.network, [site.segment.start, *site.segment.nodes]
    for start, node in reversed(list(pairwise(chain))):
        usual = network.apply(site.usual, chain[0], start)
        part = Site(Segment(network, start, node, [node]), site.like, usual, rounds=0)
        assert part.segment.rule is not None  # else it would not be known for affine
        output = part.segment.rule.function(part, output)
    return output.clamp(site.usual)


def _mended(site: Site, output: Interval, given: Interval) -> Interval:
    """What least squares make of a rule's answer that does not give the output: the layer is not what it seems."""
    before = site.residual
    start = site.box.clamp(torch.where(given.upper.isfinite(), given.upper, site.usual))
    solved = site.solve(output, start)
    site.residual = site.measure(output, solved)
    site.note = "; ".join(filter(None, [f"its rule left {before:.1e}: solved numerically", site.note]))
    if site.residual < before:
        return solved
    site.residual, site.note = before, f"its rule left {before:.1e}, and least squares no less"
    return given
