"""One layer alone, undone by its rule: what tests of rules have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from invconv.inversion import Interval, Site
from invconv.inversion.chain import segments
from invconv.inversion.graph import Network
from invconv.inversion.site import kept


class Function(nn.Module):
    """A function, or several that part and meet again, as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


def site_of(module: nn.Module, x: Tensor, *, switches: bool = True) -> tuple[Site, Tensor]:
    """The place of the only layer of a network, and its features for `x`."""
    network = Network(nn.Sequential(module.eval()), "0", x[:1])
    values = network.run(x)
    features, seen = values[network.target], kept(network, values) if switches else {}
    (segment,) = segments(network)
    return Site(segment, x[:0], torch.zeros_like(x), seen.get(segment.stop), rounds=20, iterations=200), features


@torch.no_grad()
def undo(module: nn.Module, x: Tensor, *, switches: bool = True) -> Interval:
    """What the rule of one layer tells about its input when its output is known."""
    site, features = site_of(module, x, switches=switches)
    rule = site.segment.rule
    assert rule is not None
    return rule.function(site, Interval.point(features))


@torch.no_grad()
def undo_all(module: nn.Module, x: Tensor) -> Interval:
    """What the rules of all layers inside, from the last to the first, tell about the input."""
    network = Network(nn.Sequential(module.eval()), "0", x[:1])
    values = network.run(x)
    output = Interval.point(values[network.target])
    for segment in reversed(segments(network)):
        assert segment.rule is not None, segment.kind
        output = segment.rule.function(Site(segment, x[:0], torch.zeros_like(values[segment.start])), output)
    return output


def dense_pseudo_inverse(module: nn.Module, x: Tensor) -> Tensor:
    """What the pseudo-inverse of the explicit matrix of an affine layer makes of its output for `x`."""
    with torch.no_grad():
        zero = module(torch.zeros_like(x[:1]))
        units = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
        matrix = (module(units) - zero).flatten(1).T
        return (torch.linalg.pinv(matrix) @ (module(x) - zero).flatten(1).T).T.view_as(x)
