"""What a snapshot says is there, each byte once; differences and hotspots of what it says."""

import gc
import os
import sys
import time
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentmem as am
from agentmem.profiler import Profiler
from agentmem.profiler.agents import SMALL_PARTS, TooManyObjects, holdings, named
from agentmem.profiler.records import Line, ProcessMemory, Snapshot, Traced, TypeUse
from agentmem.profiler.snapshot import MOST, difference, hotspots, hotspots_of_all, take

MIB = 2**20


class Robot:
    def __init__(self, model, table):
        self.model, self.table = model, table
        self.belief = am.SparseBelief(np.full(100, 0.01))
        self.grid = np.zeros(1_000)


def snapshot(**fields):
    empty = Snapshot(
        label="", at=0.0, process=ProcessMemory(10, 20, 5), traced=None, types=None, collector=None, agents=None,
        parts=None, shared=None, mapped=None, counters=None, seconds=0.0, nbytes=None,
    )  # fmt: skip
    return replace(empty, **fields)


# ---- agents


def test_one_agent_holds_what_it_would_beside_others():
    robot = {"x": np.zeros(100), "y": [np.ones(50), "text"], "z": {"a": [1_000, 2_000]}}
    robot["y"].append(robot["x"])
    alone = holdings(named({"it": robot}))
    beside = holdings(named({"it": robot, "other": []}))
    assert (alone.agents[0], alone.counts[0], alone.shared) == (beside.agents[0], beside.counts[0], ())
    with pytest.raises(TooManyObjects, match="over 5 objects"):
        holdings(named({"it": robot}), most=5)


def test_each_byte_is_counted_once():
    model, table = am.Model(np.eye(50), np.ones((50, 1))), np.ones(10_000)
    robots = [Robot(model, table[k:]) for k in range(5)]
    found = holdings(named(robots))
    held = sum(agent.own for agent in found.agents) + sum(part.nbytes for part in found.shared)
    all_of_it = am.footprint(robots)
    assert held == all_of_it.total - all_of_it.parts["(itself)"]


def test_what_agents_share_is_told_apart():
    model, table = am.Model(np.eye(50), np.ones((50, 1))), np.ones(10_000)
    robots = [Robot(model, table[k:]) for k in range(5)]
    robots.append(Robot(am.Model(np.eye(50), np.ones((50, 1))), np.zeros(7)))
    found = holdings(named({f"r{k}": robot for k, robot in enumerate(robots)}))
    shared = {part.name: part for part in found.shared}
    assert shared.keys() == {"r0.model", "r0.table", SMALL_PARTS}
    assert (shared["r0.table"].nbytes, shared["r0.table"].holders) == (table.nbytes + 112, 5)  # and the array's header
    assert 0 <= am.footprint(model).total - shared["r0.model"].nbytes < 1_000  # its numbers and names are others' too
    assert [agent.parts["table"] for agent in found.agents] == [112] * 5 + [112 + 56]  # views are not copies
    assert [agent.parts["grid"] for agent in found.agents] == [8_112] * 6
    assert [agent.parts["belief"] for agent in found.agents] == [robots[0].belief.nbytes] * 6
    assert "model" in found.agents[5].parts and "model" not in found.agents[4].parts
    assert found.agents[0].own == sum(found.agents[0].parts.values())
    assert {agent.shared >= 80_000 for agent in found.agents[:5]} == {True} and found.agents[5].shared < 2_000


def test_what_lies_below_something_shared_is_shared():
    inner = {"array": np.zeros(1_000)}
    found = holdings(named([[inner, 1], [inner["array"], 2], [3]]))
    [part] = [part for part in found.shared if part.name != SMALL_PARTS]
    assert part.name == "agent[0][0]" or part.name.startswith("agent[0]")
    assert part.holders == 2 and part.nbytes >= 8_000
    assert max(agent.own for agent in found.agents) < 500


def test_what_some_share_within_what_others_share_is_told_apart():
    big = np.zeros(100_000)
    pair = [big]
    found = holdings(named({"a1": {"x": pair}, "a2": {"x": pair}, "a3": {"y": big}}))
    parts = [part for part in found.shared if part.nbytes > 1_000]
    assert [(part.nbytes, part.holders) for part in parts] == [(800_112, 3)]
    assert all(agent.shared >= 800_112 for agent in found.agents)


