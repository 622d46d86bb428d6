"""What policies are worth by the compiled walk is what obvious loops say; wrong input is refused and breaks nothing."""

import contextlib
import copy
import gc
import itertools
import math
import pickle
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import agentmem as am
import reference
from agentmem._core import CoreSensors, release_scratch, scratch_nbytes
from reference import DTYPES, Traced, as_stored, expected_free_energy, masses, random_rows, ring_tables, scattered

dtypes = pytest.mark.parametrize("dtype", DTYPES)
storages = pytest.mark.parametrize("storage", ["dense", "csr"])

# ---- sensors and trees


def as_table(Z, dtype, storage):
    """A (S, O) matrix as CoreSensors takes it."""
    if storage == "dense":
        return None, None, np.ascontiguousarray(Z, dtype=dtype).ravel(), Z.shape[1]
    table = sparse.csr_array(np.asarray(Z, dtype=dtype))
    return table.indptr.astype(np.int64), table.indices.astype(np.int32), table.data, Z.shape[1]


def sensors_of(T, A, dtype=np.float64, storage="csr"):
    model = am.Model(T, A[0], dtype=dtype, row_tolerance=1e-5)
    return CoreSensors(model, [as_table(Z, dtype, storage) for Z in A])


def tree_of(policies):
    """Depths, actions, and where each policy ends: policies with a shared beginning share its nodes."""
    nodes = sorted({tuple(policy[:k]) for policy in policies for k in range(1, len(policy) + 1)})
    depths, actions = [len(node) for node in nodes], [node[-1] for node in nodes]
    ends = [nodes.index(tuple(policy)) for policy in policies]
    return np.array(depths, np.int32), np.array(actions, np.int32), ends


def worth(sensors, p, policies, **options):
    depths, actions, ends = tree_of(policies)
    states = np.flatnonzero(p)
    return sensors.worth(states, np.asarray(p, np.float64)[states], depths, actions, **options)[ends]


def all_policies(n_actions, length):
    return list(itertools.product(range(n_actions), repeat=length))


def assert_worth(T, A, p, policies, *, dtype=np.float64, storage="csr", **options):
    sensors = sensors_of(T, A, dtype, storage)
    expected = expected_free_energy(
        p, [as_stored(t, dtype) for t in T], [as_stored(Z, dtype) for Z in A], policies, **options
    )
    np.testing.assert_allclose(worth(sensors, p, policies, **options), expected, rtol=1e-11, atol=1e-11)


# ---- the same as dense


@storages
@dtypes
@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_worth_is_that_of_dense_loops(dtype, storage, data):
    p = data.draw(masses(max_size=40))
    p = p / p.sum()
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    n, n_actions = len(p), data.draw(st.integers(1, 3))
    T = [random_rows(rng, n, n, data.draw(st.sampled_from([1, 3, n]))) for _ in range(n_actions)]
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 5, 90]), min_size=1, max_size=3))
    A = [random_rows(rng, n, n_obs, data.draw(st.sampled_from([1, 2, n_obs]))) for n_obs in sizes]
    action = st.integers(0, n_actions - 1)
    policies = data.draw(st.lists(st.lists(action, min_size=1, max_size=4), min_size=1, max_size=6))
    depth = max(map(len, policies))
    options = {
        "value": data.draw(st.sampled_from([None, rng.normal(size=(1, n)), rng.normal(size=(depth, n))])),
        "extra": data.draw(st.sampled_from([None, rng.normal(size=n)])),
        "information": data.draw(st.booleans()),
    }
    assert_worth(T, A, p, policies, dtype=dtype, storage=storage, **options)


@storages
@dtypes
@pytest.mark.parametrize("n_stored", [1, 10, 80, 260])
def test_few_states_and_many(n_stored, dtype, storage):
    """A few states mark what they touch, many are followed by a scan; on the way down the few become more."""
    n = 260
    T, Z = ring_tables(n)
    wide = np.roll(np.eye(n), 3, axis=1) * 0.75 + np.eye(n) * 0.25  # as many observations as states, few of each
    T = [T.toarray(), np.roll(np.eye(n), 5, axis=1), random_rows(np.random.default_rng(1), n, n, n // 2)]
    p = scattered(np.random.default_rng(2), n, n_stored)
    options = {"value": np.random.default_rng(3).normal(size=(3, n)), "extra": np.arange(n) / n}
    assert_worth(T, [Z, wide], p / p.sum(), all_policies(3, 3), dtype=dtype, storage=storage, **options)


@dtypes
def test_a_world_of_one_state(dtype):
    T, A = [np.ones((1, 1))], [np.ones((1, 1))]
    assert_worth(T, A, np.ones(1), [[0], [0, 0]], dtype=dtype, value=np.array([[2.0]]), extra=np.array([-0.5]))


def test_states_below_the_threshold_gain_no_information():
    T, A = [np.eye(3)], [np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])]
    sensors, whole = sensors_of(T, A), []
    for small in (1.1e-7, 1.2e-7):  # e**-16 is 1.125e-7
        p = np.array([0.6, 0.4 - small, small])
        whole.append(worth(sensors, p, [[0]])[0])
        assert_worth(T, A, p, [[0]])
        p[2] = 0.0
        assert (worth(sensors, p, [[0]])[0] == whole[-1]) == (small < math.exp(-16))


