"""A graph of what one run of a model does: for code that decides by shapes, which a symbolic trace cannot follow.

Hooks note each layer as it is called, and a mode of PyTorch each function between them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from invconv.errors import InputError

DECIDING = ("__bool__", "__int__", "__float__", "__index__", "__contains__", "item", "tolist", "numpy", "__array__")
"""Methods by which code gets at the values of a tensor: what it then does holds for one image only."""
REFLECTED = {"__rsub__": operator.sub, "__rtruediv__": operator.truediv, "__rdiv__": operator.truediv}
"""Methods of which the first argument is the right one."""


class _Length(int):
    """The first size of a tensor, which is that of the batch: as an argument it is the node that reads it again."""

    node: fx.Node

    @classmethod
    def read(cls, size: int, node: fx.Node) -> _Length:
        """The size that a node gives."""
        length = cls(size)
        length.node = node
        return length

    def __mul__(self, other: Any) -> Any:
        return self._computed(operator.mul, self, other)

    def __rmul__(self, other: Any) -> Any:
        return self._computed(operator.mul, other, self)

    def __floordiv__(self, other: Any) -> Any:
        return self._computed(operator.floordiv, self, other)

    def _computed(self, function: Callable[[Any, Any], Any], *args: Any) -> Any:
        value = function(*(int(a) if isinstance(a, _Length) else a for a in args))
        nodes = tuple(a.node if isinstance(a, _Length) else a for a in args)
        return _Length.read(value, self.node.graph.call_function(function, nodes)) if type(value) is int else value


Leaf = Callable[[nn.Module, str], bool]


def record(model: nn.Module, x: Tensor, is_leaf: Leaf) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph of one run on the image `x`, (1, channels, ...): leaf modules, and the functions between them.

    Beside it, the nodes of what each module that was called gave last, by its name.

    Sizes that the code has read from shapes are constants in it, so that it holds for images of this size; all but the
    first, that of the batch.

    Args:
        model: run once, in the mode that it is in.
        x: its only input.
        is_leaf: whether a module of this name is one node, rather than looked into.

    Raises:
        InputError: where the code decides by the values of a tensor.
    """
    with torch.no_grad(), _Recorder(model, is_leaf) as recorder:
        x = x.clone()  # the first layer may work in place
        recorder.note(x, recorder.graph.placeholder("x"))
        model(x)
    return recorder.graph, recorder.outputs


class _Recorder(TorchFunctionMode):
    """Within, every leaf module and every function that is given something of the image becomes a node."""

    def __init__(self, model: nn.Module, is_leaf: Leaf) -> None:
        super().__init__()
        self.model, self.is_leaf = model, is_leaf
        self.graph = fx.Graph()
        self.nodes: dict[int, tuple[Tensor, fx.Node]] = {}  # kept alive, or another tensor might get the same id
        self.outputs: dict[str, Any] = {}
        self.around: dict[str, tuple[str, type]] = {}
        self.leaf: tuple[nn.Module, Any, Any] | None = None
        self.hooks: list[RemovableHandle] = []

    def __enter__(self) -> _Recorder:
        for name, module in self.model.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
            self.hooks.append(module.register_forward_hook(self._leave(name), with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        for hook in self.hooks:
            hook.remove()

    def note(self, value: Any, node: fx.Node) -> None:
        """Remember which node gave a tensor, or a tuple of tensors."""
        node.meta["nn_module_stack"] = dict(self.around)
        if isinstance(value, Tensor):
            self.nodes[id(value)] = value, node
        for i, part in enumerate(value) if isinstance(value, (tuple, list)) else ():
            if isinstance(part, Tensor):
                self.note(part, self.graph.call_function(operator.getitem, (node, i)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.leaf is not None:
            return func(*args, **kwargs)
        given, named = self._known(args), self._known(kwargs)  # before it may work in place
        moves = bool(_nodes(given) or _nodes(named))
        name = getattr(func, "__name__", "")
        if moves and name in DECIDING:
            where = next(reversed(self.around), "") or type(self.model).__name__
            raise InputError(f"in {where}, Tensor.{name} is asked for values that depend on the image")
        value = func(*args, **kwargs)
        if moves and name in ("size", "__get__"):
            return self._sized(value, given)
        if moves and (isinstance(value, Tensor) or _tensors(value)):
            self.note(value, self._function(func, name, given, named))
        return value

    def _sized(self, value: Any, given: Any) -> Any:
        """Sizes, of which the first is remembered as what it is; other attributes as they are."""
        if isinstance(value, torch.Size) and len(value):
            length = _Length.read(value[0], self.graph.call_method("size", (given[0], 0)))
            return torch.Size((length, *value[1:]))
        if type(value) is int and given[1:] == (0,):
            return _Length.read(value, self.graph.call_method("size", given))
        return value

    def _function(self, func: Any, name: str, args: Any, kwargs: Any) -> fx.Node:
        """The node of a function, or of a tensor's method by the name that rules know it by."""
        if name in REFLECTED:
            return self.graph.call_function(REFLECTED[name], args[::-1], kwargs)
        if getattr(Tensor, name, None) is not func:
            return self.graph.call_function(func, args, kwargs)
        if name.startswith("__") and hasattr(operator, name):
            return self.graph.call_function(getattr(operator, name), args, kwargs)
        return self.graph.call_method(name, args, kwargs)

    def _known(self, values: Any) -> Any:
        """Arguments, with the node in place of each tensor that one gave."""
        if isinstance(values, dict):
            return {key: self._known(value) for key, value in values.items()}
        if isinstance(values, (tuple, list)):
            return tuple(map(self._known, values))
        if isinstance(values, _Length):
            return values.node
        known = self.nodes.get(id(values)) if isinstance(values, Tensor) else None
        return values if known is None else known[1]

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if self.leaf is None and name and self.is_leaf(module, name):
                self.leaf = module, self._known(args), self._known(kwargs)
            elif self.leaf is None:
                self.around[name] = name, type(module)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _args: Any, _kwargs: Any, value: Any) -> None:
            if self.leaf is None:
                self.around.pop(name, None)
                self.outputs[name] = self._known(value)
            elif self.leaf[0] is module:
                (_, given, named), self.leaf = self.leaf, None
                if _nodes(given) or _nodes(named):
                    self.note(value, self.graph.call_module(name, given, named))
                    self.outputs[name] = self._known(value)

        return hook


def _nodes(values: Any) -> list[fx.Node]:
    """The nodes among arguments."""
    if isinstance(values, fx.Node):
        return [values]
    parts = values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else ()
    return [node for part in parts for node in _nodes(part)]


def _tensors(value: Any) -> bool:
    """Whether something is a tuple or list with a tensor in it."""
    return isinstance(value, (tuple, list)) and any(isinstance(part, Tensor) for part in value)
