"""How the benchmarks measure and print; knows no workload.

`interleaved` times several ways of doing one thing in alternating rounds, so that what else the machine does
falls on all of them alike. `traced` counts the bytes an object holds, as the allocator saw them. `in_child` runs
what must be measured in a process of its own.
"""

import gc
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from statistics import median, quantiles
from time import perf_counter
from typing import Any

Run = Callable[[], None]
Way = Callable[[int], Run]  # way(n) prepares n repetitions outside the clock and returns what runs them


def repeat(step: Callable[[], object]) -> Way:
    """A way whose step needs nothing prepared."""

    def way(n: int) -> Run:
        def run() -> None:
            for _ in range(n):
                step()

        return run

    return way


def timed(run: Run) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def interleaved(
    ways: dict[str, Way], *, budget: float, batch: float = 2e-4, fewest: int = 7, most: int = 401
) -> dict[str, list[float]]:
    """Seconds per repetition of each way, one figure a round, until `budget` seconds are spent.

    A timed batch lasts about `batch` seconds. One repetition before it, outside the clock, brings back the
    caches that the way before took.
    """
    gc.collect()
    gc.disable()
    try:
        repetitions = {}
        for name, way in ways.items():
            once = min(timed(way(1)) for _ in range(3))
            repetitions[name] = min(1_000, max(1, round(batch / once)))
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        deadline = perf_counter() + budget
        for done in range(most):
            if done >= fewest and perf_counter() > deadline:
                break
            for name, way in ways.items():
                n = repetitions[name]
                run = way(n)
                way(1)()
                seconds[name].append(timed(run) / n)
        return seconds
    finally:
        gc.enable()


def noise(figures: list[float]) -> float:
    """Half the interquartile range as a share of the median."""
    low, middle, high = quantiles(figures, n=4)
    return (high - low) / 2 / middle


class Replay:
    """A clock for pytest-benchmark that moves by rounds already timed.

    pytest-benchmark times one way after the other; ratios need them interleaved. So `interleaved` takes the
    time, and this hands its rounds on: statistics of pytest-benchmark and ratios are of the same rounds.
    """

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def play(self, benchmark: Any, seconds: list[float]) -> None:
        rounds = iter(seconds)

        def advance() -> None:
            self.now += next(rounds, 0.0)

        benchmark.pedantic(advance, rounds=len(seconds), iterations=1)


replay = Replay()


def traced(make: Callable[[], Any], copies: int = 50) -> int:
    """Bytes that one result of `make` holds, the mean of `copies`: what tracemalloc sees go when they go.

    What making them leaves in the caches of interpreter and libraries is not theirs.
    """
    held: list[Any] = [None] * copies

    def level() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        freed = 0
        for _ in range(2):  # the first time is for the bytes that measuring itself takes
            for i in range(copies):
                held[i] = make()
            full = level()
            for i in range(copies):
                held[i] = None
            freed = full - level()
        return round(freed / copies)
    finally:
        tracemalloc.stop()


def in_child(file: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """What `file`, run with these arguments by this Python, prints as JSON on its last line."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    child = subprocess.run(
        [sys.executable, file, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2_000:]
    found: dict[str, Any] = json.loads(child.stdout.splitlines()[-1])
    return found


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a right-aligned text table."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return ["  ".join(map(str.rjust, row, widths)).rstrip() for row in [head, *rows]]


def micro(seconds: list[float]) -> str:
    us = median(seconds) * 1e6
    return f"{us:,.2f}" if us < 100 else f"{us:,.0f}"
