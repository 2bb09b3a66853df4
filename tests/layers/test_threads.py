"""Threads and processes: prepared once, the same to the last bit whoever asks first, and nobody waits for nothing."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tables import normal
from threadpoolctl import threadpool_info, threadpool_limits
from torch.utils.data import DataLoader, Dataset

from invconv import IllConditionedWarning, InvertibleConv1d, InvertibleConv2d, SingularMapError, keep_fresh, threads
from invconv import operator as operators
from invconv.engine import choice, preconditioner, spectrum, ways
from invconv.engine.blocks import TorusMap
from invconv.engine.convolution import Convolution
from invconv.engine.solvers import sparse
from invconv.engine.solvers.base import Solver
from invconv.engine.solvers.circulant import Circulant
from invconv.engine.solvers.dense import Dense
from invconv.engine.solvers.gram import Gram
from invconv.engine.solvers.krylov import Krylov
from invconv.engine.solvers.ring import Ring
from invconv.engine.solvers.sparse import SparseLU
from invconv.engine.way import Way
from invconv.flows import MultiScaleFlow
from invconv.layers import cache
from invconv.layers.together import LogDets
from invconv.threads import SMALL, cached_property, few_threads, one_blas_thread

SIZE = (6, 8)
PATIENCE = 60
"""Seconds after which what has not come is said to hang; nothing waits so long unless the test fails."""


@dataclass
class Kind:
    """A solver, a layer that it takes, and a function that it calls in the middle of its preparation."""

    solver: type[Solver]
    layer: Callable[[], Any]
    inside: tuple[Any, str]
    volume: bool = True

    def __str__(self) -> str:
        return self.solver.__name__


def plain(padding_mode: str, **options: Any) -> Any:
    return InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode, **options)


KINDS = (
    Kind(Circulant, partial(plain, "circular"), (TorusMap, "factor")),
    Kind(Ring, partial(plain, "zeros"), (TorusMap, "factor")),
    Kind(Gram, partial(normal, 3, out=5), (TorusMap, "factor")),
    Kind(Dense, partial(plain, "reflect"), (Convolution, "to_dense")),
    Kind(SparseLU, partial(plain, "zeros"), (sparse, "splu")),
    Kind(Krylov, partial(plain, "reflect", solver="iterative"), (preconditioner, "kernel_to_blocks"), volume=False),
)
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)


@pytest.fixture(autouse=True)
def _one_thread(set_threads):
    """For equal bits, and because a forked child of a process that computes in several is lost in PyTorch itself."""
    set_threads(1)


@pytest.fixture
def only(monkeypatch):
    """Leave one way open."""

    def leave(kind: Kind) -> None:
        monkeypatch.setattr(ways, "WAYS", (Way(kind.solver, double=kind.solver is not Circulant),))
        monkeypatch.setattr(choice, "fits", lambda _: False)
        monkeypatch.setattr(choice, "cylinder", lambda *_: None)

    return leave


@pytest.fixture
def stopped(monkeypatch):
    """Run a task in a thread that stops in the middle, until it is told to go on; gives (it, the function to tell)."""
    told = threading.Event()
    crowd = []

    def start(inside: tuple[Any, str], task: Callable[[], Any]) -> tuple[threading.Thread, Callable[[], None]]:
        there, function = threading.Event(), getattr(*inside)

        def stopping(*args: Any, **kwargs: Any) -> Any:
            if threading.current_thread() is thread:
                there.set()
                told.wait()
            return function(*args, **kwargs)

        monkeypatch.setattr(*inside, stopping)
        thread = threading.Thread(target=task)
        crowd.append(thread)
        thread.start()
        assert there.wait(PATIENCE)

        def go_on() -> None:
            told.set()
            thread.join()

        return thread, go_on

    yield start
    told.set()
    for thread in crowd:
        thread.join()


def finishes(task: Callable[[], Any]) -> bool:
    """Whether a task ends in another thread."""
    thread = threading.Thread(target=task, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return not thread.is_alive()


def together(tasks: list[Callable[[], Any]]) -> list[Any]:
    """What tasks give that begin at once, each in a thread of its own."""
    ready, answers, errors = threading.Barrier(len(tasks)), [None] * len(tasks), []

    def run(i: int) -> None:
        try:
            ready.wait()
            answers[i] = tasks[i]()
        except BaseException as error:
            errors.append(error)

    crowd = [threading.Thread(target=run, args=(i,)) for i in range(len(tasks))]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in crowd), "it hangs"
    if errors:
        raise errors[0]
    return answers


# -- verbs ---------------------------------------------------------------------------------------------------------


def images(conv: Any, outputs: bool) -> torch.Tensor:
    shape = conv.operator(SIZE).conv.y_shape if outputs else conv.operator(SIZE).conv.x_shape
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(conv.weight)


def gradients(conv: Any) -> list[torch.Tensor]:
    y = images(conv, True).requires_grad_()
    return list(torch.autograd.grad(conv.inverse(y).square().sum(), [y, conv.weight]))


def volume_and_gradient(conv: Any) -> list[torch.Tensor]:
    volume = conv.log_volume(SIZE)
    return [volume.detach(), *torch.autograd.grad(volume, conv.weight)]


def report(conv: Any) -> list[Any]:
    """All but time and memory, which depend on what else has been computed."""
    return [replace(conv.operator(SIZE).report(), seconds=0.0, bytes=0)]


VERBS: dict[str, Callable[[Any], list[Any]]] = {
    "inverse": lambda conv: [conv.inverse(images(conv, True)).detach()],
    "adjoint": lambda conv: [conv.operator(SIZE).adjoint(images(conv, True))],
    "adjoint of the inverse": lambda conv: [conv.operator(SIZE).pseudo_inverse_adjoint(images(conv, False))],
    "gradients": gradients,
    "volume": volume_and_gradient,
    "singular values": lambda conv: [conv.singular_values(SIZE)],
    "condition": lambda conv: [conv.condition_number(SIZE)],
    "report": report,
    "rank": lambda conv: [conv.operator(SIZE).report().rank],
    "plan": lambda conv: [conv.operator(SIZE).plan().solver],
}


def same(a: list[Any], b: list[Any]) -> bool:
    """Whether answers are equal, tensors to the last bit."""
    pairs = zip(a, b, strict=True)
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


def asked(conv: Any, verbs: list[str]) -> dict[str, list[Any]]:
    return {verb: VERBS[verb](conv) for verb in verbs}


@every_kind
def test_whoever_asks_first_all_get_the_same(kind, only, monkeypatch):
    only(kind)
    verbs = [verb for verb in VERBS if kind.volume or verb != "volume"]
    conv = kind.layer()
    expected = {verb: VERBS[verb](copy.deepcopy(conv)) for verb in verbs}  # each asked alone, of a fresh layer
    calls: list[str] = []

    def counting(place: Any, name: str) -> None:
        function = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *args: calls.append(name) or function(*args))

    counting(choice, "choose")
    counting(choice, "volume")
    counting(kind.solver, "prepare")
    for first in range(0, len(verbs), 3):
        layer = copy.deepcopy(conv)
        calls.clear()
        turns = [verbs[(first + i) % len(verbs) :] + verbs[: (first + i) % len(verbs)] for i in range(8)]
        for answers in together([partial(asked, layer, turn) for turn in turns]):
            assert [verb for verb in verbs if not same(answers[verb], expected[verb])] == []
        assert sorted(calls) == sorted({"choose", "prepare", *(["volume"] if kind.volume else [])})


@pytest.mark.parametrize("verb", VERBS)
@every_kind
def test_who_comes_late_waits_for_the_first(kind, verb, only, stopped):
    """While one thread is in the middle of its preparation, another gets the answer of a layer that is prepared."""
    if verb == "volume" and not kind.volume:
        pytest.skip("it has none")
    only(kind)
    conv = kind.layer()
    expected = VERBS[verb](copy.deepcopy(conv))
    _, go_on = stopped(kind.inside, lambda: conv.operator(SIZE).prepare())
    answers: list[Any] = []
    late = threading.Thread(target=lambda: answers.append(VERBS[verb](conv)))
    late.start()
    go_on()
    late.join(PATIENCE)
    assert same(answers[0], expected)


@every_kind
def test_no_layer_waits_for_another(kind, only, stopped):
    """Not for one of the same solver, neither for its factors nor for those of a log-determinant."""
    only(kind)
    first, second = kind.layer(), kind.layer()
    thread, _ = stopped(kind.inside, lambda: first.operator(SIZE).prepare())
    verbs = [verb for verb in VERBS if kind.volume or verb != "volume"]
    assert finishes(lambda: asked(second, verbs))
    assert thread.is_alive()
    assert finishes(lambda: (first.operator(SIZE).forward(images(second, False)), first.operator(SIZE).plan()))


def test_a_prepared_inverse_does_not_wait_for_a_log_determinant(stopped):
    conv = plain("circular", volume_tol=1e-3)
    conv.operator((32, 32)).prepare()
    stopped((TorusMap, "factor"), lambda: conv.log_abs_det((32, 32)))
    assert finishes(lambda: conv.inverse(torch.randn(1, 3, 32, 32)))


# -- processes -----------------------------------------------------------------------------------------------------


def ends_well(task: Callable[[], Any]) -> bool:
    """Whether a forked child does a task without an error and without end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            task()
            code = 0
        except BaseException:
            traceback.print_exc()  # for the report of the test
        finally:
            os._exit(code)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@needs_fork
