"""Footprints against pympler where it is right, against known sizes and tracemalloc where it is not."""

import array
import ctypes
import doctest
import functools
import gc
import logging
import mmap
import sys
import threading
import tracemalloc
import weakref
from collections import defaultdict, deque
from dataclasses import dataclass, make_dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pympler.asizeof import asizeof
from scipy import sparse

import agentmem as am
from agentmem._core import Ids
from agentmem.footprint import MAX_PARTS, footprint

HEADER = sys.getsizeof(np.zeros(0))  # of a 1-D array, whoever owns its buffer


def total(obj):
    held = footprint(obj)
    assert held.total == sum(held.parts.values())
    assert all(type(nbytes) is int for nbytes in held.parts.values())
    return held.total


def sizes(*objects):
    return sum(sys.getsizeof(obj) for obj in objects)


@dataclass
class Plain:
    log: list
    name: str


@dataclass(slots=True)
class Slotted:
    log: list
    name: str


class Further(Slotted):
    __slots__ = ("extra",)


def with_dict(obj):
    vars(obj)  # pympler asks for it, and an object is larger from then on
    return obj


def further():
    made = Further([1000], "a")
    made.extra = {"b": {2.5}}
    return made


# ---- as pympler has it

shown_dict = pytest.mark.skipif(sys.version_info >= (3, 13), reason="gc no longer shows a __dict__")


@pytest.mark.parametrize(
    "obj",
    [
        [],
        [1, [2.5, [3000, [b"four"]]]],
        {"a": [1], "b": {"c": "d", (1, 2): 3j}},
        {"x", "y", frozenset((1, 2))},
        (1, "a", bytearray(100), 10**100, "\u00fc" * 100),
        defaultdict(list, {"a": [1.5]}),
        Fraction(1, 3),
        range(1000, 2000),
        array.array("d", [0.0] * 100),
        list(range(1000)),
        pytest.param(with_dict(Plain([1000, 2000], "a")), marks=shown_dict),
        pytest.param([with_dict(Plain([1], "a"))] * 3, marks=shown_dict),
        [Slotted([1000], "a"), further()],
        [np.zeros(3), np.ones((4, 5)), np.arange(1000, dtype=np.int8)],
    ],
    ids=lambda obj: type(obj).__name__,
)
def test_agrees_with_pympler(obj):
    assert total(obj) == asizeof(obj, align=1)


def test_constants_classes_and_modules_count_nothing():
    assert total(None) == total(Plain) == total(np) == total(np.dtype(float)) == 0
    assert total([None, True, ..., NotImplemented, int, sys, np.dtype("f4")]) == sys.getsizeof([0] * 7)


# ---- arrays


def test_an_array_counts_its_buffer():
    for x in (np.zeros(1000), np.zeros((3, 4), np.float32), np.array(5.0), np.zeros((0, 3))):
        assert total(x) == sys.getsizeof(x) and sys.getsizeof(x) >= x.nbytes


def test_views_share_one_base():
    base = np.zeros(1000)
    views = [base[::2], base[500:], base.reshape(10, 100)[3], base[::-1][:5]]
    with_base = [base, *views]
    assert total(views) == sizes(views, base) + 4 * HEADER
    assert total(with_base) == sizes(with_base, base) + 4 * HEADER


def test_a_small_view_keeps_a_large_base():
    pool = np.zeros(1_000_000)
    assert total(pool[:3]) == 8_000_000 + 2 * HEADER
    assert total(np.broadcast_to(pool[:1], (1000, 1000))) < 8_000_000 + 1000


def test_slices_of_a_pool_count_it_once():
    pool = np.zeros((1000, 100))
    slices = [pool[i] for i in range(1000)]
    held = footprint(slices)
    assert held.total == sizes(slices, pool) + 1000 * HEADER
    assert held.parts["[0]"] == sys.getsizeof(pool) + HEADER and held.parts["[999]"] == HEADER


def test_views_of_views_with_classes_of_their_own():
    masked = np.ma.masked_array(np.zeros(1000), mask=np.zeros(1000, bool))
    assert 9000 <= total(masked) <= 9000 + 1500
    strided = np.lib.stride_tricks.as_strided(np.zeros(1000), (500,), (16,))
    assert 8000 <= total(strided) <= 8000 + 2000


