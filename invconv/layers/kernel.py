"""The kernel of a layer: the one that its next forward would use, and kernels of several layers in one call.

A layer whose weight is parametrized or pruned holds something else than its kernel. What PyTorch keeps of that behind
private names is read here and nowhere else.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from invconv.threads import obey_number_of_threads


class SharedKernel(nn.Module, ABC):
    """A parametrization of a weight that can compute the kernels of several layers in one call.

    Its parameters, and the kernel that it makes of them, have the output channels (or the groups) of the layer as
    their first axis. Those of layers of one kind can be put one after the other: `forward`, which takes one tensor for
    each parameter, then gives the kernels one after the other.
    """

    own_tap: int | None = None
    """The tap, as a flat index, that is all the diagonal of a map that is triangular by construction; else None."""

    @property
    @abstractmethod
    def kind(self) -> Hashable:
        """What two such functions must have in common, beyond class and shapes, to stand in for each other."""


def effective_weight(layer: Any) -> Tensor:
    """The weight that a forward of `layer` would use now; see `InvertibleConv.effective_weight`."""
    obey_number_of_threads()  # else a kernel that is computed had other digits in a new thread, and was taken for new
    for hook in _forward_pre_hooks(layer):
        if isinstance(hook, (BasePruningMethod, WeightNorm)):
            hook(layer, ())
        elif isinstance(hook, SpectralNorm):
            setattr(layer, hook.name, hook.compute_weight(layer, do_power_iteration=False))
    return whole(layer.weight)


def whole(tensor: Any) -> Tensor:
    """A tensor that FSDP has sharded, put together in all of its processes; others as they are.

    The gradient is the mean of those that the processes have, as FSDP takes it.
    """
    if not hasattr(tensor, "full_tensor"):  # torch.distributed.tensor.DTensor, which not every build of PyTorch has
        return cast(Tensor, tensor)
    from torch.distributed.tensor import Partial

    return cast(Tensor, tensor.full_tensor(grad_placements=[Partial("avg")] * tensor.device_mesh.ndim))


def is_hooked(module: nn.Module) -> bool:
    """Whether a forward of `module` runs hooks, those that set a weight included."""
    return bool(module._forward_pre_hooks or module._forward_hooks)  # noqa: SLF001


def runs_other_hooks(module: nn.Module) -> bool:
    """Whether `module` runs hooks that a layer made of it would not: all but those that set a weight."""
    own = (BasePruningMethod, WeightNorm, SpectralNorm)
    before = [hook for hook in _forward_pre_hooks(module) if not isinstance(hook, own)]
    backward = module._backward_hooks or module._backward_pre_hooks  # noqa: SLF001
    return bool(before or module._forward_hooks or backward)  # noqa: SLF001


def share_weight_hooks(module: nn.Module, layer: nn.Module) -> None:
    """Put the hooks that set the weight or bias of `module` on `layer`, whose parameters are still on the meta device.

    Afterwards `layer` has parameters and buffers of the same names; their values are yet to be set.
    """
    for hook in _forward_pre_hooks(module):
        if isinstance(hook, SpectralNorm):
            nn.utils.spectral_norm(layer, hook.name, hook.n_power_iterations, hook.eps, hook.dim)
        elif isinstance(hook, WeightNorm):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # who made the module was told
                WeightNorm.apply(layer, hook.name, hook.dim)
        elif isinstance(hook, BasePruningMethod):
            name = str(hook._tensor_name)  # noqa: SLF001
            prune.custom_from_mask(layer, name, torch.ones_like(getattr(layer, name)))


def shared_kind(layer: Any) -> Hashable:
    """A key that is equal for layers whose kernels `shared_kernels` can compute; None for those that stand alone."""
    function = _shared_function(layer)
    if function is None:
        return None
    tensors = tuple((p.shape, p.dtype, p.device) for p in _parameters(layer))
    return (type(function), function.kind, layer.geometry, tensors)


def own_tap(layer: Any) -> int | None:
    """`SharedKernel.own_tap` of the function that alone makes the kernel of a layer; None for all other layers."""
    function = _shared_function(layer)
    return None if function is None else function.own_tap


def _shared_function(layer: Any) -> SharedKernel | None:
    """The function of a parametrized weight, if it alone makes the kernel and can make those of several layers."""
    if _forward_pre_hooks(layer) or not parametrize.is_parametrized(layer, "weight"):
        return None
    functions = layer.parametrizations.weight
    return functions[0] if len(functions) == 1 and isinstance(functions[0], SharedKernel) else None


def shared_kernels(layers: Sequence[Any]) -> Sequence[Tensor]:
    """`effective_weight` of each of several layers of one kind, in one call."""
    obey_number_of_threads()
    parameters = zip(*map(_parameters, layers), strict=True)
    function = layers[0].parametrizations.weight[0]
    stacked: Tensor = function(*(torch.cat([whole(t) for t in tensors]) for tensors in parameters))
    return stacked.chunk(len(layers))


def _parameters(layer: Any) -> list[Tensor]:
    """What the function of a parametrized weight is called with, as `torch.nn.utils.parametrize` names it."""
    weight = layer.parametrizations.weight
    return [weight.original] if weight.is_tensor else [getattr(weight, f"original{i}") for i in range(weight.ntensors)]


def _forward_pre_hooks(layer: nn.Module) -> list[Any]:
    """The hooks by which pruning and the older norms of `torch.nn.utils` set a weight: PyTorch has no public list."""
    return list(layer._forward_pre_hooks.values())  # noqa: SLF001
