"""Tiles: what covers an image, where they are refused, and what they are worth on images of any size."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import EPS, dense, relative
from tables import BORDERS, CASES, TILED, Case, Tiled, normal, taps

import invconv
from invconv import IllConditionedWarning, Options, Plan
from invconv.engine import ways
from invconv.engine.bands import Bands
from invconv.engine.cover import Axis, cover, starts_along, sweep
from invconv.engine.decay import decay_of
from invconv.engine.solvers import tiles
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.schwarz import Schwarz
from invconv.engine.solvers.tile_size import FALLS, SLOW, TileSize
from invconv.engine.solvers.tiles import Tiles
from invconv.engine.way import Way
from invconv.functional import conv_inverse

MODES = ["zeros", "reflect", "replicate", "circular"]
LINE = Tiled((2, 2), (3,), (75,), mode="zeros")
PLANE = Tiled((2, 2), (3, 3), (40, 33), mode="zeros")


def conv_of(case, **options):
    return case.layer(**options).operator(case.size).conv


def by_tiles(monkeypatch):
    """Tiles and nothing else, wherever they do not refuse."""
    monkeypatch.setattr(ways, "WAYS", (Way(Tiles), ways.WAYS[-1]))


# -- what covers an image ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(9, 50), st.integers(4, 12), st.integers(0, 4)), min_size=1, max_size=3),
    st.booleans(),
    st.integers(0, 2),
)
def test_tiles_cover_each_place_once(axes, cyclic, batch):
    sides = [
        Axis(n, min(n, length), starts_along(n, length, max(1, length - 2 * halo), cyclic), cyclic)
        for n, length, halo in axes
    ]
    x = torch.arange(batch * 3 * math.prod(a.size for a in sides)).view(batch, 3, *(a.size for a in sides)).double()
    seen = []

    def same(tiles):
        seen.append(tiles.shape[2:])
        return tiles

    assert torch.equal(sweep(x, torch.zeros_like(x), sides, sides, same, None, (0,) * len(sides)), x)
    assert set(seen) <= {tuple(axis.length for axis in sides)}
    more = (1,) * len(sides)  # of tiles that touch no border, and are longer
    shorter = tuple([...] + [slice(0, -1)] * len(sides))
    assert torch.equal(sweep(x, torch.zeros_like(x), sides, sides, same, lambda t: t[shorter], more), x)


@given(st.integers(20, 300), st.integers(6, 40), st.integers(1, 30), st.booleans())
def test_what_is_kept_lies_half_an_overlap_away_from_inner_edges(size, length, step, cyclic):
    if not step <= length < size:
        return
    axis = Axis(size, length, starts_along(size, length, step, cyclic), cyclic)
    halo = (length - step) // 2
    for tile, start in enumerate(axis.starts):
        first, last = axis.cuts[tile], axis.cuts[tile + 1]
        assert first - start >= halo or (first == 0 and not cyclic)
        assert start + length - last >= halo or (last == size and not cyclic)


@pytest.mark.parametrize(("padding", "halo"), [(0, 4), (0, 8), (15, 8), (20, 8)])
def test_what_is_kept_of_a_tile_lies_in_it_where_the_kernel_is_wider_than_a_halo(padding, halo):
    conv = taps([[1.0] * 31], padding=(0, padding)).operator((3, 256)).conv
    for axes in cover(conv, conv.on((3, 64)), halo):
        for axis in axes:
            parts = [here for tile in range(len(axis.starts)) for _, here in axis.kept(tile)]
            assert all(0 <= here.start < here.stop <= axis.length for here in parts)


def test_bands_are_the_map():
    in_bands = 0
    for case in [*TILED[::2], *BORDERS[::7], *CASES[::30]]:
        conv, x = conv_of(case), case.images()
        y = torch.randn(2, *conv.y_shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        bands = Bands(conv, 1)
        in_bands += len(bands.all) > 1
        for ours, theirs in [
            (bands.forward(x), conv.forward(x)),
            (bands.adjoint(y), conv.adjoint(y)),
            (bands.residual(y, x), y - conv.forward(x)),
            (bands.normal_residual(y, x), conv.adjoint(y - conv.forward(x))),
        ]:
            assert torch.allclose(ours, theirs, rtol=0, atol=1e-12 * float(1 + theirs.abs().max())), case
    assert in_bands > 60


# -- where they are no way -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "options", "why"),
    [
        (Tiled((2, 2), (3,), (15,), mode="zeros"), {}, "an image of 15 is no larger than a tile"),
        (Tiled((2, 2), (3, 3), (12, 16), mode="zeros"), {}, "an image of 12 x 16 is no larger than a tile"),
        (LINE, {"rtol": 1e-3}, "cuts no singular values off"),
        (Case((1, 4), (3,), (64,), stride=2, padding=4, dilation=4, mode="zeros"), {}, "read by no output"),
        (Tiled((2, 2), (3,), (75,), padding=2), {}, "wrap in part"),
        (Tiled((8, 9), (3, 3), (24, 24), padding=0, mode="zeros"), {}, "its torus wide, or the reverse"),
    ],
    ids=str,
)
def test_refused_whatever_the_weight(case, options, why):
    assert why in str(Tiles.plan(conv_of(case), Options(**options)))


def test_a_small_image_goes_another_way():
    operator = Tiled((2, 2), (3, 3), (12, 16), mode="zeros").layer().operator((12, 16))
    assert operator.report().solver != "tiles"


def test_kernels_that_do_not_decay_are_refused_by_a_number():
    conv = normal(3).operator((96, 96)).conv
    assert re.match(r"\de(\+00|-01) of an answer lies beyond the \d+ places", str(Tiles.plan(conv, Options())))
    singular = taps([1.0, 2.0, 1.0], padding_mode="circular").operator((128,)).conv
    assert "its kernel is singular" in str(Tiles.plan(singular, Options()))


def test_a_border_that_no_halo_helps_is_refused_by_a_number():
    """On the torus [1, 1.5] is benign, and its inverse decays; with borders of zeros it grows along the image."""
    conv = taps([1.0, 1.5], padding=((0, 1),)).operator((512,)).conv
    assert isinstance(Tiles.plan(conv, Options()), Plan)
    solver = Tiles(conv, Options())
    assert not solver.keeps(1e-3)
    assert "tiles of" in solver.shortfall or "rounding errors grow" in solver.shortfall


def test_a_halo_that_is_too_narrow_warns_with_what_is_left(monkeypatch):
    monkeypatch.setattr(tiles, "MOST", 1)
    conv = conv_of(Tiled((1, 1), (3,), (200,), mode="zeros"), spread=0.0)
    conv = replace(conv, weight=torch.tensor([[[-0.49, 1.0, -0.49]]], dtype=torch.float64))
    solver = Tiles(conv, Options())
    solver.sweeps = Schwarz(TileSize(conv, (20,), 1, Ring, 1), Options())
    assert solver.sweeps.probe.rate > SLOW
    assert not solver.keeps(1e-3)
    assert "with a halo of 1 leave" in solver.shortfall and "of a residual" in solver.shortfall
    with pytest.warns(IllConditionedWarning, match=r"tiles leave a residual of \de-0\d where 1e-12 is asked for"):
        solver.pseudo_inverse(conv.forward(torch.ones(1, *conv.x_shape, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("channels", "mode"),
    [((2, 2), "zeros"), ((2, 2), "reflect"), ((2, 2), "replicate"), ((2, 3), "zeros"), ((2, 3), "reflect"),
     ((2, 3), "replicate"), ((3, 2), "zeros")],
    ids=str,
)  # fmt: skip
def test_where_a_halo_leaves_much_tiles_precondition(channels, mode):
    """A step leaves a fifth or so: refined by themselves tiles would need dozens, or never come to rest."""
    case = Tiled(channels, (3,), (90,), padding=1, mode=mode)
    kind = Ring if channels == (2, 2) else Gram
    for seed, spread, halo in product(range(4), (0.5, 0.7, 0.9), (1, 2, 3, 4)):
        layer = case.layer(seed, spread)
        conv = layer.operator(case.size).conv
        sweeps = Schwarz(TileSize(conv, (20,), halo, kind, 1), Options())
        if FALLS <= sweeps.probe.rate < SLOW:
            break
    else:
        pytest.fail("no halo leaves much, and not too much")
    matrix = dense(layer, case.size)
    solver = Tiles(conv, Options())
    solver.sweeps = sweeps
    y, x = (torch.randn(2, *shape, dtype=torch.float64) for shape in (conv.y_shape, conv.x_shape))
    bound = 50 * EPS * torch.linalg.cond(matrix)
    inverse = torch.linalg.pinv(matrix)
    for found, exact in (
        (solver.pseudo_inverse(y), y.flatten(1) @ inverse.mT),
        (solver.pseudo_inverse_adjoint(x), x.flatten(1) @ inverse),
    ):
        assert relative(found.flatten(1) - exact, exact) < bound


# -- what they are worth -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(30, 150), st.sampled_from(MODES), st.integers(1, 5), st.data())
def test_lines_of_any_length(n, mode, kernel, data):
    channels = data.draw(st.sampled_from([(1, 1), (2, 2), (2, 3), (3, 2)]))
    case = Tiled(channels, (kernel,), (n,), mode=mode)
    layer = case.layer(spread=0.2)
    conv = layer.operator(case.size).conv
    if isinstance(Tiles.plan(conv, Options()), str):
        return
    solver, matrix = Tiles(conv, Options()), dense(layer, case.size)
    y = torch.randn(2, *conv.y_shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    if solver.keeps(1e-3):
        exact = torch.linalg.lstsq(matrix, y.flatten(1).T, driver="gelsd").solution.T
        assert relative(solver.pseudo_inverse(y).flatten(1) - exact, exact) < 50 * EPS * torch.linalg.cond(matrix)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("channels", "stride"), [((2, 2), 1), ((2, 3), 1), ((3, 2), 1), ((1, 4), 2)], ids=str)
def test_adjoint(mode, channels, stride):
    case = Tiled(channels, (3, 3), (40, 44), stride=stride, padding=1, mode=mode)
    solver = Tiles(conv_of(case), Options())
    x, y = (torch.randn(1, *shape, dtype=torch.float64) for shape in (solver.conv.x_shape, solver.conv.y_shape))
    left, right = (solver.pseudo_inverse(y) * x).sum(), (y * solver.pseudo_inverse_adjoint(x)).sum()
    assert abs(left - right) < 1e-12 * x.norm() * y.norm()


def test_gradients(monkeypatch):
    by_tiles(monkeypatch)
    for case in (LINE, Tiled((1, 2), (3,), (48,), mode="reflect"), Tiled((2, 1), (3,), (48,), mode="zeros")):
        layer = case.layer()
        conv = layer.operator(case.size).conv
        assert layer.operator(case.size).report().solver == "tiles"
        y = torch.randn(1, *conv.y_shape, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(layer.inverse, (y,), fast_mode=True)
        weight, fixed = layer.weight.detach().requires_grad_(), y.detach()

        def inverse(w, fixed=fixed, case=case):
            return conv_inverse(fixed, w, output_size=case.size, **case.options)

        assert torch.autograd.gradcheck(inverse, (weight,), fast_mode=True)


def test_the_ring_says_the_same(monkeypatch):
    for mode in ("zeros", "reflect", "replicate"):
        layer = Tiled((3, 3), (3, 3), (90, 70), mode=mode).layer()
        y = torch.randn(1, 3, 90, 70, dtype=torch.float64)
        ring = layer.operator((90, 70)).pseudo_inverse(y)
        with monkeypatch.context() as patch:
            by_tiles(patch)
            operator = layer.operator((90, 70))
            tiled = invconv.ConvOperator(layer.weight, operator.geometry, (90, 70))
            assert tiled.plan().solver == "tiles"
            assert relative(tiled.pseudo_inverse(y) - ring, ring) < 50 * EPS * float(operator.condition_number())


def test_report_and_plan(monkeypatch):
    by_tiles(monkeypatch)
    operator = PLANE.layer().float().operator(PLANE.size)
    plan, report = operator.plan(), operator.report()
    assert plan.solver == report.solver == "tiles"
    assert "with a halo of" in plan.because and plan.bytes > report.bytes > 0 and plan.unknowns == report.unknowns > 0
    assert report.relative_residual < 1e-6 and report.relative_error < 1e-5
    assert operator.pseudo_inverse(torch.zeros(0, 2, 40, 33)).shape == (0, 2, 40, 33)


def test_large_images_are_left_to_tiles():
    layer = invconv.InvertibleConv2d(16, 16, 3, padding=1, bias=False)
    operator = layer.operator((256, 256))
    assert operator.plan().solver == "tiles"
    assert operator.plan(volume=True).solver != "tiles"
    # The memory of the factors is that of a tile, whatever the image.
    small, large = (layer.operator((n, n)).plan() for n in (256, 512))
    assert large.unknowns == small.unknowns or large.unknowns < 2 * small.unknowns


def test_decay_is_that_of_a_known_inverse():
    """[1, a] has the inverse (-a)^d: beyond d places lies a^(d + 1) / sqrt(1 - a^2)."""
    conv = taps([1.0, 0.5], padding=((0, 1),)).operator((512,)).conv
    decay = decay_of(conv, Options())
    assert decay is not None
    norm = math.sqrt(1.25)
    for distance in (0, 3, 10):
        assert decay.at(distance) == pytest.approx(norm * 0.5 ** (distance + 1) / math.sqrt(0.75), rel=1e-6)
    assert decay.at(400) < 1e-15
