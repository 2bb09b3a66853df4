"""Kernels that are outer products: told from others, and answered as the explicit matrix would be, at any size."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CONSTANT, EPS, dense, matrix_of, relative
from tables import BORDERS, Outer, taps

from invconv import Geometry, IllConditionedWarning, Options, SingularMapError, functional
from invconv.engine import memory
from invconv.engine.convolution import Convolution
from invconv.engine.separable import Separable, is_separable
from invconv.engine.solvers.kronecker import Kronecker
from invconv.report import Plan

F32, F64 = torch.float32, torch.float64
MODES = ("zeros", "reflect", "replicate")
OUTER = [Outer.of(case) for case in BORDERS]


def gaussian(k: int, sigma: float, dtype: torch.dtype = F64) -> torch.Tensor:
    line = torch.exp(-((torch.arange(k, dtype=dtype) - k // 2) ** 2) / (2 * sigma**2))
    kernel = torch.outer(line, line)
    return kernel / kernel.sum()


def box(k: int) -> torch.Tensor:
    return torch.full((k, k), 1 / k**2, dtype=F64)


def layer(kernel: torch.Tensor, mode: str = "zeros", **arguments: Any) -> Any:
    """A layer of one channel."""
    return taps(kernel.tolist(), dtype=kernel.dtype, padding_mode=mode, **arguments)


# -- told from others --------------------------------------------------------------------------------------------------


@st.composite
def outer_products(draw):
    dims, groups = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from([F32, F64]))
    kernel = torch.randn(groups, *shape, generator=generator, dtype=F64)
    for _ in range(dims):
        line = torch.randn(groups, draw(st.integers(1, {1: 31, 2: 15, 3: 5}[dims])), generator=generator, dtype=F64)
        kernel = kernel.to(dtype).unsqueeze(-1) * line.to(dtype).view(groups, *[1] * (kernel.dim() - 1), -1)
    kernel = kernel * draw(st.floats(1e-3, 1e3)) / draw(st.floats(1e-3, 1e3))
    geometry = Geometry.of(tuple(kernel.shape[3:]), groups=groups)
    return Convolution(kernel.flatten(0, 1), geometry, (40,) * dims)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(conv=outer_products(), place=st.integers(0, 10**6))
def test_outer_products_are_told_from_others(conv, place):
    unit = torch.finfo(conv.dtype).eps
    assert is_separable(conv, unit)
    separable = Separable.of(conv)
    x = torch.randn(2, *conv.x_shape, dtype=F64)
    exact = conv.to(F64)
    assert relative(separable.forward(x) - exact.forward(x), exact.forward(x)) < 50 * unit
    y = torch.randn(2, *conv.y_shape, dtype=F64)
    assert relative(separable.adjoint(y) - exact.adjoint(y), exact.adjoint(y)) < 50 * unit
    outs = conv.out_channels // conv.geometry.groups
    if sum(n > 1 for n in (outs * conv.weight.shape[1], *conv.geometry.kernel_size)) > 1:
        index = np.unravel_index(place % conv.weight.numel(), conv.weight.shape)
        conv.weight[index] += 1e6 * unit * conv.weight[index[:2]].abs().max()
        assert not is_separable(conv, unit)


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("moved", [1e-3, -1e-3, 1e4])
def test_a_tap_that_is_moved_is_no_rounding(dtype, moved):
    kernel = gaussian(5, 1.5, dtype)
    conv = layer(kernel)
    assert conv.operator((20, 20)).plan().solver == "kronecker"
    with torch.no_grad():
        conv.weight[0, 0, 1, 3] += moved if abs(moved) < 1 else moved * torch.finfo(dtype).eps * kernel.max()
    plan = conv.operator((20, 20)).plan()
    assert plan.solver == "fft and ring" and "kronecker: its kernel is no outer product" in plan.because


def test_factors_are_means_over_the_taps():
    """A rounding of 0.29 eps in the root mean square is all that is left; lines through one tap leave up to 0.58."""
    for seed in range(40):
        lines = torch.randn(2, 15, generator=torch.Generator().manual_seed(seed))
        kernel = torch.outer(*lines)[None, None] / 3
        rest = Separable.of(Convolution(kernel, Geometry.of((15, 15)), (20, 20))).rest
        assert rest.item() < 0.35 * torch.finfo(F32).eps * kernel.norm().item()


def test_channels_that_are_scaled_are_told_each_by_its_own_taps():
    """Between two channels that hardly matter to a third, a kernel is still none."""
    weight = torch.randn(2, 1, 3, 1, dtype=F64) * torch.randn(3, dtype=F64)
    weight[1] = weight[0]
    weight[1] *= 1e-20
    conv = Convolution(weight, Geometry.of((3, 3), padding=1), (8, 8))
    assert isinstance(Kronecker.plan(conv, Options()), Plan)
    conv.weight[1, 0, 0, 0] *= 1 + 1e-6
    assert Kronecker.plan(conv, Options()) == "its kernel is no outer product"


def test_refusals(monkeypatch):
    def plan(kernel: torch.Tensor, size: tuple[int, ...], mode: str = "zeros") -> Any:
        return Kronecker.plan(layer(kernel, mode).operator(size).conv, Options())

    assert "the FFT takes it apart" in plan(box(3), (8, 8), "circular")
    assert plan(box(3)[0], (8,)) == plan(box(3), (1, 9)) == "it has but one axis"
    assert "above the 8388608" in plan(box(3), (4, 3000))
    assert isinstance(plan(box(3), (2048, 2048)), Plan)
    monkeypatch.setattr(memory, "available_memory", lambda device: 2**20)
    assert "of which 1 MiB are free" in plan(box(3), (512, 512))


# -- answered as the matrix would be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("case", OUTER[::3], ids=str)
def test_float32_is_answered_to_its_rounding(case):
    matrix = matrix_of(case)
    unit = torch.finfo(F32).eps
    if not matrix.full or not 50 * unit * matrix.condition < 0.05:
        pytest.skip("float32 determines no digit")
    conv = case.layer().float()
    operator = conv.operator(case.size)
    assert operator.solver.name == "kronecker" and operator.solver.conv.dtype == F64
    exact = dense(conv, case.size)  # of the rounded taps
    y = torch.randn(2, *operator.conv.y_shape)
    x_hat = operator.pseudo_inverse(y).flatten(1).double()
    expected = y.flatten(1).double() @ torch.linalg.pinv(exact).T
    error = relative(x_hat - expected, expected)
    assert error < 10 * unit * matrix.condition
    volume = torch.linalg.svdvals(exact).log().sum()
    assert abs(operator.log_volume().double() - volume) < 10 * unit * matrix.condition * len(matrix.values)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "kernel", [box(5), box(3), box(4)[:, :3], box(5)[:1], gaussian(7, 1.0)], ids=lambda k: str(k.shape)
)
@pytest.mark.parametrize("size", [(9, 9), (8, 11), (14, 5)])
def test_what_is_cut_off_is_what_pinv_cuts_off(kernel, size, mode):
    """Blurs have null vectors at some sizes, at others none: rank and answer are those of `torch.linalg.pinv`."""
    conv = layer(kernel, mode)
    operator = conv.operator(size)
    matrix = dense(conv, size)
    rank = int(torch.linalg.matrix_rank(matrix))
    values = torch.linalg.svdvals(matrix)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        operator.prepare()
    assert operator.solver.name == "kronecker" and operator.solver.rank == rank
    said = [str(w.message) for w in caught if "cut off" in str(w.message)]
    assert len(said) == (rank < len(values)) and all(f"{len(values) - rank} of {len(values)} " in text for text in said)
    inverse = torch.linalg.pinv(matrix)
    bound = CONSTANT * EPS * (values[0] / values[rank - 1]).item()
    y = torch.randn(3, 1, *operator.output_size, dtype=F64)
    expected = y.flatten(1) @ inverse.T
    assert relative(operator.pseudo_inverse(y).flatten(1) - expected, expected) < bound
    if rank < len(values):
        with pytest.raises(SingularMapError, match="minus infinity"):
            operator.log_volume()


@pytest.mark.parametrize("case", OUTER[::9], ids=str)
def test_rtol_is_that_of_pinv(case):
    values = matrix_of(case).values
    middle = values[len(values) // 4 : 3 * len(values) // 4 + 1]
    gap = int((middle[:-1] / middle[1:]).argmax())
    rtol = ((middle[gap] * middle[gap + 1]).sqrt() / values[0]).item()
    if not 1e-12 < rtol < 1 or middle[gap] / middle[gap + 1] < 1.0001:
        pytest.skip("no gap to cut in")
    operator = case.layer(rtol=rtol).operator(case.size)
    y = torch.randn(2, *operator.conv.y_shape, dtype=F64)
    with pytest.warns(IllConditionedWarning, match="cut off"):
        x_hat = operator.pseudo_inverse(y).flatten(1)
    expected = y.flatten(1) @ torch.linalg.pinv(matrix_of(case).a, rtol=rtol).T
    assert operator.solver.name == "kronecker" and relative(x_hat - expected, expected) < 1e-9


@pytest.mark.parametrize("case", OUTER[::11], ids=str)
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_gradients_are_those_of_any_kernel(case, damping):
    """Finite differences of the explicit matrix leave the outer products, and the gradient knows of it."""
    matrix = matrix_of(case)
    if not damping and (not matrix.full or matrix.condition > 1e4):
        pytest.skip("the pseudo-inverse is not continuous")
    conv = case.layer()
    operator = conv.operator(case.size)
    weight = conv.weight.detach().clone().requires_grad_()
    y = torch.randn(2, *operator.conv.y_shape, dtype=F64, requires_grad=True)
    grad = torch.randn(2, *operator.conv.x_shape, dtype=F64)
    options = {k: v for k, v in case.arguments.items() if not k.endswith("channels") and k != "kernel_size"}
    x = functional.conv_inverse(y, weight, None, case.size, damping=damping, **options)
    found = torch.autograd.grad(x, (y, weight), grad)
    a = Convolution(weight, operator.geometry, case.size).to_dense()
    gram = a.T @ a + damping**2 * torch.eye(a.shape[1], dtype=F64)
    inverse = torch.linalg.solve(gram, a.T) if damping else torch.linalg.pinv(a)
    expected = torch.autograd.grad(y.flatten(1) @ inverse.T, (y, weight), grad.flatten(1))
    bound = CONSTANT * EPS * (torch.linalg.cond(gram).item() if damping else matrix.condition**2)
    assert all(relative(f - e, e) < bound for f, e in zip(found, expected, strict=True))


def test_kernels_that_vanish():
    operator = layer(torch.zeros(3, 3, dtype=F64)).operator((6, 6))
    with pytest.warns(IllConditionedWarning, match="36 of 36"):
        assert not operator.pseudo_inverse(torch.randn(1, 1, 6, 6, dtype=F64)).any()
    weight = torch.stack([torch.zeros(1, 3, 3, dtype=F64), gaussian(3, 0.5)[None]])  # one group of two
    operator = functional.conv_operator(weight, (6, 6), padding=1, groups=2)
    with pytest.warns(IllConditionedWarning, match="36 of 72"):
        x = operator.pseudo_inverse(torch.ones(1, 2, 6, 6, dtype=F64))
    assert operator.solver.name == "kronecker" and not x[:, 0].any() and x[:, 1].any()


def test_the_error_counts_what_the_kernel_is_besides():
    """Taps that are rounded to float32 are no outer product: that costs as much as the rounding of the outputs."""
    conv = layer(gaussian(9, 1.8, F32), "reflect")
    operator = conv.operator((64, 64))
    solver: Any = operator.solver
    x = torch.randn(4, 1, 64, 64, dtype=F64)
    exact = operator.conv.to(F64)
    error = relative(solver.pseudo_inverse(exact.forward(x)) - x, x)
    assert error > 1e-6
    assert error / 3 < solver.trial(F64) < 3 * error


# -- large ones --------------------------------------------------------------------------------------------------------


def line_matrix(line: np.ndarray, n: int, mode: str) -> np.ndarray:
    """The matrix of a symmetric kernel along one axis, by NumPy's own borders."""
    reach = len(line) // 2
    around = ((reach, reach), (0, 0))
    padded = np.pad(np.eye(n), around, "reflect") if mode == "reflect" else np.pad(np.eye(n), around)
    return np.sum([tap * padded[i : i + n] for i, tap in enumerate(line)], axis=0)