@every_kind
def test_a_child_does_not_wait_for_threads_that_it_has_not(kind, only, stopped):
    """Forked in the middle of a preparation, of the layer that it asks and of others."""
    only(kind)
    conv, other = kind.layer(), kind.layer()
    # Beside a GPU, PyTorch runs no backward pass in a forked child.
    left_out = {"gradients", "volume"} if torch.cuda.is_available() else set() if kind.volume else {"volume"}
    verbs = [verb for verb in VERBS if verb not in left_out]
    expected = [asked(copy.deepcopy(layer), verbs) for layer in (conv, other)]
    stopped(kind.inside, lambda: conv.operator(SIZE).prepare())

    def child() -> None:
        for layer, right in zip((conv, other), expected, strict=True):
            answers = asked(layer, verbs)
            assert all(same(answers[verb], right[verb]) for verb in verbs)

    assert ends_well(child)


@needs_fork
def test_a_child_does_not_wait_for_a_cache(stopped):
    """Forked while another thread has the lock of the layer's cache, in which operators are made."""
    conv = plain("zeros")
    stopped((operators, "check_finite"), lambda: conv.operator(SIZE))
    assert ends_well(lambda: conv.inverse(torch.zeros(1, 3, *SIZE)))


@needs_fork
def test_a_child_of_a_child():
    def child() -> None:
        assert ends_well(lambda: plain("zeros").inverse(torch.zeros(1, 3, *SIZE)))

    assert ends_well(child)


