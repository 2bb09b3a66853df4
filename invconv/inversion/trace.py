"""What a model does, as a graph: by a symbolic trace, or else by one run, or else as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx, nn

from invconv.errors import InputError
from invconv.inversion import registry
from invconv.inversion.layers import first, layer_names
from invconv.inversion.recorded import record
from invconv.inversion.whole import whole
from invconv.inversion.wrappers import inside


class _Reached(BaseException):
    """All that is asked for has been traced; no `except Exception` of a model's own code is in the way."""


def trace(
    model: nn.Module, layers: list[str], example: Tensor | None, calls: Mapping[str, int] | None = None
) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph of a model, and the nodes of what each of its modules that are called gives last, by name.

    Args:
        model: for all images where torch.fx can trace it; else for those like the example.
        layers: that are asked for.
        example: (1, channels, ...), an image to run a model on that cannot be traced.
        calls: how often each of the layers is called, so that nothing behind the last call needs to be traced.

    Raises:
        InputError: where it cannot be traced, and there is no example.
    """
    tracer = _Tracer(calls if calls and all(calls.values()) else {})
    try:
        return tracer.trace(model), tracer.outputs
    except _Reached:
        return tracer.graph, tracer.outputs
    except Exception as error:  # whatever a model's own code raises when it meets a proxy
        reason = error
    if example is None:
        raise InputError(f"{type(model).__name__} cannot be traced by torch.fx ({reason})") from reason
    try:
        return record(model, example, lambda m, name: tracer.is_leaf_module(m, name) or not _opens(m))
    except Exception as error:  # whatever it raises when it is run
        return whole(model, layers, str(error))


def reached(model: nn.Module, example: Tensor) -> list[str]:
    """Names of the layers whose output depends on the image, in the order in which they are first run.

    Args:
        model: run in the mode that it is in, where it cannot be traced.
        example: (1, channels, ...), an image.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
        >>> model[1].aside = nn.Linear(2, 2)
        >>> reached(model, torch.zeros(1, 1, 8, 8))
        ['0', '1']
    """
    graph, outputs = trace(model, [], example)
    moving: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or moving.intersection(node.all_input_nodes):
            moving.add(node)
    names = [name for name, value in outputs.items() if name and first(value) in moving]
    return names or layer_names(model)


class _Tracer(fx.Tracer):
    """Looks into every module that has no rule of its own and is not one of PyTorch's, and into those that are wrapped.

    It also looks into those whose class has a rule but whose forward is another, where it can; else they stay whole.
    """

    def __init__(self, calls: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.outputs: dict[str, Any] = {}
        """What each module that was called gave last, by its name."""
        self.calls = dict(calls or {})
        """How often each of the layers that are asked for is still to be called; when none is, the trace ends."""
        self.closed: set[nn.Module] = set()
        """Modules that cannot be looked into."""

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inner = inside(m)[1]
        value = self._opened(m, forward, args, kwargs) if inner is None else inner(*args, **kwargs)
        name = self.path_of_module(m)
        self.outputs[name] = fx.node.map_aggregate(value, lambda v: getattr(v, "node", v))
        if name in self.calls:
            self.calls[name] -= 1
            if not any(self.calls.values()):
                raise _Reached
        return value

    def _opened(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a module gives, traced again as a whole where it was looked into and could not be followed."""
        before, outputs, stack = len(self.graph.nodes), dict(self.outputs), self.module_stack.copy()
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:  # whatever its own code raises when it meets a proxy
            if registry.base(m) is None or m in self.closed:
                raise
        self.closed.add(m)
        for node in reversed(list(self.graph.nodes)[before:]):
            if node.op != "get_attr":  # which the tracer keeps for the next use
                self.graph.erase_node(node)
        self.outputs, self.module_stack = outputs, stack
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if registry.find(module) is not None:
            return True
        if registry.base(module) is not None:
            return module in self.closed
        return inside(module)[1] is None and super().is_leaf_module(module, name)


def _opens(module: nn.Module) -> bool:
    """Whether a module whose class has a rule, but whose forward is another, can be traced by itself."""
    if registry.base(module) is None:
        return True
    try:
        _Tracer().trace(module)
    except Exception:  # whatever its own code raises when it meets a proxy
        return False
    return True
