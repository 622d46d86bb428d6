"""A profiler samples while it is asked to, in bounds, and changes nothing."""

import gc
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from dataclasses import replace

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler import Profiler
from agentmem.profiler.monitor import judged
from agentmem.profiler.records import Samples
from agentmem.profiler.sampler import Sampler, Turns
from reference import run_alone, same_environment

MIB = 2**20


def wait_for(condition, seconds=20.0):
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def agents(n):
    table = np.zeros(1_000)
    return [{"table": table, "own": np.zeros(100 + k), "log": [str(k)]} for k in range(n)]


def total_of(given):
    return am.footprint(given).total - sys.getsizeof(given) if isinstance(given, list) else am.footprint(given).total


# ---- samples


def test_it_samples_while_it_is_open():
    robots = agents(5)
    with Profiler(robots, interval=0.01) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) >= 5)
        assert "agentmem-sampler" in {thread.name for thread in threading.enumerate()}
    assert "agentmem-sampler" not in {thread.name for thread in threading.enumerate()}
    samples = profiler.samples
    n = len(samples.seconds)
    assert n >= 5 and {len(samples.rss), len(samples.traced), len(samples.agents)} == {n}
    assert list(samples.seconds) == sorted(samples.seconds)
    assert set(samples.traced) == {None}
    assert samples.agents[0] == total_of(robots)  # the first look is at all
    assert min(samples.rss) > MIB and samples.cpu_seconds > 0 and samples.interval == 0.01
    time.sleep(0.05)
    assert len(profiler.samples.seconds) == n


def test_the_last_sample_is_of_the_end():
    with Profiler(interval=10.0) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) == 1)
    assert len(profiler.samples.seconds) == 2


def test_traced_bytes_are_sampled_where_they_are_traced():
    with Profiler(interval=0.01, lines=True) as profiler:
        kept = np.zeros(4 * MIB, np.uint8)
        n = len(profiler.samples.seconds)
        wait_for(lambda: len(profiler.samples.seconds) > n + 1)
    assert profiler.samples.traced[-1] is not None and max(profiler.samples.traced) > len(kept)
    assert not tracemalloc.is_tracing()


def test_old_samples_go():
    with Profiler(interval=0.001, capacity=20) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) == 20)
        first = profiler.samples.seconds[0]
        wait_for(lambda: profiler.samples.seconds[0] > first)
    assert len(profiler.samples.seconds) == 20


def test_a_profiler_is_opened_once():
    profiler = Profiler(interval=1.0)
    with profiler, pytest.raises(RuntimeError, match="begun already"):
        profiler.__enter__()
    profiler.close()


def test_without_an_interval_there_is_no_thread():
    before = threading.active_count()
    with Profiler(agents(2)) as profiler:
        assert threading.active_count() == before
    assert profiler.samples is None and profiler.profile().samples is None


def test_overruns_are_counted():
    slept = threading.Event()

    class Slow(Sampler):
        def _sample(self):
            if not slept.is_set():
                time.sleep(0.05)
                slept.set()
            super()._sample()

    slow = Slow(0.001, None, capacity=100, zero=time.perf_counter())
    slow.start()
    slept.wait(10)
    wait_for(lambda: len(slow.samples.seconds) >= 3)
    slow.stop()
    assert slow.samples.overruns >= 40


# ---- turns: an estimate that costs little


def settled(turns):
    """The last estimate of many turns, as most are nobody's."""
    return [estimate for estimate in (turns.next() for _ in range(2_000)) if estimate is not None][-1]


def test_turns_come_to_the_truth():
    robots = agents(40)
    turns = Turns(robots, seconds=1e-4)
    assert turns.next() == total_of(robots)  # the first look is at all
    for robot in robots:
        robot["log"].extend("more" * 50)
    robots.extend(agents(3))
    assert settled(turns) == total_of(robots)
    del robots[10:]
    assert abs(settled(turns) - total_of(robots)) < 400  # what those that are gone shared with nobody


def test_samples_go_on_when_a_look_fails():
    class Robots(dict):
        def items(self):
            if len(self) > 2:
                raise ValueError("no")
            return super().items()

    robots = Robots(a=[1], b=[2])
    with Profiler(robots, interval=0.005) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) >= 3)
        robots["c"] = [3]
        wait_for(lambda: profiler._sampler.failures)
        n = len(profiler.samples.seconds)
        wait_for(lambda: len(profiler.samples.seconds) > n + 3)
        assert [note for note in profiler.profile().notes if "failed: ValueError" in note]


def test_a_look_that_fails_is_paid_for():
    class Robots(list):
        def __getitem__(self, k):
            raise ValueError("no")

        __iter__ = None

    turns = Turns(Robots([1, 2]), seconds=1e-9)
    with pytest.raises((ValueError, TypeError)):
        turns.next()
    assert [turns.next() for _ in range(5)] == [None] * 5