def test_masses_need_not_sum_to_one_and_may_be_tiny():
    T, A = [ring_tables(50)[0].toarray()], [ring_tables(50)[1]]
    for scale in (0.0, 1e-320, 1e-160, 1e-6, 3.0, 1e100):
        p = np.zeros(50)
        p[[0, 3, 49]] = np.array([0.5, 0.25, 0.25]) * scale
        states = np.array([0, 3, 49])
        value = np.linspace(0, 1, 50)[None]
        depths, actions, ends = tree_of([[0, 0]])
        result = sensors_of(T, A).worth(states, p[states], depths, actions, value=value)[ends]
        expected = expected_free_energy(p, T, A, [[0, 0]], value=value)
        np.testing.assert_allclose(result, expected, rtol=1e-11, atol=1e-300)


def test_a_probability_that_float32_can_hardly_hold():
    """A product of small ones is zero: such a state was touched, and is not there."""
    T = [np.array([[1 - 1e-38, 1e-38, 0], [0, 0, 1.0], [0, 0, 1.0]], dtype=np.float32)]
    A = [np.eye(3)]
    sensors = CoreSensors(am.Model(T, A[0], dtype=np.float32), [as_table(A[0], np.float32, "csr")])
    states, mass, tree = np.array([0]), np.array([1e-290]), tree_of([[0], [0, 0]])
    value = np.ones((1, 3))
    result = sensors.worth(states, mass, *tree[:2], value=value, information=False)
    np.testing.assert_allclose(result, [1e-290, 2e-290], rtol=1e-12)


def test_an_empty_belief_and_an_empty_tree():
    sensors = sensors_of([ring_tables(9)[0].toarray()], [ring_tables(9)[1]])
    depths, actions, _ = tree_of([[0, 0], [0]])
    nothing, no_nodes = np.zeros(0), np.zeros(0, np.int32)
    assert sensors.worth(np.zeros(0, np.intp), nothing, depths, actions, value=np.ones((1, 9))).tolist() == [0, 0]
    for states in (np.zeros(0, np.intp), np.arange(9)):
        made = sensors.worth(states, np.ones(len(states)), no_nodes, no_nodes, value=np.zeros((0, 9)))
        assert made.shape == (0,)


def test_no_modalities_have_no_information():
    T, Z = [ring_tables(20)[0].toarray()], ring_tables(20)[1]
    sensors = CoreSensors(am.Model(T, Z), [])
    assert sensors.n_modalities == 0
    p, value = np.full(20, 0.05), np.arange(20.0)[None]
    np.testing.assert_allclose(
        worth(sensors, p, [[0]], value=value), expected_free_energy(p, T, [], [[0]], value=value), rtol=1e-12
    )


def test_inputs_may_be_read_only_and_stay_as_they_are():
    sensors = sensors_of([ring_tables(9)[0].toarray()], [ring_tables(9)[1]])
    given = [np.array([1, 4]), np.array([0.5, 0.5]), *tree_of([[0, 0]])[:2], np.ones((2, 9)), np.ones(9)]
    before = [array.copy() for array in given]
    for array in given:
        array.flags.writeable = False
    *tree, value, extra = given
    first = sensors.worth(*tree, value=value, extra=extra)
    assert first.flags.writeable
    assert all(np.array_equal(now, then) for now, then in zip(given, before, strict=True))
    assert np.array_equal(sensors.worth(*tree, value=value, extra=extra), first)


def test_a_tree_may_be_a_column_of_a_table(sensors):
    sound = call(sensors)
    for column in (0, 1):
        nodes = np.zeros((3, 2), np.int32)
        nodes[:, column] = SOUND["actions"]
        assert np.array_equal(call(sensors, actions=nodes[:, column]), sound)
        nodes[:, column] = SOUND["depths"][::-1]
        assert np.array_equal(call(sensors, depths=nodes[::-1, column]), sound)


