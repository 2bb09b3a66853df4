r"""The joint solve over the whole network: an image x with the features y = f(x), as nearly as they determine it.

$$ \min_x \; \|f(x) - y\|^2 / \|y\|^2 + w \, \mathrm{prior}(x) $$
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from invconv.inversion.least_squares import Map, length


def feature_error(apply: Map, x: Tensor, features: Tensor) -> Tensor:
    """(batch,): ||apply(x) - features|| / ||features||; absolute where the features are all zero."""
    return (apply(x) - features).flatten(1).norm(dim=1) / length(features)


def total_variation(x: Tensor) -> Tensor:
    """(batch,): mean length of the gradient, forward differences, rounded off below 0.01.

    Example:
        >>> total_variation(torch.tensor([[[[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]]]]))
        tensor([0.5050])
    """
    right, down = x.diff(dim=-1)[..., :-1, :], x.diff(dim=-2)[..., :, :-1]
    return (right.square() + down.square() + 1e-4).sqrt().flatten(1).mean(1)


@dataclass(frozen=True)
class JointSolve:
    """Minimises the squared relative error of the features, plus a prior, by L-BFGS (Nocedal 1980) with a line search.

    The prior chooses among the images that the features leave open, and does not blur what they determine: its weight
    w falls with the error of the start.

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

    def run(self, apply: Map, features: Tensor, start: Tensor) -> Tensor:
        """The images, solved for one after the other: each has a curvature of its own.

        One that came out with a larger objective than it went in with is given back as it was.

        Args:
            apply: the network up to the layer.
            features: (batch, ...), what `apply` is to give.
            start: (batch, channels, height, width), where to begin.
        """
        pairs = zip(features.split(1), start.split(1), strict=True)
        return torch.cat([self._one(apply, wanted, image) for wanted, image in pairs])

    def _one(self, apply: Map, features: Tensor, start: Tensor) -> Tensor:
        """The solution for one image."""
        objective = self._objective(apply, features, start)
        with torch.no_grad():  # torch's L-BFGS forgets curvatures below 1e-10, so small errors are scaled up
            scale = 1e4 / objective(start).clamp_min(1e-20)
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
            optimizer.zero_grad()
            loss = scale * objective(x)
            loss.backward()
            if self.watch is not None:
                self.watch(x.detach())
            return loss

        with torch.enable_grad():
            optimizer.step(closure)
        with torch.no_grad():
            return x.detach() if objective(x) <= objective(start) else start

    def _objective(self, apply: Map, features: Tensor, start: Tensor) -> Map:
        """What is minimised, as a function of the image."""
        weight = self.prior_weight
        if weight:
            weight *= float(feature_error(apply, start, features).square().clamp_max(1))

        def objective(x: Tensor) -> Tensor:
            error = feature_error(apply, x, features).square().sum()
            return error if self.prior is None or weight == 0 else error + weight * self.prior(x).sum()

        return objective
