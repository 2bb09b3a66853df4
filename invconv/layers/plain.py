"""A plain convolution made invertible: its weight is shared, its forward that of the new layer, or it is refused.

What a module computes its class does not tell: a forward of its own may standardise the weight, pad, or quantise. Where
it is more than PyTorch's own, both are run on small random images, in float64.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import product
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrize

from invconv.errors import InputError
from invconv.geometry import Geometry
from invconv.layers.kernel import effective_weight, is_hooked, share_weight_hooks, whole
from invconv.layers.keywords import check_keywords
from invconv.options import Options

NAMES = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PLAIN = (*CONVOLUTIONS, *TRANSPOSED)
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
ADVICE = "make a torch.nn.Conv of the weight, padding and scale that it really uses, without hooks, and give that"
SAME = 1e-9
"""Relative difference of two forwards in float64 up to which they are one: far above rounding errors, and far below
what any other function of the image would make of it."""
FORWARD = ("forward", "_conv_forward", "__call__")
"""Methods that decide what a convolution of PyTorch computes."""
MOST_SIZES = 4
"""Image sizes that are tried: as many as the stride, so that each remainder occurs, but no more than that."""


def from_plain(cls: Any, module: Any, options: dict[str, Any]) -> Any:
    """A layer of class `cls` with the hyper-parameters of `module`, sharing its weight and bias.

    Parametrizations, pruning and the older norms of `torch.nn.utils` are shared as well.

    Raises:
        TypeError: for an option that does not exist.
        InputError: if `module` is no convolution of this dimension, has no weight yet, or computes something else.
    """
    plain: Any = next((c for c in cls.__mro__ if c in PLAIN), None)
    if plain is None:
        raise TypeError(f"{cls.__name__} is abstract: use {cls.__name__}1d, {cls.__name__}2d or 3d")
    check_keywords(f"{cls.__name__}.from_conv", options, [field.name for field in fields(Options)])
    title = f"{cls.__name__}.from_conv"
    if not isinstance(module, plain):
        raise InputError(f"{title} takes a torch.nn.{plain.__name__}, got {type(module).__name__}")
    training = module.training
    with _as_before(module):
        module.eval()  # to look at a weight is then no step of a power iteration
        _check_weight(module, title)
        conv = cls(**_arguments(module), bias=module.bias is not None, device="meta", **options).eval()
        _share(module, conv)
        kind = parametrize.type_before_parametrizations(module)
        own = any(name in vars(module) or not _inherits(kind, name, (plain, cls)) for name in FORWARD)
        if own or is_hooked(module) or module.padding_mode != "zeros":
            _check_same(module, conv, title, kind if own else None)
    return conv.train(training)


@overload
def to_conv(conv: nn.Conv1d) -> nn.Conv1d: ...
@overload
def to_conv(conv: nn.Conv2d) -> nn.Conv2d: ...
@overload
def to_conv(conv: nn.Conv3d) -> nn.Conv3d: ...
def to_conv(conv: Any) -> Any:
    """A plain layer of `torch.nn` with the weight that a convolution, transposed or not, uses now, and its bias.

    What makes the weight, a parametrization, pruning or an older norm of `torch.nn.utils`, is left behind; nothing is
    shared.

    Args:
        conv: an invertible convolution, or a plain one.

    Raises:
        InputError: if it is no convolution.

    Example:
        >>> conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 3))
        >>> plain = to_conv(conv)
        >>> type(plain).__name__, bool((plain.weight == conv.weight).all()), list(plain.state_dict())
        ('Conv2d', True, ['weight', 'bias'])
    """
    plain: Any = next((c for c in type(conv).__mro__ if c in PLAIN), None)
    if plain is None:
        raise InputError(f"to_conv takes a convolution of torch.nn or invconv, got {type(conv).__name__}")
    with torch.no_grad():
        weight = effective_weight(conv).detach().clone()
        bias = None if conv.bias is None else whole(conv.bias).detach().clone()
    layer = plain(**_arguments(conv), bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight)
    layer.bias = None if bias is None else nn.Parameter(bias)
    return layer.train(conv.training)


def _arguments(module: Any) -> dict[str, Any]:
    """The hyper-parameters of a convolution, by the names of its constructor's arguments."""
    names = (*NAMES, "output_padding") if isinstance(module, TRANSPOSED) else NAMES
    return {name: getattr(module, name) for name in names}


def _inherits(kind: type, name: str, bases: tuple[type, ...]) -> bool:
    """Whether a class has a method of one of these."""
    return any(getattr(kind, name) is getattr(base, name) for base in bases)


def _check_weight(module: Any, title: str) -> None:
    """Refuse a convolution without a real weight that can be shared."""
    weight: Any = getattr(module, "weight", None)
    if nn.parameter.is_lazy(weight):
        raise InputError(f"{title} got {type(module).__name__}, which has no weight yet: run it on an image first")
    if module.weight.dtype not in DTYPES:
        raise InputError(f"{title} takes real weights in floating point, got {module.weight.dtype}: convert the module")
    made = is_hooked(module) or parametrize.is_parametrized(module, "weight")
    if not made and not isinstance(module.weight, nn.Parameter):
        raise InputError(f"{title} takes a weight that is a parameter, got {type(module.weight).__name__}: make it one")