@pytest.mark.parametrize(
    "owner",
    [
        bytes(8000),
        bytearray(8000),
        array.array("d", [0.0] * 1000),
        memoryview(bytearray(8000)),
        (ctypes.c_double * 1000)(),
    ],
    ids=lambda owner: type(owner).__name__,
)
def test_buffers_owned_by_others(owner):
    x, y = np.frombuffer(owner), np.frombuffer(owner)
    assert 8000 + HEADER <= total(x) <= 8000 + HEADER + 800
    assert total(x) <= total([owner, x, y, x[::2]]) <= total(x) + 1200
    assert total([y, owner, x]) == total([x, y, owner])


def test_a_buffer_behind_a_capsule_counts_once():
    x = np.from_dlpack(np.zeros(1000))
    assert 8000 <= total(x) <= 8000 + 500
    assert 8000 <= total([x, x[1:], x[2:]]) <= 8000 + 1000


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_small_view_of_a_foreign_buffer_counts_all_of_it(order):
    owner = (ctypes.c_char * 1_000_000)()
    whole = np.frombuffer(owner, np.uint8)
    small = np.frombuffer(owner, np.uint8, 100)
    assert 1_000_000 < footprint([small, whole][order]).total < 1_001_000
    assert 1_000_000 < footprint(small).total < 1_001_000


def test_hostile_objects_are_counted_as_plain_ones():
    class Meta(type):
        def __getattr__(cls, name):
            raise RuntimeError(name)

    class Hostile(metaclass=Meta):
        __slots__ = ("data",)

        def __sizeof__(self):
            raise RuntimeError

        @property
        def __class__(self):
            raise RuntimeError

    hostile = Hostile()
    hostile.data = np.zeros(1_000)
    assert 8_000 < footprint([hostile]).total < 8_400

    class Table(np.ndarray):
        @property
        def nbytes(self):
            raise RuntimeError

        def view(self, *args):
            raise RuntimeError

    class Text:
        __slots__ = ("error",)

        def __init__(self, error):
            self.error = error

        def __str__(self):
            raise RuntimeError

        def __sizeof__(self):
            raise self.error()

    tables = np.ndarray.view(np.zeros(100), Table), np.ndarray.view(np.array([np.zeros(100)]), Table)
    assert 1_600 < footprint({Text(TypeError): tables}).total < 3_000
    assert total(Text(TypeError)) == total(Text(RuntimeError)) > 0
    assert total(type("Module", (), {"__globals__": {}})()) > 0


def test_what_only_looks_like_a_container_is_walked():
    class Column:
        def __init__(self):
            self.data = np.zeros(1_000)

        def buffers(self):
            return [self.data]

        @classmethod
        def from_buffers(cls, buffers):
            return cls()

        nbytes = property(lambda self: 10**9)

    assert 8_000 < footprint(Column()).total < 9_000


def test_names_of_attributes_may_be_anything():
    plain = Plain([1], "x")
    plain.__dict__[1] = [2, 3]
    assert footprint(plain).parts["1"] > 0


@given(st.lists(st.integers(1, 2**64 - 1) | st.integers(1, 9).map(lambda k: k << 20)))
def test_a_set_of_ids_is_a_set(ids):
    found, expected = Ids(), set()
    for one in ids:
        assert (one in found) == (one in expected)
        found.add(one)
        expected.add(one)
        assert len(found) == len(expected)
    assert all(one in found for one in expected) and 0 not in found


def test_a_set_of_ids_is_small():
    found = Ids()
    for k in range(1, 100_001):
        found.add(16 * k)
    assert all(16 * k in found and 16 * k + 8 not in found for k in range(1, 100_001))
    assert 8 * 100_000 < sys.getsizeof(found) < 22 * 100_000
    for wrong in (0, -1, 2**64, "1", None):
        with pytest.raises((ValueError, OverflowError, TypeError)):
            found.add(wrong)
    assert len(found) == 100_000


def test_object_arrays_are_entered():
    inner = np.zeros(1000)
    cells = np.empty((2, 2), dtype=object)
    cells[0, 0], cells[0, 1], cells[1, 1] = inner, [inner[::2]], inner
    expected = sys.getsizeof(cells) + sys.getsizeof(inner) + sys.getsizeof([0]) + HEADER
    assert total(cells) == expected
    assert total(cells.T[1:]) == expected + sys.getsizeof(cells.T[1:])
    assert asizeof(cells) < 1000  # why this module exists


