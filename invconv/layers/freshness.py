"""Factors computed right after each optimizer step, rather than at the first question that needs them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from invconv.errors import InputError, InvconvError
from invconv.functional import spatial_size
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.together import TakesTogether


class KeptFresh:
    """The handle that `keep_fresh` gives: it ends the refreshing, also by `with`, and says what was done so far."""

    steps: int
    """Optimizer steps since the start."""
    seconds: float
    """Time that the refreshing of all these steps has taken."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, input_sizes: Any = None):
        self.steps = 0
        self.seconds = 0.0
        self._model = model
        self._sizes = input_sizes
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def _after_step(self, *_: Any) -> None:
        start = time.perf_counter()
        refresh(self._model, self._sizes)
        self.steps += 1
        self.seconds += time.perf_counter() - start

    def remove(self) -> None:
        """End the refreshing."""
        self._hook.remove()

    def __enter__(self) -> KeptFresh:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def keep_fresh(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    input_sizes: Sequence[int] | Mapping[str, Sequence[int]] | None = None,
) -> KeptFresh:
    """After each step of `optimizer`, refresh the invertible layers of `model` whose weight has changed.

    It chooses when the factors are paid for: at once, rather than at the next inverse or log-determinant.  The answers
    are the same with it and without, because the layers compare their weight with that of their factors at each use.
    A step that did not happen (gradients skipped by a scaler) or changed nothing costs the comparison only.  A layer
    that cannot be factored is left as it is: it says so itself when it is asked.

    Args:
        optimizer: any `torch.optim.Optimizer`; fused, foreach and LBFGS as well.
        model: its invertible layers are those that are in it at the time of the step, wrapped or parametrized or not.
        input_sizes: spatial size of the input of every layer, or {name of the layer in `model`: size}; None for what
            was computed at the sizes that each layer was asked for before, of which it remembers four. Name a size to
            have its inverse ready although it is not asked for yet, or to leave out those of validation.

    Returns:
        a handle with `remove()`, which is a context manager too, and counts `steps` and `seconds`.

    Raises:
        InputError: if `input_sizes` names what is no invertible layer of `model`, or a size that a layer cannot take.

    Example:
        >>> import torch
        >>> from invconv import InvertibleConv2d
        >>> conv = InvertibleConv2d(4, 4, 3, padding=1, padding_mode="circular")
        >>> optimizer = torch.optim.Adam(conv.parameters())
        >>> with keep_fresh(optimizer, conv) as kept:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         (-conv.log_abs_det((8, 8))).backward()
        ...         optimizer.step()  # the factors are computed here, and serve the next log-determinant
        >>> kept.steps
        3
    """
    layers = invertible_layers(model)
    if isinstance(input_sizes, Mapping):
        unknown = input_sizes.keys() - layers.keys()
        if unknown:
            raise InputError(f"input_sizes names {sorted(unknown)}, the model's invertible layers are {list(layers)}")
    for name, layer in layers.items():
        size = input_sizes.get(name) if isinstance(input_sizes, Mapping) else input_sizes
        if size is not None:
            layer.geometry.check_input_size(spatial_size(size, layer.geometry.dims, layer.in_channels))
    return KeptFresh(optimizer, model, input_sizes)


def invertible_layers(model: nn.Module) -> dict[str, InvertibleLayer]:
    """The invertible layers of a model by their names; a model that is one itself has the name ""."""
    return {name: module for name, module in model.named_modules() if isinstance(module, InvertibleLayer)}


@torch.no_grad()
def refresh(model: nn.Module, input_sizes: Sequence[int] | Mapping[str, Sequence[int]] | None = None) -> None:
    """Compute now what is stale in the layers of a model; for `input_sizes`, see `keep_fresh`."""
    done: set[nn.Module] = set()
    if input_sizes is None:
        # Those that take their layers together come first: what is fresh is not computed again.
        for module in model.modules():
            if isinstance(module, TakesTogether):
                with suppress(InvconvError):
                    done.update(module.refresh())
    for name, layer in invertible_layers(model).items():
        size = input_sizes.get(name) if isinstance(input_sizes, Mapping) else input_sizes
        if layer not in done and (size is not None or not isinstance(input_sizes, Mapping)):
            with suppress(InvconvError):
                layer.refresh(size)
