"""Environments read as models are what dense loops over their tables say."""

import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from scipy import sparse

from agentmem.integrations.gymnasium import (
    ENVIRONMENTS,
    frozen_lake,
    make_env,
    model_from_env,
    world_from_env,
)


def dense_table(env):
    """(A, S, S), by the obvious loop."""
    table = env.unwrapped.P
    dense = np.zeros((len(table[0]), len(table), len(table)))
    for state in range(len(table)):
        for action in range(len(table[state])):
            for probability, target, _, _ in table[state][action]:
                dense[action, state, target] += probability
    return dense


def environment(table, **attributes):
    return SimpleNamespace(unwrapped=SimpleNamespace(P=table, **attributes))


def two_states():
    return {
        0: {0: [(0.25, 1, 0, False), (0.5, 0, 0, False), (0.25, 1, 0, True)]},
        1: {0: [(1.0, 1, 0, True)]},
    }


@pytest.mark.parametrize("name", [*ENVIRONMENTS, "FrozenLake-v1"])
def test_tables_are_the_environments(name):
    env, sensor = make_env(name)
    world = world_from_env(env, sensor, name=name, agents=2, steps=3, seed=0)
    expected = dense_table(env)
    assert np.array_equal([table.toarray() for table in world.transition], expected)
    assert np.array_equal(world.initial, env.unwrapped.initial_state_distrib)
    assert world.observation.shape[0] == expected.shape[1]
    assert np.allclose(world.observation.sum(axis=1), 1, atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["FrozenLake-v1", "Taxi-v3", "CliffWalking-v1"])
def test_model_predicts_as_the_dense_table(name, dtype):
    ids = [spec for spec in gymnasium.registry if spec.startswith(name.partition("-v")[0] + "-v")]
    env = gymnasium.make(max(ids))
    model = model_from_env(env, dtype=dtype)
    expected = dense_table(env)
    assert (model.n_actions, model.n_states) == expected.shape[:2]
    assert model.n_observations == model.n_states
    assert model.dtype == dtype
    dense = np.asarray(env.unwrapped.initial_state_distrib, dtype=dtype)
    assert np.allclose(model.belief().to_dense(), dense, atol=1e-7)
    for action in range(model.n_actions):
        belief = model.belief()
        belief.predict(model, action)
        assert np.allclose(
            belief.to_dense(), dense @ expected[action], atol=1e-7 if dtype == np.float32 else 1e-15
        )


def test_same_targets_add_up_and_the_prior_is_uniform_without_one():
    model = model_from_env(environment(two_states()))
    belief = model.belief()
    assert np.array_equal(belief.to_dense(), [0.5, 0.5])
    belief.predict(model, 0)
    assert np.array_equal(belief.to_dense(), [0.25, 0.75])


def test_a_table_of_lists_and_no_unwrapped_will_do():
    table = [[two_states()[0][0]], [two_states()[1][0]]]
    assert model_from_env(SimpleNamespace(P=table)).n_states == 2


def test_observation_in_every_form_is_the_same_model():
    dense = np.array([[0.75, 0.25, 0.0], [0.0, 0.5, 0.5]])
    env = environment(two_states(), initial_state_distrib=np.array([1.0, 0.0]))
    asked = []

    def sensor(state):
        asked.append(state)
        return dense[state]

    digests = {
        model_from_env(env, form).digest
        for form in (dense, dense.tolist(), sparse.csr_array(dense), sparse.coo_matrix(dense), sensor)
    }
    assert len(digests) == 1
    assert asked == [0, 1]
    assert model_from_env(env, dense).n_observations == 3


def test_without_an_observation_the_state_is_read():
    model = model_from_env(environment(two_states()))
    belief = model.belief()
    log_evidence = belief.update(model, 0, 0)
    assert np.array_equal(belief.to_dense(), [1.0, 0.0])
    assert log_evidence == pytest.approx(np.log(0.25), abs=1e-15)


