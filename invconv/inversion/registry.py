"""Which rule inverts which layer: by type of module, by function, or by name of a tensor's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, fx, nn

from invconv.inversion.interval import Interval
from invconv.inversion.place import Place

Bounds = tuple[float, float]
Undo = Callable[[Place, Interval], Interval]
Keep = Callable[[Place, Tensor], Tensor]
R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is undone."""

    function: Undo
    """From what is known of the output to what is known of the input."""
    range: Bounds | None
    """What values the layer can give; None: those of its input."""
    solves: bool
    """Whether equations are solved for the input, rather than each entry moved back by itself."""
    joins: bool
    """Whether the layer is solved together with the one below it."""
    keep: Keep | None
    """What is to be kept of the layer's input on the forward pass; None: nothing."""


_RULES: dict[Any, Rule] = {}


def rule(
    *kinds: Any,
    range: Bounds | None = (float("-inf"), float("inf")),
    solves: bool = False,
    joins: bool = False,
    keep: Keep | None = None,
) -> Callable[[R], R]:
    """Register the decorated function as the rule for modules, functions or methods.

    The function takes `(place, output)`: the `Place` in the network, with `place.module`, `place.args`, `place.shape`
    of the input, and the `Interval` known of the output. It gives the `Interval` known of the input;
    `place.solve(output)` is the least-squares solution for any differentiable layer.

    Args:
        kinds: subclasses of `torch.nn.Module`, functions such as `torch.relu`, names of tensor methods.
        range: least and largest value that such a layer can give; None for those of its input.
        solves: the rule solves equations for its input, rather than moving each entry back by itself.
        joins: the layer is to be solved together with the one below it, as a norm that divides by what it is given.
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
            _RULES[kind] = Rule(function, range, solves, joins, keep)
        return function

    return register


def find(module: nn.Module) -> Rule | None:
    """The rule of the nearest class that has one."""
    return next((_RULES[kind] for kind in type(module).__mro__ if kind in _RULES), None)


def of_node(model: nn.Module, node: fx.Node) -> Rule | None:
    """The rule of a module, function or method that is called."""
    if node.op == "call_module":
        return find(model.get_submodule(str(node.target)))
    if node.op not in ("call_function", "call_method"):
        return None
    match = _RULES.get(node.target)
    if match is None and callable(node.target) and node.target.__module__.startswith("torchvision"):
        match = _RULES.get(node.target.__name__)
    return match


def kind(model: nn.Module, node: fx.Node) -> str:
    """What a node is, in one word."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
