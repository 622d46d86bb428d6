"""compact: what an agent holds is swapped where it saves bytes, all of it or nothing, and its code goes on working."""

import copy
import dataclasses
import gc
import json
import threading
import tracemalloc
import types
from collections import OrderedDict, defaultdict, deque, namedtuple
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
import reference

KINDS = np.ndarray, am.SparseArray


class Thing:
    """A plain object."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


def few(n=10_000, dtype=np.float64, at=5):
    """A belief with four states in its support."""
    p = np.zeros(n, dtype)
    p[at : at + 4] = [0.5, 0.25, 0.125, 0.125]
    return p


def sparse_rows(n=64, seed=0, dtype=np.float64):
    return reference.random_rows(np.random.default_rng(seed), n, n, 3).astype(dtype)


def entries(n=1_000):
    return [{"type": "move", "x": t % 7, "to": ("a", t % 3), "at": t / 8, "why": None, "ok": t % 2 == 0}
            for t in range(n)]  # fmt: skip


def rows_of(report):
    return {row.path: row for row in report.rows}


def reasons(report):
    return {row.path: row.note for row in report.left}


def same(a, b):
    """Equal numbers of equal dtype, or equal records of equal types."""
    if isinstance(b, np.ndarray):
        return a.shape == b.shape and a.dtype == b.dtype and np.array_equal(a, b, equal_nan=b.dtype.kind == "f")
    return [repr(x) for x in a] == [repr(x) for x in b]


# ---- what becomes what


def test_things_are_found_by_what_they_are():
    rng = np.random.default_rng(0)
    dense = {
        "belief": few(dtype=np.float32).reshape(100, 100),
        "prior": np.full(2_000, 1 / 2_000),
        "transition": sparse_rows(),
        "observation": np.where(rng.random((60, 50)) < 0.01, rng.random((60, 50)), 0).astype(np.float32),
        "counts": np.full((100, 100), 7),
        "seen": rng.random((80, 80)) < 0.01,
        "log": entries(),
        "words": [f"action_{t % 50}" * 20 for t in range(500)],
        "moves": [("move", t % 5, t // 10) for t in range(3_000)],
        "mixed": [None, 1, 1.0, True, "a", (1,), {"a": [1]}, b"x"] * 200,
        "actions": [t % 5 + 1_000 for t in range(5_000)],
        "recent": deque((t % 5 + 0.5 for t in range(5_000)), maxlen=5_000),
    }
    agent = Thing(**copy.deepcopy(dense))
    nbytes = {name: am.footprint(value).total for name, value in vars(agent).items()}
    report = am.compact(agent)
    kinds = {name: type(value).__name__ for name, value in vars(agent).items()}
    assert kinds == dict.fromkeys(("belief", "prior"), "SparseBelief") | dict.fromkeys(
        ("transition", "observation", "counts", "seen"), "SparseArray"
    ) | dict.fromkeys(("log", "words", "moves", "mixed", "actions", "recent"), "RecordHistory")
    for name, value in dense.items():
        assert same(getattr(agent, name), value), name
    assert agent.recent.maxlen == 5_000 and agent.log.maxlen is None
    assert agent.prior.storage == "uniform" and agent.belief.dtype == np.float32
    assert report.left == () and {row.path for row in report.rows} == {f"agent.{name}" for name in dense}
    for row in report.rows:
        name = row.path.removeprefix("agent.")
        assert row.bytes_before == nbytes[name]
        assert row.bytes_after == am.footprint(getattr(agent, name)).total < row.bytes_before
        assert row.now.startswith(kinds[name]) and row.pruned_mass == 0
    again = am.compact(agent)
    assert again.rows == () == again.left and again.bytes_before == 0


def test_numbers_come_back_with_their_types():
    numbers = [0, 1, True, 1.0, -0.0, 2**80, float("nan"), float("inf"), np.float32(0.1), np.int8(3), "1", None] * 50
    agent = Thing(log=list(numbers), last=deque(numbers, maxlen=10_000))
    am.compact(agent)
    for log in vars(agent).values():
        assert isinstance(log, am.RecordHistory) and [repr(x) for x in log] == [repr(x) for x in numbers]
        log.append(7)
        assert log[-1] == 7 and type(log[-1]) is int


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, np.uint64, np.int64, bool])
def test_what_is_no_number_is_kept(dtype):
    array = np.zeros((120, 120), dtype)
    if array.dtype.kind == "f":
        array[3, :5] = [np.nan, np.inf, -np.inf, -0.0, -2.5]
    else:
        array[3, :2] = [np.ones(1, dtype)[0], array[0, 0]]
    agent = Thing(x=array.copy(), y=np.full((100, 100), array[3, 0]))
    am.compact(agent)
    assert isinstance(agent.x, am.SparseArray) and isinstance(agent.y, am.SparseArray)
    assert same(agent.x, array) and same(agent.y, np.full((100, 100), array[3, 0]))


def test_small_things_stay_and_are_not_spoken_of():
    held = {"p": few(20), "T": np.eye(4), "log": [1, 2, 3], "name": "a", "n": 3, "q": few(64)}
    agent = Thing(**held)
    report = am.compact(agent)
    assert {row.path for row in report.rows} == {"agent.q"} and report.left == ()
    assert all(vars(agent)[name] is value for name, value in held.items() if name != "q")


def is_belief(array):
    agent = Thing(x=array)
    am.compact(agent)
    return type(agent.x) is am.SparseBelief


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize("n", [64, 1_000, 300_000])
def test_a_belief_sums_to_one_up_to_rounding(dtype, n):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        p = np.where(rng.random(n) < 0.2, rng.random(n), 0).astype(dtype)
        p[0] = 1
        by_numpy, one_by_one = p / p.sum(), p / np.add.reduce(p.astype(dtype).reshape(-1, 1), axis=0)[0]
        assert is_belief(by_numpy) and is_belief(one_by_one)
        off = by_numpy.copy()
        off[0] += 0.01
        assert not is_belief(off)
        off = by_numpy.copy()
        off[1], off[0] = -0.5, off[0] + 0.5 + off[1]
        assert not is_belief(off)
        off[1] = np.nan
        assert not is_belief(off)
    assert not is_belief(np.eye(1, n, dtype=int)[0])


# ---- where things are held


@dataclasses.dataclass
class Plain:
    belief: Any
    log: Any = None


@dataclasses.dataclass(frozen=True)
class Frozen:
    belief: Any
    log: Any = None


@dataclasses.dataclass(slots=True, frozen=True)
class FrozenSlots:
    belief: Any
    log: Any = None


class Slots:
    __slots__ = ("__weakref__", "belief", "empty")


class MoreSlots(Slots):
    __slots__ = ("_hidden", "log")

    def __init__(self, belief, log=None):
        self.belief, self.log, self._hidden = belief, log, few(5_000)


class SlotsAndDict(MoreSlots):
    pass


class ReadOnlyProperty:
    def __init__(self, belief, log=None):
        self._belief, self.log = belief, log

    @property
    def belief(self):
        return self._belief


class Raises:
    """Nothing can be set once it is made."""

    def __init__(self, belief, log=None):
        self.__dict__.update(belief=belief, log=log)

    def __setattr__(self, name, value):
        raise AttributeError(name)


@pytest.mark.parametrize("cls", [Plain, Frozen, FrozenSlots, MoreSlots, SlotsAndDict, ReadOnlyProperty, Raises, Thing])
def test_every_kind_of_class_is_seen_to(cls):
    agent = cls(belief=few(), log=entries())
    report = am.compact(agent)
    assert isinstance(agent.belief, am.SparseBelief) and same(agent.belief, few())
    assert isinstance(agent.log, am.RecordHistory) and same(agent.log, entries())
    stored = "agent._belief" if cls is ReadOnlyProperty else "agent.belief"
    assert {stored, "agent.log"} <= set(rows_of(report))
    if isinstance(agent, MoreSlots):
        assert isinstance(agent._hidden, am.SparseBelief) and not hasattr(agent, "empty")


Pair = namedtuple("Pair", "first second")


def test_paths_lead_to_what_is_held():
    agent = Thing(
        model=Thing(B=[few(at=1), {"a": few(at=2), 3: few(at=3), ("k", 1): few(at=4)}]),
        pair=Pair(Thing(p=few(at=5)), 1),
        ordered=OrderedDict(p=few(at=6)),
        made=defaultdict(list, p=few(at=7)),
        queue=deque([few(at=8)]),
        members={Thing(belief=few(at=9))},
    )
    report = am.compact(agent)
    assert {row.path for row in report.rows} == {
        "agent.model.B[0]",
        "agent.model.B[1]['a']",
        "agent.model.B[1][3]",
        "agent.model.B[1][('k', 1)]",
        "agent.pair[0].p",
        "agent.ordered['p']",
        "agent.made['p']",
        "agent.queue[0]",
        "agent.members[0].belief",
    }
    for at, row in enumerate(report.rows, 1):
        if "members" not in row.path:
            assert same(eval(row.path, {"agent": agent}), few(at=at))
    assert list(agent.ordered) == ["p"] and agent.made.default_factory is list


def test_a_subclass_of_list_stays_and_what_is_in_it_is_seen_to():
    class Log(list):
        pass

    class Window(deque):
        pass

    agent = Thing(log=Log(entries()), window=Window(entries(), maxlen=10_000), few=Log([few()]))
    log, window = agent.log, agent.window
    am.compact(agent)
    assert agent.log is log and agent.window is window and log == entries()
    assert isinstance(agent.few, Log) and isinstance(agent.few[0], am.SparseBelief)


def test_object_arrays_are_looked_into_as_those_of_pymdp():
    A, B = np.empty(2, object), np.empty((2, 2), object)
    A[0], A[1] = few(), sparse_rows(seed=1)
    for k in range(4):
        B[divmod(k, 2)] = sparse_rows(seed=k)
    locked = A.copy()
    locked.flags.writeable = False
    alone = np.empty((), object)
    alone[()] = Thing(p=few())
    agent = Thing(A=A, B=B, alone=alone)
    report = am.compact(agent)
    assert agent.A is A and agent.B is B
    assert isinstance(A[0], am.SparseBelief) and all(isinstance(b, am.SparseArray) for b in B.flat)
    assert same(A[1], sparse_rows(seed=1)) and all(same(B[divmod(k, 2)], sparse_rows(seed=k)) for k in range(4))
    assert isinstance(alone[()].p, am.SparseBelief)
    assert {"agent.A[0]", "agent.B[1, 0]", "agent.alone[].p"} <= set(rows_of(report))
    report = am.compact(Thing(A=locked))
    assert isinstance(locked[0], np.ndarray) and "read-only array" in reasons(report)["agent.A[0]"]


def test_cycles_and_depth_are_no_trouble():
    agent = Thing(belief=few())
    agent.me, agent.all = agent, [agent]
    agent.all.append(agent.all)
    chain = agent
    for _ in range(20_000):
        chain.next = Thing()
        chain = chain.next
    chain.belief = few(at=9)
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    agent.many = [deep] * 100
    agent.round = []
    agent.round += [agent.round] * 100
    report = am.compact(agent)
    assert len(report.rows) == 2 and same(agent.belief, few()) and same(chain.belief, few(at=9))


def test_what_other_libraries_made_is_left_whole():
    agent = Thing(
        matrix=sparse.csr_array(np.ones((80, 80))),
        masked=np.ma.array(np.zeros((80, 80))),
        module=types,
        cls=Thing,
        function=reference.predict,
        lock=threading.Lock(),
        rng=np.random.default_rng(0),
        text="x" * 10_000,
        table=np.zeros(1_000, "f8,i4"),
        names=np.array(["a" * 100] * 100),
        complex=np.zeros((80, 80), complex),
        swapped=np.zeros((80, 80), ">f8"),
        long=np.zeros((80, 80), np.longdouble),
    )
    before = dict(vars(agent))
    data = agent.matrix.data
    report = am.compact(agent)
    assert report.rows == () and all(vars(agent)[name] is value for name, value in before.items())
    assert agent.matrix.data is data and (agent.matrix @ np.ones(80)).tolist() == [80.0] * 80
    assert set(reasons(report)) == {
        f"agent.{name}" for name in ["matrix", "masked", "text", "table", "names", "complex", "swapped", "long"]
    }


def test_our_own_containers_are_left_without_a_word():
    model = am.Model(*reference.random_tables(np.random.default_rng(0), 50))
    held = {
        "model": model,
        "belief": model.belief(),
        "array": am.SparseArray(np.ones((100, 100))),
        "log": am.RecordHistory(),
        "history": am.HistoryBuffer(1_000, dtype=float),
        "group": am.HistoryGroup(10, 100, dtype=int),
        "agents": am.Population(model, 10),
        "budget": am.Budget("1 MB"),
        "scratch": am.Scratch(),
        "pool": am.ModelPool(),
    }
    held["history"].extend(np.random.default_rng(0).random(5_000))
    agent = Thing(**held)
    report = am.compact(agent)
    assert report.rows == () == report.left and all(vars(agent)[name] is value for name, value in held.items())


# ---- one thing held twice, and memory that others see


def test_what_is_held_twice_is_swapped_once():
    p, log = few(), entries()
    agents = [Thing(belief=p, log=log, other={"p": p}), Thing(belief=p, log=log), Thing(belief=few())]
    report = am.compact(agents)
    assert agents[0].belief is agents[0].other["p"] is agents[1].belief is not agents[2].belief
    assert agents[0].log is agents[1].log
    assert {row.path for row in report.rows} == {"agent[0].belief", "agent[0].log", "agent[2].belief"}
    agents[1].belief[0] = 0.5
    assert agents[0].other["p"][0] == 0.5


def test_views_and_what_they_are_of_are_left():
    table, buffer = np.zeros((100, 100)), np.zeros(10_000)
    held = {
        "table": table,
        "row": table[3:80],
        "buffer": buffer,
        "window": np.lib.stride_tricks.sliding_window_view(buffer, 3),
        "bytes": np.zeros(10_000, np.uint8),
        "outside": np.zeros((2, 10_000))[0],
    }
    held["open"] = memoryview(held["bytes"])
    outside = held["outside"].base
    agent = Thing(**held)
    report = am.compact(agent)
    assert all(vars(agent)[name] is value for name, value in held.items())
    why = reasons(report)
    assert why["agent.table"] == "agent.row is a view of it" and why["agent.bytes"] == "agent.open is a view of it"
    assert "view" in why["agent.row"] and "view" in why["agent.window"] and "view" in why["agent.outside"]
    assert outside.shape == (2, 10_000)
    assert report.bytes_before == report.bytes_after == sum(row.bytes_before for row in report.left)
    assert report.bytes_before < sum(am.footprint(x).total for x in (table, buffer, held["bytes"], outside)) + 1_000


def test_a_view_that_alone_has_its_memory_is_swapped():
    agent = Thing(
        grid=few().reshape(100, 100),
        turned=np.arange(2_000_000).reshape(1000, 2000).T[:50, :50],
        zeros=np.zeros(9_000)[:],
    )
    agent.turned = np.where(np.eye(50), np.arange(2_500).reshape(50, 50), 0).T
    expected = {name: value.copy() for name, value in vars(agent).items()}
    report = am.compact(agent)
    for name, value in expected.items():
        assert isinstance(getattr(agent, name), am.SparseArray) and same(getattr(agent, name), value)
    assert all(row.bytes_before > 9_000 for row in report.rows)


def test_what_cannot_be_put_back_is_left_everywhere():
    p, q = few(), few()
    agent = Thing(both=(p, 1), belief=p, one=frozenset([Thing(q=q)]))
    report = am.compact(agent)
    assert agent.both[0] is agent.belief is p and "tuple" in reasons(report)["agent.both[0]"]
    assert {row.path for row in report.rows} == {"agent.one[0].q"}
    report = am.compact(p)
    assert reasons(report) == {"agent": "the agent itself"}


def test_memory_of_files_is_left(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float64, "w+", shape=(100, 100))
    agent = Thing(mapped=mapped, plain=np.asarray(mapped), borrowed=np.frombuffer(bytearray(80_000)))
    before = dict(vars(agent))
    report = am.compact(agent)
    assert reasons(report)["agent.mapped"] == "a memory map" and "view" in reasons(report)["agent.plain"]
    assert agent.mapped is before["mapped"] and agent.plain is before["plain"]


def test_what_nobody_can_write_to_stays_so():
    p, x, locked = few(), np.zeros((100, 100)), np.frombuffer(bytes(80_000))
    p.flags.writeable = x.flags.writeable = False
    agent = Thing(p=p, x=x, locked=locked)
    am.compact(agent)
    for name, value in (("p", p), ("x", x), ("locked", locked)):
        now = getattr(agent, name)
        assert isinstance(now, am.SparseArray) and same(now, value)
        with pytest.raises(ValueError, match="read-only"):
            now[3] = 1


# ---- logs


def test_logs_that_are_worked_on_otherwise_are_left():
    held = {
        "table": [[0.0] * 8 for _ in range(500)],
        "queue": deque(entries()),
        "agents": [{"belief": few(100)} for _ in range(100)],
        "short": entries(60),
        "odd": [1 + 2j] * 5_000,
        "objects": [Thing(x=1) for _ in range(1_000)],
        "tiny": [5] * 70,
        "large": "x" * 5_000,
    }
    agent = Thing(**held)
    report = am.compact(agent)
    assert all(vars(agent)[name] is value for name, value in held.items())
    why = reasons(report)
    assert set(why) == {"agent.table", "agent.queue", "agent.odd", "agent.large"}
    assert "lists" in why["agent.table"] and "maxlen" in why["agent.queue"] and "complex" in why["agent.odd"]
    assert all(isinstance(one["belief"], am.SparseBelief) for one in agent.agents)


def test_a_log_goes_on_as_a_list():
    agent, plain = Thing(log=entries(), last=deque(entries(), maxlen=1_000)), entries()
    am.compact(agent)
    agent.log.append({"type": "stay"})
    agent.last.append({"type": "stay"})
    plain.append({"type": "stay"})
    assert len(agent.log) == 1_001 and agent.log == plain and agent.log[-3:] == plain[-3:]
    assert len(agent.last) == 1_000 and [*agent.last] == plain[1:]
    entry = agent.log[-1]
    entry["x"] = 1
    assert agent.log[-1] == {"type": "stay"}


# ---- pruning


def tail(n=5_000, dtype=np.float32):
    p = np.full(n, 1e-14, dtype)
    p[7:12] = 0.2
    return p / p.sum(dtype=np.float64).astype(dtype)


@pytest.mark.parametrize("prune", [1e-8, {"relative": 1e-8}, {"max_states": 5}, {"absolute": 1e-9}, {"mass": 1e-6}])
@pytest.mark.parametrize("dtype", reference.DTYPES)
def test_pruning_is_done_where_asked_and_stated(prune, dtype):
    left, pruned = Thing(p=tail(dtype=dtype)), Thing(p=tail(dtype=dtype), sure=few(dtype=dtype), T=np.eye(80))
    report = am.compact(left)
    assert isinstance(left.p, np.ndarray) and reasons(report)["agent.p"] == "no fewer bytes"
    report = am.compact(pruned, prune=prune)
    rules = prune if isinstance(prune, dict) else {"relative": prune}
    expected, dropped = reference.prune(tail(dtype=dtype), **rules)
    row = rows_of(report)["agent.p"]
    assert row.pruned_mass == pytest.approx(dropped, rel=1e-3, abs=1e-15) and row.pruned_mass > 0
    assert f"{row.pruned_mass:.2g}" in row.note and pruned.p.pruned_mass == row.pruned_mass
    np.testing.assert_allclose(pruned.p.to_dense(), expected, rtol=reference.ONE_STEP[dtype])
    assert same(pruned.sure, few(dtype=dtype)) and same(pruned.T, np.eye(80))
    assert rows_of(report)["agent.sure"].pruned_mass == 0 == rows_of(report)["agent.T"].pruned_mass
    assert rows_of(report)["agent.sure"].note == ""


@pytest.mark.parametrize("prune", [-1, 2, "a", True, {"relative": 2}, {"no_such": 1}, float("nan"), {"max_states": 0}])
def test_rules_that_are_none_are_refused(prune):
    agent = Thing(p=few())
    p = agent.p
    with pytest.raises((ValueError, TypeError)):
        am.compact(agent, prune=prune)
    assert agent.p is p


def test_a_rule_that_drops_all_names_the_belief():
    agent = Thing(p=few(), q=np.full(1_000, 1e-3))
    before = dict(vars(agent))
    with pytest.raises(ValueError, match=r"agent\.q: pruning would drop every state"):
        am.compact(agent, prune={"absolute": 0.1})
    assert all(vars(agent)[name] is value for name, value in before.items())


# ---- what agents share


def test_matrices_are_shared_by_content_and_never_by_shape():
    def agent(seed, dense):
        T = sparse_rows(seed=seed)
        return Thing(T=np.full((64, 64), 1 / 64) * 0.5 + 0.5 * T if dense else T, stack=np.stack([T, T[::-1]]))

    for dense in (False, True):
        agents = [agent(0, dense), agent(1, dense), agent(0, dense)]
        expected = copy.deepcopy(agents)
        pool = am.ModelPool()
        report = am.compact(agents, pool=pool)
        assert agents[0].T is agents[2].T is not agents[1].T
        assert agents[0].stack is agents[2].stack is not agents[1].stack and len(pool) == 4
        for got, want in zip(agents, expected, strict=True):
            assert isinstance(got.T, KINDS[not dense]) and same(got.T, want.T) and same(got.stack, want.stack)
            with pytest.raises(ValueError, match="read-only"):
                got.T[0, 0] = 1
        rows = rows_of(report)
        assert rows["agent[0].T"].note == "shared" == rows["agent[1].T"].note
        assert rows["agent[2].T"].note == "shared with agent[0].T" and rows["agent[2].T"].bytes_after == 0
        assert report.bytes_after == sum(am.footprint(x).total for one in agents[:2] for x in (one.T, one.stack))
        later = agent(1, dense)
        report = am.compact(later, pool=pool)
        assert later.T is agents[1].T and report.bytes_after == 0 and rows_of(report)["agent.T"].note == "shared"
        del agents, later, got
        gc.collect()
        assert len(pool) == 0


def test_columns_of_pymdp_sum_to_one_too_and_other_arrays_are_nobodys_but_the_agents():
    rng = np.random.default_rng(0)
    B = np.stack([sparse_rows(40, seed).T for seed in range(3)], axis=-1)
    held = {
        "A": rng.dirichlet(np.ones(30), size=50).T,
        "B": B,
        "p": few(),
        "prior": np.full((40, 40), 1 / 1600),
        "image": rng.random((60, 50)),
        "zeros": np.zeros((60, 50)),
        "log": entries(),
        "T": sparse_rows().astype(np.float32),
        "negative": np.eye(64) * 2 - np.ones((64, 64)) / 64,
        "nan": np.where(np.eye(64), np.nan, 0),
    }
    agent, pool = Thing(**copy.deepcopy(held)), am.ModelPool()
    am.compact(agent, pool=pool)
    assert len(pool) == 3
    for name in held:
        value = getattr(agent, name)
        assert same(value, held[name]), name
        if name != "log":
            assert value.flags.writeable == (name not in "ABT"), name


def test_models_are_shared():
    tables = reference.random_tables(np.random.default_rng(0), 50)
    agents = [Thing(model=am.Model(*tables)) for _ in range(3)]
    first, pool = agents[0].model, am.ModelPool()
    report = am.compact(agents, pool=pool)
    assert all(one.model is first for one in agents)
    assert [(row.path, row.note) for row in report.rows] == [
        (f"agent[{k}].model", "shared with agent[0].model") for k in (1, 2)
    ]
    assert report.bytes_after == 0 and am.compact(agents, pool=pool).rows == ()


# ---- all or nothing


def snapshot(agents):
    return [(name, id(value)) for one in agents for name, value in vars(one).items()]


def test_a_dry_run_changes_nothing_and_reports_the_same():
    def make():
        return [
            Thing(p=few(), T=sparse_rows(), log=entries(), x=np.random.default_rng(0).random(900)) for _ in range(2)
        ]

    agents, pool, budget = make(), am.ModelPool(), am.Budget("1 MB")
    before = snapshot(agents)
    told = am.compact(agents, pool=pool, budget=budget, dry_run=True)
    gc.collect()
    assert snapshot(agents) == before and len(pool) == 0 and budget.used == 0
    assert told == am.compact(make(), pool=am.ModelPool())
    assert told == am.compact(agents, pool=pool, budget=budget) and len(told.rows) == 6


def test_a_budget_is_charged_and_paid_back():
    budget, agent = am.Budget("1 MB"), Thing(p=few(), T=sparse_rows(), log=entries())
    other = copy.deepcopy(agent)
    report = am.compact(agent, budget=budget)
    assert budget.holders == {row.path: row.bytes_after for row in report.rows} and budget.used == report.bytes_after
    am.compact(other, budget=budget)
    assert budget.used == 2 * report.bytes_after
    del agent.p
    assert budget.holders["agent.p"] == rows_of(report)["agent.p"].bytes_after
    del other.p, agent, other
    gc.collect()
    assert budget.used == 0


def test_what_is_shared_is_charged_once():
    budget, pool = am.Budget("1 MB"), am.ModelPool()
    agents = [Thing(T=sparse_rows()) for _ in range(5)]
    am.compact(agents, budget=budget, pool=pool)
    assert budget.used == am.footprint(agents[0].T).total
    late = Thing(T=sparse_rows())
    am.compact(late, budget=budget, pool=pool)
    assert budget.used == am.footprint(late.T).total
    del agents
    assert budget.used == am.footprint(late.T).total
    del late
    assert budget.used == 0


@pytest.mark.parametrize("limit", [100, 1_000, 4_000])
def test_a_short_budget_leaves_all_as_it_was(limit):
    budget, agent = am.Budget(limit), Thing(p=few(), T=sparse_rows(), log=entries())
    budget.reserve(50, "others")
    before = snapshot([agent])
    with pytest.raises(am.BudgetExceeded, match=r"agent\.\w+ asks for") as raised:
        am.compact(agent, budget=budget)
    assert snapshot([agent]) == before and budget.holders == {"others": 50}
    assert raised.tb is not None  # which still holds what was planned
    del raised
    gc.collect()
    assert budget.holders == {"others": 50}


class Key:
    """A key that stops working."""

    def __init__(self, asked):
        self.asked = asked

    def __hash__(self):
        self.asked -= 1
        if self.asked < 0:
            raise RuntimeError("no more")
        return 1

    def __eq__(self, other):
        return self is other


@pytest.mark.parametrize("asked", [1, 2])
def test_a_failure_on_the_way_undoes_what_was_done(asked):
    p, q = few(), few()
    agent = Thing(p=p, also=[p], table={Key(asked): p, "q": q}, log=entries())
    before, log = snapshot([agent]), agent.log
    budget, pool = am.Budget("1 MB"), am.ModelPool()
    if asked == 1:  # by the dict that is made of it here
        with pytest.raises(RuntimeError, match="no more"):
            am.compact(agent, budget=budget, pool=pool)
        assert snapshot([agent]) == before and agent.also[0] is p and agent.log is log
        assert next(iter(agent.table.values())) is p and agent.table["q"] is q
        assert budget.used == 0 and len(pool) == 0
    else:
        am.compact(agent, budget=budget, pool=pool)
        assert next(iter(agent.table.values())) is agent.p is agent.also[0]


@pytest.mark.parametrize(("option", "given"), [("budget", "10 MB"), ("pool", {})])
def test_options_of_other_types_are_refused(option, given):
    with pytest.raises(TypeError, match=f"{option} of type"):
        am.compact(Thing(p=few()), **{option: given})


# ---- the report


def test_the_report_is_a_table_of_a_hundred_columns_and_json():
    agent = Thing(
        belief=few(3_000_000, np.float32),
        log=entries(),
        image=np.random.default_rng(0).random((300, 300)),
        deeply=Thing(
            nested=Thing(attribute={"with a long key in it": [Thing(of_an_object=few(), also=sparse_rows())]})
        ),
        again=[sparse_rows()],
    )
    report = am.compact(agent, pool=am.ModelPool(), dry_run=True)
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 100 and lines[-1].startswith("in all ")
    text = str(report)
    for said in ("agent.belief", "float32 (3000000,)", "SparseBelief, pairs", "11.4 MiB", "list, 1,000 dict",
                 "RecordHistory", "agent.image", "left alone", "no fewer bytes", "703 KiB", "shared with"):  # fmt: skip
        assert said in text, said
    loaded = json.loads(json.dumps(dataclasses.asdict(report)))
    assert loaded["bytes_before"] == sum(row["bytes_before"] for row in loaded["rows"] + loaded["left"])
    assert loaded["bytes_after"] == sum(row["bytes_after"] for row in loaded["rows"] + loaded["left"])
    assert {row["path"] for row in loaded["left"]} == {"agent.image"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows = ()


# ---- the agent's own code


class Worker:
    """Its methods know NumPy and lists only."""

    def __init__(self, rng, density, dtype, shape=(20, 30)):
        n = shape[0] * shape[1]
        p = np.where(rng.random(n) < density, rng.random(n), 0)
        p[rng.integers(n)] = 1
        self.belief = (p / p.sum()).astype(dtype).reshape(shape)
        self.transition = [reference.random_rows(rng, n, n, 3).astype(dtype)]
        self.seen = np.where(rng.random(shape) < density, rng.random(shape), 0).astype(dtype)
        self.counts = np.zeros(shape, int)
        self.log = [{"type": "move", "at": t, "mode": (t % 7, t % 5), "p": t / 3} for t in range(800)]
        self.last = deque((t * 1.5 for t in range(3_000)), maxlen=3_000)

    def step(self, likelihood, image, t):
        b = self.belief.ravel() @ self.transition[0]
        b = b.reshape(self.belief.shape) * likelihood
        self.belief[...] = b / b.sum()
        self.belief *= self.belief > 1e-4 * self.belief.max()
        self.belief /= self.belief.sum()
        self.seen[3:8] = image
        self.seen += 0.0
        mode = tuple(int(k) for k in np.unravel_index(np.argmax(self.belief), self.belief.shape))
        self.counts[mode] += 1
        self.log.append({"type": "move", "at": t, "mode": mode, "p": t / 3})
        self.last.append(t * 0.5)
        q = np.asarray(self.belief)
        entropy = -(q[q > 0] * np.log(q[q > 0])).sum()
        return mode, entropy, self.seen.mean(), self.log[-2:], sum(self.last), np.count_nonzero(self.counts)


@pytest.mark.parametrize("dtype", reference.DTYPES)
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("with_pool", [False, True])
def test_a_working_agent_does_not_notice(dtype, density, with_pool):
    rng = np.random.default_rng([int(1000 * density), with_pool])
    dense = Worker(rng, density, dtype)
    ours = copy.deepcopy(dense)
    report = am.compact(ours, pool=am.ModelPool() if with_pool else None)
    assert {"agent.transition[0]", "agent.counts", "agent.log"} <= set(rows_of(report))
    for t in range(20):
        likelihood = np.where(rng.random(dense.belief.shape) < 0.3, 0.9, 0.1).astype(dtype)
        image = np.where(rng.random((5, 30)) < density, rng.random((5, 30)), 0).astype(dtype)
        wanted, got = dense.step(likelihood, image, t), ours.step(likelihood, image, t)
        assert got[0] == wanted[0] and got[3:] == wanted[3:]
        assert got[1:3] == pytest.approx(wanted[1:3], rel=1e-4 if dtype == np.float32 else 1e-10)
    assert same(ours.log, dense.log) and same(ours.last, dense.last)
    assert np.array_equal(ours.seen, dense.seen) and np.array_equal(ours.counts, dense.counts)
    assert np.abs(ours.belief - dense.belief).sum() <= (1e-5 if dtype == np.float32 else 1e-12)
    assert np.array_equal(ours.transition[0], dense.transition[0])


def test_memory_while_compacting_is_a_few_times_the_largest_array():
    rng = np.random.default_rng(0)
    belief = np.where(rng.random((1000, 1000)) < 0.01, rng.random((1000, 1000)), 0)
    agent = Thing(belief=(belief / belief.sum()).astype(np.float32), tail=tail(1_000_000), image=np.zeros((1000, 1000)))
    largest = agent.image.nbytes
    am.compact(agent, dry_run=True)
    tracemalloc.start()
    try:
        am.compact(agent, prune=1e-8)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 3 * largest


class Named(NamedTuple):
    belief: Any
    log: Any


def test_a_population_of_agents_of_every_kind_is_one_call():
    agents = {"a": [Thing(p=few()), Plain(few()), MoreSlots(few())], "b": Named(few(), entries()), "c": ()}
    report = am.compact(agents)
    assert {row.path for row in report.rows} == {
        "agent['a'][0].p", "agent['a'][1].belief", "agent['a'][2].belief", "agent['a'][2]._hidden",
    }  # fmt: skip
    assert set(reasons(report)) == {"agent['b'][0]", "agent['b'][1]"}


@pytest.mark.parametrize("wrong", [5, None, "agent", b"", 1.0, dict, np])
def test_what_holds_nothing_is_no_agent(wrong):
    with pytest.raises(TypeError, match="agent of type"):
        am.compact(wrong)


@pytest.mark.parametrize("wrong", ["x", True, [1], {"foo": 1}, {"relative": "x"}, 2, -1, float("nan")])
def test_a_rule_of_pruning_that_is_none_is_refused_by_name(wrong):
    with pytest.raises((TypeError, ValueError), match=r"prune=.* given; expected a share"):
        am.compact([np.ones(3)], prune=wrong)
