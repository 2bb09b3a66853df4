"""One table of the ways in which a weight changes, for `test_freshness.py` and `benchmarks/freshness/`."""

from __future__ import annotations

import copy
import io
import pickle
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim import swa_utils

import invconv


class Unavailable(Exception):
    """This machine lacks what a route needs."""


@dataclass
class Subject:
    """What a route changes."""

    module: nn.Module
    """With parameters that stay well conditioned when they are scaled a little."""
    name: str
    """Of the parameter that is its weight."""
    twin: Callable[[], nn.Module]
    """Makes another such module, of another weight."""
    x: Tensor
    """An input."""
    check: Callable[[nn.Module], None]
    """Asks the module, and compares its answer with that of a fresh one. Called when the route is done; before, where
    there is more than one moment to look at."""

    @property
    def weight(self) -> Tensor:
        return getattr(self.module, self.name)


Route = Callable[[Subject], nn.Module | None]
"""Changes the weight; returns the module that is to be asked, None for the subject's own."""


def decay(module: nn.Module) -> Tensor:
    """A loss that makes all weights smaller, some more than others; the module itself is not called."""
    loss: Any = sum(
        (torch.linspace(0.5, 1.5, p.numel(), device=p.device).view_as(p) * p**2).sum() for p in module.parameters()
    )
    return loss