def test_trends_are_by_sample_though_agents_are_looked_at_now_and_then():
    profiler = Profiler(interval=1.0)
    n = 600
    seen = [None] * 3 + [1_000_000 + 500 * k if k % 5 == 0 else None for k in range(n)]
    samples = Samples(1.0, tuple(map(float, range(n + 3))), (10**8,) * (n + 3), (None,) * (n + 3), tuple(seen))
    trends = {trend.name: trend for trend in judged(samples)}
    assert trends["agents"].verdict == "growing" and trends["agents"].slope == pytest.approx(500)
    few = replace(samples, agents=(1_000, *[None] * 300, 2_000, *[None] * 300, 3_000))
    [trend] = [trend for trend in judged(few) if trend.name == "agents"]
    assert trend.verdict == "not enough data" and trend.samples == 3  # not 603
    assert "traced" not in trends and profiler.profile().trends == ()


def test_of_many_snapshots_of_one_name_the_first_is_marked():
    profiler = Profiler()
    for label in "while it runs", "while it runs", "", "", "while it runs":
        profiler.snapshot(label)
    assert [event.text for event in profiler.profile().events] == [
        "while it runs", "snapshot 3", "snapshot 4", "while it runs",
    ]  # fmt: skip
    profiler.mark("again")
    profiler.mark("again")
    assert [event.text for event in profiler.profile().events][-2:] == ["again", "again"]


@pytest.mark.parametrize(("rise", "verdict"), [(0.5 * MIB, "flat"), (4 * MIB, "growing")])
def test_what_looks_leave_behind_is_no_growth_of_rss(rise, verdict):
    n = 120
    rss = tuple(int(100 * MIB + rise * k / n) for k in range(n))
    [trend] = judged(Samples(0.1, tuple(map(float, range(n))), rss, (None,) * n, (None,) * n))
    assert (trend.name, trend.verdict) == ("RSS", verdict)


def test_agents_of_one_name_count_each():
    robots = {1: {"x": np.zeros(1_000)}, "1": {"x": np.zeros(2_000)}}
    assert Turns(robots, seconds=1.0).next() > 24_000


def test_no_sample_is_taken_but_the_next_ones_are(monkeypatch):
    def full(self):
        raise OSError("too many open files")

    with Profiler(interval=0.005) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) >= 3)
        monkeypatch.setattr("agentmem.profiler.process.Resident.now", full)
        wait_for(lambda: profiler._sampler.failures)
        monkeypatch.undo()
        n = len(profiler.samples.seconds)
        wait_for(lambda: len(profiler.samples.seconds) > n + 3)
    assert any("a sample failed: OSError" in note for note in profiler.profile().notes)


def types_beside_threads():
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    with Profiler(interval=0.01, types=True) as profiler:  # whose thread may run
        assert profiler.snapshot().types
        thread.start()
        try:
            assert profiler.snapshot().types is None
        finally:
            stop.set()
            thread.join()
        assert profiler.snapshot().types


def test_types_are_not_counted_while_other_threads_run():
    pytest.importorskip("pympler")
    run_alone(types_beside_threads)  # where no library has threads


def test_nothing_is_kept_alive_after_the_end():
    class Table:
        pass

    table = Table()
    gone = weakref.ref(table)
    with Profiler([{"t": table}, {"t": table}], interval=0.01) as profiler:
        wait_for(lambda: len(profiler.samples.seconds) >= 2)
    profiler._agents = None
    del table
    gc.collect()
    assert gone() is None


def test_too_many_objects_are_not_looked_at():
    profiler = Profiler([list(map(str, range(1_000)))], interval=0.01, most_objects=500)
    with profiler:
        assert profiler.snapshot().agents is None
        wait_for(lambda: len(profiler.samples.seconds) >= 3)
    assert set(profiler.samples.agents) == {None}
    assert Profiler([list(map(str, range(1_000)))], most_objects=5_000).snapshot().agents is not None


def test_turns_keep_nothing_alive_that_is_gone():
    robots = {f"r{k}": {"x": np.zeros(10)} for k in range(6)}
    turns = Turns(robots, seconds=1.0)
    for _ in range(5):
        turns.next()
    gone = am.SparseBelief(np.ones(10))
    robots["r0"]["x"], robots["r1"]["x"] = gone, gone
    held = sys.getrefcount(gone)
    for _ in range(20):
        turns.next()
    robots["r0"]["x"] = robots["r1"]["x"] = None
    for _ in range(20):
        turns.next()
    gc.collect()
    assert sys.getrefcount(gone) <= held - 2


def test_agents_may_come_and_go_meanwhile():
    robots, stop = {k: {"x": [k]} for k in range(300)}, threading.Event()

    def churn():
        k = 300
        while not stop.is_set():
            robots[k] = {"x": [k]}
            robots.pop(k - 300)
            k += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        with Profiler(robots, interval=0.001) as profiler:
            wait_for(lambda: len(profiler.samples.seconds) >= 30)
            for _ in range(10):
                profiler.snapshot()
    finally:
        stop.set()
        thread.join()
    assert min(held for held in profiler.samples.agents if held is not None) > 0


# ---- it changes nothing


