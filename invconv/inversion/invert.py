r"""From the features of one layer back to an image: $x$ with $f(x) = y$, as nearly as $y$ determines it.

Rules go down the chain of layers, from what is known of an output to what is known of an input; the joint solve then
starts from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from invconv.errors import InputError, warn
from invconv.inversion import inputs
from invconv.inversion.closed_form import LayerReport, closed_form, noise
from invconv.inversion.coordinates import Pixels
from invconv.inversion.graph import Network
from invconv.inversion.joint import PRIOR_WEIGHT, STEPS, JointSolve, feature_error
from invconv.inversion.layers import evaluation, frozen, read
from invconv.inversion.pictured import Pictured
from invconv.inversion.prepared import Prepared
from invconv.inversion.selection import select
from invconv.inversion.site import kept
from invconv.inversion.starts import ROUGH, solve_jointly, start_of
from invconv.inversion.wrappers import eager, unwrapped

EXACT = 1e-5
"""Relative feature error of a closed form that the joint solve has nothing to add to."""

ROUNDS = 3
"""Of Gauss-Newton that a closed form may take, however few steps follow it; speed only."""

HOPELESS = 0.9
"""Relative feature error from which on an image explains almost nothing, and a warning says so."""


@dataclass(frozen=True)
class Inversion(Pictured):
    """An image with the features that were asked for; `psnr(image)`, `save(path)` and `plot(image)` show it."""

    image: Tensor
    """(batch, channels, height, width), in the model's input space."""
    feature_error: Tensor
    """(batch,): ||features of the image - features|| / ||features||, by the model itself."""
    layers: list[LayerReport]
    """From the layer back to the image; empty where the joint solve was given its `start`."""
    layer: str
    """The layer that the features are of."""
    seconds: float
    """Time that it took."""
    mean: Sequence[float] | float | None = None
    """Per channel, as it was given; std x + mean lies between black and white."""
    std: Sequence[float] | float = 1.0

    def __str__(self) -> str:
        head = f"{self.layer}: feature error {self.feature_error.mean():.1e}, {self.seconds:.1f} s"
        return "\n".join([head, *(f"  {report}" for report in self.layers)])


