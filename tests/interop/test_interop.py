"""The plugs with the real libraries: both directions, log-determinants, their own checks, a small model of each."""

import copy
import importlib
import sys

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

from invconv import (
    InputError,
    InvconvError,
    InvertibleConv1d,
    InvertibleConv2d,
    InvertibleConv3d,
    MissingPackageError,
    NotSquareError,
    functional,
)
from invconv.interop.distributions import ConvTransform
from invconv.interop.scipy import ConvLinearOperator
from invconv.parametrizations import bounded

# How each library goes from data to latent and back, both with a log-determinant. A new plug is tested by a line.


def _normflows(conv, size):
    pytest.importorskip("normflows")
    from invconv.interop.normflows import InvertibleConv

    flow = InvertibleConv(conv)
    return flow.inverse, flow.forward


def _nflows(conv, size):
    pytest.importorskip("nflows")
    from invconv.interop.nflows import InvertibleConv

    transform = InvertibleConv(conv)
    return transform.forward, transform.inverse


def _freia(conv, size):
    pytest.importorskip("FrEIA")
    from invconv.interop.freia import InvertibleConv

    module = InvertibleConv([(conv.in_channels, *size)], conv=conv)

    def run(images, rev):
        (result,), log_det = module((images,), rev=rev)
        return result, log_det

    return lambda x: run(x, False), lambda z: run(z, True)


def _distributions(conv, size):
    transform = ConvTransform(conv)

    def run(transform, images):
        result = transform(images)
        return result, transform.log_abs_det_jacobian(images, result)

    return lambda x: run(transform, x), lambda z: run(transform.inv, z)


def _zuko(conv, size):
    pytest.importorskip("zuko")
    from invconv.interop.zuko import LazyConv

    lazy = LazyConv(conv)
    return lambda x: lazy().call_and_ladj(x), lambda z: lazy().inv.call_and_ladj(z)


PLUGS = {"normflows": _normflows, "nflows": _nflows, "freia": _freia, "distributions": _distributions, "zuko": _zuko}

