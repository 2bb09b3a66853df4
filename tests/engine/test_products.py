"""What a network is allowed in its products and convolutions, TF32 or bfloat16, the engine does without."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from tables import SOLVERS, SolverRow

from invconv import InvertibleConv2d
from invconv.engine.convolution import Convolution
from invconv.engine.products import full_products
from invconv.engine.solvers.strips import Strips

CPU = torch.device("cpu")


@pytest.fixture(params=["high", "medium"])
def allowed(request: Any) -> Any:
    """The precision that products are allowed; as it was afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(request.param)
    yield request.param
    torch.set_float32_matmul_precision(before)


def _is_full() -> bool:
    backends: Any = torch.backends
    if hasattr(backends.cudnn, "conv"):
        return backends.mkldnn.matmul.fp32_precision not in ("tf32", "bf16")
    return torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("row", SOLVERS, ids=str)
def test_answers_are_those_without_it(row: SolverRow, allowed: str) -> None:
    options = replace(row.options, damping=0.3) if row.kind is Strips else row.options
    case = row.served(damping=options.damping)[-1]

    def answers() -> list[torch.Tensor]:
        layer = case.layer(**vars(options)).float()
        y = layer(case.images().float()).detach().requires_grad_()
        x = layer.inverse(y, case.size)
        x.square().sum().backward()
        return [x.detach(), y.grad, layer.weight.grad, layer.singular_values(case.size).detach()]

    found = answers()
    torch.set_float32_matmul_precision("highest")
    expected = answers()
    torch.set_float32_matmul_precision(allowed)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_wide_layers_are_answered_to_the_last_digits(allowed: str) -> None:
    """Large enough for a CPU that has products of bfloat16 to take them."""
    layer = InvertibleConv2d(16, 64, 3, stride=2, padding=1, padding_mode="circular")
    x = torch.randn(4, 16, 12, 12)
    with torch.no_grad():
        y = layer.double()(x.double()).float()
        back = layer.float().inverse(y, (12, 12))
    assert torch.linalg.norm(back - x) < 1e-5 * torch.linalg.norm(x)
    assert torch.get_float32_matmul_precision() == allowed


def test_every_product_of_the_engine_is_full(allowed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the backward pass too, which autograd calls long after."""
    seen = []
    for name in ("forward", "adjoint", "weight_gradient"):
        method = getattr(Convolution, name)
        monkeypatch.setattr(
            Convolution, name, lambda *a, method=method, **k: seen.append(_is_full()) or method(*a, **k)
        )
    for solver in ("auto", "iterative", "direct"):
        layer = InvertibleConv2d(3, 3, 3, padding=1, solver=solver)
        y = torch.randn(2, 3, 8, 8).requires_grad_()
        (layer.inverse(y).square().sum() + layer.condition_number((8, 8))).backward()
    assert seen and all(seen)


def test_it_is_set_back_when_the_last_has_left(allowed: str) -> None:
    inside, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with full_products(CPU):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=stay)
    with full_products(CPU):
        assert _is_full()
        thread.start()
        inside.wait()
    assert _is_full()
    leave.set()
    thread.join()
    assert torch.get_float32_matmul_precision() == allowed


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="before PyTorch 2.9 there is one setting")
def test_a_setting_that_was_got_from_a_wider_one_is_got_from_it_afterwards() -> None:
    backends: Any = torch.backends
    before = backends.fp32_precision
    kinds = (backends.mkldnn.matmul, backends.mkldnn.conv, backends.cuda.matmul)
    kept = [kind.fp32_precision for kind in kinds]
    try:
        for kind in kinds:
            kind.fp32_precision = "none"
        backends.fp32_precision = "tf32"
        for device in ("cpu", "cuda"):
            with full_products(torch.device(device)):
                assert (kinds[0] if device == "cpu" else kinds[2]).fp32_precision == "ieee"
        assert all(kind.fp32_precision == "tf32" for kind in kinds)
        assert torch.backends.cudnn.allow_tf32  # which complains where PyTorch's settings disagree
        backends.fp32_precision = "none"
        assert not any(kind.fp32_precision == "tf32" for kind in kinds)
    finally:
        backends.fp32_precision = before
        for kind, precision in zip(kinds, kept, strict=True):
            kind.fp32_precision = precision
