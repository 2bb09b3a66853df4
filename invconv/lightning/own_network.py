"""A network of one's own, named as `module:function`: what the function returns when it is called without arguments."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from torch import nn

from invconv.errors import InputError


def own_network(name: str) -> nn.Module:
    """The network that `module:function` gives; a class with defaults for all of its arguments will do.

    Args:
        name: a module as Python imports it from the current folder, or a file ending in .py; then the function.

    Raises:
        InputError: where there is no such module or function, where either fails, and where it gives no network.

    Example:
        >>> own_network("torch.nn:ReLU")
        ReLU()
    """
    where, _, function = name.rpartition(":")
    path = Path(where)
    folder, module = (str(path.parent), path.stem) if path.suffix == ".py" else ("", where)
    sys.path.insert(0, folder)
    try:
        network = getattr(import_module(module), function)()
    except Exception as error:  # whatever its own code raises
        what = " ".join(str(error).split())
        raise InputError(
            f"{name} gives no network ({type(error).__name__}: {what}): name a module or a file of Python, and in it a "
            "function that returns a torch.nn.Module when it is called without arguments"
        ) from error
    finally:
        sys.path.remove(folder)
    if not isinstance(network, nn.Module):
        raise InputError(f"{name} gives {type(network).__name__}, expected a torch.nn.Module")
    return network
