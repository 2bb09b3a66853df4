"""Learning rates: the kernels of a flow may learn faster than its networks."""

from __future__ import annotations

from typing import Any

from torch import nn

from invconv.flows.conv import ConvFlow
from invconv.flows.pair import PairFlow


def parameter_groups(
    flow: nn.Module, lr: float, kernel_rate: float, kernels: tuple[type[nn.Module], ...] = (ConvFlow, PairFlow)
) -> list[dict[str, Any]]:
    """Parameter groups for a torch optimizer: `lr`, and `kernel_rate * lr` for invertible convolutions.

    A kernel is a few thousand numbers between networks of many more, and all of them wait for it: at the rate of the
    networks it is still on its way when they have settled.

    Args:
        flow: any module.
        lr: learning rate of all that is not in a kernel.
        kernel_rate: how many times faster the kernels learn.
        kernels: the kinds of modules whose parameters are kernels.

    Example:
        >>> from invconv.flows import MultiScaleFlow
        >>> flow = MultiScaleFlow(image_size=8, scales=1, steps=1, hidden=8)
        >>> networks, kernels = parameter_groups(flow, lr=1e-3, kernel_rate=3.0)
        >>> kernels["lr"], sum(p.numel() for p in kernels["params"])
        (0.003, 1440)
    """
    in_kernels = {id(p) for module in flow.modules() if isinstance(module, kernels) for p in module.parameters()}
    parts: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for p in flow.parameters():
        parts[id(p) in in_kernels].append(p)
    networks = {"params": parts[False], "lr": lr, "name": "networks"}
    return [networks, {"params": parts[True], "lr": kernel_rate * lr, "name": "kernels"}]
