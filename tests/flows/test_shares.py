"""Log-determinants that processes share: values and averaged gradients are those of one process that computes all."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from invconv import InputError, SingularMapError, keep_fresh
from invconv.flows import ActNorm, Chain, ConvFlow, FlowLayer, MultiScaleFlow, PairFlow, Reversed, shared_log_dets
from invconv.layers.kernel import whole
from invconv.layers.shares import dealt
from invconv.layers.together import LogDets

IMAGES = 6
"""Of all processes together: what two and three divide."""


def flow() -> Chain:
    """Of both signs, dense and masked, free and bounded, alike and not; one layer twice, and a chain in the chain."""
    torch.manual_seed(0)
    twice = ConvFlow(4)
    layers: list[FlowLayer] = [ConvFlow(4) for _ in range(3)] + [
        twice,
        Reversed(ConvFlow(4)),
        PairFlow(4),
        ConvFlow(4, 1),
        twice,
    ]
    layers += [ConvFlow(4, 5, rho=None), Reversed(PairFlow(4)), ActNorm(4)]
    return Chain(*layers, Chain(ConvFlow(4, padding_mode="zeros"), ConvFlow(4, padding_mode="reflect"))).double()


def images() -> torch.Tensor:
    return torch.randn(IMAGES, 4, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def cost(z: torch.Tensor, log_det: torch.Tensor) -> torch.Tensor:
    return (z.square().flatten(1).sum(1) / 2 - log_det).mean()


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


class Counted:
    """How many layers were factored in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.layers = 0
        whole = LogDets._group

        def group(log_dets: Any, layers: Any, *rest: Any) -> Any:
            self.layers += len(layers)
            return whole(log_dets, layers, *rest)

        monkeypatch.setattr(LogDets, "_group", group)


