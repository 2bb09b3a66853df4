"""Checkpoints that say how their network is made:  {"class_path": "invconv.flows.MultiScaleFlow", "init_args": {...}}.

With it among the hyperparameters, `FlowModule.load_from_checkpoint(path)` is all it takes. A checkpoint names no other
classes than those of `NETWORKS`, so that reading one never runs code that came with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from typing_extensions import override

from invconv.autoencoder import PseudoInverseAutoencoder
from invconv.errors import CheckpointError, InputError
from invconv.flows import MultiScaleFlow

NETWORKS: dict[str, type[nn.Module]] = {
    "invconv.flows.MultiScaleFlow": MultiScaleFlow,
    "invconv.autoencoder.PseudoInverseAutoencoder": PseudoInverseAutoencoder,
}


class RebuildsNetwork(L.LightningModule):
    """A LightningModule around a network, which its checkpoints can make again where it is one of `NETWORKS`.

    Raises:
        CheckpointError: when a checkpoint is loaded that does not say how its network is made, and no network is given.
    """

    def keep_network(self, argument: str, network: Any) -> Any:
        """The network, made if it is described; its description is kept with the hyperparameters.

        To be called by `__init__`, which saves the other hyperparameters itself.

        Args:
            argument: name of the argument of `__init__` that is the network.
            network: the network, or what a checkpoint has in its place.
        """
        if isinstance(network, dict):
            network = made(network, f"{type(self).__name__}.load_from_checkpoint(path, {argument}=...)")
        description = described(network)
        if type(self).__module__.startswith("invconv.") or "init_args" not in description:
            # What LightningCLI leaves here would make any class that is named, if need be with other arguments.
            self.hparams.pop("_instantiator", None)
        self.save_hyperparameters({argument: description})
        return network

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # A module without a trainer is loaded by itself: then no digit of the checkpoint is to be lost.
        if self._trainer is None:
            values = checkpoint["state_dict"].values()
            if any(isinstance(v, Tensor) and v.dtype == torch.float64 for v in values):
                self.double()


def described(network: nn.Module) -> dict[str, Any]:
    """How to make a network again; only its class, where it is none of `NETWORKS`."""
    for path, kind in NETWORKS.items():
        if type(network) is kind:
            arguments: Any = network.arguments
            return {"class_path": path, "init_args": {name: _plain(value) for name, value in arguments.items()}}
    return {"class_path": f"{type(network).__module__}.{type(network).__qualname__}"}


def made(description: dict[str, Any], instead: str) -> nn.Module:
    """The network that a checkpoint describes.

    Args:
        description: as by `described`.
        instead: how to load the checkpoint of a network that cannot be made, for the error.

    Raises:
        CheckpointError: if the network is of another class.
    """
    path, arguments = description.get("class_path"), description.get("init_args")
    if path not in NETWORKS or arguments is None:
        raise CheckpointError(
            f"the checkpoint holds a network of class {path}, which it cannot make; make one yourself, with the "
            f"arguments it had, and load by {instead}"
        )
    return NETWORKS[path](**arguments)


def check_trainable(module: nn.Module) -> None:
    """Refuse to train float16 weights.

    Raises:
        InputError: naming precisions that do train.
    """
    if any(p.dtype == torch.float16 for p in module.parameters()):
        raise InputError(
            "weights of torch.float16 do not train: Adam divides by the root of a mean square plus 1e-8, which is zero "
            "in float16, and the weights become NaN. Use precision='16-mixed', 'bf16-mixed' or '32-true'"
        )


def float_dtype(module: nn.Module) -> torch.dtype:
    """What a network computes in: the type of its first parameter."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)


def _plain(value: Any) -> Any:
    """Numbers and sequences as those of Python, which every loader of checkpoints reads."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Sequence):
        return [_plain(each) for each in value]
    return value