def test_objects_in_structured_arrays_are_entered():
    kind = [("a", float), ("pair", object, (2,)), ("nested", [("deep", object)])]
    records = np.zeros(2, dtype=kind)
    records["pair"][1, 0], records["nested"]["deep"][0] = "x" * 1000, "y" * 1000
    expected = sys.getsizeof(records) + 2 * sys.getsizeof("x" * 1000) + sys.getsizeof(0)
    assert total(records) == expected
    assert total(records["pair"]) >= expected
    assert total(records[0]) >= expected  # np.void, a view


def test_sparse_matrices():
    matrix = sparse.random(1000, 1000, 0.01, format="csr", random_state=0)
    content = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    held = footprint(matrix)
    assert content <= held.total <= content * 1.02
    owners = [x if x.base is None else x.base for x in (matrix.data, matrix.indices, matrix.indptr)]
    assert held.parts["indptr"] == sys.getsizeof(owners[2])
    for form in ("coo", "csc", "dok", "lil", "bsr"):
        assert total(matrix.asformat(form)) > content / 2


def test_mapped_files(tmp_path):
    np.zeros(100_000).tofile(tmp_path / "x")
    x = np.memmap(tmp_path / "x", dtype=float, mode="r")
    held = footprint({"x": x, "half": x[::2], "more": [1]})
    assert held.mapped == 800_000 and 800_000 <= held.parts["x"] <= 802_000
    assert held.parts["half"] < 1000
    data = mmap.mmap(-1, 4096)
    assert footprint(data).mapped == 4096
    data.close()
    assert footprint(data).mapped == 0


# ---- graphs


def test_cycles_end():
    a, b = Plain([], "a"), Plain([], "b")
    a.log.append(b)
    b.log.append(a)
    a.log.append(a.log)
    assert total(a) == total(a) < 1500


def test_no_recursion():
    linked = None
    for _ in range(100_000):
        linked = [linked]
    assert total(linked) == 100_000 * sys.getsizeof([0])


@pytest.mark.parametrize("n_attributes", [1, 2, 5, 12])
def test_attributes_nobody_asked_the_dict_of(n_attributes):
    kind = make_dataclass("Kind", [f"x{i}" for i in range(n_attributes)])

    def build(n_objects=5000):
        return [kind(*range(n_attributes)) for _ in range(n_objects)]

    build(100)  # CPython settles on a size of the block
    assert total(build()) == pytest.approx(tracemalloc_of(build), rel=0.02)
    objects = build()
    assert tracemalloc_of(lambda: footprint(objects).total) < 1000  # looking built no dict


def test_attributes_of_built_in_containers():
    """Their elements are not taken for attributes."""
    for base in (list, dict, set, deque, tuple):
        kind = type("Kind", (base,), {})
        content = {i: None for i in range(10_000)}
        assert total(kind(content)) == pytest.approx(total(base(content)), abs=400)
        assert total(kind(content)) >= total(base(content))


def tracemalloc_of(build):
    """What `build` returns, weighed by tracemalloc."""
    build()
    gc.collect()
    tracemalloc.start()
    keep = build()
    gc.collect()
    nbytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del keep
    return nbytes


def test_program_is_not_entered_but_what_it_captures_is():
    data = np.zeros(1000)

    def closure():
        return data

    agent = Plain([data], "a")
    for holder in (
        closure,
        lambda data=data: data,
        functools.partial(len, data),
        functools.lru_cache(closure),
        agent.log.append,
        SimpleNamespace(call=agent.__repr__),
        (x for x in data),
        {1: data}.items(),
        memoryview(data),
    ):
        assert 8000 <= total(holder) <= 8000 + 3000, holder
    del holder
    assert total(np.random.default_rng(0).choice) < 2000  # compiled, bound
    assert total(total) < 1000
    assert total([threading.Lock(), threading.Condition()]) < 5000
    try:
        raise ValueError("with a frame that holds data")
    except ValueError as error:
        assert total(error) < 2000


def test_weak_references_hold_nothing():
    agent = Plain([np.zeros(1000)], "a")
    table = weakref.WeakValueDictionary(a=agent)
    assert total([weakref.ref(agent), weakref.proxy(agent)]) < 500
    assert total(table) < 5000
    dead = weakref.proxy(Plain([], "b"))
    assert 0 < total(dead) < total([dead]) < 500


