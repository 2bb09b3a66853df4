"""Transposed convolutions run backwards: the oracle is the dense matrix of `torch.nn.ConvTranspose*d`, in float64."""

from __future__ import annotations

import copy
import io
import itertools
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from oracle import Matrix, relative
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import invconv
from invconv import (
    ConvOperator,
    InputError,
    InvertibleConv2d,
    InvertibleConvTranspose,
    InvertibleConvTranspose1d,
    InvertibleConvTranspose2d,
    InvertibleConvTranspose3d,
    NotSquareError,
    SingularMapError,
    arrays,
    functional,
    keep_fresh,
)
from invconv.interop.directions import decode, encode
from invconv.interop.scipy import ConvLinearOperator
from invconv.layers import FrozenInverse
from invconv.layers.init import near_isometry_

LAYERS: dict[int, Any] = {1: InvertibleConvTranspose1d, 2: InvertibleConvTranspose2d, 3: InvertibleConvTranspose3d}
PLAIN: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
DOUBLE = torch.float64


@dataclass(frozen=True)
class Case:
    """A transposed layer and the size of what it is given."""

    channels: tuple[int, int]
    kernel: int
    size: tuple[int, ...]
    stride: int = 1
    padding: int = 0
    output_padding: int = 0
    groups: int = 1
    dilation: int = 1

    @property
    def arguments(self) -> tuple[Any, ...]:
        """Those of `torch.nn.ConvTranspose*d`, in its order."""
        return (
            *self.channels,
            self.kernel,
            self.stride,
            self.padding,
            self.output_padding,
            self.groups,
            True,
            self.dilation,
        )

    def layer(self, **options: Any) -> Any:
        torch.manual_seed(0)
        layer = LAYERS[len(self.size)](*self.arguments, dtype=DOUBLE, **options)
        with torch.no_grad():
            near_isometry_(layer.weight, layer.geometry, noise=0.6)
            layer.bias.normal_()
        return layer

    def images(self, batch: int = 2) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        return torch.randn(batch, self.channels[0], *self.size, generator=generator, dtype=DOUBLE)

    def __str__(self) -> str:
        size = "x".join(map(str, self.size))
        text = f"{self.channels[0]}to{self.channels[1]}-k{self.kernel}-n{size}-s{self.stride}-p{self.padding}"
        return f"{text}-o{self.output_padding}-g{self.groups}-d{self.dilation}"


def cases() -> list[Case]:
    """1-D to 3-D; (k, s, p, output_padding, dilation) that make the image larger, equal and smaller; all channels."""
    shapes = [
        (3, 1, 1, 0, 1),
        (3, 1, 0, 0, 1),
        (2, 2, 0, 0, 1),
        (4, 2, 1, 0, 1),
        (3, 2, 1, 1, 1),
        (3, 2, 1, 0, 1),
        (5, 3, 2, 2, 1),
        (3, 1, 2, 0, 2),
        (3, 1, 2, 1, 2),
        (2, 3, 0, 2, 1),
    ]
    sizes = [(9,), (5, 4), (3, 2, 3)]
    channels = [(2, 2, 1), (4, 2, 2), (2, 6, 2), (6, 2, 1), (8, 1, 1)]
    return [
        Case((ins, outs), k, size, s, p, o, groups, d)
        for (k, s, p, o, d), size, (ins, outs, groups) in itertools.product(shapes, sizes, channels)
    ]


CASES = cases()
FEW = CASES[::13]
every_case = pytest.mark.parametrize("case", CASES, ids=str)
few_cases = pytest.mark.parametrize("case", FEW, ids=str)


@cache
def matrix_of(case: Case) -> Matrix:
    """That of PyTorch's own layer, from unit images."""
    layer, count = case.layer(), case.channels[0] * math.prod(case.size)
    units = torch.eye(count, dtype=DOUBLE).view(count, case.channels[0], *case.size)
    plain = PLAIN[len(case.size)](*case.arguments, dtype=DOUBLE)
    plain.load_state_dict(layer.state_dict())
    with torch.no_grad():
        return Matrix((plain(units) - plain(torch.zeros_like(units[:1]))).flatten(1).T)


