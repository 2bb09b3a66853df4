"""What `invert` is given, checked before anything is computed: errors say what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from invconv.errors import InputError
from invconv.inversion.graph import Network


def check_model(model: nn.Module) -> Tensor:
    """A parameter or buffer of the model, for its dtype and device.

    Raises:
        InputError: for a model in half precision.
    """
    parameter = next((p for p in (*model.parameters(), *model.buffers()) if p.is_floating_point()), torch.zeros(()))
    if parameter.dtype not in (torch.float32, torch.float64):
        raise InputError(f"the model is {parameter.dtype}, which leaves too few digits: call model.float() first")
    return parameter


def check_image(image: Tensor, parameter: Tensor) -> None:
    """Refuse what is not a batch of images in the input space of a model with this parameter.

    Raises:
        InputError: for a wrong type, shape, dtype, device or range.
    """
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


def check_start(start: Tensor, network: Network, parameter: Tensor) -> None:
    """Refuse a start that is not a batch of images as the network takes them.

    Raises:
        InputError: for what is no image, or one of another shape.
    """
    check_image(start, parameter)
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
            f"features have shape {tuple(features.shape)}, but {network.layer!r} gives {tuple(shape)} for images of "
            f"size {tuple(network.shapes[network.input][1:])}"
        )
    if features.dtype != parameter.dtype or features.device != parameter.device:
        raise InputError(
            f"features are {features.dtype} on {features.device}, the model {parameter.dtype} on {parameter.device}"
        )
    if not bool(features.isfinite().all()):
        raise InputError(f"features of {network.layer!r} must be finite, but some are NaN or infinite")


def empty_image(model: nn.Module, batch: int, size: Sequence[int] | None, parameter: Tensor) -> Tensor:
    """A batch of images of zeros.

    Args:
        model: its first convolution tells the channels where `size` does not.
        batch: how many images.
        size: (height, width) or (channels, height, width).
        parameter: of the model, for dtype and device.

    Raises:
        InputError: for what is no size, and where the number of channels is not plain.
    """
    if not isinstance(size, Sequence) or len(size) not in (2, 3) or min(size) < 1:
        raise InputError(f"features= needs input_size=(height, width) of the image, got {size}")
    channels = size[0] if len(size) == 3 else None
    if channels is None:
        first = next((m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
        if not isinstance(first, nn.Conv2d):
            raise InputError("the number of channels is not plain: give input_size=(channels, height, width)")
        channels = first.in_channels
    return torch.zeros(batch, channels, *size[-2:], dtype=parameter.dtype, device=parameter.device)


def run_network(network: Network, image: Tensor) -> None:
    """Run the network on an image, so that it knows all shapes.

    Raises:
        InputError: where it cannot take images of this shape.
    """
    try:
        network.run(image)
    except RuntimeError as error:
        raise InputError(
            f"{type(network.model).__name__} cannot take images of shape {tuple(image.shape)}: {error}"
        ) from error
