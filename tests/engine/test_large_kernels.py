"""Large kernels by the FFT: forward, adjoint, gradient and blocks, against the dense matrix."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import Matrix, matrix_of, relative
from tables import BORDERS, CASES, LAYERS, PLAIN, Case

from invconv import Options
from invconv.engine import kernels, spectral
from invconv.engine.convolution import Convolution
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.spectrum import Grid
from invconv.geometry import Geometry

ROUNDINGS = 4
"""Error in units of eps |A| |x|; up to 0.8 for images and 2.2 for gradients, as PyTorch's own sums have."""

LARGE = [
    Case(channels, kernel, size, mode=mode, padding=padding, stride=stride, dilation=dilation)
    for mode in ("circular", "zeros", "reflect", "replicate")
    for channels, kernel, size, padding, stride, dilation in [
        ((1, 1), (9, 9), (9, 9), None, 1, 1),
        ((2, 2), (9, 8), (9, 10), None, 1, 1),
        ((1, 4), (9, 9), (8, 10), None, 2, 1),
        ((1, 1), (5, 5), (9, 9), 8, 1, 4),
        ((2, 1), (65,), (50,), 40, 1, 1),
        ((1, 1), (13, 13), (8, 8), 7, 1, 1),
        ((1, 2), (5, 5, 5), (5, 6, 5), None, 1, 1),
    ]
]
"""Kernels about as large as the image, and larger."""


@pytest.fixture
def by_fft(monkeypatch):
    """All kernels are large."""
    monkeypatch.setattr(spectral, "pays", lambda *_: True)
    monkeypatch.setattr(kernels, "FOLD_ABOVE_TAPS", 1)
    monkeypatch.setattr(kernels, "FOLD_ABOVE_CHANNELS", 0)


def map_of(case: Case) -> Convolution:
    conv = case.layer()
    return Convolution(conv.weight.detach(), conv.geometry, case.size)


