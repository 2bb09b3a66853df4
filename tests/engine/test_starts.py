"""Where iterations for a norm start on large images, and that they end at the same as from noise."""

from __future__ import annotations

import pytest
import torch
from oracle import dense
from torch import nn

from invconv import functional
from invconv.engine import extremes, starts
from invconv.engine.convolution import Convolution
from invconv.geometry import Geometry

LAYERS = {
    "zeros": lambda: nn.Conv1d(3, 4, 3, padding=1),
    "wide": lambda: nn.Conv1d(4, 2, 5, padding=2),
    "strided": lambda: nn.Conv1d(2, 3, 4, stride=2, padding=1),
    "valid, grouped": lambda: nn.Conv1d(4, 6, 3, groups=2),
    "dilated": lambda: nn.Conv1d(2, 2, 3, padding=2, dilation=2),
    "reflect": lambda: nn.Conv1d(2, 2, 3, padding=1, padding_mode="reflect"),
    "depthwise": lambda: nn.Conv1d(3, 3, 3, padding=1, groups=3),
    "2-D, of two strides": lambda: nn.Conv2d(1, 2, 3, stride=(1, 2), padding=1),
    "3-D": lambda: nn.Conv3d(1, 1, (3, 1, 1), padding=(1, 0, 0)),
}
SIZES = {1: (131,), 2: (43, 85), 3: (43, 42, 44)}


def of(conv):
    torch.manual_seed(1)
    size = SIZES[len(conv.kernel_size)]
    geometry = Geometry.of(conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    return Convolution(torch.randn_like(conv.weight, dtype=torch.float64), geometry, size)


def gains(conv, x):
    """How much longer A makes what each group reads."""
    y, groups = conv.forward(x), conv.geometry.groups
    norms = [image.unflatten(1, (groups, -1)).flatten(2).norm(dim=2) for image in (y, x)]
    return (norms[0] / norms[1])[0]


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "reflect"])  # whose largest is at its border
def test_a_start_is_near_the_largest_of_each_group(name, monkeypatch):
    conv = of(LAYERS[name]())
    monkeypatch.setattr(starts, "NOISE", 0.0)
    found = gains(conv, starts.start(conv))
    monkeypatch.setattr(starts, "LARGE", 10**9)
    wanted = torch.stack([extremes.largest_pairs(group, 1, 1e-8)[0][0] for group in extremes.each_group(conv)])
    assert (found <= wanted * (1 + 1e-12)).all() and (found >= 0.97 * wanted).all()


@pytest.mark.parametrize("name", [name for name in LAYERS if "D" not in name])
def test_the_norm_is_that_of_the_dense_matrix(name, monkeypatch):
    conv = of(LAYERS[name]())
    asked = []
    start = starts.start
    monkeypatch.setattr(extremes, "start", lambda conv: asked.append(start(conv)) or asked[-1])
    norm = extremes.largest_pairs(conv, 1, 1e-13)[0].item()
    assert asked[0] is not None
    assert norm == pytest.approx(torch.linalg.matrix_norm(conv.to_dense(), ord=2).item(), rel=1e-11)


def test_what_the_small_image_overlooks_is_found():
    """The blur is the weaker of two channels on the small image, and vanishes there; on the large one it leads."""
    weight = torch.zeros(2, 2, 13, dtype=torch.float64)
    weight[0, 0, 6] = 1.0
    weight[1, 1] = 1.1 / 13
    norms = [torch.linalg.matrix_norm(dense(layer(weight), (n,)), ord=2) for n in (starts.SIDE, 600)]
    assert norms[0] == 1 < 1.09 < norms[1]
    for dtype, tol in ((torch.float64, 1e-12), (torch.float32, 1e-3)):
        found = functional.conv_spectral_norm(weight.to(dtype), (600,), padding=6, tol=tol)
        assert found.item() == pytest.approx(norms[1].item(), rel=100 * tol if tol < 1e-9 else tol)


def layer(weight):
    conv = nn.Conv1d(2, 2, 13, padding=6, dtype=torch.float64)
    conv.weight.data = weight
    return conv


def test_small_images_start_at_noise():
    conv = of(nn.Conv1d(3, 4, 3, padding=1))
    assert starts.start(conv.on((starts.LARGE * starts.SIDE - 1,))) is None
    assert starts.start(conv.on((starts.LARGE * starts.SIDE,))) is not None