def test_looking_changes_nothing():
    model = am.Model(np.eye(50), np.ones((50, 1)))
    robots = [{"belief": model.belief(), "log": am.RecordHistory(), "model": model} for _ in range(3)]
    before = [(robot["belief"].nbytes, len(robot["log"]), robot["log"].nbytes) for robot in robots]
    counts = [sys.getrefcount(robot["belief"]) for robot in robots]
    with Profiler(robots, interval=0.01, types=True) as profiler:
        profiler.snapshot()
        profiler.reconcile()
        profiler.hotspots()
        wait_for(lambda: len(profiler.samples.seconds) >= 2)
    assert [(robot["belief"].nbytes, len(robot["log"]), robot["log"].nbytes) for robot in robots] == before
    assert [sys.getrefcount(robot["belief"]) for robot in robots] == counts


def test_nothing_starts_on_import():
    script = (
        "import sys, threading, tracemalloc, agentmem.profiler as p; p.Profiler, p.detect_trend;"
        "p.Profiler([1]); print(threading.active_count(), tracemalloc.is_tracing(),"
        "[m for m in ('scipy', 'psutil', 'pympler', 'matplotlib', 'jinja2', 'rich') if m in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert ran.stdout.strip() == "1 False []", ran.stderr


def test_profilers_trace_together():
    first, second = Profiler(lines=1), Profiler(lines=1)
    first.close()
    first.close()
    held = bytearray(2**20)
    assert any(line.nbytes >= len(held) for line in second.snapshot().traced.lines)
    second.check_cycle(list)
    assert tracemalloc.is_tracing()
    second.close()
    assert not tracemalloc.is_tracing()
    with Profiler(lines=1) as third:
        tracemalloc.stop()  # somebody did
        with Profiler(lines=1):
            assert third.snapshot().traced is not None
    assert not tracemalloc.is_tracing()
    with Profiler(lines=1):
        tracemalloc.stop()
        tracemalloc.start()  # which is the program's own
        with Profiler(lines=1):
            pass
    assert tracemalloc.is_tracing()
    tracemalloc.stop()


def test_a_profiler_that_found_tracing_leaves_it():
    tracemalloc.start()
    try:
        with Profiler(lines=True):
            pass
        assert tracemalloc.is_tracing()
    finally:
        tracemalloc.stop()


# ---- the record of all


def test_a_profile_holds_what_was_seen():
    robots = agents(3)
    with Profiler(robots, interval=0.01, lines=True) as profiler:
        with profiler.profile_operation("step"):
            robots[0]["more"] = np.zeros(1_000)
        profiler.mark("half way")
        profiler.snapshot("end")
        wait_for(lambda: len(profiler.samples.seconds) >= 3)
        profile = profiler.profile("a test", ended="finished", notes=("a note",))
    assert (profile.command, profile.ended, profile.is_whole) == ("a test", "finished", True)
    assert profile.notes == ("a note",)
    assert [event.text for event in profile.events] == ["half way", "end"]
    assert [taken.label for taken in profile.snapshots] == ["end"]
    assert [operation.name for operation in profile.operations] == ["step"]
    assert {trend.name for trend in profile.trends} == {"RSS", "traced", "agents"}
    assert {trend.verdict for trend in profile.trends} == {"not enough data"}
    assert {spot.kind for spot in profile.hotspots} >= {"agent", "part"}
    assert not profiler.profile().is_whole


def test_only_the_latest_snapshots_are_kept():
    profiler = Profiler()
    for k in range(105):
        profiler.snapshot(str(k))
    assert [taken.label for taken in profiler.profile().snapshots] == [str(k) for k in range(5, 105)]


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), 1e-9])
def test_an_interval_is_refused_that_is_none(interval):
    with pytest.raises(ValueError, match="interval="):
        Profiler(interval=interval)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"lines": -1}, ValueError),
        ({"lines": 101}, ValueError),
        ({"lines": 1.5}, TypeError),
        ({"agents": 5}, TypeError),
        ({"agents": iter([[1], [2]])}, TypeError),
        ({"agents": "robots"}, TypeError),
        ({"interval": "1"}, TypeError),
    ],
)
def test_options_are_refused_that_do_not_fit(options, error):
    with pytest.raises(error):
        Profiler(**options)
    assert not tracemalloc.is_tracing()


@pytest.mark.parametrize("method", ["mark", "snapshot", "profile_operation"])
def test_names_are_texts(method):
    profiler = Profiler()
    with pytest.raises(TypeError, match="3 given; expected a text"):
        getattr(profiler, method)(3)
    assert profiler.profile().events == ()


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_capacity_is_refused_that_is_none(capacity):
    with pytest.raises(ValueError, match="capacity="):
        Profiler(capacity=capacity)


def flat():
    robots = agents(50)
    profiler = Profiler(robots, interval=0.001, capacity=200)
    with profiler:
        time.sleep(1.0)
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        time.sleep(2.0)
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] - before < 60_000
    assert len(profiler.samples.seconds) == 200


def test_sampling_does_not_grow():
    run_alone(flat)
