"""Is any layer of torchvision's classification and segmentation networks refused, and which are not undone exactly?

For each network (random weights), layers over its depth and the last are asked for in closed form, with as little work
as may be. A layer is exact where its rule is: an inverse, inequalities, or linear equations. Named are those that are
solved numerically: by Gauss-Newton for want of a rule, or several together (residual sums, branches, norms with the
layer below them).

    python -m benchmarks.inversion sweep
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchvision import models

from invconv import InvconvError
from invconv.inversion import Inversion, invert, layer_names, spread
from invconv.inversion.trace import reached

SEGMENTATION = models.list_models(module=models.segmentation)
NETWORKS = [*models.list_models(module=models), *SEGMENTATION]
SIZES = {"inception_v3": 75, "maxvit_t": 224, "vit_h_14": 56}
"""Of networks that take no image of 64 px: their least size, or whole patches."""
QUICK = {"networks": ["squeezenet1_1", "lraspp_mobilenet_v3_large"], "layers": 2}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--networks", nargs="*", default=NETWORKS, metavar="NAME", help="names of torchvision; all")
    parser.add_argument("--size", type=int, default=64, help="side of the images; larger where a network needs it")
    parser.add_argument("--layers", type=int, default=3, help="over the depth of each network, the last beside them")
    parser.add_argument("--names", action="store_true", help="name each layer that is not exact, not only their kinds")


def main(options: argparse.Namespace) -> None:
    warnings.simplefilter("ignore")  # of few steps, and of torchvision's own initial values
    console = Console(width=200)
    refused = []
    table = Table("network", "px", "exact", "solved together", "solved numerically", "s")
    for name in options.networks:
        begin = time.perf_counter()
        size = SIZES.get(name, options.size)
        network = build(name, size)
        x = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        inversion = None
        for layer in asked(network, options.layers, x):
            try:
                inversion = invert(network, layer, image=x, steps=0, rounds=1, iterations=2)
            except InvconvError as error:
                refused.append(f"{name}, {layer}: {error}")
        row = [] if inversion is None else told(inversion, network)
        table.add_row(name, str(size), *(row or ["refused", "", ""]), f"{time.perf_counter() - begin:.0f}")
        console.print(f"{name}: {' | '.join(row)}", highlight=False)
        if options.names and inversion is not None:
            console.print("\n".join(named(inversion)), highlight=False)
        del network, inversion
        gc.collect()
    console.print(table)
    console.print("\n".join([f"{len(options.networks)} networks, {len(refused)} layers refused", *refused]))


def build(name: str, size: int) -> nn.Module:
    """A network of random weights, in eval mode, for images of this size."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"weights_backbone": None} if name in SEGMENTATION else {}
    options |= {"image_size": size} if name.startswith("vit_") else {}
    network: nn.Module = models.get_model(name, weights=None, **options).eval()
    return network


def asked(network: nn.Module, count: int, x: Tensor) -> list[str]:
    """Layers over the depth, and the last one, that of the classifier and not of a side branch."""
    names = [name for name in reached(network, x) if not name.startswith(("aux", "AuxLogits"))]
    return list(dict.fromkeys([*spread(network, count, names), names[-1]]))


def exact(note: str) -> bool:
    """Whether a layer was undone by a rule that is exact."""
    return not any(word in note for word in ("together", "numerically", "mean and scale", "as a whole", "two unknowns"))


def told(inversion: Inversion, network: nn.Module) -> list[str]:
    """How many layers are exact, which kinds are solved together, and which have no exact rule."""
    names = set(layer_names(network))
    together, missing = Counter[str](), Counter[str]()
    for report in inversion.layers:
        if "together" in report.note:
            module = network.get_submodule(report.name) if report.name in names else None
            together[report.kind if module is None else type(module).__name__] += 1
        elif not exact(report.note):
            missing[report.kind] += 1
    exactly = sum(exact(report.note) for report in inversion.layers)
    return [str(exactly), counts(together), counts(missing)]


def counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())


def named(inversion: Inversion) -> Sequence[str]:
    """Each layer that is not exact, by name."""
    return [f"    {r.name} ({r.kind}): {r.note}" for r in inversion.layers if not exact(r.note)]