@needs_fork
def test_a_fork_within_a_preparation_goes_on_in_both(monkeypatch):
    """The thread that forks keeps its locks: it will give them back."""
    factor, conv, children = TorusMap.factor, plain("circular"), []

    def forking(torus: TorusMap) -> Any:
        children.append(os.fork())
        return factor(torus)

    expected = VERBS["inverse"](copy.deepcopy(conv))
    monkeypatch.setattr(TorusMap, "factor", forking)
    try:
        right = same(VERBS["inverse"](conv), expected)
    except BaseException:
        right = False
    if children == [0]:
        os._exit(0 if right else 1)
    assert right and os.waitpid(children[0], 0)[1] == 0


class Inverted(Dataset):
    """Images that a layer has made."""

    def __init__(self, conv: Any) -> None:
        self.conv = conv

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.conv.inverse(torch.full((3, *SIZE), float(index)))


@needs_fork
@pytest.mark.parametrize("context", ["fork", pytest.param("forkserver", marks=pytest.mark.slow)])
def test_a_loader_whose_data_hold_a_layer(stopped, context):
    conv = plain("zeros")
    expected = torch.stack([Inverted(copy.deepcopy(conv))[i] for i in range(4)])
    stopped((TorusMap, "factor"), lambda: conv.operator(SIZE).prepare())
    loader = DataLoader(Inverted(conv), 2, num_workers=2, timeout=PATIENCE, multiprocessing_context=context)
    assert torch.equal(torch.cat(list(loader)), expected)


