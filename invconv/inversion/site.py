"""The place of one layer in a network: what its rule may know, and the solver that it may call."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import resolve_name

from invconv.inversion import registry
from invconv.inversion.graph import Network, Segment
from invconv.inversion.interval import Interval
from invconv.inversion.solver import gauss_newton


@dataclass
class Site:
    """One segment of the chain, while it is inverted."""

    segment: Segment
    like: Tensor
    """An empty tensor of the batch's size, dtype and device."""
    usual: Tensor
    """What the layer is given for a picture of noise: where unknowns stay that no equation determines."""
    switches: Tensor | None = None
    """Of a max-pooling layer: where its maxima were, as `return_indices` gives them."""
    rounds: int = 10
    iterations: int = 40
    brief: bool = False
    """Whether a joint solve follows, which finds sooner what many rounds here would find."""
    residual: float = 0.0
    note: str = ""

    @property
    def node(self) -> fx.Node:
        assert self.segment.single is not None
        return self.segment.single

    @property
    def module(self) -> Any:
        """The layer; None for a function."""
        return (
            self.segment.network.model.get_submodule(str(self.node.target)) if self.node.op == "call_module" else None
        )

    @property
    def args(self) -> tuple[Any, ...]:
        """What the layer is called with after its input."""
        values = self.segment.network.values
        return fx.node.map_arg(self.node.args[1:], lambda n: values[n])

    @property
    def kwargs(self) -> dict[str, Any]:
        values = self.segment.network.values
        return fx.node.map_arg(dict(self.node.kwargs), lambda n: values[n])

    def option(self, name: str, position: int, default: Any = None) -> Any:
        """An argument of a function or an attribute of a module."""
        if self.module is not None:
            return getattr(self.module, name)
        if name in self.kwargs:
            return self.kwargs[name]
        return self.args[position] if len(self.args) > position else default

    @property
    def shape(self) -> torch.Size:
        """(batch, ...) of the layer's input."""
        return self.segment.shape

    def apply(self, x: Tensor) -> Tensor:
        return self.segment.apply(x)

    def function(self, x: Tensor) -> Tensor:
        """The layer, for one that works entry by entry and so on any shape."""
        return self.segment.network.call(self.node, {**self.segment.network.values, self.segment.start: x})

    @property
    def box(self) -> Interval:
        """What values the layer's input can have, given the layer below."""
        return Interval.between(*bounds(self.segment.network, self.segment.start), self.like.new_empty(self.shape))

    def solve(self, known: Interval, start: Tensor | None = None, affine: bool = False) -> Interval:
        """Least squares for the input: equations where the output is known, inequalities where it is bounded."""
        box = self.box
        if start is None:
            start = box.clamp(self.usual)
        missing = self.segment.unknowns - known.equations // self.shape[0]
        rounds, iterations = self.rounds, self.iterations
        if self.brief and self.segment.branches:
            rounds, iterations = min(rounds, 1), min(iterations, 2)
        elif self.brief and missing > 0:
            rounds, iterations = min(rounds, 2), min(iterations, 10)
        patience = 6 if self.brief else None
        solution = gauss_newton(
            self.apply, known, start, box, affine=affine, rounds=rounds, iterations=iterations, patience=patience
        )
        self.residual = solution.residual
        if missing > 0:
            self.note = f"{missing} fewer equations than unknowns: the nearest to those of noise"
        return Interval.point(box.clamp(solution.x))


def bounds(network: Network, node: fx.Node) -> tuple[float, float]:
    """Least and largest value that a node can give."""
    found = registry.of_node(network.model, node)
    if found is None:
        return float("-inf"), float("inf")
    return bounds(network, node.all_input_nodes[0]) if found.range is None else found.range


def missing_rule(model: nn.Module, segment: Segment) -> str:
    """What to say of a layer without a rule, and how to give it one."""
    node = segment.nodes[0]
    kind = registry.kind(model, node)
    key = {"call_method": repr(kind), "call_function": resolve_name(node.target)}.get(node.op) or kind
    return (
        f"{kind} (at {segment.name!r}) has no rule: register one with @invconv.inversion.rule({key}), a function "
        "(site, known) that gives what is known of the input; `return site.solve(known)` serves any smooth layer"
    )