@storages
@dtypes
def test_likelihoods_and_expectations_are_those_of_the_table(dtype, storage):
    rng = np.random.default_rng(4)
    A = [random_rows(rng, 30, n_obs, seen) for n_obs, seen in ((7, 2), (40, 40), (1, 1))]
    sensors = sensors_of([np.eye(30)], A, dtype, storage)
    assert sensors.n_modalities == 3
    states = np.array([29, 0, 5, 5, 17])
    for m, Z in enumerate(as_stored(Z, dtype) for Z in A):
        weights = rng.normal(size=Z.shape[1])
        np.testing.assert_allclose(sensors.expectation(m, weights), Z @ weights, rtol=1e-13, atol=1e-15)
        np.testing.assert_allclose(sensors.expectation(m, weights.tolist()), Z @ weights, rtol=1e-13, atol=1e-15)
        for o in range(Z.shape[1]):
            assert np.array_equal(sensors.likelihood(m, o, states), Z[states, o])
        assert sensors.likelihood(m, 0, np.zeros(0, np.intp)).shape == (0,)


# ---- what is refused

N = 6


@pytest.fixture
def sensors():
    return sensors_of([np.eye(N), np.roll(np.eye(N), 1, axis=1)], [ring_tables(N)[1], np.eye(N)])


SOUND = {
    "states": np.array([0, 2, 5]),
    "mass": np.array([0.5, 0.25, 0.25]),
    "depths": np.array([1, 2, 1], np.int32),
    "actions": np.array([0, 1, 1], np.int32),
    "value": np.ones((2, N)),
    "extra": np.ones(N),
}
WRONG = {
    "states": [
        *(np.array(s) for s in ([0, 2, 6], [-1, 2, 5], [0, 2, 2], [2, 0, 5], [0, 2], [0, 1, 2, 5], [2**40, 3, 4])),
        *(np.array([0, 2, 5], dtype) for dtype in (np.uint64, np.float64, object)),
        *(np.array([[0], [2], [5]]), [0, 2, 5], None, 3),
    ],
    "mass": [
        *(np.array(m) for m in ([0.5, -0.1, 0.6], [0.5, np.nan, 0.5], [np.inf, 0, 0], [0.5, 0.5], [0.25] * 4)),
        *(np.ones(3, dtype) for dtype in (np.int64, complex)),
        *(np.ones((3, 1)), [0.5, 0.25, 0.25], None),
    ],
    "depths": [
        *(np.array(d, np.int32) for d in ([2, 1, 1], [1, 3, 1], [0, 1, 1], [1, 2, -1], [1, 2, 2**31 - 1], [1, 2])),
        *(np.array([1, 2, 1], dtype) for dtype in (np.int64, np.float64, np.uint32)),
        *(np.ones((3, 1), np.int32), [1, 2, 1], None),
    ],
    "actions": [
        *(np.array(a, np.int32) for a in ([0, 2, 1], [-1, 1, 1], [0, 1, 2**31 - 1], [-(2**31), 0, 0], [0, 1], [0] * 4)),
        *(np.array([0, 1, 1], dtype) for dtype in (np.int64, np.float64)),
        *(np.zeros((3, 1), np.int32), [0, 1, 1], None),
    ],
    "value": [
        *(np.ones(shape) for shape in ((1, N - 1), (1, N + 1), (0, N), (N,), (2, N, 1), (0, 0))),
        *(np.ones((2, N), dtype) for dtype in (np.float32, np.int64)),
        *(np.ones((N, 2)).T, np.ones((4, N))[::2], [[1.0] * N]),
    ],
    "extra": [
        *(np.ones(n) for n in (N - 1, N + 1, 0, (N, 1))),
        *(np.ones(N, np.float32), np.ones(2 * N)[::2], [1.0] * N),
    ],
}


def call(sensors, **change):
    states, mass, depths, actions, value, extra = {**SOUND, **change}.values()
    return sensors.worth(states, mass, depths, actions, value=value, extra=extra)


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, each in WRONG.items() for wrong in each])
def test_a_wrong_argument_of_worth_is_refused(sensors, name, wrong):
    sound = call(sensors)
    with pytest.raises((TypeError, ValueError)):
        call(sensors, **{name: wrong})
    assert np.array_equal(call(sensors), sound)
    assert_the_workspace_is_clean()


