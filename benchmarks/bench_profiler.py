"""Claim: looking costs next to nothing, so that it can stay on.

1,000 agents walk a grid: plain NumPy ones, each with a dense belief and a log that is a list, over one transition; and
ours, each with a SparseBelief and a HistoryBuffer over one Model. The same steps are taken bare, under our profiler in
three ways, and under others' (memory_profiler only a few steps: it takes 20 to 100 times as long). Each way in a
process of its own, in turn; ratios are of the CPU time of a step.

Promises: sampling at 100 ms costs at most 2 % of one core, by the sampler thread's own CPU time, the first look at all
agents included; snapshots each second at most 5 %. Printed last, losses too; time never fails a test.
"""

import json
import resource
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler import Profiler
from agentmem.profiler.worlds import grid_world
from harness import in_child, replay, table

SIDE, N_AGENTS, SECONDS, ROUNDS = 30, 1_000, 8.0, 3
KINDS = ["numpy", "agentmem"]
BARE, SAMPLED, SNAPSHOTS, TRACED = "bare", "sampled at 100 ms", "and a snapshot a second", "and lines, by tracemalloc"
WAYS = [BARE, SAMPLED, SNAPSHOTS, TRACED, "tracemalloc alone", "memray", "memory_profiler"]


class NumPyAgent:
    """What it holds is of its own, but for the tables."""

    def __init__(self, tables: list[Any], likelihoods: np.ndarray) -> None:
        self.tables, self.likelihoods = tables, likelihoods
        self.log: list[int] = []
        self.begin()

    def begin(self) -> None:
        self.belief = np.full(self.likelihoods.shape[1], 1 / self.likelihoods.shape[1])

    def step(self, action: int, observation: int) -> None:
        belief = self.tables[action] @ self.belief
        belief *= self.likelihoods[observation]
        self.belief = belief / belief.sum()
        self.log.append(action)
        del self.log[:-100]


class SparseAgent:
    def __init__(self, model: am.Model) -> None:
        self.model, self.log = model, am.HistoryBuffer(100, dtype=int)
        self.begin()

    def begin(self) -> None:
        self.belief = self.model.belief()

    def step(self, action: int, observation: int) -> None:
        self.belief.update(self.model, action, observation)
        self.log.append(action)


def make_agents(kind: str) -> tuple[list[Any], np.ndarray, np.ndarray]:
    world = grid_world(SIDE, SIDE, agents=N_AGENTS, steps=20, seed=0)
    agents: list[Any]
    if kind == "numpy":
        tables = [table.T.tocsr() for table in world.transition]
        likelihoods = world.observation.T.toarray(order="C")
        agents = [NumPyAgent(tables, likelihoods) for _ in range(N_AGENTS)]
    else:
        model = am.Model(world.transition, world.observation)
        agents = [SparseAgent(model) for _ in range(N_AGENTS)]
    return agents, world.actions, world.observations


def one_step(agents: list[Any], actions: list[int], observations: list[int]) -> None:
    for agent, action, observation in zip(agents, actions, observations, strict=True):
        agent.step(action, observation)


def simulate(
    agents: list[Any], actions: np.ndarray, observations: np.ndarray, seconds: float, each_second: Callable[[], object]
) -> int:
    """How many steps of all agents were taken in so many seconds. Each goes its walk to the end, and begins anew."""
    began, looked, steps = time.perf_counter(), 0, 0
    walk = [(a.tolist(), o.tolist()) for a, o in zip(actions, observations, strict=True)]
    while (passed := time.perf_counter() - began) < seconds:
        if steps % len(walk) == 0:
            for agent in agents:
                agent.begin()
        if passed >= looked + 1:
            looked += 1
            each_second()
        one_step(agents, *walk[steps % len(walk)])
        steps += 1
    return steps


