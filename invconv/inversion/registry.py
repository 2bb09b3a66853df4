"""Which rule inverts which layer: by type of module, by function, or by name of a tensor's method."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place

Bounds = tuple[float, float]
Range = Bounds | Callable[[Place], Bounds] | None
Undo = Callable[[Place, Interval], Interval]
Keep = Callable[[Place, Tensor], Tensor]
R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is undone."""

    function: Undo
    """From what is known of the output to what is known of the input."""
    range: Range
    """What values the layer can give, or how to tell of a place; None: those of its input."""
    solves: bool
    """Whether equations are solved for the input, rather than each entry moved back by itself."""
    joins: bool
    """Whether the layer is solved together with the one below it."""
    affine: bool
    """Whether the layer is linear but for a constant, as a rule."""
    copies: bool
    """Whether the layer only moves entries about, leaves out, or sets others beside them: a chain of such is one."""
    keep: Keep | None
    """What is to be kept of the layer's input on the forward pass; None: nothing."""


_RULES: dict[Any, Rule] = {}


def rule(
    *kinds: Any,
    range: Range = (float("-inf"), float("inf")),
    solves: bool = False,
    joins: bool = False,
    affine: bool = False,
    copies: bool = False,
    keep: Keep | None = None,
) -> Callable[[R], R]:
    """Register the decorated function as the rule for modules, functions or methods.

    The function takes `(place, output)`: the `Place` in the network, with `place.module`, `place.args`, `place.shape`
    of the input, and the `Interval` known of the output. It gives the `Interval` known of the input;
    `place.solve(output)` is the least-squares solution for any differentiable layer.

    Args:
        kinds: subclasses of `torch.nn.Module`, functions such as `torch.relu`, names of tensor methods. A class stands
            for its subclasses as well, but for those whose forward is another: they need rules of their own.
        range: least and largest value that such a layer can give, or a function `place -> (least, largest)`; None for
            those of its input.
        solves: the rule solves equations for its input, rather than moving each entry back by itself.
        joins: the layer is to be solved together with the one below it, as a norm that divides by what it is given.
        affine: the layer is linear but for a constant; it is solved together with a padding below it.
        copies: the layer only moves entries about, leaves some out, or sets others beside them; several of these that
            part and meet again are undone as one.
        keep: `(place, input) -> Tensor`, called on the forward pass when an image is given; what it returns is handed
            to the rule as `place.kept`.

    Returns:
        A decorator that gives the function back as it is.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> @rule(Double)
        ... def double(place, output):
        ...     return output.map(lambda y: y / 2)
    """

    def register(function: R) -> R:
        for kind in kinds:
            _RULES[kind] = Rule(function, range, solves, joins, affine, copies, keep)
        return function

    return register


_QUIET = {"__init__", "__module__", "__doc__", "__annotations__", "__constants__", "__setstate__", "__repr__"}
_QUIET |= {"extra_repr", "reset_parameters", "reset_running_stats", "_load_from_state_dict", "_version"}
"""What a subclass may have of its own and still compute the same."""
_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def find(module: nn.Module) -> Rule | None:
    """The rule of the nearest class that has one, if the module computes what that class does."""
    kind = base(module)
    return None if kind is None or changed(module, kind) else _RULES[kind]


def base(module: nn.Module) -> type[nn.Module] | None:
    """The nearest class of a module that has a rule."""
    return next((kind for kind in type(module).__mro__ if kind in _RULES), None)


def changed(module: nn.Module, kind: type[nn.Module]) -> str:
    """The method of `kind` that a module, or a class between the two, has of its own; empty if there is none.

    A kind without a forward, which only its subclasses have, stands for all of them.
    """
    if kind.forward is nn.Module.forward:
        return ""
    lines = type(module).__mro__
    theirs = {"forward", "__call__"}.union(*(vars(c) for c in kind.__mro__[: kind.__mro__.index(nn.Module)])) - _QUIET
    methods = {name for name in theirs if callable(getattr(kind, name))}
    for own in (vars(module), *map(vars, lines[: lines.index(kind)])):
        if methods & own.keys():
            return min(methods & own.keys())
    return ""


def out_of_place(target: Any) -> Any:
    """The function or method name that does out of place what this one does in place; itself where it does not."""
    if isinstance(target, str):
        return target[:-1] if target.endswith("_") and not target.endswith("__") else target
    if target in _OUT_OF_PLACE:
        return _OUT_OF_PLACE[target]
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return target
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None) or target


def of_node(model: nn.Module, node: fx.Node) -> Rule | None:
    """The rule of a module, function or method that is called."""
    if node.op == "call_module":
        return find(model.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return None
    target = out_of_place(node.target)
    match = _RULES.get(target)
    if match is None and callable(target) and str(getattr(target, "__module__", "")).startswith("torchvision"):
        match = _RULES.get(target.__name__)
    return match


def copying() -> Rule:
    """The rule of indexing, which serves for all layers that copy entries, and for several of them as one."""
    return _RULES[operator.getitem]


def base_of_node(model: nn.Module, node: fx.Node) -> type[nn.Module] | None:
    """The nearest class with a rule of a module that is called; None for functions."""
    return base(model.get_submodule(str(node.target))) if node.op == "call_module" else None


def kind(model: nn.Module, node: fx.Node) -> str:
    """What a node is, in one word."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