def descend(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    decay(module).backward()
    optimizer.step()


# -- optimizers ----------------------------------------------------------------------------------------------------


def steps(kind: Any, **options: Any) -> Route:
    def route(s: Subject) -> None:
        optimizer = kind(s.module.parameters(), lr=0.01, **options)
        for _ in range(2):
            descend(s.module, optimizer)
            s.check(s.module)

    return route


def capturable(s: Subject) -> nn.Module:
    need_cuda()
    module = s.module.cuda()
    s.check(module)
    descend(module, torch.optim.Adam(module.parameters(), lr=0.01, capturable=True))
    return module


def lbfgs(s: Subject) -> None:
    optimizer = torch.optim.LBFGS(s.module.parameters(), lr=0.05, max_iter=3)

    def closure() -> Tensor:
        optimizer.zero_grad()
        s.check(s.module)  # it is asked between the evaluations of one step, too
        loss = decay(s.module)
        loss.backward()
        return loss

    optimizer.step(closure)


def groups(s: Subject) -> None:
    rest = [p for name, p in s.module.named_parameters() if name != s.name]
    both: list[dict[str, Any]] = [{"params": [s.weight], "lr": 0.02}, {"params": rest}]
    descend(s.module, torch.optim.Adam(both, lr=0.01))


def scaler(s: Subject) -> None:
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(s.module.parameters(), lr=0.01)
    for factor in (float("inf"), 1.0):
        optimizer.zero_grad()
        (scaler.scale(decay(s.module)) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        s.check(s.module)


def kept_fresh(kind: Any) -> Route:
    def route(s: Subject) -> None:
        optimizer = kind(s.module.parameters(), lr=0.01)
        with invconv.keep_fresh(optimizer, s.module) as kept:
            for _ in range(2):
                optimizer.zero_grad()
                decay(s.module).backward()
                optimizer.step(lambda: decay(s.module).detach())
                s.check(s.module)
        assert kept.steps == 2
        descend(s.module, optimizer)
        assert kept.steps == 2

    return route


# -- writes --------------------------------------------------------------------------------------------------------


def data_write(s: Subject) -> None:
    s.weight.data.mul_(1.1)


def data_assigned(s: Subject) -> None:
    s.weight.data = 1.1 * s.weight.data


def under_no_grad(write: Callable[[Any], Any]) -> Route:
    def route(s: Subject) -> None:
        with torch.no_grad():
            write(s.weight)

    return route


def in_inference_mode(s: Subject) -> None:
    with torch.inference_mode():
        s.weight.mul_(1.1)
        s.check(s.module)


def numpy_view(s: Subject) -> None:
    s.weight.detach().numpy()[...] *= 1.1


def storage(s: Subject) -> None:
    s.weight.untyped_storage().copy_((1.1 * s.weight.detach()).untyped_storage())


def shared_memory(s: Subject) -> None:
    s.module.share_memory()
    s.check(s.module)
    s.weight.detach().numpy()[...] *= 1.1


def vector(s: Subject) -> None:
    flat = nn.utils.parameters_to_vector(s.module.parameters()).detach()
    nn.utils.vector_to_parameters(1.1 * flat, s.module.parameters())


def new_parameter(s: Subject) -> None:
    setattr(s.module, s.name, nn.Parameter(1.1 * s.weight.detach()))


def registered_again(s: Subject) -> None:
    weight = 1.1 * s.weight.detach()
    delattr(s.module, s.name)
    s.module.register_parameter(s.name, nn.Parameter(weight, requires_grad=False))


def swapped_tensors(s: Subject) -> None:
    torch.utils.swap_tensors(s.weight, nn.Parameter(1.1 * s.weight.detach()))


# -- copies and checkpoints ----------------------------------------------------------------------------------------


def loaded(**options: Any) -> Route:
    def route(s: Subject) -> None:
        s.module.load_state_dict(s.twin().state_dict(), **options)

    return route


def loaded_by_swapping(s: Subject) -> None:
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        s.module.load_state_dict(s.twin().state_dict())
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def copied(duplicate: Callable[[nn.Module], nn.Module]) -> Route:
    def route(s: Subject) -> nn.Module:
        twin = duplicate(s.module)
        s.check(twin)
        data_write(s)
        s.check(twin)
        s.check(s.module)
        twin.get_parameter(s.name).data.mul_(0.9)
        s.check(s.module)
        return twin

    return route


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def resumed(s: Subject) -> None:
    optimizer = torch.optim.Adam(s.module.parameters(), lr=0.01)
    descend(s.module, optimizer)
    file = io.BytesIO()
    torch.save({"module": s.module.state_dict(), "optimizer": optimizer.state_dict()}, file)
    for _ in range(2):
        descend(s.module, optimizer)
        s.check(s.module)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    s.module.load_state_dict(saved["module"])
    optimizer.load_state_dict(saved["optimizer"])
    s.check(s.module)
    descend(s.module, optimizer)


# -- moves ---------------------------------------------------------------------------------------------------------


def need_cuda() -> None:
    if not torch.cuda.is_available():
        raise Unavailable("a GPU")


def moved(*targets: Any) -> Route:
    """There, a change there, and on to the next."""

    def route(s: Subject) -> None:
        if "cuda" in targets:
            need_cuda()
        for target in targets:
            s.module.to(target)
            s.check(s.module)
            data_write(s)
            s.check(s.module)

    return route


def channels_last(s: Subject) -> None:
    s.module.to(memory_format=torch.channels_last)
    s.check(s.module)
    data_write(s)


def meta_and_back(s: Subject) -> None:
    s.module.to("meta")
    s.module.to_empty(device="cpu")
    s.module.load_state_dict(s.twin().state_dict())


# -- averages ------------------------------------------------------------------------------------------------------


def exchange(a: nn.Module, b: nn.Module) -> None:
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        kept = p.data.clone()
        p.data.copy_(q.data)
        q.data.copy_(kept)


def averaged(average: Any) -> Route:
    def route(s: Subject) -> None:
        optimizer = torch.optim.SGD(s.module.parameters(), lr=0.1)
        mean = swa_utils.AveragedModel(s.module, multi_avg_fn=average)
        for _ in range(2):
            descend(s.module, optimizer)
            mean.update_parameters(s.module)
            s.check(mean.module)
        swa_utils.update_bn([s.x], mean)
        s.check(mean.module)
        exchange(s.module, mean.module)
        s.check(mean.module)
        s.check(s.module)
        exchange(s.module, mean.module)
        s.check(mean.module)

    return route


def lightning_average(s: Subject) -> None:
    import lightning as L
    from lightning.pytorch.callbacks import EMAWeightAveraging

    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = s.module

        def training_step(self, batch: Any, index: int) -> Tensor:
            s.check(self.net)
            return decay(self.net)

        def validation_step(self, batch: Any, index: int) -> None:
            s.check(self.net)  # of the averages

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        trainer = L.Trainer(
            accelerator="cpu",
            max_epochs=2,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            callbacks=[EMAWeightAveraging(decay=0.5)],
            **quiet,
        )
        x: Any = s.x
        images: Any = torch.utils.data.DataLoader(x)
        trainer.fit(Net(), images, images)


# -- parametrizations ----------------------------------------------------------------------------------------------


def reparametrized(register: Callable[[nn.Module, str], Any]) -> Route:
    def route(s: Subject) -> None:
        register(s.module, s.name)
        s.check(s.module)
        optimizer = torch.optim.SGD(s.module.parameters(), lr=0.05)
        for _ in range(2):
            descend(s.module, optimizer)
            s.check(s.module)

    return route


class Double(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parametrization_removed(s: Subject) -> None:
    parametrize.register_parametrization(s.module, s.name, Double())
    s.check(s.module)
    parametrize.remove_parametrizations(s.module, s.name, leave_parametrized=False)
    s.check(s.module)
    data_write(s)


def pruned(module: nn.Module, name: str) -> None:
    prune.l1_unstructured(module, name, amount=1)


def pruning_removed(s: Subject) -> None:
    pruned(s.module, s.name)
    s.check(s.module)
    with torch.no_grad():
        getattr(s.module, s.name + "_orig").mul_(1.1)
    s.check(s.module)
    prune.remove(s.module, s.name)


def spectral_norm(module: nn.Module, name: str) -> None:
    # In training it iterates whenever the weight is read.
    parametrizations.spectral_norm(module.eval(), name)


def old_spectral_norm(module: nn.Module, name: str) -> None:
    nn.utils.spectral_norm(module.eval(), name)


def old_weight_norm(module: nn.Module, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(module, name)


# -- functional ----------------------------------------------------------------------------------------------------


class Within(nn.Module):
    """Whatever is done to a module, done in its forward."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, do: Callable[[nn.Module], Any]) -> Any:
        return do(self.module)


def functional_call(s: Subject) -> None:
    for factor in (1.1, 0.9):
        weights = {f"module.{name}": (factor * p.detach()).requires_grad_() for name, p in s.module.named_parameters()}
        torch.func.functional_call(Within(s.module), weights, (s.check,))
        s.check(s.module)
    data_write(s)


def stateless(s: Subject) -> None:
    weights = {name: (1.1 * p.detach()).requires_grad_() for name, p in s.module.named_parameters()}
    with nn.utils.stateless._reparametrize_module(s.module, weights):
        s.check(s.module)
    s.check(s.module)
    data_write(s)


# -- modes ---------------------------------------------------------------------------------------------------------


def train_and_eval(s: Subject) -> None:
    for training in (True, False, True):
        s.module.train(training)
        s.check(s.module)
        data_write(s)
        s.check(s.module)


def inference_first(s: Subject) -> None:
    data_write(s)
    with torch.inference_mode():
        s.check(s.module)
    s.check(s.module)
    descend(s.module, torch.optim.SGD(s.module.parameters(), lr=0.01))


def threads(s: Subject) -> None:
    data_write(s)
    errors: list[BaseException] = []
    ready = threading.Barrier(8)

    def ask() -> None:
        try:
            ready.wait()
            s.check(s.module)
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=ask) for _ in range(8)]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()
    if errors:
        raise errors[0]


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW

ROUTES: dict[str, Route] = {
    "SGD": steps(SGD, foreach=False),
    "SGD, momentum": steps(SGD, momentum=0.9, nesterov=True, foreach=False),
    "SGD, foreach": steps(SGD, foreach=True),
    "SGD, fused": steps(SGD, fused=True),
    "Adam": steps(Adam, foreach=False),
    "Adam, foreach": steps(Adam, foreach=True),
    "Adam, fused": steps(Adam, fused=True),
    "Adam, capturable": capturable,
    "AdamW": steps(AdamW, foreach=False),
    "AdamW, foreach": steps(AdamW, foreach=True),
    "AdamW, fused": steps(AdamW, fused=True),
    "Adagrad, fused": steps(torch.optim.Adagrad, fused=True),
    "Adamax": steps(torch.optim.Adamax),
    "LBFGS": lbfgs,
    "two parameter groups": groups,
    "a scaler that skips a step": scaler,
    "write to .data": data_write,
    ".data assigned": data_assigned,
    "copy_ under no_grad": under_no_grad(lambda w: w.copy_(1.1 * w)),
    "mul_ under no_grad": under_no_grad(lambda w: w.mul_(1.1)),
    "indexed write": under_no_grad(lambda w: w[0].mul_(1.5)),
    "set_": under_no_grad(lambda w: w.set_(1.1 * w)),
    "_foreach_mul_": under_no_grad(lambda w: torch._foreach_mul_([w], 1.1)),
    "write in inference mode": in_inference_mode,
    "write through NumPy": numpy_view,
    "write to the storage": storage,
    "write to shared memory": shared_memory,
    "vector_to_parameters": vector,
    "a new nn.Parameter": new_parameter,
    "deleted and registered anew": registered_again,
    "swap_tensors": swapped_tensors,
    "load_state_dict": loaded(),
    "load_state_dict, assign": loaded(assign=True),
    "load_state_dict by swapping": loaded_by_swapping,
    "deepcopy": copied(copy.deepcopy),
    "pickle": copied(lambda module: pickle.loads(pickle.dumps(module))),
    "torch.save": copied(saved_and_loaded),
    "checkpoint resumed": resumed,
    "to float64": moved(torch.float64),
    "to float64 and back": moved(torch.float64, torch.float32),
    "to float16": moved(torch.float16),
    "to float16 and back": moved(torch.float16, torch.float32),
    "to bfloat16 and back": moved(torch.bfloat16, torch.float32),
    "to a GPU and back": moved("cuda", "cpu"),
    "to the meta device and back": meta_and_back,
    "channels_last": channels_last,
    "AveragedModel, mean": averaged(swa_utils.get_swa_multi_avg_fn()),
    "AveragedModel, exponential": averaged(swa_utils.get_ema_multi_avg_fn(0.5)),
    "EMAWeightAveraging": lightning_average,
    "weight norm": reparametrized(parametrizations.weight_norm),
    "weight norm, old": reparametrized(old_weight_norm),
    "spectral norm": reparametrized(spectral_norm),
    "spectral norm, old": reparametrized(old_spectral_norm),
    "parametrization removed": parametrization_removed,
    "pruning": reparametrized(pruned),
    "pruning removed": pruning_removed,
    "functional_call": functional_call,
    "reparametrized within a call": stateless,
    "train and eval": train_and_eval,
    "inference mode, then training": inference_first,
    "8 threads at once": threads,
}