def child(kind: str, way: str, seconds: float) -> dict[str, Any]:
    agents, actions, observations = make_agents(kind)
    simulate(agents, actions, observations, 0.5, int)
    profiler = Profiler(agents, interval=0.1, lines=int(way == TRACED)) if way in (SAMPLED, SNAPSHOTS, TRACED) else None
    looking = [0.0]

    def look() -> None:
        if way == SNAPSHOTS and profiler is not None:
            began = time.thread_time()
            profiler.snapshot()
            looking[0] += time.thread_time() - began

    if way == "tracemalloc alone":
        tracemalloc.start()
    with tracker(way), profiler or nullcontext():
        before, began = cpu(), time.perf_counter()
        if way == "memory_profiler":
            steps = by_memory_profiler(agents, actions, observations)
        else:
            steps = simulate(agents, actions, observations, seconds, look)
        spent, passed = cpu() - before, time.perf_counter() - began
        threads = threading.active_count()
    samples = None if profiler is None else profiler.samples
    assert threads <= 2
    return {
        "cpu_per_step": spent / steps,
        "steps": steps,
        "sampler_share": None if samples is None else samples.cpu_seconds / passed,
        "snapshot_share": looking[0] / passed if way == SNAPSHOTS else None,
        "overruns": None if samples is None else samples.overruns,
    }


def by_memory_profiler(agents: list[Any], actions: np.ndarray, observations: np.ndarray) -> int:
    from memory_profiler import LineProfiler

    lines = LineProfiler()
    kind = type(agents[0])
    for agent in agents:
        agent.begin()
    plain, kind.step = kind.step, lines(kind.step)
    one_step(agents[:100], actions[0, :100].tolist(), observations[0, :100].tolist())
    kind.step = plain
    return 100 / len(agents)  # type: ignore[return-value]


@contextmanager
def tracker(way: str) -> Iterator[None]:
    if way != "memray":
        yield
        return
    import memray

    with TemporaryDirectory() as directory, memray.Tracker(f"{directory}/trace"):
        yield


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def available(way: str) -> bool:
    try:
        if way in ("memray", "memory_profiler"):
            __import__(way)
    except ImportError:
        return False
    return True


@pytest.mark.benchmark(timer=replay.read)
@pytest.mark.parametrize("kind", KINDS)
def test_looking(benchmark: Any, kind: str, smoke: bool, report: Any) -> None:
    rounds, seconds = (1, 1.0) if smoke else (ROUNDS, SECONDS)
    ways = [way for way in WAYS if available(way)]
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            found[way].append(in_child(__file__, kind, way, seconds, OPENBLAS_NUM_THREADS="1"))
    bare = [one["cpu_per_step"] for one in found[BARE]]
    rows = []
    for way in ways:
        ratios = [one["cpu_per_step"] / base for one, base in zip(found[way], bare, strict=True)]
        sampler, snapshots = middle(found[way], "sampler_share"), middle(found[way], "snapshot_share")
        verdict = "-"
        if way == SAMPLED:
            verdict = "yes" if sampler <= 0.02 else "NO"
        if way == SNAPSHOTS:
            verdict = "yes" if sampler + snapshots <= 0.05 + 0.02 and snapshots <= 0.05 else "NO"
        rows.append([
            way, f"{median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}", percent(sampler), percent(snapshots),
            {SAMPLED: "2 %", SNAPSHOTS: "5 %"}.get(way, "-"), verdict,
        ])  # fmt: skip
    replay.play(benchmark, bare)
    head = ["", "CPU of a step", "from-to", "sampler", "snapshots", "promised", "holds"]
    report.sections[f"{N_AGENTS:,} {kind} agents under a profiler, ratio to bare and shares of one core"] = [
        *table(head, rows),
        *(f"{way} is not installed: left out" for way in WAYS if way not in ways),
    ]
    report.records[f"profiler {kind}"] = found


def middle(found: list[dict[str, Any]], key: str) -> Any:
    values = [one[key] for one in found if one[key] is not None]
    return median(values) if values else None


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


if __name__ == "__main__":
    print(json.dumps(child(sys.argv[1], sys.argv[2], float(sys.argv[3]))))