# -- copies --------------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_what_is_copied_in_the_middle_answers_as_well(kind, duplicate, only, stopped):
    only(kind)
    conv = kind.layer()
    operator = conv.operator(SIZE)
    y = images(conv, True)
    expected = conv.inverse(y)
    fresh = copy.deepcopy(conv)
    operator = fresh.operator(SIZE)
    stopped(kind.inside, operator.prepare)
    copies: list[Any] = []
    assert finishes(lambda: copies.extend(map(duplicate, (fresh, operator))))
    if duplicate is not copy.copy:  # which shares the operators, and so waits for them
        assert torch.equal(copies[0].inverse(y), expected)
        bias = 0 if conv.bias is None else conv.bias.detach().view(-1, 1, 1)
        assert torch.equal(copies[1].pseudo_inverse(y - bias), expected)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind.solver in (SparseLU, Krylov)], ids=str)
def test_a_copy_without_its_factors_makes_them_once(kind, only, monkeypatch):
    only(kind)
    operator = kind.layer().operator(SIZE)
    operator.prepare()
    twin, calls, prepare = copy.deepcopy(operator), [], kind.solver.prepare
    monkeypatch.setattr(kind.solver, "prepare", lambda self: calls.append(1) or prepare(self))
    y = torch.randn(1, 3, *SIZE)
    answers = together([partial(twin.pseudo_inverse, y)] * 8)
    assert len(calls) == 1 and all(torch.equal(x, operator.pseudo_inverse(y)) for x in answers)


class Kept:
    """With two values, of which a pickle of the first asks for the second."""

    def __init__(self) -> None:
        self.computed: list[str] = []

    @cached_property
    def first(self) -> Any:
        """The first."""
        return Asking(self)

    @cached_property
    def second(self) -> int:
        self.computed.append("second")
        return 2


class Asking:
    def __init__(self, owner: Kept) -> None:
        self.owner = owner

    def __reduce__(self) -> Any:
        return int, (self.owner.second,)


class Twice(Kept):
    @cached_property
    def second(self) -> int:
        return 2 * super().second


def test_values_are_kept_and_copied():
    kept = Kept()
    assert isinstance(Kept.second, cached_property) and Kept.first.__doc__ == "The first."
    assert kept.second == kept.second == 2 and kept.computed == ["second"]
    kept = Kept()
    kept.first  # noqa: B018
    # As another thread would, this adds a value while the others are written.
    assert pickle.loads(pickle.dumps(kept)).first == 2 and kept.computed == ["second"]
    kept = Kept()
    kept.first  # noqa: B018
    assert copy.deepcopy(kept).first == 2 and kept.computed == ["second"]
    twice = Twice()
    assert twice.second == twice.second == 4 and twice.computed == ["second"]
    late = Kept()
    assert cached_property.__get__(Kept.__dict__["second"], late) == late.second == 2


def test_the_first_value_that_is_there_is_kept():
    """Two threads compute at once: both get what the first has published."""
    both, owners = threading.Barrier(2), []

    class Slow:
        @cached_property
        def value(self) -> object:
            both.wait(PATIENCE)
            owners.append(self)
            return object()

    slow = Slow()
    a, b = together([lambda: slow.value] * 2)
    assert a is b is slow.value and len(owners) == 2


# -- errors and interruptions --------------------------------------------------------------------------------------


class OnPurpose(BaseException):
    """An error that nobody expects."""


