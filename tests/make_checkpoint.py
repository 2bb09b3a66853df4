"""Keeps a checkpoint of this version, which must load for good:  python tests/make_checkpoint.py

Run once for a release that changes what is saved; what earlier versions kept is never written again.  The file
``tests/data/<version>.pt`` holds, for a small flow and a layer of each kind, the arguments, the ``state_dict`` in
float32, an input, and what came of it in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import invconv
from invconv.flows import MultiScaleFlow

Module = TypeVar("Module", bound=nn.Module)

DATA = Path(__file__).with_name("data")

FLOW: dict[str, Any] = {"in_channels": 1, "image_size": 8, "scales": 2, "steps": 1, "hidden": 4, "num_classes": 2}
LAYERS: dict[str, dict[str, Any]] = {
    "circular": {"padding": 1, "padding_mode": "circular"},
    "zeros": {"padding": 1},
    "bounded": {"padding": 1, "rho": 0.4},
    "strided": {"stride": 2, "padding": 1, "padding_mode": "circular", "rho": 0.5},
}


def build_layer(rho: float | None = None, **arguments: Any) -> invconv.InvertibleConv2d:
    out = 2 * arguments.get("stride", 1) ** 2
    conv = invconv.InvertibleConv2d(2, out, 3, **arguments)
    if rho is not None:
        invconv.parametrizations.bounded(conv, rho)
    return conv


def stirred(module: Module) -> Module:
    """Away from its start, as training would leave it."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return module


def flow_outcome(flow: MultiScaleFlow, x: Tensor, y: Tensor) -> dict[str, Any]:
    """In float64, so that it is the same on any machine."""
    z, log_det = flow.double().eval().encode(x, y)
    return {"z": [part.detach() for part in z], "log_det": log_det.detach(), "conditions": flow.condition_numbers()}


def layer_outcome(conv: invconv.InvertibleConv2d, x: Tensor) -> dict[str, Any]:
    conv = conv.double()
    y = conv(x).detach()
    return {"y": y, "x": conv.inverse(y.flip(0)).detach(), "log_volume": conv.log_volume(x.shape).detach()}


def main() -> None:
    torch.manual_seed(0)
    flow = MultiScaleFlow(**FLOW)
    flow(torch.randint(256, (8, 1, 8, 8), dtype=torch.uint8), torch.arange(8) % 2)
    stirred(flow)
    state = {name: value.clone() for name, value in flow.state_dict().items()}
    x, y = torch.rand(2, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1])
    saved: dict[str, Any] = {
        "version": invconv.__version__,
        "flow": {"arguments": FLOW, "state": state, "x": x, "y": y, **flow_outcome(flow, x, y)},
        "layers": {},
    }
    for name, arguments in LAYERS.items():
        conv = stirred(build_layer(**arguments))
        state = {key: value.clone() for key, value in conv.state_dict().items()}
        x = torch.rand(2, 2, 6, 4, dtype=torch.float64)
        saved["layers"][name] = {"arguments": arguments, "state": state, "input": x, **layer_outcome(conv, x)}
    path = DATA / f"{invconv.__version__}.pt"
    DATA.mkdir(exist_ok=True)
    with path.open("xb") as file:
        torch.save(saved, file)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