# -- the oracle ----------------------------------------------------------------------------------------------------


def test_the_table_has_every_kind():
    shapes = [matrix_of(case).a.shape for case in CASES]
    assert len(CASES) == 150
    assert min(sum(rows > columns for rows, columns in shapes), sum(rows < columns for rows, columns in shapes)) >= 30
    assert sum(rows == columns for rows, columns in shapes) >= 6


@every_case
def test_the_map_and_its_inverse_are_those_of_the_matrix(case):
    layer, matrix, x = case.layer(), matrix_of(case), case.images()
    operator = layer.operator(case.size)
    rows, columns = matrix.a.shape
    assert operator.shape == (rows, columns) and torch.equal(operator.to_dense(), operator.conv.to_dense())
    assert torch.allclose(operator.to_dense(), matrix.a, rtol=0, atol=1e-14)
    y = torch.randn(2, operator.out_channels, *operator.output_size, dtype=DOUBLE)
    assert torch.allclose(operator.forward(x).flatten(1), x.flatten(1) @ matrix.a.T, atol=1e-13)
    assert torch.allclose(operator.adjoint(y).flatten(1), y.flatten(1) @ matrix.a, atol=1e-13)
    if not matrix.full:
        return  # the inverse of a map without full rank is another test
    bias = layer.bias.detach().view(-1, *(1,) * len(case.size))
    with torch.no_grad():
        found = layer.inverse(y + bias).flatten(1)
    wanted = y.flatten(1) @ matrix.pinv.T
    assert relative(found - wanted, wanted) < matrix.bound
    back = operator.pseudo_inverse_adjoint(x).flatten(1)
    wanted = x.flatten(1) @ matrix.pinv
    assert relative(back - wanted, wanted) < matrix.bound


@pytest.mark.parametrize("case", [case for case in CASES if not matrix_of(case).full], ids=str)
def test_a_map_without_full_rank_is_cut_off_and_says_so(case):
    layer, matrix, x = case.layer(), matrix_of(case), case.images()
    with torch.no_grad(), pytest.warns(invconv.IllConditionedWarning, match=f"of {len(matrix.values)} singular values"):
        found = layer.inverse(layer(x)).flatten(1)
    assert layer.operator(case.size).report().rank == matrix.rank < len(matrix.values)
    wanted = x.flatten(1) @ (matrix.pinv @ matrix.a).T
    assert relative(found - wanted, wanted) < matrix.bound
    with pytest.raises(SingularMapError, match=r"minus infinity|singular"):
        layer.log_volume(case.size)


@every_case
def test_moore_and_penrose(case):
    """A A+ A = A, A+ A A+ = A+, and both products symmetric."""
    matrix = matrix_of(case)
    if not matrix.full:
        pytest.skip("the inverse of a map without full rank is another test")
    operator = case.layer().operator(case.size)
    units = torch.eye(matrix.a.shape[0], dtype=DOUBLE).view(-1, operator.out_channels, *operator.output_size)
    a, p = operator.to_dense(), operator.pseudo_inverse(units).flatten(1).T
    assert relative(a @ p @ a - a, a) < matrix.bound
    assert relative(p @ a @ p - p, p) < matrix.bound
    assert relative(a @ p - (a @ p).T, a @ p) < matrix.bound
    assert relative(p @ a - (p @ a).T, p @ a) < matrix.bound


