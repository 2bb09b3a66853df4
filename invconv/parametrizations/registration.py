"""A function put on a layer's weight, if the weight is a parameter as yet, with a record that loading compares."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from invconv.errors import InputError
from invconv.layers import InvertibleConv
from invconv.layers.record import check_records


def check_free(conv: Any, taker: str, verb: str) -> None:
    """Refuse what is no layer, and a layer whose weight is set by something else already.

    Args:
        conv: what was given for a layer.
        taker: name of the function that it was given to.
        verb: what that would do to the weight.

    Raises:
        InputError: naming what sets the weight, and what to do.
    """
    if not isinstance(conv, InvertibleConv):
        raise InputError(f"{taker} takes an invertible convolution, got {type(conv).__name__}; see its from_conv")
    if parametrize.is_parametrized(conv, "weight"):
        functions: Any = conv.parametrizations
        names = ", ".join(type(function).__name__ for function in functions.weight)
        raise InputError(f"the weight is parametrized already, by {names}: {verb} it first, or make a new layer")
    if "weight" not in dict(conv.named_parameters(recurse=False)):
        raise InputError(
            "the weight is no parameter but set by a hook, as pruning and the older norms of torch.nn.utils set it: "
            "remove that first"
        )


def register(conv: InvertibleConv, function: nn.Module) -> None:
    """Parametrize the weight of a layer; a `state_dict` of other options is refused before anything of it is loaded."""
    weight = conv.weight
    parametrize.register_parametrization(conv, "weight", function.to(device=weight.device, dtype=weight.dtype))
    conv.register_load_state_dict_pre_hook(check_records)  # type: ignore[no-untyped-call]