@pytest.mark.usefixtures("by_fft")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES + BORDERS + LARGE, ids=str)
def test_images_go_there_and_back_as_by_the_matrix(case, dtype):
    exact = map_of(case)
    conv = exact.to(dtype)
    a = matrix_of(case).a if dtype == torch.float64 else Matrix(conv.to_dense().double()).a
    norm = torch.linalg.matrix_norm(a, 2)
    limit = ROUNDINGS * torch.finfo(dtype).eps
    generator = torch.Generator().manual_seed(2)
    x, y = (
        torch.randn(3, *shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in (conv.x_shape, conv.y_shape)
    )
    there, back = conv.forward(x), conv.adjoint(y)
    assert there.dtype == back.dtype == dtype
    assert (there.double().flatten(1) - x.double().flatten(1) @ a.T).norm() < limit * norm * x.norm()
    assert (back.double().flatten(1) - y.double().flatten(1) @ a).norm() < limit * norm * y.norm()
    weight = conv.weight.double().requires_grad_()
    product = replace(exact, weight=weight).to_dense() @ x.double().flatten(1).T
    (by_weight,) = torch.autograd.grad((product * y.double().flatten(1).T).sum(), weight)
    assert (conv.weight_gradient(x, y).double() - by_weight).norm() < limit * x.norm() * y.norm()


@pytest.mark.parametrize("case", CASES + BORDERS + LARGE, ids=str)
def test_the_dense_matrix_is_that_of_the_layer(case):
    assert torch.allclose(map_of(case).to_dense(), matrix_of(case).a, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("case", [case for case in CASES + LARGE if case.convolution().is_cyclic], ids=str)
def test_folded_kernels_have_the_blocks_of_the_table(case, monkeypatch):
    conv = map_of(case)
    grid = Grid(conv.geometry, case.size)
    results = []
    for least in (10**9, 1):
        monkeypatch.setattr(kernels, "FOLD_ABOVE_TAPS", least)
        monkeypatch.setattr(kernels, "FOLD_ABOVE_CHANNELS", 0)
        blocks = kernels.kernel_to_blocks(conv.weight, grid)
        other = torch.randn(blocks.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(blocks)
        other = other * (1 + 0.5j) if grid.count > 1 else other
        results.append((blocks, kernels.blocks_to_kernel(other, conv.weight.shape, grid)))
    for table, folded in zip(*results, strict=True):
        assert table.shape == folded.shape
        assert relative(table - folded, table) < 1e-14


@pytest.mark.usefixtures("by_fft")
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_lsmr_answers(case):
    conv = map_of(case)
    matrix = matrix_of(case)
    solver = Krylov(conv, Options(solver="iterative", tol=1e-14, damping=0.1))
    y = torch.randn(1, *conv.y_shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = y.flatten(1) @ matrix.tikhonov(0.1).T
    condition = (1 + (matrix.values[0] / 0.1) ** 2).sqrt().item()
    assert relative(solver.pseudo_inverse(y).flatten(1) - expected, expected) < 1e-12 * condition**2


@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect", "replicate"])
def test_a_blur_of_100_taps_is_never_summed_up(mode, monkeypatch):
    """Nor has it a table of 330 million entries."""
    for name in ("tapwise", "pad", "pad_adjoint"):
        if mode in ("circular", "zeros"):
            monkeypatch.setattr(f"invconv.engine.convolution.{name}", None)
    monkeypatch.setattr(kernels, "_table", None)
    line = torch.exp(-((torch.arange(100, dtype=torch.float64) - 49.5) ** 2) / 500)
    line /= line.sum()
    geometry = Geometry.of((100, 100), padding="same", padding_mode=mode)
    conv = Convolution((line[:, None] * line)[None, None], geometry, (256, 256))
    x = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # It is the product of two blurs of a line each.
    lines: list[Any] = [((100, 1), line.view(1, 1, 100, 1)), ((1, 100), line.view(1, 1, 1, 100))]
    expected = x
    for size, weight in lines:
        layer: Any = PLAIN[2](1, 1, size, padding="same", padding_mode=mode, bias=False, dtype=torch.float64)
        layer.weight = torch.nn.Parameter(weight)
        expected = layer(expected).detach()
    y = conv.forward(x)
    assert relative(y - expected, x) < 1e-15
    assert torch.allclose((conv.adjoint(y) * x).sum(), y.square().sum(), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3, 64, 512])
@pytest.mark.parametrize("side", [8, 32, 256])
def test_small_kernels_are_summed_up(channels, side):
    for k in (1, 3, 5, 7):
        geometry = Geometry.of((k, k), padding="same")
        assert not Convolution(torch.empty(channels, channels, k, k), geometry, (side, side)).goes_by_fft


def large(dtype: torch.dtype = torch.float64, requires_grad: bool = False) -> Convolution:
    weight = torch.randn(1, 1, 31, 31, generator=torch.Generator().manual_seed(5), dtype=dtype)
    return Convolution(weight.requires_grad_(requires_grad), Geometry.of((31, 31), padding="same"), (64, 64))


def test_the_kernel_is_transformed_once(monkeypatch):
    conv = large()
    assert conv.goes_by_fft
    made = []
    of = spectral.Spectral.of
    monkeypatch.setattr(spectral.Spectral, "of", lambda *args: made.append(1) or of(*args))
    x = torch.randn(1, 1, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        y = conv.forward(x)
    conv.weight_gradient(conv.adjoint(y.clone()), x)
    assert len(made) == 1
    for other in (copy.copy(conv), copy.deepcopy(conv), pickle.loads(pickle.dumps(conv))):
        assert len(pickle.dumps(other)) < 2 * conv.weight.nbytes  # no transform in it
        assert torch.equal(other.forward(x), y)
    # A transform that was made under inference mode serves a training step.
    x.requires_grad_()
    conv.forward(x).square().sum().backward()
    assert x.grad is not None
    assert relative(x.grad / 2 - conv.adjoint(y.clone()), x.grad) < 1e-15


def test_it_is_differentiable_by_the_kernel():
    conv = large(requires_grad=True)
    x, z = (torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (6, 7))
    (by_weight,) = torch.autograd.grad((conv.forward(x) * z).sum(), conv.weight)
    expected = large().weight_gradient(x, z)
    assert relative(by_weight - expected, expected) < 1e-14


def test_the_plan_counts_the_transforms():
    conv = large()
    plan = Krylov.plan(conv, Options(solver="iterative"))
    small = Krylov.plan(
        replace(conv, weight=conv.weight[..., :3, :3], geometry=Geometry.of((3, 3), padding=1)), Options()
    )
    held = conv._kept.torus.blocks.nbytes
    assert plan.bytes > small.bytes + held


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["circular", "zeros", "reflect", "replicate"])
@pytest.mark.parametrize(("dims", "kernel", "size"), [(1, 301, 700), (2, 31, 40), (3, 11, 14)])
def test_layers_compute_what_their_parents_do(dims, kernel, size, mode, dtype, monkeypatch):
    arguments = {"padding": kernel // 2, "padding_mode": mode, "dtype": dtype}
    layer = LAYERS[dims](2, 2, kernel, **arguments)
    plain: Any = PLAIN[dims](2, 2, kernel, **arguments)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    plain.load_state_dict(layer.state_dict())
    called = []
    of = spectral.Spectral.of
    monkeypatch.setattr(spectral.Spectral, "of", lambda *args: called.append(1) or of(*args))
    x = torch.randn(2, 2, *(size,) * dims, dtype=dtype)
    images: list[Any] = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    ours, theirs = layer(images[0]), plain(images[1])
    assert called
    eps = 20 * torch.finfo(dtype).eps
    assert relative((ours - theirs).detach(), theirs.detach()) < eps
    ours.sin().sum().backward(), theirs.sin().sum().backward()
    # Of what errs by eps |y|, the sine does so as well.
    scale = theirs.detach().abs().max().item()
    pairs = zip([images[0], *layer.parameters()], [images[1], *plain.parameters()], strict=True)
    for a, b in ((one.grad, other.grad) for one, other in pairs):
        assert relative(a - b, b) < eps * scale
    assert relative(layer(x[0]).detach() - ours[0].detach(), ours[0].detach()) < eps
    assert layer(x[:0]).shape == plain(x[:0]).shape
