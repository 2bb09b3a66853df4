"""A network as a chain of segments that each have one tensor going in and one coming out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from invconv.inversion import registry
from invconv.inversion.graph import Network


@dataclass
class Segment:
    """One layer, or several that are only solved together: residual sums, branches, a norm and what it divides."""

    network: Network
    start: fx.Node
    """Whose value goes in."""
    stop: fx.Node
    """Whose value comes out."""
    nodes: list[fx.Node]
    """All after `start`, up to `stop`."""

    @property
    def single(self) -> fx.Node | None:
        """The node of a segment that is one layer; None for several."""
        return self.nodes[0] if len(self.nodes) == 1 else None

    @property
    def rule(self) -> registry.Rule | None:
        """The rule of one layer, or of several that only copy entries; None where there is none that holds."""
        each = [registry.of_node(self.network.model, node) for node in self.nodes]
        if len(each) == 1:
            return each[0]
        return registry.copying() if all(rule is not None and rule.copies for rule in each) else None

    @property
    def affine(self) -> bool:
        """Whether it is a chain of layers that are linear but for a constant, or move entries about."""
        each = [registry.of_node(self.network.model, node) for node in self.nodes]
        return not self.branches and all(rule is not None and (rule.affine or rule.copies) for rule in each)

    @property
    def branches(self) -> bool:
        """Whether ways part and meet again inside, as in a residual block."""
        moving = self.network.shapes
        return any(sum(n in moving for n in node.all_input_nodes) > 1 for node in self.nodes)

    @property
    def shape(self) -> torch.Size:
        """(batch, ...) of the tensor that goes in."""
        return self.network.shapes[self.start]

    @property
    def unknowns(self) -> int:
        """Numbers for one image that go in."""
        return math.prod(self.shape[1:])

    @property
    def name(self) -> str:
        """The module that the segment lies in, as in `named_modules`; else the function."""
        stacks = [_modules(node) for node in self.nodes]
        shared = [name for name in stacks[0] if name and all(name in stack for stack in stacks)]
        if shared:
            return shared[-1]
        names = [name[-1] for name in (stacks[0], stacks[-1]) if name and name[-1]]
        return " to ".join(dict.fromkeys(names)) or str(self.stop.name)

    @property
    def kind(self) -> str:
        """What the segment is made of."""
        kinds = [registry.kind(self.network.model, node) for node in self.nodes]
        return kinds[0] if len(kinds) == 1 else " + ".join(dict.fromkeys(kinds))

    def apply(self, x: Tensor) -> Tensor:
        """What comes out when `x` goes in; differentiable."""
        return self.network.apply(x, self.start, self.stop)


def segments(network: Network) -> list[Segment]:
    """The chain, from the image to the layer; after `run`."""
    moving = [node for node in network.nodes if node not in network.values]
    index = {node: i for i, node in enumerate(moving)}
    reach = [max((index[n] for n in node.users if n in index), default=0) for node in moving]
    cuts, furthest = [moving[0]], 0
    for i in range(1, len(moving)):
        furthest = max(furthest, reach[i - 1])
        if furthest <= i and moving[i] in network.shapes:  # not at a tuple of tensors
            cuts.append(moving[i])
    chain: list[Segment] = []
    start = cuts[0]
    for stop in cuts[1:]:
        between = moving[index[start] + 1 : index[stop] + 1]
        # A layer that is only determined together with the one below it shares a segment with that one.
        if len(between) == 1 and _has(network, stop, "joins"):
            while chain:
                below = chain.pop()
                start, between = below.start, [*below.nodes, *between]
                if len(below.nodes) > 1 or _has(network, below.stop, "solves"):
                    break
        elif len(between) == 1 and chain and _widened(network, chain[-1], stop):
            below = chain.pop()
            start, between = below.start, [*below.nodes, stop]
        chain.append(Segment(network, start, stop, between))
        start = stop
    return chain


def _widened(network: Network, below: Segment, node: fx.Node) -> bool:
    """Whether a layer is affine, and at the bottom of those it would be solved with entries are added.

    As by padding, or upsampling. Solved together, what links them is known; and each output counts as at the top.
    """
    added, between = below.nodes[0], below.nodes[1:]
    rule = registry.of_node(network.model, added)
    if rule is None or not rule.copies or added not in network.shapes:
        return False
    if network.shapes[added].numel() <= network.shapes[below.start].numel():
        return False
    return all(_has(network, n, "affine") for n in (*between, node))


def _has(network: Network, node: fx.Node, trait: str) -> bool:
    rule = registry.of_node(network.model, node)
    return rule is not None and bool(getattr(rule, trait))


def _modules(node: fx.Node) -> list[str]:
    """Names of the modules around a node, outermost first."""
    names = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if node.op == "call_module" and node.target not in names:
        names.append(str(node.target))
    return names
