"""Whole networks: every convolution of PyTorch made invertible, where that changes nothing, and back again."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from torch import nn

from invconv.errors import InputError
from invconv.layers.conv import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.layers.invertible import InvertibleLayer
from invconv.layers.kernel import runs_other_hooks
from invconv.layers.keywords import check_keywords
from invconv.layers.plain import PLAIN
from invconv.layers.transposed import (
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
)
from invconv.options import Options

INVERTIBLE: tuple[type[InvertibleLayer], ...] = (
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
)
"""What stands in for each of `PLAIN`."""
Parts = dict[str, nn.Module]


@dataclass(frozen=True)
class Conversion:
    """A network whose convolutions were made invertible, and those that were left as they are."""

    model: nn.Module
    """The network that was given; a new layer, if that was a single convolution."""
    converted: list[str]
    """Names of the layers that are invertible now."""
    skipped: dict[str, str]
    """Names of the convolutions that were left, and why."""

    def __str__(self) -> str:
        head = f"{len(self.converted)} convolutions made invertible, {len(self.skipped)} left"
        return "\n".join([head, *(f"  {name}: {reason}" for name, reason in self.skipped.items())])


def convert(model: nn.Module, layers: Sequence[str] | None = None, **options: Any) -> Conversion:
    """Make the convolutions of a network invertible, transposed ones as well, in place: each by `from_conv`.

    Weights and biases are shared, so that forwards, the `state_dict` and optimizers stay as they are; a layer that has
    several names gets one successor. Left are convolutions whose forward is another, and those with hooks of their own.

    Args:
        model: any network, or a single convolution.
        layers: names of the convolutions to be converted, as in `model.named_modules()`; all if there are none.
        options: of the new layers: rtol, damping, solver, tol, max_iter, volume_tol, answers.

    Returns:
        The network, the names of what was converted, and why the other convolutions were not.

    Raises:
        TypeError: for an option that does not exist.
        InputError: for an option out of range, or a name that no convolution has.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Conv2d(3, 12, 2, stride=2), nn.ReLU(), InvertibleConv2d(12, 12, 1))
        >>> print(convert(model, damping=0.01))
        1 convolutions made invertible, 1 left
          2: InvertibleConv2d is invertible already
        >>> model[0].inverse(model[0](torch.rand(1, 3, 8, 8))).shape
        torch.Size([1, 3, 8, 8])
    """
    check_keywords("convert", options, [field.name for field in fields(Options)])
    Options(**options)  # which refuses values that are out of range
    found: Parts = {name: part for name, part in model.named_modules(remove_duplicate=False) if isinstance(part, PLAIN)}
    for name in layers or ():
        if name not in found:
            near = difflib.get_close_matches(name, found, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(found) or 'none'}"
            raise InputError(f"{type(model).__name__} has no convolution {name!r}: {hint}")
    asked = {name: part for name, part in found.items() if layers is None or name in layers}
    skipped: dict[str, str] = {}

    def invertible(name: str, module: nn.Module) -> nn.Module:
        try:
            return _invertible(module, options)
        except InputError as error:
            skipped[name] = str(error)
            return module

    converted = _replaced(model, asked, invertible)
    model = converted.get("", model)
    return Conversion(model, list(converted), skipped)


def revert(model: nn.Module) -> nn.Module:
    """Put plain convolutions of PyTorch in place of the invertible ones of a network, in place: each its `to_conv`.

    Parametrizations, as `bounded`, are left behind, and weights are copies: an optimizer has to be made anew.

    Returns:
        The network that was given; a new layer, if that was a single convolution.

    Example:
        >>> model = nn.Sequential(InvertibleConv2d(3, 3, 3), nn.ReLU())
        >>> revert(model)
        Sequential(
          (0): Conv2d(3, 3, kernel_size=(3, 3), stride=(1, 1))
          (1): ReLU()
        )
    """
    every = model.named_modules(remove_duplicate=False)
    found: Parts = {name: part for name, part in every if isinstance(part, InvertibleLayer)}
    return _replaced(model, found, lambda _, conv: cast(InvertibleLayer, conv).to_conv()).get("", model)


def _invertible(module: nn.Module, options: dict[str, Any]) -> nn.Module:
    """The layer that stands in for a convolution.

    Raises:
        InputError: where none does.
    """
    kind = type(module).__name__
    if isinstance(module, InvertibleLayer):
        raise InputError(f"{kind} is invertible already")
    weight: Any = module.weight
    if runs_other_hooks(module) and not nn.parameter.is_lazy(weight):  # a lazy one has hooks that fill it
        raise InputError(f"{kind} has hooks, which a new layer would not run: remove them, and put them back after it")
    new = next(cls for cls, plain in zip(INVERTIBLE, PLAIN, strict=True) if isinstance(module, plain))
    return new.from_conv(module, **options)


def _replaced(model: nn.Module, parts: Parts, new: Callable[[str, nn.Module], nn.Module]) -> Parts:
    """What was put in place of parts of a model, by name; what stays itself is not named."""
    made: dict[int, nn.Module] = {}
    replaced = {}
    for name, part in parts.items():
        if id(part) not in made:
            made[id(part)] = new(name, part)
        if made[id(part)] is part:
            continue
        replaced[name] = made[id(part)]
        parent, _, leaf = name.rpartition(".")
        if name:
            setattr(model.get_submodule(parent), leaf, replaced[name])
    return replaced
