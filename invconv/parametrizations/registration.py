"""A function put on a layer's weight, if the weight is a parameter as yet, with a record that loading compares."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn
from torch.nn.utils import parametrize

from invconv.errors import InputError
from invconv.layers import InvertibleConv
from invconv.layers.record import check_records

Layer = TypeVar("Layer", bound=InvertibleConv)


def check_free(conv: Any, taker: str, verb: str, kinds: Any = (InvertibleConv,)) -> None:
    """Refuse what is no layer, and a layer whose weight is set by something else already.

    Args:
        conv: what was given for a layer.
        taker: name of the function that it was given to.
        verb: what that would do to the weight.
        kinds: classes of layers that it takes.

    Raises:
        InputError: naming what sets the weight, and what to do.
    """
    if not isinstance(conv, kinds):
        wanted = "an invertible convolution" if InvertibleConv in kinds else "a convolution of torch.nn or invconv"
        advice = "; see its from_conv" if InvertibleConv in kinds else ""
        raise InputError(f"{taker} takes {wanted}, got {type(conv).__name__}{advice}")
    if parametrize.is_parametrized(conv, "weight"):
        functions: Any = conv.parametrizations
        names = ", ".join(type(function).__name__ for function in functions.weight)
        raise InputError(f"the weight is parametrized already, by {names}: {verb} it first, or make a new layer")
    if "weight" not in dict(conv.named_parameters(recurse=False)):
        raise InputError(
            "the weight is no parameter but set by a hook, as pruning and the older norms of torch.nn.utils set it: "
            "remove that first"
        )


def register(conv: nn.Module, function: nn.Module) -> None:
    """Parametrize the weight of a layer; a `state_dict` of other options is refused before anything of it is loaded."""
    weight: Any = conv.weight
    parametrize.register_parametrization(conv, "weight", function.to(device=weight.device, dtype=weight.dtype))
    conv.register_load_state_dict_pre_hook(check_records)
