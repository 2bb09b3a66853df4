"""From the features of one layer back to an image."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from invconv.errors import IllConditionedWarning, InputError
from invconv.inversion import registry
from invconv.inversion.graph import Network, Segment, check_layer, evaluation, observe
from invconv.inversion.interval import Interval
from invconv.inversion.rules import max_pool
from invconv.inversion.site import Site, bounds, missing_rule
from invconv.inversion.solver import feature_error, joint, total_variation


@dataclass(frozen=True)
class LayerReport:
    """What one rule did; counts are for one image."""

    name: str
    kind: str
    equations: int
    inequalities: int
    unknowns: int
    residual: float
    """What the input found leaves of the equations and inequalities, relative; 0 where nothing had to be solved."""
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
    seconds: float

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
    steps: int = 100,
    switches: bool = True,
    prior: Callable[[Tensor], Tensor] = total_variation,
    prior_weight: float = 0.0,
    start: Tensor | None = None,
    rounds: int = 10,
    iterations: int = 40,
    watch: Callable[[Tensor], None] | None = None,
) -> Inversion:
    r"""An image x with model_layer(x) = features, as nearly as these determine it.

    First in closed form, layer by layer from the top: each layer turns what is known of its output, equations and
    inequalities, into what is known of its input.  Then, unless that was exact, jointly: `steps` evaluations of L-BFGS
    on ||model_layer(x) - features||^2 / ||features||^2 + w prior(x), from the closed form on.

    Arguments:
        model: any network that torch.fx can trace, float32 or float64; it is run in eval mode and put back.
        layer: its name in `model.named_modules()`; of one that is used more than once, the last use.
        image: (batch, channels, height, width), in the model's input space; its features are taken, it is forgotten.
        features: in place of an image, (batch, \*shape of the layer's output).
        input_size: (height, width) or (channels, height, width) of the image that `features` came from.
        steps: of the joint solve; 0 for the closed form only.
        switches: keep, of an image, which entry was the maximum in each pooling window (Zeiler and Fergus 2014).
        prior, prior_weight: (batch, ...) -> (batch,), and how much it counts: w is prior_weight times the squared
            feature error of the start, at most 1, so that what the features determine is left alone.
        start: an image to start the joint solve from, in place of the closed form.
        rounds, iterations: of Gauss-Newton, and of conjugate gradients in each, for one layer.  Where a joint solve
            follows, fewer do better: one round of two for residual blocks, two of ten for layers with fewer equations
            than unknowns, and more than six only for what they make exact.
        watch: called with the image at each evaluation of the joint solve.

    Raises:
        InputError: for an unknown layer, a layer without a rule, a model that cannot be traced or is in half
            precision, images or features of a wrong shape or range.

    Warns:
        IllConditionedWarning: where no image was found that explains even a tenth of the features.

    Source: masked equations instead of the pseudo-inverse of a clipped map; compare Mahendran and Vedaldi 2015.

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
    parameter = check_model(model)
    if (image is None) == (features is None):
        raise InputError("give either image= or features= with input_size=")
    # Gradients and full precision are needed whatever the caller is in the middle of.
    with torch.inference_mode(False), torch.autocast(parameter.device.type, enabled=False), evaluation(model):
        with torch.no_grad():
            network = Network(model, layer)
            kept: dict[fx.Node, Tensor] = {}
            if features is None:
                assert image is not None
                _check_image(image, parameter)
                image = image.clone()
                _run(network, image)
                features, kept = _observe(network, image, switches)
            else:
                features = features.clone()
                _run(network, _probe(model, features, input_size, parameter))
            _check_features(features, network, parameter)
            reports: list[LayerReport] = []
            if start is None:
                x, reports = _closed_form(network, features, kept, rounds, iterations, brief=steps > 0)
            else:
                _check_image(start, parameter)
                x = start.clone()
                if x.shape != network.shapes[network.input]:
                    raise InputError(
                        f"start has shape {tuple(x.shape)}, expected {tuple(network.shapes[network.input])}"
                    )
            error = feature_error(network.apply, x, features)
            if start is None and steps:
                # Where the closed form explains less than noise does, noise is the better place to go on from.
                other = noise(x.shape, features)
                worse = ~(error < feature_error(network.apply, other, features))
                x = torch.where(worse.view(-1, 1, 1, 1), other, x)
        if steps and not bool((error <= 1e-5).all()):
            x = _jointly(model, network, features, x, steps, prior, prior_weight, watch)
        with torch.no_grad(), observe(model, [layer]) as seen:
            model(x.clone())  # its first layer may work in place
            error = feature_error(lambda _: seen[layer], x, features)
    if not bool((error < 0.9).all()):
        warnings.warn(
            f"the image found for {layer!r} has a relative feature error of {error.max():.2f}: it explains almost "
            "nothing of the features; more steps= may",
            IllConditionedWarning,
            stacklevel=2,
        )
    return Inversion(x, error, reports, layer, time.perf_counter() - begin)


def noise(shape: Sequence[int], like: Tensor) -> Tensor:
    """A picture of smooth noise, always the same, with the mean 0 and variance 1 of a normalised image."""
    coarse = torch.randn(*shape[:2], *((n + 3) // 4 for n in shape[2:]), generator=torch.Generator().manual_seed(0))
    fine = F.interpolate(coarse, size=tuple(shape[2:]), mode="bicubic", align_corners=False)
    return (fine / fine.std()).to(like)


def _jointly(
    model: nn.Module,
    network: Network,
    features: Tensor,
    x: Tensor,
    steps: int,
    prior: Callable[[Tensor], Tensor],
    prior_weight: float,
    watch: Callable[[Tensor], None] | None,
) -> Tensor:
    """With the parameters' gradients left alone."""
    frozen = [p for p in model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        return joint(network.apply, features, x, steps, prior, prior_weight, watch)
    finally:
        for p in frozen:
            p.requires_grad_(True)


def _closed_form(
    network: Network, features: Tensor, kept: dict[fx.Node, Tensor], rounds: int, iterations: int, brief: bool
) -> tuple[Tensor, list[LayerReport]]:
    """Layer by layer, from the top down."""
    known, reports = Interval.point(features), []
    usual = network.record(noise(network.shapes[network.input], features))
    for segment in reversed(network.segments()):
        switches = kept.get(segment.stop)
        site = Site(segment, features[:0], usual[segment.start], switches, rounds, iterations, brief)
        equations, inequalities = known.equations // len(features), known.inequalities // len(features)
        known = _undo(site, known)
        reports.append(
            LayerReport(segment.name, segment.kind, equations, inequalities, segment.unknowns, site.residual, site.note)
        )
    return known.clamp(usual[network.input]), reports


def _undo(site: Site, known: Interval) -> Interval:
    """By the rule of the segment's layer; several layers by least squares."""
    segment, model = site.segment, site.segment.network.model
    for node in segment.nodes:
        if registry.of_node(model, node) is None and (segment.single or node.op == "call_module"):
            raise InputError(missing_rule(model, Segment(segment.network, segment.start, node, [node])))
    if segment.single is not None:
        found = registry.of_node(model, segment.single)
        assert found is not None
        return found.function(site, known)
    # A residual sum starts from its straight way: the output itself, where that has the shape of the input.
    low, high = bounds(segment.network, segment.start)
    start = None
    if known.lower.shape == segment.shape:
        start = known.clamp(torch.zeros_like(known.lower)).clamp(low, high)
    site.note = "solved together"
    return site.solve(known, start)


def _observe(network: Network, image: Tensor, switches: bool) -> tuple[Tensor, dict[fx.Node, Tensor]]:
    """The layer's features of an image, and where the maxima were in the pooling layers on the way."""
    values = network.record(image)
    kept = {}
    for node in network.nodes if switches else ():
        found = registry.of_node(network.model, node)
        if found is not None and found.function is max_pool:
            kept[node] = _switches(network, node, values[node.all_input_nodes[0]])
    return values[network.target], kept


def _switches(network: Network, node: fx.Node, x: Tensor) -> Tensor:
    segment = Segment(network, node.all_input_nodes[0], node, [node])
    site = Site(segment, x[:0], x)
    pool = F.max_pool1d if x.dim() == 3 else F.max_pool2d
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    defaults = (None, None, 0, 1, False)
    arguments = {n: site.option(n, i, d) for i, (n, d) in enumerate(zip(names, defaults, strict=True))}
    return pool(x, **arguments, return_indices=True)[1]


# -- input ---------------------------------------------------------------------------------------------------------


def check_model(model: nn.Module) -> Tensor:
    """A parameter or buffer of the model, for its dtype and device."""
    parameter = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))
    if parameter.dtype not in (torch.float32, torch.float64):
        raise InputError(f"the model is {parameter.dtype}, which leaves too few digits: call model.float() first")
    return parameter


def _check_image(image: Tensor, parameter: Tensor) -> None:
    if not isinstance(image, Tensor):
        raise InputError(f"image is {type(image).__name__}, expected a tensor (batch, channels, height, width)")
    if image.dim() != 4 or not image.numel():
        raise InputError(f"image has shape {tuple(image.shape)}, expected (batch, channels, height, width)")
    if not image.is_floating_point():
        raise InputError(f"image is {image.dtype}: divide by 255 and normalise as the model expects")
    if image.dtype != parameter.dtype or image.device != parameter.device:
        raise InputError(f"image is {image.dtype} on {image.device}, the model {parameter.dtype} on {parameter.device}")
    largest = image.abs().max()
    if not largest < 30:  # NaN as well
        raise InputError(
            f"image has values up to {largest:.3g}: divide levels of 0 to 255 by 255 and normalise as the model expects"
        )


def _probe(model: nn.Module, features: Tensor, size: Sequence[int] | None, parameter: Tensor) -> Tensor:
    """An empty image of the right shape."""
    if not isinstance(size, Sequence) or len(size) not in (2, 3) or min(size) < 1:
        raise InputError(f"features= needs input_size=(height, width) of the image, got {size}")
    channels = size[0] if len(size) == 3 else None
    if channels is None:
        first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
        if not isinstance(first, nn.Conv2d):
            raise InputError("the number of channels is not plain: give input_size=(channels, height, width)")
        channels = first.in_channels
    return torch.zeros(len(features), channels, *size[-2:], dtype=parameter.dtype, device=parameter.device)


def _run(network: Network, probe: Tensor) -> None:
    try:
        network.run(probe)
    except RuntimeError as error:
        raise InputError(
            f"{type(network.model).__name__} cannot take images of shape {tuple(probe.shape)}: {error}"
        ) from error


def _check_features(features: Tensor, network: Network, parameter: Tensor) -> None:
    shape = network.shapes[network.target]
    if features.shape != shape:
        raise InputError(
            f"features have shape {tuple(features.shape)}, but {network.layer!r} gives {tuple(shape)} for images of "
            f"size {tuple(network.shapes[network.input][1:])}"
        )
    if features.dtype != parameter.dtype or features.device != parameter.device:
        raise InputError(
            f"features are {features.dtype} on {features.device}, the model {parameter.dtype} on {parameter.device}"
        )
    if not bool(features.isfinite().all()):
        raise InputError(f"features of {network.layer!r} must be finite, but some are NaN or infinite")