@every_case
def test_its_numbers_are_those_of_the_matrix(case):
    layer, matrix = case.layer(), matrix_of(case)
    with torch.no_grad():
        values = layer.singular_values(case.size)
        norm, least = layer.spectral_norm(case.size), layer.smallest_singular_value(case.size)
        assert torch.allclose(values, matrix.values, rtol=1e-9, atol=1e-12)
        assert torch.allclose(norm, matrix.values[0], rtol=1e-10) and norm <= layer.norm_bound() * (1 + 1e-12)
        assert torch.allclose(least, matrix.values[-1], rtol=1e-7, atol=1e-12)
        if not matrix.full:
            return
        assert torch.allclose(layer.log_volume(case.size), matrix.values.log().sum(), rtol=1e-9, atol=1e-9)
        if matrix.a.shape[0] == matrix.a.shape[1]:
            assert torch.allclose(layer.log_abs_det(case.size), torch.linalg.slogdet(matrix.a)[1], rtol=1e-9, atol=1e-9)
        else:
            with pytest.raises(NotSquareError, match=f"{matrix.a.shape[0]} x {matrix.a.shape[1]}"):
                layer.log_abs_det(case.size)


@few_cases
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_answers_drawn_to_an_image(case, damping):
    layer, matrix, x = case.layer(), matrix_of(case), case.images()
    if not (damping or matrix.full):
        pytest.skip("without damping it needs full rank")
    with torch.no_grad():
        y = layer(x)
        y += torch.randn(y.shape, dtype=DOUBLE)
        v = torch.randn_like(x)
        rest = (y - layer(v)).flatten(1)
        if damping:
            found, inverse = layer.proximal(y, v, damping), matrix.tikhonov(damping)
        else:
            found, inverse = layer.back_project(y, v), matrix.pinv
        wanted = v.flatten(1) + rest @ inverse.T
    assert relative(found.flatten(1) - wanted, wanted) < matrix.bound


@few_cases
def test_products_of_the_map_with_its_transpose(case):
    matrix, damping = matrix_of(case), 0.2
    operator = case.layer(damping=damping).operator(case.size)
    y = torch.randn(1, operator.out_channels, *operator.output_size, dtype=DOUBLE)
    x, a = case.images(1), matrix.a
    for found, image, gram in (
        (operator.gram_inverse(x), x, a.T @ a),
        (operator.dual_gram_inverse(y), y, a @ a.T),
    ):
        wanted = torch.linalg.solve(gram + damping**2 * torch.eye(len(gram), dtype=DOUBLE), image.flatten())
        assert relative(found.flatten() - wanted, wanted) < 1e-10


BORDERS = ["zeros", "circular", "reflect", "replicate"]


@few_cases
@pytest.mark.parametrize("mode", BORDERS)
def test_functions_of_a_weight(case, mode):
    """The transpose of a convolution with borders of any kind, which PyTorch has of zeros only."""
    arguments = {"stride": case.stride, "padding": case.padding, "dilation": case.dilation, "groups": case.groups}
    if mode != "zeros" and case.padding >= min(case.size):
        pytest.skip("the border is wider than the image")
    weight, bias = case.layer().weight.detach(), case.layer().bias.detach()
    size = case.layer().operator(case.size).output_size
    operator = functional.conv_transpose_operator(
        weight, case.size, output_padding=case.output_padding, padding_mode=mode, **arguments
    )
    back = functional.conv_operator(weight, size, padding_mode=mode, **arguments).to_dense()
    a = operator.to_dense()
    assert a.shape[0] == back.shape[1]
    if case.output_padding < case.stride:
        assert torch.equal(a, back.T)
    matrix = Matrix(a)
    if not matrix.full:
        pytest.skip("the inverse of a map without full rank is another test")
    y = torch.randn(2, operator.out_channels, *size, dtype=DOUBLE)
    shifted = y + bias.view(-1, *(1,) * len(case.size))
    found = functional.conv_transpose_inverse(shifted, weight, bias, case.size, padding_mode=mode, **arguments)
    wanted = y.flatten(1) @ matrix.pinv.T
    assert relative(found.flatten(1) - wanted, wanted) < matrix.bound


