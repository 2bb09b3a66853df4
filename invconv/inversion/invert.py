r"""From the features of one layer back to an image: $x$ with $f(x) = y$, as nearly as $y$ determines it.

Rules go down the chain of layers, from what is known of an output to what is known of an input; the joint solve then
starts from there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from invconv.errors import InputError, warn
from invconv.inversion import inputs, registry
from invconv.inversion.graph import Network, Segment
from invconv.inversion.interval import Interval
from invconv.inversion.coordinates import Pixels
from invconv.inversion.joint import PRIOR_WEIGHT, STEPS, JointSolve, feature_error
from invconv.inversion.layers import check_layer, evaluation, frozen, observe
from invconv.inversion.site import Site, bounds, forward, missing_rule, overridden
from invconv.inversion.starts import ROUGH, solve_jointly

EXACT = 1e-5
"""Relative feature error of a closed form that the joint solve has nothing to add to."""

WRONG = 1e-2
"""Relative residual from which on the answer of a rule that solves nothing is taken for wrong: far above rounding
errors, and below what any option, hook or forward that the rule does not know would leave."""

LEFT = "joint solve"
"""Kind of a report for the layers that are left to it."""
LEAST = 0.5
"""Equations for each unknown that make a closed form worth its while, if inequalities make up for the rest: SqueezeNet's
first pooling has 0.65 and comes back with an error of 0.005 in place of 0.13."""

HOPELESS = 0.9
"""Relative feature error from which on an image explains almost nothing, and a warning says so."""


@dataclass(frozen=True)
class LayerReport:
    """What one rule did; counts are for one image."""

    name: str
    """The layer, as in `model.named_modules()`."""
    kind: str
    """Class of the module, or name of the function; of several, joined by plus signs."""
    equations: int
    """Outputs whose value was known."""
    inequalities: int
    """Outputs of which a bound was known."""
    unknowns: int
    """Numbers in the input."""
    residual: float
    """What the input leaves of the equations and inequalities, relative, by a run of the layer itself."""
    note: str
    """What was lost, or how it was solved."""


@dataclass(frozen=True)
class Inversion:
    """An image with the features that were asked for."""

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

    def __str__(self) -> str:
        head = f"{self.layer}: feature error {self.feature_error.mean():.1e}, {self.seconds:.1f} s"
        rows = [
            f"  {r.name} ({r.kind}): {r.equations} equations, {r.inequalities} inequalities, {r.unknowns} unknowns, "
            f"residual {r.residual:.1e}{'; ' * bool(r.note)}{r.note}"
            for r in self.layers
        ]
        return "\n".join([head, *rows])


def invert(
    model: nn.Module,
    layer: str,
    *,
    image: Tensor | None = None,
    features: Tensor | None = None,
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
    brightness apart from colours, within bounds. Where features are few, Adam on a shaken image comes first. Given back
    is the image of the least feature error, as it is shown, among all that were evaluated.

    Clipped maps are undone by masked equations instead of their pseudo-inverse; compare Mahendran and Vedaldi 2015.

    Args:
        model: any network that torch.fx can trace, or that can be followed on one run, since it decides by shapes and
            not by values; float32 or float64. It is run in eval mode and put back.
        layer: its name in `model.named_modules()`; of one that is used more than once, the last use.
        image: (batch, channels, height, width), or with one or three dimensions in place of two, in the model's input
            space; its features are taken, it is forgotten.
        features: in place of an image, (batch, \*shape of the layer's output).
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
            a layer with fewer equations than unknowns that lies above a narrower one.
        watch: called with the image at each evaluation of the joint solve.

    Returns:
        The image, its feature error by the model itself, and a report of each layer.

    Raises:
        InputError: for an unknown layer, a layer without a rule, a model that cannot be traced or is in half
            precision, images or features of a wrong shape or range, negative counts, a model that gives other features
            than its traced graph.

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
    check_layer(model, layer)
    parameter = inputs.check_model(model)
    if (image is None) == (features is None):
        raise InputError("give either image= or features= with input_size=")
    steps, rounds, iterations = inputs.check_counts(steps=steps, rounds=rounds, iterations=iterations)
    prior_weight = inputs.check_prior_weight(prior_weight)
    # Gradients and full precision are needed whatever the caller is in the middle of.
    with torch.inference_mode(False), torch.autocast(parameter.device.type, enabled=False), evaluation(model):
        with torch.no_grad():
            if image is not None:
                inputs.check_image(image, model, parameter)
            else:
                assert features is not None
                image = inputs.empty_image(model, len(features), input_size, parameter)
            network = Network(model, layer, image[:1])
            features, kept = _features(network, parameter, image, features, switches)
            box = inputs.pixel_box(mean, std, image)
            solve = JointSolve(steps, prior, prior_weight, watch, Pixels(box))
            like = features.new_zeros(network.shapes[network.input])

            def rough() -> Tensor:
                nonlocal solve
                first, solve = solve.split(ROUGH)
                with frozen(model):
                    return solve_jointly(first, network.apply, features, None, like, box)

            reports: list[LayerReport] = []
            x: Tensor | None = None
            if start is None:
                x, reports = _closed_form(network, features, kept, rounds, iterations, rough if steps else None)
            else:
                inputs.check_start(start, network, parameter)
                x = start.clone()
            exact = x is not None and bool((feature_error(network.apply, solve.shown(x), features) <= EXACT).all())
        if x is None or (steps and not exact):
            with frozen(model):
                x = solve_jointly(solve, network.apply, features, x, like, box)
        x = solve.shown(x)
        with torch.no_grad(), observe(model, [layer]) as outputs:
            model(x.clone())  # its first layer may work in place
            error = feature_error(lambda _: outputs[layer], x, features)
    if not bool((error < HOPELESS).all()):
        warn(
            f"the image found for {layer!r} has a relative feature error of {error.max():.2f}: it explains almost "
            "nothing of the features; more steps= may"
        )
    return Inversion(x, error, reports, layer, time.perf_counter() - begin)


def noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """A picture of smooth noise, always the same, with the mean 0 and variance 1 of a normalised image."""
    coarse = torch.randn(*shape[:2], *((n + 3) // 4 for n in shape[2:]), generator=torch.Generator().manual_seed(0))
    mode = {3: "linear", 4: "bicubic", 5: "trilinear"}[len(shape)]
    fine = F.interpolate(coarse, size=tuple(shape[2:]), mode=mode, align_corners=False)
    scale = fine.std() if fine.numel() > 1 else torch.zeros(())
    return (fine / scale if scale > 0 else fine).to(like)  # of a few pixels all may be one


def _features(
    network: Network,
    parameter: Tensor,
    image: Tensor,
    features: Tensor | None,
    keep: bool,
) -> tuple[Tensor, dict[fx.Node, Tensor]]:
    """The features to be explained, checked, and what rules keep of the image; afterwards the network has been run.

    Where features are given, the image is one of zeros.
    """
    kept: dict[fx.Node, Tensor] = {}
    image = image.clone()
    inputs.run_network(network, image)
    if features is None:
        features, kept = forward(network, image, keep)
        inputs.check_trace(network, image, features)
    else:
        features = features.clone()
        picture = noise(image[:1].shape, image)
        inputs.check_trace(network, picture, network.apply(picture))
    inputs.check_features(features, network, parameter)
    return features, kept


def _closed_form(
    network: Network, features: Tensor, kept: dict[fx.Node, Tensor], rounds: int, iterations: int, rough: Callable[[], Tensor] | None
) -> tuple[Tensor | None, list[LayerReport]]:
    """An image, and a report of each layer, from the top down.

    What least squares hand on where equations lack is filled up from noise, and counts for no more equations than there
    were. Where a joint solve follows, it is filled up from a `rough` picture of that, and layers that lack most of their
    equations are left to it: there is no image then.
    """
    output, reports = Interval.point(features), []
    chain = network.segments()
    known = features[0].numel()
    if rough is not None:
        most = int((features != 0).sum()) // len(features)
        for i, segment in reversed(list(enumerate(chain))):
            if _lacking(most, math.prod(network.shapes[segment.stop][1:]) - most, segment):
                return None, [_left(chain, i, most)]
    picture = noise(network.shapes[network.input], features) if rough is None else rough()
    usual = network.record(picture)
    for i, segment in reversed(list(enumerate(chain))):
        known = min(known, output.equations // len(features))
        inequalities = output.inequalities // len(features)
        if rough is not None and _lacking(known, inequalities, segment):
            reports.append(_left(chain, i, known, inequalities))
            return None, reports
        narrow = any(below.unknowns < segment.unknowns for below in chain[:i])
        seen = kept.get(segment.stop)
        site = Site(segment, features[:0], usual[segment.start], seen, rounds, iterations, narrow, known)
        output = _undo(site, output)  # the input of this layer is the output of the one below
        reports.append(
            LayerReport(segment.name, segment.kind, known, inequalities, segment.unknowns, site.residual, site.note)
        )
    return output.clamp(usual[network.input]), reports


def _lacking(known: int, inequalities: int, unknowns: int) -> bool:
    """Whether so few equations leave the unknowns to noise; inequalities help where at least half are determined."""
    return known < LEAST * unknowns or known + inequalities < unknowns


def _solves(segment: Segment) -> bool:
    """Whether equations are solved for the input of a segment, rather than entries moved back."""
    rule = None if segment.single is None else registry.of_node(segment.network.model, segment.single)
    return rule is None or rule.solves


def _left(chain: list[Segment], lacking: int, known: int, inequalities: int = 0) -> LayerReport:
    """The report of all layers that are left to the joint solve, since one of them lacks equations."""
    segment = chain[lacking]
    name = " to ".join(dict.fromkeys((chain[-1].name, chain[0].name)))
    note = f"at most {known} equations for {segment.unknowns} unknowns at {segment.name!r}: left to the joint solve"
    return LayerReport(name, LEFT, known, inequalities, chain[0].unknowns, math.nan, note)


def _lacking(known: int, inequalities: int, segment: Segment) -> bool:
    """Whether a segment that is solved for its input has so few equations that most of it would be noise."""
    rule = None if segment.single is None else registry.of_node(segment.network.model, segment.single)
    if rule is not None and not rule.solves:
        return False
    return known < LEAST * segment.unknowns or known + inequalities < segment.unknowns


def _undo(site: Site, output: Interval) -> Interval:
    """What is known of a segment's input; what that leaves, the layers themselves tell, not their rules."""
    segment, model = site.segment, site.segment.network.model
    for node in segment.nodes:
        known = registry.of_node(model, node) is not None or registry.base_of_node(model, node) is not None
        if not known and (segment.single or node.op == "call_module"):
            raise InputError(missing_rule(model, Segment(segment.network, segment.start, node, [node])))
    rule = None if segment.single is None else registry.of_node(model, segment.single)
    given = _solved(site, output) if rule is None else rule.function(site, output)
    site.residual = site.measure(output, given)
    if rule is not None and not rule.solves and not site.note and not site.residual < WRONG:
        return _mended(site, output, given)
    return given


def _solved(site: Site, output: Interval) -> Interval:
    """What is known of the input of several layers, or of one whose rule does not hold for it, by least squares."""
    segment = site.segment
    if segment.single is not None:
        site.note = overridden(segment)
        note, given = site.note, site.solve(output)
        site.note = "; ".join(dict.fromkeys([note, site.note]))
        return given
    # A residual sum starts from its straight way: the output itself, where that has the shape of the input.
    low, high = bounds(segment.network, segment.start)
    start = None
    if output.lower.shape == segment.shape:
        start = output.clamp(torch.zeros_like(output.lower)).clamp(low, high)
    site.note = "solved together"
    return site.solve(output, start)


def _mended(site: Site, output: Interval, given: Interval) -> Interval:
    """What least squares make of a rule's answer that does not give the output: the layer is not what it seems."""
    before = site.residual
    start = site.box.clamp(torch.where(given.upper.isfinite(), given.upper, site.usual))
    solved = site.solve(output, start)
    site.residual = site.measure(output, solved)
    site.note = "; ".join(filter(None, [f"its rule left {before:.1e}: solved numerically", site.note]))
    if site.residual < before:
        return solved
    site.residual, site.note = before, f"its rule left {before:.1e}, and least squares no less"
    return given
