r"""Which features are meant: those of a layer, of a part of it, or of several layers at once.

`layer4` is all that this layer gives; `layer4[7]` its channel 7, `layer4[:, 2:5, 2:5]` a region, `layer4[7, 3, 3]` a
unit: the dimensions after the batch, as Python's slices are written. `layer2 + layer4[7]` is both at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.inversion.layers import check_layer
from invconv.inversion.least_squares import length


@dataclass(frozen=True)
class Part:
    """Some of the features of one layer."""

    layer: str
    index: tuple[slice, ...] = ()
    """Of the dimensions after the batch; those that are not named are taken whole."""

    def of(self, output: Tensor, batch: int) -> Tensor:
        """The part of what the layer gives for `batch` images, which it may have cut into windows: (batch, ...).

        Raises:
            InputError: where the layer has no such part.
        """
        if len(output) != batch and len(output) % batch == 0:
            output = output.unflatten(0, (batch, -1))
        if len(self.index) >= output.dim() or not output[(slice(None), *self.index)].numel():
            shown = ", ".join(f"{s.start}:{s.stop}".replace("None", "") for s in self.index)
            raise InputError(
                f"{self.layer!r} gives {tuple(output.shape[1:])} for an image, of which [{shown}] is no part"
            )
        return output[(slice(None), *self.index)] if self.index else output


@dataclass
class Selection:
    """Parts of one or several layers, read as one tensor.

    Of several layers each counts by its relative error: it is divided by its norm before all are joined.
    """

    text: str
    """As it was written."""
    parts: list[Part]
    scales: list[Tensor] = field(init=False, default_factory=list)
    """One over the norm of each part, once they are known; of one layer alone, none."""

    @property
    def layers(self) -> list[str]:
        """Names of the layers, each once."""
        return list(dict.fromkeys(part.layer for part in self.parts))

    def balance(self, features: Sequence[Tensor]) -> None:
        """Set the scales by features of each part, where they are of several layers, and not set before."""
        if len(self.layers) > 1 and not self.scales:
            self.scales = [1 / length(part).mean().view(1, 1) for part in features]

    def join(self, features: Sequence[Tensor]) -> Tensor:
        """(batch, ...) of one part; of several (batch, number), each flat and divided by its norm."""
        if len(self.parts) == 1:
            return features[0]
        flat = [part.flatten(1) for part in features]
        if self.scales:
            flat = [part * scale for part, scale in zip(flat, self.scales, strict=True)]
        return torch.cat(flat, 1)

    def read(self, outputs: Mapping[str, Tensor], batch: int) -> Tensor:
        """What is selected of the outputs of the layers, by name, for so many images."""
        return self.join([part.of(outputs[part.layer], batch) for part in self.parts])

    def given(self, features: Any) -> Tensor:
        """Features that a caller gives, one tensor for each part, joined as they are read.

        Raises:
            InputError: where there are not as many as parts.
        """
        several = [features] if isinstance(features, Tensor) else features
        tensors = isinstance(several, (list, tuple)) and all(isinstance(part, Tensor) for part in several)
        if not tensors or len({part.shape[:1] for part in several}) != 1 or min(part.dim() for part in several) < 2:
            raise InputError(
                f"features is {type(features).__name__}, expected a tensor (batch, ...), or a list of one for each part"
            )
        if len(several) != len(self.parts):
            raise InputError(f"features has {len(several)} tensors, expected one for each of {len(self.parts)} parts")
        self.balance(several)
        return self.join(several)


def select(model: nn.Module, layer: str | Sequence[str], prefix: str = "") -> Selection:
    """The selection that is written as `layer`.

    Args:
        model: has the layers.
        layer: names with parts in brackets, and plus signs between several; or a list of these.
        prefix: that may stand before the names, of a model that is wrapped.

    Raises:
        InputError: for an unknown layer, and for what is no index.

    Example:
        >>> select(nn.Sequential(nn.Conv2d(3, 8, 3)), "0[2, 1:3] + 0[4]").parts
        [Part(layer='0', index=(slice(2, 3, None), slice(1, 3, None))), Part(layer='0', index=(slice(4, 5, None),))]
    """
    texts = layer.split("+") if isinstance(layer, str) else [p for text in layer for p in str(text).split("+")]
    parts = []
    for text in map(str.strip, texts):
        name, bracket, index = text.partition("[")
        name = name.strip().removeprefix(prefix)
        check_layer(model, name)
        if isinstance(model.get_submodule(name), torch.jit.ScriptModule):
            raise InputError(f"layer {name!r} is TorchScript, which no hook can look into: take what it was made from")
        if bracket and not index.endswith("]"):
            raise InputError(f"{text!r} has no closing bracket: write a part as 'layer[channel, row, column]'")
        parts.append(Part(name, tuple(_slice(text, item) for item in index[:-1].split(",")) if bracket else ()))
    return Selection(" + ".join(text.strip().removeprefix(prefix) for text in texts), parts)


def _slice(text: str, item: str) -> slice:
    """One item of an index; a number is a slice of length one, so that no dimension goes."""
    try:
        numbers = [int(number) if number.strip() else None for number in item.split(":")]
        if len(numbers) == 1 and numbers[0] is not None:
            return slice(numbers[0], numbers[0] + 1 or None)
        if 2 <= len(numbers) <= 3 and (len(numbers) == 2 or (numbers[2] or 1) > 0):
            return slice(*numbers)
    except ValueError:
        pass
    raise InputError(f"{item.strip()!r} in {text!r} is no index: expected a number, or a slice such as 2:5")
