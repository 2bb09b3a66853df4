"""One layer of a flow, against those of others."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from FrEIA.modules import Fixed1x1Conv
from nflows.transforms import OneByOneConvolution
from normflows.flows import Invertible1x1Conv
from torch import Tensor, nn

from benchmarks.harness.timing import Case
from benchmarks.rivals.flow_layers import ConvExponential, Emerging
from benchmarks.rivals.layers import CayleyConv, PeriodicConv, Woodbury
from benchmarks.speed.case import layer
from invconv import InvertibleConv2d

try:
    from orthogonium.legacy.cayley_ortho_conv import Cayley
except ImportError:
    Cayley = None

warnings.filterwarnings("ignore", "torch.triangular_solve is deprecated")  # nflows
Call = Callable[[], Any]


def layers(full: bool, device: str) -> Iterator[Case]:
    """A training step and an inverse of one layer: ours, dense 3 x 3, against those of others.

    normflows, nflows and FrEIA have 1 x 1 convolutions, the ports 3 x 3 (Woodbury: all of the image, at rank 16).
    """
    grid = [(12, 16), (24, 8), (48, 4), (48, 8)]
    for (channels, side), batch in product(grid, (32, 64) if full else (32,)):
        steps, inverses = _rivals(channels, side, batch, device)
        name = f"c={channels}, {side} x {side}, batch {batch}"
        sizes = {"c": channels, "side": side, "batch": batch}
        yield Case(f"step: {name}", steps, "normflows, 1 x 1", seconds=3, sizes=sizes)
        yield Case(f"inverse: {name}", inverses, "normflows, 1 x 1", seconds=3, sizes=sizes)


def _rivals(channels: int, side: int, batch: int, device: str) -> tuple[dict[str, Call], dict[str, Call]]:
    """For each layer a training step, and the inverse that sampling with the trained layer calls."""
    conv, x = layer(channels, side, batch, device)
    zeros, _ = layer(channels, side, batch, device, padding_mode="zeros")
    size = (side, side)
    ours = {"invconv": conv, "invconv, zero borders": zeros}
    theirs = Invertible1x1Conv(channels).to(device)
    cached = OneByOneConvolution(channels, using_cache=True).to(device)
    fixed = Fixed1x1Conv([(channels, *size)], M=torch.linalg.qr(torch.randn(channels, channels))[0]).to(device)
    ports: dict[str, Any] = {
        "emerging (port)": Emerging(channels),
        "periodic (port)": PeriodicConv(channels),
        "conv. exponential (port)": ConvExponential(channels, size),
        "Woodbury, rank 16 (port)": Woodbury(channels, size),
        "Cayley (port)": CayleyConv(channels, size),
    }
    pairs: dict[str, tuple[Call, nn.Module]] = {
        **{name: (partial(_ours, c, x), c) for name, c in ours.items()},
        "normflows, 1 x 1": (lambda: theirs.inverse(x), theirs),
        "nflows, 1 x 1": (lambda: cached(x), cached),
        **{name: (partial(m, x), m.to(device)) for name, m in ports.items()},
    }
    if Cayley is not None:
        orthogonal = Cayley(channels, channels, 3, bias=False).to(device)
        pairs["Cayley (orthogonium)"] = (lambda: (orthogonal(x), 0.0), orthogonal)
    steps = {name: _step(call, module, side * side) for name, (call, module) in pairs.items()}
    steps["FrEIA, fixed: forward only"] = torch.no_grad()(lambda: fixed((x,)))

    # It caches in evaluation alone, while the layer above trains.
    sampling = OneByOneConvolution(channels, using_cache=True).to(device).eval()
    undo: dict[str, Call] = {
        **{name: partial(c.inverse, x) for name, c in ours.items()},
        "normflows, 1 x 1": lambda: theirs(x),
        "nflows, cached": lambda: sampling.inverse(x),
        "FrEIA, fixed": lambda: fixed((x,), rev=True),
        **{name: partial(m.inverse, x) for name, m in ports.items()},
    }
    return steps, {name: torch.no_grad()(call) for name, call in undo.items()}


def _ours(conv: InvertibleConv2d, x: Tensor) -> tuple[Tensor, Tensor]:
    return conv(x), conv.log_abs_det(x.shape[2:])


def _step(call: Call, module: nn.Module, area: int) -> Callable[[], None]:
    optimizer = torch.optim.Adam(module.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        y, log_abs_det = call()
        (0.5 * y.square().flatten(1).sum(1).mean() - torch.as_tensor(log_abs_det).mean()).div(area).backward()
        optimizer.step()

    return step
