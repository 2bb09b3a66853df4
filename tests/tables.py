"""One table of geometries that every property test walks through, of solvers, and of layers that are hard for them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import torch
from diagonal import Diagonal
from torch import Tensor, nn

import invconv
from invconv import Geometry, Options, Plan
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.cholesky import Cholesky
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.cosine import Cosine
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.kronecker import Kronecker
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU
from invconv.engine.solvers.strips import Strips
from invconv.engine.solvers.tiles import Tiles
from invconv.engine.solvers.triangular import Triangular

LAYERS = {1: invconv.InvertibleConv1d, 2: invconv.InvertibleConv2d, 3: invconv.InvertibleConv3d}
PLAIN = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class Case:
    """A layer and the size of its image."""

    channels: tuple[int, int]
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...] | int = 1
    dilation: int = 1
    groups: int = 1
    padding: Any = field(default=None)
    mode: str = "circular"

    @property
    def dims(self) -> int:
        return len(self.kernel)

    @property
    def arguments(self) -> dict[str, Any]:
        strides = (self.stride,) * self.dims if isinstance(self.stride, int) else self.stride
        padding = self.padding
        if padding is None:
            if all(s == 1 for s in strides):
                padding = "same"
            else:
                padding = tuple((k - 1) * self.dilation // 2 for k in self.kernel)
        return {
            "in_channels": self.channels[0],
            "out_channels": self.channels[1],
            "kernel_size": self.kernel,
            "stride": strides,
            "dilation": self.dilation,
            "groups": self.groups,
            "padding": padding,
            "padding_mode": self.mode,
        }

    @property
    def options(self) -> dict[str, Any]:
        """What the functions of `invconv.functional` are told besides weight and size."""
        names = ("stride", "dilation", "groups", "padding", "padding_mode")
        return {name: self.arguments[name] for name in names}

    def layer(self, seed: int = 0, spread: float = 1.0, **options: Any) -> Any:
        """In float64, with a random weight of condition 10 to 1000 (`spread` 1) and a random bias."""
        torch.manual_seed(seed)
        conv = LAYERS[self.dims](**self.arguments, dtype=torch.float64, **options)
        with torch.no_grad():
            conv.weight += spread * torch.randn_like(conv.weight) / math.sqrt(conv.weight[0].numel())
            conv.bias.normal_()
        return conv

    def convolution(self) -> Convolution:
        """The map of the layer, its weight left open: enough to be asked for plans."""
        arguments = self.arguments
        outs, ins = arguments.pop("out_channels"), arguments.pop("in_channels")
        geometry = Geometry.of(arguments.pop("kernel_size"), **arguments)
        weight = torch.empty(outs, ins // self.groups, *self.kernel, dtype=torch.float64)
        return Convolution(weight, geometry, self.size)

    def images(self, batch: int = 2, seed: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels[0], *self.size, generator=generator, dtype=torch.float64)

    def __str__(self) -> str:
        kernel, size = ("x".join(map(str, v)) for v in (self.kernel, self.size))
        stride = self.stride if isinstance(self.stride, int) else "x".join(map(str, self.stride))
        text = f"{self.channels[0]}to{self.channels[1]}-k{kernel}-n{size}-s{stride}-d{self.dilation}-g{self.groups}"
        text = text if self.padding is None else f"{text}-p{self.padding}".replace(" ", "")
        return text if self.mode == "circular" else f"{text}-{self.mode}"


@dataclass(frozen=True)
class Masked(Case):
    """A layer whose kernel reads its own pixel and later ones, in one of the orders of the image."""

    axes: tuple[int, ...] = ()
    signs: tuple[int, ...] = ()

    @classmethod
    def of(cls, case: Case) -> list[Masked]:
        """With zero borders, in every order."""
        kept = {f.name: getattr(case, f.name) for f in fields(Case)} | {"mode": "zeros"}
        orders = itertools.product(
            itertools.permutations(range(case.dims)), itertools.product((1, -1), repeat=case.dims)
        )
        return [cls(**kept, axes=axes, signs=signs) for axes, signs in orders]

    def layer(self, seed: int = 0, spread: float = 0.5, **options: Any) -> Any:
        conv = super().layer(seed, spread, **options)
        with torch.no_grad():
            for place, tap in zip(conv.geometry.taps(), conv.weight.flatten(2).unbind(2), strict=True):
                if tuple(self.signs[d] * place[0][d] for d in self.axes) < (0,) * self.dims:
                    tap.zero_()
        return conv

    def convolution(self) -> Convolution:
        return self.layer().operator(self.size).conv

    def __str__(self) -> str:
        return f"{super().__str__()}-{''.join(map(str, self.axes))}-{self.signs}".replace(" ", "")


MASKED = [
    masked
    for case in [
        Case((2, 2), (3,), (9,)),
        Case((4, 4), (4,), (40,), groups=2),
        Case((2, 2), (2, 2), (5, 6)),
        Case((3, 3), (3, 3), (6, 5)),
        Case((4, 4), (3, 3), (6, 7), dilation=2, groups=2),
        Case((2, 2), (5, 3), (4, 7)),
        Case((1, 1), (3, 3), (20, 9)),
        Case((2, 2), (2, 3, 2), (3, 2, 4)),
        Case((1, 1), (3, 3, 3), (2, 3, 4), groups=1),
        Case((2, 2), (1, 3, 3), (3, 4, 4), groups=2),
    ]
    for masked in Masked.of(case)
]


@dataclass(frozen=True)
class Outer(Case):
    """A layer whose kernel is an outer product, for each group one of its own."""

    @classmethod
    def of(cls, case: Case) -> Outer:
        return cls(**{f.name: getattr(case, f.name) for f in fields(case)})

    def layer(self, seed: int = 0, spread: float = 1.0, **options: Any) -> Any:
        conv = super().layer(seed, spread, **options)
        outs, ins = conv.weight.shape[0] // self.groups, conv.weight.shape[1]
        with torch.no_grad():
            kernel = spread * torch.randn(self.groups, outs, ins, dtype=torch.float64) + torch.eye(outs, ins)
            for k in self.kernel:
                taps = spread * torch.randn(self.groups, k, dtype=torch.float64) / (2 * math.sqrt(k))
                taps[:, (k - 1) // 2] += 1
                kernel = kernel.unsqueeze(-1) * taps.view(self.groups, *[1] * (kernel.dim() - 1), k)
            conv.weight.copy_(kernel.flatten(0, 1))
        return conv

    def convolution(self) -> Convolution:
        return self.layer().operator(self.size).conv

    def __str__(self) -> str:
        return f"{super().__str__()}-outer"


@dataclass(frozen=True)
class Mirrored(Case):
    """A layer whose kernel is symmetric along each axis."""

    @classmethod
    def of(cls, case: Case) -> Mirrored:
        return cls(**{f.name: getattr(case, f.name) for f in fields(case)})

    def layer(self, seed: int = 0, spread: float = 1.0, **options: Any) -> Any:
        conv = super().layer(seed, spread, **options)
        with torch.no_grad():
            for axis in range(2, conv.weight.dim()):
                conv.weight.copy_((conv.weight + conv.weight.flip(axis)) / 2)
        return conv

    def convolution(self) -> Convolution:
        return self.layer().operator(self.size).conv

    def __str__(self) -> str:
        return f"{super().__str__()}-mirrored"


@dataclass(frozen=True)
class Tiled(Case):
    """A layer whose inverse decays: its middle tap has an orthogonal part, beside which the others are small."""

    @classmethod
    def of(cls, case: Case) -> Tiled:
        return cls(**{f.name: getattr(case, f.name) for f in fields(case)})

    def layer(self, seed: int = 0, spread: float = 0.25, **options: Any) -> Any:
        return super().layer(seed, spread, **options)

    def convolution(self) -> Convolution:
        return self.layer().operator(self.size).conv

    def __str__(self) -> str:
        return f"{super().__str__()}-tiled"


def _cyclic_planes() -> list[Case]:
    cases = []
    # 2-D, stride 1: square, tall and wide; odd and even kernels; odd and even sizes; dilation; groups.
    for channels, kernel, size in itertools.product(
        [(2, 2), (2, 3), (3, 2)],
        [(1, 1), (2, 2), (3, 3), (1, 3), (4, 3), (5, 5)],
        [(4, 4), (5, 4), (3, 5), (6, 7)],
    ):
        cases.append(Case(channels, kernel, size))
    for channels, groups in [((4, 4), 2), ((3, 3), 3), ((4, 2), 2), ((2, 6), 2)]:
        for kernel, dilation, size in itertools.product([(2, 2), (3, 3)], [1, 2], [(4, 5), (5, 6)]):
            cases.append(Case(channels, kernel, size, dilation=dilation, groups=groups))
    # Kernels that are larger than the image wrap onto themselves.
    for kernel, dilation, size in [((5, 5), 1, (3, 3)), ((7, 3), 1, (4, 2)), ((3, 3), 2, (3, 4)), ((9, 1), 1, (5, 5))]:
        for channels in [(2, 2), (2, 4), (4, 2)]:
            cases.append(Case(channels, kernel, size, dilation=dilation))
    return cases


def _cyclic_strides() -> list[Case]:
    # Square (out = in * stride^2), tall, wide; patches; kernels smaller than the stride.
    cases = []
    for channels, kernel, size in itertools.product(
        [(1, 4), (2, 3), (1, 6), (2, 8)], [(2, 2), (3, 3), (4, 4), (5, 3)], [(4, 4), (6, 4), (2, 6)]
    ):
        cases.append(Case(channels, kernel, size, stride=2))
    for channels, kernel, size in [((1, 9), (3, 3), (6, 6)), ((1, 9), (5, 5), (6, 9)), ((2, 4), (5, 5), (9, 6))]:
        cases.append(Case(channels, kernel, size, stride=3))
    for stride, size in [((2, 1), (4, 5)), ((1, 3), (4, 6)), ((3, 2), (6, 4))]:
        for channels in [(1, 2), (2, 2), (1, 6)]:
            cases.append(Case(channels, (3, 3), size, stride=stride))
    cases += [
        Case((2, 4), (3, 3), (6, 6), stride=2, groups=2),
        Case((2, 8), (3, 3), (6, 6), stride=2, groups=2),
        Case((1, 4), (3, 3), (6, 6), stride=3, dilation=2),
        Case((1, 4), (2, 2), (6, 6), stride=2, dilation=3),
        Case((2, 2), (1, 1), (4, 4), stride=2),
    ]
    return cases


def _cyclic_lines_and_solids() -> list[Case]:
    cases = []
    kernel: tuple[int, ...]
    size: tuple[int, ...]
    for channels, kernel, size in itertools.product([(2, 2), (2, 3), (3, 2)], [(1,), (2,), (3,), (6,)], [(5,), (8,)]):
        cases.append(Case(channels, kernel, size))
    cases += [
        Case((2, 4), (3,), (8,), stride=2),
        Case((1, 3), (3,), (9,), stride=3),
        Case((1, 2), (4,), (8,), stride=2),
    ]
    for channels, kernel, size in itertools.product(
        [(1, 1), (2, 2), (1, 2), (2, 1)], [(3, 3, 3), (2, 1, 3)], [(3, 4, 2), (2, 3, 5)]
    ):
        cases.append(Case(channels, kernel, size))
    cases += [Case((1, 8), (2, 3, 2), (4, 2, 4), stride=2), Case((1, 4), (3, 3, 3), (4, 4, 3), stride=(2, 2, 1))]
    return cases


MODES = ("zeros", "reflect", "replicate")


def _borders_same() -> list[Case]:
    cases = []
    # Square, tall and wide, of 'same' size, in 1-D, 2-D and 3-D.
    for mode, channels in itertools.product(MODES, [(2, 2), (2, 3), (3, 2)]):
        for kernel, size in [((3, 3), (4, 5)), ((3, 3), (6, 6)), ((5, 3), (5, 4)), ((1, 3), (4, 6)), ((2, 2), (4, 4))]:
            cases.append(Case(channels, kernel, size, mode=mode))
        cases += [Case(channels, (3,), (n,), mode=mode) for n in (2, 7, 12)]
        cases += [Case(channels, (5,), (8,), mode=mode), Case(channels, (4,), (7,), mode=mode)]
    for mode, channels in itertools.product(MODES, [(1, 1), (1, 2), (2, 1)]):
        cases += [Case(channels, (3, 3, 3), size, mode=mode) for size in [(3, 2, 4), (2, 3, 2)]]
        cases.append(Case(channels, (1, 3, 2), (3, 4, 3), mode=mode))
    return cases


def _borders_padding() -> list[Case]:
    cases = []
    # Other amounts of padding: none, less and more than 'same', full, more than the kernel reaches, uneven.
    for mode, channels in itertools.product(MODES, [(2, 2), (1, 3), (3, 1)]):
        cases += [Case(channels, (3, 3), (5, 4), padding=p, mode=mode) for p in [2, 3, (1, 0), (0, 2)]]
        cases += [Case(channels, (5, 2), (5, 6), padding=p, mode=mode) for p in [(2, 1), (3, 0)]]
    for channels in [(2, 2), (1, 3), (3, 1), (2, 3), (1, 12)]:
        cases += [Case(channels, (3, 3), (5, 4), padding=p, mode="zeros") for p in (0, "valid", 6)]
        cases += [Case(channels, (k,), (8,), padding=p, mode="zeros") for k, p in [(3, 0), (4, 3), (1, 1), (3, 5)]]
    return cases


def _borders_strides() -> list[Case]:
    cases = []
    # Dilation and groups.
    for mode, (channels, groups) in itertools.product(MODES, [((4, 4), 2), ((3, 3), 3), ((4, 2), 2), ((2, 6), 2)]):
        cases += [Case(channels, (3, 3), (5, 6), dilation=d, groups=groups, mode=mode) for d in (1, 2)]
    # Strides.
    for mode, channels in itertools.product(MODES, [(1, 4), (2, 3), (1, 6), (2, 8)]):
        for kernel, size in [((3, 3), (6, 4)), ((3, 3), (5, 6)), ((4, 4), (6, 6)), ((5, 3), (4, 7))]:
            cases.append(Case(channels, kernel, size, stride=2, mode=mode))
    for mode in MODES:
        cases += [Case((1, 9), (5, 5), (6, 6), stride=3, mode=mode), Case((1, 4), (3, 3), (7, 6), stride=3, mode=mode)]
        cases += [Case((1, 12), (3, 3), (6, 7), stride=3, mode=mode), Case((1, 3), (5,), (9,), stride=3, mode=mode)]
        cases += [Case((1, 2), (3, 3), (4, 5), stride=(2, 1), mode=mode), Case((1, 2), (4,), (9,), stride=2, mode=mode)]
        cases += [Case((2, 8), (3, 3), (6, 6), stride=2, groups=2, mode=mode)]
        cases += [Case((1, 8), (3, 2, 3), (4, 2, 4), stride=2, padding=1, mode=mode)]
        cases += [Case((1, 4), (3, 3), (6, 6), stride=2, dilation=2, mode=mode)]
    return cases


def _borders_circular() -> list[Case]:
    cases = []
    # Circular borders that do not close the circle.
    for channels in [(2, 2), (2, 3), (3, 2), (1, 4), (4, 1)]:
        cases += [Case(channels, (3, 3), (5, 4), padding=p) for p in (0, 2, 3, (1, 0), (0, 2))]
        cases += [Case(channels, (3, 3), size, stride=2) for size in [(5, 5), (4, 7), (3, 6)]]
    return cases


def _tiled() -> list[Tiled]:
    cases = []
    everywhere = (*MODES, "circular")
    for mode, channels in itertools.product(everywhere, [(2, 2), (2, 3), (3, 2)]):
        cases += [Case(channels, (k,), (n,), mode=mode) for k, n in [(3, 61), (2, 48), (4, 70), (5, 66)]]
        cases.append(Case(channels, (3, 3), (19, 18), mode=mode))
        cases.append(Case(channels, (2, 3), (30, 6), mode=mode))
    for mode, padding in [("zeros", 0), ("zeros", (1, 0)), ("reflect", (0, 2)), ("replicate", 0)]:
        cases += [Case(channels, (3, 3), (24, 18), padding=padding, mode=mode) for channels in [(3, 1), (1, 1)]]
        cases.append(Case((2, 2), (3,), (50,), padding=padding if isinstance(padding, int) else 1, mode=mode))
    for mode, (channels, groups) in itertools.product(everywhere, [((4, 4), 2), ((3, 3), 3), ((4, 2), 2), ((2, 6), 2)]):
        cases.append(Case(channels, (3,), (57,), groups=groups, dilation=1 + (groups == 2), mode=mode))
    for mode, channels in itertools.product(everywhere, [(1, 2), (2, 3), (1, 3), (2, 8)]):
        cases.append(Case(channels, (3,), (90,), stride=2, padding=1, mode=mode))
    for mode, channels in itertools.product(everywhere, [(1, 4), (1, 5), (2, 4)]):
        cases.append(Case(channels, (3, 3), (48, 10), stride=2, padding=1, mode=mode))
    cases += [Case((1, 1), (3, 3, 3), (22, 4, 5), mode=mode) for mode in everywhere]
    return [Tiled.of(case) for case in cases]


def _mirrored() -> list[Mirrored]:
    cases = []
    some: list[tuple[tuple[int, int], int]] = [((1, 1), 1), ((2, 2), 1), ((4, 4), 2), ((3, 3), 3)]
    for channels, groups in some:
        for k, n, dilation in [(3, 2, 1), (3, 7, 1), (5, 8, 1), (7, 12, 1), (3, 9, 2), (5, 30, 3)]:
            cases.append(Case(channels, (k,), (n,), groups=groups, dilation=dilation, mode="reflect"))
        for kernel, size in [((3, 3), (4, 5)), ((3, 3), (2, 6)), ((5, 3), (5, 4)), ((1, 3), (4, 6)), ((5, 5), (7, 6))]:
            cases.append(Case(channels, kernel, size, groups=groups, mode="reflect"))
        cases.append(Case(channels, (3, 3), (5, 6), groups=groups, dilation=2, mode="reflect"))
        for solid, space in [((3, 3, 3), (3, 2, 4)), ((3, 3, 3), (2, 3, 2)), ((1, 3, 5), (3, 4, 3))]:
            cases.append(Case(channels, solid, space, groups=groups, mode="reflect"))
    cases += [Case((1, 1), (9, 9), (12, 11), mode="reflect"), Case((6, 6), (3,), (10,), mode="reflect")]
    return [Mirrored.of(case) for case in cases]


CASES = _cyclic_planes() + _cyclic_strides() + _cyclic_lines_and_solids()
BORDERS = _borders_same() + _borders_padding() + _borders_strides() + _borders_circular()
TILED = _tiled()
MIRRORED = _mirrored()


# -- solvers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SolverRow:
    """A solver, and what may be asked of it."""

    kind: type[Solver]
    cases: Sequence[Case]
    power: int = 1
    """Its errors grow with the condition number to this power."""
    constant: float = 50 * torch.finfo(torch.float64).eps
    options: Options = field(default_factory=Options)
    gives_volume: bool = True

    def served(self, **options: Any) -> list[Case]:
        """The cases that it does not refuse."""
        chosen = replace(self.options, **options)
        return [case for case in self.cases if isinstance(self.kind.plan(case.convolution(), chosen), Plan)]

    def __str__(self) -> str:
        return self.kind.__name__


DEPTHWISE = [
    Case((3, 3), (1, 1), (4, 5), groups=3),
    Case((2, 2), (1,), (7,), groups=2),
    Case((2, 2), (1, 1, 1), (2, 3, 2), groups=2, mode="zeros"),
]

SOLVERS = (
    SolverRow(Circulant, CASES),
    SolverRow(Kronecker, [Outer.of(case) for case in BORDERS]),
    SolverRow(Triangular, MASKED),
    SolverRow(Cosine, MIRRORED),
    SolverRow(Ring, BORDERS),
    SolverRow(Strips, BORDERS, gives_volume=False),
    SolverRow(Gram, BORDERS),
    SolverRow(Tiles, TILED, gives_volume=False),
    SolverRow(Dense, CASES[::3] + BORDERS),
    SolverRow(Cholesky, CASES[1::12] + BORDERS[::3]),
    SolverRow(SparseLU, CASES[::3] + BORDERS),
    SolverRow(Krylov, CASES[::9] + BORDERS[::6], 2, 1e-11, Options(solver="iterative", tol=1e-14), gives_volume=False),
    SolverRow(Diagonal, DEPTHWISE),
)


# -- hard layers ---------------------------------------------------------------------------------------------------


def taps(values: list[Any], dtype: torch.dtype = torch.float64, **arguments: Any) -> Any:
    """A layer of one channel with these taps and a size that is kept."""
    kernel = torch.tensor(values, dtype=dtype)[None, None]
    arguments = {"padding": "same", "bias": False, "dtype": dtype, **arguments}
    conv = LAYERS[kernel.dim() - 2](1, 1, tuple(kernel.shape[2:]), **arguments)
    with torch.no_grad():
        conv.weight.copy_(kernel)
    return conv


def normal(channels: int, seed: int = 0, out: int | None = None, dtype: torch.dtype = torch.float64, **arguments: Any):
    """A 3 x 3 layer whose weights are normally distributed: ill-conditioned, the more so the fewer channels."""
    arguments = {"padding": 1, "bias": False, "dtype": dtype, **arguments}
    conv = invconv.InvertibleConv2d(channels, out or channels, 3, **arguments)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64))
    return conv


@dataclass(frozen=True)
class Hard:
    """A layer that is hard to invert, and what has to come of it; None where it does not matter."""

    name: str
    layer: Callable[[], Any]
    size: tuple[int, ...]
    solver: str
    dtype: torch.dtype = torch.float64
    """What it is factored in."""
    refined: bool | None = None
    enlarged: bool | None = None
    """Whether a torus larger than the smallest is taken."""
    tilted: bool | None = None
    """Whether the torus is tilted."""
    eliminated: bool | None = None
    """Whether the lines of the border are eliminated first."""
    volume: tuple[float, ...] | str | None = None
    """The tilt that the log-determinant comes from, "own" where it is the solver's, the name of what gives
    it, "refused" where there is none."""
    outcome: str = "answered"
    """Or "warned", or "refused"."""

    def __str__(self) -> str:
        return self.name


def _from_roots(*cosines: float) -> list[float]:
    """Taps of a symmetric kernel that vanishes at the frequencies of these cosines."""
    kernel = torch.ones(1, dtype=torch.float64)
    for c in cosines:
        factor = torch.tensor([1.0, -2 * c, 1.0], dtype=torch.float64)
        kernel = torch.nn.functional.conv1d(kernel[None, None], factor[None, None], padding=2)[0, 0]
    return kernel.tolist()


F32 = torch.float32
SMOOTH = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
"""Of Laplace: no torus is invertible, with borders of zeros the layer is."""
VALLEY = [[0.0, 0.01, 0.0], [0.0, 1.0, 0.0], [0.8, 1.5, 0.8]]
"""Across the lines it winds at those frequencies along them where 1.5 + 1.6 cos w, the tap below, is larger than 1."""
BOX = [[0.04] * 5] * 5
NEIGHBOURS = [[0.0, 0.25, 0.0], [0.25, 0.0, 0.25], [0.0, 0.25, 0.0]]
"""Their mean: on n x n pixels with borders of zeros it has n null vectors, and is no outer product."""
ZERO_AT_13 = math.cos(2 * math.pi / 13)

WINDING = ((0.5, [0.05, 1, 1.5]), (2.0, [1.5, 1, 0.05]), (0.25, [0.005, 1, 3.0]), (4.0, [3.0, 1, 0.005]))
"""Kernels of no triangle that wind, and the tilts that unwind them."""

HARD = (
    Hard("winding, 16", lambda: taps([1, 1.5]), (16,), "triangular", volume="triangular"),
    Hard("winding, 70, nearly hopeless", lambda: taps([1, 1.5]), (70,), "triangular", volume="triangular"),
    Hard("winding with a tap before, 16", lambda: taps([0.05, 1, 1.5]), (16,), "fft and ring", tilted=False,
         volume="own"),
    Hard("winding with a tap before, 32, nearly lossy", lambda: taps([0.05, 1, 1.5]), (32,), "fft and ring",
         tilted=False, volume="dense"),
    Hard("winding with a tap before, 100, hopeless", lambda: taps([0.05, 1, 1.5]), (100,), "svd", outcome="warned"),
    Hard("winding the other way, 90", lambda: taps([1.5, 1, 0]), (90,), "svd", volume="triangular", outcome="warned"),
    Hard("winding fast, 40", lambda: taps([1, 3.0]), (40,), "svd", volume="triangular", outcome="warned"),
    Hard("winding fast the other way, 40", lambda: taps([3.0, 1, 0]), (40,), "svd", volume="triangular",
         outcome="warned"),
    Hard("winding, 4096", lambda: taps([1, 1.5]), (4096,), "lsmr", volume="triangular", outcome="warned"),
    *(
        Hard(f"winding with a tap before, {ratio}", partial(taps, kernel), (2100,), "lsmr", volume=(ratio,),
             outcome="warned")
        for ratio, kernel in WINDING
    ),
    Hard("winding, float32, 20", lambda: taps([1, 1.5], F32), (20,), "triangular", torch.float64),
    Hard("winding, float32, 42", lambda: taps([1, 1.5], F32), (42,), "triangular", outcome="warned"),
    Hard("winding, float32, 56", lambda: taps([1, 1.5], F32), (56,), "triangular", outcome="refused"),
    Hard("differences", lambda: taps([1, -1]), (10,), "triangular", volume="triangular"),
    Hard("Laplace", lambda: taps(SMOOTH), (40, 30), "fft and ring", enlarged=False, tilted=True),
    Hard("as it starts, float32", lambda: invconv.InvertibleConv2d(4, 4, 3, padding=1), (12, 12), "fft and ring", F32,
         refined=False, enlarged=False, tilted=False, eliminated=True, volume="cylinder"),
    Hard("as it starts", lambda: invconv.InvertibleConv2d(4, 4, 3, padding=1).double(), (12, 12), "fft and ring",
         refined=False, enlarged=False, tilted=False, eliminated=True, volume="cylinder"),
    Hard("as it starts, large", lambda: invconv.InvertibleConv2d(8, 8, 3, padding=1), (128, 128), "tiles", F32),
    Hard("random", lambda: normal(3), (32, 32), "fft and ring", refined=True, eliminated=True, tilted=False),
    Hard("random, float32", lambda: normal(3, dtype=F32), (24, 24), "fft and ring", torch.float64, refined=False),
    Hard("random, large", lambda: normal(3), (64, 64), "sparse lu", volume="own"),
    Hard("lines that wind", lambda: taps(VALLEY), (16, 16), "fft and ring", eliminated=False),
    Hard("a torus that vanishes at a quarter", lambda: taps([0.2, 1, 0.2, 1, 0], padding_mode="reflect"), (8,),
         "fft and ring", enlarged=True, tilted=False),
    Hard("two tori that vanish", lambda: taps(_from_roots(0.0, ZERO_AT_13), padding_mode="replicate"), (8,),
         "fft and ring", enlarged=True, tilted=False),
    Hard("a torus that nearly vanishes", lambda: taps(_from_roots(1e-6), padding_mode="replicate"), (10,),
         "fft and ring", enlarged=True),
    Hard("a torus that is only poor", lambda: taps(_from_roots(0.02), padding_mode="replicate"), (10,), "fft and ring",
         enlarged=False),
    Hard("symmetric, reflecting", lambda: taps(SMOOTH, padding_mode="reflect", damping=0.1), (64, 40), "cosine"),
    Hard("symmetric, reflecting, vanishing", lambda: taps(NEIGHBOURS, padding_mode="reflect"), (9, 9), "svd",
         volume="refused", outcome="warned"),
    Hard("tall", lambda: normal(4, out=6), (16, 16), "fft and symmetric ring", volume="own"),
    Hard("wide, float32", lambda: normal(6, out=4, dtype=F32), (16, 16), "fft and symmetric ring", torch.float64),
    Hard("damped", lambda: normal(3, damping=0.1), (20, 20), "fft and strips"),
    Hard("wide and reflecting, not so small", lambda: normal(8, out=6, stride=2, padding_mode="reflect"), (24, 24),
         "cholesky", volume="cholesky"),
    Hard("wide and reflecting", lambda: normal(4, out=3, padding_mode="reflect"), (8, 8), "svd", volume="own"),
    Hard("box blur that is singular", lambda: taps(BOX), (24, 24), "kronecker", volume="refused", outcome="warned"),
    Hard("box blur, large", lambda: taps(BOX, padding_mode="reflect"), (128, 128), "kronecker", volume="own"),
    Hard("neighbours, singular", lambda: taps(NEIGHBOURS), (24, 24), "svd", volume="refused", outcome="warned"),
    Hard("neighbours, large", lambda: taps(NEIGHBOURS), (48, 48), "lsmr", volume="refused", outcome="warned"),
    Hard("pixels that are never read", lambda: normal(1, out=4, stride=2, padding=4, dilation=4), (8, 8), "svd",
         volume="refused", outcome="warned"),
)  # fmt: skip