def test_functions_refuse_what_does_not_fit():
    weight = torch.zeros(6, 3, 4, 4)
    with pytest.raises(InputError, match=r"output_padding must be below stride .* got \(1, 1\)"):
        functional.conv_transpose_operator(weight, (5, 4), output_padding=1)
    with pytest.raises(InputError, match="has 3 channels, the layer takes 6"):
        functional.conv_transpose_operator(weight, (3, 5, 4))
    with pytest.raises(InputError, match=r"bias must be a tensor of shape \(3,\), .* got shape \(6,\)"):
        functional.conv_transpose_inverse(torch.zeros(1, 3, 8, 8), weight, torch.zeros(6))
    with pytest.raises(InputError, match="y must be a tensor, got list"):
        functional.conv_transpose_inverse([1.0], weight)  # type: ignore[arg-type]


# -- derivatives ---------------------------------------------------------------------------------------------------

SMALL = [
    Case((2, 2), 3, (4,), 1, 1),
    Case((4, 2), 2, (3,), 2),
    Case((2, 3), 3, (3, 2), 2, 1, 1),
    Case((6, 2), 3, (3, 2), 1, 1, groups=2),
    Case((2, 1), 2, (2, 2, 1), 2),
]


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_of_the_inverse(case, damping):
    layer = case.layer(damping=damping)
    weight, bias = layer.weight.detach().requires_grad_(), layer.bias.detach().requires_grad_()
    y = layer(case.images()).detach()
    y = (y + torch.randn_like(y)).requires_grad_()

    def inverse(y, weight, bias):
        return torch.func.functional_call(Verb(layer, "inverse"), {"layer.weight": weight, "layer.bias": bias}, (y,))

    assert torch.autograd.gradcheck(inverse, (y, weight, bias), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(inverse, (y, weight, bias))


class Verb(nn.Module):
    """A verb of a layer as a forward."""

    def __init__(self, layer: Any, verb: str) -> None:
        super().__init__()
        self.layer, self.verb = layer, verb

    def forward(self, *arguments: Any) -> Tensor:
        return getattr(self.layer, self.verb)(*arguments)


VERBS = ["log_volume", "spectral_norm", "smallest_singular_value", "condition_number"]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_of_its_numbers(case, verb):
    layer = case.layer()

    def number(weight):
        return torch.func.functional_call(Verb(layer, verb), {"layer.weight": weight}, (case.size,))

    assert torch.autograd.gradcheck(number, (layer.weight.detach().requires_grad_(),), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(number, (layer.weight.detach().requires_grad_(),), atol=1e-4)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradients_of_the_proximal_operator(case):
    layer, x = case.layer(), case.images()
    y = layer(x).detach().add(0.3).requires_grad_()
    damping = torch.tensor(0.4, dtype=DOUBLE, requires_grad=True)

    def proximal(y, v, damping, weight):
        return torch.func.functional_call(Verb(layer, "proximal"), {"layer.weight": weight}, (y, v, damping))

    inputs = (y, torch.randn_like(x).requires_grad_(), damping, layer.weight.detach().requires_grad_())
    assert torch.autograd.gradcheck(proximal, inputs, check_forward_ad=True)


# -- PyTorch's own layer -------------------------------------------------------------------------------------------


@few_cases
def test_it_is_the_layer_of_pytorch(case):
    """Forward and state are the same, to the last bit."""
    ours = LAYERS[len(case.size)](*case.arguments)
    theirs = PLAIN[len(case.size)](*case.arguments)
    x = case.images().float()
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(x), theirs(x)) and torch.equal(ours.convolve(x, ours.weight, ours.bias), theirs(x))
    assert ours.extra_repr() == theirs.extra_repr() and isinstance(ours, type(theirs))
    with torch.no_grad():
        theirs.weight.normal_()
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(x), theirs(x))
    theirs.load_state_dict(case.layer().float().state_dict())
    shared = type(ours).from_conv(theirs, damping=0.1)
    assert shared.weight is theirs.weight and shared.damping == 0.1 and torch.equal(shared(x), theirs(x))
    plain = shared.to_conv()
    assert type(plain) is type(theirs) and torch.equal(plain(x), theirs(x)) and plain.weight is not theirs.weight


