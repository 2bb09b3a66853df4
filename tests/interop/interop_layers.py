"""Layers for the tests of the plugs, the matrices that they are compared with, and a short training."""

from functools import partial

import pytest
import torch
from oracle import dense, plain

from invconv import InvertibleConv1d, InvertibleConv2d, InvertibleConv3d
from invconv.parametrizations import bounded, causal

# name: (layer, spatial size of x).
LAYERS = {
    "circular": (lambda: InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular"), (5, 4)),
    "zeros": (lambda: InvertibleConv2d(3, 3, 3, padding=1), (5, 4)),
    "reflect": (lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"), (4, 5)),
    "1 x 1": (lambda: InvertibleConv2d(4, 4, 1), (3, 2)),
    "groups": (lambda: InvertibleConv2d(4, 4, 3, padding=1, groups=2, bias=False), (4, 3)),
    "stride": (lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular"), (4, 6)),
    "bounded": (lambda: bounded(InvertibleConv2d(3, 3, 3, padding=1)), (4, 4)),
    "masked": (lambda: causal(InvertibleConv2d(3, 3, 3, padding=1), "left-up", support="half"), (4, 4)),
    "1-D": (lambda: InvertibleConv1d(3, 3, 3, padding=1), (7,)),
    "3-D": (lambda: InvertibleConv3d(2, 2, 3, padding=1, padding_mode="circular"), (3, 4, 3)),
}


def layer(name, dtype=torch.float64):
    """A layer away from its start, and a batch of three images."""
    build, size = LAYERS[name]
    conv = build().to(dtype)
    with torch.no_grad():
        for parameter in conv.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return conv, torch.randn(3, conv.in_channels, *size, dtype=dtype)


def explicit(conv, x, weight=None):
    """PyTorch's own convolution, and its matrix."""
    weight = conv.weight.detach() if weight is None else weight
    bias = None if conv.bias is None else conv.bias.detach()
    return partial(plain, conv, weight=weight, bias=bias), dense(conv, x.shape[2:], weight)


def agree(found, expected, growth):
    """Up to the rounding errors of a map that lets them grow so many times."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    error = (found - expected).norm() / expected.norm()
    assert error < 100 * torch.finfo(expected.dtype).eps * growth


PHYSICS = {
    "square circular": (lambda: InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular"), (8, 7)),
    "square zeros": (lambda: InvertibleConv2d(3, 3, 3, padding=1), (8, 7)),
    "tall": (lambda: InvertibleConv2d(2, 4, 3, padding=1, padding_mode="replicate"), (6, 6)),
    "wide": (lambda: InvertibleConv2d(4, 2, 3, padding=1), (6, 6)),
    "blur valid": (lambda: InvertibleConv2d(2, 2, 3, groups=2), (8, 8)),
    "odd size, stride": (lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1), (7, 6)),
    "bounded": (lambda: bounded(InvertibleConv2d(3, 3, 3, padding=1)), (6, 6)),
}


def images(count, size=8, channels=4):
    """Smooth in space and alike across channels: what a k x k layer can learn."""
    coarse = torch.randn(count, 1, size // 2, size // 2)
    smooth = torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")
    return 2 * smooth + 0.3 * torch.randn(count, channels, size, size)


def train(parameters, loss, check, steps=30):
    """Adam: the loss falls, and `check`, run after every step, is the error of a round trip."""
    optimizer = torch.optim.Adam(parameters, lr=0.02)
    losses, errors = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(loss())
        losses[-1].backward()
        optimizer.step()
        with torch.no_grad():
            errors.append(check().item())
    assert max(errors) < 1e-4
    first, last = torch.stack(losses[:3]).mean(), torch.stack(losses[-3:]).mean()
    assert torch.isfinite(torch.stack(losses)).all() and last < first - 0.1 * first.abs()


def new_layer(padding_mode):
    """Bounded, because a free zero-padded kernel may pass through condition numbers of thousands on its way."""
    return bounded(InvertibleConv2d(4, 4, 3, padding=1, padding_mode=padding_mode))


both_borders = pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