@pytest.mark.parametrize("error", [OnPurpose, KeyboardInterrupt, SingularMapError, torch.OutOfMemoryError])
@pytest.mark.parametrize("verb", ["inverse", "volume", "report", "condition"])
@every_kind
def test_a_failure_leaves_all_as_it_was(kind, verb, error, only, monkeypatch):
    if verb == "volume" and not kind.volume:
        pytest.skip("it has none")
    only(kind)
    conv = kind.layer()
    expected = VERBS[verb](copy.deepcopy(conv))
    function, left = getattr(*kind.inside), [1, 2]

    def failing(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise error(f"on purpose, {left.pop()}")
        return function(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(*kind.inside, failing)
        for again in left[::-1]:
            if kind.solver is SparseLU and issubclass(error, RuntimeError):
                left.clear()  # SuperLU's own word for a singular matrix
            elif verb == "volume" and error is SingularMapError:
                left.clear()  # another way to the volume is taken
            elif verb != "condition" or kind.solver is Dense:
                with pytest.raises(error, match=f"on purpose, {again}"):
                    VERBS[verb](conv)
                assert not conv.operator(SIZE).ready
        assert finishes(lambda: conv.operator(SIZE).forward(torch.zeros(1, 3, *SIZE).to(conv.weight)))
        left.clear()
        assert finishes(conv.operator(SIZE).prepare)  # in another thread: the lock is free
    assert same(VERBS[verb](conv), expected)


def test_a_warning_that_is_an_error_is_given_each_time():
    conv = InvertibleConv1d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
    conv.weight.data.copy_(torch.tensor([[[1.0, 1.0, 1.0]]]))
    operator = conv.operator((30,))
    with warnings.catch_warnings():
        warnings.simplefilter("error", IllConditionedWarning)
        for _ in range(3):
            with pytest.raises((IllConditionedWarning, SingularMapError)):
                operator.prepare()
    assert not operator.ready


def test_a_layer_may_be_asked_within_its_own_preparation(monkeypatch):
    """By what hears its warnings, for one."""
    conv, prepare, heard = plain("zeros"), Ring.prepare, []

    def telling(solver: Any) -> None:
        prepare(solver)
        heard.append((conv.operator(SIZE).plan(), conv.log_abs_det(SIZE), repr(conv.operator(SIZE))))

    monkeypatch.setattr(Ring, "prepare", telling)
    assert finishes(conv.operator(SIZE).prepare) and len(heard) == 1


# -- locks ---------------------------------------------------------------------------------------------------------


class Noting:
    """A lock that notes whenever a thread takes it while it holds another."""

    held = threading.local()
    nested: list[tuple[Any, Any]] = []  # noqa: RUF012  (of all)
    taken = 0

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def __enter__(self) -> None:
        mine = self.held.__dict__.setdefault("locks", [])
        Noting.taken += 1
        Noting.nested += [(other, self) for other in mine if other is not self]
        self.lock.acquire()
        mine.append(self)

    def __exit__(self, *_: object) -> None:
        self.held.locks.pop()
        self.lock.release()


def test_nobody_holds_two_locks(monkeypatch):
    """So there is no order in which two threads could wait for each other."""
    for module in (operators, cache):
        monkeypatch.setattr(module, "new_lock", Noting)
    monkeypatch.setattr(Noting, "nested", [])
    flow = MultiScaleFlow(image_size=8, scales=2, steps=2, hidden=8, padding_mode="zeros")
    square = MultiScaleFlow(image_size=8, scales=2, steps=2, hidden=8)
    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    for model in (flow, square):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        with keep_fresh(optimizer, model):
            for _ in range(2):
                optimizer.zero_grad()
                model.bits_per_dim(x).mean().backward()
                optimizer.step()
        with torch.no_grad():
            model.sample(2)
    for kind in KINDS:
        asked(kind.layer(), [verb for verb in VERBS if kind.volume or verb != "volume"])
    assert Noting.taken > 100 and Noting.nested == []


def test_layers_taken_together_and_alone_at_once():
    """A flow's log-determinants leave parts of their factors with layers that other threads ask meanwhile."""
    layers = [plain("circular") for _ in range(4)]
    y = torch.randn(2, 3, *SIZE)
    expected = [[copy.deepcopy(c).inverse(y).detach(), copy.deepcopy(c).log_abs_det(SIZE).detach()] for c in layers]
    for _ in range(10):
        fresh, log_dets = copy.deepcopy(layers), LogDets()

        def all_of_them(log_dets: Any = log_dets, fresh: Any = fresh) -> list[Any]:
            total = log_dets.log_abs_det(fresh, [c.weight for c in fresh], [SIZE] * 4).detach()
            return [total, *(t for c in fresh for t in (c.inverse(y).detach(), c.log_abs_det(SIZE).detach()))]

        def each(c: Any) -> list[Any]:
            return [c.inverse(y).detach(), c.log_abs_det(SIZE).detach()]

        tasks: list[Any] = [all_of_them, *(partial(each, c) for c in fresh), all_of_them]
        first, *alone, last = together(tasks)
        assert same(first, last) and same(first[1:], [t for pair in expected for t in pair])
        assert all(same(a, b) for a, b in zip(alone, expected, strict=True))


def test_what_has_answered_is_not_replaced_by_a_part():
    layers = [plain("circular") for _ in range(3)]
    layers[0].inverse(torch.randn(1, 3, *SIZE))
    own = [conv.operator(SIZE) for conv in layers]
    log_dets = LogDets()
    for _ in range(2):
        log_dets.log_abs_det(layers, [conv.weight for conv in layers], [SIZE] * 3)
        assert [conv.operator(SIZE) is op for conv, op in zip(layers, own, strict=True)] == [True, False, False]
        layers[0].weight.data.mul_(1.1)
        layers[0].log_abs_det(SIZE)
        own[0] = layers[0].operator(SIZE)


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_answers_are_each_caller_s_own(padding_mode):
    """What one caller writes into an answer, or differentiates, is not what another gets."""
    conv = plain(padding_mode).double()
    operator = conv.operator(SIZE)
    for ask in (operator.log_volume, operator.log_volume_gradient, operator.singular_values, operator.condition_number):
        expected = ask().clone()
        ask().mul_(2)
        assert torch.equal(ask(), expected)
    weights = [conv.weight.detach().clone().requires_grad_() for _ in range(2)]
    volumes = [conv.log_abs_det(SIZE, weight=weight) for weight in weights]
    first, second = (torch.autograd.grad(v, w)[0] for v, w in zip(volumes, weights, strict=True))
    assert torch.equal(first, second) and not operator.log_volume().requires_grad


# -- the weight changes meanwhile ----------------------------------------------------------------------------------


@pytest.mark.parametrize("padding_mode", ["circular", "zeros"])
def test_an_answer_is_of_one_weight(padding_mode):
    """Of the old one or of the new, while another thread puts one in the place of the other; never of both."""
    conv, stop = plain(padding_mode), threading.Event()
    weights = [(factor * conv.weight.detach()).clone() for factor in (1.0, 1.3)]
    verbs = ["inverse", "gradients", "volume", "condition", "adjoint of the inverse"]
    expected = []
    for weight in weights:
        conv.weight.data = weight
        expected.append(asked(copy.deepcopy(conv), verbs))

    def change() -> None:
        while not stop.wait(1e-4):  # else it would hardly let go of Python's own lock
            conv.weight.data = weights[0] if conv.weight.data_ptr() == weights[1].data_ptr() else weights[1]

    def ask() -> list[int]:
        seen = []
        for _ in range(8):
            for verb in verbs:
                answer = VERBS[verb](conv)
                seen.append([same(answer, right[verb]) for right in expected].index(True))
        return seen

    changing = threading.Thread(target=change)
    changing.start()
    try:
        together([ask] * 3)
    finally:
        stop.set()
        changing.join()


# -- what all share ------------------------------------------------------------------------------------------------


def test_limits_of_blas_are_set_back_by_the_last():
    def threads_of_blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, "blas"):
        if threads_of_blas() != {2}:
            pytest.skip("this BLAS has one thread")
        early, late = one_blas_thread(), one_blas_thread()
        early.__enter__()
        late.__enter__()
        assert threads_of_blas() == {1}
        early.__exit__(None, None, None)
        assert threads_of_blas() == {1}  # the other is still inside
        late.__exit__(None, None, None)
        assert threads_of_blas() == {2}


def test_short_steps_take_one_thread_and_nobody_else_hears_of_it():
    torch.set_num_threads(2)
    seen: list[int] = []
    with threadpool_limits(2, "blas"):
        with few_threads(SMALL + 1):
            assert torch.get_num_threads() == 2
        for _ in range(2):
            with suppress(ValueError), few_threads(SMALL), few_threads(1):
                assert torch.get_num_threads() == 1
                assert finishes(lambda: seen.append(torch.get_num_threads()))  # a new thread
                raise ValueError
            assert torch.get_num_threads() == 2
    assert seen == [2, 2]


@pytest.mark.parametrize("verb", ["singular_values", "inverse"])
def test_iterations_on_small_vectors_take_one_thread(verb, monkeypatch):
    """With two, of README's first layer on a busy machine, the condition number took 45 s in place of 2.5 s."""
    torch.set_num_threads(2)
    seen, adjoint = [], Convolution.adjoint

    def counted(conv: Convolution, y: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return adjoint(conv, y)

    conv = plain("zeros", solver="iterative" if verb == "inverse" else "auto")
    operator, y = conv.operator((24, 30)), torch.randn(2, 3, 24, 30)
    operator.prepare()
    monkeypatch.setattr(Convolution, "adjoint", counted)
    if verb == "inverse":
        operator.pseudo_inverse(y)
    else:
        operator.singular_values(1)
    assert len(seen) > 3 and set(seen) == {1} and torch.get_num_threads() == 2


def test_a_thread_that_leaves_blas_to_others_keeps_its_own_threads():
    """A limit that is taken back sets back all libraries that it knows: OpenMP has a number for each thread."""
    torch.set_num_threads(2)
    early = one_blas_thread()
    early.__enter__()
    torch.set_num_threads(1)
    early.__exit__(None, None, None)
    assert torch.get_num_threads() == 1


def test_tables_that_others_push_out():
    table = spectrum.outside_inference(lambda key: SimpleNamespace(key=key))

    class Key:
        hashes = 0

        def __hash__(self) -> int:
            self.hashes += 1
            if self.hashes == 4:  # as if many others came between a look and the next
                for other in range(64):
                    table(other)
            return 0

    key = Key()
    first = table(key)
    while key.hashes < 8:
        assert table(key).key is first.key


def test_tables_made_at_once():
    table = spectrum.outside_inference(lambda key: SimpleNamespace(key=key))

    def ask(start: int) -> bool:
        return all(table((start + i) % 150).key == (start + i) % 150 for i in range(600))

    assert all(together([partial(ask, 20 * i) for i in range(8)]))


def test_a_new_thread_computes_in_as_many_threads_as_are_wanted():
    """PyTorch tells it late: the gradient of a convolution, its first task, would have other digits."""
    conv, y = plain("zeros"), torch.randn(2, 3, 24, 24)
    first: list[Callable[[], Any]] = []
    found: list[torch.Tensor] = []

    def ask() -> None:
        first.pop()()
        found.append(torch.nn.grad.conv2d_weight(y, conv.weight.shape, y, padding=1))

    for wanted in (1, 2, 1, 2):  # one of them is not that of the environment, with which threads begin
        torch.set_num_threads(wanted)
        found.clear()
        for begin in (torch.get_num_threads, lambda: conv.operator((24, 24)).adjoint(y), conv.effective_weight):
            first.append(begin)
            assert finishes(ask)
        assert all(torch.equal(gradient, found[0]) for gradient in found)


def test_locks_are_forgotten_with_their_owners():
    before = len(threads._locks)
    for _ in range(50):
        InvertibleConv1d(1, 1, 1).operator((4,))
    assert len(threads._locks) <= before + 2
