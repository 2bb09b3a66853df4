"""Substitution in blocks, wave by wave: every way to cut an image up gives what the dense matrix does."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from oracle import CONSTANT, EPS, matrix_of, relative
from tables import MASKED

from invconv.engine import substitution
from invconv.engine.convolution import Convolution
from invconv.engine.raster import raster_of
from invconv.engine.solvers.triangular import Triangular
from invconv.engine.tiling import Tiling
from invconv.engine.waves import Waves
from invconv.geometry import Geometry, Size

QUARTER = ((0, 0), (0, 1), (1, 0), (1, 1))
WIDE_QUARTER = ((0, 0), (0, 2), (2, 0), (2, 1), (2, 2))
HALF = ((0, 0), (0, 1), (1, -1), (1, 0), (1, 1))
WIDE_HALF = ((0, 0), (0, 2), (1, -2), (2, 3))
SIZES: tuple[Size, ...] = ((5, 6), (4, 8), (7, 1), (1, 5), (4, 3, 2))


def taps_at(places: tuple[Size, ...], groups: int, channels: int) -> dict[Size, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    taps = {}
    for place in places:
        tap = 0.3 * torch.randn(groups, channels, channels, generator=generator, dtype=torch.float64)
        taps[place] = tap if any(place) else tap + torch.eye(channels, dtype=torch.float64)
    return taps


def dense(taps: dict[Size, torch.Tensor], size: Size, turned: bool) -> torch.Tensor:
    """The matrix of each group, its numbers in the order of (pixels, channels)."""
    pixels = {pixel: i for i, pixel in enumerate(itertools.product(*map(range, size)))}
    groups, channels = next(iter(taps.values())).shape[:2]
    a = torch.zeros(groups, len(pixels), channels, len(pixels), channels, dtype=torch.float64)
    for pixel, i in pixels.items():
        for place, tap in taps.items():
            read = tuple(p + (-a if turned else a) for p, a in zip(pixel, place, strict=True))
            if read in pixels:
                a[:, i, :, pixels[read]] += tap
    return a.reshape(groups, len(pixels) * channels, -1)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("flat", [QUARTER, WIDE_QUARTER, HALF, WIDE_HALF], ids=["2x2", "3x3", "half", "wide half"])
def test_every_tiling_solves_the_same_system(flat, size, groups, turned):
    rest = (0,) * (len(size) - 2)
    places = [(*place, *rest) for place in flat] + [(1, 0, -1)] * len(rest)
    inside = tuple(place for place in places if all(abs(a) < n for a, n in zip(place, size, strict=True)))
    taps = taps_at(inside, groups, 2)
    a = dense(taps, size, turned)
    y = torch.randn(groups, 3, *size, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.linalg.solve(a, y.flatten(2).mT).mT
    tried = 0
    for block in itertools.product(*(range(1, n + 1) for n in size[:2])):
        tiling = Tiling(size, (block[0], block[1]), inside, 2)
        if tiling.is_solvable:
            x = Waves(tiling, taps, turned).solve(y).flatten(2)
            assert relative(x - expected, expected) < CONSTANT * EPS * torch.linalg.cond(a).max(), block
            tried += 1
    assert tried >= 2 or math.prod(size[:2]) == 1


def test_which_tilings_solve():
    """Blocks of several lines read each other where a kernel reaches back along the line, unless they are slabs."""
    assert Tiling((8, 8), (2, 2), QUARTER, 1).is_solvable
    assert not Tiling((8, 8), (2, 2), HALF, 1).is_solvable
    assert Tiling((8, 8), (1, 2), HALF, 1).is_solvable
    assert not Tiling((8, 8), (1, 3), HALF, 1).is_solvable, "what is cut off would be read"
    assert Tiling((8, 8), (2, 8), HALF, 1).is_solvable
    assert (Tiling((8, 8), (2, 2), QUARTER, 1).waves, Tiling((8, 8), (1, 2), HALF, 1).waves) == (7, 18)


@pytest.mark.parametrize("case", MASKED, ids=str)
def test_many_images_at_once(case):
    """More images than those by which a solver is tried: they may be cut up in another way."""
    conv, matrix = case.convolution(), matrix_of(case)
    solver, bound = Triangular(conv), CONSTANT * EPS * matrix.condition
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(substitution.MANY, *conv.y_shape, generator=generator, dtype=torch.float64)
    for x, inverse in ((solver.pseudo_inverse(y), matrix.pinv.T), (solver.pseudo_inverse_adjoint(y), matrix.pinv)):
        expected = y.flatten(1) @ inverse
        assert relative(x.flatten(1) - expected, expected) < bound


@pytest.mark.parametrize("case", [case for case in MASKED if case.dims == 3], ids=str)
def test_planes_whose_lines_are_too_long(case, monkeypatch):
    monkeypatch.setattr(substitution, "MOST_SIDE", 1)
    substitution.best_tiling.cache_clear()
    conv, matrix = case.convolution(), matrix_of(case)
    there, back = (solver := Triangular(conv)).substitutions
    assert isinstance(there.ways[0], substitution.Planes) and isinstance(back.ways[0], substitution.Planes)
    y = case.images()
    for x, inverse in ((solver.pseudo_inverse(y), matrix.pinv.T), (solver.pseudo_inverse_adjoint(y), matrix.pinv)):
        expected = y.flatten(1) @ inverse
        assert relative(x.flatten(1) - expected, expected) < CONSTANT * EPS * matrix.condition
    assert 0 < solver.bytes and 0 < solver.cost().factors and 0 < solver.cost().answer
    substitution.best_tiling.cache_clear()


def masked(seed: int) -> Convolution:
    """A layer whose inverse grows, more or less, over its image; in float32."""
    generator = torch.Generator().manual_seed(seed)
    channels, side = (int(torch.randint(low, high, (), generator=generator)) for low, high in ((1, 13), (3, 25)))
    scale = 10 ** (1.6 * float(torch.rand((), generator=generator)) - 1.4) / math.sqrt(channels)
    weight = scale * torch.randn(channels, channels, 3, 3, generator=generator)
    weight[:, :, 0] = 0
    weight[:, :, 1, 0] = 0
    if seed % 3:
        weight[:, :, 2, 0] = 0
    weight[:, :, 1, 1] = torch.eye(channels) + 0.3 * weight[:, :, 1, 1]
    return Convolution(weight, Geometry.of((3, 3), padding=1), (side, side))


def test_an_inverse_that_grows_says_by_how_much():
    """Few images and many come back with the error that known ones had, or nobody is told that they do."""
    grown = 0
    for seed in range(40):
        conv = masked(seed)
        solver = Triangular(conv)
        if not solver.keeps(0.1):
            continue
        grown += solver.trial_error > 1e-5
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2 * substitution.MANY, *conv.x_shape, generator=generator, dtype=torch.float64)
        y = conv.to(torch.float64).forward(x).float()
        for count in (1, len(x)):
            error = relative(solver.pseudo_inverse(y[:count]).double() - x[:count], x[:count])
            assert error < 10 * solver.trial_error
    assert grown >= 5


def test_numbers_below_the_normal_ones_are_none():
    """Powers of a small tap go below them, and a product with one of those takes long."""
    taps: dict[Size, torch.Tensor] = {(0, 0): torch.eye(2)[None], (0, 1): 1e-3 * torch.ones(1, 2, 2)}
    inverse = Waves(Tiling((1, 20), (1, 20), tuple(taps), 2), taps, False).own
    tiny = torch.finfo(torch.float32).tiny
    assert ((inverse == 0) | (inverse.abs() >= tiny)).all() and 0 < inverse[inverse != 0].abs().min() < 1e-30


@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=2)), ids=str)
def test_a_quarter_is_told_from_a_half(signs):
    """The taps (1, 0) and (1, -1) lie in the half-plane of one order and in the quarter-plane of another."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[..., 1, 1], weight[..., 1 + signs[0], 1], weight[..., 1 + signs[0], 1 + signs[1]] = 1, 0.1, 0.1
    raster = raster_of(Convolution(weight, Geometry.of((3, 3), padding=1), (5, 5)))
    assert raster is not None and raster.signs == signs
