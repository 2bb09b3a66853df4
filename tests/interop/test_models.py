"""A small model of each flow library, our layer in place of its own."""

from typing import Any

import pytest
import torch
from interop_layers import both_borders, images, layer, new_layer, train
from torch.autograd.functional import jacobian

from invconv import InputError, InvertibleConv2d, NotSquareError
from invconv.interop.distributions import ConvTransform


def subnet(inputs, outputs):
    net: Any = torch.nn.Sequential(
        torch.nn.Conv2d(inputs, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, outputs, 3, padding=1)
    )
    torch.nn.init.zeros_(net[2].weight)
    return net


@both_borders
def test_normflows(padding_mode):
    nf = pytest.importorskip("normflows")
    from normflows.flows.flow_test import FlowTest

    from invconv.interop.normflows import InvertibleConv

    # Its own check.
    FlowTest().checkForwardInverse(
        InvertibleConv(new_layer(padding_mode)), torch.randn(5, 4, 6, 6), atol=1e-4, rtol=1e-4
    )

    blocks = [nf.flows.GlowBlock(4, 16) for _ in range(2)]
    for block in blocks:
        assert isinstance(block.flows[1], nf.flows.Invertible1x1Conv)
        block.flows[1] = InvertibleConv(new_layer(padding_mode))
    model, x = nf.NormalizingFlow(nf.distributions.DiagGaussian((4, 8, 8), trainable=False), blocks), images(32)
    model.forward_kld(x)  # its ActNorm starts here
    train(model.parameters(), lambda: model.forward_kld(x), lambda: (model(model.inverse(x)) - x).abs().max())
    with torch.no_grad():
        sample, log_prob = model.sample(6)
        torch.testing.assert_close(model.log_prob(sample), log_prob, rtol=1e-4, atol=1e-2)


