"""The plugs with the real libraries: both directions, log-determinants, gradients, bad input."""

import copy
import importlib
import sys

import pytest
import torch
from interop_layers import LAYERS, agree, explicit, layer
from torch.autograd.functional import jacobian

from invconv import InputError, InvconvError, InvertibleConv2d, MissingPackageError, NotSquareError
from invconv.interop.distributions import ConvTransform

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