# name: (layer, spatial size of x).
LAYERS = {
    "circular": (lambda: InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular"), (5, 4)),
    "zeros": (lambda: InvertibleConv2d(3, 3, 3, padding=1), (5, 4)),
    "reflect": (lambda: InvertibleConv2d(2, 2, 3, padding=1, padding_mode="reflect"), (4, 5)),
    "1 x 1": (lambda: InvertibleConv2d(4, 4, 1), (3, 2)),
    "groups": (lambda: InvertibleConv2d(4, 4, 3, padding=1, groups=2, bias=False), (4, 3)),
    "stride": (lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1, padding_mode="circular"), (4, 6)),
    "bounded": (lambda: bounded(InvertibleConv2d(3, 3, 3, padding=1)), (4, 4)),
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
    """The matrix of PyTorch's own convolution."""
    plain = {1: torch.nn.Conv1d, 2: torch.nn.Conv2d, 3: torch.nn.Conv3d}[conv.geometry.dims](
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
    )
    weight = conv.weight.detach() if weight is None else weight
    bias = torch.zeros_like(weight[:, 0].flatten(1)[:, 0]) if conv.bias is None else conv.bias.detach()

    def call(images):
        return torch.func.functional_call(plain, {"weight": weight, "bias": bias}, images)

    units = torch.eye(x[0].numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    return call, (call(units) - call(torch.zeros_like(units))).flatten(1).T


def agree(found, expected, growth):
    """Up to the rounding errors of a map that lets them grow so many times."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    error = (found - expected).norm() / expected.norm()
    assert error < 100 * torch.finfo(expected.dtype).eps * growth


@pytest.fixture(params=PLUGS)
def plug(request):
    return PLUGS[request.param]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_both_directions_against_the_dense_matrix(plug, name, dtype):
    conv, x = layer(name, dtype)
    call, matrix = explicit(conv, x)
    condition, log_det = torch.linalg.cond(matrix), torch.linalg.slogdet(matrix)[1]
    encode, decode = plug(conv, x.shape[2:])
    z, forth = encode(x)
    agree(z, call(x), 1)
    agree(forth, log_det.expand(3), condition)
    x_hat, back = decode(z)
    agree(x_hat, x, condition)
    agree(back, -forth, condition)


@pytest.mark.parametrize("name", LAYERS)
def test_each_direction_gives_the_log_det_of_its_own_jacobian(plug, name):
    conv, x = layer(name)
    for go in plug(conv, x.shape[2:]):
        result, log_det = go(x)
        dense = jacobian(lambda v, go=go: go(v[None])[0].flatten(), x[1]).flatten(1)
        torch.testing.assert_close(torch.linalg.slogdet(dense)[1], log_det[1], rtol=1e-8, atol=1e-8)
        x = result


@pytest.mark.parametrize("name", ["circular", "zeros"])
def test_gradients_are_those_of_the_dense_matrix(plug, name):
    conv, x = layer(name)
    weight = conv.weight.detach().clone().requires_grad_()
    call, matrix = explicit(conv, x, weight)
    encode, decode = plug(conv, x.shape[2:])
    z, log_det = encode(x)
    objective = z.square().sum() - (torch.arange(3) * log_det).sum()
    expected = call(x).square().sum() - 3 * torch.linalg.slogdet(matrix)[1]
    torch.testing.assert_close(
        *(torch.autograd.grad(o, w)[0] for o, w in [(objective, conv.weight), (expected, weight)])
    )
    y = torch.randn_like(z)
    found = decode(y)[0].square().sum()
    x_hat = torch.linalg.solve(explicit(conv, x, weight)[1], (y - conv.bias.detach().view(-1, 1, 1)).flatten(1).T)
    expected = x_hat.square().sum()
    torch.testing.assert_close(*(torch.autograd.grad(o, w)[0] for o, w in [(found, conv.weight), (expected, weight)]))


@pytest.mark.parametrize("training", [True, False])
def test_an_optimizer_step_leaves_nothing_stale(plug, training):
    conv, x = layer("zeros")
    conv.train(training)
    encode, decode = plug(conv, x.shape[2:])
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        z, log_det = encode(x)
        (decode(z + 1)[0].square().sum() - log_det.sum()).backward()
        optimizer.step()
        fresh, fresh_back = plug(copy.deepcopy(conv), x.shape[2:])
        assert all(torch.equal(a, b) for a, b in zip(encode(x), fresh(x), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(decode(z), fresh_back(z), strict=True))
        assert not torch.equal(encode(x)[1], log_det)


def test_log_dets_are_one_for_each_image(plug):
    conv, x = layer("zeros")
    encode, _ = plug(conv, x.shape[2:])
    _, log_det = encode(x)
    expected = log_det.detach() + torch.arange(3)
    log_det += torch.arange(3)  # as their own layers may
    assert torch.equal(log_det, expected)
    z, log_det = encode(x[:0])
    assert z.shape == x[:0].shape and log_det.shape == (0,)


def test_state_dicts_carry_over(plug):
    conv, x = layer("zeros")
    other = LAYERS["zeros"][0]().double()
    other.load_state_dict(conv.state_dict())
    size = x.shape[2:]
    assert all(torch.equal(a, b) for a, b in zip(plug(conv, size)[0](x), plug(other, size)[0](x), strict=True))


def test_bad_input_is_named(plug):
    conv, x = layer("zeros")
    encode, decode = plug(conv, x.shape[2:])
    for go in (encode, decode):
        with pytest.raises(InputError, match=r"batch, 3, 2 sizes"):
            go(torch.randn(2, 4, 5, 4, dtype=torch.float64))
        with pytest.raises(InputError, match=r"batch, 3, 2 sizes"):
            go(torch.randn(5, 4, dtype=torch.float64))
    with pytest.raises(InputError, match=r"got Conv2d.*from_conv"):
        plug(torch.nn.Conv2d(3, 3, 1), (5, 4))
    tall = InvertibleConv2d(3, 6, 3, padding=1).double()
    with pytest.raises(NotSquareError, match="no determinant"):
        plug(tall, (5, 4))[0](x)


# A small model of each library, our layer in place of its own.


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


def subnet(inputs, outputs):
    net = torch.nn.Sequential(
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
    for dims_in in [[(4, 7, 8)], [(3, 7)], [(3, 7, 8), (3, 7, 8)]]:
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

    convs = torch.nn.ModuleList(new_layer(padding_mode) for _ in range(2))
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


# deepinv

PHYSICS = {
    "square circular": (lambda: InvertibleConv2d(3, 3, 3, padding=1, padding_mode="circular"), (8, 7)),
    "square zeros": (lambda: InvertibleConv2d(3, 3, 3, padding=1), (8, 7)),
    "tall": (lambda: InvertibleConv2d(2, 4, 3, padding=1, padding_mode="replicate"), (6, 6)),
    "wide": (lambda: InvertibleConv2d(4, 2, 3, padding=1), (6, 6)),
    "blur valid": (lambda: InvertibleConv2d(2, 2, 3, groups=2), (8, 8)),
    "odd size, stride": (lambda: InvertibleConv2d(2, 8, 3, stride=2, padding=1), (7, 6)),
    "bounded": (lambda: bounded(InvertibleConv2d(3, 3, 3, padding=1)), (6, 6)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PHYSICS)
def test_deepinv_operators(name, dtype):
    deepinv = pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    build, size = PHYSICS[name]
    conv = build().to(dtype)
    x = torch.randn(2, conv.in_channels, *size, dtype=dtype)
    if conv.bias is not None:
        torch.nn.init.normal_(conv.bias)  # which is no part of the linear map
    physics = ConvPhysics(conv, (conv.in_channels, *size))
    call, matrix = explicit(conv, x)
    condition = torch.linalg.cond(matrix)
    with torch.no_grad():
        y = physics(x)
        agree(y, call(x) - call(torch.zeros_like(x)), 1)
        agree(
            physics.A_dagger(torch.ones_like(y)).flatten(1).T,
            torch.linalg.pinv(matrix) @ torch.ones_like(y).flatten(1).T,
            condition**2,
        )
        # Its own checks: the adjoint by inner products and by autograd, and the pseudo-inverse on the range of A'.
        assert physics.adjointness_test(x, num_samples=3) < 1000 * torch.finfo(dtype).eps
    by_autograd = deepinv.physics.adjoint_function(physics.A, x.shape, dtype=dtype)
    agree(physics.A_adjoint(y).detach(), by_autograd(y).detach(), 10)
    with torch.no_grad():
        r = physics.A_adjoint(physics.A(x))
        agree(physics.A_dagger(physics.A(r), solver="lsqr", tol=1e-4, max_iter=50, verbose=True), r, condition**2)
        # Its own pseudo-inverse of the same map.
        iterated = deepinv.physics.LinearPhysics.A_dagger(physics, y, solver="lsqr", max_iter=500, tol=1e-6)
        torch.testing.assert_close(physics.A_dagger(y), iterated, rtol=1e-3, atol=1e-3)


@both_borders
def test_deepinv_trains(padding_mode):
    deepinv = pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    physics = ConvPhysics(new_layer(padding_mode), noise_model=deepinv.physics.GaussianNoise(0.1))
    backbone = deepinv.models.DnCNN(4, 4, depth=3, nf=8, pretrained=None)
    model, x = deepinv.models.ArtifactRemoval(backbone, mode="pinv"), images(16)

    def loss():
        return (model(physics(x), physics) - x).square().mean()

    parameters = [*model.parameters(), *physics.parameters()]
    assert len([*physics.conv.parameters()]) == 3 and all(
        any(p is q for q in parameters) for p in physics.conv.parameters()
    )
    train(parameters, loss, lambda: (physics.A_dagger(physics.A(x)) - x).abs().max())
    twin = physics.clone()
    torch.testing.assert_close(twin.A_dagger(x), physics.A_dagger(x))


def test_deepinv_gradients():
    pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    conv, x = layer("zeros")
    physics = ConvPhysics(conv)
    weight = conv.weight.detach().clone().requires_grad_()
    _, matrix = explicit(conv, x, weight)
    flat = x.flatten(1).T
    for found, expected in [
        (physics.A(x), matrix @ flat),
        (physics.A_adjoint(x), matrix.T @ flat),
        (physics.A_dagger(x), torch.linalg.solve(matrix, flat)),
    ]:
        pairs = [(found, conv.weight), (expected, weight)]
        torch.testing.assert_close(*(torch.autograd.grad(o.square().sum(), w, retain_graph=True)[0] for o, w in pairs))


def test_deepinv_names_bad_input():
    pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    physics = ConvPhysics(InvertibleConv2d(2, 2, 3, padding=1), (2, 8, 8))
    for call in (physics.A, physics.A_adjoint, physics.A_dagger):
        with pytest.raises(InputError, match=r"expected \(batch, 2, 8, 8\)"):
            call(torch.randn(1, 2, 9, 8))
    with pytest.raises(InputError, match="got Conv2d"):
        ConvPhysics(torch.nn.Conv2d(2, 2, 3))


# SciPy


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PHYSICS)
def test_scipy_operators(name, dtype):
    build, size = PHYSICS[name]
    conv = build().to(dtype)
    operator = conv.operator(size)
    matrix = operator.to_dense().numpy()
    A, inverse = ConvLinearOperator(operator), np.linalg.pinv(matrix.astype(float))
    assert (
        A.shape == matrix.shape and A.dtype == A.inverse.dtype == matrix.dtype and A.inverse.shape == matrix.shape[::-1]
    )
    condition = np.linalg.cond(matrix)

    def close(found, expected, growth=1.0):
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) <= 100 * np.finfo(matrix.dtype).eps * growth * np.linalg.norm(expected)

    rng = np.random.default_rng(0)
    rows, columns = matrix.shape
    for shape in [(), (1,), (3,), (0,)]:
        x, y = rng.normal(size=(columns, *shape)), rng.normal(size=(rows, *shape))
        close(A @ x, matrix @ x)
        close(A.H @ y, matrix.T @ y)
        close(A.inverse @ y, inverse @ y, condition)
        close(A.inverse.H @ x, inverse.T @ x, condition)
    assert (A @ np.ones((columns, 3))).dtype == matrix.dtype
    close(A.matvec(np.arange(columns)), matrix @ np.arange(columns))
    close(A @ (x + 1j * x), matrix @ (x + 1j * x))
    close((A.inverse @ A @ A.inverse) @ np.ones(rows), inverse @ np.ones(rows), condition**2)
    read_only = np.broadcast_to(1.0, columns)
    close(A @ read_only, matrix.sum(1))


def test_scipy_solvers_agree_with_the_inverse():
    from scipy.sparse import linalg

    conv, _ = layer("zeros")
    A = ConvLinearOperator(conv.operator((8, 8)))
    b = np.random.default_rng(0).normal(size=A.shape[0])
    x = A.inverse @ b
    np.testing.assert_allclose(linalg.lsqr(A, b, atol=1e-12, btol=1e-12)[0], x, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(linalg.lsmr(A, b, atol=1e-12, btol=1e-12)[0], x, rtol=1e-6, atol=1e-8)
    counted = []
    solution, failed = linalg.gmres(A, b, M=A.inverse, rtol=1e-10, callback=counted.append, callback_type="pr_norm")
    assert failed == 0 and len(counted) <= 2
    np.testing.assert_allclose(solution, x, rtol=1e-6, atol=1e-8)
    largest = linalg.svds(A, k=3, return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(largest)[::-1], conv.singular_values((8, 8))[:3].numpy())


def test_scipy_operator_is_of_one_weight():
    conv, x = layer("zeros")
    A = ConvLinearOperator(conv.operator(x.shape))
    before = A @ x[0].flatten().numpy()
    with torch.no_grad():
        conv.weight.mul_(2)
    np.testing.assert_array_equal(A @ x[0].flatten().numpy(), before)
    np.testing.assert_allclose(ConvLinearOperator(conv.operator(x.shape)) @ x[0].flatten().numpy(), 2 * before)
    bare = ConvLinearOperator(functional.conv_operator(conv.weight, x.shape, padding=1))
    np.testing.assert_allclose(bare @ x[0].flatten().numpy(), 2 * before)
    with pytest.raises(InputError, match="got InvertibleConv2d"):
        ConvLinearOperator(conv)


# Without the libraries


@pytest.mark.parametrize(
    ("module", "package"),
    [("normflows", "normflows"), ("nflows", "nflows"), ("freia", "FrEIA"), ("zuko", "zuko"), ("deepinv", "deepinv")],
)
def test_a_missing_package_names_its_extra(module, package, monkeypatch):
    for name in [*sys.modules]:
        if name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"invconv.interop.{module}", raising=False)
    with pytest.raises(MissingPackageError, match=rf'needs {package}: pip install "invconv\[{module}\]"') as caught:
        importlib.import_module(f"invconv.interop.{module}")
    assert isinstance(caught.value, InvconvError) and isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ImportError)
