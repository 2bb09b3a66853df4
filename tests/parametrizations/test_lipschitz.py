"""Layers whose norm is held at a bound: it is the largest singular value of their dense matrix."""

from __future__ import annotations

import copy
import itertools
from typing import Any, cast

import pytest
import torch
from lightning import LightningModule, Trainer
from oracle import dense
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, Dataset

from invconv import InputError, InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.errors import CheckpointError
from invconv.parametrizations import causal, lipschitz, to_conv

LAYERS = {
    "zeros": lambda: InvertibleConv2d(4, 4, 3, padding=1),
    "plain": lambda: nn.Conv2d(3, 5, 3, padding=1),
    "strided": lambda: nn.Conv2d(2, 4, (4, 3), stride=2, padding=1),
    "same": lambda: nn.Conv2d(2, 2, (2, 3), padding="same"),
    "dilated, grouped": lambda: nn.Conv2d(4, 2, 3, padding=2, dilation=2, groups=2),
    "circular": lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"),
    "reflect": lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="replicate", bias=False),
    "1-D": lambda: InvertibleConv1d(3, 2, 5, padding=2),
    "3-D": lambda: InvertibleConv3d(1, 2, 3, padding=1),
    "1 x 1": lambda: nn.Conv2d(4, 3, 1),
}
each_layer = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)


def size_of(conv, side=6):
    return (side, 5, 4)[: len(conv.kernel_size)]


def norm(conv, size):
    return torch.linalg.matrix_norm(dense(conv, size), ord=2).item()


@each_layer
@pytest.mark.parametrize("bound", [1.0, 0.3])
def test_the_norm_is_the_bound(make, bound):
    conv = lipschitz(make().double(), bound, size_of(make()))
    for scale in (1.0, 1e-6, 1e8):
        with torch.no_grad():
            conv.parametrizations.weight.original.normal_().mul_(scale)
        assert norm(conv, size_of(conv)) == pytest.approx(bound, rel=1e-10)


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certified_norms_stay_below_the_bound_on_every_size(make, dtype):
    conv = lipschitz(make().to(dtype), 0.7, certified=True)
    for side in (3, 4, 5, 8, 13):
        with torch.no_grad():
            conv.parametrizations.weight.original.normal_()
        assert norm(conv, size_of(conv, side)) <= 0.7


@each_layer
@pytest.mark.parametrize("certified", [False, True])
def test_gradients(make, certified):
    conv = make().double()
    lipschitz(conv, 1.0, None if certified else size_of(conv), certified=certified)
    kernel = conv.parametrizations.weight.original
    with torch.no_grad():
        kernel.normal_()
    assert torch.autograd.gradcheck(conv.parametrizations.weight[0], kernel, fast_mode=True)


def test_a_weight_of_this_norm_is_kept():
    conv = lipschitz(nn.Conv2d(3, 3, 3, padding=1).double(), 2.0, (5, 5))
    weight = conv.weight.detach().clone()
    twin = lipschitz(nn.Conv2d(3, 3, 3, padding=1).double(), 2.0, (5, 5))
    twin.weight = 7 * weight
    assert torch.allclose(twin.weight, weight, rtol=1e-12)


def test_saving_loading_and_copying():
    conv = lipschitz(InvertibleConv2d(4, 4, 3, padding=1), 1.0, (6, 6))
    names = {f"parametrizations.weight.{name}" for name in ("original", "0._extra_state")}
    assert set(conv.state_dict()) == {"bias", *names}
    twin = lipschitz(InvertibleConv2d(4, 4, 3, padding=1), 1.0, (6, 6))
    twin.load_state_dict(conv.state_dict())
    assert torch.allclose(twin.weight, conv.weight, rtol=1e-5, atol=1e-7)
    assert torch.allclose(copy.deepcopy(conv).weight, conv.weight, rtol=1e-5, atol=1e-7)
    assert torch.equal(conv.weight, conv.weight)
    others: list[Any] = [{"bound": 2.0, "input_size": (6, 6)}, {"input_size": (7, 6)}, {"certified": True}]
    for other in others:
        with pytest.raises(CheckpointError):
            lipschitz(InvertibleConv2d(4, 4, 3, padding=1), **other).load_state_dict(conv.state_dict())


@each_layer
def test_a_plain_layer_comes_back(make):
    conv = make()
    lipschitz(conv, 1.0, size_of(conv))
    plain = conv.to_conv() if hasattr(conv, "to_conv") else to_conv(conv)
    assert type(plain) in (nn.Conv1d, nn.Conv2d, nn.Conv3d) and not parametrize.is_parametrized(plain)
    x = torch.randn(2, conv.in_channels, *size_of(conv))
    assert torch.equal(plain(x), conv(x))
    assert [p.requires_grad for p in plain.parameters()] == [True] * len(list(plain.parameters()))
    with torch.no_grad():
        plain.weight.zero_()
    assert conv.weight.abs().max() > 0
    with pytest.raises(InputError, match="takes a convolution"):
        to_conv(cast(Any, nn.Linear(2, 2)))


