"""Print what the convolutions of a network of torchvision are: `python -m invconv.summary --model resnet18`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

import torch

from invconv.errors import InvconvError, needs
from invconv.summary import summary
from invconv.summary.network import QUANTITIES


def main(words: Sequence[str] | None = None, prog: str = "python -m invconv.summary") -> None:
    """Ask, print, and write."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--model", required=True, help="name of a network, as torchvision.models.get_model takes it")
    parser.add_argument("--weights", help="which trained weights, as DEFAULT; none by default")
    parser.add_argument("--size", type=int, nargs="+", default=[224], help="of the image, a side or all")
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--quantities", nargs="+", default=QUANTITIES, choices=QUANTITIES)
    parser.add_argument("--seconds", type=float, default=10.0, help="spent on each layer and quantity, at most")
    parser.add_argument("--tol", type=float, default=1e-3, help="relative accuracy of singular values of large layers")
    parser.add_argument("--csv", help="a file to write the rows to")
    parser.add_argument("--picture", help="a file to draw the singular values to, as spectra.png")
    options = parser.parse_args(words)
    size = options.size * 2 if len(options.size) == 1 else options.size
    start = time.perf_counter()
    try:
        found = summary(
            _network(options.model, options.weights),
            (options.channels, *size),
            quantities=options.quantities,
            seconds=options.seconds,
            tol=options.tol,
            spectra=bool(options.picture),
            progress=_progress,
        )
        print(f"{found}\n\n{time.perf_counter() - start:.0f} s in {torch.get_num_threads()} threads{_memory()}")
        if options.picture:
            found.plot(options.picture)
    except InvconvError as error:
        sys.exit(f"error: {error}")
    if options.csv:
        found.to_csv(options.csv)


def _network(name: str, weights: str | None):  # type: ignore[no-untyped-def]  # of a package that may be missing
    with needs("lightning"):
        from torchvision import models
    try:
        return models.get_model(name, weights=weights)
    except ValueError as error:
        sys.exit(f"error: {error}")


def _memory() -> str:
    """The most memory that this process has had, where the system tells."""
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:  # Windows
        return ""
    unit = 1 if sys.platform == "darwin" else 1024
    return f", {unit * getrusage(RUSAGE_SELF).ru_maxrss / 1e9:.1f} GB at the peak"


def _progress(done: int, count: int, name: str) -> None:
    """One line of the terminal, written over."""
    print(f"\r{done} of {count} {name:<60}", end="\n" if done == count else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