@pytest.mark.filterwarnings("ignore::invconv.IllConditionedWarning")
@pytest.mark.parametrize(
    ("k", "mode", "size"), [(9, "zeros", (256, 256)), (9, "reflect", (256, 200)), (5, "zeros", (256, 256))]
)
def test_a_large_box_blur(k, mode, size):
    conv = layer(box(k), mode)
    operator = conv.operator(size)
    y = torch.randn(1, 1, *size, generator=torch.Generator().manual_seed(0), dtype=F64)
    x_hat = operator.pseudo_inverse(y)
    assert operator.solver.name == "kronecker"
    (u, s, v), (p, t, q) = (np.linalg.svd(line_matrix(np.full(k, 1 / k), n, mode)) for n in size)
    products = np.outer(s, t)
    kept = products > np.finfo(float).eps * math.prod(size) * products.max()
    assert operator.solver.rank == kept.sum()
    coordinates = np.divide(u.T @ y[0, 0].numpy() @ p, products, out=np.zeros(size), where=kept)
    expected = torch.from_numpy(v.T @ coordinates @ q)
    bound = CONSTANT * EPS * products.max() / products[kept].min()
    assert bound < 1e-6 and relative(x_hat[0, 0] - expected, expected) < bound
    # Moore and Penrose.
    x = torch.randn(1, 1, *size, dtype=F64)
    twice = operator.forward(operator.pseudo_inverse(operator.forward(x)))
    assert relative(twice - operator.forward(x), operator.forward(x)) < bound
    assert relative(operator.pseudo_inverse(operator.forward(x_hat)) - x_hat, x_hat) < bound
    projected = [operator.pseudo_inverse(operator.forward(image)) for image in (x, x_hat)]
    assert abs((projected[0] * x_hat).sum() - (projected[1] * x).sum()) < bound * x.norm() * x_hat.norm()
    seen = [operator.forward(operator.pseudo_inverse(image)) for image in (x, y)]
    assert abs((seen[0] * y).sum() - (seen[1] * x).sum()) < bound * x.norm() * y.norm()


