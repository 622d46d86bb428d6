"""Growth: does memory grow, and where? By what tracemalloc traces to each line, and by each part of each agent.

    each step:  sample()  ->  a row of bytes by location        after them:  trends()  ->  a verdict for each that grows

The recorder is laid out before, and what the profiler itself allocates is left out, or it would find itself.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from operator import index

import numpy as np
from numpy.typing import NDArray

from agentmem.profiler.agents import Agents, holdings, named, part_name
from agentmem.profiler.records import Cycle, Line, Trend
from agentmem.profiler.snapshot import traced_lines
from agentmem.profiler.tracing import TRACING
from agentmem.profiler.trend import detect_trend

LEAST = 48.0  # bytes a sample: slower growth is not worth a name
LEAST_OBJECTS = 0.2  # a sample
ALL_LINES = "traced bytes"
ALL_AGENTS = "all agents"
IN_ALL = ", in all"
WARM_UP = 3   # cycles that may leave something behind: caches, what is built when first used


class Growth:
    """A recorder of `n_samples` looks at where memory is, for `detect_trend`.

    Parameters
    ----------
    agents : mapping, iterable or None
        Whose parts are looked at.
    n_samples : int
        How many there will be; at least 60 are needed for a verdict.

    Notes
    -----
    Lines are recorded while tracemalloc runs. A sample runs the garbage collector and empties CPython's cache of names.
    It takes some 3 us for each block that is traced and 2 us for each object of an agent; 16 bytes are kept for each
    location and sample.

    Examples
    --------
    >>> log, agent = [], {"log": [], "seen": {}}
    >>> growth = Growth({"robot": agent}, n_samples=90)
    >>> for step in range(90):
    ...     agent["log"].append(str(step) * 20)
    ...     agent["seen"][step % 10] = step
    ...     growth.sample()
    >>> [trend.name for trend in growth.trends()]
    ['robot.log']
    """

    __slots__ = ("_agents", "_columns", "_held", "_lines", "_n")

    def __init__(self, agents: Agents | None = None, *, n_samples: int) -> None:
        if index(n_samples) < 1:
            raise ValueError(f"n_samples={n_samples} given; expected at least 1")
        self._agents = agents
        self._columns: dict[str, int] = {}  # of each location
        self._lines = set[str]()            # the locations that are lines
        self._held: NDArray[np.float64] = np.zeros((2, index(n_samples), 256))  # bytes, objects; by sample; by column
        self._n = 0

    def sample(self) -> None:
        """Look now. IndexError if there were as many samples as there is room for."""
        if self._n == self._held.shape[1]:
            raise IndexError(f"{self._n} samples were taken; there is room for no more")
        _settle()
        found: list[tuple[str, int, int]] = []
        if tracemalloc.is_tracing():
            lines = traced_lines(most=None).lines
            found += [(line.where, line.nbytes, line.count) for line in lines]
            self._lines.update(line.where for line in lines)
            found.append((ALL_LINES, sum(line.nbytes for line in lines), 0))
        if self._agents is not None:
            held = holdings(named(self._agents))
            for agent, counts in zip(held.agents, held.counts, strict=True):
                found += [(part_name(agent.name, part), agent.parts[part], counts[part]) for part in counts]
                found.append((agent.name + IN_ALL, agent.own, sum(counts.values())))
            found += [(f"shared {part.name}", part.nbytes, 0) for part in held.shared]
            found.append((ALL_AGENTS, sum(agent.own for agent in held.agents), len(held.agents)))
        for where, _, _ in found:
            self._columns.setdefault(where, len(self._columns))
        while len(self._columns) > self._held.shape[2]:
            self._held = np.concatenate([self._held, np.zeros_like(self._held)], axis=2)
        for where, nbytes, count in found:
            self._held[:, self._n, self._columns[where]] += nbytes, count  # several may have one name
        self._n += 1

    def trends(self, *, least: float = LEAST) -> tuple[Trend, ...]:
        """All that was traced, if it was, then each location that grows by more than `least` bytes a sample."""
        found = []
        for where in self._columns:
            trend = self._trend(where, least)
            if where == ALL_LINES or trend.verdict == "growing":
                found.append(trend)
        found = self._most_exact(found)
        return tuple(sorted(found, key=lambda trend: (trend.name != ALL_LINES, -(trend.slope or 0.0), trend.name)))

    def _trend(self, where: str, least: float) -> Trend:
        nbytes, count = self._held[:, : self._n, self._columns[where]]
        trend = detect_trend(nbytes, name=where, minimum_slope=least)
        if trend.verdict == "growing" or trend.slope is None or trend.slope < least:
            return trend
        # A dict's table doubles: its bytes look like a few jumps. What is in it comes one by one.
        by_one = detect_trend(count, name=where, minimum_slope=LEAST_OBJECTS)
        return trend if by_one.verdict != "growing" else replace(
            trend, verdict="growing", reason=f"bytes in jumps, objects steadily: {by_one.slope:.3g} more a sample"
        )

    def _most_exact(self, trends: list[Trend]) -> list[Trend]:
        """Without an agent of which a part is named, and without all agents where one is."""
        parts = [trend.name for trend in trends if trend.name not in (ALL_LINES, ALL_AGENTS)]

        def is_said(name: str) -> bool:
            agent = name.removesuffix(IN_ALL)
            if name == ALL_AGENTS:
                return any(part not in self._lines for part in parts)
            inside = f"{agent}.", f"{agent}["
            return name.endswith(IN_ALL) and any(part == agent or part.startswith(inside) for part in parts)

        return [trend for trend in trends if not is_said(trend.name)]


# CPython's cache of attribute look-ups holds the names that it was asked with. C code, as NumPy's, asks with a new text
# each time: the cache grows until all of its 4,096 places are taken, by some 60 bytes a look-up.
_forget_names: Callable[[], None] = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache


def _settle() -> None:
    """Free what nobody holds."""
    gc.collect()
    _forget_names()


def check_cycle(run: Callable[[], object], *, cycles: int = 5, allowed: int = 64) -> Cycle:
    """Whether memory comes back to where it was after `run`, which builds something, uses it and drops it.

    Parameters
    ----------
    run : callable
        Is called 3 times to warm up, then `cycles` times; what it returns is dropped.
    cycles : int
    allowed : int
        Bytes that may stay each time: the median over the cycles is held to it.

    Returns
    -------
    Cycle
        With the lines that held more after the last cycle than before the first one.

    Examples
    --------
    >>> check_cycle(lambda: list(range(1000))).returns
    True
    >>> kept = []
    >>> check_cycle(lambda: kept.append("x" * 1000 + str(len(kept)))).returns
    False
    """
    if index(cycles) < 1:
        raise ValueError(f"cycles={cycles} given; expected at least 1")
    traces = TRACING.start(1)
    try:
        for _ in range(WARM_UP):
            run()
        before = _lines()
        held = [sum(before.values())]
        for _ in range(cycles):
            run()
            after = _lines()
            held.append(sum(after.values()))
    finally:
        TRACING.stop(traces)
    left = tuple(np.diff(held).tolist())
    grown = [(where, nbytes - before.get(where, 0)) for where, nbytes in after.items()]
    lines = [Line(where, nbytes, cycles) for where, nbytes in grown if nbytes > allowed]
    return Cycle(cycles, left, allowed, bool(np.median(left) <= allowed), tuple(sorted(lines, key=_by_bytes)))


def _by_bytes(line: Line) -> tuple[int, str]:
    return -line.nbytes, line.where


def _lines() -> dict[str, int]:
    _settle()
    found: dict[str, int] = {}
    for line in traced_lines(most=None).lines:
        found[line.where] = found.get(line.where, 0) + line.nbytes
    return found