@pytest.mark.parametrize("kinds", [(np.intp, np.float64), (np.int32, np.float32)])
def test_several_beliefs_are_weighed_as_one_by_one(sensors, kinds):
    _, _, depths, actions, value, extra = SOUND.values()
    beliefs = [([0, 2, 5], [0.5, 0.25, 0.25]), ([], []), ([3], [1.0]), ([0, 1, 2, 3, 4, 5], [0.25, 0.125] * 3)]
    states, mass = (np.concatenate([np.array(part, kind) for part in parts])
                    for parts, kind in zip(zip(*beliefs, strict=True), kinds, strict=True))
    offsets = np.cumsum([0] + [len(s) for s, _ in beliefs])
    found = sensors.worth(states, mass, depths, actions, offsets=offsets, value=value, extra=extra)
    for row, (s, m) in zip(found, beliefs, strict=True):
        alone = sensors.worth(np.array(s, np.intp), np.array(m, float), depths, actions, value=value, extra=extra)
        assert row.tolist() == alone.tolist()


@pytest.mark.parametrize(
    "offsets",
    [np.array(o) for o in ([0, 2], [1, 3], [0, 2, 1, 3], [0, 4, 3], [0, -1, 3], [0, 2**40, 3], [], [[0, 3]])]
    + [np.array([0.0, 3.0]), np.array([0, 3], np.int32), [0, 3], 3],
    ids=str,
)
def test_wrong_offsets_are_refused(sensors, offsets):
    states, mass, depths, actions, *_ = SOUND.values()
    with pytest.raises((TypeError, ValueError)):
        sensors.worth(states, mass, depths, actions, offsets=offsets)
    assert_the_workspace_is_clean()


def test_more_rows_of_value_than_levels_do_no_harm(sensors):
    value = np.arange(4.0 * N).reshape(4, N)
    assert np.array_equal(call(sensors, value=value), call(sensors, value=value[:2].copy()))


@pytest.mark.parametrize("modality", [-1, 2, 2**40, 0.5, "0", None])
def test_an_unknown_modality_is_refused(sensors, modality):
    with pytest.raises((TypeError, ValueError)):
        sensors.expectation(modality, np.ones(4))
    with pytest.raises((TypeError, ValueError)):
        sensors.likelihood(modality, 0, np.arange(3))


def test_what_expectation_and_likelihood_refuse(sensors):
    for wrong in (np.ones(3), np.ones(5), np.ones(0), np.ones((4, 1)), 1.0, None, ["a"] * 4):
        with pytest.raises((TypeError, ValueError)):
            sensors.expectation(0, wrong)
    for wrong in (-1, 4, 2**40, 0.5, None):
        with pytest.raises((TypeError, ValueError)):
            sensors.likelihood(0, wrong, np.arange(3))
    for wrong in ([N], [-1], [2**40], [-(2**62)]):
        with pytest.raises(ValueError, match=r"state .* given; expected 0 to 5"):
            sensors.likelihood(0, 0, np.array(wrong))
    for wrong in (np.arange(3, dtype=np.int32), np.ones(3), np.ones((2, 2), np.intp), np.arange(6)[::2], None, [0]):
        with pytest.raises((TypeError, ValueError)):
            sensors.likelihood(0, 0, wrong)


OFFSETS, COLUMNS, VALUES = (np.arange(N + 1, dtype=np.int64), np.arange(N, dtype=np.int32), np.ones(N))


def replaced(array, at, value):
    other = array.copy()
    other[at] = value
    return other


