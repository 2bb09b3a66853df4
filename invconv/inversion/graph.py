"""A network up to one layer, as a chain of segments that each have one tensor going in and one coming out."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from invconv.errors import InputError
from invconv.inversion import registry

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def layer_names(model: nn.Module) -> list[str]:
    """All names of layers, as in `model.named_modules()`.

    Example:
        >>> layer_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        ['0', '1']
    """
    return [name for name, _ in model.named_modules() if name]


def spread(model: nn.Module, count: int = 5) -> list[str]:
    """Names of `count` layers over the depth, activations and poolings where the model has them as modules.

    Example:
        >>> spread(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()))
        ['1', '3']
    """
    kinds = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.MaxPool2d)
    names = [name for name in layer_names(model) if isinstance(model.get_submodule(name), kinds)]
    names = names or [name for name in layer_names(model) if not list(model.get_submodule(name).children())]
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)] if len(names) > count else names


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Within, `model` is in eval mode; on leaving, every module is in the mode that it was in."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def check_layer(model: nn.Module, layer: str) -> None:
    names = layer_names(model)
    if layer not in names:
        near = difflib.get_close_matches(str(layer), names, n=4, cutoff=0.4)
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise InputError(
            f"{type(model).__name__} has no layer {layer!r}: {hint}invconv.inversion.layer_names(model) lists all "
            f"{len(names)}"
        )


@contextmanager
def observe(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within, `model` is in eval mode and each forward leaves the outputs of `layers` in the dictionary.

    Outputs are copies: layers that work in place do not change them.  On leaving, the hooks are gone and every
    module is in the mode that it was in.

    Raises:
        InputError: for a name that the model has not; the text names the closest ones.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
        >>> with observe(model, ["0"]) as outputs:
        ...     _ = model(torch.zeros(1, 3, 8, 8))
        >>> outputs["0"].shape, model.training
        (torch.Size([1, 8, 6, 6]), True)
    """
    for layer in layers:
        check_layer(model, layer)
    outputs: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"layer {name!r} gives {type(output).__name__}, not a tensor: choose one inside it")
            outputs[name] = output.clone()

        return hook

    hooks = [model.get_submodule(layer).register_forward_hook(keep(layer)) for layer in layers]
    try:
        with evaluation(model):
            yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class _Tracer(fx.Tracer):
    """Looks into every module that has no rule of its own and is not one of PyTorch's."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return registry.find(module) is not None or super().is_leaf_module(module, name)


@dataclass
class Network:
    """The part of a model that leads from its input to one layer, run node by node without anything in place."""

    model: nn.Module
    layer: str
    nodes: list[fx.Node] = field(init=False)
    values: dict[fx.Node, Any] = field(init=False, default_factory=dict)
    shapes: dict[fx.Node, torch.Size] = field(init=False, default_factory=dict)
    sized: set[fx.Node] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        try:
            graph = _Tracer().trace(self.model)
        except Exception as error:  # whatever a model's own code raises when it meets a proxy
            raise InputError(
                f"{type(self.model).__name__} cannot be traced by torch.fx ({error}): where its forward decides by "
                "values, wrap the functions that do so with torch.fx.wrap, or invert one of its submodules; of a "
                "compiled or parallel model, give the module inside"
            ) from error
        inside = [node for node in graph.nodes if self._inside(node)]
        if not inside:
            raise InputError(f"layer {self.layer!r} is not used in the forward pass of {type(self.model).__name__}")
        target = inside[-1]
        needed = {target}
        for node in reversed(graph.nodes):
            if node in needed:
                needed.update(node.all_input_nodes)
        self.nodes = [node for node in graph.nodes if node in needed]
        inputs = [node for node in self.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            raise InputError(
                f"layer {self.layer!r} depends on {len(inputs)} inputs of the model, expected 1: its images"
            )

    def _inside(self, node: fx.Node) -> bool:
        if node.op == "call_module" and node.target == self.layer:
            return True
        return self.layer in _modules(node)

    @property
    def input(self) -> fx.Node:
        return next(node for node in self.nodes if node.op == "placeholder")

    @property
    def target(self) -> fx.Node:
        return self.nodes[-1]

    def run(self, x: Tensor) -> None:
        """Note the shapes of all tensors, and all values that do not depend on the image or only on its size."""
        values: dict[fx.Node, Any] = {self.input: x}
        moving = {self.input}
        for node in self.nodes:
            if node is not self.input:
                values[node] = self.call(node, values)
            value = values[node]
            if isinstance(value, Tensor) and (node is self.input or any(n in moving for n in node.all_input_nodes)):
                moving.add(node)
                self.shapes[node] = value.shape
            elif isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value):
                moving.add(node)
            else:
                self.values[node] = value
                if any(n in moving or n in self.sized for n in node.all_input_nodes):
                    self.sized.add(node)
        if self.target not in self.shapes:
            raise InputError(f"layer {self.layer!r} does not depend on the image, or gives no tensor")

    def call(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """One node, out of place."""
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.model)
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        if node.op == "call_method":
            name = str(node.target)
            name = name[:-1] if name.endswith("_") and not name.endswith("__") else name
            return getattr(args[0], name)(*args[1:], **kwargs)
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
        function: Any = node.target
        return _OUT_OF_PLACE.get(function, function)(*args, **kwargs)

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
            if node not in values or node in self.sized:  # the batch may be another one than that of `run`
                values[node] = self.call(node, values)
        return values[stop]

    def segments(self) -> list[Segment]:
        """The chain, from the image to the layer; after `run`."""
        moving = [node for node in self.nodes if node not in self.values]
        place = {node: i for i, node in enumerate(moving)}
        reach = [max((place[n] for n in node.users if n in place), default=0) for node in moving]
        cuts, furthest = [moving[0]], 0
        for i in range(1, len(moving)):
            furthest = max(furthest, reach[i - 1])
            if furthest <= i and moving[i] in self.shapes:  # not at a tuple of tensors
                cuts.append(moving[i])
        chain: list[Segment] = []
        start = cuts[0]
        for stop in cuts[1:]:
            between = moving[place[start] + 1 : place[stop] + 1]
            # A layer that is only determined together with the one below it shares a segment with that one.
            if len(between) == 1 and self._has(stop, "joins"):
                while chain:
                    below = chain.pop()
                    start, between = below.start, [*below.nodes, *between]
                    if len(below.nodes) > 1 or self._has(below.stop, "solves"):
                        break
            chain.append(Segment(self, start, stop, between))
            start = stop
        return chain

    def _has(self, node: fx.Node, trait: str) -> bool:
        found = registry.of_node(self.model, node)
        return found is not None and getattr(found, trait)


@dataclass
class Segment:
    """One layer, or several that are only solved together: residual sums, branches, a norm and what it divides."""

    network: Network
    start: fx.Node
    stop: fx.Node
    nodes: list[fx.Node]

    @property
    def single(self) -> fx.Node | None:
        return self.nodes[0] if len(self.nodes) == 1 else None

    @property
    def branches(self) -> bool:
        """Whether ways part and meet again inside, as in a residual block."""
        moving = self.network.shapes
        return any(sum(n in moving for n in node.all_input_nodes) > 1 for node in self.nodes)

    @property
    def shape(self) -> torch.Size:
        """Of the tensor that goes in."""
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
        """What it is made of."""
        kinds = [registry.kind(self.network.model, node) for node in self.nodes]
        return kinds[0] if len(kinds) == 1 else " + ".join(dict.fromkeys(kinds))

    def apply(self, x: Tensor) -> Tensor:
        return self.network.apply(x, self.start, self.stop)


def _modules(node: fx.Node) -> list[str]:
    """Names of the modules around a node, outermost first."""
    names = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values()]
    if node.op == "call_module" and node.target not in names:
        names.append(str(node.target))
    return names
