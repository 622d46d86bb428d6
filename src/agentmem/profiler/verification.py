"""What `agentmem verify` checks: the reference agent, dense and compact, through the same steps.

    Plan: tasks  -->  AgentRecord   one kind of agent: what was lost, bytes while working, time of a step
                      CrowdRecord   many agents that share their transitions: bytes
                      RunRecord     many agents over many steps: memory of the process
                         .promises()  -->  Promise: a figure beside the most it may be

Bytes are what tracemalloc sees, and mapped files. Times are medians of steps, with no tracer running; the agents take
turns of twenty steps, so that each finds its own code and data in the caches, as where all agents are of its kind.
`tables` shows the records.
"""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice, zip_longest
from math import isfinite
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from agentmem.compact import compact
from agentmem.footprint import footprint
from agentmem.profiler.process import rss
from agentmem.profiler.promises import (
    AgentRecord,
    CrowdRecord,
    Differences,
    Limit,
    Record,
    RunRecord,
)
from agentmem.profiler.reference_agent import (
    PRUNE,
    Agent,
    Array,
    Case,
    Reading,
    Sizes,
    likelihoods,
    make_agent,
    new_entries,
    observations,
    step,
)
from agentmem.sharing import ModelPool

MIB = 2**20
MASS = 1e-5  # relative, of a mode: which of two cells that tie but for rounding is read does not matter
LENIENCE = 3.0
STEPS = 20
TURN = 20  # steps


# Of one agent of full size, up to a density, with sparse observations and transitions to neighbours.
LIMITS = {
    0.001: Limit(0.25 * MIB, 1 / 20),
    0.01: Limit(0.9 * MIB, 1 / 20),
    0.1: Limit(4.6 * MIB, 1.0),
    0.5: Limit(18 * MIB, 1.5),
    1.0: Limit(None, 1.5),
}
CROWD = Limit(45 * MIB)  # 50 agents of 1 % density
RUN = Limit(2 * MIB)  # that a process may seem to grow: allocators give back when they like


Plan = list[Callable[[], Record]]


def standard_plan(seed: int = 0, *, lenience: float = LENIENCE) -> Plan:
    """What `agentmem verify` measures: every density, then the other kinds of each part, crowds and a run.

    A step may take `lenience` times what is promised, because what else a machine does falls on either agent: the
    promise itself is for an idle one and benchmarks/bench_compact.py. A step that goes through a dense copy fails.
    """
    inputs = Inputs(Sizes(), seed)
    agents = [partial(compare, case, inputs, limit=limit_of(case, lenience)) for case in [*BELIEFS, *OTHERS]]
    return [
        *agents,
        partial(hold, Case(0.01), 50, inputs, limit=CROWD),
        partial(run, LONG, 100, Inputs(LONG.sizes, seed), steps=50, limit=RUN),
    ]


BELIEFS = [Case(density, where) for density in (1e-4, 0.001, 0.01, 0.05, 0.1, 0.5) for where in ("random", "clustered")]
BELIEFS += [Case(1.0), Case(1.0, "uniform"), Case(0.01, "tail")]
OTHERS = [
    Case(0.01, log="records", shared=False),
    Case(0.01, observation="dense", transition="noise"),
    Case(0.01, observation="dense", transition="dense", shared=False),
]
# The support of 0.1 % at full size, made in a quarter of the time.
LONG = Case(0.004, "clustered", sizes=Sizes(belief=(1024, 1920), strings=100))


def limit_of(case: Case, lenience: float = 1.0) -> Limit:
    """What is promised of an agent of full size."""
    limit = next(limit for density, limit in LIMITS.items() if case.density <= density)
    is_sparse = case.observation == "sparse" and case.transition == "neighbours"
    assert limit.time is not None
    return Limit(limit.nbytes if is_sparse else None, lenience * limit.time)


# ---- measuring


class Inputs:
    """What steps are given. Made and interned before anything is counted; all agents share it."""

    def __init__(self, sizes: Sizes, seed: int) -> None:
        self.sizes, self.seed = sizes, seed
        self.pool = ModelPool()
        self.likelihoods: list[Array] = [self.pool.intern(likelihood) for likelihood in likelihoods(sizes)]

    def of(self, case: Case, *, interned: bool = True) -> Iterator[tuple[Array, Any, Array]]:
        """Likelihood, entry of the log and observation of each step, without end."""
        seen = observations(case, self.seed)
        favour = self.likelihoods if interned else [likelihood.copy() for likelihood in self.likelihoods]
        for k, entry in enumerate(new_entries(case, self.seed)):
            yield favour[k % len(favour)], entry, seen[k % len(seen)]

    def compact_agent(self, case: Case, number: int = 0) -> Agent:
        agent = make_agent(case, self.seed, number)
        compact(agent, prune=PRUNE, pool=self.pool)  # what a step would drop anyway; only a tail has any of it
        return agent


