"""Claim: stepping all agents of a population is one call, several times faster than any way without it.

A grid of 10,000 states with a noisy position sensor; every agent walks it on its own. Each way takes the same steps
from the same beliefs, a whole pass of them per round, all ways in turn; answers are asserted equal first.
* ours on two threads and on one: `Population.update`;
* a Python loop over `SparseBelief.update`;
* scipy.sparse: the beliefs as one CSR matrix, per action `B[rows] @ T`, times likelihoods, normalised and pruned.

Promises: two threads at least 5x scipy, 4x the loop, 1.7x one thread; cost per agent within 2x from 1,000 to 1,000,000
agents; at most 12 bytes per stored state and 32 per agent, RSS within 1.3 x nbytes, peak within 2.2 x. Printed last,
losses too; time never fails a test. The bytes touched are those of both arenas and of the rows of T and O met, beside a
copy of as many bytes.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
from agentmem.profiler.process import peak_rss
from agentmem.profiler.worlds import grid_world, random_walk
from harness import in_child, interleaved, replay, table

SIDE, STEPS, WARM_UP, PRUNE = 100, 6, 6, 1e-6
TWO, ONE, LOOP, SCIPY = "two threads", "one thread", "loop", "scipy"
SIZES, SMOKE_SIZES = [1_000, 10_000, 100_000, 1_000_000], [100]
SLOW_UP_TO = 100_000  # agents: beyond, loop and scipy would only take longer


@lru_cache(maxsize=1)
def place() -> tuple[am.Model, list[sparse.csr_array], sparse.csr_array]:
    world = grid_world(SIDE, SIDE, agents=1, steps=1, seed=0)
    return am.Model(world.transition, world.observation), list(world.transition), world.observation


def walks(n_agents: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """(steps, n) actions and observations of agents that walk at random."""
    _, transition, sensor = place()
    rng = np.random.default_rng(0)
    walk = random_walk(transition, sensor, rng.integers(SIDE * SIDE, size=n_agents), rng)
    actions, observations = zip(*islice(walk, steps), strict=True)
    return np.array(actions), np.array(observations)


def scipy_step(
    B: sparse.csr_array, transition: list[sparse.csr_array], likelihoods: sparse.csr_array, a: np.ndarray, o: np.ndarray
) -> sparse.csr_array:
    parts, order = [], []
    for action, matrix in enumerate(transition):
        rows = np.flatnonzero(a == action)
        part = sparse.csr_array((B[rows] @ matrix).multiply(likelihoods[o[rows]]))
        lengths = np.diff(part.indptr)
        largest = np.maximum.reduceat(part.data, part.indptr[:-1])
        part.data[part.data < PRUNE * np.repeat(largest, lengths)] = 0
        part.eliminate_zeros()
        part.data /= np.repeat(np.add.reduceat(part.data, part.indptr[:-1]), np.diff(part.indptr))
        parts.append(part)
        order.append(rows)
    return sparse.csr_array(sparse.vstack(parts, format="csr"))[np.argsort(np.concatenate(order))]


def as_csr(population: am.Population) -> sparse.csr_array:
    rows = [(belief.indices, belief.values) for belief in population]
    offsets = np.cumsum([0] + [len(states) for states, _ in rows])
    states, values = (np.concatenate(part) for part in zip(*rows, strict=True))
    return sparse.csr_array((values, states, offsets), shape=(len(rows), SIDE * SIDE))


def ways(n_agents: int) -> tuple[dict[str, Callable[[], Any]], am.Population]:
    """Functions that take STEPS steps and return what is believed then; and the population they start from."""
    model, transition, sensor = place()
    actions, observations = walks(n_agents, WARM_UP + STEPS)
    start = am.Population(model, n_agents, prune=PRUNE)
    for a, o in zip(actions[:WARM_UP], observations[:WARM_UP], strict=True):
        start.update(a, o)
    steps = list(zip(actions[WARM_UP:], observations[WARM_UP:], strict=True))

    def ours(threads: int) -> am.Population:
        population = start.copy()
        population.threads = threads
        for a, o in steps:
            population.update(a, o)
        return population

    found: dict[str, Callable[[], Any]] = {TWO: lambda: ours(2), ONE: lambda: ours(1)}
    if n_agents <= SLOW_UP_TO:
        beliefs, B, likelihoods = list(start), as_csr(start), sparse.csr_array(sensor.T)
        plain = [(a.tolist(), o.tolist()) for a, o in steps]

        def loop() -> list[am.SparseBelief]:
            stepped = [b.copy() for b in beliefs]
            for a, o in plain:
                for b, action, observation in zip(stepped, a, o, strict=True):
                    b.update(model, action, observation, prune=PRUNE)
            return stepped

        def with_scipy() -> sparse.csr_array:
            stepped = B
            for a, o in steps:
                stepped = scipy_step(stepped, transition, likelihoods, a, o)
            return stepped

        found |= {LOOP: loop, SCIPY: with_scipy}
    return found, start


def check(found: dict[str, Callable[[], Any]], n_agents: int) -> None:
    """All ways agree."""
    answers = {name: way() for name, way in found.items()}
    for k in range(0, n_agents, max(1, n_agents // 500)):
        expected = answers[TWO][k]
        for name in (ONE, LOOP):
            if name in answers:
                assert answers[name][k].values.tobytes() == expected.values.tobytes(), name
    if SCIPY in answers:
        assert abs(answers[SCIPY] - as_csr(answers[TWO])).max() < 1e-12


def touched_bytes(population: am.Population) -> float:
    """Of one step: the arena read and written, the rows of T met, and the likelihood's columns."""
    _, transition, sensor = place()
    entries = population.nnz.sum() * transition[0].nnz / SIDE**2
    return 2 * population.nbytes + 12 * entries + 12 * len(population) * sensor.nnz / SIDE**2


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "n_agents" in metafunc.fixturenames:
        metafunc.parametrize("n_agents", SMOKE_SIZES if metafunc.config.getoption("--smoke") else SIZES)