def invert(
    model: nn.Module,
    layer: str | Sequence[str],
    *,
    image: Tensor | None = None,
    features: Tensor | Sequence[Tensor] | None = None,
    input_size: Sequence[int] | None = None,
    steps: int = STEPS,
    switches: bool = True,
    prior: Callable[[Tensor], Tensor] | None = None,
    prior_weight: float = PRIOR_WEIGHT,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float = 1.0,
    start: Tensor | None = None,
    rounds: int = 10,
    iterations: int = 40,
    watch: Callable[[Tensor], None] | None = None,
) -> Inversion:
    r"""An image x with model_layer(x) = features, as nearly as these determine it.

    In closed form, layer by layer from the top, where there are equations enough: each layer turns what is known of its
    output, equations and inequalities, into what is known of its input. And jointly, unless that was exact: `steps`
    evaluations of ||model_layer(x) - features||^2 / ||features||^2 + w prior(x), by L-BFGS on the pixels of a closed
    form that is near, else from grey in coordinates of natural images: cosines in the amplitudes that photographs have,
    brightness apart from colours, within bounds. Where features are few, a shaken image comes first. Given back
    is the image of the least feature error, as it is shown, among all that were evaluated.

    Clipped maps are undone by masked equations instead of their pseudo-inverse; compare Mahendran and Vedaldi 2015.

    Args:
        model: any network, float32 or float64: rules go down the layers of one that torch.fx can trace, or that can be
            followed on one run since it decides by shapes and not by values; another is solved as a whole. Of one that
            is compiled, or wrapped for several devices, it is the module inside. It is run in eval mode and put back.
        layer: its name in `model.named_modules()`; of one that is used more than once, the last use. A part of it in
            brackets: `"layer4[7]"` is a channel, `"layer4[:, 2:5, 2:5]"` a region, `"layer4[7, 3, 3]"` a unit. Several
            with plus signs between, or as a list: each counts by its own relative error.
        image: (batch, channels, height, width), or with one or three dimensions in place of two, in the model's input
            space; its features are taken, it is forgotten.
        features: in place of an image, (batch, \*shape of the layer's output, or of the part that is named); of several
            layers or parts a list.
        input_size: (height, width) or (channels, height, width) of the image that `features` came from; as many
            dimensions as the model's first convolution has.
        steps: of the joint solve; 0 for the closed form only.
        switches: let rules keep something of the image on its forward pass, as max pooling does: which entry was the
            maximum in each window (Zeiler and Fergus 2014).
        prior, prior_weight: (batch, ...) -> (batch,), of images, and how much it counts. By default total variation of
            pixels, or the mean square of natural coordinates. In pixels w is prior_weight times the squared feature
            error of the start, at most 1; in natural coordinates it falls with the share of the image that the features
            can determine: what is determined is left alone.
        mean, std: per channel, as `plot` takes them: the image found then lies between black, std x + mean = 0, and
            white, 1, and its error is that of what is shown. Without a mean, pixels may have any value.
        start: an image to start the joint solve from, in place of the closed form.
        rounds, iterations: of Gauss-Newton, and of conjugate gradients in each, for one layer; at most two of ten for
            a layer with fewer equations than unknowns that lies above a narrower one, and no more rounds (but three)
            than there are tens of steps.
        watch: called with the image at each evaluation of the joint solve.

    Returns:
        The image, its feature error by the model itself, and a report of each layer.

    Raises:
        InputError: for an unknown layer, a model in half precision, images or features of a wrong shape or range,
            negative counts, a model that gives other features than its traced graph.

    Warns:
        IllConditionedWarning: where no image was found that explains even a tenth of the features.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        >>> x = torch.rand(1, 3, 16, 16)
        >>> r = invert(model, "2", image=x, steps=0)
        >>> torch.allclose(r.image, x, atol=1e-3)
        True
    """
    begin = time.perf_counter()
    model, prefix = unwrapped(model)
    selection = select(model, layer, prefix)
    parameter = inputs.check_model(model)
    if (image is None) == (features is None):
        raise InputError("give either image= or features= with input_size=")
    steps, rounds, iterations = inputs.check_counts(steps=steps, rounds=rounds, iterations=iterations)
    if steps:
        rounds = min(rounds, max(ROUNDS, 1 + steps // 10))
    prior_weight = inputs.check_prior_weight(prior_weight)
    # Gradients and full precision are needed whatever the caller is in the middle of.
    precise = torch.autocast(parameter.device.type, enabled=False)
    with torch.inference_mode(False), precise, eager(model), evaluation(model):
        with torch.no_grad():
            given = None if image is not None else selection.given(features)
            if image is not None:
                inputs.check_image(image, model, parameter)
            else:
                assert given is not None
                image = inputs.empty_image(model, len(given), input_size, parameter)
                image = noise(image.shape, image)  # what is checked is not to be clipped everywhere
            box = inputs.pixel_box(mean, std, image)
            if given is None:
                inputs.check_within(image, box)
            outputs, calls = _told(model, selection.layers, image)
            network = Network(model, selection, image[:1], calls)
            features, values = _features(network, parameter, image, given, outputs)
            keep = partial(kept, network, values) if given is None and switches else dict
            solve = JointSolve(steps, prior, prior_weight, watch, Pixels(box))
            like = features.new_zeros(network.shapes[network.input])

            sketches: list[Tensor] = []

            def rough() -> Tensor:
                nonlocal solve
                first, solve = solve.split(ROUGH)
                with frozen(model):
                    sketches.append(solve_jointly(first, Prepared(network), features, None, like, box))
                return sketches[0]

            reports: list[LayerReport] = []
            x: Tensor | None = None
            if start is None:
                x, reports = closed_form(network, features, keep, rounds, iterations, rough if steps else None)
                for sketch in sketches:
                    x = sketch if x is None else start_of(network.apply, features, solve.shown(x), sketch)
                del values, keep  # of memory, as much as a training step takes
            else:
                inputs.check_start(start, network, parameter)
                x = start.clone()
            exact = x is not None and bool((feature_error(network.apply, solve.shown(x), features) <= EXACT).all())
        if x is None or (steps and not exact):
            with frozen(model):
                x = solve_jointly(solve, Prepared(network), features, x, like, box)
        x = solve.shown(x)
        with torch.no_grad():
            told = selection.read(read(model, selection.layers, x, calls)[0], len(x))
            error = feature_error(lambda _: told, x, features)
    if not bool((error < HOPELESS).all()):
        warn(
            f"the image found for {selection.text!r} has a relative feature error of {error.max():.2f}: it explains "
            "almost nothing of the features; more steps= may"
        )
    return Inversion(x, error, reports, selection.text, time.perf_counter() - begin, mean, std)


def _features(
    network: Network, parameter: Tensor, image: Tensor, features: Tensor | None, outputs: Mapping[str, Tensor] | None
) -> tuple[Tensor, dict[fx.Node, Any]]:
    """The features to be explained, checked, and the values of all nodes; afterwards the network has been run."""
    values = inputs.run_network(network, image)
    found = values[network.target]
    inputs.check_trace(network, image, found, outputs)
    features = found if features is None else features.clone()
    inputs.check_features(features, network, parameter)
    return features, values


def _told(model: nn.Module, layers: list[str], image: Tensor) -> tuple[Mapping[str, Tensor] | None, dict[str, int]]:
    """The outputs of layers by the model itself, and how often each is called; nothing where it cannot be run."""
    try:
        return read(model, layers, image)
    except Exception:  # whatever its own code raises; the checks that follow tell it
        return None, {}
