"""Threads and forks on a machine that is kept busy: every answer that of a fresh layer, to the last bit, and none late?

    python -m benchmarks.freshness busy --rounds 200

The routes are those of `tests/routes.py`, with circular borders and with zeros.  At each moment at which a route lets
the layer be looked at, eight threads ask at once, each another verb; when it is done they ask all verbs, each starting
with another, and a child that is forked meanwhile asks them as well.  Idle loops, two for each core, and a short switch
interval of Python take care that any of them is interrupted at any place.  A child that has not ended after two minutes
counts as hung.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.freshness.caches import quiet_lightning
from benchmarks.harness.machine import machine
from invconv import InvertibleConv2d

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))

from routes import ROUTES, Route, Subject, Unavailable

QUICK = {"rounds": 1, "routes": ["data", "Adam"]}
SIZE = (6, 8)
CROWD = 8
PATIENCE = 120.0
BORDERS = ("circular", "zeros")


def inverse_and_gradients(conv: Any, y: Tensor, weight: Tensor) -> list[Tensor]:
    y, weight = y.clone().requires_grad_(), weight.clone().requires_grad_()
    x = conv.inverse(y, weight=weight)
    return [x.detach(), *torch.autograd.grad(x.float().square().sum(), [y, weight])]


def volume_and_gradient(conv: Any, _: Tensor, weight: Tensor) -> list[Tensor]:
    weight = weight.clone().requires_grad_()
    volume = conv.log_abs_det(SIZE, weight=weight)
    return [volume.detach(), *torch.autograd.grad(volume, weight)]


def as_an_operator(conv: Any, y: Tensor, _: Tensor) -> list[Tensor]:
    op = conv.operator(SIZE)
    y = y.to(op.dtype)
    return [op.source, op.forward(y), op.adjoint(y), op.pseudo_inverse(y), op.pseudo_inverse_adjoint(y)]


def report(conv: Any, *_: Tensor) -> list[Tensor]:
    said = conv.operator(SIZE).report()
    return [torch.tensor([said.relative_error, said.relative_residual, said.condition, float(said.rank or -1)])]


VERBS = [
    inverse_and_gradients,
    volume_and_gradient,
    as_an_operator,
    report,
    lambda conv, *_: [conv.singular_values(SIZE)],
    lambda conv, *_: [conv.condition_number(SIZE)],
    lambda conv, y, _: [conv.inverse(y).detach()],
]


class Crowd:
    """Asks a module in many threads and in a forked child, and counts what comes of it."""

    def __init__(self) -> None:
        self.images = torch.randn(2, 3, *SIZE)
        self.counts: Counter[str] = Counter()

    def check(self, module: Any, fork: bool = False) -> None:
        with torch.inference_mode(False):
            weight = module.effective_weight().detach().clone()
            y = self.images.to(weight)
            twin = InvertibleConv2d(3, 3, 3, padding=1, padding_mode=module.padding_mode)
            twin.weight, twin.bias = nn.Parameter(weight.clone()), nn.Parameter(module.bias.detach().clone())
            expected = [verb(twin, y, weight) for verb in VERBS]

        def wrong(first: int) -> int:
            """How many verbs have another answer than the fresh layer, the one of this number asked first."""
            count = 0
            for i in range(asked):
                verb = (first + i) % len(VERBS)
                answers = VERBS[verb](module, y, weight)
                count += not all(map(torch.equal, answers, expected[verb]))
            return count

        asked = len(VERBS) if fork else 1
        ready, errors = threading.Barrier(CROWD + 1), []

        def ask(first: int) -> None:
            try:
                ready.wait()
                self.counts["wrong"] += wrong(first)
            except BaseException as error:
                errors.append(error)

        crowd = [threading.Thread(target=ask, args=(i,)) for i in range(CROWD)]
        for thread in crowd:
            thread.start()
        ready.wait()
        if fork:
            self.counts[child(lambda: wrong(0))] += 1
        for thread in crowd:
            thread.join()
        self.counts["answers"] += asked * (CROWD + fork)
        if errors:
            raise errors[0]


def child(wrong: Any) -> str:
    """What became of a forked child that counts wrong answers: "right", "wrong", "crashed" or "hung"."""
    pid = os.fork()
    if pid == 0:
        code = 2
        with suppress(BaseException):
            code = 1 if wrong() else 0
        os._exit(code)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return {0: "right", 256: "wrong"}.get(status, "crashed")
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return "hung"


@contextmanager
def kept_busy(loops: int) -> Iterator[None]:
    """Loops in other processes, and threads that are interrupted a hundred times as often as is usual."""
    before = sys.getswitchinterval()
    burning = [subprocess.Popen([sys.executable, "-S", "-c", "while True: pass"]) for _ in range(loops)]
    sys.setswitchinterval(5e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        for process in burning:
            process.kill()
            process.wait()


def walk(crowd: Crowd, route: Route, padding_mode: str) -> None:
    """One route, and the crowd at each moment at which it lets the layer be looked at."""
    conv, twin = (InvertibleConv2d(3, 3, 3, padding=1, padding_mode=padding_mode) for _ in range(2))
    crowd.check(conv)
    with suppress(Unavailable):
        subject = Subject(conv, "weight", lambda: twin, crowd.images, crowd.check)
        crowd.check(route(subject) or conv, fork=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=200, help="how often the table is walked through")
    parser.add_argument("--routes", nargs="+", default=[""], help="only those whose names contain one of these")
    parser.add_argument("--loops", type=int, default=2 * (os.cpu_count() or 1), help="processes that keep it busy")


def main(options: argparse.Namespace) -> None:
    warnings.filterwarnings("ignore")
    quiet_lightning()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    routes = {name: route for name, route in ROUTES.items() if any(part in name for part in options.routes)}
    routes.pop("8 threads at once", None)  # they all are
    crowd, start = Crowd(), time.monotonic()
    with kept_busy(options.loops):
        for turn in range(1, options.rounds + 1):
            for name, route in routes.items():
                for padding_mode in BORDERS:
                    before = crowd.counts["wrong"] + crowd.counts["crashed"] + crowd.counts["hung"]
                    walk(crowd, route, padding_mode)
                    if crowd.counts["wrong"] + crowd.counts["crashed"] + crowd.counts["hung"] > before:
                        print(f"round {turn}: {name}, {padding_mode}: {dict(crowd.counts)}", flush=True)
            if turn == options.rounds or turn & (turn - 1) == 0:
                print(tell(turn, crowd.counts, time.monotonic() - start), flush=True)
    if crowd.counts["wrong"] or crowd.counts["crashed"] or crowd.counts["hung"]:
        raise SystemExit(1)


def tell(turn: int, counts: Counter[str], seconds: float) -> str:
    children = sum(counts[kind] for kind in ("right", "crashed", "hung"))
    return (
        f"round {turn}: {counts['answers']} answers, {counts['wrong']} wrong; "
        f"{children} children, {counts['crashed']} crashed, {counts['hung']} hung; {seconds:.0f} s"
    )
