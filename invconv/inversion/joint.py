r"""The joint solve over the whole network: an image x with the features y = f(x), as nearly as they determine it.

$$ \min_x \; \|f(x) - y\|^2 / \|y\|^2 + w \, \mathrm{prior}(x) + c \, \mathrm{mean} ((x - [x]_B) / |B|)^2 $$

where $[x]_B$ is the nearest image within the box of the pixels, and $|B|$ its widths; without a box the last term goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from invconv.inversion.interval import Interval
from invconv.inversion.least_squares import Map, length

STEPS = 100
"""Evaluations of the network for each image, where nothing else is asked for."""
PRIOR_WEIGHT = 0.03
"""Weight of the prior where nothing else is asked for, before it is multiplied by the squared error of the start."""
OUTSIDE = 100.0
"""Weight c of what leaves the box. After 60 steps the clipped image of a photograph has a feature error of 0.30 with 1,
0.26 with 10, 0.24 with 100 and 0.26 with 1000 (SqueezeNet's features.4), and of 0.34 if f is given [x] itself."""


def feature_error(apply: Map, x: Tensor, features: Tensor) -> Tensor:
    """(batch,): ||apply(x) - features|| / ||features||; absolute where the features are all zero."""
    return (apply(x) - features).flatten(1).norm(dim=1) / length(features)


def total_variation(x: Tensor) -> Tensor:
    """(batch,): mean length of the gradient over all axes, forward differences, rounded off below 0.01.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]]))
        tensor([0.5050])
    """
    inner: Any = (..., *(slice(n - 1) for n in x.shape[2:]))  # where all axes have a next entry
    squared = torch.stack([(x.roll(-1, dim) - x)[inner].square() for dim in range(2, x.dim())]).sum(0)
    return (squared + 1e-4).sqrt().flatten(1).mean(1)


@dataclass(frozen=True)
class JointSolve:
    """Minimises the squared relative error of the features, plus a prior, by L-BFGS (Nocedal 1980) with a line search.

    The prior chooses among the images that the features leave open, and does not blur what they determine: its weight
    w falls with the error of the start. Given back is the image of the least feature error among all that were
    evaluated, the start included, as it lies within the box: more steps never give a worse one.

    Example:
        >>> start, features = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        >>> x = JointSolve(steps=10).run(lambda x: 2 * x, features, start)
        >>> torch.allclose(x, torch.full_like(x, 0.5))
        True
    """

    steps: int
    """Most evaluations of the network for each image; 0 for no joint solve."""
    prior: Callable[[Tensor], Tensor] | None = None
    """(batch, ...) -> (batch,): what is to be small."""
    prior_weight: float = 0.0
    """The weight w of the prior is `prior_weight` times the squared feature error of the start, at most 1."""
    watch: Callable[[Tensor], None] | None = None
    """Called with the image at each evaluation."""
    box: Interval | None = None
    """What values the pixels can have; None for any."""

    def run(self, apply: Map, features: Tensor, start: Tensor) -> Tensor:
        """The images, solved for one after the other: each has a curvature of its own.

        Args:
            apply: the network up to the layer.
            features: (batch, ...), what `apply` is to give.
            start: (batch, channels, height, width), where to begin.
        """
        pairs = zip(features.split(1), start.split(1), strict=True)
        return torch.cat([self._one(apply, wanted, image) for wanted, image in pairs])

    def _one(self, apply: Map, features: Tensor, start: Tensor) -> Tensor:
        """The solution for one image."""
        with torch.no_grad():
            best = self.shown(start)
            least = first = feature_error(apply, best, features)
        weight = self.prior_weight * float(first.square().clamp_max(1))
        scale: Tensor | None = None
        x = start.detach().clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [x],
            max_iter=self.steps,
            max_eval=self.steps,
            history_size=20,
            line_search_fn="strong_wolfe",
            tolerance_grad=0,
            tolerance_change=0,
        )

        def closure() -> Tensor:
            nonlocal best, least, scale
            optimizer.zero_grad()
            error, outside = feature_error(apply, x, features), self._outside(x)
            image = self.shown(x.detach())
            with torch.no_grad():
                reached = feature_error(apply, image, features) if outside > 0 else error.detach()
            if reached < least:
                best, least = image.clone(), reached
            loss = error.square().sum() + OUTSIDE * outside
            if self.prior is not None and weight:
                loss = loss + weight * self.prior(x).sum()
            if scale is None:  # torch's L-BFGS forgets curvatures below 1e-10, so small errors are scaled up
                scale = 1e4 / loss.detach().clamp_min(1e-20)
            loss = scale * loss
            loss.backward()
            if self.watch is not None:
                self.watch(image)
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        return best

    def shown(self, x: Tensor) -> Tensor:
        """The nearest images within the box."""
        return x if self.box is None else self.box.clamp(x)

    def _outside(self, x: Tensor) -> Tensor:
        """Mean square of what leaves the box, in its widths."""
        if self.box is None:
            return x.new_zeros(())
        return (self.box.excess(x) / (self.box.upper - self.box.lower)).square().mean()