def _share(module: nn.Module, conv: nn.Module) -> None:
    """Give `conv` the very parameters and buffers that the weight and bias of `module` are made of."""
    share_weight_hooks(module, conv)
    for name in ("weight", "bias"):
        if parametrize.is_parametrized(module, name):
            # What stands here makes the property; what it reads is then the module's own.
            parametrize.register_parametrization(conv, name, nn.Identity())
            conv.parametrizations[name] = module.parametrizations[name]  # type: ignore[index, operator]
    registered = [*conv.named_parameters(recurse=False), *conv.named_buffers(recurse=False)]
    for name in [*(name for name, _ in registered), *(name for name, _ in _plain_tensors(conv))]:
        setattr(conv, name, getattr(module, name))
    with torch.no_grad():  # a weight that hooks have set then has no graph, which could not be copied
        effective_weight(conv)


def _plain_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that a module holds as attributes, neither parameters nor buffers: hooks leave weights there."""
    return [(name, value) for name, value in vars(module).items() if isinstance(value, Tensor)]


def _check_same(module: Any, conv: Any, title: str, kind: type | None) -> None:
    """Refuse a module that computes something else than `conv` does, in some mode or for some values of its tensors."""
    name = type(module).__name__
    found = f"{kind.__name__}, which has a forward of its own," if kind else f"{name} with what was changed in it"
    found = f"{title}: {f'{name} with its hooks' if is_hooked(module) and not kind else found}"
    if module.weight.is_meta:
        raise InputError(f"{found} cannot be compared with the layer on the meta device: load its weights first")
    for size in _sizes(conv.geometry, 1 if kind is None else MOST_SIZES):
        for training, shaken in product((False, True), repeat=2):
            wanted = _run(conv, size, training, shaken)
            where = f"on images of size {size} in {'training' if training else 'eval'} mode"
            try:
                difference = _difference(_run(module, size, training, shaken), wanted)
            except Exception as error:  # whatever the module's own code raises
                difference = f"{type(error).__name__}: {error}"
            if difference:
                raise InputError(
                    f"{found} gives something else than the convolution by its weight {where} ({difference}): {ADVICE}"
                )


def _sizes(geometry: Geometry, most: int) -> list[tuple[int, ...]]:
    """Small image sizes of all remainders by the stride."""
    sides = zip(geometry.extent, geometry.padding, geometry.stride, strict=True)
    base = [extent + 2 * max(pair) + step for extent, pair, step in sides]
    count = min(max(geometry.stride), most)
    return [tuple(n + shift + place for place, n in enumerate(base)) for shift in range(count)]


@torch.no_grad()
def _run(module: Any, size: tuple[int, ...], training: bool, shaken: bool) -> Any:
    """What a convolution makes of random images of three scales, in float64; nothing of it is changed.

    Args:
        module: the convolution.
        size: of the images.
        training: the mode.
        shaken: with random numbers added to all parameters and buffers, among which may be gates that are closed now.
    """
    generator = torch.Generator().manual_seed(0)
    device = module.weight.device

    def random(shape: Any) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(device)

    scales = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64, device=device)
    x = random((3, module.in_channels, *size)) * scales.view(-1, *(1,) * (len(size) + 1))
    tensors = {}
    for name, value in sorted([*module.named_parameters(), *module.named_buffers()]):
        tensors[name] = value.detach().clone()
        if value.is_floating_point():
            noise = torch.Generator().manual_seed(sum(name.encode()))  # of the name: the same for both modules
            shake = torch.randn(value.shape, dtype=torch.float64, generator=noise).to(device)
            # What is not finite would hide all else: two forwards that give nothing but NaN are not told apart.
            tensors[name] = shake + value.detach().double().nan_to_num(0, 0, 0) if shaken else value.detach().double()
    with _as_before(module), torch.random.fork_rng(devices=[]), torch.autocast(device.type, enabled=False):
        module.train(training)
        for name, value in _plain_tensors(module):
            vars(module)[name] = value.detach().double() if value.is_floating_point() else value
        return functional_call(module, tensors, (x,))


@contextmanager
def _as_before(module: nn.Module) -> Iterator[None]:
    """Leave the modes of a module and the tensors that its hooks set as they are now."""
    modes = {part: part.training for part in module.modules()}
    attributes = dict(vars(module))
    try:
        yield
    finally:
        vars(module).update(attributes)
        for part, mode in modes.items():
            part.training = mode


def _difference(given: Any, wanted: Tensor) -> str:
    """How two outputs differ; an empty text if they do not, or both have no numbers."""
    if not isinstance(given, Tensor) or given.shape != wanted.shape or not given.is_floating_point():
        kind = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
        return f"{kind} in place of {tuple(wanted.shape)}"
    given, wanted = (torch.where(wanted.isnan() & given.isnan(), 0.0, y.double()).flatten(1) for y in (given, wanted))
    scale = wanted.norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)
    difference = float(((given - wanted).norm(dim=1) / scale).nan_to_num(float("inf")).max())
    return "" if difference < SAME else f"relative difference {difference:.1e}"
