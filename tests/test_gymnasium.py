"""Environments read as models are what dense loops over their tables say."""

import subprocess
import sys
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from scipy import sparse

import reference
from agentmem.integrations.gymnasium import (
    ENVIRONMENTS,
    frozen_lake,
    make_env,
    model_from_env,
    preferences_from_env,
    sensor_table,
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


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_200_steps_with_a_noisy_sensor_are_those_of_a_dense_filter(name):
    env, sensor = make_env(name)
    world = world_from_env(env, sensor, name=name, agents=3, steps=200, seed=1)
    model, transition, observation = model_from_env(env, sensor), dense_table(env), sensor.toarray()
    for agent in range(3):
        episodes = np.flatnonzero(world.restarts[:, agent])
        for first, last in zip(episodes, [*episodes[1:], 200], strict=True):
            actions, observations = world.actions[first:last, agent], world.observations[first:last, agent]
            passed = model.filter(observations, actions, prune=0.0, beliefs=True)
            stepped, dense = model.belief(), env.unwrapped.initial_state_distrib
            for t, (action, seen) in enumerate(zip(actions, observations, strict=True)):
                dense, log_evidence = reference.update(dense, transition[action], observation, seen)
                assert abs(stepped.update(model, int(action), int(seen), prune=0.0) - log_evidence) < 1e-12
                assert abs(passed.log_evidence[t] - log_evidence) < 1e-12
                assert np.abs(stepped.to_dense() - dense).max() < 1e-12
                assert np.abs(passed.beliefs[t].to_dense() - dense).max() < 1e-12


# ---- vectors of readings, and rewards


def test_vectors_of_readings_become_observations():
    env = gymnasium.make("FrozenLake-v1")
    table, readings = sensor_table(env, lambda state: np.array([state // 4, state % 2]))
    assert list(readings) == [(row, odd) for row in range(4) for odd in (0, 1)]
    assert list(readings.values()) == list(range(8))
    dense = np.zeros((16, 8))
    for state in range(16):
        dense[state, readings[state // 4, state % 2]] = 1
    assert np.array_equal(table.toarray(), dense)
    model = model_from_env(env, table)
    belief = model.belief()
    belief.update(model, 2, readings[0, 1])  # right of the start
    assert belief.indices.tolist() == [1]


def test_the_taxi_reads_all_it_is_made_of():
    env = gymnasium.make(max(spec for spec in gymnasium.registry if spec.startswith("Taxi-v")))
    table, readings = sensor_table(env, lambda state: tuple(env.unwrapped.decode(state)))
    assert len(readings) == 500
    assert np.array_equal(table.toarray(), np.eye(500))  # states count up in lexical order
    where, cells = sensor_table(env, lambda state: [*env.unwrapped.decode(state)][:2])
    assert list(cells) == [(row, column) for row in range(5) for column in range(5)]
    assert where.sum(axis=0).tolist() == [20.0] * 25


def test_a_sensor_is_asked_once_per_state_for_any_ints():
    asked = []

    def sensor(state):
        asked.append(state)
        return [[True, -7], (False, 3)][state]

    table, readings = sensor_table(environment(two_states()), sensor)
    assert asked == [0, 1]
    assert readings == {(0, 3): 0, (1, -7): 1}
    assert table.toarray().tolist() == [[0.0, 1.0], [1.0, 0.0]]


@pytest.mark.parametrize(
    ("sensor", "says"),
    [
        (lambda state: state, r"sensor\(0\) has shape \(\) and dtype int64; expected a vector of ints"),
        (lambda state: [0.5], r"sensor\(0\) has shape \(1,\) and dtype float64; expected a vector of ints"),
        (lambda state: [], r"sensor\(0\) has shape \(0,\)"),
        (lambda state: [[1]], r"sensor\(0\) has shape \(1, 1\)"),
        (lambda state: [1] * (state + 1), r"sensor\(1\) has shape \(2,\) and dtype int64; expected 1 ints"),
        (lambda state: ["red"], r"sensor\(0\) has shape \(1,\) and dtype <U3"),
    ],
)
def test_a_sensor_of_anything_else_is_refused(sensor, says):
    with pytest.raises(ValueError, match=says):
        sensor_table(environment(two_states()), sensor)


def dense_preferences(env, observation):
    """The formula, by the obvious loops."""
    table = env.unwrapped.P
    ends = {entry[1] for row in table.values() for entries in row.values() for entry in entries if entry[3]}
    rewards = []
    for arrived in table:
        ways = [
            (probability, reward)
            for state in set(table) - ends
            for entries in table[state].values()
            for probability, target, reward, _ in entries
            if target == arrived
        ]
        total = sum(probability for probability, _ in ways)
        rewards.append(sum(probability * reward for probability, reward in ways) / total if total else 0.0)
    seen = observation.sum(axis=0)
    return np.array(rewards), np.array(rewards) @ observation / seen


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_preferences_are_mean_rewards(name):
    env, sensor = make_env(name)
    of_states, of_observations = dense_preferences(env, sensor.toarray())
    assert np.ptp(of_states) > 0
    np.testing.assert_allclose(preferences_from_env(env), of_states, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(preferences_from_env(env, sensor), of_observations, rtol=1e-12, atol=1e-15)


def test_the_goal_of_the_lake_is_preferred():
    env = gymnasium.make("FrozenLake-v1")
    assert preferences_from_env(env).tolist() == [0.0] * 15 + [1.0]
    rows, _ = sensor_table(env, lambda state: [state // 4])
    assert preferences_from_env(env, rows).tolist() == [0.0, 0.0, 0.0, 0.25]


def test_the_cliff_is_not_preferred():
    """Who falls is back at the start: 10 ways from above, 1 from beside, and 28 more out of the cliff itself."""
    preferred = preferences_from_env(gymnasium.make("CliffWalking-v1"))
    assert preferred.argmin() == 36
    assert preferred[36] == (39 * -100 + 4 * -1) / 43
    assert set(np.delete(preferred, 36)) == {-1.0, 0.0}


def test_an_observation_that_no_state_shows_is_worth_nothing():
    env = environment({0: {0: [(1.0, 1, 5, False)]}, 1: {0: [(1.0, 0, -3, False)]}})
    assert preferences_from_env(env).tolist() == [-3.0, 5.0]
    assert preferences_from_env(env, [[1.0, 0.0, 0.0], [0.5, 0.0, 0.5]]).tolist() == [-0.5 / 1.5, 0.0, 5.0]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({0: {0: [(1.0, 0)]}}, "P is not"),
        ({0: {0: [(1.0, 0, "much", False)]}}, "P is not"),
        ({0: {0: [(1.0, 0, float("inf"), False)]}}, "rewards of state 0 in P sum to inf; expected finite"),
    ],
)
def test_rewards_that_are_none_are_refused(table, says):
    with pytest.raises(ValueError, match=says):
        preferences_from_env(environment(table))


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
