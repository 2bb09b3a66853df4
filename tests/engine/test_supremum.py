"""The bound of the norm is one, for every kernel, geometry and size, and not far above what it bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import dense, matrix_of
from tables import BORDERS, CASES, LAYERS

from invconv import Geometry, InputError, InvertibleConv2d, functional
from invconv.engine import supremum


@pytest.mark.parametrize("cases", [CASES, BORDERS], ids=["cyclic", "borders"])
def test_no_geometry_has_a_larger_norm(cases):
    for case in cases:
        assert case.layer().norm_bound() >= matrix_of(case).values[0], case


@st.composite
def layers(draw):
    dims = draw(st.integers(1, 2))
    sides = st.tuples(*[st.integers(1, 4)] * dims)
    return LAYERS[dims](
        groups := draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 3)),
        draw(sides),
        draw(sides),
        draw(st.tuples(*[st.integers(0, 4)] * dims)),
        draw(st.tuples(*[st.integers(1, 2)] * dims)),
        groups,
        padding_mode=draw(st.sampled_from(["zeros", "circular", "reflect", "replicate"])),
        dtype=torch.float64,
    )


@settings(max_examples=150, deadline=None)
@given(conv=layers(), seed=st.integers(0, 2**16), size=st.integers(1, 9), smooth=st.booleans())
def test_no_kernel_has_a_larger_norm(conv, seed, size, smooth):
    torch.manual_seed(seed)
    with torch.no_grad():
        conv.weight.uniform_() if smooth else conv.weight.normal_()
    size = (size, 5)[: conv.geometry.dims]
    try:
        conv.geometry.check_input_size(size)
    except InputError:
        return
    norm = torch.linalg.matrix_norm(dense(conv, size), ord=2)
    assert conv.norm_bound() >= norm * (1 - 1e-14)


@pytest.mark.parametrize(("dims", "channels"), [(1, 3), (2, 2), (2, 12), (3, 2)])
def test_it_is_near_the_largest_block_of_a_fine_grid(dims, channels):
    torch.manual_seed(0)
    for _ in range(5):
        weight = torch.randn(channels, channels, *(3,) * dims, dtype=torch.float64)
        axes = tuple(range(2, 2 + dims))
        blocks = torch.fft.fftn(weight, s=(48,) * dims, dim=axes).movedim((0, 1), (-2, -1))
        exact = torch.linalg.matrix_norm(blocks, ord=2).max()
        bound = functional.conv_norm_bound(weight, padding=1)
        assert exact <= bound <= exact / math.cos(dims * math.pi / 32) * (1 + 1e-2)


def test_large_images_come_up_to_it():
    torch.manual_seed(0)
    conv = InvertibleConv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        conv.weight.normal_()
        norms = [conv.spectral_norm((n, n)).item() for n in (4, 8, 16, 64)]
        bound = conv.norm_bound().item()
    assert norms == sorted(norms) and norms[-1] <= bound <= 1.01 * norms[-1]


def test_gradcheck():
    conv = BORDERS[40].layer()
    weight = conv.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(conv.norm_bound, weight, fast_mode=True)
    assert functional.conv_norm_bound(torch.zeros(2, 2, 3)) == 0


@pytest.mark.parametrize(
    ("mode", "padding", "copies"),
    [
        ("zeros", 3, 1),
        ("circular", 1, 1),
        ("circular", 2, 2),
        ("reflect", 1, 3),
        ("replicate", 1, 3),
        ("reflect", 0, 1),
    ],
)
def test_copies_of_a_pixel(mode, padding, copies):
    """On one of the smallest images that the layer takes there are most."""
    assert supremum._copies(Geometry.of((3,), padding=padding, padding_mode=mode)) == copies
