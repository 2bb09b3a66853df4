"""The ports in `benchmarks/rivals/layers.py`: their inverse and log-determinant against the dense Jacobian."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks.rivals.layers import CayleyConv, PeriodicConv, Woodbury
from benchmarks.rivals.recipe import multiply, recipe

PORTS: dict = {
    "periodic": lambda c, size: PeriodicConv(c),
    "woodbury": lambda c, size: Woodbury(c, size, rank=2),
    "cayley": lambda c, size: CayleyConv(c, size),
}


@pytest.mark.parametrize("size", [(4, 6), (5, 5)])
@pytest.mark.parametrize("name", PORTS)
def test_inverse_and_log_det(name, size):
    layer = PORTS[name](3, size).double().eval()
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    z, log_det = layer(x)
    assert torch.allclose(layer.inverse(z), x, atol=1e-10)
    jacobian = torch.func.jacfwd(lambda image: layer(image[None])[0][0])(x[0]).reshape(x[0].numel(), -1)
    assert torch.allclose(torch.linalg.slogdet(jacobian)[1], log_det, atol=1e-10)


def test_the_recipe():
    weight = torch.randn(3, 3, 3, 3, dtype=torch.float64)
    x = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    y = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 1, 1), mode="circular"), weight)
    assert torch.allclose(multiply(recipe(weight, (6, 8)), y), x, atol=1e-8)


def test_cayley_is_that_of_orthogonium():
    package = pytest.importorskip("orthogonium.legacy.cayley_ortho_conv")
    theirs = package.Cayley(3, 3, 3, bias=False)
    ours = CayleyConv(3, (6, 6))
    ours.load_state_dict({"weight": theirs.weight, "alpha": theirs.alpha})
    x = torch.randn(2, 3, 6, 6)
    assert torch.allclose(ours(x)[0], theirs(x), atol=1e-5)
