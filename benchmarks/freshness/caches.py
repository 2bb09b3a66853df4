"""Every way to change a weight, against the caches of three libraries: which answers are right afterwards?

    pip install nflows pyro-ppl
    python -m benchmarks.freshness caches

The routes are those of `tests/routes.py`.  Each layer is asked first, so that it has something to keep; its weight is
changed; and it is asked again: for its output, the inverse of that and the log-determinant ("answers"), or for these
and their gradients ("gradients").  Right is what a new layer of the same weight says, which keeps nothing.

- **nflows**: `OneByOneConvolution(using_cache=True)` in evaluation mode, in which alone it keeps its inverse.
- **pyro**: `GeneralizedChannelPermute`, whose `Transform` keeps the last pair of x and y.

Their caches go by the mode of the module and by the identity of x: for comparison, the first row changes nothing and
the second does what the documentation of nflows expects, to change weights in training mode only.

ok: right.  stale: wrong, without a word.  crash: an exception.  -: nor can the same layer do it without its cache.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.machine import machine
from invconv import InvertibleConv2d

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from routes import ROUTES, Route, Subject, Unavailable, data_write

QUICK = {"routes": ["data"]}


@dataclass
class Library:
    """A layer, and how it is asked."""

    name: str
    weight: str
    """The parameter that a route changes."""
    build: Callable[[bool], Any]
    """Takes whether it may keep anything."""
    ask: Callable[[Any, Tensor], list[Tensor]]
    """Takes the layer and x; gives its output y, the inverse of y, and the log-determinant."""


class Stale(Exception):
    """A wrong answer."""


def ours() -> Library:
    def build(_: bool) -> nn.Module:
        return InvertibleConv2d(3, 3, 3, padding=1)

    def ask(conv: InvertibleConv2d, x: Tensor) -> list[Tensor]:
        y = conv(x)
        return [y, conv.inverse(y), conv.log_abs_det(x.shape)]

    return Library("invconv", "weight", build, ask)


def nflows() -> Library:
    from nflows.transforms import OneByOneConvolution

    def build(keeps: bool) -> nn.Module:
        return OneByOneConvolution(3, using_cache=keeps, identity_init=False).eval()

    def ask(transform: Any, x: Tensor) -> list[Tensor]:
        y, log_det = transform(x)
        return [y, transform.inverse(y)[0], log_det]

    return Library("nflows", "lower_entries", build, ask)


def pyro() -> Library:
    from pyro.distributions.transforms import GeneralizedChannelPermute

    def build(keeps: bool) -> nn.Module:
        transform = GeneralizedChannelPermute(3)
        transform._cache_size = int(keeps)  # noqa: SLF001  (`with_cache` gives no module)
        return transform

    def ask(transform: Any, x: Tensor) -> list[Tensor]:
        y = transform(x)
        return [y, transform.inv(y), transform.log_abs_det_jacobian(x, y)]

    return Library("pyro", "LU", build, ask)


def fresh(library: Library, module: nn.Module) -> nn.Module:
    """A layer of the same parameters and buffers that keeps nothing."""
    for hook in vars(module)["_forward_pre_hooks"].values():  # with which pruning sets the weight
        hook(module, ())
    twin = library.build(False)
    with torch.inference_mode(False), torch.no_grad():
        for name in twin.state_dict():
            *path, last = name.split(".")
            place, source = twin, module
            for part in path:
                place, source = getattr(place, part), getattr(source, part)
            value = getattr(source, last).detach().clone()
            setattr(place, last, nn.Parameter(value) if last in dict(place.named_parameters(recurse=False)) else value)
    return twin


def outcome(library: Library, route: Route, keeps: bool, gradients: bool) -> str:
    """What became of one route: "ok", "stale", or the name of the exception."""
    torch.manual_seed(0)
    module, twin = library.build(keeps), library.build(keeps)
    x = torch.randn(2, 3, 6, 8, requires_grad=gradients)
    inputs: dict[torch.dtype, Tensor] = {}

    def answers(module: nn.Module) -> list[Tensor]:
        weight = getattr(module, library.weight)
        same = inputs.setdefault(weight.dtype, x if weight.dtype == x.dtype else x.detach().to(weight))
        with torch.set_grad_enabled(gradients and torch.is_grad_enabled()):
            found = library.ask(module, same.requires_grad_(gradients))
            if torch.is_grad_enabled():
                loss = sum((answer.float().square().sum() for answer in found), torch.zeros(()))
                found.append(torch.autograd.grad(loss, same)[0])
        return found

    def check(module: nn.Module) -> None:
        found = answers(module)
        for a, b in zip(found, answers(fresh(library, module)), strict=True):
            if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * b.abs().max().item()):
                raise Stale

    try:
        check(module)
        check(route(Subject(module, library.weight, lambda: twin, x.detach(), check)) or module)
    except Unavailable:
        return "-"
    except Stale:
        return "stale"
    except Exception as error:
        return f"crash: {type(error).__name__}"
    return "ok"


def nothing(s: Subject) -> None:
    pass


def in_training_mode(s: Subject) -> None:
    s.module.train()
    data_write(s)
    s.module.eval()


CONTROLS = {"(nothing)": nothing, "(in training mode)": in_training_mode}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--routes", nargs="+", default=[""], help="only those whose names contain one of these")


def quiet_lightning() -> None:
    """No word about devices from the trainers of a route."""
    with contextlib.suppress(ImportError):
        import lightning  # noqa: F401  (which sets the levels of its loggers)
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    print(machine())
    routes = {name: route for name, route in ROUTES.items() if any(part in name for part in options.routes)}
    tell(routes, installed())


def installed() -> list[Library]:
    """Ours, and those of the others that can be imported."""
    libraries = [ours()]
    for other in (nflows, pyro):
        try:
            libraries.append(other())
        except ImportError as missing:
            print(f"without {other.__name__}: {missing}; pip install nflows pyro-ppl")
    return libraries


def tell(routes: dict[str, Route], libraries: list[Library]) -> None:
    """A row for each route, and the counts below."""
    columns = [(library, gradients) for library in libraries for gradients in (False, True)]
    titles = [f"{library.name}, {'gradients' if g else 'answers'}" for library, g in columns]
    widths = [max(len(title), 20) for title in titles]
    print(f"{'':<31}" + "".join(f"{title:<{w + 2}}" for title, w in zip(titles, widths, strict=True)))
    counts = [Counter[str]() for _ in columns]
    for name, route in (CONTROLS | routes).items():
        cells = []
        for (library, gradients), count in zip(columns, counts, strict=True):
            found = outcome(library, route, True, gradients)
            if found != "ok" and outcome(library, route, False, gradients) != "ok":
                found = "-"
            if name in routes:
                count[found.partition(":")[0]] += 1
            cells.append(found)
        print(f"{name:<31}" + "".join(f"{cell:<{w + 2}}" for cell, w in zip(cells, widths, strict=True)))
    print()
    for title, count in zip(titles, counts, strict=True):
        right, asked = count["ok"], sum(count.values()) - count["-"]
        print(f"{title:<31}{right} of {asked} right, {count['stale']} stale, {count['crash']} crashed")