def test_proxies_are_taken_for_what_they_are():
    class Posing:
        @property
        def __class__(self):
            raise AssertionError("asked")

    nbytes = total(Posing()), total([Posing()])
    assert min(nbytes) > 0


def test_ignored_types():
    agent = SimpleNamespace(logger=logging.getLogger("agentmem.tests"), data=np.zeros(100), log=[[1.5]])
    assert footprint(agent, ignore=logging.Logger).parts.keys() == {"(itself)", "data", "log"}
    assert footprint(agent, ignore=(logging.Logger, list)).parts.keys() == {"(itself)", "data"}
    assert footprint(agent, ignore=SimpleNamespace).total == 0


def test_while_another_thread_changes_it():
    held, stop = {}, threading.Event()

    def change():
        for i in range(10**9):
            held[i % 5000] = [np.zeros(i % 7), deque([i])]
            held.pop((i * 31) % 5000, None)
            if stop.is_set():
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(30):
            assert total(held) > 0
    finally:
        stop.set()
        thread.join()


# ---- parts


def test_parts_are_named_by_attribute_key_and_position():
    agent = further()
    assert list(footprint(agent).parts) == ["(itself)", "extra", "log", "name"]
    plain = Plain([1.5], "a" * 100)
    parts = footprint(plain).parts
    assert parts["log"] == sizes([0], 1.5) and parts["name"] == sizes("a" * 100)
    assert parts["(itself)"] >= sizes(plain)
    assert set(footprint({"a": [1], 2: [3], (4, 5): []}).parts) == {"(itself)", "a", "2", "(4, 5)"}
    assert set(footprint([[], ()]).parts) == {"(itself)", "[0]", "[1]"}
    assert set(footprint(deque([[1], [2]])).parts) == {"(itself)", "[0]", "[1]"}
    assert footprint(np.array([[], None, [1000]], dtype=object)).parts == {
        "(itself)": HEADER + 24,
        "[0]": sizes([]),
        "[2]": sizes([0], 1000),
    }


def test_what_parts_share_is_in_the_first_unless_a_part_itself():
    shared, own = np.zeros(1000), np.zeros(10)
    parts = footprint([[shared], [shared, own], [own]]).parts
    assert parts["[0]"] == sizes([0], shared)
    assert parts["[1]"] == sizes([0, 0], own)
    assert parts["[2]"] == sizes([0])
    parts = footprint({"agents": [[shared], [shared]], "model": shared, "again": shared}).parts
    assert parts["model"] == sizes(shared)
    assert parts["agents"] == sizes([0, 0], [0], [0])
    assert "again" not in parts


def test_many_parts_are_not_listed():
    held = footprint([[] for _ in range(MAX_PARTS + 5)])
    assert len(held.parts) == MAX_PARTS + 1
    assert held.parts["(itself)"] >= sizes([0] * (MAX_PARTS + 5)) + 5 * sizes([])


# ---- our containers


def line_model(n_states=2000, **options):
    step = sparse.diags_array([0.5] * n_states) + sparse.diags_array([0.5] * (n_states - 1), offsets=1)
    step = step.tolil()
    step[-1, -1] = 1.0
    prior = np.arange(1, n_states + 1) / (n_states * (n_states + 1) / 2)
    return am.Model([step.tocsr()], np.full((n_states, 2), 0.5), prior, **options)


def test_beliefs_and_arrays_count_their_nbytes():
    rng = np.random.default_rng(0)
    for n_kept in (1, 100, 3000, 10_000):
        cells = np.zeros(10_000)
        cells[rng.choice(10_000, n_kept, replace=False)] = rng.random(n_kept) + 0.1
        for kind, shape in ((am.SparseArray, -1), (am.SparseBelief, -1), (am.SparseBelief, (100, 100))):
            made = kind(cells.reshape(shape))
            assert total(made) == made.nbytes == sys.getsizeof(made)
            assert footprint(made).parts == {"(itself)": made.nbytes}
    unsure = am.SparseBelief.uniform(1_000_000)
    tracemalloc.start()
    assert total(unsure) < 256
    assert tracemalloc.get_traced_memory()[1] < 20_000  # nothing is unpacked to be weighed
    tracemalloc.stop()


