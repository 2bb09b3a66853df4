"""Which rule inverts which layer: by type of module, by function, or by name of a tensor's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from torch import fx, nn

if TYPE_CHECKING:
    from invconv.inversion.interval import Interval
    from invconv.inversion.site import Site

Bounds = tuple[float, float]
R = TypeVar("R", bound=Callable[..., Any])


@dataclass(frozen=True)
class Rule:
    """How one kind of layer is undone."""

    function: Callable[[Site, Interval], Interval]
    range: Bounds | None
    """What values the layer can give; None: those of its input."""
    solves: bool
    joins: bool


_RULES: dict[Any, Rule] = {}


def rule(
    *kinds: Any, range: Bounds | None = (float("-inf"), float("inf")), solves: bool = False, joins: bool = False
) -> Callable[[R], R]:
    """Register the decorated function as the rule for modules, functions or methods.

    Arguments:
        kinds: subclasses of `torch.nn.Module`, functions such as `torch.relu`, names of tensor methods.
        range: least and largest value that such a layer can give; None for those of its input.
        solves: the rule solves equations for its input, rather than moving each entry back by itself.
        joins: the layer is to be solved together with the one below it, as a norm that divides by what it is given.

    The function takes `(site, known)`: the place in the network, with `site.module`, `site.args`, `site.shape` of the
    input, and the `Interval` known of the output.  It gives the `Interval` known of the input; `site.solve(known)` is
    the least-squares solution for any differentiable layer.

    Example:
        >>> class Double(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> @rule(Double)
        ... def double(site, known):
        ...     return known.map(lambda y: y / 2)
    """

    def register(function: R) -> R:
        for kind in kinds:
            _RULES[kind] = Rule(function, range, solves, joins)
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
    found = _RULES.get(node.target)
    if found is None and callable(node.target) and node.target.__module__.startswith("torchvision"):
        found = _RULES.get(node.target.__name__)
    return found


def kind(model: nn.Module, node: fx.Node) -> str:
    """What a node is, in one word."""
    if node.op == "call_module":
        return type(model.get_submodule(str(node.target))).__name__
    return getattr(node.target, "__name__", str(node.target))
