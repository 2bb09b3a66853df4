"""Everyday blurs that are no outer products: answered as by the explicit matrix, or refused before the minutes."""

from __future__ import annotations

import pytest
import torch
from oracle import EPS, dense, relative
from tables import taps

from invconv import Options, SingularMapError
from invconv.engine.choice import choose
from invconv.engine.mirror import mirror_root, why_not_mirrored
from invconv.engine.solvers.cosine import Cosine
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.strips import Strips
from invconv.options import DEFAULTS

DISK = [[float(u * u + v * v <= 5) for u in range(-2, 3)] for v in range(-2, 3)]
DIAGONAL = torch.eye(5).tolist()


def damped_inverse(matrix: torch.Tensor, damping: float) -> torch.Tensor:
    """(A'A + d^2)^-1 A', by the SVD."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return v.mT @ ((s / (s**2 + damping**2))[:, None] * u.mT)


def convolution(kernel: list, mode: str, size: tuple[int, ...], **arguments):
    return taps(kernel, padding_mode=mode, **arguments).operator(size).conv


@pytest.mark.parametrize("size", [(9, 12), (17, 3), (15, 16)], ids=str)
@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_the_cosine_transform_leaves_a_condition_number_of_two(size, damping):
    layer = taps(DISK, padding_mode="reflect")
    conv = layer.operator(size).conv
    root, transposed = mirror_root(conv, EPS, damping)
    identity = torch.eye(conv.shape[1], dtype=torch.float64).view(-1, *conv.x_shape)
    right = root(identity).flatten(1).mT
    assert relative(transposed(identity).flatten(1) - right, right) < 100 * EPS
    matrix = torch.cat([dense(layer, size), damping * torch.eye(conv.shape[1], dtype=torch.float64)]) @ right
    assert torch.linalg.cond(matrix) < 2 * (1 + 1e-6)


@pytest.mark.parametrize(
    ("kernel", "mode", "arguments"),
    [(DIAGONAL, "reflect", {}), (DISK, "zeros", {}), (DISK, "replicate", {}), (DISK, "reflect", {"padding": 1})],
)
def test_other_layers_have_no_cosine_transform(kernel, mode, arguments):
    conv = convolution(kernel, mode, (12, 12), **arguments)
    refused = Cosine.plan(conv, DEFAULTS)
    assert isinstance(refused, str) and refused == why_not_mirrored(conv, EPS)
    assert conv.geometry.padding_mode != "reflect" or choose(conv, DEFAULTS)[0].name != "cosine"


@pytest.mark.parametrize(("roundings", "mirrored"), [(1, True), (100, False)])
def test_a_kernel_is_symmetric_as_far_as_sums_are(roundings, mirrored):
    kernel = torch.tensor(DISK, dtype=torch.float64)
    kernel[0, 2] += roundings * EPS
    assert (why_not_mirrored(convolution(kernel.tolist(), "reflect", (12, 12)), EPS) == "") == mirrored


def test_a_singular_disk_has_none_unless_damped():
    kernel = torch.tensor(DISK)
    kernel[2, 2] -= kernel.sum()  # wipes out the mean
    conv = convolution(kernel.tolist(), "reflect", (10, 10))
    assert mirror_root(conv, EPS, 0.0) is None
    assert mirror_root(conv, EPS, 1e-3) is not None


@pytest.mark.parametrize("solver", [Krylov, Gram, Strips])
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("kernel", [DISK, DIAGONAL], ids=["disk", "diagonal"])
def test_damped_blurs_are_answered_as_by_the_matrix(kernel, mode, solver):
    layer = taps((torch.tensor(kernel) / 13).tolist(), padding_mode=mode)
    conv = layer.operator((14, 15)).conv
    options = Options(damping=1e-3)
    if isinstance(solver.plan(conv, options), str):
        assert (solver, mode) == (Gram, "reflect")
        return
    chosen = solver(conv, options)
    assert chosen.keeps(1e-9)
    y = torch.randn(1, *conv.y_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = (damped_inverse(dense(layer, (14, 15)), 1e-3) @ y.flatten()).view(1, *conv.x_shape)
    assert relative(chosen.pseudo_inverse(y) - expected, expected) < 1e-9


def test_motion_along_the_diagonal_is_refused_before_the_minutes():
    layer = taps((torch.eye(15) / 15).tolist())
    with pytest.raises(SingularMapError, match="use damping, solver='iterative' to insist"):
        layer.operator((128, 128)).solver  # noqa: B018
