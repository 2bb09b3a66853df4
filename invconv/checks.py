"""What a weight and an image must be before anything is computed with them."""

from __future__ import annotations

import torch
from torch import Tensor

from invconv.errors import InputError, NotSquareError
from invconv.geometry import Geometry, Size
from invconv.linear import is_transformed
from invconv.options import Options


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precisions, otherwise the dtype itself."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def check_weight(weight: Tensor, geometry: Geometry, visible: bool = True) -> None:
    """Raise InputError unless `weight` is a whole real kernel of this geometry, whose values are `visible`."""
    if hasattr(weight, "full_tensor"):  # torch.distributed.tensor.DTensor, which not every build of PyTorch has
        raise InputError(
            f"the weight of shape {tuple(weight.shape)} is sharded over processes: give weight.full_tensor(), or ask "
            "the layer, which puts it together in all processes at once"
        )
    if visible and is_transformed(weight):
        raise InputError(
            "an operator is of a weight whose values can be seen, which torch.func hides: inside of its transforms ask "
            "the layer for inverse, log_abs_det and the like, or use invconv.functional"
        )
    if weight.is_meta or weight.layout != torch.strided:
        kind = "on the meta device" if weight.is_meta else f"stored as {weight.layout}"
        raise InputError(f"the weight of shape {tuple(weight.shape)} is {kind}: give it its values, as a dense tensor")
    if not weight.is_floating_point():
        raise InputError(f"the weight must be real floating point, got {weight.dtype}")
    if weight.dim() != geometry.dims + 2 or tuple(weight.shape[2:]) != geometry.kernel_size:
        raise InputError(f"a weight of shape {tuple(weight.shape)} does not fit kernel size {geometry.kernel_size}")
    if weight.shape[0] % geometry.groups:
        raise InputError(f"{weight.shape[0]} output channels cannot be split into {geometry.groups} groups")


def check_options(options: Options) -> Options:
    """`options`, if they are what they are called; InputError else."""
    if not isinstance(options, Options):
        raise InputError(f"options must be invconv.Options, as in Options(damping=0.1), got {options!r}")
    return options


def check_finite(weight: Tensor) -> None:
    """Raise InputError if `weight` has entries that are NaN or infinite."""
    if not torch.isfinite(weight).all():
        bad = (~torch.isfinite(weight)).sum().item()
        raise InputError(f"the weight of shape {tuple(weight.shape)} has {bad} entries that are NaN or infinite")


def check_image(name: str, x: Tensor, channels: int, size: Size, weight: Tensor) -> Tensor:
    """`x` in the dtype of the weight, if it is a batch of images of this shape."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = getattr(x, "dtype", type(x).__name__)
        raise InputError(f"{name} must be a real floating point tensor, got {kind}")
    if x.dim() != len(size) + 2 or tuple(x.shape[1:]) != (channels, *size):
        expected = ", ".join(map(str, ("batch", channels, *size)))
        raise InputError(f"{name} has shape {tuple(x.shape)}, expected ({expected})")
    if torch.finfo(x.dtype).eps < torch.finfo(weight.dtype).eps:
        raise InputError(f"{name} is {x.dtype} but the weight is {weight.dtype}: call .to({x.dtype}) on the layer")
    if x.device != weight.device:
        raise InputError(f"{name} is on {x.device} but the weight is on {weight.device}")
    return x.to(weight.dtype)


def check_square(shape: tuple[int, int]) -> None:
    """Raise NotSquareError unless a map of this shape has a determinant."""
    if shape[0] != shape[1]:
        raise NotSquareError(
            f"the map is {shape[0]} x {shape[1]} and has no determinant; log_volume is its counterpart"
        )