def averaged(rank: int, world_size: int, make: Any = flow) -> dict[str, Any]:
    """What a flow gives here: its cost, log-determinant and averaged gradients, and how many layers it factored."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        counted = Counted(monkeypatch)
        parallel = nn.parallel.DistributedDataParallel(make())
        with shared_log_dets():
            z, log_det = parallel(images()[rank::world_size])
        cost(z, log_det).backward()
        return {"log_det": log_det[0].item(), "layers": counted.layers, "gradients": gradients(parallel.module)}


def sharded(rank: int, world_size: int) -> dict[str, Any]:
    """Gradients that FSDP averages: of layers that it puts together for forward, and of one that does so itself."""
    chain, mesh = flow(), init_device_mesh("cpu", (world_size,))
    fully_shard(chain.layers[8].conv, mesh=mesh)
    fully_shard(chain, mesh=mesh)
    with shared_log_dets():
        z, log_det = chain(images()[rank::world_size])
    cost(z, log_det).backward()
    return {"gradients": {name: whole(gradient) for name, gradient in gradients(chain).items()}}


def unwound(rank: int, world_size: int) -> dict[str, Any]:
    """The other direction, a twin whose gradients are not averaged, and the flow without sharing afterwards."""
    whole, x = flow(), images()
    whole(x)
    with shared_log_dets():
        x_hat, back = whole.inverse(whole(x)[0])
        once = torch.compile(whole, backend="eager")(x)[1][0].item()
    return {"back": back[0].item(), "compiled": once, "after": whole(x)[1][0].item(), "error": (x_hat - x).abs().max()}


def refused(rank: int, world_size: int) -> dict[str, Any]:
    """What each process says of a singular layer and of images of different sizes."""
    said: dict[str, Any] = {}

    def note(name: str, kind: type[Exception], chain: nn.Module, x: torch.Tensor) -> None:
        with pytest.raises(kind) as info, shared_log_dets():
            chain(x)
        said[name] = str(info.value)

    singular = Chain(ConvFlow(4, rho=None), ConvFlow(4, rho=None), ConvFlow(4, 5, rho=None)).double()
    singular.layers[2].conv.weight.data.zero_()
    note("singular", SingularMapError, singular, images())
    note("sizes", InputError, flow(), images()[..., : 6 + rank])
    chain, group = flow(), torch.distributed.new_group([0, 1])
    chain(images())  # the start of ActNorm is a matter of all processes
    if rank > 1:
        with pytest.raises(InputError) as info, shared_log_dets(group):
            pass
        said["group"] = str(info.value)
    else:
        with shared_log_dets(group):
            said["in a group"] = chain(images())[1][0].item()
    return said


def refreshed(rank: int, world_size: int) -> dict[str, Any]:
    """Layers that `keep_fresh` factors after a step."""
    torch.manual_seed(0)
    whole = MultiScaleFlow(1, 8, scales=2, steps=2, hidden=8).double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(rank))
    optimizer = torch.optim.SGD(whole.parameters(), lr=1e-3)
    with pytest.MonkeyPatch.context() as monkeypatch, keep_fresh(optimizer, whole), shared_log_dets():
        cost(torch.cat([part.flatten(1) for part in whole.encode(x)[0]], 1), whole.encode(x)[1]).backward()
        counted = Counted(monkeypatch)
        optimizer.step()
        return {"refreshed": counted.layers}


TASKS = {
    "flow": averaged,
    "alone": lambda rank, world_size: averaged(rank, world_size, lambda: Chain(ConvFlow(4), ActNorm(4)).double()),
    "sharded": sharded,
    "unwound": unwound,
    "refused": refused,
    "refreshed": refreshed,
}


def work(rank: int, world_size: int, address: str, folder: str) -> None:
    torch.set_num_threads(1)
    given: Any = {"rank": rank, "world_size": world_size, "timeout": timedelta(seconds=60)}
    torch.distributed.init_process_group("gloo", init_method=address, **given)
    outcome = {name: task(rank, world_size) for name, task in TASKS.items()}
    torch.save(outcome, f"{folder}/{rank}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def outcomes(request, tmp_path_factory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("shares")
    torch.multiprocessing.spawn(work, (request.param, f"file://{folder}/store", str(folder)), nprocs=request.param)
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    """One process, all images."""
    whole = flow()
    z, log_det = whole(images())
    cost(z, log_det).backward()
    return {"log_det": log_det[0].item(), "gradients": gradients(whole)}


@pytest.mark.parametrize("by", ["flow", "sharded"])
def test_averaged_gradients_are_those_of_one_process(by, outcomes, alone):
    for outcome in outcomes:
        found = outcome[by]["gradients"]
        assert found.keys() == alone["gradients"].keys()
        for name, expected in alone["gradients"].items():
            torch.testing.assert_close(found[name], expected, rtol=1e-11, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")


def test_every_process_sees_the_whole_log_determinant(outcomes, alone):
    values = [outcome["flow"]["log_det"] for outcome in outcomes]
    assert len(set(values)) == 1 and values[0] == pytest.approx(alone["log_det"], rel=1e-13)


def test_no_layer_is_factored_twice(outcomes):
    """Nine dense ones and 1 x 1 forwards, one of which comes twice, and one backwards; masked ones are not factored."""
    counts = [outcome["flow"]["layers"] for outcome in outcomes]
    assert sum(counts) == 10 and max(counts) < 10 / len(counts) + 3
    assert sorted(outcome["refreshed"]["refreshed"] for outcome in outcomes)[-2:] == [2 if len(outcomes) == 2 else 1, 2]


def test_more_processes_than_layers(outcomes):
    assert sorted(outcome["alone"]["layers"] for outcome in outcomes) == [0] * (len(outcomes) - 1) + [1]
    single = Chain(ConvFlow(4), ActNorm(4)).double()
    assert outcomes[0]["alone"]["gradients"].keys() == dict(single.named_parameters()).keys()
    for outcome in outcomes[1:]:
        for name, value in outcome["alone"]["gradients"].items():
            assert torch.equal(value, outcomes[0]["alone"]["gradients"][name])


def test_inverses_and_compiled_flows_share_as_well(outcomes, alone):
    for outcome in outcomes:
        found = outcome["unwound"]
        assert found["back"] == pytest.approx(-alone["log_det"], rel=1e-12) and found["error"] < 1e-12
        assert found["compiled"] == pytest.approx(alone["log_det"], rel=1e-12)
        assert found["after"] == pytest.approx(alone["log_det"], rel=1e-12)


def test_what_one_process_cannot_do_is_said_in_all(outcomes, alone):
    said = [outcome["refused"] for outcome in outcomes]
    for words in said:
        assert "of different sizes" in words["sizes"]
    assert (
        sum("cannot compute its share of the log-determinants" in words["singular"] for words in said) == len(said) - 1
    )
    assert [words["in a group"] for words in said[:2]] == [pytest.approx(alone["log_det"], rel=1e-12)] * 2
    assert all("process 2 is not in the group" in words["group"] for words in said[2:])


def test_one_process_computes_all(alone):
    whole = flow()
    with shared_log_dets():
        z, log_det = whole(images())
    cost(z, log_det).backward()
    assert log_det[0].item() == alone["log_det"]
    assert all(torch.equal(value, alone["gradients"][name]) for name, value in gradients(whole).items())


def test_work_is_dealt_out_evenly_and_a_piece_is_given_once():
    assert dealt([4.0, 1, 1, 1, 1], "abcde", 2) == [0, 1, 1, 1, 1]
    assert dealt([1.0] * 6, range(6), 2) == [0, 1, 0, 1, 0, 1]
    assert dealt([3.0, 2, 3, 2], "abac", 2) == [0, 1, 0, 1]
    assert dealt([1.0], "a", 3) == [0]
