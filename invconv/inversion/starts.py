"""Where the joint solve begins, in which coordinates and how: by how much the features say of the image."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from invconv.inversion.coordinates import Natural, Pixels
from invconv.inversion.interval import Interval
from invconv.inversion.joint import SHAKEN, JointSolve, feature_error
from invconv.inversion.least_squares import Map

NEAR = 0.1
"""Feature error from which on an image is near enough to go on in pixels, which round nothing."""
FAR = 0.5
"""Feature error up to which a closed form is a better start than a sketch of less error, since what it leaves is easier
to find: a small VGG's `6` 0.006 after 100 evaluations, and 0.09 from the sketch."""
ENOUGH = 1.2
"""Features that are not zero, for each number of the image, from which on they determine it: coordinates are then
scaled by what the network answers to each. EfficientNet-Lite0, 100 evaluations: `_blocks.0` (1.3) 0.006 in place of
0.020; at `_blocks.2` (0.5) it would be 0.13 in place of 0.07."""
FLAT = 4.0
"""Frequencies, in half periods over the image, up to which amplitudes are alike, for each number of the image that the
features tell beyond `TOLD`: what is seen well needs no help of its slowest waves. After 130 evaluations the errors are
0.037, 0.089, 0.070 and 0.110 in place of 0.049, 0.091, 0.072 and 0.112 (SqueezeNet, features.4 and .7,
EfficientNet-Lite0, `_blocks.2` and `.4`, four photographs)."""
TOLD = 0.2
"""Share from which on that holds: below, grey and the slowest waves are found first (at `_blocks.10`, 0.15, the error
would be 0.154 in place of 0.110)."""
BREATH = 0.02
"""Amplitude of noise on grey, in coordinates where photographs have a deviation of one: where features are clipped, or
the network has no derivative at grey, it leads off flat ground (SqueezeNet, features.7: 0.11 in place of 0.19 for one
photograph of three); else grey itself does as well (EfficientNet-Lite0, `_blocks.2`: 0.097 in place of 0.101 for
four)."""
FEW = 0.45
"""Share below which L-BFGS may find only a valley nearby, and a shaken image comes first: EfficientNet-Lite1,
`_blocks.12` at 120 px (0.13) 0.20 in place of 0.34, EfficientNet-Lite0, `_blocks.15` (0.10) 0.22 in place of 0.99,
`_blocks.4` 0.119 in place of 0.128, SqueezeNet, features.7 0.091 in place of 0.103; but at EfficientNet-Lite0,
`_blocks.10` 0.142 in place of 0.132, and at `_blocks.2` (0.5) it would be 0.086 in place of 0.080."""
JUMP = 0.3
"""Relative change of the error by that breath from which on grey is a singular point: 0.48 of a ConvNeXt
without biases."""
ROUGH = 20
"""Evaluations for a first picture, from which the closed form takes what no equation determines."""


def start_of(apply: Map, features: Tensor, closed: Tensor, sketch: Tensor) -> Tensor:
    """(batch, ...): the closed form, or where that explains little the sketch, if it explains more."""
    with torch.no_grad():
        ours, other = (feature_error(apply, images, features) for images in (closed, sketch))
    return torch.where(((ours <= FAR) | (ours <= other)).view(-1, *(1,) * (closed.dim() - 1)), closed, sketch)


def share_known(features: Tensor, unknowns: int) -> float:
    """Features of one image that are not zero, for each number of the image: zeros are what clipping left."""
    return int((features != 0).sum()) / unknowns


def solve_jointly(
    solve: JointSolve, apply: Map, features: Tensor, start: Tensor | None, like: Tensor, box: Interval | None
) -> Tensor:
    """The images, each from the better of its start and grey, in the coordinates that suit it.

    Args:
        solve: the steps, the prior and who watches.
        apply: the network up to the layer.
        features: (batch, ...), what `apply` is to give.
        start: (batch, channels, ...), from the closed form; None where there is none.
        like: a tensor like the images.
        box: what values pixels can have.
    """
    found = []
    for b, wanted in enumerate(features.split(1)):
        known = None if start is None else start[b : b + 1]
        suited, first, error = _suited(solve, apply, wanted, known, like[:1], box)
        found.append(suited.run(apply, wanted, first, error))
    return torch.cat(found)


def _grey(apply: Map, features: Tensor, coordinates: Natural) -> tuple[Tensor, float]:
    """An image of grey, with a breath of noise where grey itself is no place to move from, and its feature error.

    There units are clipped, the derivative is zero, or, where a norm divides by nearly nothing, without bounds.
    """
    z = torch.zeros(1, *coordinates.shape[1:]).to(coordinates.like)
    breath = BREATH * torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    with torch.no_grad():
        moved = coordinates.decode(breath)
        near = float(feature_error(apply, moved, features))
    if bool((features == 0).any()):
        return moved, near
    with torch.enable_grad():
        grey = coordinates.decode(z.requires_grad_())
        error = feature_error(apply, grey, features).sum()
        still = not error.requires_grad or not bool(torch.autograd.grad(error, z)[0].any())
    rough = still or abs(near - float(error.detach())) > JUMP * float(error.detach())
    return (moved, near) if rough else (grey.detach(), float(error.detach()))


def _suited(
    solve: JointSolve, apply: Map, features: Tensor, start: Tensor | None, like: Tensor, box: Interval | None
) -> tuple[JointSolve, Tensor, float]:
    """The joint solve as it suits one image, where it begins, and the feature error there."""
    error = float("inf")
    if start is not None:
        with torch.no_grad():
            error = float(feature_error(apply, solve.shown(start), features))
        if error <= NEAR:
            return replace(solve, coordinates=Pixels(box)), start, error
    share = share_known(features, like.numel())
    known = share >= ENOUGH
    coordinates = Natural(like[:0], like.shape, box, flat=1.0 if known else 1 + FLAT * max(0.0, share - TOLD))
    grey, other = _grey(apply, features, coordinates)
    if start is None or not error < other:
        start, error = grey, other
    if known:
        coordinates = coordinates.whitened(apply, coordinates.encode(start))
    weight = solve.prior_weight * max(0.0, 1 - share) ** 2
    shaken = SHAKEN if share < FEW else 0
    return replace(solve, coordinates=coordinates, prior_weight=weight, shaken=shaken), start, error
