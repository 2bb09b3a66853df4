"""What decides values but is no tensor, kept in the `state_dict` as JSON:  {"class": "Bounded", "rho": 0.5, ...}.

A checkpoint of another record is refused before anything of it is loaded; one without a record, as earlier versions
wrote them, is taken to have been made with the options of the module that it is loaded into, and a warning says so.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from invconv.errors import CheckpointError, warn

KEY = "_extra_state"
"""How `torch.nn.Module` names what `get_extra_state` returns."""


class ChecksRecords(nn.Module):
    """A module whose parts, or itself, are `Recorded`: all of their records are compared before anything is loaded.

    Raises:
        CheckpointError: when a `state_dict` is loaded that was saved with other options.

    Warns:
        UserWarning: when one is loaded that does not say with which options it was saved.
    """

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        check_records(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class Recorded(ChecksRecords, ABC):
    """A module whose `state_dict` says with which options it was made, beside its tensors."""

    @abstractmethod
    def recorded(self) -> dict[str, Any]:
        """The options that decide values, by name: numbers, strings, None, and lists or dictionaries of these."""

    def record(self) -> dict[str, Any]:
        """What the `state_dict` says: the options, and the class that reads them."""
        return {"class": type(self).__name__, **self.recorded()}

    def get_extra_state(self) -> Tensor:
        """The record as a tensor of bytes, which no change of dtype touches."""
        text = json.dumps(self.record(), sort_keys=True).encode()
        tensors = [*self.parameters(), *self.buffers()]
        device = next((t.device for t in tensors if not t.is_meta), torch.device("cpu"))
        return torch.tensor(list(text), dtype=torch.uint8, device=device)

    def set_extra_state(self, state: Tensor) -> None:
        """Nothing to set: a record that is loaded is the module's own."""


def check_records(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Refuse a `state_dict` that was saved with other options than those of a module and the modules in it.

    It has the signature of a hook that is called before a `state_dict` is loaded.
    """
    anything = any(name.startswith(prefix) and not name.endswith(KEY) for name in state_dict)
    silent = []
    for key, part in _records(module, prefix):
        if key in state_dict:
            if not getattr(state_dict[key], "is_meta", False):  # else there are no values to load either
                _compare(key, part, state_dict[key])
            continue
        silent.append(part.record())
        state_dict[key] = part.get_extra_state()
    if silent and anything:
        warn(
            f"the checkpoint does not say with which options it was saved: it is loaded as if by those of the modules "
            f"here, {_written(silent)}; make sure that these are right, and save it again",
            UserWarning,
        )


def _records(module: nn.Module, prefix: str) -> Iterator[tuple[str, Recorded]]:
    for name, part in module.named_modules():
        if isinstance(part, Recorded):
            yield prefix + (name + "." if name else "") + KEY, part


def _compare(key: str, module: Recorded, state: Any) -> None:
    here = json.loads(json.dumps(module.record()))
    try:
        saved = json.loads(bytes(state.tolist()))
        differing = sorted(name for name in {*saved, *here} if saved.get(name) != here.get(name))
    except (AttributeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{key} of the checkpoint is no record of options: {error}") from error
    if differing:
        there = ", ".join(f"{name} = {saved.get(name)!r}" for name in differing)
        ours = ", ".join(f"{name} = {here.get(name)!r}" for name in differing)
        raise CheckpointError(
            f"the checkpoint was saved with {there}, and is loaded into a {here['class']} with {ours}: the same "
            f"tensors would be another map. Make the module with {there}, of which nothing was changed; or leave the "
            f"entry {key!r} out of the state_dict, to load its tensors all the same"
        )


def _written(records: list[dict[str, Any]]) -> str:
    """The numbers and names in some records, each once."""
    texts = set()
    for record in records:
        plain = [f"{k}={v!r}" for k, v in record.items() if k != "class" and not isinstance(v, (list, tuple, dict))]
        texts |= {f"{record['class']}({', '.join(plain)})"} if plain else set()
    return ", ".join(sorted(texts)) or "their order"