def graphs(draw, n_agents, n_objects):
    """Lists that hold arrays and each other in any way, rings too."""
    nodes = [[] for _ in range(n_objects)]
    for node in nodes:
        for _ in range(draw(st.integers(0, 3))):
            node.append(draw(st.sampled_from(nodes)) if draw(st.booleans()) else np.zeros(draw(st.integers(1, 99))))
    return [[draw(st.sampled_from(nodes)), {"own": np.zeros(k + 1)}] for k in range(n_agents)]


def total_of(agents):
    together = tuple(agents)
    return am.footprint(together).total - sys.getsizeof(together)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_graph_is_counted_once(data):
    agents = graphs(data.draw, data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6)))
    found = holdings(named(agents))
    total = total_of(agents)
    assert sum(a.own for a in found.agents) + sum(p.nbytes for p in found.shared) == total
    for k, agent in enumerate(found.agents):  # its own goes with it
        assert agent.own == total - total_of(agents[:k] + agents[k + 1 :])


@pytest.mark.parametrize("agents", [{"a": 1}, [1], (1,), {1}, iter([1])], ids=lambda a: type(a).__name__)
def test_agents_come_in_any_collection(agents):
    assert [name for name, _ in named(agents)] == (["a"] if isinstance(agents, dict) else ["agent[0]"])


def test_names_go_on_from_where_one_begins():
    assert named([5, 6, 7, 8], 1, 3) == [("agent[1]", 6), ("agent[2]", 7)]
    assert named({"a": 5, 2: 6, "c": 7}, 1, 3) == [("2", 6), ("c", 7)]


# ---- the process


