"""The layers as linear operators of deepinv and SciPy, against their matrices and the solvers of both."""

from typing import Any

import numpy as np
import pytest
import torch
from interop_layers import PHYSICS, agree, both_borders, explicit, images, layer, new_layer, train
from torch.nn.utils import prune

from invconv import InputError, InvertibleConv2d, functional
from invconv.interop.scipy import ConvLinearOperator


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


@both_borders
def test_deepinv_takes_the_proximal_operator(padding_mode):
    deepinv = pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    conv = new_layer(padding_mode).double()
    conv.damping = 0.7  # of no account
    physics, z = ConvPhysics(conv), images(16).double()
    y = torch.randn_like(physics(z))
    gamma = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    x = physics.prox_l2(z, y, gamma)
    iterated = deepinv.physics.LinearPhysics.prox_l2(physics, z, y, 2.5, max_iter=500, tol=1e-12)
    torch.testing.assert_close(x, iterated, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(deepinv.optim.data_fidelity.L2().prox(z, y, physics, gamma=2.5), x)
    (slope,) = torch.autograd.grad(x.sum(), gamma)
    near = [physics.prox_l2(z, y, value).sum() for value in (2.5 + 1e-4, 2.5 - 1e-4)]
    torch.testing.assert_close(slope, (near[0] - near[1]) / 2e-4, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(physics.A(physics.A_dagger(physics.A(z))), physics.A(z))
    for wrong in (0.0, -1.0, torch.tensor(-1.0), torch.ones(2)):
        with pytest.raises(InputError, match="gamma must be one positive number"):
            physics.prox_l2(z, y, wrong)


def test_deepinv_names_bad_input():
    pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    physics = ConvPhysics(InvertibleConv2d(2, 2, 3, padding=1), (2, 8, 8))
    for call in (physics.A, physics.A_adjoint, physics.A_dagger):
        with pytest.raises(InputError, match=r"expected \(batch, 2, 8, 8\)"):
            call(torch.randn(1, 2, 9, 8))
    plain: Any = torch.nn.Conv2d(2, 2, 3)
    with pytest.raises(InputError, match="got Conv2d"):
        ConvPhysics(plain)


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
    counted: list[float] = []
    solution, failed = linalg.gmres(A, b, M=A.inverse, rtol=1e-10, callback=counted.append, callback_type="pr_norm")
    assert failed == 0 and len(counted) <= 2
    np.testing.assert_allclose(solution, x, rtol=1e-6, atol=1e-8)
    largest = linalg.svds(A, k=3, return_singular_vectors=False)
    np.testing.assert_allclose(np.sort(largest)[::-1], conv.singular_values((8, 8))[:3].detach().numpy())


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


def test_a_gradient_goes_to_the_weight_that_a_pruned_layer_has_now():
    pytest.importorskip("deepinv")
    from invconv.interop.deepinv import ConvPhysics

    conv = prune.random_unstructured(InvertibleConv2d(2, 4, 3, padding=1, dtype=torch.float64), "weight", 0.2)
    physics = ConvPhysics(conv)
    y = torch.randn(1, 4, 5, 5, dtype=torch.float64)
    for verb in (physics.A_dagger, physics.A_adjoint, lambda y: physics.A(y[:, :2])):
        for _ in range(2):  # a second backward would fail on a weight of the step before
            conv.weight_orig.grad = None
            verb(y).square().sum().backward()
            assert conv.weight_orig.grad.norm() > 0
            assert torch.equal(conv.weight_orig.grad * conv.weight_mask, conv.weight_orig.grad)