TABLES = {
    "offsets that fall": (replaced(OFFSETS, 2, 9), COLUMNS, VALUES, N),
    "offsets below zero": (replaced(OFFSETS, 0, -1), COLUMNS, VALUES, N),
    "offsets that end early": (replaced(OFFSETS, N, N - 1), COLUMNS, VALUES, N),
    "offsets that end late": (replaced(OFFSETS, N, N + 1), COLUMNS, VALUES, N),
    "offsets of too few rows": (OFFSETS[:-1], COLUMNS[:-1], VALUES[:-1], N),
    "offsets of too many rows": (np.arange(N + 2), COLUMNS, VALUES, N),
    "offsets of int32": (OFFSETS.astype(np.int32), COLUMNS, VALUES, N),
    "a column out of range": (OFFSETS, replaced(COLUMNS, 3, N), VALUES, N),
    "a column below zero": (OFFSETS, replaced(COLUMNS, 3, -1), VALUES, N),
    "columns out of order": (np.array([0, 2, 2, 3, 4, 5, 6]), replaced(COLUMNS, 0, 3), VALUES, N),
    "columns twice": (np.array([0, 2, 2, 3, 4, 5, 6]), replaced(COLUMNS, 0, 1), VALUES, N),
    "too few columns": (OFFSETS, COLUMNS[:-1], VALUES, N),
    "columns of int64": (OFFSETS, COLUMNS.astype(np.int64), VALUES, N),
    "no columns": (OFFSETS, None, VALUES, N),
    "too few values": (OFFSETS, COLUMNS, VALUES[:-1], N),
    "values of another dtype": (OFFSETS, COLUMNS, VALUES.astype(np.float32), N),
    "values with nan": (OFFSETS, COLUMNS, replaced(VALUES, 2, np.nan), N),
    "infinite values": (OFFSETS, COLUMNS, replaced(VALUES, 2, np.inf), N),
    "negative values": (OFFSETS, COLUMNS, replaced(VALUES, 2, -1.0), N),
    "values that are a list": (OFFSETS, COLUMNS, [1.0] * N, N),
    "values not contiguous": (OFFSETS, COLUMNS, np.ones(2 * N)[::2], N),
    "no values": (OFFSETS, COLUMNS, None, N),
    "too few dense values": (None, None, np.ones(N * N - 1), N),
    "two axes of dense values": (None, None, np.ones((N, N)), N),
    "no observations": (OFFSETS, COLUMNS, VALUES, 0),
    "fewer than no observations": (OFFSETS, COLUMNS, VALUES, -1),
    "too many observations": (OFFSETS, COLUMNS, VALUES, 2**31),
    "a fraction of observations": (OFFSETS, COLUMNS, VALUES, 2.5),
    "three parts": (OFFSETS, COLUMNS, VALUES),
    "five parts": (OFFSETS, COLUMNS, VALUES, N, None),
    "nothing": None,
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_wrong_table_is_refused(table):
    model = am.Model(np.eye(N), np.eye(N))
    for tables in ([table], [(OFFSETS, COLUMNS, VALUES, N), table]):
        with pytest.raises((TypeError, ValueError)):
            CoreSensors(model, tables)
    assert CoreSensors(model, [(OFFSETS, COLUMNS, VALUES, N)]).n_modalities == 1


@pytest.mark.parametrize("arguments", [(None, []), (3, []), (am.Model(np.eye(2), np.eye(2)),), ()])
def test_wrong_arguments_of_the_constructor(arguments):
    with pytest.raises(TypeError):
        CoreSensors(*arguments)
    with pytest.raises(TypeError):
        CoreSensors(am.Model(np.eye(2), np.eye(2)), None)


@pytest.mark.parametrize("kind", [tuple, list, iter])
def test_it_keeps_its_tables_and_nobody_else_writes_to_them(kind):
    model = am.Model(np.eye(N), np.eye(N))
    table = OFFSETS.copy(), COLUMNS.copy(), VALUES.copy(), N
    inner = list(table) if kind is list else table
    made = CoreSensors(model, kind([inner]))
    for array in table[:3]:
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 2**30
    if kind is list:
        inner[:3] = OFFSETS * 0, COLUMNS * 0, VALUES * 0
    expected = CoreSensors(model, [(OFFSETS.copy(), COLUMNS.copy(), VALUES.copy(), N)])
    only = np.zeros(3, np.int32)
    del table, inner
    for sensors in (made, pickle.loads(pickle.dumps(made)), pickle.loads(pickle.dumps(made, protocol=5))):
        gc.collect()
        filler = [np.full(N, 7) for _ in range(100)]  # would take the place of what was freed
        assert np.array_equal(call(sensors, actions=only), call(expected, actions=only))
        assert np.array_equal(sensors.likelihood(0, 2, np.arange(N)), np.eye(N)[2])
        assert len(filler) == 100


# ---- workspaces, memory, copies, threads


def assert_the_workspace_is_clean():
    """The filter borrows the same workspace: what worth left in it would show in its numbers."""
    T, Z = ring_tables(N)
    b = am.SparseBelief(np.arange(N) + 1.0)
    expected, evidence = reference.update(b.to_dense(), T.toarray(), Z, 1)
    assert abs(b.update(am.Model(T, Z), 0, 1, prune=0.0) - evidence) < 1e-12
    reference.assert_is(b, expected)


def test_the_workspace_is_left_clean_and_is_that_of_the_filter():
    n = 300
    T, Z = ring_tables(n)
    sensors = sensors_of([T.toarray(), random_rows(np.random.default_rng(5), n, n, n)], [Z, np.eye(n)])
    model = am.Model(T, Z)
    b = am.SparseBelief(np.arange(n) + 1.0)
    expected = b.to_dense()
    held = None
    for step in range(4):
        for n_stored in (1, n):
            worth(sensors, scattered(np.random.default_rng(step), n, n_stored), all_policies(2, 2))
        expected, _ = reference.update(expected, T.toarray(), Z, step)
        b.update(model, 0, step, prune=0.0)
        reference.assert_is(b, expected, rtol=1e-11)
        assert held in (None, scratch_nbytes())
        held = scratch_nbytes()
    assert release_scratch() == held


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copy_is_itself(sensors, duplicate):
    assert duplicate(sensors) is sensors


@storages
@dtypes
def test_it_travels(dtype, storage):
    rng = np.random.default_rng(6)
    T, A = [random_rows(rng, 20, 20, 3)], [random_rows(rng, 20, 4, 2), random_rows(rng, 20, 9, 9)]
    sensors = sensors_of(T, A, dtype, storage)
    p = scattered(rng, 20, 5)
    there = pickle.loads(pickle.dumps(sensors))
    assert there.model == sensors.model
    assert np.array_equal(worth(there, p, [[0, 0]]), worth(sensors, p, [[0, 0]]))


def test_its_bytes_are_seen():
    n = 5000
    Z = ring_tables(n)[1]
    model = am.Model(ring_tables(n)[0], Z)
    tables = [as_table(Z, np.float64, "dense")]
    seen = am.footprint([model, CoreSensors(model, tables)]).total - am.footprint([model]).total
    assert Z.nbytes + 8 * n <= seen < Z.nbytes + 8 * n + 1000


def test_calls_leave_nothing_behind(sensors):
    wide = sensors_of([ring_tables(300)[0].toarray()], [ring_tables(300)[1]])
    p = np.full(300, 1 / 300)
    model = am.Model(np.eye(N), np.eye(N))
    calls = [
        lambda: call(sensors),
        lambda: worth(wide, p, [[0, 0, 0], [0]], value=np.ones((1, 300))),
        lambda: sensors.expectation(0, np.ones(4)),
        lambda: sensors.likelihood(1, 0, np.arange(N)),
        lambda: CoreSensors(model, [(OFFSETS, COLUMNS, VALUES, N)]),
        lambda: pickle.loads(pickle.dumps(sensors)),
        *(lambda name=name, wrong=wrong: call(sensors, **{name: wrong})
          for name, each in WRONG.items() for wrong in each[:3]),
        *(lambda table=table: CoreSensors(model, [table]) for table in TABLES.values()),
    ]  # fmt: skip

    def repeat(once, times):
        for _ in range(times):
            with contextlib.suppress(TypeError, ValueError):
                once()

    with Traced() as traced:
        for number, once in enumerate(calls):
            repeat(once, 5)
            before = traced.held()
            repeat(once, 50)
            assert traced.held() - before < 8 * 50, number


def test_a_call_allocates_what_its_levels_take():
    n = 200_000
    T, Z = ring_tables(n)
    model = am.Model(T, Z)
    sensors = CoreSensors(model, [as_table(Z, np.float64, "csr")])
    states = np.arange(5000, 5100)
    given = states, np.full(100, 0.01), *tree_of([[0, 0, 0]])[:2]
    sensors.worth(*given)  # first use: the workspace
    with Traced() as traced:
        sensors.worth(*given)
    assert traced.peak < 20_000


@dtypes
def test_threads_find_the_same_bits(dtype):
    n = 3000
    rng = np.random.default_rng(7)
    T, Z = ring_tables(n)
    sensors = CoreSensors(am.Model([T, T.T], Z, dtype=dtype), [as_table(Z, dtype, "csr")])
    beliefs = [scattered(rng, n, n_stored) for n_stored in (1500, 3000)]
    policies, value = all_policies(2, 3), rng.normal(size=(1, n))
    alone = [worth(sensors, p, policies, value=value) for p in beliefs]
    start, found = threading.Barrier(2), [[], []]

    def work(which):
        start.wait()
        found[which] = [worth(sensors, beliefs[(which + k) % 2], policies, value=value) for k in range(20)]

    threads = [threading.Thread(target=work, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which, results in enumerate(found):
        assert len(results) == 20
        for k, result in enumerate(results):
            assert np.array_equal(result, alone[(which + k) % 2])
