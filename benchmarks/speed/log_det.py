"""The log-determinants of a scale of the demo flow and their gradients, against its convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor

from benchmarks.harness.engine import Torus, log_dets_together
from benchmarks.harness.timing import Case
from benchmarks.speed.case import layer
from invconv import InvertibleConv2d


def log_det(full: bool, device: str) -> Iterator[Case]:
    """Log-determinants with their gradients against the convolutions forward and backward, of four layers.

    Four is a scale of the demo flow, which takes its layers together.
    """
    sizes = [(12, 16), (24, 16), (48, 16), (48, 8), (48, 4), (96, 4)] + ([(12, 32), (24, 8), (96, 8)] if full else [])
    for channels, side in sizes:
        convs = [layer(channels, side, 32, device)[0] for _ in range(4)]
        x = layer(channels, side, 32, device)[1].requires_grad_()

        def change(convs: list[InvertibleConv2d], tol: float | None = None) -> None:
            for conv in convs:  # as after a step: nothing of the last one may be used again
                conv.weight.data[0, 0, 0, 0] += 1e-6
                conv.volume_tol = tol

        def convolve(convs: list[InvertibleConv2d] = convs, x: Tensor = x) -> None:
            for conv in convs:
                conv(x).sum().backward()

        def each(convs: list[InvertibleConv2d] = convs, size: tuple[int, int] = (side, side)) -> None:
            change(convs)
            for conv in convs:
                conv.log_abs_det(size).backward()

        def together(
            convs: list[InvertibleConv2d] = convs,
            size: tuple[int, int] = (side, side),
            tol: float | None = None,
            *,
            log_dets: Callable[..., Tensor],
        ) -> None:
            change(convs, tol)
            log_dets(convs, size).backward()

        torus = Torus(len(convs), side)
        blocks = torus.blocks([conv.weight for conv in convs])
        calls: dict[str, Callable[[], object]] = {
            "convolution and gradient": convolve,
            "log-det, one by one": each,
            "log-det, together": partial(together, log_dets=log_dets_together()),
            "the same, volume_tol=1e-3": partial(together, log_dets=log_dets_together(), tol=1e-3),
            "LU and inverse alone": partial(torus.factor, blocks),
        }
        measured = {"c": channels, "side": side, "batch": 32}
        name = f"c={channels}, {side} x {side}, batch 32"
        yield Case(name, calls, "convolution and gradient", seconds=3, sizes=measured)