def test_a_model_shared_by_a_hundred_beliefs_counts_once():
    model = line_model()
    agents = [SimpleNamespace(model=model, belief=model.belief()) for _ in range(100)]
    alone, held = total(model), footprint(agents)
    beliefs = sum(agent.belief.nbytes for agent in agents)
    assert alone + beliefs <= held.total <= alone + beliefs + 100 * 600
    assert held.parts["[0]"] - held.parts["[1]"] == pytest.approx(alone, abs=200)
    apart = footprint({"model": model, "agents": agents}).parts
    assert apart["model"] == alone and apart["agents"] < beliefs + 100 * 600


def test_a_model_by_buffer():
    model = line_model()
    held = footprint(model)
    for name, x in model.buffers().items():
        if not name.startswith("initial"):  # made by the asking: the belief that holds them is `_initial`
            assert held.parts[name] == pytest.approx(x.nbytes + HEADER, abs=2 * HEADER)
    assert held.parts["_initial"] == model.belief().nbytes
    assert model.nbytes <= held.total <= model.nbytes + 5000
    assert held.total == pytest.approx(tracemalloc_of(line_model), rel=0.03)
    assert held.mapped == 0


def test_an_opened_model_is_mapped(tmp_path):
    path = tmp_path / "line.model"
    line_model().save(path)
    opened = am.Model.open(path)
    held = footprint(opened)
    assert held.mapped == path.stat().st_size
    assert held.parts["(mapped)"] == pytest.approx(held.mapped, abs=200)
    assert held.total - held.mapped <= opened.belief().nbytes + 6000
    agent = footprint(SimpleNamespace(model=opened, belief=opened.belief()))
    assert agent.parts["model"] >= agent.mapped == held.mapped


def test_scratch_is_reported_beside_the_total():
    model = line_model()
    belief = model.belief()
    belief.update(model, 0, 1)
    held = footprint(belief)
    assert held.scratch >= 8 * model.n_states and held.total == belief.nbytes


# ---- whole agents


class Agent:
    """As an active-inference agent is built: lists of object arrays, a history of posteriors, a log."""

    def __init__(self, n_states, seed):
        rng = np.random.default_rng(seed)
        self.A = np.empty(2, dtype=object)
        self.A[:] = [rng.random((20, n_states)), rng.random((5, n_states))]
        self.B = np.empty(1, dtype=object)
        self.B[0] = rng.random((n_states, n_states, 2))
        self.qs = np.empty(1, dtype=object)
        self.qs[0] = np.full(n_states, 1 / n_states)
        self.policies = [rng.integers(0, 2, (3, 1)) for _ in range(50)]
        self.qs_hist = [[self.qs[0].copy()] for _ in range(20)]
        self.log = [{"step": 1000 + i, "action": f"move {i}", "energy": rng.random()} for i in range(200)]
        self.counts = {(i, f"state {i}"): [float(i)] for i in range(300)}
        self.recent = deque((Plain([i], "seen") for i in range(100)), maxlen=100)
        self.params = {"gamma": 16.0, "alpha": 16.0, "model": self.B[0][:, :, 0]}
        self.rng = rng


def test_an_agent_agrees_with_tracemalloc():
    for n_states, tolerance in ((10, 0.05), (200, 0.02)):  # small ints, CPython's own, are up to 7 kB
        agent = Agent(n_states, 0)
        traced = tracemalloc_of(lambda n_states=n_states: Agent(n_states, 0))
        assert total(agent) == pytest.approx(traced, rel=tolerance)
    parts = footprint(agent).parts
    assert parts["B"] == pytest.approx(200 * 200 * 2 * 8, rel=0.01)
    assert parts["A"] == pytest.approx(200 * 25 * 8, rel=0.01)
    assert parts["params"] < 1000  # its view belongs to B


def test_a_sparse_agent_agrees_with_tracemalloc():
    model = line_model()
    model.belief().update(model, 0, 1)  # workspaces are the process's

    def build():
        agents = [SimpleNamespace(belief=model.belief(), past=deque(maxlen=10)) for _ in range(50)]
        for agent in agents:
            for observation in (0, 1, 1):
                agent.past.append(agent.belief.copy())
                agent.belief.update(model, 0, observation)
        return agents

    agents = build()
    held = footprint({"agents": agents, "model": model})
    assert held.parts["agents"] == pytest.approx(tracemalloc_of(build), rel=0.02)


def test_the_example_runs():
    assert doctest.testmod(sys.modules["agentmem.footprint"]).failed == 0
