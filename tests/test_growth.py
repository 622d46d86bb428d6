"""What grows is named by line or part, what does not is not; and building, running, dropping leaves nothing."""

import gc
import mmap
import random
import tracemalloc

import numpy as np
import pytest

from agentmem.profiler import Profiler
from agentmem.profiler.growth import ALL_LINES, Growth, check_cycle

STEPS = 120
FOREVER = []


class Agent:
    def __init__(self, seed):
        self.random = random.Random(seed)
        self.seen, self.log, self.recent, self.grid = {}, [], [], np.zeros(200)

    def work(self, step):
        """Warms up, churns, and grows no more after that."""
        self.grid = np.full(200 + self.random.randrange(100), float(step))
        self.recent.append([step, str(step)])
        if len(self.recent) > 20:
            del self.recent[: 1 + self.random.randrange(5)]
        if step < 30:
            self.seen[step] = [step] * 20
        else:
            self.seen[self.random.randrange(30)] = [step] * (15 + self.random.randrange(10))


@pytest.fixture(autouse=True)
def forgotten():
    yield
    FOREVER.clear()


def run(leak, n_agents=3, steps=STEPS):
    agents = [Agent(seed) for seed in range(n_agents)]
    growth = Growth(agents, n_samples=steps)
    for step in range(steps):
        for agent in agents:
            agent.work(step)
        leak(agents[1], step)
        growth.sample()
    return [trend.name for trend in growth.trends() if trend.verdict == "growing"]


def nothing(agent, step):
    pass


def growing_dict(agent, step):
    agent.seen[f"{step}"] = step + 10_000


def log_without_limit(agent, step):
    agent.log.append("x" * 50 + str(step))


def unclosed_map(agent, step):
    FOREVER.append(mmap.mmap(-1, 4096))


def test_a_clean_run_grows_nowhere(tracing):
    assert run(nothing) == []


@pytest.mark.parametrize(
    ("leak", "part"), [(growing_dict, "agent[1].seen"), (log_without_limit, "agent[1].log")], ids=lambda x: str(x)
)
def test_what_grows_is_named_by_part_and_line(tracing, leak, part):
    names = run(leak)
    assert part in names
    assert [name for name in names if name.startswith(f"{__file__}:{leak.__code__.co_firstlineno + 1}")]
    assert not [name for name in names if name.startswith("agent[0]") or name.startswith("agent[2]")]


def test_an_unclosed_map_is_named_by_line(tracing):
    names = run(unclosed_map)
    assert f"{__file__}:{unclosed_map.__code__.co_firstlineno + 1}" in names


def test_parts_are_named_without_tracing():
    assert not tracemalloc.is_tracing()
    assert run(log_without_limit) == ["agent[1].log"]


def test_the_whole_comes_first(tracing):
    agents = [Agent(0)]
    growth = Growth(agents, n_samples=STEPS)
    for step in range(STEPS):
        log_without_limit(agents[0], step)
        growth.sample()
    trends = growth.trends()
    assert trends[0].name == ALL_LINES and trends[0].verdict == "growing"
    slopes = [trend.slope for trend in trends[1:]]
    assert slopes == sorted(slopes, reverse=True)
    assert trends[1].slope == pytest.approx(108, abs=15)  # a string of 51 to 53 characters and its place in the list
    assert not [trend for trend in growth.trends(least=1_000) if trend.verdict == "growing"]


@pytest.mark.parametrize("kind", ["a list", "shared", "agents"])
def test_what_grows_beside_parts_is_named(kind):
    log = []
    agents = {"a list": {"log": log}, "shared": [{"log": log, "k": [1]}, {"log": log, "k": [2]}], "agents": log}[kind]
    growth = Growth(agents, n_samples=STEPS)
    for step in range(STEPS):
        log.append("x" * 100 + str(step))
        growth.sample()
    expected = {"a list": "log, in all", "shared": "shared agent[0].log", "agents": "all agents"}[kind]
    assert [trend.name for trend in growth.trends()] == [expected]


def test_too_few_samples_say_nothing():
    growth = Growth([Agent(0)], n_samples=10)
    for _ in range(10):
        growth.sample()
    assert growth.trends() == ()
    with pytest.raises(IndexError, match="10 samples"):
        growth.sample()


@pytest.mark.parametrize("n", [0, -1])
def test_a_recorder_has_room(n):
    with pytest.raises(ValueError, match="n_samples"):
        Growth(n_samples=n)


def test_names_that_were_looked_up_are_not_growth(tracing):
    names = [f"name {k}" for k in range(2_000)]
    for name in names:
        getattr(FOREVER, name, None)  # CPython caches that there is no such name
    del names, name
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    Growth(n_samples=1).sample()
    assert tracemalloc.get_traced_memory()[0] < held - 10_000


def test_what_is_shared_one_by_one_is_named():
    shared = []
    agents = {"left": {"log": []}, "right": {"log": []}}
    growth = Growth(agents, n_samples=80)
    for step in range(80):
        shared.append(np.zeros(100 + step % 3))
        for agent in agents.values():
            agent["log"].append(shared[-1])
        growth.sample()
    assert "shared left.log" in [trend.name for trend in growth.trends()]


def test_the_recorder_does_not_find_itself(tracing):
    growth = Growth([{f"part{k}": [k] for k in range(300)}], n_samples=STEPS)  # more locations than it began with
    for _ in range(STEPS):
        growth.sample()
    assert [trend.verdict for trend in growth.trends()] == ["flat"]


# ---- cycles


def test_what_is_dropped_comes_back():
    found = Profiler.check_cycle(lambda: [Agent(k) for k in range(20)])
    assert found.returns and found.cycles == 5 and len(found.left) == 5
    assert not tracemalloc.is_tracing()


def test_what_stays_is_named(tracing):
    def build_run_drop():
        agents = [Agent(k) for k in range(5)]
        FOREVER.append(str(agents) + "x" * 500)

    found = check_cycle(build_run_drop, cycles=6)
    assert not found.returns and min(found.left) > 500
    assert found.lines[0].where == f"{__file__}:{build_run_drop.__code__.co_firstlineno + 2}"
    assert found.lines[0].nbytes > 6 * 500
    assert tracemalloc.is_tracing()


@pytest.mark.parametrize("frames", [1, 2, 3, 25])
def test_what_stays_is_seen_however_many_frames_are_kept(frames):
    kept = []
    tracemalloc.start(frames)
    try:
        found = Profiler.check_cycle(lambda: kept.append(np.ones(3_000)))
        with Profiler(lines=frames) as profiler:
            with profiler.profile_operation("step"):
                kept.append(np.zeros(5_000))
            lines = profiler.snapshot().traced.lines
    finally:
        tracemalloc.stop()
    assert not found.returns and min(found.left) > 24_000
    assert [line for line in lines if line.nbytes > 40_000]
    assert not [line for line in lines if "profiler/snapshot.py" in line.where.split(" < ")[0]]


def test_what_is_built_once_may_stay():
    cache = {}

    def build():
        return cache.setdefault("table", list(range(10_000)))

    assert check_cycle(build).returns


def test_tracing_ends_when_a_cycle_fails():
    with pytest.raises(ZeroDivisionError):
        check_cycle(lambda: 1 / 0)
    assert not tracemalloc.is_tracing()


def test_cycles_are_counted():
    with pytest.raises(ValueError, match="cycles=0"):
        check_cycle(list, cycles=0)
