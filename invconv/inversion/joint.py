r"""The joint solve over the whole network: an image x with the features y = f(x), as nearly as they determine it.

$$ \min_z \; \|f(x) - y\|^2 / \|y\|^2 + w \, \mathrm{prior}(x) + c \, \mathrm{mean} ((x - [x]_B) / |B|)^2 $$

with $x$ the image at the coordinates $z$, $[x]_B$ the nearest one within the box of the pixels, and $|B|$ its widths;
the last term is nothing where the coordinates keep within the box, or there is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from invconv.inversion.coordinates import Coordinates, Pixels
from invconv.inversion.lbfgs import minimise
from invconv.inversion.least_squares import Map, length

STEPS = 100
"""Evaluations of the network for each image, where nothing else is asked for."""
PRIOR_WEIGHT = 0.03
"""Weight of the prior where nothing else is asked for, before it is multiplied by the squared error of the start."""

HISTORY = 30
"""Pairs of steps and gradients that L-BFGS keeps. After 130 evaluations the errors are 0.049, 0.091, 0.072 and 0.110,
with 15 pairs 0.051, 0.094, 0.073 and 0.109, and with 60, which take longer, 0.046, 0.090, 0.071 and 0.109 (SqueezeNet,
features.4 and .7, EfficientNet-Lite0, `_blocks.2` and `.10`, four photographs)."""
OUTSIDE = 100.0
"""Weight c of what leaves the box. After 60 steps the clipped image of a photograph has a feature error of 0.0144 with
1, 0.0074 with 10, 0.0069 with 100 and 0.0104 with 1000 (SqueezeNet, features.2)."""

SHAKEN = 10
"""Steps on a shaken image, where features are few: at most so many, and at most half of all."""
SHIFT = 1 / 48
"""Furthest shift of a shaken image, in its sides."""
STRIDE = 0.02
"""Length of each, root mean square, in coordinates where photographs have a deviation of one. Along the gradient, and
not by Adam, which moves what hardly counts as far as what does: over four photographs the errors after 100 evaluations
are 0.216 (EfficientNet-Lite0, `_blocks.15`), 0.149 (its `_fc`) and 0.199 (EfficientNet-Lite1, `_blocks.12`, 120 px) in
place of 0.243, 0.229 and 0.213; with 0.05 the first and the last are 0.229 and 0.193."""


def feature_error(apply: Map, x: Tensor, features: Tensor) -> Tensor:
    """(batch,): ||apply(x) - features|| / ||features||; absolute where the features are all zero."""
    return (apply(x) - features).flatten(1).norm(dim=1) / length(features)


@dataclass(frozen=True)
class JointSolve:
    """Minimises the squared relative error of the features, plus a prior, by L-BFGS with a line search.

    Given back is the image of the least feature error among all that were evaluated, the start included, as it lies
    within the box: more steps never give a worse one.

    Example:
        >>> start, features = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
        >>> x = JointSolve(steps=10).run(lambda x: 2 * x, features, start)
        >>> torch.allclose(x, torch.full_like(x, 0.5))
        True
    """

    steps: int
    """Most evaluations of the network for each image; 0 for no joint solve."""
    prior: Callable[[Tensor], Tensor] | None = None
    """(batch, ...) -> (batch,), of images: what is to be small; None for what the coordinates say."""
    prior_weight: float = 0.0
    """The weight w of the prior is `prior_weight` times the squared feature error of the start, at most 1."""
    watch: Callable[[Tensor], None] | None = None
    """Called with the image at each evaluation."""
    coordinates: Coordinates = field(default_factory=Pixels)
    """What is moved in."""
    shaken: int = 0
    """How many evaluations, at most half, go to gradient steps first, on images that are shifted a little each time:
    flat ground and shallow valleys, in which a line search ends, are crossed, and patterns that need an exact place do
    not grow."""

    def run(self, apply: Map, features: Tensor, start: Tensor, error: float | None = None) -> Tensor:
        """The images, solved for one after the other: each has a curvature of its own.

        Args:
            apply: the network up to the layer.
            features: (batch, ...), what `apply` is to give.
            start: (batch, channels, height, width), where to begin.
            error: the feature error of the start as it is shown, if that is known.
        """
        pairs = zip(features.split(1), start.split(1), strict=True)
        return torch.cat([self._one(_Search(self, apply, wanted, image, error)) for wanted, image in pairs])

    def _one(self, search: _Search) -> Tensor:
        """The solution for one image."""
        with torch.enable_grad():
            z = self.coordinates.encode(search.best).detach()
            shaken = min(self.shaken, self.steps // 2)
            if shaken:
                z = search.shake(z, shaken)
            if self.steps > shaken:
                search.descend(z, self.steps - shaken)
        return search.best

    def split(self, steps: int) -> tuple[JointSolve, JointSolve]:
        """One for the first `steps`, and one for what is left of them."""
        first = min(steps, self.steps)
        return replace(self, steps=first), replace(self, steps=self.steps - first)

    def shown(self, x: Tensor) -> Tensor:
        """The nearest images within the box."""
        box = self.coordinates.box
        return x if box is None or self.coordinates.within else box.clamp(x)

    def disliked(self, z: Tensor, x: Tensor) -> Tensor:
        """(batch,): the prior of an image, by default what its coordinates say."""
        return self.coordinates.prior(z) if self.prior is None else self.prior(x)

    def outside(self, x: Tensor) -> Tensor | None:
        """Mean square of what leaves the box, in its widths; None where nothing does."""
        box = self.coordinates.box
        if box is None or self.coordinates.within:
            return None
        outside = (box.excess(x) / (box.upper - box.lower)).square().mean()
        return outside if outside > 0 else None


class _Search:
    """The joint solve for one image, with the best that was seen so far."""

    def __init__(
        self, solve: JointSolve, apply: Map, features: Tensor, start: Tensor, error: float | None = None
    ) -> None:
        self.solve, self.apply, self.features = solve, apply, features
        self.scale = float(length(features))
        self.best = solve.shown(start)
        with torch.no_grad():
            self.least = float(self._error(self.best)) if error is None else error
        self.weight = solve.prior_weight * min(self.least**2, 1.0)

    def shake(self, z: Tensor, steps: int) -> Tensor:
        """The coordinates after so many steps of one length along the gradient; every fourth image is not shifted."""
        generator = torch.Generator().manual_seed(0)
        for step in range(steps):
            shifts = [int((2 * float(torch.rand((), generator=generator)) - 1) * (n * SHIFT + 1)) for n in z.shape[2:]]
            z = z.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self._loss(z, [0 for _ in shifts] if step % 4 == 0 else shifts), z)
            size = gradient.norm() / math.sqrt(gradient.numel())
            z = z - STRIDE * gradient / size if size > 0 else z
        return z.detach()

    def descend(self, z: Tensor, steps: int) -> None:
        """So many evaluations of L-BFGS."""

        def value(z: Tensor) -> tuple[float, Tensor]:
            z = z.detach().requires_grad_()
            loss = self._loss(z)
            return float(loss.detach()), torch.autograd.grad(loss, z)[0]

        minimise(value, z, steps, HISTORY)

    def _error(self, x: Tensor) -> Tensor:
        """The feature error of one image."""
        y = self.apply(x)
        if y.stride() != self.features.stride():  # two orders in memory are slow to subtract
            self.features = torch.empty_like(y).copy_(self.features)
        return torch.linalg.vector_norm(y - self.features) / self.scale

    def _loss(self, z: Tensor, shifts: list[int] | None = None) -> Tensor:
        """What is minimised; the image counts among those seen, unless it is shifted."""
        x = self.solve.coordinates.decode(z)
        moved = x.roll(shifts, tuple(range(2, x.dim()))) if shifts and any(shifts) else x
        error, outside = self._error(moved), self.solve.outside(x)
        image = self.solve.shown(x.detach())
        if moved is x:
            with torch.no_grad():
                reached = float(error.detach() if outside is None else self._error(image))
            if reached < self.least:
                self.best, self.least = image.clone(), reached
        if self.solve.watch is not None:
            self.solve.watch(image)
        loss = error.square()
        if outside is not None:
            loss = loss + OUTSIDE * outside
        if self.weight:
            loss = loss + self.weight * self.solve.disliked(z, x).sum()
        return loss if loss.requires_grad else loss + 0 * z.sum()  # the layer has no derivative
