"""The flow of the demo, as its configuration says, or with other layers in place of its convolutions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
import yaml

from invconv.flows import Chain, ConvFlow, FlowLayer, MultiScaleFlow

CONFIG = Path(__file__).parents[2] / "invconv" / "examples" / "flow" / "demo.yaml"


def demo_flow(seed: int = 0, **changes: Any) -> MultiScaleFlow:
    torch.manual_seed(seed)
    options = yaml.safe_load(CONFIG.read_text())["model"]["flow"]["init_args"]
    return MultiScaleFlow(**{**options, **changes})


def with_layers(flow: MultiScaleFlow, make: Callable[[int, tuple[int, int]], FlowLayer]) -> MultiScaleFlow:
    """The flow with `make(channels, (height, width))` in place of each invertible convolution."""
    _, height, width = flow.image_shape
    for scale, level in enumerate(flow.levels, start=1):
        layers = cast(Chain, level).layers
        for place, layer in enumerate(layers):
            if isinstance(layer, ConvFlow):
                layers[place] = make(layer.conv.in_channels, (height >> scale, width >> scale))
    return flow