@pytest.mark.parametrize("channels", [(6, 3), (12, 3), (3, 3)])
def test_it_starts_near_an_isometry(channels):
    layer = InvertibleConvTranspose2d(*channels, 4, stride=2, padding=1)
    assert 1 < layer.condition_number((8, 8)) < 4 and not layer.bias.any()


def up(**arguments: Any) -> Any:
    torch.manual_seed(0)
    return InvertibleConvTranspose2d(6, 3, 4, **{"stride": 2, "padding": 1, "dtype": DOUBLE, **arguments})


X = torch.randn(2, 6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=DOUBLE)


@pytest.mark.parametrize("size", [(10, 8), (11, 8), (11, 9)])
def test_output_size_is_undone_whatever_it_is(size):
    layer = up()
    y = layer(X, output_size=size)
    assert y.shape[2:] == size and torch.equal(layer.convolve(X, layer.weight, layer.bias, size), y)
    assert torch.allclose(layer.inverse(y), X, atol=1e-12)
    assert torch.allclose(layer.inverse(y[0]), X[0], atol=1e-12)
    assert torch.allclose(layer.proximal(y, X, 0.1), X, atol=1e-12)
    assert torch.allclose(layer.back_project(y, torch.zeros_like(X)), X, atol=1e-12)


def test_an_output_padding_of_the_stride_and_more():
    """The image is one place larger than the convolution that goes back could tell; where a tap reaches it, it is."""
    layer = InvertibleConvTranspose1d(2, 2, 3, padding=2, output_padding=2, dilation=3, dtype=DOUBLE)
    x = torch.randn(1, 2, 7, dtype=DOUBLE)
    assert torch.allclose(layer.inverse(layer(x)), x, atol=1e-8)
    beyond = InvertibleConvTranspose1d(2, 2, 3, padding=1, output_padding=2, dilation=3, dtype=DOUBLE)
    assert beyond(x).shape == (1, 2, 13)
    with pytest.raises(InputError, match=r"output_padding \(2,\) at stride \(1,\) .* no tap reaches"):
        beyond.inverse(beyond(x))


def test_parametrized_and_pruned_layers():
    for layer in (parametrizations.weight_norm(up()), prune.random_unstructured(up(), "weight", 0.2)):
        assert torch.allclose(layer.inverse(layer(X)), X, atol=1e-11)
    plain = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(6, 3, 4, stride=2, padding=1, dtype=DOUBLE))
    ours = InvertibleConvTranspose2d.from_conv(plain)
    assert ours.parametrizations.weight is plain.parametrizations.weight and torch.equal(ours(X), plain(X))


class Doubled(nn.ConvTranspose2d):
    """A transposed convolution with a forward of its own."""

    def forward(self, x: Tensor, output_size: Any = None) -> Tensor:
        return 2 * super().forward(x, output_size)


def test_a_layer_that_computes_something_else_is_refused():
    with pytest.raises(InputError, match="Doubled, which has a forward of its own, gives something else"):
        InvertibleConvTranspose2d.from_conv(Doubled(6, 3, 4, stride=2))
    with pytest.raises(InputError, match=r"takes a torch.nn.ConvTranspose2d, got Conv2d"):
        InvertibleConvTranspose2d.from_conv(nn.Conv2d(6, 3, 4))
    with pytest.raises(InputError, match=r"takes a torch.nn.Conv2d, got ConvTranspose2d"):
        InvertibleConv2d.from_conv(nn.ConvTranspose2d(6, 3, 4))
    with pytest.raises(TypeError, match="InvertibleConvTranspose is abstract: use InvertibleConvTranspose1d, "):
        InvertibleConvTranspose(6, 3, 4)
    with pytest.raises(TypeError, match="did you mean 'damping'"):
        LAYERS[2](6, 3, 4, dampng=0.1)