@both_borders
def test_nflows(padding_mode):
    pytest.importorskip("nflows")
    from nflows import distributions, flows, transforms
    from nflows.nn import nets

    from invconv.interop.nflows import InvertibleConv

    # The check of its own tests, assert_forward_inverse_are_consistent.
    transform, x = InvertibleConv(new_layer(padding_mode)), torch.randn(5, 4, 6, 6)
    identity = transforms.CompositeTransform([transforms.InverseTransform(transform), transform])
    outputs, log_det = identity(x)
    torch.testing.assert_close(outputs, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(log_det, torch.zeros(5), rtol=0, atol=1e-4)

    steps = [
        step
        for _ in range(2)
        for step in (
            transforms.ActNorm(4),
            InvertibleConv(new_layer(padding_mode)),  # where Glow has OneByOneConvolution(4)
            transforms.AffineCouplingTransform([0, 0, 1, 1], lambda i, o: nets.ConvResidualNet(i, o, 16)),
        )
    ]
    model = flows.Flow(transforms.CompositeTransform(steps), distributions.StandardNormal([4, 8, 8]))
    x = images(32)

    def back():
        model.eval()  # where nflows' own cache is stale
        again = model._transform.inverse(model.transform_to_noise(x))[0]
        model.train()
        return (again - x).abs().max()

    train(model.parameters(), lambda: -model.log_prob(x).mean(), back)
    with torch.no_grad():
        sample, log_prob = model.eval().sample_and_log_prob(6)
        torch.testing.assert_close(model.log_prob(sample), log_prob, rtol=1e-4, atol=1e-2)


@both_borders
def test_freia(padding_mode):
    pytest.importorskip("FrEIA")
    import FrEIA.framework as ff
    import FrEIA.modules as fm

    from invconv.interop.freia import InvertibleConv

    # Its own check: the Jacobian by differences, both ways, in a graph.
    start = ff.InputNode(4, 4, 4)
    conv = ff.Node(start, InvertibleConv, {"conv": new_layer(padding_mode)})
    graph = ff.GraphINN([start, conv, ff.OutputNode(conv)])
    x = torch.randn(2, 4, 4, 4)
    for rev in (False, True):
        _, log_det = graph(x, rev=rev)
        torch.testing.assert_close(graph.log_jacobian_numerical(x, rev=rev, h=1e-2), log_det, rtol=0.01, atol=0.01)

    inn = ff.SequenceINN(1, 16, 16)
    inn.append(fm.HaarDownsampling)
    for _ in range(2):
        inn.append(InvertibleConv, conv=new_layer(padding_mode))  # where Fixed1x1Conv stands
        inn.append(fm.GLOWCouplingBlock, subnet_constructor=subnet)
    x = images(32, 16, 1)

    def loss():
        z, log_det = inn(x)
        return (z.square().flatten(1).sum(1) / 2 - log_det).mean()

    train(inn.parameters(), loss, lambda: (inn(inn(x, jac=False)[0], rev=True, jac=False)[0] - x).abs().max())


def test_freia_takes_a_rectangular_layer_without_its_log_det():
    ff = pytest.importorskip("FrEIA.framework")
    from invconv.interop.freia import InvertibleConv

    start = ff.InputNode(3, 7, 8)
    conv = ff.Node(start, InvertibleConv, {"conv": InvertibleConv2d(3, 16, 3, stride=2, padding=1)})
    graph, x = ff.GraphINN([start, conv, ff.OutputNode(conv)]), torch.randn(2, 3, 7, 8)
    z, _ = graph(x, jac=False)
    assert graph.global_out_shapes == [(16, 4, 4)] and z.shape == (2, 16, 4, 4)
    torch.testing.assert_close(graph(z, rev=True, jac=False)[0], x, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError) as caught:
        graph(x)
    assert isinstance(caught.value.__cause__, NotSquareError)
    wrong: list[list[tuple[int, ...]]] = [[(4, 7, 8)], [(3, 7)], [(3, 7, 8), (3, 7, 8)]]
    for dims_in in wrong:
        with pytest.raises(InputError, match="takes one input"):
            InvertibleConv(dims_in, conv=InvertibleConv2d(3, 3, 1))


@both_borders
def test_zuko(padding_mode):
    zuko = pytest.importorskip("zuko")
    from invconv.interop.zuko import LazyConv

    # The check of its own tests, test_multivariate_transforms.
    t, x = LazyConv(new_layer(padding_mode))(), torch.randn(4, 4, 4)
    y, ladj = t.call_and_ladj(x)
    torch.testing.assert_close(t.inv(y), x, rtol=1e-4, atol=1e-4)
    for transform, at, expected in [(t, x, ladj), (t.inv, y, -ladj)]:
        dense = jacobian(transform, at).flatten(3).flatten(0, 2)
        torch.testing.assert_close(torch.linalg.slogdet(dense).logabsdet, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(transform.log_abs_det_jacobian(at, transform(at)), expected)

    flat = zuko.lazy.UnconditionalTransform(torch.distributions.ReshapeTransform, (4, 8, 8), (256,))
    coupling = zuko.flows.GeneralCouplingTransform(256, hidden_features=(32,), mask=torch.arange(256) % 2 == 0)
    base = zuko.lazy.UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(256), torch.ones(256), buffer=True
    )
    model = zuko.lazy.Flow([LazyConv(new_layer(padding_mode)), LazyConv(new_layer(padding_mode)), flat, coupling], base)
    x = images(32)

    def back():
        transform = model().transform
        return (transform.inv(transform(x)) - x).abs().max()

    train(model.parameters(), lambda: -model().log_prob(x).mean(), back)
    with torch.no_grad():
        sample, log_prob = model().rsample_and_log_prob((2, 3))
        assert sample.shape == (2, 3, 4, 8, 8) and log_prob.shape == (2, 3)
        torch.testing.assert_close(model().log_prob(sample), log_prob, rtol=1e-4, atol=1e-2)


@both_borders
def test_torch_distributions(padding_mode):
    from torch.distributions import Independent, Normal, TransformedDistribution

    convs: Any = torch.nn.ModuleList(new_layer(padding_mode) for _ in range(2))
    base, x = Independent(Normal(torch.zeros(4, 8, 8), torch.ones(())), 3, validate_args=True), images(32)
    transforms = [ConvTransform(conv).inv for conv in convs]
    model = TransformedDistribution(base, transforms, validate_args=True)
    assert model.event_shape == (4, 8, 8) and model.batch_shape == ()

    def back():
        z = x
        for transform in reversed(transforms):
            z = transform.inv(z)
        for transform in transforms:
            z = transform(z)
        return (z - x).abs().max()

    train(convs.parameters(), lambda: -model.log_prob(x).mean(), back)
    # By hand: the density at latents is that of the base less what the layers stretch.
    with torch.no_grad():
        z = convs[0](convs[1](x))
        by_hand = base.log_prob(z) + sum(conv.log_abs_det((8, 8)) for conv in convs)
        torch.testing.assert_close(model.log_prob(x), by_hand)
        assert model.sample((2, 3)).shape == (2, 3, 4, 8, 8)


def test_a_cached_transform_is_not_stale():
    conv, x = layer("zeros")
    transform = ConvTransform(conv).with_cache()
    before = transform(x)
    with torch.no_grad():
        conv.weight.mul_(2)
        conv.bias.mul_(2)
    torch.testing.assert_close(transform(x), 2 * before)
    assert transform.inv.inv is transform and transform.inv.with_cache() is transform.inv


def test_a_transform_knows_its_shapes():
    transform = ConvTransform(InvertibleConv2d(2, 8, 2, stride=2))
    assert transform.domain.event_dim == transform.codomain.event_dim == 3 and transform.bijective
    assert transform.forward_shape(torch.Size((5, 2, 4, 6))) == (5, 8, 2, 3)
    assert transform.inverse_shape(torch.Size((8, 2, 3))) == (2, 4, 6)
    x = torch.randn(2, 3, 2, 4, 6)
    z = transform(x)
    assert z.shape == (2, 3, 8, 2, 3) and transform.log_abs_det_jacobian(x, z).shape == (2, 3)
    assert transform.log_abs_det_jacobian(x[0, 0], z[0, 0]).shape == ()
    torch.testing.assert_close(transform.inv(z), x, rtol=1e-4, atol=1e-4)
