"""Layers of a model by name: which there are, what they give, and a model left as it was found."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from invconv.errors import InputError


def layer_names(model: nn.Module) -> list[str]:
    """All names of layers, as in `model.named_modules()`.

    Example:
        >>> layer_names(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()))
        ['0', '1']
    """
    return [name for name, _ in model.named_modules() if name]


def spread(model: nn.Module, count: int = 5, among: Sequence[str] | None = None) -> list[str]:
    """Names of `count` layers over the depth, activations and poolings where the model has them as modules.

    Args:
        model: any module.
        count: how many names, or all where there are fewer; of one, that of the last.
        among: names to choose from; all if there are none.

    Example:
        >>> spread(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()))
        ['1', '3']
        >>> spread(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()), 1)
        ['3']
    """
    kinds = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Hardswish, nn.MaxPool2d)
    every = [name for name in layer_names(model) if among is None or name in among]
    names = [name for name in every if isinstance(model.get_submodule(name), kinds)]
    names = names or [name for name in every if not list(model.get_submodule(name).children())]
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)] if count > 1 else names[-count:]


def check_layer(model: nn.Module, layer: str) -> None:
    """Refuse a name that is not that of a layer.

    Raises:
        InputError: for a name that the model has not; the text names the closest ones.
    """
    names = layer_names(model)
    if layer not in names:
        near = difflib.get_close_matches(str(layer), names, n=4, cutoff=0.4)
        hint = f"did you mean {', '.join(map(repr, near))}? " if near else ""
        raise InputError(
            f"{type(model).__name__} has no layer {layer!r}: {hint}invconv.inversion.layer_names(model) lists all "
            f"{len(names)}"
        )


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Within, `model` is in eval mode; on leaving, every module is in the mode that it was in.

    Raises:
        InputError: for a module that `eval` leaves in training mode: its statistics would change with each run.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        stubborn = [f"{name} ({type(module).__name__})" for name, module in model.named_modules() if module.training]
        if stubborn:
            raise InputError(f"{stubborn[0]} stays in training mode after eval(): mend its train(), or replace it")
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Within, no parameter of `model` gathers gradients; on leaving, those that did do so again."""
    trained = [p for p in model.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


@contextmanager
def observe(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within, `model` is in eval mode and each forward leaves the outputs of `layers` in the dictionary.

    Outputs are copies: layers that work in place do not change them; of several tensors that a layer gives, it is the
    first. On leaving, the hooks are gone and every module is in the mode that it was in.

    Args:
        model: any module.
        layers: names as in `model.named_modules()`.

    Raises:
        InputError: for a name that the model has not; the text names the closest ones.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
        >>> with observe(model, ["0"]) as outputs:
        ...     _ = model(torch.zeros(1, 3, 8, 8))
        >>> outputs["0"].shape, model.training
        (torch.Size([1, 8, 6, 6]), True)
    """
    for layer in layers:
        check_layer(model, layer)
    with evaluation(model), reading(model, layers) as outputs:
        yield outputs


@contextmanager
def reading(model: nn.Module, layers: list[str]) -> Iterator[dict[str, Tensor]]:
    """Within, each forward leaves copies of the outputs of `layers` in the dictionary; on leaving, the hooks are gone.

    Of several tensors that a layer gives, it is the first.

    Raises:
        InputError: for a layer that gives no tensor.
    """
    outputs: dict[str, Tensor] = {}

    def copy_to(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            value = first(output)
            if not isinstance(value, Tensor):
                raise InputError(f"layer {name!r} gives {type(output).__name__}, not a tensor: choose one inside it")
            outputs[name] = value.clone()

        return hook

    hooks = [model.get_submodule(layer).register_forward_hook(copy_to(layer)) for layer in layers]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


class _Enough(BaseException):
    """All layers have been called; no `except Exception` of a model's own code is in the way."""


def read(
    model: nn.Module, layers: list[str], x: Tensor, calls: Mapping[str, int] | None = None
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Copies of the outputs of layers for images, each of its last call, and how often it was called.

    Args:
        model: run once, in the mode that it is in.
        layers: names as in `model.named_modules()`.
        x: (batch, channels, ...).
        calls: how often each is called, if that is known: nothing behind the last call is then run.

    Raises:
        InputError: for a layer that gives no tensor.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
        >>> read(model, ["0"], torch.zeros(1, 3, 8, 8))[1]
        {'0': 1}
    """
    count = dict.fromkeys(layers, 0)

    def counter(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            count[name] += 1
            if calls and all(count[layer] >= calls[layer] > 0 for layer in layers):
                raise _Enough

        return hook

    with reading(model, layers) as outputs:
        hooks = [model.get_submodule(layer).register_forward_hook(counter(layer)) for layer in layers]
        try:
            model(x.clone())  # its first layer may work in place
        except _Enough:
            pass
        finally:
            for hook in hooks:
                hook.remove()
    return outputs, count


def first(value: Any) -> Any:
    """What comes first in tuples, lists and mappings, of whatever depth; the value itself if it is none of these."""
    while isinstance(value, (tuple, list, Mapping)) and len(value):
        value = next(iter(value.values() if isinstance(value, Mapping) else value))
    return value
