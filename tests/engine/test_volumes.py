"""Log-volumes where an inverse, a scale or a torus would mislead: against the dense matrix in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from oracle import relative, volume_gradient
from tables import NEIGHBOURS, taps
from torch import Tensor

from invconv import Geometry, IllConditionedWarning, InvertibleConv2d, Options, OutOfMemoryError, SingularMapError
from invconv.engine import choice, memory, trust
from invconv.engine.banded import Band, banded_gradient
from invconv.engine.convolution import Convolution
from invconv.engine.elimination import eliminate
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU
from invconv.engine.solvers.triangular import Triangular
from invconv.flows import Chain, ConvFlow
from invconv.functional import conv_log_abs_det, conv_log_volume
from invconv.operator import ConvOperator

MODES = ["zeros", "circular", "reflect", "replicate"]


def near_identity(out: int, ins: int, seed: int = 0, kernel: tuple[int, ...] = (3, 3)) -> Tensor:
    weight = 0.2 * torch.randn(out, ins, *kernel, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centre = tuple((k - 1) // 2 for k in kernel)
    for i in range(min(out, ins)):
        weight[(i, i, *centre)] += 1
    return weight


def convolution(weight: Tensor, size: tuple[int, ...], **arguments) -> Convolution:
    return Convolution(weight, Geometry.of(tuple(weight.shape[2:]), **arguments), size)


def exact(conv: Convolution) -> Tensor:
    """1/2 log det(A'A) by the QR or LU of the dense matrix."""
    a = conv.to(torch.float64).to_dense()
    if a.shape[0] == a.shape[1]:
        return torch.linalg.slogdet(a).logabsdet
    return torch.linalg.qr(a if a.shape[0] > a.shape[1] else a.T)[1].diagonal().abs().log().sum()


# -- damping and rtol are of the inverse -------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"damping": 0.5}, {"rtol": 0.3}, {"damping": 3.0, "solver": "direct"}], ids=str)
@pytest.mark.parametrize("channels", [(2, 2), (3, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_neither_damping_nor_rtol_changes_a_log_volume(mode, channels, options):
    weight = near_identity(*channels).requires_grad_()
    conv = convolution(weight.detach(), (6, 5), padding=1, padding_mode=mode)
    volume = conv_log_volume(weight, (6, 5), padding=1, padding_mode=mode, **options)
    assert abs(volume.detach() - exact(conv)) < 1e-10
    (gradient,) = torch.autograd.grad(volume, weight)
    assert relative(gradient - volume_gradient(conv), volume_gradient(conv)) < 1e-10


# -- scales ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("exponent", [-30, -8, 8, 30])
@pytest.mark.parametrize("mode", MODES)
def test_a_group_is_judged_by_its_own_scale(mode, exponent, dtype):
    arguments: Any = {"padding": 1, "padding_mode": mode}
    small = near_identity(1, 1, 1).to(dtype)
    weight = torch.cat([near_identity(1, 1, 0).to(dtype), small * float(10.0**exponent)]).requires_grad_()
    volume = conv_log_abs_det(weight, (7, 6), groups=2, **arguments)
    alone = sum(conv_log_abs_det(part, (7, 6), **arguments) for part in weight.detach().split(1))
    assert abs(volume.detach() - alone) < 1e-6 * abs(float(alone)) + 1e-5
    (gradient,) = torch.autograd.grad(volume, weight)
    for part, its_own in zip(weight.detach().split(1), gradient.split(1), strict=True):
        expected = volume_gradient(convolution(part.double(), (7, 6), **arguments))
        assert relative(its_own - expected, expected) < 1e-4


@pytest.mark.parametrize("size", [(6, 5), (33, 33)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_channels_of_any_scale(mode, size):
    """log |det D A E| = log |det A| + log |det D| + log |det E|."""
    weight = near_identity(2, 2)
    outputs, inputs = torch.tensor([1.0, 2.0**-70]), torch.tensor([2.0**60, 1.0])
    scaled = weight * outputs.double().view(2, 1, 1, 1) * inputs.double().view(1, 2, 1, 1)
    arguments: Any = {"padding": 1, "padding_mode": mode}
    more = math.prod(size) * math.log(2) * (60 - 70)
    expected = conv_log_abs_det(weight, size, **arguments) + more
    assert abs(conv_log_abs_det(scaled, size, **arguments) - expected) < 1e-8


@pytest.mark.parametrize("scale", [1e3, 1e8, 1e-30])
def test_layers_taken_together_keep_their_own_scales(scale):
    layers = [ConvFlow(3, rho=None), ConvFlow(3, rho=None)]
    with torch.no_grad():
        layers[0].conv.weight *= scale
        layers[1].conv.weight /= scale
    alone = sum(layer.conv.log_abs_det((8, 8)) for layer in layers)
    _, log_det = Chain(*layers)(torch.randn(1, 3, 8, 8))
    assert abs(log_det.item() - alone.item()) < 0.01


def test_a_frequency_that_is_singular_to_the_rounding_of_its_taps_is_refused():
    for seed in range(30):
        for dtype in (torch.float32, torch.float64):
            weight = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
            with pytest.raises(SingularMapError, match=r"cannot be told from it: at frequency \(0, 0\)"):
                conv_log_abs_det(weight - weight.mean(), (8, 8), padding=1, padding_mode="circular")


@pytest.mark.parametrize("mode", ["circular", "replicate"])
def test_a_small_frequency_keeps_its_digits_in_float32(mode):
    weight = near_identity(1, 1).float()
    weight[0, 0, 1, 1] -= weight.sum() * (1 - 1e-5)
    weight.requires_grad_()
    conv = convolution(weight.detach().double(), (8, 8), padding=1, padding_mode=mode)
    volume = conv_log_abs_det(weight, (8, 8), padding=1, padding_mode=mode)
    assert abs(volume.detach() - exact(conv)) < 1e-4
    (gradient,) = torch.autograd.grad(volume, weight)
    assert relative(gradient - volume_gradient(conv), volume_gradient(conv)) < 1e-5


# -- determinants that outlive the inverse -----------------------------------------------------------------------------


def causal(channels: int, centre: float, kernel: tuple[int, ...] = (3, 3)) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = 0.5 * torch.randn(channels, channels, *kernel, generator=generator, dtype=torch.float64)
    flat = weight.flatten(2)
    flat[..., : flat.shape[2] // 2] = 0
    flat[..., flat.shape[2] // 2] = centre * torch.eye(channels, dtype=torch.float64)
    return weight


@pytest.mark.parametrize("turn", [(), (2,), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("size", [(8, 8), (48, 48)], ids=str)
def test_a_causal_kernel_has_the_determinant_of_its_centre(size, turn):
    weight = causal(1, 0.0462).flip(turn)
    operator = ConvOperator(weight, Geometry.of((3, 3), padding=1), size)
    assert isinstance(operator._volume_solver, Triangular)
    assert abs(operator.log_abs_det() / math.prod(size) - math.log(0.0462)) < 1e-12


@pytest.mark.parametrize("centre", [0.0462, 0.5])
def test_the_gradient_of_a_triangular_determinant_by_all_taps(centre):
    """By the zero ones as well, against exact back-substitution."""
    conv = convolution(causal(1, centre), (9, 7), padding=1)
    solver = Dense(conv)
    by_ring = Triangular(conv)
    inverse = torch.linalg.solve_triangular(conv.to_dense(), torch.eye(63, dtype=torch.float64), upper=True)
    expected = conv.dense_gradient(inverse)
    assert relative(by_ring.log_volume_gradient - expected, expected) < 1e-7
    assert relative(solver.log_volume_gradient - expected, expected) < 1e-7


def test_what_is_no_triangle():
    for weight, arguments in (
        (near_identity(2, 2), {"padding": 1}),
        (causal(1, 1.0), {"padding": 1, "padding_mode": "circular"}),
        (causal(1, 1.0), {"padding": 0}),
        (causal(1, 1.0), {"padding": 1, "stride": 2}),
    ):
        assert isinstance(Triangular.plan(convolution(weight, (6, 6), **arguments), Options()), str)


def test_a_triangle_without_a_diagonal_is_singular():
    weight = causal(1, 0.0)
    with pytest.raises(SingularMapError, match="minus infinity"):
        conv_log_abs_det(weight, (48, 48), padding=1)
    with pytest.raises(SingularMapError, match="minus infinity"):
        conv_log_abs_det(weight, (6, 6), padding=1)


def test_singular_matrices_have_no_digits_and_others_say_how_many():
    generator = torch.Generator().manual_seed(0)
    for n in (2, 3, 5, 20, 60):
        for rows in (n, n + 2):
            left, right = (torch.randn(20, *s, generator=generator).double() for s in ((rows, n - 1), (n - 1, n)))
            assert eliminate(left @ right).error.min() > 0.5
            assert eliminate((left @ right).mT).error.min() > 0.5
        a = torch.randn(20, n, n, generator=generator, dtype=torch.float64)
        elimination = eliminate(a * 2.0 ** torch.randint(-300, 300, (n, 1), generator=generator).double())
        assert elimination.error.max() < 1e-8


# -- where the torus has lost what the layer has -----------------------------------------------------------------------


def test_a_gradient_is_as_good_as_its_value_where_a_ring_grows():
    """Of 200 kernels, rings of which grow more than 1e7 times though the layers are benign."""
    worst, grown = 0.0, 0
    for seed in range(200):
        weight = torch.randn(2, 2, 9, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        conv = convolution(weight, (3, 3), padding=(8, 0), dilation=2, padding_mode="replicate")
        condition = torch.linalg.cond(conv.to_dense()).item()
        if condition > 1e4:
            continue
        operator = ConvOperator(weight, conv.geometry, (3, 3))
        grown += operator.solver.growth > 1e7
        worst = max(worst, relative(operator.log_volume_gradient() - volume_gradient(conv), volume_gradient(conv)))
    assert grown and worst < 1e-9


def test_lines_of_which_nothing_is_left_but_rounding():
    """A wide layer on a square torus: I - S B is zero, and its inverse on the lines was of order 1e16."""
    for seed in range(8):
        weight = 0.3 * near_identity(3, 3, seed, (2, 5, 2))
        conv = convolution(weight, (4, 4, 2), padding=1)
        gram = Gram(conv)
        assert abs(gram.log_volume - exact(conv)) < 1e-8
        assert relative(gram.log_volume_gradient - volume_gradient(conv), volume_gradient(conv)) < 1e-8


def test_the_error_says_no_more_than_is_known():
    iterative = InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect", solver="iterative")
    with pytest.raises(SingularMapError, match="that solver='iterative' does without"):
        iterative.log_abs_det((12, 12))
    with pytest.raises(SingularMapError, match="in the ring rounding errors grow"):
        taps(NEIGHBOURS).log_abs_det((47, 47))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("out", "ins", "arguments"),
    [
        (2, 2, {}),
        (4, 2, {"groups": 2}),
        (2, 3, {}),
        (4, 1, {"stride": 2}),
        (3, 1, {"stride": 2}),
        (2, 2, {"groups": 2}),
    ],
)
def test_a_gradient_is_along_each_channel_what_it_has_to_be(mode, out, ins, arguments):
    """Noise is told by its size, and no gradient that is right is suspected."""
    conv = convolution(near_identity(out, ins), (6, 6), padding=1, padding_mode=mode, **arguments)
    gradient = volume_gradient(conv)

    class Off(Dense):
        by = 0.0

        @property
        def log_volume_gradient(self) -> Tensor:
            noise = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
            return gradient + self.by * gradient.norm() / noise.norm() * noise

    off = Off(conv)
    trust.log_volume_gradient(off, conv)
    off.by = 0.1
    with pytest.warns(IllConditionedWarning, match="gradient of the log-determinant .* relative error of [0-9]e-0[12]"):
        trust.log_volume_gradient(off, conv)
    off.by = 50.0
    with pytest.raises(SingularMapError, match="no digit can be trusted"):
        trust.log_volume_gradient(off, conv)


def test_the_log_volume_of_a_lossy_ring_is_judged_by_its_gradient():
    conv = convolution(near_identity(1, 1), (6, 6), padding=1)

    class Lossy(Ring):
        growth = 1e9
        by = 0.0

        @property
        def log_volume_gradient(self) -> Tensor:
            return (1 + self.by / 36) * volume_gradient(conv)

    lossy = Lossy(conv)
    assert trust.log_volume(lossy, conv) == lossy.log_volume
    lossy.by = 0.1
    with pytest.warns(IllConditionedWarning, match="off by up to 1e-01 nats"):
        trust.log_volume(lossy, conv)
    lossy.by = 1.0
    with pytest.raises(SingularMapError, match="cannot be told from it"):
        trust.log_volume(lossy, conv)


# -- fewer frequencies -------------------------------------------------------------------------------------------------


def comb(k: int, length: int, dims: int, strength: float = 0.5) -> Tensor:
    weight = torch.zeros(1, 1, *(length,) * dims, dtype=torch.float64)
    centre = (length // 2,) * dims
    weight[(0, 0, *centre)] = 1
    weight[(0, 0, *centre[:-1], centre[-1] + k)] = strength
    return weight


@pytest.mark.parametrize("tol", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize(("dims", "side"), [(1, 16), (1, 97), (1, 128), (2, 17), (2, 32), (3, 12)])
def test_sparse_kernels_do_not_fool_the_witness(dims, side, tol):
    for k in range(1, min(side // 2, 17)):
        for strength in (0.5, 0.95):
            weight = comb(k, 2 * k + 1, dims, strength)
            arguments: Any = {"padding": "same", "padding_mode": "circular"}
            if dims == 3 and k > 4:
                continue
            size = (side,) * dims
            expected = conv_log_abs_det(weight, size, **arguments)
            assert abs(conv_log_abs_det(weight, size, volume_tol=tol, **arguments) - expected) < tol * side**dims, k


def test_the_tolerance_does_not_hide_a_singular_frequency():
    for cycles in (1, 3, 5, 11):
        cosine = math.cos(2 * math.pi * cycles / 64)
        weight = torch.tensor([[[1.0, -2 * cosine, 1.0]]], dtype=torch.float64)
        with pytest.raises(SingularMapError):
            conv_log_abs_det(weight, (64,), padding=1, padding_mode="circular", volume_tol=0.5)


def test_options_are_left_as_they_are():
    operator = ConvOperator(near_identity(2, 2), Geometry.of((3, 3), padding=1), (5, 5), Options(damping=0.5))
    before = replace(operator.options)
    operator.log_volume()
    assert operator.options == before and operator.solver.options == before


# -- gradients of sparse factors ---------------------------------------------------------------------------------------

BANDS: tuple[tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ((3, 3, 3, 3), (9, 8), {"padding": 1}),
    ((2, 2, 3, 5), (7, 9), {"padding": (1, 2), "padding_mode": "reflect"}),
    ((2, 2, 3, 3), (9, 7), {"padding": 2, "dilation": 2, "padding_mode": "replicate"}),
    ((4, 1, 3, 3), (8, 6), {"padding": 1, "stride": 2}),
    ((2, 1, 3, 3), (6, 7), {"padding": 1, "stride": (2, 1)}),
    ((4, 2, 3, 3), (6, 9), {"padding": 1, "groups": 2}),
    ((2, 2, 5), (17,), {"padding": 2}),
    ((2, 2, 2), (8,), {"padding": ((0, 1),)}),
    ((2, 2, 3, 3, 3), (4, 5, 6), {"padding": 1}),
    ((2, 2, 5, 3), (1, 9), {"padding": (2, 1)}),
    ((4, 1, 2, 2), (6, 6), {"stride": 2}),
    ((1, 1, 4, 3), (9, 7), {"padding": ((2, 1), (1, 1)), "padding_mode": "circular"}),
)


@pytest.mark.parametrize(("shape", "size", "arguments"), BANDS, ids=str)
def test_a_gradient_from_the_band_is_that_of_the_matrix(shape, size, arguments):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    conv = convolution(weight, size, **arguments)
    gradient, expected = banded_gradient(conv, math.inf), volume_gradient(conv)
    assert gradient is not None
    bound = 50 * torch.finfo(torch.float64).eps * torch.linalg.cond(conv.to_dense()).item()
    assert relative(gradient - expected, expected) < bound


def test_what_has_no_band_worth_its_while(monkeypatch):
    weight = near_identity(2, 2)
    conv = convolution(weight, (6, 5), padding=1)
    assert banded_gradient(conv, 1.0) is None
    # A square matrix of an image that is longer and narrower than its outputs.
    other = convolution(torch.randn(1, 1, 2, 1, dtype=torch.float64), (2, 2), padding=((1, 0), (0, 0)))
    assert banded_gradient(other, math.inf) is not None
    narrow = convolution(torch.randn(2, 1, 2, 1, dtype=torch.float64), (4, 3), stride=(2, 1), padding=((0, 0), (0, 0)))
    assert banded_gradient(narrow, math.inf) is not None
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**10)
    assert banded_gradient(conv, math.inf) is None
    expected = volume_gradient(conv)
    assert relative(SparseLU(conv).log_volume_gradient - expected, expected) < 1e-12


def test_a_gradient_that_the_band_has_lost_comes_from_unit_images():
    """The inverse of [1.5, 1] grows along the line; back-substitution keeps all of its digits, a QR does not."""
    conv = convolution(torch.tensor([[[1.5, 1.0, 0.0]]], dtype=torch.float64), (76,), padding=1)
    assert relative(Band(conv, 0).gradient() - 76 * torch.tensor([[[0.0, 1.0, 0.0]]]), torch.ones(1)) > 1e-3
    gradient = SparseLU(conv).log_volume_gradient
    assert relative(gradient.flatten()[1:2] - 76, torch.ones(1)) < 1e-9


# -- advice ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["auto", "direct"])
def test_no_way_to_a_volume_is_told_alike_whichever_solver_was_asked_for(solver, monkeypatch):
    lost = InvertibleConv2d(1, 1, 3, padding=1, solver=solver, dtype=torch.float64)
    with torch.no_grad():
        lost.weight.copy_(taps(NEIGHBOURS).weight)
    advice = r"use a smaller image, circular borders, or a better conditioned kernel$"
    with pytest.raises(SingularMapError, match="in the ring rounding errors grow .*: " + advice):
        lost.log_abs_det((47, 47))
    tall = InvertibleConv2d(2, 3, 3, padding=1, solver=solver, padding_mode="reflect")
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**16)
    with pytest.raises(OutOfMemoryError, match=r"needs the factors of .* Use a smaller image, or circular borders$"):
        tall.log_volume((30, 30))


@pytest.mark.parametrize("solver", ["auto", "direct", "iterative"])
def test_pixels_that_nobody_reads_leave_no_volume(solver):
    conv = InvertibleConv2d(3, 12, 3, padding=4, stride=2, dilation=4, solver=solver)
    with pytest.raises(SingularMapError, match="minus infinity whatever its weight, some pixels are read by no output"):
        conv.log_abs_det((16, 16))


def test_a_long_line_takes_the_way_with_the_soonest_gradient(monkeypatch):
    """The inverse of a line is soonest by sparse factors, whose gradient of the log-volume goes from pixel to pixel."""
    operator = ConvOperator(torch.tensor([[[0.2, 1.0, 0.3]]]), Geometry.of((3,), padding=1), (400_000,))
    assert operator.plan().solver == "sparse lu"
    plan = choice.plan(*operator.reduced, factored=True)
    assert plan.solver == "fft and ring"
    monkeypatch.setattr(choice, "extrapolated", lambda *_: None)
    monkeypatch.setattr(choice, "cylinder", lambda *_: None)
    assert isinstance(choice.volume(*operator.reduced, lambda: operator.solver), Ring)
