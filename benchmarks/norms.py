"""What is the norm of a convolution at its real borders? Ours, what others make of it, and the time of a step.

python -m benchmarks.norms                    # some minutes
python -m benchmarks.norms --only training    # one of: values, training

values: random kernels with borders of zeros; ours to the tolerance, our bound for every size, PyTorch's norm of the
flattened kernel (`spectral_norm`), the blocks of the torus (the circular recipe), and the least norm of the kernel's
four unfoldings times the root of its taps, a bound (Singla and Feizi, 2021), and where orthogonium is installed its
bound for borders of zeros by three steps of Gram iteration in float32 (Delattre, 2024): four take 150 GB at c = 64 and
k = 5 in float64.

training: a small classifier with borders of zeros, its layers held to norm 1 by `parametrizations.lipschitz`, the same
certified, and by PyTorch's `spectral_norm`; where they are installed, orthogonium's `AOLConv2D` and deel-torchlip's
`SpectralConv2d`, which start from kernels of their own.  Told are the true norms at the end and the time of a step.

Both come by `pip install --no-deps orthogonium einops deel-torchlip`; what is missing is told to be.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from benchmarks.harness.command import ask
from benchmarks.harness.machine import machine
from benchmarks.harness.record import console
from benchmarks.harness.timing import in_turn, ratio
from invconv import InvertibleConv2d, functional
from invconv.parametrizations import lipschitz

SIZES = ["64,5,12", "64,3,12", "16,3,32"]
QUICK = {"sizes": ["4,3,6"], "steps": 3, "rounds": 1, "widths": [4, 4], "side": 8}
PARTS = ("values", "training")
RIVALS = ("orthogonium", "deel")
CLASSES = 4


try:
    from orthogonium.layers.conv.singular_values.delattre24 import compute_delattre2024
except ImportError:
    compute_delattre2024 = None

# -- values --------------------------------------------------------------------------------------------------------


def flattened(weight: Tensor) -> Tensor:
    """What `torch.nn.utils.parametrizations.spectral_norm` brings to one."""
    return torch.linalg.matrix_norm(weight.flatten(1), ord=2)


def torus(weight: Tensor, side: int) -> Tensor:
    """The singular values of the circular layer, by the FFT recipe."""
    blocks = torch.fft.fft2(weight, s=(side, side)).movedim((0, 1), (2, 3))
    values: Tensor = torch.linalg.svdvals(blocks)
    return values


def unfolded(weight: Tensor) -> Tensor:
    """The least norm of the four unfoldings of the kernel, times the root of its taps: a bound for zero borders."""
    taps = weight.shape[2] * weight.shape[3]
    orders = [(0, 1, 2, 3), (1, 0, 2, 3)]
    flat = [weight.permute(order).flatten(1) for order in orders]
    flat += [weight.permute(0, 2, 1, 3).flatten(0, 1).flatten(1), weight.permute(0, 3, 1, 2).flatten(0, 1).flatten(1)]
    return min(torch.linalg.matrix_norm(matrix, ord=2) for matrix in flat) * taps**0.5


def values(sizes: list[str]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("c, k, n", "way", "sigma_max", "off", "sigma_min", "times", "s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for size in sizes:
        channels, kernel, side = map(int, size.split(","))
        torch.manual_seed(0)
        weight = torch.randn(channels, channels, kernel, kernel).double()
        keywords: Any = {"padding": kernel // 2}
        ways: dict[str, Callable[[], Tensor]] = {
            "ours": partial(functional.conv_spectral_norm, weight, (side, side), **keywords),
            "our bound for all sizes": partial(functional.conv_norm_bound, weight, **keywords),
            "torus": lambda w=weight, n=side: torus(w, n).max(),  # type: ignore[misc]
            "flattened (spectral_norm)": partial(flattened, weight),
            "four unfoldings": partial(unfolded, weight),
        }
        if compute_delattre2024:
            ways["Gram iteration (orthogonium)"] = partial(compute_delattre2024, weight.float(), 3)
        smallest: dict[str, Callable[[], Tensor]] = {
            "ours": partial(functional.conv_smallest_singular_value, weight, (side, side), **keywords),
            "torus": lambda w=weight, n=side: torus(w, n).min(),  # type: ignore[misc]
        }
        norm, least = ways["ours"](), smallest["ours"]()
        for name, way in ways.items():
            found, seconds = _timed(way)
            words = [size, name, f"{found:.4f}", f"{100 * float(found / norm - 1):+.2f} %", "", "", f"{seconds:.2g}"]
            if name in smallest:
                low, longer = _timed(smallest[name])
                words[4:6] = [f"{low:.3g}", f"{low / least:.2f}"]
                words[6] += f" + {longer:.2g}"
            table.add_row(*words)
    console.print("borders of zeros, float64, weights of torch.randn; off: from the norm; s: for each of the two")
    console.print(table)
    missing = [name for name in RIVALS if importlib.util.find_spec(name) is None]
    console.print(f"not installed, and so not measured: {', '.join(missing) or 'none'}")


def _timed(compute: Callable[[], Tensor]) -> tuple[Tensor, float]:
    start = time.perf_counter()
    result = compute()
    return result, time.perf_counter() - start


# -- training ------------------------------------------------------------------------------------------------------

HELD: dict[str, Callable[[nn.Conv2d, int], Any]] = {
    "none": lambda conv, _: conv,
    "lipschitz": lambda conv, side: lipschitz(conv, 1.0, (side, side)),
    "certified": lambda conv, _: lipschitz(conv, 1.0, certified=True),
    "spectral_norm": lambda conv, _: spectral_norm(conv),
}

try:
    from orthogonium.layers.conv.AOL.aol import AOLConv2D

    HELD["AOL (orthogonium)"] = lambda conv, _: AOLConv2D(conv.in_channels, conv.out_channels, 3, padding=1)
except ImportError:
    pass

try:
    from deel.torchlip import SpectralConv2d

    HELD["deel-torchlip"] = lambda conv, _: SpectralConv2d(conv.in_channels, conv.out_channels, 3, padding=1)
except ImportError:
    pass


class Classifier:
    """A network with borders of zeros that tells which corner of a noisy image is bright, and how it is trained."""

    def __init__(self, name: str, widths: list[int], side: int, batch: int) -> None:
        torch.manual_seed(0)
        self.side, self.batch = side, batch
        channels = [3, *widths]
        self.convs = [HELD[name](nn.Conv2d(a, b, 3, padding=1), side) for a, b in itertools.pairwise(channels)]
        layers: list[nn.Module] = []
        for conv in self.convs:
            layers += [conv, nn.LeakyReLU(0.5)]
        self.network = nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES))
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=2e-3)
        self.generator = torch.Generator().manual_seed(1)

    def step(self) -> None:
        """One step of training."""
        labels = torch.randint(CLASSES, (self.batch,), generator=self.generator)
        x = 0.5 * torch.randn(self.batch, 3, self.side, self.side, generator=self.generator)
        half = self.side // 2
        for image, label in zip(x, labels.tolist(), strict=True):
            top, left = half * (label // 2), half * (label % 2)
            image[:, top : top + half, left : left + half] += 1
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.network(x), labels).backward()
        self.optimizer.step()

    @torch.no_grad()
    def norms(self) -> list[float]:
        """The true norms of the layers, in float64."""
        found = []
        for conv in self.convs:
            weight = (conv.vanilla_export() if hasattr(conv, "vanilla_export") else conv).weight
            twin = InvertibleConv2d(conv.in_channels, conv.out_channels, 3, padding=1, dtype=torch.float64)
            twin.weight.copy_(weight)
            found.append(twin.spectral_norm((self.side, self.side)).item())
        return found


def training(widths: list[int], side: int, batch: int, steps: int, rounds: int) -> None:
    runs = {name: Classifier(name, widths, side, batch) for name in HELD}
    for _ in range(steps):
        for run in runs.values():
            run.step()
    times = in_turn({name: run.step for name, run in runs.items()}, rounds, warm_up=1, seconds=40.0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in (
        "held by",
        "true norms at the end",
        "ms",
        "step, of one without",
        "quartiles",
        "of spectral_norm's",
    ):
        table.add_column(heading, justify="right")
    for name, run in runs.items():
        median, low, high = ratio(times, name, "none")
        norms = " ".join(f"{norm:.4f}" for norm in run.norms())
        beside = ratio(times, name, "spectral_norm")[0]
        millis = f"{1e3 * statistics.median(times[name]):.0f}"
        table.add_row(name, norms, millis, f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{beside:.2f}")
    console.print(f"widths {widths}, {side} x {side}, batch {batch}, {steps} steps and those that were timed")
    console.print(table)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="channels,kernel,side")
    parser.add_argument("--widths", type=int, nargs="+", default=[32, 32, 32])
    parser.add_argument("--side", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=31, help="at most, in 40 seconds")


def main(options: argparse.Namespace) -> None:
    console.print(machine())
    if "values" in options.only:
        values(options.sizes)
    if "training" in options.only:
        training(options.widths, options.side, options.batch, options.steps, options.rounds)


if __name__ == "__main__":
    ask("norms", __doc__, sys.modules[__name__])
