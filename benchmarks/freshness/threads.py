"""Several layers, each factored in a thread of its own, against one alone and against one after the other.

    OMP_NUM_THREADS=1 python -m benchmarks.freshness threads

Layers are independent: as many as there are cores take the time of one. Told are the medians of the ratios of
neighbours, for each kind of border, with one thread of PyTorch for each layer.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Callable

import torch

from benchmarks.harness.machine import machine
from invconv import InvertibleConv2d

QUICK = {"rounds": 2, "channels": 8, "size": 32}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--layers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--channels", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)


def in_turn(tasks: list[Callable[[], object]]) -> None:
    for task in tasks:
        task()


def in_threads(tasks: list[Callable[[], object]]) -> None:
    crowd = [threading.Thread(target=task) for task in tasks]
    for thread in crowd:
        thread.start()
    for thread in crowd:
        thread.join()


def main(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    print(machine())

    def timed(way: Callable[[list[Callable[[], object]]], None], count: int, padding_mode: str) -> float:
        """Seconds for new layers to be prepared."""
        channels, size = options.channels, (options.size, options.size)
        layers = [InvertibleConv2d(channels, channels, 3, padding=1, padding_mode=padding_mode) for _ in range(count)]
        tasks: list[Callable[[], object]] = [layer.operator(size).prepare for layer in layers]
        start = time.perf_counter()
        way(tasks)
        return time.perf_counter() - start

    title = f"{options.layers} layers"
    print(f"{'borders':<12}{'one, ms':>10}{title + ' in threads / one':>28}{title + ' in turn / one':>28}")
    for padding_mode in ("circular", "zeros"):
        timed(in_threads, options.layers, padding_mode)  # a warm-up
        rows = []
        for _ in range(options.rounds):
            one = timed(in_turn, 1, padding_mode)
            rows.append((one, *(timed(way, options.layers, padding_mode) / one for way in (in_threads, in_turn))))
        one, threaded, turned = map(statistics.median, zip(*rows, strict=True))
        print(f"{padding_mode:<12}{1e3 * one:>10.1f}{threaded:>28.2f}{turned:>28.2f}", flush=True)
