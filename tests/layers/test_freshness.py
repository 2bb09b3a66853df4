"""Never stale: every way to change a weight, by every verb; and the factors computed ahead of the question."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from routes import ROUTES, Subject, Unavailable, data_write, descend
from torch import nn

import invconv
from invconv import IllConditionedWarning, InputError, InvertibleConv2d, keep_fresh
from invconv.engine.solvers.circulant import Circulant
from invconv.flows import Chain, ConvFlow, MultiScaleFlow
from invconv.layers.cache import MOST

SIZE, OTHER = (6, 8), (5, 4)


# -- the matrix ----------------------------------------------------------------------------------------------------


def layer(padding_mode):
    return InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode)


def images(conv, size):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, 3, *size, generator=generator, dtype=torch.float64).to(conv.weight)


def operator(conv, size):
    op = conv.operator(size)
    y = images(conv, size).to(op.dtype)
    return op.source, op.forward(y), op.adjoint(y), op.pseudo_inverse(y), op.pseudo_inverse_adjoint(y), op.log_volume()


def loss(conv, y, size):
    return conv.inverse(y).float().square().sum() + conv.log_abs_det(size) + conv.log_volume(size)


def trained(conv):
    return [p for p in conv.parameters() if p.requires_grad]


def gradients(conv, size):
    """By y and by all parameters."""
    y = images(conv, size).requires_grad_()
    value = loss(conv, y, size)
    if not torch.is_grad_enabled():
        return (value,)
    with torch.autocast("cpu", enabled=False):  # as PyTorch wants it of backward passes
        return torch.autograd.grad(value, [y, *trained(conv)])


VERBS = {
    "inverse": lambda conv, size: (conv.inverse(images(conv, size)),),
    "log_abs_det": lambda conv, size: (conv.log_abs_det(size),),
    "log_volume": lambda conv, size: (conv.log_volume(size),),
    "singular_values": lambda conv, size: (conv.singular_values(size),),
    "condition_number": lambda conv, size: (conv.condition_number(size),),
    "spectral_norm": lambda conv, size: (conv.spectral_norm(size),),
    "smallest_singular_value": lambda conv, size: (conv.smallest_singular_value(size),),
    "operator": operator,
    "gradients": gradients,
}


def fresh(conv):
    """A layer that has never been asked, of the weight that the next forward would use."""
    for hook in conv._forward_pre_hooks.values():
        hook(conv, ())
    with torch.inference_mode(False):
        twin = layer(conv.padding_mode)
        twin.weight = nn.Parameter(conv.weight.detach().clone())
        twin.bias = nn.Parameter(conv.bias.detach().clone())
    return twin


def compare(conv, verb, size=SIZE):
    """With a fresh layer: to the last bit, for the same arithmetic is done; gradients to the order of their sums."""
    answer = VERBS[verb](conv, size)  # first, because `fresh` brings the weight of a pruned layer up to date
    twin, tolerance = fresh(conv), 1e-5 if conv.weight.is_cuda else 0.0
    if verb == "gradients" and torch.is_grad_enabled():
        y, tolerance = images(conv, size).requires_grad_(), 1e-5
        by_y, *by_twin = torch.autograd.grad(loss(twin, y, size), [y, twin.weight, twin.bias])
        pairs = zip([conv.effective_weight(), conv.bias], by_twin, strict=True)
        tensors, causes = zip(*((t, g) for t, g in pairs if t.requires_grad), strict=True)
        with torch.autocast("cpu", enabled=False):
            expected = (by_y, *torch.autograd.grad(tensors, trained(conv), causes))
    else:
        expected = VERBS[verb](twin, size)
    for found, right in zip(answer, expected, strict=True):
        atol = tolerance * float(right.detach().abs().max())
        torch.testing.assert_close(found, right, rtol=tolerance, atol=atol)


def bounded_and_trained(s):
    invconv.parametrizations.bounded(s.module, 0.5)
    s.check(s.module)
    optimizer = torch.optim.AdamW(s.module.parameters(), lr=0.01)
    with keep_fresh(optimizer, s.module):
        descend(s.module, optimizer)
        s.check(s.module)
    descend(s.module, optimizer)


def under_autocast(s):
    invconv.parametrizations.bounded(s.module, 0.5)
    s.check(s.module)
    s.module.parametrizations.weight.original0.data.mul_(1.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert s.module.weight.dtype == torch.float32
        s.check(s.module)
    s.check(s.module)


def kept_fresh(kind):
    def route(s):
        optimizer = kind(s.module.parameters(), lr=0.01)
        with keep_fresh(optimizer, s.module) as kept:
            for _ in range(2):
                optimizer.zero_grad()
                s.module.log_abs_det(SIZE).backward()
                optimizer.step(lambda: torch.tensor(0.0))
                s.check(s.module)
        assert kept.steps == 2
        descend(s.module, torch.optim.SGD(s.module.parameters(), lr=0.01))

    return route


def two_sizes(s):
    for _ in range(2):
        for size in (OTHER, SIZE, OTHER):
            s.check(s.module, size)
        data_write(s)
    s.check(s.module, OTHER)


def another_geometry(s):
    s.module.groups = 3
    s.module.weight = nn.Parameter(0.1 * torch.randn(3, 1, 3, 3) + (torch.arange(9) == 4).view(3, 3))
    # The fresh layer has no groups: what can be compared is the round trip.
    x = images(s.module, SIZE)
    assert torch.allclose(s.module.inverse(s.module(x)), x, atol=1e-4)
    s.module.groups = 1
    s.module.weight = nn.Parameter(layer(s.module.padding_mode).weight.detach())


OURS = {
    "keep_fresh": kept_fresh(torch.optim.Adam),
    "keep_fresh, LBFGS": kept_fresh(torch.optim.LBFGS),
    "a bounded kernel": bounded_and_trained,
    "a bounded kernel under autocast": under_autocast,
    "two image sizes in turn": two_sizes,
    "another geometry": another_geometry,
}
TABLE = ROUTES | OURS


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("route", TABLE)
def test_the_answer_is_that_of_a_fresh_layer(route, verb, padding_mode):
    conv = layer(padding_mode)
    before = fresh(conv)
    checks = []

    def check(module, size=SIZE):
        checks.append(size)
        compare(module, verb, size)

    subject = Subject(conv, "weight", lambda: layer(padding_mode), torch.randn(2, 3, *SIZE), check)
    check(conv)
    check(conv, OTHER)
    try:
        changed: Any = TABLE[route](subject) or subject.module
    except Unavailable as lacking:
        pytest.skip(f"needs {lacking}")
    check(changed)
    assert len(checks) > 2 and not torch.equal(before.weight, changed.weight.detach().float().cpu())


def test_the_table_is_as_long_as_is_claimed():
    assert len(TABLE) >= 25


# -- several threads, several processes ----------------------------------------------------------------------------


def test_sampling_in_threads_does_not_disturb_training():
    """`torch.nn.utils.parametrize.cached` is shared by all threads: a flow must not rest on it."""

    def flow():
        torch.manual_seed(0)
        return Chain(*[ConvFlow(4) for _ in range(3)])

    def train(flow):
        optimizer = torch.optim.SGD(flow.parameters(), lr=1e-3)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            z, log_det = flow(x)
            value = z.square().mean() - log_det.mean()
            value.backward()
            assert all(p.grad is not None for p in flow.parameters())
            optimizer.step()
            losses.append(value.item())
        return losses

    x, z = torch.randn(8, 4, 8, 8), torch.randn(2, 4, 8, 8)
    disturbed, stop, errors = flow(), threading.Event(), []

    def sample():
        try:
            while not stop.is_set():
                with torch.no_grad():
                    disturbed.inverse(z)
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=sample) for _ in range(3)]
    for thread in crowd:
        thread.start()
    try:
        losses = train(disturbed)
    finally:
        stop.set()
        for thread in crowd:
            thread.join()
    assert not errors and losses == train(flow())


def test_threads_with_more_sizes_than_are_kept():
    conv = layer("zeros")
    errors = []

    def ask(start):
        try:
            for n in range(4, 4 + 2 * MOST):
                size = (n, 4 + (n + start) % MOST)
                x = images(conv, size)
                assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-4)
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=ask, args=(start,)) for start in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    assert not errors and len(conv._cache) == MOST


def _broadcast(rank, world_size, address):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    torch.manual_seed(rank)
    conv = layer("zeros")
    own = conv.weight.detach().clone()
    for verb in VERBS:
        compare(conv, verb)
    parallel = nn.parallel.DistributedDataParallel(conv)  # here the weights of the first process are sent round
    assert torch.equal(conv.weight, own) == (rank == 0)
    for verb in VERBS:
        compare(conv, verb)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.01)
    with keep_fresh(optimizer, parallel, SIZE) as handle:
        optimizer.zero_grad()
        parallel(images(conv, SIZE)).square().mean().backward()
        optimizer.step()
    for verb in VERBS:
        compare(conv, verb)
    inverse = conv.inverse(images(conv, SIZE)).detach()
    gathered = [torch.empty_like(inverse) for _ in range(world_size)]
    torch.distributed.all_gather(gathered, inverse)
    assert torch.equal(*gathered)
    del parallel, handle
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_the_first_broadcast_of_ddp_leaves_nothing_stale(tmp_path):
    torch.multiprocessing.spawn(_broadcast, (2, f"file://{tmp_path / 'rendezvous'}"), nprocs=2)


# -- keep_fresh ----------------------------------------------------------------------------------------------------


def descend_by_log_det(conv, optimizer, size=SIZE):
    optimizer.zero_grad()
    conv.log_abs_det(size).backward()
    optimizer.step()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("fused", [False, True])
def test_factors_are_computed_at_the_step(factored, kind, fused):
    conv = layer("circular")
    optimizer = kind(conv.parameters(), lr=0.01, fused=fused)
    conv.inverse(images(conv, SIZE))
    conv.log_abs_det(OTHER)
    handle = keep_fresh(optimizer, conv)
    factored.clear()
    descend_by_log_det(conv, optimizer)
    assert len(factored) == 2  # both sizes
    conv.inverse(images(conv, SIZE)), conv.log_abs_det(SIZE), conv.log_abs_det(OTHER)
    assert len(factored) == 2 and handle.steps == 1 and handle.seconds > 0
    handle.remove()
    descend_by_log_det(conv, optimizer)
    assert len(factored) == 2 and handle.steps == 1
    conv.inverse(images(conv, SIZE))
    assert len(factored) == 3


def test_sizes_that_are_given(factored):
    pair: Any = nn.ModuleDict({"a": layer("circular"), "b": invconv.parametrizations.bounded(layer("circular"), 0.5)})
    optimizer = torch.optim.Adam(pair.parameters())
    pair["a"].log_abs_det(OTHER)
    factored.clear()
    unused: Any = None
    rows: list[tuple[Any, int]] = [(SIZE, 2), ({"b": OTHER}, 1), ((1, 3, *SIZE), 2), (None, 4)]
    for sizes, expected in rows:
        with keep_fresh(optimizer, pair, sizes):
            data_write(Subject(pair["a"], "weight", unused, unused, unused))
            pair["b"].parametrizations.weight.original0.data.mul_(1.1)
            optimizer.step()  # without gradients, it changes nothing
            assert len(factored) == expected, sizes
            optimizer.step()
            assert len(factored) == expected, sizes
        factored.clear()
    with pytest.raises(InputError, match=r"names \['c'\], the model's invertible layers are \['a', 'b'\]"):
        keep_fresh(optimizer, pair, {"c": SIZE})


def test_lbfgs_refreshes_once_a_step(factored):
    conv = layer("circular")
    optimizer = torch.optim.LBFGS(conv.parameters(), lr=0.01, max_iter=4)

    def closure():
        optimizer.zero_grad()
        value = conv(images(conv, SIZE)).square().mean()
        value.backward()
        return value

    with keep_fresh(optimizer, conv, SIZE):
        optimizer.step(closure)
    assert len(factored) == 1


def test_a_layer_that_cannot_be_factored_says_so_when_it_is_asked():
    conv = layer("circular")
    conv.log_abs_det(SIZE)
    optimizer = torch.optim.SGD(conv.parameters(), lr=1.0)
    with keep_fresh(optimizer, conv):
        conv.weight.grad = torch.full_like(conv.weight, float("nan"))
        optimizer.step()
    with pytest.raises(InputError, match="NaN or infinite"):
        conv.log_abs_det(SIZE)
    nn.init.zeros_(conv.weight)
    optimizer.zero_grad()
    with keep_fresh(optimizer, conv, SIZE), pytest.warns(IllConditionedWarning, match="cut off"):
        optimizer.step()


@pytest.mark.parametrize(
    "options", [{"padding_mode": "circular"}, {"padding_mode": "zeros"}, {"mixing": "pair"}], ids=str
)
def test_training_is_the_same_with_it_and_without(options):
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)

    def train(keep):
        torch.manual_seed(0)
        flow = MultiScaleFlow(image_size=8, scales=2, steps=1, hidden=8, **options)
        optimizer = torch.optim.Adam(flow.parameters(), lr=1e-2)
        handle = keep_fresh(optimizer, flow) if keep else None
        losses = []
        for step in range(5):
            optimizer.zero_grad()
            value = flow.bits_per_dim(x, generator=torch.Generator().manual_seed(step)).mean()
            value.backward()
            optimizer.step()
            losses.append(value.item())
        assert handle is None or handle.steps == 5
        return losses

    assert train(True) == train(False)


def test_factors_are_those_of_the_next_step(monkeypatch):
    """With a parametrized kernel, too, what was computed ahead serves the training step that follows."""
    conv = invconv.parametrizations.bounded(layer("circular"), 0.5)
    optimizer = torch.optim.Adam(conv.parameters(), lr=0.01)
    with keep_fresh(optimizer, conv):
        for _ in range(3):
            descend_by_log_det(conv, optimizer)
            ahead = conv.operator(SIZE)
            assert isinstance(ahead.solver, Circulant) and "log_volume" in vars(ahead.solver)
            assert "inverse_blocks" not in vars(ahead.solver)  # for which nobody asked
            conv.log_abs_det(SIZE).backward()
            assert conv.operator(SIZE) is ahead
        conv.inverse(images(conv, SIZE))
        descend_by_log_det(conv, optimizer)
        assert {"log_volume", "inverse_blocks"} <= vars(conv.operator(SIZE).solver).keys()


# -- pruned layers, whose weight is set in a hook of forward -------------------------------------------------------


def test_a_pruned_layer_can_be_trained_by_its_log_det_alone():
    conv = layer("zeros")
    nn.utils.prune.l1_unstructured(conv, "weight", amount=3)
    nn.utils.prune.l1_unstructured(conv, "bias", amount=1)
    optimizer = torch.optim.SGD(conv.parameters(), lr=1e-3)
    found = []
    for _ in range(3):
        found.append(conv.log_abs_det(SIZE).item())
        descend_by_log_det(conv, optimizer)
    assert found[0] > found[1] > found[2]
    x = images(conv, SIZE)
    assert torch.allclose(conv.inverse(conv(x)), x, atol=1e-5)
