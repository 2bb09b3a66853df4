"""A graph of one node, for a model that nothing can look into: all of it up to the layer, read by a hook."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, fx, nn

from invconv.inversion.layers import reading


def whole(model: nn.Module, layers: list[str], reason: str) -> tuple[fx.Graph, dict[str, Any]]:
    """The graph, and the node of what each layer gives.

    Args:
        model: run in the mode that it is in.
        layers: names as in `model.named_modules()`.
        reason: why there is no other graph; a remark tells it.
    """

    def run(x: Tensor) -> Tensor | tuple[Tensor, ...]:
        with reading(model, layers) as outputs:
            model(x.clone())  # its first layer may work in place
        return outputs[layers[0]] if len(layers) == 1 else tuple(outputs[layer] for layer in layers)

    run.__name__ = type(model).__name__
    graph = fx.Graph()
    node = graph.call_function(run, (graph.placeholder("x"),))
    node.meta["remark"] = f"{run.__name__} is solved as a whole, since it cannot be traced ({reason})"
    if not layers:
        return graph, {}
    if len(layers) == 1:
        return graph, {layers[0]: node}
    return graph, {layer: graph.call_function(operator.getitem, (node, i)) for i, layer in enumerate(layers)}
