"""Random layers of few unknowns: geometries times kernels times options, each a dictionary that makes it again."""

from __future__ import annotations

import ast
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from invconv import Geometry, InputError

MOST = 150
"""Unknowns, and outputs."""

Size = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A layer, the size of its image, and how it is asked."""

    channels: tuple[int, int]
    kernel: Size
    size: Size
    recipe: str
    level: float = 0.0
    """What the recipe makes of it."""
    seed: int = 0
    dtype: str = "float64"
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1
    mode: str = "zeros"
    power: int = 0
    """The kernel is multiplied by 10^power before it is rounded to its dtype."""
    damping: float = 0.0
    """In units of the largest singular value."""
    solver: str = "auto"
    rtol: float | None = None
    volume_tol: float | None = None
    name: str = ""

    @classmethod
    def of(cls, text: str) -> Case:
        """The case of a name in `NAMED`, or of what `str` gave."""
        return NAMED[text] if text in NAMED else cls(**ast.literal_eval(text))

    @property
    def geometry(self) -> Geometry:
        return Geometry.of(self.kernel, self.stride, self.padding, self.dilation, self.groups, self.mode)

    @property
    def kind(self) -> str:
        """The row of the table."""
        if self.damping:
            return "damped"
        return "scaled" if self.power else KINDS[self.recipe]

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    def weight(self) -> Tensor:
        """The kernel, rounded to its dtype."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.channels[1], self.channels[0] // self.groups, *self.kernel)
        kernel = RECIPES[self.recipe](self, shape, generator)
        # 10^-320 is no normal number: in two steps.
        half = self.power // 2
        return (kernel * 10.0**half * 10.0 ** (self.power - half)).to(self.torch_dtype)

    def __str__(self) -> str:
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}
        defaults = {field.name: field.default for field in fields(self)}
        return str({name: value for name, value in named.items() if value != defaults[name]})


# -- kernels -----------------------------------------------------------------------------------------------------------


