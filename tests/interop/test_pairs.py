"""A pair of masked convolutions in each flow library: two plugs one after the other are our own PairFlow."""

import pytest
import torch
from interop_layers import images, train

from invconv.flows import PairFlow


def normflows(pair):
    nf = pytest.importorskip("normflows")
    from invconv.interop.normflows import InvertibleConv

    # From latent to data, so the last of the pair comes first.
    flow = nf.flows.Composite([InvertibleConv(pair.second), InvertibleConv(pair.first)])
    return flow.inverse, flow.forward


def nflows(pair):
    transforms = pytest.importorskip("nflows.transforms")
    from invconv.interop.nflows import InvertibleConv

    transform = transforms.CompositeTransform([InvertibleConv(pair.first), InvertibleConv(pair.second)])
    return transform.forward, transform.inverse


def freia(pair):
    framework = pytest.importorskip("FrEIA.framework")
    from invconv.interop.freia import InvertibleConv

    inn = framework.SequenceINN(4, 8, 8)
    for conv in pair.convolutions:
        inn.append(InvertibleConv, conv=conv)
    return inn, lambda z: inn(z, rev=True)


def zuko(pair):
    transforms = pytest.importorskip("zuko.transforms")
    from invconv.interop.zuko import LazyConv

    def both_ways(x):
        return transforms.ComposedTransform(*(LazyConv(conv)() for conv in pair.convolutions)).call_and_ladj(x)

    def back(z):
        transform = transforms.ComposedTransform(*(LazyConv(conv)() for conv in pair.convolutions))
        return transform.inv.call_and_ladj(z)

    return both_ways, back


@pytest.mark.parametrize("library", [normflows, nflows, freia, zuko])
def test_two_plugs_are_a_pair(library):
    torch.manual_seed(0)
    pair, x = PairFlow(4, rho=0.8).double(), torch.randn(3, 4, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    there, back = library(pair)
    z, log_det = there(x)
    expected, volume = pair(x)
    torch.testing.assert_close(z, expected)
    torch.testing.assert_close(log_det, volume, check_dtype=False, rtol=1e-6, atol=0)  # normflows adds up in float32
    x_hat, inverse_volume = back(z)
    torch.testing.assert_close(x_hat, x)
    torch.testing.assert_close(inverse_volume, -volume, check_dtype=False, rtol=1e-6, atol=0)
    for mine, own in zip(
        torch.autograd.grad((z.square().sum() - log_det.sum()), tuple(pair.parameters())),
        torch.autograd.grad((expected.square().sum() - volume.sum()), tuple(pair.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(mine, own)


@pytest.mark.parametrize("library", [normflows, nflows, freia, zuko])
def test_it_learns(library):
    torch.manual_seed(0)
    pair, x = PairFlow(4), images(32)
    there, back = library(pair)

    def loss():
        z, log_det = there(x)
        return (0.5 * z.square().flatten(1).sum(1) - log_det).mean()

    train(pair.parameters(), loss, lambda: (back(there(x)[0])[0] - x).abs().max())
