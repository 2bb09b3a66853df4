"""Layers that move entries about, and linear ones: against what went in, and the dense pseudo-inverse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from undoing import Function, dense_pseudo_inverse, site_of, undo, undo_all

from invconv.inversion import Interval

Act = Callable[[Tensor], Tensor]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(3, 4, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def function(act: Act) -> nn.Module:
    return Function(act)


MOVED: dict[str, nn.Module] = {
    "zero padding": nn.ZeroPad2d((1, 2, 0, 3)),
    "constant padding": nn.ConstantPad2d(1, 7.0),
    "reflection": nn.ReflectionPad2d(2),
    "replication": nn.ReplicationPad2d((1, 0, 2, 0)),
    "circular padding": nn.CircularPad2d(1),
    "padding as a function": function(lambda x: F.pad(x, (1, 1, 2, 0))),
    "nearest upsampling": nn.Upsample(scale_factor=2),
    "nearest upsampling, uneven": nn.UpsamplingNearest2d(size=(11, 9)),
    "nearest interpolation": function(lambda x: F.interpolate(x, size=(9, 13), mode="nearest-exact")),
    "class tokens": function(lambda x: torch.cat([torch.ones(x.shape[0], 1, 48), x.flatten(2)], 1)),
    "a constant beside it": function(lambda x: torch.cat((x, torch.zeros(x.shape[0], 2, 8, 6)), dim=1)),
    "twice": function(lambda x: torch.cat([x, x], 1)),
    "a stack": function(lambda x: torch.stack([x, x.flip(3)], 1)),
    "flip": function(lambda x: x.flip(2, 3)),
    "rot90": function(lambda x: torch.rot90(x, 1, (2, 3))),
    "swapaxes": function(lambda x: x.swapaxes(1, 3)),
    "parts the other way round": function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)),
    "parts unbound": function(lambda x: torch.stack(x.unbind(1)[::-1], 2)),
    "patches beside each other": function(
        lambda x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
    ),
    "repeat": function(lambda x: x.repeat(1, 2, 1, 3)),
    "expand": function(lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1, -1)),
    "unfold": nn.Unfold(3, padding=1),
    "windows": function(lambda x: x.unfold(2, 4, 2)),
    "masked": function(lambda x: torch.where(torch.eye(8, 6) > 5, torch.zeros(()), x)),
    "a chain of these": function(lambda x: F.pad(x, (1, 1)).transpose(1, 2).flip(0)[:, :, :, ::1].reshape(3, -1)),
}


@pytest.mark.parametrize("name", MOVED)
def test_what_is_moved_is_moved_back(name: str, x: Tensor) -> None:
    x_hat = undo_all(MOVED[name], x)
    assert x_hat.exact.all() and torch.allclose(x_hat.lower, x, rtol=1e-15, atol=0)  # the mean of equal copies


def test_of_what_is_left_out_nothing_is_known(x: Tensor) -> None:
    for module, seen in ((lambda x: x[:, 1:3], [1, 2]), (lambda x: x.chunk(2, 1)[1], [2, 3])):
        x_hat = undo_all(Function(module), x)
        assert torch.equal(x_hat.lower[:, seen], x[:, seen])
        others = [c for c in range(4) if c not in seen]
        assert not x_hat.lower[:, others].isfinite().any() and not x_hat.upper[:, others].isfinite().any()
        assert x_hat.equations == x[:, seen].numel()


def test_copies_that_disagree_are_averaged_and_bounds_are_gathered() -> None:
    x = torch.zeros(1, 1, 1, 3, dtype=torch.float64)
    site, _ = site_of(function(lambda x: torch.cat([x, x], 2)), x)
    rule = site.segment.rule
    assert rule is not None
    lower = torch.tensor([[[[1.0, 0.0, 2.0], [3.0, -torch.inf, 5.0]]]]).double()
    upper = torch.tensor([[[[1.0, 4.0, 9.0], [3.0, 2.0, 7.0]]]]).double()
    x_hat = rule.function(site, Interval(lower, upper))
    assert site.note == "copies of one entry disagree by up to 1.0e+00: their mean"
    assert x_hat.lower.flatten().tolist() == [2.0, 0.0, 5.0] and x_hat.upper.flatten().tolist() == [2.0, 2.0, 7.0]


def weighted(kind: type[nn.Module], *sizes: int, **options: int) -> nn.Module:
    torch.manual_seed(0)
    return kind(*sizes, **options).double()


def rows(height: int, width: int) -> Tensor:
    return torch.randn(height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


LINEAR: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "transposed": (lambda: weighted(nn.ConvTranspose2d, 4, 6, 3, padding=1), (4, 8, 6)),
    "transposed, to the double": (lambda: weighted(nn.ConvTranspose2d, 4, 3, 2, stride=2), (4, 5, 6)),
    "transposed, with output padding": (
        lambda: weighted(nn.ConvTranspose2d, 4, 8, 3, stride=2, padding=1, output_padding=1),
        (4, 5, 6),
    ),
    "transposed, in groups, dilated": (
        lambda: weighted(nn.ConvTranspose2d, 4, 8, 3, groups=2, dilation=2, bias=False),
        (4, 6, 5),
    ),
    "transposed, with fewer outputs": (lambda: weighted(nn.ConvTranspose2d, 4, 1, 3, padding=1), (4, 6, 5)),
    "transposed, in one dimension": (lambda: weighted(nn.ConvTranspose1d, 2, 5, 4, stride=2, padding=1), (2, 9)),
    "transposed, in three": (lambda: weighted(nn.ConvTranspose3d, 2, 4, 2, stride=2), (2, 3, 2, 3)),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 6, 5)),
    "bilinear, aligned": (lambda: nn.UpsamplingBilinear2d(scale_factor=2), (2, 6, 5)),
    "bicubic, to fewer": (lambda: function(lambda x: F.interpolate(x, size=(4, 3), mode="bicubic")), (2, 6, 5)),
    "trilinear": (lambda: nn.Upsample(size=(5, 4, 6), mode="trilinear"), (1, 3, 3, 4)),
    "pooled in three": (lambda: nn.AvgPool3d(2), (2, 4, 4, 4)),
    "einsum": (
        lambda: function(lambda x: torch.einsum("oc,bchw->bohw", rows(5, 4), x)),
        (4, 3, 5),
    ),
    "einsum with the image first": (
        lambda: function(lambda x: torch.einsum("bchw,hk->bckw", x, rows(3, 4))),
        (4, 3, 5),
    ),
    "a matrix": (lambda: function(lambda x: x @ rows(5, 7)), (2, 3, 5)),
    "a sum": (lambda: function(lambda x: x.sum(1)), (4, 3, 5)),
    "a running sum": (lambda: function(lambda x: x.cumsum(2)), (2, 3, 5)),
    "fold": (lambda: function(lambda x: F.fold(x, (4, 4), 2)), (8, 9)),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_layers_give_what_the_dense_pseudo_inverse_gives(name: str) -> None:
    make, shape = LINEAR[name]
    module, x = make(), torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x_hat, wanted = undo(module, x).lower, dense_pseudo_inverse(module, x)
    assert (x_hat - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("bias", [True, False])
def test_a_transposed_convolution_takes_the_transposed_pseudo_inverse(bias: bool) -> None:
    torch.manual_seed(0)
    module = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, bias=bias).double()
    x = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    site, features = site_of(module, x)
    solution = site.segment.rule.function(site, Interval.point(features.detach()))  # type: ignore[union-attr]
    assert site.note == "pseudo-inverse"
    assert (solution.lower - x).norm() < 1e-10 * x.norm()
    twin = function(lambda x: F.conv_transpose2d(x, module.weight, module.bias, 2, 1, 1))
    again, features = site_of(twin, x)
    solution = again.segment.rule.function(again, Interval.point(features.detach()))  # type: ignore[union-attr]
    assert again.note == "pseudo-inverse" and (solution.lower - x).norm() < 1e-10 * x.norm()