def _normal(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(math.prod(shape[1:]))


def _identity(shape: Size) -> Tensor:
    """One tap for each output channel, from the middle on, so that no two are alike where the taps suffice."""
    taps = math.prod(shape[2:])
    flat = torch.zeros(shape[0], shape[1], taps, dtype=torch.float64)
    middle = 0
    for k in shape[2:]:
        middle = middle * k + (k - 1) // 2
    for o in range(shape[0]):
        flat[o, o % shape[1], (middle + o // shape[1]) % taps] = 1
    return flat.view(shape)


def _near(case: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """The identity and noise of `level`."""
    return _identity(shape) + case.level * _normal(case, shape, generator)


def _nearly(case: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """Smallest singular value of the channels, or of the sum of the taps, times 10^-level; zero for an infinite one."""
    kernel, small = _identity(shape) + 0.3 * _normal(case, shape, generator), 10.0**-case.level
    count = min(shape[:2])
    if count == 1:
        dims = tuple(range(2, len(shape)))
        return kernel - (1 - small) * kernel.mean(dims, keepdim=True)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0] for n in shape[:2])
    values = torch.ones(count, dtype=torch.float64)
    values[-1] = small
    if case.seed % 2:
        values = small ** torch.linspace(0, 1, count, dtype=torch.float64)
    mix = u[:, :count] @ torch.diag(values) @ v[:count]
    side = torch.linalg.qr(torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64))[0]
    taps = torch.randn(shape[1:], generator=generator, dtype=torch.float64) / math.sqrt(math.prod(shape[2:]))
    mixed = torch.einsum("oi,ij,j...->oj...", mix, side, 0.3 * taps)
    middle = 0
    for k in shape[2:]:
        middle = middle * k + (k - 1) // 2
    mixed = mixed.flatten(2)
    mixed[:, :, middle] += mix @ side
    return mixed.view(shape)


def _deficient(case: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """Two channels alike; of single ones, taps that sum to zero."""
    kernel = _near(case, shape, generator)
    if shape[1] > 1 and (shape[0] >= shape[1] or case.seed % 2):
        kernel[:, 1] = kernel[:, 0]
    elif shape[0] > 1:
        kernel[1] = kernel[0]
    else:
        return _laplacian(case, shape, generator)
    return kernel


def _integers(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    return torch.randint(-2, 3, shape, generator=generator).double()


def _laplacian(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """Integers whose taps sum to zero."""
    kernel = torch.randint(-3, 4, shape, generator=generator).double().flatten(2)
    kernel[..., kernel.shape[-1] // 2] -= kernel.sum(-1)
    return kernel.view(shape)


def _channels(shape: Size, generator: torch.Generator) -> Tensor:
    """A well-conditioned matrix of the channels."""
    return torch.eye(*shape[:2], dtype=torch.float64) + 0.2 * torch.randn(
        shape[:2], generator=generator, dtype=torch.float64
    )


def _separable(lines: list[Tensor], shape: Size, generator: torch.Generator) -> Tensor:
    mask = torch.ones(1, dtype=torch.float64)
    for line in lines:
        mask = torch.outer(mask, line).flatten()
    return torch.einsum("oi,t->oit", _channels(shape, generator), mask).view(shape)


def _box(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """A mean over the taps (times their number)."""
    return _separable([torch.ones(k, dtype=torch.float64) for k in shape[2:]], shape, generator)


def _binomial(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """1, 2, 1 and its like."""
    lines = [torch.tensor([math.comb(k - 1, i) for i in range(k)], dtype=torch.float64) for k in shape[2:]]
    return _separable([line / line.sum() for line in lines], shape, generator)


def _causal(case: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """Nothing after the middle tap, and that 10^-level times the identity."""
    kernel = _normal(case, shape, generator).flatten(2)
    middle = kernel.shape[-1] // 2
    kernel[..., middle:] = 0
    kernel[..., middle] = 10.0**-case.level * torch.eye(*shape[:2], dtype=torch.float64)
    return kernel.view(shape)


def _spread(case: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """Output channels of scales from 1 down to 10^-level."""
    scales = 10.0 ** (-case.level * torch.linspace(0, 1, shape[0], dtype=torch.float64))
    kernel = _identity(shape) + 0.3 * _normal(case, shape, generator)
    return kernel * scales.view(-1, *(1,) * (len(shape) - 1))


def _single(_: Case, shape: Size, generator: torch.Generator) -> Tensor:
    """One tap."""
    kernel = torch.zeros(shape, dtype=torch.float64).flatten(2)
    tap = int(torch.randint(kernel.shape[-1], (), generator=generator))
    kernel[..., tap] = torch.randn(shape[:2], generator=generator, dtype=torch.float64)
    return kernel.view(shape)


def _zero(_: Case, shape: Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.zeros(shape, dtype=torch.float64)


def _ones(_: Case, shape: Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    return torch.ones(shape, dtype=torch.float64)


def _echo(_: Case, shape: Size, generator: torch.Generator) -> Tensor:  # noqa: ARG001
    """1 at the first tap and 1/2 in the middle of each axis: 1 + z^4 / 2 where there are nine."""
    kernel = torch.zeros(shape, dtype=torch.float64)
    for o in range(shape[0]):
        kernel[(o, o % shape[1], *(0 for _ in shape[2:]))] = 1
        kernel[(o, o % shape[1], *(k // 2 for k in shape[2:]))] = 0.5
    return kernel


Recipe = Callable[[Case, Size, torch.Generator], Tensor]
RECIPES: dict[str, Recipe] = {
    "normal": _normal,
    "near": _near,
    "nearly": _nearly,
    "deficient": _deficient,
    "integers": _integers,
    "laplacian": _laplacian,
    "box": _box,
    "binomial": _binomial,
    "causal": _causal,
    "spread": _spread,
    "single": _single,
    "zero": _zero,
    "ones": _ones,
    "echo": _echo,
}
WELL, NEARLY, DEFICIENT = "random", "nearly singular", "rank-deficient"
KINDS = {
    "normal": WELL,
    "near": WELL,
    "single": WELL,
    "nearly": NEARLY,
    "causal": NEARLY,
    "spread": NEARLY,
    "binomial": NEARLY,
    "echo": NEARLY,
    "box": DEFICIENT,
    "integers": DEFICIENT,
    "laplacian": DEFICIENT,
    "deficient": DEFICIENT,
    "zero": DEFICIENT,
    "ones": DEFICIENT,
}
SHARES = {
    "near": 22,
    "normal": 18,
    "nearly": 20,
    "deficient": 8,
    "integers": 5,
    "laplacian": 5,
    "box": 4,
    "binomial": 5,
    "causal": 5,
    "spread": 5,
    "single": 2,
    "zero": 1,
}

# -- geometries --------------------------------------------------------------------------------------------------------


def draw(seed: int, index: int) -> Case:
    """The case of this number."""
    source = random.Random(f"{seed}/{index}")
    while True:
        case = _attempt(source)
        if case is not None:
            return case


def _attempt(source: random.Random) -> Case | None:
    """A random case, or None where the numbers do not go together."""
    dims = source.choices((1, 2, 3), (30, 55, 15))[0]
    mode = source.choice(("zeros", "circular", "reflect", "replicate"))
    groups = source.choices((1, 2, 3), (85, 10, 5))[0]
    ins = groups * source.choices((1, 2, 3), (50, 35, 15))[0]
    strides = tuple(source.choices((1, 2, 3), (85, 12, 3))[0] if source.random() < 0.4 else 1 for _ in range(dims))
    square = source.random() < 0.6
    outs = ins * math.prod(strides) if square else groups * source.choice((1, 2, 3, 4))
    kernel = tuple(source.choices((1, 2, 3, 4, 5, 7), (8, 15, 45, 10, 15, 7))[0] for _ in range(dims))
    dilation = tuple(source.choices((1, 2, 3), (85, 12, 3))[0] for _ in range(dims))
    longest = {1: 64, 2: 12, 3: 5}[dims]
    shape = source.random()
    size = tuple(
        1
        if shape < 0.03
        else source.randint(1, longest)
        if shape < 0.5
        else source.randint(max(1, longest // 3), longest)
        for _ in range(dims)
    )
    padding = tuple(_padding(source, k, d, square) for k, d in zip(kernel, dilation, strict=True))
    recipe = source.choices(list(SHARES), list(SHARES.values()))[0]
    dtype = source.choice(("float32", "float64"))
    case = Case(
        (ins, outs),
        kernel,
        size,
        recipe,
        _level(source, recipe),
        source.randrange(10**6),
        dtype,
        strides if max(strides) > 1 else 1,
        padding,
        dilation if max(dilation) > 1 else 1,
        groups,
        mode,
        _power(source, dtype),
        10.0 ** source.randint(-8, 0) if source.random() < 0.2 else 0.0,
        source.choice(("auto", "direct", "iterative")),
        10.0 ** source.randint(-6, -1) if source.random() < 0.04 else None,
        10.0 ** source.randint(-6, -2) if source.random() < 0.05 else None,
    )
    geometry = case.geometry
    try:
        geometry.check_input_size(size)
    except InputError:
        return None
    outputs = outs * math.prod(geometry.output_size(size))
    inputs = ins * math.prod(size)
    return case if max(outputs, inputs) <= MOST else None


def _padding(source: random.Random, taps: int, dilation: int, square: bool) -> tuple[int, int]:
    """The same size, none, the other side's, or any."""
    reach = (taps - 1) * dilation
    if square or source.random() < 0.4:
        left = reach // 2 if source.random() < 0.75 else source.randint(0, reach)
        return left, reach - left
    if source.random() < 0.3:
        return 0, 0
    return source.randint(0, reach + 1), source.randint(0, reach + 1)


def _level(source: random.Random, recipe: str) -> float:
    if recipe in ("near", "deficient"):
        return source.choice((0.1, 0.3, 0.5, 1.0))
    if recipe in ("nearly", "spread"):
        return float(source.randint(1, 16))
    return round(source.uniform(0, 1.5), 2) if recipe == "causal" else 0.0


def _power(source: random.Random, dtype: str) -> int:
    """Three in four as they are; the others between the smallest and the largest numbers there are."""
    if source.random() < 0.75:
        return 0
    if source.random() < 0.7:
        return source.randint(-30, 30)
    return source.choice((-44, -42, -40, -38, -35, 34, 36) if dtype == "float32" else (-318, -300, -200, 200, 300))


# -- what is known to be hard ------------------------------------------------------------------------------------------

SAME3 = ((1, 1), (1, 1))
SAME5 = ((2, 2), (2, 2))
NAMED: dict[str, Case] = {
    "box47": Case((1, 1), (5, 5), (47, 47), "ones", padding=SAME5, name="box47"),
    "box47-circular": Case((1, 1), (5, 5), (47, 47), "ones", padding=SAME5, mode="circular"),
    "box38": Case((1, 1), (5, 5), (38, 38), "ones", padding=SAME5, mode="reflect"),
    "box40": Case((1, 1), (5, 5), (40, 40), "ones", padding=SAME5, mode="reflect"),
    "damped-1e-8": Case((2, 2), (3, 3), (8, 8), "nearly", 4, 3, padding=SAME3, damping=1e-8),
    "damped-1e-5": Case((2, 2), (3, 3), (8, 8), "nearly", 4, 3, padding=SAME3, damping=1e-5),
    "causal": Case((1, 1), (3, 3), (8, 8), "causal", 1.335, 0, padding=SAME3),
    "alias": Case((1, 1), (9, 9), (32, 32), "echo", padding=((4, 4), (4, 4)), mode="circular", volume_tol=1e-3),
    "damped-gradient-1e-3": Case((2, 2), (3, 3), (8, 8), "near", 0.1, 1, "float32", padding=SAME3, damping=1e-3),
    "damped-gradient-1e-4": Case((2, 2), (3, 3), (8, 8), "near", 0.1, 1, "float32", padding=SAME3, damping=1e-4),
    "damped-gradient-lsmr": Case(
        (2, 2), (3, 3), (8, 8), "near", 0.1, 1, "float32", padding=SAME3, damping=1e-3, solver="iterative"
    ),
    "deblur40": Case((2, 1), (5, 5), (40, 40), "box", 0, 0, "float32", padding=SAME5, mode="reflect"),
    "lsmr-4e4": Case((2, 2), (3, 3), (8, 8), "nearly", 4.6, 5, "float32", padding=SAME3, solver="iterative"),
    "tiny-lsmr": Case((2, 2), (3, 3), (6, 6), "near", 0.3, 1, padding=SAME3, power=-14, solver="iterative"),
    "tiny-float32": Case((2, 2), (3, 3), (6, 6), "near", 0.3, 1, "float32", padding=SAME3, power=-20),
    "denormal": Case((2, 2), (3, 3), (6, 6), "near", 0.3, 1, "float32", padding=SAME3, power=-42),
    "replicate7": Case(
        (1, 1), (7, 1), (3, 3), "near", 0.5, 0, padding=((6, 6), (0, 0)), dilation=(2, 1), mode="replicate"
    ),
    "groups-1e-8": Case((2, 2), (3, 3), (8, 8), "spread", 8, 0, padding=SAME3, groups=2, mode="circular"),
    "ones2": Case((1, 1), (2, 2), (8, 8), "ones", padding=((0, 1), (0, 1)), mode="circular"),
    "laplacian": Case((1, 1), (3, 3), (8, 8), "laplacian", 0, 0, "float32", padding=SAME3, mode="circular"),
}