def compare(
    case: Case, inputs: Inputs, *, limit: Limit, interned: bool = True, steps: int = STEPS
) -> AgentRecord:
    """Take a dense and a compact agent through the same steps. About 0.3 GiB at full size."""
    dense, ours = make_agent(case, inputs.seed), inputs.compact_agent(case)
    dense_seconds, seconds = [], []
    readings_differ = 0
    given = inputs.of(case, interned=interned)
    for first in range(0, steps, TURN):
        turn = list(islice(given, min(TURN, steps - first)))
        found = []
        for now in turn:
            began = perf_counter()
            found.append(step(ours, *now))
            seconds.append(perf_counter() - began)
        for now, reading in zip(turn, found, strict=True):
            began = perf_counter()
            expected = step(dense, *now)
            dense_seconds.append(perf_counter() - began)
            readings_differ += not is_same_reading(reading, expected, dense)
    lost = differences(ours, dense)
    held, dense_held = footprint(ours), footprint(dense)
    del dense, ours
    return AgentRecord(
        case=case,
        interned=interned,
        steps=steps,
        limit=limit,
        differences=lost,
        readings_differ=readings_differ,
        dense_bytes=dense_held.total,
        nbytes=traced(case, 1, inputs, steps),
        dense_parts=parts_of(dense_held.parts),
        parts=parts_of(held.parts),
        dense_seconds=median(dense_seconds),
        seconds=median(seconds),
    )


def hold(case: Case, agents: int, inputs: Inputs, *, limit: Limit, steps: int = STEPS) -> CrowdRecord:
    """Hold many compact agents at once; one of them is dense at a time."""
    return CrowdRecord(case, agents, steps, limit, traced(case, agents, inputs, steps))


def run(case: Case, agents: int, inputs: Inputs, *, steps: int, limit: Limit) -> RunRecord:
    """Step many compact agents in turn, and look at the process ten times."""
    crowd = [inputs.compact_agent(case, number) for number in range(agents)]
    given = inputs.of(case)
    every = max(1, steps // 10)
    samples = []
    for k in range(1, steps + 1):
        now = next(given)
        for agent in crowd:
            step(agent, *now)
        if k % every == 0:
            gc.collect()
            logs = sum(footprint(agent.log).total for agent in crowd)
            samples.append((k, rss(), logs))
    sampled, resident, logged = zip(*samples, strict=True)
    return RunRecord(case, agents, limit, sampled, resident, logged)


def traced(case: Case, agents: int, inputs: Inputs, steps: int) -> int:
    """Bytes that compact agents hold after their steps, mapped files too."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        crowd = _worked(case, agents, inputs, steps)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before + footprint(crowd).mapped
    finally:
        tracemalloc.stop()


def _worked(case: Case, agents: int, inputs: Inputs, steps: int) -> list[Agent]:
    # A function of its own: what it was given to write goes when it returns, unless an agent keeps it.
    given = list(islice(inputs.of(case), steps))
    crowd = []
    for number in range(agents):
        agent = inputs.compact_agent(case, number)
        for now in given:
            step(agent, *now)
        crowd.append(agent)
    return crowd


def parts_of(parts: dict[str, int]) -> dict[str, int]:
    return {name: parts[name] for name in ("belief", "log", "observation", "transition")}


# ---- comparing


def differences(ours: Agent, dense: Agent) -> Differences:
    """What of the dense agent is not in ours."""
    return Differences(
        belief=l1(np.asarray(ours.belief), dense.belief),
        log=sum(not is_same(a, b) for a, b in zip_longest(ours.log, dense.log, fillvalue=StopIteration)),
        observation=cells_differ(np.asarray(ours.observation), dense.observation),
        transition=cells_differ(np.asarray(ours.transition), dense.transition),
    )


def is_same_reading(found: Reading, expected: Reading, dense: Agent) -> bool:
    """Whether both steps read the same, where any of the dense agent's modes is as good."""
    mode, mass, entry, *rows = found
    _, most, expected_entry, *expected_rows = expected
    tolerance = MASS * most
    return bool(
        abs(mass - most) <= tolerance
        and abs(dense.belief.flat[mode] - most) <= tolerance
        and is_same(entry, expected_entry)
        and not any(map(cells_differ, rows, expected_rows))
    )


def is_same(entry: Any, expected: Any) -> bool:
    return repr(entry) == repr(expected)  # 1, 1.0 and True are equal


def cells_differ(found: Array, expected: Array) -> int:
    """How many cells are not equal; all of them if shapes or dtypes are not."""
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return expected.size
    return int(np.count_nonzero(found != expected))


def l1(belief: Array, expected: Array) -> float:
    """In double, some rows at a time; 2.0, the most there can be, where the two are no numbers to compare."""
    if belief.shape != expected.shape:
        return 2.0
    total = sum(
        float(np.abs(np.subtract(belief[row : row + 64], expected[row : row + 64], dtype=np.float64)).sum())
        for row in range(0, len(expected), 64)
    )
    return total if isfinite(total) else 2.0
