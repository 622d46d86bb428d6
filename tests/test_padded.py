"""Padded tables hold, row by row, what the dense tables hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentmem as am
import reference
from reference import DTYPES, as_stored

dtypes = pytest.mark.parametrize("dtype", DTYPES)


def dense(padded, n_columns):
    """(A, S, n_columns), one entry at a time."""
    indices, probabilities = padded
    full = np.zeros((*indices.shape[:2], n_columns))
    for action, state, k in np.ndindex(indices.shape):
        full[action, state, indices[action, state, k]] += probabilities[action, state, k]
    return full


def assert_padded(padded, tables, dtype):
    """Assert that these are the rows of the (A, S, n) dense tables: all of them, sorted, no wider than need be."""
    indices, probabilities = padded
    tables = as_stored(tables, dtype)
    assert indices.dtype == np.int32
    assert probabilities.dtype == dtype
    assert indices.shape == probabilities.shape == (*tables.shape[:2], np.count_nonzero(tables, axis=2).max())
    np.testing.assert_array_equal(dense(padded, tables.shape[2]), tables)
    width = indices.shape[2]
    for row, mass in zip(indices.reshape(-1, width), probabilities.reshape(-1, width), strict=True):
        stored = np.count_nonzero(mass)
        assert (mass[:stored] > 0).all()
        assert (np.diff(row[:stored]) > 0).all()
        assert not row[stored:].any()


@dtypes
@given(
    seed=st.integers(0, 2**32 - 1),
    n_states=st.integers(1, 12),
    n_actions=st.integers(1, 4),
    n_observations=st.integers(1, 9),
    branching=st.integers(1, 12),
    same_sensor=st.booleans(),
)
def test_padded_rows_are_those_of_the_dense_tables(
    dtype, seed, n_states, n_actions, n_observations, branching, same_sensor
):
    rng = np.random.default_rng(seed)
    transitions = [reference.random_rows(rng, n_states, n_states, branching) for _ in range(n_actions)]
    transitions.append(transitions[0])
    transitions.append(np.full((n_states, n_states), 1 / n_states))  # a table that is kept dense
    sensors = [reference.random_rows(rng, n_states, n_observations, branching) for _ in transitions]
    sensors = [sensors[0]] * len(sensors) if same_sensor else sensors
    model = am.Model(transitions, sensors, dtype=dtype)
    assert_padded(model.to_padded(), transitions, dtype)
    assert_padded(model.to_padded("observation"), sensors, dtype)


@dtypes
@pytest.mark.parametrize("n_states", [3, 40])
def test_an_opened_model_gives_the_same(tmp_path, dtype, n_states):
    transitions, sensor = reference.random_tables(np.random.default_rng(0), n_states, n_actions=3)
    model = am.Model(transitions, sensor, dtype=dtype)
    model.save(tmp_path / "model")
    opened = am.Model.open(tmp_path / "model")
    for kind in ("transition", "observation"):
        for ours, theirs in zip(model.to_padded(kind), opened.to_padded(kind), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert_padded(opened.to_padded(), transitions, dtype)
    assert opened == model


def test_actions_with_one_table_share_it():
    transitions, sensor = reference.random_tables(np.random.default_rng(0), 10, n_actions=2)
    model = am.Model([transitions[0]] * 5, sensor)
    for kind in ("transition", "observation"):
        for array in model.to_padded(kind):
            assert array.strides[0] == 0
            assert not array.flags.writeable
    own = am.Model(transitions, sensor).to_padded()[1]
    own[:] = 0  # the caller's, not the model's
    assert am.Model(transitions, sensor).to_padded()[1].any()


def test_padded_rows_push_a_belief():
    transitions, sensor = reference.random_tables(np.random.default_rng(0), 20)
    indices, probabilities = am.Model(transitions, sensor).to_padded()
    belief = np.random.default_rng(1).dirichlet(np.ones(20))
    for action, transition in enumerate(transitions):
        predicted = np.zeros(20)
        np.add.at(predicted, indices[action], probabilities[action] * belief[:, None])
        np.testing.assert_allclose(predicted, belief @ transition, rtol=1e-12)


def test_an_unknown_kind_is_named():
    model = am.Model(np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="kind='reward' given"):
        model.to_padded("reward")
