"""A network up to one layer, run node by node."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from invconv.errors import InputError
from invconv.inversion import registry
from invconv.inversion.layers import first
from invconv.inversion.selection import Selection, select
from invconv.inversion.trace import trace


@dataclass
class Network:
    """The part of a model that leads from its input to what is selected, run node by node without anything in place."""

    model: nn.Module
    layer: str | Sequence[str] | Selection
    """Layers, or parts of them, as `selection` reads them."""
    example: Tensor | None = None
    """(1, channels, ...), an image to run a model on that cannot be traced."""
    calls: Mapping[str, int] | None = None
    """How often each layer is called, if that is known: nothing behind the last call is then traced."""
    nodes: list[fx.Node] = field(init=False)
    """In the order in which they are run, the layer last."""
    values: dict[fx.Node, Any] = field(init=False, default_factory=dict)
    """What does not depend on the image, or only on its size; after `run`."""
    shapes: dict[fx.Node, torch.Size] = field(init=False, default_factory=dict)
    """Shapes of the tensors that depend on the image; after `run`."""
    sized: set[fx.Node] = field(init=False, default_factory=set)
    """Which of the values depend on the image's size; after `run`."""

    def __post_init__(self) -> None:
        self.selection = self.layer if isinstance(self.layer, Selection) else select(self.model, self.layer)
        graph, outputs = trace(self.model, self.selection.layers, self.example, self.calls)
        self.ends: list[fx.Node] = []
        self.selected = False
        for part in self.selection.parts:
            end = first(outputs.get(part.layer))
            if part.layer not in outputs:
                raise InputError(f"layer {part.layer!r} is not used in the forward pass of {type(self.model).__name__}")
            if not isinstance(end, fx.Node):
                raise InputError(f"layer {part.layer!r} does not depend on the image, or gives no tensor")
            self.ends.append(end)
        needed = set(self.ends)
        for node in reversed(graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        self.nodes = [node for node in graph.nodes if node in needed]
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if not inputs:
            raise InputError(f"layer {self.name!r} does not depend on the image")
        if len(inputs) != 1:
            raise InputError(
                f"layer {self.name!r} depends on {len(inputs)} inputs of the model, expected 1: its images"
            )

    @property
    def name(self) -> str:
        """What is selected, as it was written."""
        return self.selection.text

    @property
    def input(self) -> fx.Node:
        """The node of the image."""
        return next(node for node in self.nodes if node.op == "placeholder")

    @property
    def target(self) -> fx.Node:
        """The node of what is selected."""
        return self.nodes[-1]

    def run(self, x: Tensor) -> dict[fx.Node, Any]:
        """Note the shapes of all tensors, and all values that do not depend on the image or only on its size.

        Args:
            x: (batch, channels, ...), images.

        Returns:
            The values of all nodes.
        """
        values: dict[fx.Node, Any] = {self.input: x}
        moving = {self.input}
        for node in self.nodes:
            self._note(node, values, moving)
        if not self.selected:
            self._select(values, moving)
        if self.target not in self.shapes:
            raise InputError(f"layer {self.name!r} does not depend on the image, or gives no tensor")
        return values

    def _note(self, node: fx.Node, values: dict[fx.Node, Any], moving: set[fx.Node]) -> None:
        """Run one node, and note what it is."""
        if node is not self.input:
            values[node] = self.call(node, values)
        value, given = values[node], any(n in moving for n in node.all_input_nodes)
        if isinstance(value, Tensor) and (node is self.input or given):
            moving.add(node)
            if value.is_floating_point():  # the chain is not cut where there is no derivative
                self.shapes[node] = value.shape
        elif not isinstance(value, Tensor) and isinstance(first(value), Tensor):
            moving.add(node)
        else:
            self.values[node] = value
            if given or any(n in self.sized for n in node.all_input_nodes):
                self.sized.add(node)

    def _select(self, values: dict[fx.Node, Any], moving: set[fx.Node]) -> None:
        """Put the nodes behind the layers that take the parts of their outputs, and join them."""

        def add(function: Callable[..., Any], *args: Any) -> fx.Node:
            node = self.input.graph.call_function(function, args)
            self._note(node, values, moving)
            self.nodes.append(node)
            return node

        parts = []
        for part, end in zip(self.selection.parts, self.ends, strict=True):
            while isinstance(values[end], (tuple, list, Mapping)) and values[end]:
                items = values[end]
                end = add(operator.getitem, end, next(iter(items)) if isinstance(items, Mapping) else 0)
            batch, count = len(values[self.input]), len(values[end])
            if count != batch and count % batch == 0:  # windows of the images
                end = add(torch.unflatten, end, 0, (-1, count // batch))
            if part.index:
                part.of(values[end], batch)  # refuses what is no part
                end = add(operator.getitem, end, (slice(None), *part.index))
            parts.append(end)
        self.selection.balance([values[part] for part in parts])
        if len(parts) > 1:
            flat = [add(torch.flatten, part, 1) for part in parts]
            if self.selection.scales:
                flat = [add(torch.mul, part, scale) for part, scale in zip(flat, self.selection.scales, strict=True)]
            add(torch.cat, flat, 1)
        self.ends, self.selected = parts, True

    def told(self, features: Tensor, node: fx.Node) -> Tensor | None:
        """The value of a node that is one of several parts selected, by the features of all; None for another."""
        if node not in self.ends or node is self.target:
            return None
        sizes = [math.prod(self.shapes[end][1:]) for end in self.ends]
        i = self.ends.index(node)
        value = features.split(sizes, 1)[i]
        if self.selection.scales:
            value = value / self.selection.scales[i]
        return value.view(len(features), *self.shapes[node][1:])

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """One node, out of place."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        if node.op == "call_method":
            name = registry.out_of_place(str(node.target))
            # Cut off from the image, the joint solve would have no gradient.
            return args[0] if name == "detach" else getattr(args[0], name)(*args[1:], **kwargs)
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            if not getattr(module, "inplace", False):
                return module(*args, **kwargs)
            module.inplace = False  # type: ignore[assignment]
            try:
                return module(*args, **kwargs)
            finally:
                module.inplace = True  # type: ignore[assignment]
        if "inplace" in kwargs:
            kwargs = {**kwargs, "inplace": False}
        return registry.out_of_place(node.target)(*args, **kwargs)

    def record(self, x: Tensor) -> dict[fx.Node, Any]:
        """The values of all nodes for an image."""
        values = {**self.values, self.input: x}
        for node in self.nodes:
            if node not in values:
                values[node] = self.call(node, values)
        return values

    def apply(self, x: Tensor, start: fx.Node | None = None, stop: fx.Node | None = None) -> Tensor:
        """The value at `stop` (the layer) when that at `start` (the image) is `x`; differentiable."""
        start, stop = start or self.input, stop or self.target
        if start is stop:
            return x
        values = {**self.values, start: x}
        for node in self.nodes[self.nodes.index(start) + 1 : self.nodes.index(stop) + 1]:
            # The batch may be another one than that of `run`: sizes are read again where that is possible.
            if node not in values or (node in self.sized and all(n in values for n in node.all_input_nodes)):
                values[node] = self.call(node, values)
        return values[stop]