@pytest.mark.parametrize(
    ("env", "error", "says"),
    [
        (gymnasium.make("CartPole-v1"), TypeError, "CartPoleEnv has no table P"),
        (object(), TypeError, "object has no table P"),
        (environment(None), TypeError, "has no table P"),
        (environment({}), ValueError, "P of 0 states"),
        (environment({1: {0: [(1.0, 1, 0, False)]}}), ValueError, "P of 1 states"),
        (environment({0: {0: [(1.0,)]}}), ValueError, "P of 1 states"),
        (environment({0: {0: [(1.0, 0.5, 0, False)]}}), ValueError, "P of 1 states"),
        (
            environment({0: {0: [(1.0, 7, 0, False)]}}),
            ValueError,
            "from state 0 by action 0 to 7, of 1 states",
        ),
        (
            environment({0: {0: [(1.0, 0)], 1: [(1.0, 0)]}, 1: {0: [(1.0, 0)]}}),
            ValueError,
            "state 1 has 1 actions",
        ),
        (environment({0: {0: [(0.5, 0, 0, False)]}}), ValueError, "0.5"),
    ],
)
def test_what_is_no_table_is_refused(env, error, says):
    with pytest.raises(error, match=says):
        model_from_env(env)


@pytest.mark.parametrize(
    ("observation", "says"),
    [
        (np.eye(3), r"shape \(3, 3\); expected \(S, O\) with S = 2"),
        (np.ones(2), r"shape \(2,\)"),
        (lambda state: [1.0] * (state + 1), r"observation\(1\) has shape \(2,\); expected \(1,\)"),
        (lambda state: 1.0, r"observation\(0\) has shape \(\)"),
        (np.array([[0.5, 0.5], [0.5, 0.6]]), "state 1"),
    ],
)
def test_an_observation_that_does_not_fit_is_refused(observation, says):
    with pytest.raises(ValueError, match=says):
        model_from_env(environment(two_states()), observation)


def test_unknown_names_are_answered_with_the_choices():
    for name in ("Pong", "Taxi-v99", "frozenlake", ""):
        with pytest.raises(ValueError, match="FrozenLake, Taxi, CliffWalking"):
            make_env(name)


def test_walks_are_possible_seeded_and_start_again():
    env, sensor = frozen_lake(6, seed=3)
    world = world_from_env(env, sensor, name="lake", agents=5, steps=40, seed=3)
    again = world_from_env(frozen_lake(6, seed=3)[0], sensor, name="lake", agents=5, steps=40, seed=3)
    other = world_from_env(frozen_lake(6, seed=4)[0], sensor, name="lake", agents=5, steps=40, seed=4)
    for field in ("actions", "observations", "restarts"):
        assert np.array_equal(getattr(world, field), getattr(again, field))
    assert not np.array_equal(world.observations, other.observations)
    assert world.restarts[0].all()
    assert world.restarts[1:].any()

    transition, observation = dense_table(env), sensor.toarray()
    for agent in range(5):
        belief = world.initial
        for step in range(40):
            if world.restarts[step, agent]:
                belief = world.initial
            belief = belief @ transition[world.actions[step, agent]]
            belief = belief * observation[:, world.observations[step, agent]]
            assert belief.sum() > 0
            belief = belief / belief.sum()


def test_the_taxi_is_seen_and_its_passenger_is_not():
    env, sensor = make_env("Taxi")
    dense = sensor.toarray()
    assert dense.shape == (500, 25)
    for state in range(0, 500, 7):
        row, column, _, _ = env.unwrapped.decode(state)
        assert dense[state].argmax() == 5 * row + column


def test_reading_an_environment_needs_no_gymnasium():
    code = (
        "import sys; sys.modules['gymnasium'] = None\n"
        "from types import SimpleNamespace as N\n"
        "from agentmem.integrations.gymnasium import make_env, model_from_env\n"
        "model_from_env(N(P={0: {0: [(1.0, 0, 0, True)]}}))\n"
        "try: make_env('Taxi')\n"
        "except ImportError as error: print(error)\n"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "gymnasium is not installed: pip install 'agentmem-native[demo]'"