@pytest.fixture(scope="module")
def rows(report: Any) -> Iterator[list[list[str]]]:
    found: list[list[str]] = []
    yield found
    head = ["agents", "states held", "two threads ns", "one thread ns", "loop ns", "scipy ns", "scipy/two", "loop/two",
            "one/two", "million steps/s", "bytes/agent", "of a copy's speed"]
    if found:
        report.sections["one step of all agents, nanoseconds per agent"] = table(head, found)


@pytest.mark.benchmark(timer=replay.read)
def test_population(benchmark: Any, n_agents: int, rows: list[list[str]], smoke: bool) -> None:
    found, start = ways(n_agents)
    check(found, n_agents)
    budget = 0.1 if smoke else 8
    seconds = interleaved(
        {name: lambda n, way=way: lambda: [way() for _ in range(n)] for name, way in found.items()},
        budget=budget, fewest=3, most=15,
    )  # fmt: skip
    replay.play(benchmark, seconds[TWO])
    each = dict.fromkeys((TWO, ONE, LOOP, SCIPY), 0.0)
    each |= {name: median(taken) / STEPS / n_agents * 1e9 for name, taken in seconds.items()}
    block = np.ones(max(1, round(touched_bytes(start) / 16)))
    copied = []
    for _ in range(5):
        began = time.perf_counter()
        block.copy()
        copied.append(time.perf_counter() - began)
    share = min(copied) / (each[TWO] * n_agents / 1e9)

    def ratio(name: str) -> str:
        return f"{each[name] / each[TWO]:.2f}" if each[name] else "-"

    rows.append([f"{n_agents:,}", f"{start.nnz.mean():.1f}", *(f"{v:,.0f}" if v else "-" for v in each.values()),
                 ratio(SCIPY), ratio(LOOP), ratio(ONE), f"{1e3 / each[TWO]:.2f}", f"{start.nbytes / n_agents:.0f}",
                 f"{share:.0%}"])


# ---- memory, in a process of its own


def hold(n_agents: int) -> None:
    """Agents of 10 states each: what they take at rest and while they step."""
    n_states = 10_000
    model = am.Model(sparse.eye_array(n_states, format="csr"), np.ones((n_states, 1)))
    before = resident()
    rng = np.random.default_rng(0)
    kinds = [np.sort(rng.choice(n_states, 10, replace=False)) for _ in range(100)]
    starts = [am.SparseBelief.from_indices(kind, rng.dirichlet(np.ones(10)), n_states) for kind in kinds]
    population = am.Population.from_beliefs(model, (starts[k % 100] for k in range(n_agents)))
    rest = resident()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    population.update(0, 0)
    found = {"nbytes": population.nbytes, "stored": int(population.nnz.sum()), "rss": rest - before}
    print(json.dumps({**found, "peak": peak_rss() - before}))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.benchmark(timer=replay.read)
def test_memory(benchmark: Any, smoke: bool, report: Any) -> None:
    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc here")
    n_agents = 10_000 if smoke else 1_000_000
    began = time.perf_counter()
    found = in_child(__file__, n_agents)
    replay.play(benchmark, [time.perf_counter() - began])
    per_agent = (found["nbytes"] - 12 * found["stored"]) / n_agents
    assert per_agent <= 32
    lines = [
        f"{n_agents:,} agents of 10 states among 10,000: {found['nbytes'] / 1e6:,.0f} MB, "
        f"12 bytes per stored state and {per_agent:.1f} per agent (at most 32 promised)",
        f"RSS at rest {found['rss'] / found['nbytes']:.2f} x nbytes (1.3 promised), "
        f"peak during a step {found['peak'] / found['nbytes']:.2f} x (2.2 promised)",
        f"as dense float64 rows: {n_agents * 10_000 * 8 / 1e9:,.1f} GB",
    ]
    report.sections["memory of a population"] = lines


if __name__ == "__main__":
    hold(int(sys.argv[1]))
