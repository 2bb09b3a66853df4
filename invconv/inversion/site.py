"""The place of one layer in a network: what its rule is given, and how a forward pass and bounds are had for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.overrides import resolve_name

from invconv.inversion import registry
from invconv.inversion.chain import Segment
from invconv.inversion.graph import Network
from invconv.inversion.interval import Interval
from invconv.inversion.least_squares import LITTLE, gauss_newton, length

PATIENCE = 6
"""Rounds of Gauss-Newton after which each has to gain half a digit; speed only."""

NEAR = 1e-4
"""Residual of a start up to which it is improved, and not found anew; speed only."""


@dataclass
class Site:
    """One segment of the chain, while it is inverted; a `Place` for the rule of its layer."""

    segment: Segment
    like: Tensor
    """An empty tensor of the network's dtype and device."""
    usual: Tensor
    """What the layer is given for a picture of noise: where unknowns stay that no equation determines."""
    kept: Tensor | None = None
    """What the rule's `keep` returned on the forward pass."""
    rounds: int = 10
    """Most rounds of Gauss-Newton."""
    iterations: int = 40
    """Of conjugate gradients in each round."""
    narrow: bool = False
    """Whether a layer below is given fewer numbers than this one, and so cannot follow what is chosen freely here."""
    known: int | None = None
    """Equations there are for one image, where the output has been filled up from noise; None for all of its own."""
    residual: float = 0.0
    """What the input that was solved for leaves of the equations and inequalities, relative."""
    note: str = ""
    """What was lost, or how the layer was solved."""

    @property
    def node(self) -> fx.Node:
        """The layer's node in the graph; only where the segment is one layer."""
        assert self.segment.single is not None
        return self.segment.single

    @property
    def module(self) -> Any:
        """The layer; None for a function."""
        if self.node.op != "call_module":
            return None
        return self.segment.network.model.get_submodule(str(self.node.target))

    @property
    def args(self) -> tuple[Any, ...]:
        """What the layer is called with after its input, by position."""
        values = self.segment.network.values
        return fx.node.map_arg(self.node.args[1:], values.get)  # None for what depends on the image

    @property
    def kwargs(self) -> dict[str, Any]:
        """What the layer is called with by name."""
        values = self.segment.network.values
        return fx.node.map_arg(dict(self.node.kwargs), values.get)

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of a function, by name or by position after the input, or an attribute of a module."""
        if self.module is not None:
            return getattr(self.module, name)
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    @property
    def name(self) -> str:
        """Name of the layer, as in `named_modules`; of a function, that of the module around it."""
        return self.segment.name

    @property
    def switches(self) -> Tensor | None:
        """What was kept, under the name that it has for max pooling: where the maxima were."""
        return self.kept

    @property
    def unknowns(self) -> int:
        """How many numbers the input has for one image."""
        return self.segment.unknowns

    @property
    def shape(self) -> torch.Size:
        """(batch, ...) of the layer's input."""
        return self.segment.shape

    def apply(self, x: Tensor) -> Tensor:
        """The layer on an input of its shape, the batch aside; differentiable."""
        return self.segment.apply(x)

    def function(self, x: Tensor) -> Tensor:
        """The layer, for one that works entry by entry and so on any shape."""
        return self.segment.network.call(self.node, {**self.segment.network.values, self.segment.start: x})

    @property
    def box(self) -> Interval:
        """What values the layer's input can have, given the layer below."""
        return Interval.between(*bounds(self.segment.network, self.segment.start), self.like.new_empty(self.shape))

    def solve(self, output: Interval, start: Tensor | None = None, affine: bool = False) -> Interval:
        """Least squares for the input, as `Place.solve` says."""
        box = self.box
        if start is None:
            start = box.clamp(self.usual)
        known = output.equations // self.shape[0]
        missing = self.unknowns - (known if self.known is None else min(known, self.known))
        rounds, iterations = self.rounds, self.iterations
        if missing > 0 and self.narrow:
            rounds, iterations = min(rounds, 2), min(iterations, 10)
        affine = affine and self._is_affine(start)
        descend = partial(gauss_newton, self.apply, output, box=box, affine=affine)
        one_system = affine and missing <= 0 and bool(output.exact.all())
        if one_system and self.measure(output, Interval.point(start)) > NEAR:
            start = descend(start, rounds=1, iterations=rounds * iterations, damping=LITTLE).x
            rounds = 1  # for what that has rounded, or led out of the box
        solution = descend(start, rounds=rounds, iterations=iterations, patience=PATIENCE)
        self.residual = solution.residual
        if missing > 0:
            fewer = f"{missing} fewer equations than unknowns: the rest as at the start"
            self.note = "; ".join(filter(None, [self.note, fewer]))
        return Interval.point(box.clamp(solution.x))

    def _is_affine(self, x: Tensor) -> bool:
        """Whether the layer is linear but for a constant, at two images and their sum: not x * x, nor 1 / x."""
        other = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
        both, one, two, none = (self.apply(v) for v in (x + other, x, other, torch.zeros_like(x)))
        difference = float((both - one - two + none).norm())
        return difference <= torch.finfo(x.dtype).eps ** 0.5 * float(both.norm() + one.norm() + two.norm())

    def measure(self, output: Interval, given: Interval) -> float:
        """What an input leaves of what is known of the output, relative, by the layer itself; mean over the batch.

        Of an interval the ends are taken, which all rules have as solutions; where there are none, `usual`.
        """
        x = torch.where(given.upper.isfinite(), given.upper, given.lower)
        x = torch.where(x.isfinite(), x, self.usual)
        excess = output.excess(self.apply(x)).flatten(1).norm(dim=1)
        return float((excess / length(output.clamp(torch.zeros_like(output.lower)))).mean())


def bounds(network: Network, node: fx.Node) -> tuple[float, float]:
    """Least and largest value that a node can give."""
    rule = registry.of_node(network.model, node)
    if rule is None:
        return float("-inf"), float("inf")
    start = node.all_input_nodes[0]
    if rule.range is None:
        return bounds(network, start)
    if not callable(rule.range):
        return rule.range
    nothing = torch.empty(0)
    return rule.range(Site(Segment(network, start, node, [node]), nothing, nothing))


def kept(network: Network, values: Mapping[fx.Node, Any]) -> dict[fx.Node, Tensor]:
    """What rules keep of a forward pass, for each node whose rule has something to keep.

    Args:
        network: the part of a model that ends with the layer.
        values: of all nodes, on that pass.
    """
    found = {}
    for node in network.nodes:
        rule = registry.of_node(network.model, node)
        if rule is not None and rule.keep is not None:
            given = values[node.all_input_nodes[0]]
            site = Site(Segment(network, node.all_input_nodes[0], node, [node]), values[network.input][:0], given)
            found[node] = rule.keep(site, given)
    return found


def without_rule(segment: Segment) -> str:
    """What to say of a layer that is solved numerically: no rule holds for it, and how to give it one."""
    node, model = segment.nodes[0], segment.network.model
    if "remark" in node.meta:
        return str(node.meta["remark"])
    nearest, name = registry.base_of_node(model, node), registry.kind(model, node)
    if nearest is not None:
        method = registry.changed(model.get_submodule(str(node.target)), nearest)
        return f"{name} has a {method} of its own: solved numerically, not by the rule of {nearest.__name__}"
    key = {"call_method": repr(name), "call_function": resolve_name(node.target)}.get(node.op) or name
    return f"{name} has no rule: solved numerically (@invconv.inversion.rule({key}) registers one)"