def test_bad_input():
    conv = nn.Conv2d(2, 2, 3, padding=1)
    bounds: list[Any] = [0, -1.0, float("inf"), float("nan"), "1"]
    for bound in bounds:
        with pytest.raises(InputError, match="bound must be a positive number"):
            lipschitz(conv, bound, (4, 4))
    neither: list[Any] = [{}, {"input_size": (4, 4), "certified": True}]
    for arguments in neither:
        with pytest.raises(InputError, match="give input_size"):
            lipschitz(conv, 1.0, **arguments)
    with pytest.raises(InputError, match="below the kernel's extent"):
        lipschitz(nn.Conv2d(2, 2, 5), 1.0, (4, 4))
    with pytest.raises(InputError, match=r"takes a convolution of torch\.nn or invconv, got Linear"):
        lipschitz(cast(Any, nn.Linear)(2, 2), 1.0, (4, 4))
    with pytest.raises(InputError, match="parametrized already"):
        lipschitz(causal(InvertibleConv2d(2, 2, 3, padding=1)), 1.0, (4, 4))
    assert not parametrize.is_parametrized(conv)


def test_a_kernel_of_zeros_stays_one():
    conv: Any = lipschitz(nn.Conv2d(2, 2, 3, padding=1), 1.0, (4, 4))
    with torch.no_grad():
        conv.parametrizations.weight.original.zero_()
    assert torch.equal(conv.weight, torch.zeros(2, 2, 3, 3))


def test_a_classifier_trained_keeps_its_norms():
    """Three layers with borders of zeros, to tell which of four corners is the brightest."""
    torch.manual_seed(0)
    sides = (12, 12, 6)
    widths = [(1, 12), (12, 16), (16, 4)]
    convs = [
        lipschitz(nn.Conv2d(*width, 3, padding=1, stride=2 if side == 6 else 1), 1.0, (side, side))
        for width, side in zip(widths, sides, strict=True)
    ]
    network = nn.Sequential(convs[0], nn.LeakyReLU(0.5), convs[1], nn.MaxPool2d(2), convs[2], nn.AdaptiveMaxPool2d(1))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    losses = []
    for _ in range(40):
        labels = torch.randint(4, (32,))
        x = 0.3 * torch.randn(32, 1, 12, 12)
        for image, label in zip(x, labels.tolist(), strict=True):
            image[0, 6 * (label // 2) : 6 * (label // 2) + 6, 6 * (label % 2) : 6 * (label % 2) + 6] += 1
        loss = nn.functional.cross_entropy(20 * network(x).flatten(1), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    for conv, side in zip(convs, sides, strict=True):
        assert norm(conv, (side, side)) == pytest.approx(1.0, abs=1e-3)
    pairs = torch.randn(2, 16, 1, 12, 12)
    for a, b in itertools.pairwise([nn.Identity(), *network]):
        pairs = torch.stack([a(pairs[0]), a(pairs[1])])
        moved = (b(pairs[0]) - b(pairs[1])).flatten(1).norm(dim=1)
        assert (moved <= (pairs[0] - pairs[1]).flatten(1).norm(dim=1) * (1 + 1e-3)).all()


SIDES = (8, 11, 6)


class SomeImages(Dataset[torch.Tensor]):
    """Batches of images of several sizes."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        return self.batches[index]


class Scorer(LightningModule):
    """Two layers that lie on a sphere of kernels, and one score of images of any size."""

    def __init__(self, hold):
        super().__init__()
        self.first = hold(nn.Conv2d(1, 4, 3, padding=1))
        self.second = hold(nn.Conv2d(4, 2, 3, padding=1, stride=2))
        self.losses = []

    def training_step(self, images, _):
        x = self.second(nn.functional.leaky_relu(self.first(images), 0.5))
        loss = -x.square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.02)


@pytest.mark.parametrize("certified", [False, True])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_trains_on_images_of_several_sizes(certified, tmp_path):
    torch.manual_seed(0)
    held = {"certified": True} if certified else {"input_size": (8, 8)}
    module = Scorer(lambda conv: lipschitz(conv, 1.0, **held))
    batches = [torch.randn(4, 1, side, side) for side in SIDES * 6]
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, DataLoader(SomeImages(batches), batch_size=None))
    assert sum(module.losses[-9:]) < 1.1 * sum(module.losses[:9]) < 0
    for conv in (module.first, module.second):
        norms = {side: norm(conv, (side, side)) for side in (*SIDES, 24)}
        if certified:
            assert 0.8 < max(norms.values()) <= 1
        else:
            assert norms[8] == pytest.approx(1.0, abs=1e-3)
    saved = next(tmp_path.rglob("*.ckpt"))
    twin = Scorer(lambda conv: lipschitz(conv, 1.0, **held))
    twin.load_state_dict(torch.load(saved, weights_only=True)["state_dict"])
    assert torch.equal(twin.first.weight, module.first.weight)
