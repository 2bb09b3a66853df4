"""What `invert` is given, checked before anything is computed: errors say what is wrong and what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from invconv.errors import InputError
from invconv.inversion.graph import Network
from invconv.inversion.interval import Interval
from invconv.inversion.layers import read
from invconv.scalars import real_number, whole_number, whole_numbers

CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d
OVER = 1e-2
"""Level by which a pixel may lie outside of 0 to 1, as a picture that was resized may."""
SIDES = {1: "length", 2: "height, width", 3: "depth, height, width"}
"""Of images, by their dimensions."""


def check_model(model: nn.Module) -> Tensor:
    """A parameter or buffer of the model, for its dtype and device.

    Raises:
        InputError: for a model in half precision.
    """
    parameter = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))
    if parameter.dtype not in (torch.float32, torch.float64):
        raise InputError(f"the model is {parameter.dtype}, which leaves too few digits: call model.float() first")
    return parameter


def check_counts(**counts: int) -> list[int]:
    """The counts, if all are integers of at least zero.

    Raises:
        InputError: naming the first that is not.
    """
    return [whole_number(name, count, 0) for name, count in counts.items()]


def check_prior_weight(weight: float) -> float:
    """The weight, if it is a finite number of at least zero.

    Raises:
        InputError: if it is not.
    """
    where = "be a finite number of at least 0"
    return real_number("prior_weight", weight, where, lambda w: 0 <= w < math.inf, optional=False) or 0.0


def pixel_box(mean: Sequence[float] | float | None, std: Sequence[float] | float, like: Tensor) -> Interval | None:
    """What values pixels have between black, std x + mean = 0, and white, 1; None where there is no mean.

    Raises:
        InputError: for a number of channels that is not that of the images, and a std that is not above zero.
    """
    if mean is None:
        return None
    entries = -1, *(1,) * (like.dim() - 2)
    shift, scale = (torch.as_tensor(v, dtype=like.dtype, device=like.device).reshape(entries) for v in (mean, std))
    if not {len(shift), len(scale)} <= {1, like.shape[1]} or not bool((scale > 0).all()):
        raise InputError(
            f"mean and std are {mean} and {std}, expected for each a number, or one for each of the {like.shape[1]} "
            "channels of the images, and every std above 0"
        )
    black, white = -shift / scale, (1 - shift) / scale
    return Interval(black.expand(like.shape[1:]), white.expand(like.shape[1:]))


def check_image(image: Tensor, model: nn.Module, parameter: Tensor) -> None:
    """Refuse what is not a batch of images in the input space of a model, which has this parameter.

    Raises:
        InputError: for a wrong type, shape, dtype, device or range.
    """
    if not isinstance(image, Tensor):
        raise InputError(f"image is {type(image).__name__}, expected a tensor (batch, channels, height, width)")
    dims = [len(m.kernel_size) for m in model.modules() if isinstance(m, CONVOLUTIONS)] or list(SIDES)
    if image.dim() - 2 not in dims or not image.numel():
        expected = " or ".join(f"(batch, channels, {SIDES[d]})" for d in sorted(set(dims)))
        raise InputError(f"image has shape {tuple(image.shape)}, expected {expected}")
    if not image.is_floating_point():
        raise InputError(f"image is {image.dtype}: divide by 255 and normalise as the model expects")
    if image.dtype != parameter.dtype or image.device != parameter.device:
        raise InputError(f"image is {image.dtype} on {image.device}, the model {parameter.dtype} on {parameter.device}")
    largest = image.abs().max()
    if not largest < 30:  # NaN as well
        raise InputError(
            f"image has values up to {largest:.3g}: divide levels of 0 to 255 by 255 and normalise as the model expects"
        )


def check_within(image: Tensor, box: Interval | None) -> None:
    """Refuse an image with pixels that are blacker than black, or whiter than white, by more than rounding errors.

    Raises:
        InputError: telling the level that is furthest from 0 to 1.
    """
    if box is None:
        return
    levels = (image - box.lower) / (box.upper - box.lower)
    if float(levels.min()) < -OVER or float(levels.max()) > 1 + OVER:
        worst = max(levels.min(), levels.max(), key=lambda v: abs(float(v) - 0.5))
        raise InputError(
            f"image has a pixel of level {float(worst):.3g}, expected 0 to 1: std x + mean is to undo how it was "
            "normalised; without mean= pixels may have any value"
        )


def check_start(start: Tensor, network: Network, parameter: Tensor) -> None:
    """Refuse a start that is not a batch of images as the network takes them.

    Raises:
        InputError: for what is no image, or one of another shape.
    """
    check_image(start, network.model, parameter)
    expected = network.shapes[network.input]
    if start.shape != expected:
        raise InputError(f"start has shape {tuple(start.shape)}, expected {tuple(expected)}")


def check_features(features: Tensor, network: Network, parameter: Tensor) -> None:
    """Refuse what the layer cannot have given.

    Raises:
        InputError: for a wrong shape, dtype or device, and for values that are NaN or infinite.
    """
    shape = network.shapes[network.target]
    if features.shape != shape:
        raise InputError(
            f"features have shape {tuple(features.shape)}, but {network.name!r} gives {tuple(shape)} for images of "
            f"size {tuple(network.shapes[network.input][1:])}"
        )
    if features.dtype != parameter.dtype or features.device != parameter.device:
        raise InputError(
            f"features are {features.dtype} on {features.device}, the model {parameter.dtype} on {parameter.device}"
        )
    if not bool(features.isfinite().all()):
        raise InputError(f"features of {network.name!r} must be finite, but some are NaN or infinite")


def empty_image(model: nn.Module, batch: int, size: Sequence[int] | None, parameter: Tensor) -> Tensor:
    """A batch of images of zeros.

    Args:
        model: its first convolution tells the channels where `size` does not.
        batch: how many images.
        size: (height, width) or (channels, height, width); as many dimensions as its first convolution has.
        parameter: of the model, for dtype and device.

    Raises:
        InputError: for what is no size, and where the number of channels is not plain.
    """
    first: Any = next((m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, nn.Linear))), None)
    dims = len(getattr(first, "kernel_size", (1, 1)))
    sides = SIDES[dims]
    if not isinstance(size, Sequence) or isinstance(size, str) or len(size) not in (dims, dims + 1):
        raise InputError(f"features= needs input_size=({sides}) of the image, got {size}")
    size = whole_numbers("input_size=", size, len(size))
    channels = size[0] if len(size) > dims else getattr(first, "in_channels", None)
    if channels is None:
        raise InputError(f"the number of channels is not plain: give input_size=(channels, {sides})")
    return torch.zeros(batch, channels, *size[-dims:], dtype=parameter.dtype, device=parameter.device)


def run_network(network: Network, image: Tensor) -> dict[fx.Node, Any]:
    """The values of all nodes for an image; afterwards the network knows all shapes.

    Raises:
        InputError: where it cannot take images of this shape.
    """
    try:
        return network.run(image)
    except InputError:
        raise
    except Exception as error:  # whatever its own code raises
        raise InputError(
            f"{type(network.model).__name__} cannot take images of shape {tuple(image.shape)}: {error}"
        ) from error


def check_trace(network: Network, image: Tensor, features: Tensor, outputs: Mapping[str, Tensor] | None) -> None:
    """Refuse a model that gives other features than its traced graph, by which it would be inverted.

    Args:
        network: of the model, run before.
        image: (batch, channels, height, width).
        features: what the graph makes of it.
        outputs: of the layers, by the model itself; None where it is still to be run.

    Raises:
        InputError: where the model itself gives something else; the text says how much and why that may be.
    """
    if outputs is None:
        outputs = read(network.model, network.selection.layers, image)[0]
    given = network.selection.read(outputs, len(image))
    if given.shape != features.shape:
        found = f"{tuple(given.shape)} in place of {tuple(features.shape)}"
    else:
        difference = float((given - features).norm() / given.norm().clamp_min(torch.finfo(given.dtype).tiny))
        if difference <= torch.finfo(given.dtype).eps ** 0.5:
            return
        found = f"relative difference {difference:.1e}"
    raise InputError(
        f"{type(network.model).__name__} gives other features of {network.name!r} than its traced graph ({found}): it "
        "decides at random or by values, or works in place on what it uses again; set inplace=False and take random "
        "parts out, or invert one of its submodules"
    )