def test_large_invariants():
    """Of a motion blur, and of channels mixed besides: from the small matrices by NumPy."""
    line = np.array([0.1, 0.2, 0.4, 0.2, 0.1])
    mixing = torch.tensor([[1.0, 0.2], [-0.3, 0.8]], dtype=F64)
    weight = mixing[:, :, None, None] * torch.from_numpy(np.outer(line, line))
    operator = functional.conv_operator(weight, (300, 200), padding=2, padding_mode="reflect")
    rows, columns = (line_matrix(line, n, "reflect") for n in (300, 200))
    sizes = [np.linalg.slogdet(m)[1] for m in (mixing.numpy(), rows, columns)]
    expected = 60_000 * sizes[0] + 400 * sizes[1] + 600 * sizes[2]
    assert math.isclose(operator.log_volume().item(), expected, rel_tol=1e-12)
    # Of degree one in the kernel, whose every entry moves 120,000 singular values.
    assert math.isclose((operator.log_volume_gradient() * weight).sum().item(), 120_000, rel_tol=1e-9)
    values = [np.linalg.svd(m)[1] for m in (mixing.numpy(), rows, columns)]
    products = np.sort(np.multiply.outer(np.multiply.outer(values[0], values[1]), values[2]).ravel())[::-1]
    assert np.allclose(operator.singular_values().numpy(), products, rtol=0, atol=1e-14)
    assert np.allclose(operator.singular_values(3).numpy(), [*products[:3], *products[-3:]], rtol=1e-9)
    assert math.isclose(operator.condition_number().item(), products[0] / products[-1], rel_tol=1e-9)


def test_groups_of_the_same_blur_are_factored_once():
    weight = gaussian(5, 1.2).expand(3, 1, 5, 5)
    operator = functional.conv_operator(weight, (60, 50), padding=2, padding_mode="reflect", groups=3)
    solver: Any = operator.solver
    assert [m.shape for m in solver.map.matrices] == [(3, 1, 1), (1, 60, 60), (1, 50, 50)]
    single = functional.conv_operator(weight[:1], (60, 50), padding=2, padding_mode="reflect")
    y = torch.randn(2, 3, 60, 50, dtype=F64)
    apart = torch.cat([single.pseudo_inverse(y[:, i : i + 1]) for i in range(3)], 1)
    bound = CONSTANT * EPS * operator.condition_number().item()
    assert relative(operator.pseudo_inverse(y) - apart, apart) < bound
    assert math.isclose(operator.log_volume().item(), 3 * single.log_volume().item(), rel_tol=1e-10)
