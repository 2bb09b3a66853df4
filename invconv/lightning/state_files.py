"""Files of trained weights: a state_dict, read without running what is in it, and held against the network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from invconv.errors import InputError

INSIDE = ("state_dict", "model", "model_state_dict")
"""Under which names training scripts keep the state_dict in a checkpoint."""
MOST_NAMES = 3
"""Names in an error: more would hide how many there are."""


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a state_dict, or a checkpoint that holds one, into a network.

    Args:
        network: takes the weights; left as it is where they do not fit.
        path: as `torch.save` writes it.

    Raises:
        InputError: for a file that cannot be read, holds something else, or has other names or shapes than the network;
            the text says how many, and which come first.
    """
    state = _state_dict(path)
    own = network.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    foreign = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(value.shape)} and not {tuple(own[name].shape)}"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    found = _few(missing, "missing"), _few(foreign, "unknown"), _few(shapes, "of another shape")
    if any(found):
        kind = type(network).__name__
        raise InputError(
            f"{path} does not fit {kind} ({'; '.join(filter(None, found))}): are these weights of another?"
        )
    damaged = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if damaged:
        raise InputError(f"{path} has values that are NaN or infinite ({_few(damaged, 'tensors')})")
    network.load_state_dict(state, strict=False)


def _state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors in a file by their names, without the prefixes that parallel training puts before them."""
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InputError(
            f"{path} is no file of tensors alone, as torch.save(model.state_dict(), path) writes it "
            f"({type(error).__name__})"
        ) from error
    for name in INSIDE:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(f"{path} holds no state_dict, which has tensors by name, but {type(content).__name__}")
    prefix = "module."
    parallel = all(str(name).startswith(prefix) for name in content)
    return {str(name).removeprefix(prefix) if parallel else str(name): value for name, value in content.items()}


def _few(names: list[str], what: str) -> str:
    """How many there are of something, and the first of them; empty for none."""
    more = ", ..." * (len(names) > MOST_NAMES)
    return f"{len(names)} {what}: {', '.join(names[:MOST_NAMES])}{more}" if names else ""