def test_a_snapshot_says_what_there_is(tracing):
    kept = np.zeros(4 * MIB // 8)
    kept += 1
    taken = take("here", [{"kept": kept}], types=True, zero=0.0)
    assert taken.label == "here" and taken.seconds > 0
    assert taken.agents[0].parts["kept"] == kept.nbytes + 112
    assert taken.process.rss > kept.nbytes
    assert taken.process.peak_rss >= taken.process.rss
    assert 0 < taken.process.pss <= taken.process.rss
    [line] = [line for line in taken.traced.lines if line.nbytes >= kept.nbytes]
    assert line.count >= 1 and line.where.startswith(f"{__file__}:")
    assert taken.traced.nbytes >= kept.nbytes and taken.traced.peak >= taken.traced.nbytes
    arrays = next(use for use in taken.types if use.name.endswith("ndarray"))
    assert arrays.nbytes >= kept.nbytes
    assert taken.collector.enabled == gc.isenabled()
    assert taken.nbytes >= 0


def test_what_was_not_measured_is_none():
    taken = take("", None, types=False, zero=0.0)
    assert (taken.traced, taken.types, taken.agents, taken.shared) == (None,) * 4
    assert (taken.mapped, taken.counters, taken.nbytes) == (None,) * 3
    assert taken.agent_bytes is None
    assert hotspots(taken) == ()


def test_the_profiler_does_not_find_itself(tracing):
    profiler = Profiler(agents=[[1, 2]])
    for k in range(20):
        profiler.snapshot(str(k))
    change = profiler.difference(profiler.snapshot("a"), profiler.snapshot("b"))
    assert not [one for one in change.changes if one.kind == "line" and "agentmem/profiler" in one.name]


def test_nor_does_its_thread(tracing):
    table = [str(k) for k in range(3_000)]
    with Profiler([{"table": table, "k": k} for k in range(300)], interval=0.001) as profiler:
        while len(profiler.samples.seconds) < 10:
            time.sleep(0.01)
        lines = profiler.snapshot().traced.lines
    found = [line for line in lines if line.where.startswith(os.path.dirname(am.__file__))]
    assert sum(line.nbytes for line in found) < 40_000, found  # its ring of samples


def test_lines_come_with_their_callers():
    tracemalloc.start(3)
    try:
        def build():
            return np.zeros(MIB // 8)

        kept = build()
        taken = take("", None, types=False, zero=0.0)
    finally:
        tracemalloc.stop()
    [line] = [line for line in taken.traced.lines if line.nbytes >= kept.nbytes]
    assert line.where.count(__file__) >= 2 and " < " in line.where


def test_memory_maps_are_told_apart(tmp_path):
    path = tmp_path / "model"
    am.Model(np.eye(300), np.ones((300, 1))).save(path)
    opened = am.Model.open(path)
    taken = take("", [opened], types=False, zero=0.0)
    assert taken.mapped >= path.stat().st_size
    assert taken.agent_bytes >= taken.mapped


# ---- differences


def test_a_difference_names_what_grew():
    robots = {"left": {"log": ["a"]}, "right": {"log": []}}
    profiler = Profiler(agents=robots)
    before = profiler.snapshot("before")
    robots["right"]["map"] = np.zeros(1_000)
    del robots["left"]["log"]
    after = profiler.snapshot("after")
    change = profiler.difference(before, after)
    assert (change.before, change.after) == ("before", "after") and change.seconds > 0
    grown = {(one.kind, one.name): one.grown for one in change.changes}
    assert grown["part", "map"] == 8_112
    assert grown["agent", "left"] < 0 < grown["agent", "right"]
    sizes = [one.grown for one in change.changes if one.kind != "process"]
    assert sizes == sorted(sizes, reverse=True)


def test_what_one_snapshot_lacks_is_left_out():
    lines = Traced(100, 100, (Line("a.py:1", 100, 1),))
    change = difference(snapshot(traced=lines), snapshot(types=(TypeUse("list", 1, 56),)))
    assert {one.kind for one in change.changes} == {"process"}
    assert "traced" not in {one.name for one in change.changes}
    no_pss = difference(snapshot(process=ProcessMemory(10, 20)), snapshot())
    assert {one.name for one in no_pss.changes} == {"rss", "peak RSS"}


def test_a_line_that_was_too_small_to_be_kept_has_not_grown_from_nothing():
    many = [Line(f"a.py:{k}", 1_000, 1) for k in range(MOST)]
    before = snapshot(traced=Traced(10**6, 10**6, tuple(many)))
    after = snapshot(traced=Traced(10**6, 10**6, (Line("new.py:1", 1_300, 1), *many[:-1])))
    change = {one.name: one for one in difference(before, after).changes if one.kind == "line"}
    assert change.keys() == {"new.py:1"} and change["new.py:1"].grown == 300


# ---- hotspots


def test_hotspots_hold_their_share():
    robots = {"big": {"x": np.zeros(9_000)}, "small": {"x": np.zeros(500), "y": np.zeros(400)}}
    profiler = Profiler(agents=robots)
    profiler.snapshot()
    spots = {(spot.kind, spot.name): spot for spot in profiler.hotspots(0.5)}
    assert spots.keys() == {("agent", "big"), ("part", "x")}
    assert 0.85 < spots["agent", "big"].share < 0.95
    everything = {(spot.kind, spot.name) for spot in profiler.hotspots(1e-6)}
    assert ("part", "y") in everything and ("agent", "small") in everything


def test_hotspots_of_all_are_those_of_when_most_was_held():
    robots = {"it": {"map": np.zeros(9_000)}}
    profiler = Profiler(agents=robots)
    assert hotspots_of_all(profiler.profile().snapshots) == profiler.profile().hotspots == ()
    before = profiler.snapshot("while it runs")
    del robots["it"]["map"]
    after = replace(profiler.snapshot("end"), types=(TypeUse("list", 1, 56),))
    assert ("part", "map") not in {(spot.kind, spot.name) for spot in profiler.hotspots(0.9)}
    found = hotspots_of_all((before, after), 0.9)
    assert {(spot.kind, spot.name, spot.nbytes > 72_000) for spot in found} == {
        ("agent", "it", True), ("part", "map", True), ("type", "list", False),
    }  # fmt: skip
    assert hotspots_of_all((after, before), 0.9) == found
    assert [spot.nbytes for spot in profiler.profile().hotspots if spot.kind == "part"] == [before.parts["map"]]


@pytest.mark.parametrize("share", [0, -1, 1.5, float("nan")])
def test_a_share_is_a_share(share):
    with pytest.raises(ValueError, match="share="):
        hotspots(snapshot(), share)