def compiled(layer: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager")


def scripted(layer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that TorchScript is deprecated
        return torch.jit.script(layer)


def exported(layer: Any) -> Any:
    return torch.export.export(layer, (X,)).module()


def pickled(layer: Any) -> Any:
    return pickle.loads(pickle.dumps(layer))


def saved(layer: Any) -> Any:
    stream = io.BytesIO()
    torch.save(layer, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("way", [compiled, scripted, exported, pickled, saved, copy.deepcopy])
def test_what_pytorch_makes_of_it(way):
    layer = up()
    layer.inverse(layer(X))
    twin = way(layer)
    assert torch.allclose(twin(X), layer(X), atol=1e-14)
    if way in (pickled, saved, copy.deepcopy):
        assert twin.input_sizes() == [] and torch.equal(twin.inverse(layer(X)), layer.inverse(layer(X)))


def test_the_verbs_break_no_compiled_function():
    layer = up()
    torch._dynamo.reset()
    there_and_back = torch.compile(lambda x: layer.inverse(layer(x)).sum() + layer.log_volume((5, 4)), backend="eager")
    wanted = layer.inverse(layer(X)).sum() + layer.log_volume((5, 4))
    assert torch.allclose(there_and_back(X), wanted)


@pytest.mark.parametrize("matrix", [False, True])
def test_a_frozen_inverse(matrix):
    layer = InvertibleConvTranspose2d(4, 4, 3, padding=1, dtype=DOUBLE)
    near_isometry_(layer.weight, layer.geometry)
    x = torch.randn(2, 4, 6, 5, dtype=DOUBLE)
    assert torch.allclose(FrozenInverse(layer, (6, 5), matrix=matrix)(layer(x)), x, atol=1e-12)


def test_half_precision_and_single():
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        layer = up().to(dtype)
        x = X.to(dtype)
        y = layer(x)
        assert layer.inverse(y).dtype == dtype
        assert relative((layer.inverse(y) - x).double(), X) < tolerance


# -- never stale ---------------------------------------------------------------------------------------------------


def test_a_layer_that_is_trained_stays_fresh():
    layer = up(padding=0)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.03, foreach=True)
    with keep_fresh(optimizer, layer) as kept:
        for step in range(6):
            optimizer.zero_grad()
            (
                layer(X).square().mean() - layer.log_volume((5, 4)) / X[0].numel() + layer.inverse(layer(X)).mean()
            ).backward()
            optimizer.step()
            fresh = InvertibleConvTranspose2d.from_conv(layer.to_conv())
            y = layer(X).detach()
            assert torch.equal(layer.inverse(y), fresh.inverse(y))
            assert torch.equal(layer.log_volume((5, 4)), fresh.log_volume((5, 4)))
            assert layer.prepared_sizes() == [(5, 4)] and kept.steps == step + 1
            assert (layer.inverse(y) - X).abs().max() < 1e-10
    layer.weight.data.mul_(1.5)
    assert torch.allclose(layer.inverse(layer(X)), X, atol=1e-10)
    layer.refresh((7, 7))
    assert (7, 7) in layer.prepared_sizes()


def test_the_operator_says_what_it_is_worth():
    layer = up()
    report, plan = layer.operator((5, 4)).report(), layer.operator((5, 4)).plan()
    assert report.shape == (240, 120) and report.rank == 120 and report.solver == plan.solver
    assert report.relative_error < 1e-13 and report.relative_residual < 1e-13
    damped = ConvOperator(layer.weight, layer.geometry, (5, 4), invconv.Options(damping=0.5)).report()
    values = layer.singular_values((5, 4)).detach()
    expected = (0.25 / (values**2 + 0.25)).square().mean().sqrt().item()  # of white images
    assert damped.bias == pytest.approx(expected, rel=0.1)


def test_a_report_of_tiles_is_of_a_few():
    torch.manual_seed(0)
    layer = InvertibleConvTranspose2d(8, 4, 4, stride=2, padding=1)
    operator = layer.operator((64, 48))
    assert operator.plan().solver == "tiles" and operator.report().relative_error < 1e-6
    x = torch.randn(1, 8, 64, 48)
    assert relative(layer.inverse(layer(x)) - x, x) < 1e-6


def test_lost_digits_are_refused_or_warned_of():
    layer = InvertibleConvTranspose2d(3, 3, 3, padding=1)
    with torch.no_grad():
        torch.manual_seed(2)
        layer.weight.normal_()
        with pytest.raises(SingularMapError, match=r"3072 x 3072 layer; no digit can be trusted. Use float64"):
            layer.inverse(torch.randn(1, 3, 32, 32))
        x = torch.randn(1, 3, 26, 26)
        with pytest.warns(
            invconv.IllConditionedWarning, match=r"error of .e-02 in torch.float32: .* 2028 x 2028 layer"
        ):
            assert 1e-2 < relative(layer.inverse(layer(x)) - x, x) < 0.5
        assert relative(layer.double().inverse(layer(x.double())) - x, x) < 1e-6


def test_plugs_take_it_as_they_take_a_convolution():
    layer = InvertibleConvTranspose2d(4, 1, 2, stride=2, dtype=DOUBLE)
    x = torch.randn(3, 4, 4, 3, dtype=DOUBLE)
    z, there = encode(layer, x)
    x_hat, back = decode(layer, z)
    assert torch.allclose(x_hat, x, atol=1e-10) and torch.allclose(there, -back, atol=1e-10)
    matrix = ConvLinearOperator(up().operator((5, 4)))
    column = X[0].flatten().numpy()
    assert np.allclose(matrix.inverse @ (matrix @ column), column) and matrix.H.shape == (120, 240)
    physics = pytest.importorskip("invconv.interop.deepinv").ConvPhysics(up())
    assert torch.allclose(physics.A_dagger(physics.A(X)), X, atol=1e-12)
    assert physics.adjointness_test(X) < 1e-10
    y, gamma = physics.A(X) + 0.1, 2.0
    assert torch.allclose(physics.prox_l2(X, y, gamma), up().proximal(y + up().bias.view(-1, 1, 1), X, gamma**-0.5))


def test_threads_get_the_same_answers():
    layer, y = up(), up()(X).detach()
    wanted = up().inverse(y).detach()
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        answers = list(pool.map(lambda _: layer.inverse(y), range(12)))
    assert all(torch.allclose(answer, wanted, rtol=0, atol=1e-13) for answer in answers)
    assert len(layer.input_sizes()) == 1


def test_a_decoder_that_is_undone():
    """A decoder of two upsampling layers: the code comes back from the image, through a leaky ReLU."""
    torch.manual_seed(0)
    first, last = up(padding=1), InvertibleConvTranspose2d(3, 3, 3, stride=2, padding=1, output_padding=1, dtype=DOUBLE)
    image = last(nn.functional.leaky_relu(first(X), 0.2))
    assert image.shape[2:] == (20, 16)
    features = last.inverse(image)
    code = first.inverse(torch.where(features < 0, features / 0.2, features))
    assert torch.allclose(code, X, atol=1e-10)


class UNet(nn.Module):
    """One level down and up, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.down = InvertibleConv2d(3, 12, 2, stride=2, dtype=DOUBLE)
        self.middle = nn.Conv2d(12, 12, 3, padding=1, dtype=DOUBLE)
        self.up = InvertibleConvTranspose2d(12, 6, 4, stride=2, padding=1, dtype=DOUBLE)
        self.last = nn.Conv2d(9, 3, 1, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        self.given = torch.relu(self.middle(self.down(x)))
        self.made = self.up(self.given)
        return self.last(torch.cat([self.made, x], 1))


def test_the_upsampling_layer_of_a_unet_gives_back_what_it_was_given():
    torch.manual_seed(0)
    network, x = UNet(), torch.randn(2, 3, 12, 8, dtype=DOUBLE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = (network(x) - x.flip(-1)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        network(x)
        assert torch.allclose(network.up.inverse(network.made), network.given, atol=1e-11)
    assert losses[-1] < losses[0]
    rows = invconv.summary(network, (3, 12, 8))
    assert rows["up"].kind == "InvertibleConvTranspose2d" and rows["up"].shape == (6 * 96, 12 * 24)
    assert rows["up"].sigma_max == pytest.approx(network.up.spectral_norm((6, 4)).item(), rel=1e-3)


# -- what it cannot take -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"output_padding": 2}, r"output_padding must be below stride \(2, 2\) or dilation \(1, 1\), got \(2, 2\)"),
        ({"output_padding": -1}, r"output_padding must .* got \(-1, -1\)"),
        ({"padding_mode": "circular"}, "padding_mode of a transposed convolution must be 'zeros', got 'circular'"),
        ({"damping": -1.0}, "damping must .* got -1.0"),
        ({"solver": "fft and luck"}, "got 'fft and luck'"),
    ],
)
def test_bad_arguments(arguments, text):
    with pytest.raises(InputError, match=text):
        up(**arguments)


def test_bad_images():
    layer = up()
    with pytest.raises(InputError, match=r"y has shape \(1, 4, 10, 8\), expected \(batch, 3, 10, 8\)"):
        layer.inverse(torch.zeros(1, 4, 10, 8, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"y has shape \(10, 8\), expected \(batch, 3, 2 sizes\)"):
        layer.inverse(torch.zeros(10, 8, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"no image has an output of size \(1, 8\): the smallest is \(2, 2\)"):
        layer.inverse(torch.zeros(1, 3, 1, 8, dtype=DOUBLE))
    with pytest.raises(InputError, match=r"size \(5, 4\) has outputs of size \(10, 8\), and up to \(1, 1\) more"):
        layer.convolve(X, layer.weight, None, (12, 8))
    with pytest.raises(InputError, match=r"size \(6, 4\) has outputs of size \(12, 8\), .* got \(10, 8\)"):
        layer.inverse(layer(X), output_size=(6, 4))
    with pytest.raises(InputError, match="has 5 channels, the layer takes 6"):
        layer.operator((1, 5, 5, 4))
    with pytest.raises(InputError, match=r"size \(1, 1\) with padding .* gives an output of size \(0, 0\)"):
        InvertibleConvTranspose2d(2, 2, 2, padding=1).operator((1, 1))
    with pytest.raises(InputError, match=r"v must be a batch of images of 2 axes, got shape \(6, 5, 4\)"):
        layer.proximal(layer(X), X[0], 0.1)


def test_arrays_are_of_convolutions_only():
    with pytest.raises(InputError, match="of a convolution, got InvertibleConvTranspose2d"):
        arrays.apply(up(), X.numpy(), torch.zeros(2, 3, 10, 8).numpy())
    with pytest.raises(InputError, match="of a convolution, got the operator of a transposed one"):
        arrays.apply(up().operator((5, 4)), X.numpy(), torch.zeros(2, 3, 10, 8).numpy())


def test_a_bare_geometry_is_read_as_it_is_written():
    geometry = up().geometry
    assert geometry.output_size((5, 4)) == (10, 8) and geometry.input_size((11, 9)) == (5, 4)
    assert geometry.between((5, 4), (11, 8)) == replace(geometry, output_padding=(1, 0))
