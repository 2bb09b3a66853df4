"""Pickles of parametrized layers:  (class before it was parametrized, its state, the functions of each tensor).

`torch.nn.utils.parametrize` gives each module that it touches a class of its own, made on the spot, which no other
process has and which therefore refuses to be pickled. Here it is made anew where the pickle is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

ENTRY = "parametrized"
"""Of the state of a pickle: the `ParametrizationList` of each tensor, by the name of the tensor."""


def reduced(module: Any) -> tuple[Any, ...]:
    """What `__reduce_ex__` of a parametrized module returns."""
    modules = {name: part for name, part in vars(module)["_modules"].items() if name != "parametrizations"}
    state = {**vars(module), "_modules": modules, ENTRY: dict(module.parametrizations.items())}
    return new, (parametrize.type_before_parametrizations(module),), state


def new(kind: type[nn.Module]) -> nn.Module:
    """A module without a state, which a pickle then gives it."""
    return kind.__new__(kind)


def parametrizations_of(state: dict[str, Any]) -> tuple[dict[str, nn.Module], dict[str, Any]]:
    """The functions in the state of a pickle, none if it is that of a plain module; and the rest of the state."""
    return state.get(ENTRY, {}), {name: value for name, value in state.items() if name != ENTRY}


def parametrize_again(module: Any, functions: dict[str, nn.Module]) -> None:
    """Parametrize tensors of a module by functions that have their parameters already."""
    for name, function in functions.items():
        # PyTorch makes the property of the tensor; what it is registered with only keeps the place.
        module.register_buffer(name, torch.empty(0))
        parametrize.register_parametrization(module, name, nn.Identity(), unsafe=True)
        module.parametrizations[name] = function
