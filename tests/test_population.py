"""A population is a list of SparseBeliefs stepped one by one, bit for bit, for any number of threads."""

import contextlib
import copy
import gc
import math
import os
import pickle
import signal
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scipy import sparse

import agentmem as am
import reference
from agentmem import population as module
from agentmem.files import write_arrays
from reference import DTYPES, content, full_disk, same_environment

dtypes = pytest.mark.parametrize("dtype", DTYPES)
N_ACTIONS, N_OBSERVATIONS = 2, 4


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of five agents, so that few agents fill several, and each of them is worth a thread."""
    monkeypatch.setattr(module, "CHUNK", 5)
    monkeypatch.setattr(module, "WORTH_A_THREAD", 1)


def model_of(dtype=np.float64, n_states=40, seed=0, **shape):
    rng = np.random.default_rng(seed)
    return am.Model(*reference.random_tables(rng, n_states, n_observations=N_OBSERVATIONS, **shape), dtype=dtype)


def streams(model, n_agents, n_steps, seed=1, silence=0.2):
    rng = np.random.default_rng(seed)
    actions = rng.integers(model.n_actions, size=(n_steps, n_agents))
    observations = rng.integers(model.n_observations, size=(n_steps, n_agents))
    return actions, np.where(rng.random((n_steps, n_agents)) < silence, -1, observations)


def step_one_by_one(beliefs, model, actions, observations, *, prune=1e-12, on_impossible="raise"):
    """What a population does, as its users would without it."""
    return np.array(
        [
            b.update(model, int(a), None if o < 0 else int(o), prune=prune, on_impossible=on_impossible)
            for b, a, o in zip(beliefs, actions, observations, strict=True)
        ]
    )


def snapshot(population):
    return [(content(b), b.pruned_mass) for b in population]


# ---- the same numbers


@dtypes
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("prune", [0.0, 1e-3])
def test_every_agent_is_its_belief(dtype, threads, prune):
    model = model_of(dtype, seen=4)
    population = am.Population(model, 23, prune=prune, threads=threads)
    beliefs = [model.belief() for _ in range(23)]
    for actions, observations in zip(*streams(model, 23, 12), strict=True):
        expected = step_one_by_one(beliefs, model, actions, observations, prune=prune)
        assert population.update(actions, observations).tolist() == expected.tolist()
        assert snapshot(population) == [(content(b), b.pruned_mass) for b in beliefs]
    assert prune == 0 or sum(b.pruned_mass for b in beliefs) > 0


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**31))
def test_any_start_in_any_storage(data, dtype, seed):
    rng = np.random.default_rng(seed)
    n_states, n_agents = data.draw(st.sampled_from([1, 2, 64, 65, 640])), data.draw(st.integers(1, 12))
    model = am.Model(*reference.random_tables(rng, n_states, n_observations=3, seen=3), dtype=dtype)
    beliefs = [
        am.SparseBelief(reference.scattered(rng, n_states, data.draw(st.integers(1, n_states)), dtype))
        for _ in range(n_agents)
    ]
    population = am.Population.from_beliefs(model, beliefs, prune=0.0)
    assert [content(b) for b in population] == [content(b) for b in beliefs]
    for actions, observations in zip(*streams(model, n_agents, 4, seed), strict=True):
        expected = step_one_by_one(beliefs, model, actions, observations, prune=0.0)
        assert population.update(actions, observations).tolist() == expected.tolist()
        assert [content(b) for b in population] == [content(b) for b in beliefs]


@dtypes
def test_tiny_and_huge_masses(dtype):
    """Beliefs that are not normalised, some of them close to what the dtype can hold."""
    model = model_of(dtype, seen=4)
    scales = [1e-300, 1e-40, 1.0, 1e30] if dtype == np.float64 else [1e-40, 1.0, 1e20]
    beliefs = [am.SparseBelief(np.full(40, scale, dtype)) for scale in scales]
    population = am.Population.from_beliefs(model, beliefs)
    expected = step_one_by_one(beliefs, model, [0] * len(beliefs), [1] * len(beliefs))
    assert population.update(0, 1).tolist() == expected.tolist()
    assert [content(b) for b in population] == [content(b) for b in beliefs]


def test_one_action_and_observation_for_all():
    model = model_of(seen=4)
    one, each = am.Population(model, 7), am.Population(model, 7)
    assert one.update(1, 2).tolist() == each.update([1] * 7, [2] * 7).tolist()
    assert snapshot(one) == snapshot(each)


def test_beliefs_of_other_shapes():
    model = model_of(seen=4)
    population = am.Population(model, 6, initial=am.SparseBelief.uniform((8, 5)))
    population.update(0, 1)
    assert population[3].shape == (8, 5)
    with pytest.raises(ValueError, match=r"belief of shape \(40,\) given; expected \(8, 5\)"):
        population[0] = am.SparseBelief.uniform(40)


@dtypes
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_at_most_so_many_states(dtype, most):
    model = model_of(dtype, seen=4, branching=6)
    population = am.Population(model, 11, prune=0.0, max_states=most)
    beliefs = [model.belief() for _ in range(11)]
    for actions, observations in zip(*streams(model, 11, 6), strict=True):
        step_one_by_one(beliefs, model, actions, observations, prune=0.0)
        for b in beliefs:
            b.prune(max_states=most)
        population.update(actions, observations)
        for found, expected in zip(population, beliefs, strict=True):
            assert found.indices.tolist() == expected.indices.tolist() and found.nnz <= most
            np.testing.assert_allclose(found.values, expected.values, rtol=1e-12 if dtype == np.float64 else 1e-6)
            assert found.pruned_mass == pytest.approx(expected.pruned_mass, abs=1e-6)


@pytest.mark.parametrize("n_states", [10, 2_000])
def test_of_equals_the_lowest_states_stay(n_states):
    model = am.Model(np.eye(n_states), np.ones((n_states, 1)))
    population = am.Population(model, 3, prune=0.0, max_states=4)
    population.update(0, 0)
    assert population[1].indices.tolist() == [0, 1, 2, 3]
    assert population[1].values.tolist() == [0.25] * 4


# ---- impossible observations


def divided():
    """Two states that never meet, and which the observation tells apart."""
    return am.Model([np.eye(2), np.eye(2)], np.eye(2))


def divided_population(n=12, **options):
    model = divided()
    return am.Population.from_beliefs(model, [am.SparseBelief.point(2, k % 2) for k in range(n)], **options)


@pytest.mark.parametrize("threads", [1, 3])
def test_impossible_observations_name_their_agents_and_change_nothing(threads):
    population = divided_population(threads=threads)
    before = snapshot(population)
    observations = np.arange(12) % 2
    observations[[2, 7, 11]] ^= 1
    with pytest.raises(am.ImpossibleObservation, match=r"agents 2 \(action 0, observation 1\), 7 .*, 11 ") as raised:
        population.update(0, observations)
    assert raised.value.agents == [2, 7, 11]
    assert snapshot(population) == before
    assert copy.copy(raised.value).agents == [2, 7, 11]


def test_three_of_a_hundred_thousand(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1024)
    n = 100_000
    population = am.Population(divided(), n, initial=am.SparseBelief.point(2, 1), threads=2)
    observations = np.ones(n, np.intp)
    observations[[17, 50_000, 99_999]] = 0
    before = [part.copy() for part in population.buffers().values()]
    with pytest.raises(am.ImpossibleObservation, match=r"agents 17 \(.*\), 50000 \(.*\), 99999 \(") as raised:
        population.update(0, observations)
    assert raised.value.agents == [17, 50_000, 99_999]
    assert all(map(np.array_equal, population.buffers().values(), before))


@pytest.mark.parametrize("mode", ["predict", "likelihood"])
def test_going_on_is_what_a_belief_does(mode):
    population = divided_population()
    beliefs = list(population)
    observations = np.arange(12) % 2
    observations[[2, 7]] ^= 1
    expected = step_one_by_one(beliefs, population.model, np.zeros(12, int), observations, on_impossible=mode)
    found = population.update(0, observations, on_impossible=mode)
    assert found.tolist() == expected.tolist() and np.flatnonzero(found == -math.inf).tolist() == [2, 7]
    assert [content(b) for b in population] == [content(b) for b in beliefs]


def test_going_on_keeps_to_the_most_states():
    model = am.Model(np.eye(6), np.repeat(np.eye(2), 3, axis=0))
    population = am.Population(model, 2, initial=am.SparseBelief.point(6, 0), max_states=2)
    population.update(0, 1, on_impossible="likelihood")
    assert population[0].indices.tolist() == [3, 4]


def test_an_observation_that_no_state_gives_raises_whatever_is_wanted():
    model = am.Model(np.eye(2), [[1.0, 0.0], [1.0, 0.0]])
    population = am.Population(model, 7)
    before = snapshot(population)
    with pytest.raises(am.ImpossibleObservation) as raised:
        population.update(0, [0, 0, 1, 0, 0, 0, 1], on_impossible="likelihood")
    assert raised.value.agents == [2, 6]
    assert snapshot(population) == before


# ---- one agent, all agents


def test_takes_and_gives_copies():
    population = divided_population()
    taken = population[3]
    population[4] = taken
    taken.normalize()
    taken *= 0.5
    assert population[3].tolist() == population[4].tolist() == [0.0, 1.0]
    assert population[-1].tolist() == population[11].tolist()


def test_a_belief_that_another_thread_changes_is_not_taken():
    """Whole or not at all."""
    n_states = 100_000
    model = am.Model(sparse.eye_array(n_states, format="csr"), np.ones((n_states, 1)))
    chunk = am._core.CoreChunk(1, n_states, np.dtype(np.float64))
    belief, taken, ended = am.SparseBelief(np.full(n_states, 3.0)), am.SparseBelief.uniform(n_states), []

    def change():
        try:
            for _ in range(60):
                with contextlib.suppress(RuntimeError):
                    belief[:] = 3.0  # no longer known to be a measure
                    belief.update(model, 0, 0)
        finally:
            ended.append(True)

    thread = threading.Thread(target=change)
    thread.start()
    while not ended:
        try:
            chunk.store(0, belief)
        except RuntimeError:
            continue
        chunk.load(0, taken)
        assert len(set(taken.values.tolist())) == 1
    thread.join()


def test_a_belief_that_only_says_it_is_one_is_not_taken():
    class Liar(am.SparseBelief):
        def _is_measure(self):
            return True

    liar = Liar([0.5, 0.5])
    liar[:] = 0
    with pytest.raises(ValueError):
        divided_population()[0] = liar


def test_beliefs_put_in_step_as_the_others():
    model = model_of(seen=4)
    population, beliefs = am.Population(model, 9), [model.belief() for _ in range(9)]
    for k in (0, 4, 5, 8, 4):
        beliefs[k] = am.SparseBelief(reference.scattered(np.random.default_rng(k), 40, 1 + k))
        population[k] = beliefs[k]
    step_one_by_one(beliefs, model, [1] * 9, [2] * 9)
    population.update(1, 2)
    assert [content(b) for b in population] == [content(b) for b in beliefs]


@pytest.mark.parametrize("n", [0, 1, 5, 6])
def test_any_number_of_agents(n):
    population = am.Population(model_of(seen=4), n)
    assert len(population) == len(list(population)) == n
    assert population.update(np.zeros(n, int), np.ones(n, int)).shape == (n,)
    assert population.nnz.shape == population.mode().shape == population.entropy().shape == (n,)
    assert population.sample(0).shape == (n,)
    for k in (n, -n - 1):
        with pytest.raises(IndexError, match=f"agent {k} given; there are {n}"):
            population[k]


@dtypes
def test_queries_of_all_are_those_of_each(dtype):
    model = model_of(dtype, seen=4)
    population = am.Population(model, 23, prune=0.0)
    population.update(*(s[0] for s in streams(model, 23, 1)))
    population[7] = am.SparseBelief.uniform(40, dtype=dtype)
    beliefs = list(population)
    assert population.nnz.tolist() == [b.nnz for b in beliefs]
    assert population.mode().tolist() == [b.mode() for b in beliefs]
    np.testing.assert_allclose(population.entropy(), [b.entropy() for b in beliefs], rtol=1e-6)
    drawn = population.sample(3)
    assert drawn.tolist() == population.sample(3).tolist() != population.sample(4).tolist()
    assert all(b[state] > 0 for b, state in zip(beliefs, drawn, strict=True))


@dtypes
@pytest.mark.parametrize("k", [0, 1, 3, 50])
def test_the_most_probable_states_of_all(dtype, k):
    model = model_of(dtype, seen=4)
    population = am.Population(model, 13, prune=0.0)
    population.update(*(s[0] for s in streams(model, 13, 1)))
    states, values = population.top(k)
    assert states.shape == values.shape == (13, k) and values.dtype == dtype
    for row, probabilities, b in zip(states, values, population, strict=True):
        expected, masses = b.top(k)
        assert row[row >= 0].tolist() == expected.tolist()
        np.testing.assert_allclose(probabilities[row >= 0], masses, rtol=1e-6)
        assert (probabilities[row < 0] == 0).all()


def test_means_and_marginals_of_all():
    model = model_of(seen=4)
    population = am.Population(model, 13, initial=am.SparseBelief.uniform((8, 5)))
    population.update(*(s[0] for s in streams(model, 13, 1)))
    f = np.random.default_rng(0).normal(size=(8, 5))
    for form in (f, f.ravel()):
        np.testing.assert_allclose(population.expectation(form), [b.expectation(f) for b in population], rtol=1e-12)
    assert [content(b) for b in population.marginal(1)] == [content(b.marginal(1)) for b in population]
    with pytest.raises(ValueError, match=r"f of shape \(5, 8\) given; expected \(8, 5\)"):
        population.expectation(f.T)


def test_beliefs_of_any_scale_do_not_disturb_each_other():
    model = am.Model(np.eye(2), np.ones((2, 1)))
    masses = [[1e300, 1e300], [0.5, 0.5], [1e308, 1e-308], [1e-300, 3e-300], [2.0, 0.0]]
    population = am.Population.from_beliefs(model, [am.SparseBelief(mass) for mass in masses])
    drawn = np.mean([population.sample(seed) for seed in range(400)], axis=0)
    assert abs(drawn - [0.5, 0.5, 0.0, 0.75, 0.0]).max() < 0.1
    entropy = [np.log(2), np.log(2), 0, np.log(4) - 0.75 * np.log(3), 0]
    np.testing.assert_allclose(population.entropy(), entropy, atol=1e-12)
    np.testing.assert_allclose(population.expectation([0.0, 1.0]), [0.5, 0.5, 0.0, 0.75, 0.0], atol=1e-12)


def test_draws_do_not_depend_on_how_agents_lie():
    model = model_of(seen=4)
    population = am.Population(model, 23)
    population.update(*(s[0] for s in streams(model, 23, 1)))
    numbers = np.random.default_rng(0).random(23)
    apart = [population[k : k + 1]._drawn(numbers[k : k + 1])[0] for k in range(23)]
    assert population._drawn(numbers).tolist() == apart


def test_queries_unfold_a_few_uniform_beliefs_at_a_time():
    n_states = 100_000
    model = am.Model(sparse.eye_array(n_states, format="csr"), np.ones((n_states, 1)))
    population = am.Population(model, 100)
    tracemalloc.start()
    try:
        population.entropy()
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


def test_draws_follow_the_beliefs():
    model = am.Model(np.eye(3), np.ones((3, 1)))
    population = am.Population(model, 6_000, initial=[0.2, 0.0, 0.8])
    drawn = np.bincount(population.sample(0), minlength=3) / 6_000
    assert drawn[1] == 0 and abs(drawn[0] - 0.2) < 0.03


@pytest.mark.parametrize("which", [slice(None), slice(3, 17), slice(None, None, -2), slice(5, 5)])
def test_a_slice_is_a_population(which):
    model = model_of(seen=4)
    population = am.Population(model, 23, prune=1e-3, max_states=9)
    population.update(*(s[0] for s in streams(model, 23, 1)))
    before, part = snapshot(population), population[which]
    assert snapshot(part) == before[which]
    assert (part.prune, part.max_states, part.threads) == (1e-3, 9, None)
    part.update(0, 1)
    assert snapshot(population) == before


def test_agents_come_and_go():
    model = model_of(seen=4)
    population, beliefs = am.Population(model, 8), [model.belief() for _ in range(8)]
    new = [am.SparseBelief.point(40, k) for k in range(7)]
    population.add(new)
    beliefs += [b.copy() for b in new]
    population.remove([0, 9, -1, 9])
    beliefs = [b for k, b in enumerate(beliefs) if k not in (0, 9, 14)]
    population.remove(3)
    del beliefs[3]
    population.remove(np.arange(11) == 2)
    del beliefs[2]
    step_one_by_one(beliefs, model, [1] * len(beliefs), [-1] * len(beliefs))
    population.update(1, -1)
    assert [content(b) for b in population] == [content(b) for b in beliefs]
    before = snapshot(population)
    with pytest.raises(IndexError):
        population.remove([0, 11])
    for wrong in ([new[0], None], new[0]):
        with pytest.raises(TypeError):
            population.add(wrong)
    for wrong in (np.ones(11, bool), np.zeros((2, 2), int)):
        with pytest.raises((TypeError, ValueError)):
            population.remove(wrong)
    assert snapshot(population) == before


# ---- active inference

POLICIES = [[0, 0], [0, 1], [1, 0], [1, 1], [1]]


def told_apart(dtype=np.float64, n_agents=13, threads=None):
    model = model_of(dtype, seen=3)
    population = am.Population(model, n_agents, prune=0.0, threads=threads)
    population.update(*(s[0] for s in streams(model, n_agents, 1, silence=0)), on_impossible="predict")
    return population


@dtypes
@pytest.mark.parametrize("preferences", [[0.0, 2.0, -1.0, 0.5], np.arange(8.0).reshape(4, 2)], ids=["flat", "by time"])
@pytest.mark.parametrize(("utility", "information"), [(True, True), (True, False), (False, True)])
def test_policies_are_worth_what_dense_loops_say(dtype, preferences, utility, information):
    population = told_apart(dtype)
    model = population.model
    C = np.asarray(preferences).reshape(4, -1)
    T, Z = [model.transition(a).toarray().astype(float) for a in range(2)], model.observation(0).toarray().astype(float)
    lnC = np.log(np.exp(C) / np.exp(C).sum(axis=0) + 1e-16)
    G = population.expected_free_energy(
        POLICIES, preferences, use_utility=utility, use_states_info_gain=information
    )
    for row, belief in zip(G, population, strict=True):
        value = (Z @ lnC).T if utility else None
        p = belief.to_dense().astype(float)
        expected = reference.expected_free_energy(p, T, [Z], POLICIES, value=value, information=information)
        np.testing.assert_allclose(row, expected, atol=1e-11 if dtype == np.float64 else 1e-5)


def test_worth_does_not_depend_on_threads_or_the_form_of_policies():
    one, two = told_apart(threads=1), told_apart(threads=3)
    policies = np.array(POLICIES[:4])
    G = one.expected_free_energy(policies, np.arange(4.0))
    assert G.tolist() == two.expected_free_energy(policies[:, :, np.newaxis], np.arange(4.0)).tolist()


def test_agents_act_by_their_policies():
    population = told_apart(n_agents=40)
    preferences = [0.0, 2.0, -1.0, 0.5]
    G = population.expected_free_energy(POLICIES, preferences)
    q_pi = np.exp(4 * (G - G.max(axis=1, keepdims=True)))
    q_pi /= q_pi.sum(axis=1, keepdims=True)
    second = q_pi[:, 2:].sum(axis=1)
    assert population.act(POLICIES, preferences, gamma=4.0).tolist() == (second > 0.5).astype(int).tolist()
    draws = [population.act(POLICIES, preferences, gamma=4.0, alpha=1.0, action_selection="stochastic", rng=k)
             for k in range(400)]
    assert draws[3].tolist() == population.act(
        POLICIES, preferences, gamma=4.0, alpha=1.0, action_selection="stochastic", rng=3
    ).tolist()
    np.testing.assert_allclose(np.mean(draws, axis=0), second, atol=0.12)


def test_of_equal_actions_one_is_drawn():
    model = am.Model([np.eye(2)] * 3, np.eye(2))
    population = am.Population(model, 600)
    drawn = np.bincount(population.act([[0], [1], [2]], [0.0, 0.0], rng=0), minlength=3)
    assert (abs(drawn - 200) < 60).all()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"policies": []}, "no policies given"),
        ({"policies": [[0], [2]]}, "policy 1 has controls beyond"),
        ({"policies": [[]]}, "policy 0"),
        ({"policies": [[0.5]]}, "whole numbers"),
        ({"preferences": [0.0, 1.0]}, r"preferences of shape \(2,\) given; expected \(4,\)"),
        ({"preferences": np.zeros((4, 1))}, r"expected \(4,\) or \(4, 2\)"),
        ({"preferences": [0.0, 1.0, np.nan, 0.0]}, "preferences with nan"),
        ({"action_selection": "best"}, "action_selection='best' given"),
    ],
)
def test_wrong_plans_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        told_apart().act(**({"policies": POLICIES, "preferences": np.zeros(4)} | wrong))


def test_planning_needs_observations_that_do_not_depend_on_the_action():
    model = am.Model([np.eye(2)] * 2, [np.eye(2), np.eye(2)[::-1]])
    with pytest.raises(ValueError, match="observations depend on the action"):
        am.Population(model, 2).expected_free_energy([[0]], [0.0, 0.0])


# ---- as a file


@dtypes
@pytest.mark.parametrize("n", [0, 1, 23])
def test_opened_is_what_was_saved(dtype, n, tmp_path):
    model = model_of(dtype, seen=4)
    start = am.SparseBelief.uniform((8, 5), dtype=dtype)
    population = am.Population(model, n, initial=start, prune=1e-3, max_states=30)
    steps = list(zip(*streams(model, n, 4), strict=True))
    for actions, observations in steps[:2]:
        population.update(actions, observations)
    population.save(tmp_path / "agents")
    again = am.Population.open(tmp_path / "agents", model, threads=3)
    assert snapshot(again) == snapshot(population)
    assert (again.prune, again.max_states, again.threads) == (1e-3, 30, 3)
    for actions, observations in steps[2:]:
        assert again.update(actions, observations).tolist() == population.update(actions, observations).tolist()
    assert snapshot(again) == snapshot(population)


def test_a_file_is_of_one_model_and_no_other(tmp_path):
    model = model_of(seen=4)
    am.Population(model, 3).save(tmp_path / "agents")
    with pytest.raises(ValueError, match="a population over the model"):
        am.Population.open(tmp_path / "agents", model_of(seed=1, seen=4))
    with pytest.raises(am.CorruptData):
        am.Model.open(tmp_path / "agents")
    model.save(tmp_path / "model")
    with pytest.raises(am.CorruptData, match="of no population"):
        am.Population.open(tmp_path / "model", model)


def test_damaged_files_are_refused(tmp_path):
    model = model_of(seen=4)
    population = am.Population(model, 7)
    population.update(1, 1)
    population.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    path = tmp_path / "damaged"
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(am.CorruptData):
            am.Population.open(path, model)
    for place in range(0, len(whole), 53):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        with pytest.raises(am.CorruptData):
            am.Population.open(path, model)


def words(*parts):
    """Arrays one behind another, in words of 8 bytes."""
    data = b"".join(np.asarray(part, kind).tobytes() for part, kind in parts)
    return np.frombuffer(data + bytes(-len(data) % 8), np.int64)


def pairs(states, values):
    return words((values, np.float64), (states, np.int32))


PAIRS, BITMAP, DENSE, UNIFORM = range(4)
ONE = pairs([7], [1.0])
WRONG_BLOCKS = {
    "no state": ([PAIRS], [0], [0.0], ONE[:0]),
    "more states than there are": ([PAIRS], [41], [0.0], pairs(range(41), np.ones(41))),
    "a count below 0": ([PAIRS], [-1], [0.0], ONE),
    "no such storage": ([4], [1], [0.0], ONE),
    "storage below 0": ([-1], [1], [0.0], ONE),
    "too few bytes": ([PAIRS, PAIRS], [1, 2], [0.0, 0.0], np.append(ONE, ONE)),
    "too many bytes": ([PAIRS], [1], [0.0], np.append(ONE, ONE)),
    "no bytes": ([PAIRS], [1], [0.0], ONE[:0]),
    "storage missing": ([PAIRS], [1, 1], [0.0, 0.0], np.append(ONE, ONE)),
    "pruned mass missing": ([PAIRS, PAIRS], [1, 1], [0.0], np.append(ONE, ONE)),
    "pruned mass of nan": ([PAIRS], [1], [np.nan], ONE),
    "pruned mass below 0": ([PAIRS], [1], [-0.5], ONE),
    "state beyond": ([PAIRS], [2], [0.0], pairs([7, 40], [0.5, 0.5])),
    "state below 0": ([PAIRS], [2], [0.0], pairs([-1, 7], [0.5, 0.5])),
    "states down": ([PAIRS], [2], [0.0], pairs([9, 7], [0.5, 0.5])),
    "a state twice": ([PAIRS], [2], [0.0], pairs([7, 7], [0.5, 0.5])),
    "mass of zero": ([PAIRS], [2], [0.0], pairs([7, 9], [0.0, 1.0])),
    "mass below zero": ([PAIRS], [2], [0.0], pairs([7, 9], [-0.5, 1.5])),
    "mass of nan": ([PAIRS], [2], [0.0], pairs([7, 9], [np.nan, 1.0])),
    "mass of infinity": ([PAIRS], [2], [0.0], pairs([7, 9], [np.inf, 1.0])),
    "bits too few": ([BITMAP], [2], [0.0], words(([1], np.int64), ([0.5, 0.5], np.float64))),
    "bits too many": ([BITMAP], [2], [0.0], words(([7], np.int64), ([0.5, 0.5], np.float64))),
    "bits beyond": ([BITMAP], [2], [0.0], words(([1 | 1 << 40], np.int64), ([0.5, 0.5], np.float64))),
    "bit of no mass": ([BITMAP], [2], [0.0], words(([3], np.int64), ([0.0, 0.5], np.float64))),
    "dense of another count": ([DENSE], [40], [0.0], words((np.eye(40)[3], np.float64))),
    "dense of nothing": ([DENSE], [1], [0.0], words((np.zeros(40), np.float64))),
    "dense below zero": ([DENSE], [2], [0.0], words((np.eye(40)[3] - np.eye(40)[4] / 2, np.float64))),
    "uniform of some": ([UNIFORM], [39], [0.0], words(([0.5], np.float64))),
    "uniform of nothing": ([UNIFORM], [40], [0.0], words(([0.0], np.float64))),
}


def file_of(path, model, storage, counts, pruned_mass, blocks):
    """A file as `save` writes it, of one chunk."""
    header = {"model": model.digest, "shape": [40], "prune": 0.0, "max_states": None}
    buffers = {
        "storage.0": np.array(storage, np.int32),
        "counts.0": np.array(counts, np.int32),
        "pruned_mass.0": np.array(pruned_mass),
        "blocks.0": blocks,
    }
    write_arrays(path, header, buffers)
    return path


@pytest.mark.parametrize("record", WRONG_BLOCKS.values(), ids=WRONG_BLOCKS)
def test_blocks_are_checked_even_where_their_checksum_agrees(record, tmp_path):
    with pytest.raises(am.CorruptData):
        am.Population.open(file_of(tmp_path / "agents", model_of(), *record), model_of())


def test_blocks_that_are_beliefs_are_taken(tmp_path):
    """What makes the others wrong is what is said of them."""
    blocks = [pairs([7, 9], [0.5, 0.5]), words(([1 | 1 << 39], np.int64), ([0.5, 0.5], np.float64)),
              words((np.eye(40)[3], np.float64)), words(([0.025], np.float64))]
    path = file_of(tmp_path / "agents", model_of(), range(4), [2, 2, 1, 40], np.zeros(4), np.concatenate(blocks))
    population = am.Population.open(path, model_of())
    assert [b.indices.tolist() for b in population] == [[7, 9], [0, 39], [3], list(range(40))]
    assert [b.storage for b in population] == ["pairs", "bitmap", "dense", "uniform"]


@pytest.mark.parametrize("wrong", ["missing", "gap", "of another kind", "nameless"])
def test_arrays_of_a_file_are_checked(wrong, tmp_path):
    model = model_of(seen=4)
    population = am.Population(model, 7)
    buffers = population.buffers()
    if wrong == "missing":
        del buffers["counts.1"]
    elif wrong == "gap":
        buffers = {name.replace(".1", ".2"): array for name, array in buffers.items()}
    elif wrong == "of another kind":
        buffers["blocks.1"] = buffers["blocks.1"].view(np.float64)
    else:
        buffers["blocks"] = buffers.pop("blocks.1")
    write_arrays(tmp_path / "agents", population.header, buffers)
    with pytest.raises(am.CorruptData):
        am.Population.open(tmp_path / "agents", model)


def test_a_file_is_not_larger_than_its_population(tmp_path):
    model = am.Model(np.eye(10_000), np.ones((10_000, 1)))
    population = am.Population(model, 50)  # uniform priors
    population.save(tmp_path / "agents")
    assert (tmp_path / "agents").stat().st_size < population.nbytes + 20_000
    assert am.Population.open(tmp_path / "agents", model).nbytes == population.nbytes


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_file_before(tmp_path):
    model = model_of(seen=4)
    population = am.Population.from_beliefs(model, [am.SparseBelief(np.arange(1.0, 41.0)) for _ in range(500)])
    population.save(tmp_path / "agents")
    before = snapshot(population)
    population.update(0, -1)
    with full_disk(20_000), pytest.raises(OSError, match="File too large"):
        population.save(tmp_path / "agents")
    assert os.listdir(tmp_path) == ["agents"]
    assert snapshot(am.Population.open(tmp_path / "agents", model)) == before


def test_beliefs_are_not_set_while_their_buffers_are_held():
    model = model_of(seen=4)
    population = am.Population(model, 7)
    population[3] = am.SparseBelief.point(40, 2)  # leaves a hole, which is closed first
    before, held = snapshot(population), population.buffers()
    assert not held["blocks.0"].flags.writeable
    with pytest.raises(RuntimeError, match="`buffers` are still held"):
        population[0] = am.SparseBelief.point(40, 1)
    assert snapshot(population) == before
    population.update(1, -1)  # makes new ones
    again = am.Population.from_buffers(model, population.header, held)
    assert snapshot(again) == before
    del held
    population[0] = am.SparseBelief.point(40, 1)
    assert population[0].mode() == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))])
def test_populations_can_be_pickled_and_copied(copied):
    model = model_of(seen=4)
    population = am.Population(model, 13, prune=1e-3, max_states=7, threads=2)
    population.update(*(s[0] for s in streams(model, 13, 1)))
    again = copied(population)
    assert snapshot(again) == snapshot(population) and again.model == model
    assert (again.prune, again.max_states, again.threads) == (1e-3, 7, 2)
    before = snapshot(population)
    again.update(0, 1)
    assert snapshot(population) == before


# ---- bytes


@dtypes
def test_bytes_are_those_of_the_states_held(dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 2048)
    n_agents, n_states, item = 5_000, 1_000, np.dtype(dtype).itemsize
    model = am.Model(np.eye(n_states), np.ones((n_states, 1)), dtype=dtype)
    states = np.arange(0, 1000, 100)
    start = am.SparseBelief.from_indices(states, np.full(10, 0.1, dtype), n_states)
    population = am.Population(model, n_agents, initial=start)
    for _ in range(3):
        assert population.nbytes <= n_agents * (10 * (item + 4) + 32)
        population.update(0, 0)


def test_replacing_beliefs_again_and_again_takes_no_more():
    model = model_of(seen=4)
    population = am.Population(model, 10)
    beliefs = [am.SparseBelief(reference.scattered(np.random.default_rng(k), 40, 1 + k % 40)) for k in range(400)]
    for k, belief in enumerate(beliefs):
        population[k % 10] = belief
    assert [content(b) for b in population] == [content(b) for b in beliefs[-10:]]
    assert population.nbytes < 2 * am.Population.from_beliefs(model, beliefs[-10:]).nbytes


def test_capacity_follows_the_support_down():
    model = am.Model(np.full((1_000, 1_000), 1e-3), np.vstack([np.eye(10)] * 100))
    population = am.Population(model, 10)
    full = population.nbytes
    population.update(0, -1)
    assert population.nbytes > 10 * 8_000 > full
    population.update(0, 3)
    assert population.nbytes < 10 * (100 * 12 + 200)


# ---- misuse


def call(population, **wrong):
    sound = {"actions": [0] * 12, "observations": [-1] * 12}
    return population.update(**(sound | wrong))


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        ({"actions": [0] * 11}, ValueError, r"actions of shape \(11,\) given; expected \(12,\)"),
        ({"actions": [[0]] * 12}, ValueError, r"actions of shape \(12, 1\) given"),
        ({"observations": [0] * 13}, ValueError, r"observations of shape \(13,\) given"),
        ({"actions": [0.0] * 12}, TypeError, "actions of dtype float64 given; expected ints"),
        ({"observations": [None] * 12}, TypeError, "observations of dtype object given"),
        ({"actions": 2}, ValueError, "agent 0: action 2 given; expected 0 to 1"),
        ({"actions": -1}, ValueError, "action -1 given"),
        ({"observations": [-1] * 11 + [2]}, ValueError, "agent 11: observation 2 given; expected -1 to 1"),
        ({"observations": -2}, ValueError, "observation -2 given"),
        ({"on_impossible": "ignore"}, ValueError, "on_impossible='ignore' given"),
    ],
)
def test_a_wrong_step_is_refused_and_changes_nothing(wrong, error, says):
    population = divided_population()
    before = snapshot(population)
    with pytest.raises(error, match=says):
        call(population, **wrong)
    assert snapshot(population) == before


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"model": None}, TypeError, "model of type NoneType given"),
        ({"n_agents": -1}, ValueError, "n_agents=-1 given"),
        ({"n_agents": 1.5}, TypeError, "n_agents=1.5 given; expected an int"),
        ({"prune": 1.0}, ValueError, "prune=1.0 given"),
        ({"max_states": 0}, ValueError, "max_states=0 given"),
        ({"threads": 0}, ValueError, "threads=0 given"),
        ({"n_agents": 10**13}, MemoryError, "n_agents=10000000000000 given; they need"),
        ({"prune": "a"}, ValueError, "prune='a' given"),
        ({"max_states": 2.5}, TypeError, "max_states=2.5 given; expected an int"),
        ({"initial": [1.0, 0.0, 0.0]}, ValueError, "belief of 3 states given with a model of 2"),
        ({"initial": am.SparseBelief.uniform(2, dtype=np.float32)}, TypeError, "float32 given with a model of float64"),
        ({"initial": [1.0, -1.0]}, ValueError, "-1"),
    ],
)
def test_a_wrong_population_is_refused(options, error, says):
    with pytest.raises(error, match=says):
        am.Population(**({"model": divided(), "n_agents": 3} | options))


@pytest.mark.parametrize("name", ["prune", "max_states", "threads", "model"])
def test_options_are_checked_whenever_they_are_set(name):
    population = divided_population()
    before = getattr(population, name)
    for wrong in (-1, "a"):
        with pytest.raises((AttributeError, TypeError, ValueError)):
            setattr(population, name, wrong)
    assert getattr(population, name) is before


def test_a_tiny_belief_is_still_one_when_opened(tmp_path):
    model = model_of(seen=4)
    population = am.Population.from_beliefs(model, [am.SparseBelief(np.full(40, 1e-300))] * 3)
    population.save(tmp_path / "agents")
    again = am.Population.open(tmp_path / "agents", model)
    assert again.update(1, 2).tolist() == population.update(1, 2).tolist()
    assert snapshot(again) == snapshot(population)


@pytest.mark.parametrize("support", [1, 40, 200])
def test_likelihoods_of_few_states_over_large_supports(support):
    """In a bitmap or as pairs, met by more or fewer states than the likelihood lists; workspaces begin small."""
    n_states = 640
    stay = sparse.eye_array(n_states, format="csr")
    Z = np.zeros((n_states, 2))
    Z[:, 0] = 1
    Z[:30] = [0.25, 0.75]
    model = am.Model(stay, Z)
    start = am.SparseBelief.from_indices(np.arange(support), np.full(support, 1 / support), n_states)
    population = am.Population(model, 3, initial=start, prune=0.0)
    am._core.release_scratch()
    for _ in range(3):
        expected = reference.normalized(population[0].to_dense() * Z[:, 1])
        population.update(0, 1)
        np.testing.assert_allclose(population[2].to_dense(), expected, rtol=1e-12)
        population.update(0, -1)
        np.testing.assert_allclose(population[2].to_dense(), expected, rtol=1e-12)


def test_plans_of_beliefs_that_do_not_sum_to_one():
    population = told_apart()
    G = population.expected_free_energy(POLICIES, np.arange(4.0))
    for k, belief in enumerate(population):
        belief *= 4
        population[k] = belief
    np.testing.assert_allclose(population.expected_free_energy(POLICIES, np.arange(4.0)), G, rtol=1e-12)


def test_only_beliefs_go_in():
    population = divided_population()
    before = snapshot(population)
    for wrong, error in ((np.array([0.5, 0.5]), TypeError), (am.SparseBelief.uniform(3), ValueError)):
        with pytest.raises(error):
            population[2] = wrong
        with pytest.raises(error):
            am.Population.from_beliefs(population.model, [population[0], wrong])
    assert snapshot(population) == before


def test_one_writer():
    population = divided_population()
    before = snapshot(population)
    with population._as_writer():
        for change in (
            lambda: population.update(0, -1),
            lambda: population.remove(0),
            lambda: population.add([]),
            lambda: population.__setitem__(0, population[1]),
        ):
            with pytest.raises(RuntimeError, match="two writers"):
                change()
    assert snapshot(population) == before
    population.update(0, -1)


def test_two_populations_step_beside_each_other():
    model = model_of(seen=4)
    actions, observations = streams(model, 40, 30)
    made = [am.Population(model, 40, threads=2) for _ in range(3)]

    def run(population):
        for a, o in zip(actions, observations, strict=True):
            population.update(a, o)

    others = [threading.Thread(target=run, args=(population,)) for population in made[1:]]
    for thread in others:
        thread.start()
    run(made[0])
    for thread in others:
        thread.join()
    assert snapshot(made[0]) == snapshot(made[1]) == snapshot(made[2])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_steps_with_threads_of_its_own():
    model = model_of(seen=4)
    population, other = am.Population(model, 23, threads=3), am.Population(model, 23, threads=1)
    population.update(1, -1)
    other.update(1, -1)
    child = os.fork()
    if not child:
        signal.alarm(60)  # rather than wait for ever
        population.update(0, 1, on_impossible="predict")
        other.update(0, 1, on_impossible="predict")
        os._exit(snapshot(population) != snapshot(other))
    assert os.waitpid(child, 0)[1] == 0


def test_threads_go_with_their_population():
    before = set(threading.enumerate())
    population = am.Population(model_of(seen=4), 40, threads=4)
    for threads in (4, 2, 1, 3):
        population.threads = threads
        population.update(0, -1)
    kept = set(threading.enumerate()) - before
    assert any(thread.is_alive() for thread in kept)
    del population
    gc.collect()
    for thread in kept:
        thread.join(60)
    assert not any(thread.is_alive() for thread in kept)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_in_a_thread_is_raised(threads):
    population = am.Population(model_of(seen=4), 23, threads=threads)
    before = snapshot(population)
    seen = []

    def fail(part):
        seen.append(part)
        if part == 2:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        population._on_threads(fail, range(500))
    assert 2 in seen and len(seen) < 500 and snapshot(population) == before


def test_the_end_of_the_interpreter_is_stepped_through():
    """Threads cannot be started then; the one there is does all."""
    program = """
import threading, time, numpy as np, agentmem as am
from agentmem import population as module
module.CHUNK, module.WORTH_A_THREAD = 5, 1
agents = am.Population(am.Model(np.eye(4), np.eye(4)), 40, threads=3)
def run():
    threading.main_thread().join()
    agents.update(0, -1)
    print("stepped", flush=True)
threading.Thread(target=run).start()
"""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, env=same_environment(), capture_output=True, text=True, timeout=120)
    assert ran.stdout == "stepped\n", ran.stderr


def test_a_chunk_trusts_nobody():
    model = model_of(seen=4)
    chunk = am._core.CoreChunk(3, 40, np.dtype(np.float64))
    belief = model.belief()
    with pytest.raises(ValueError, match="row 0 has no belief yet"):
        chunk.step(model, [0] * 3, [0] * 3, 0.0, 0, np.empty(3))
    with pytest.raises(ValueError, match="row 1 has no belief yet"):
        chunk.load(1, belief)
    for k in range(3):
        chunk.store(k, belief)
    for k in (-1, 3, sys.maxsize):
        with pytest.raises((IndexError, OverflowError)):
            chunk.store(k, belief)
        with pytest.raises((IndexError, OverflowError)):
            chunk.load(k, belief)
    with pytest.raises(ValueError):
        chunk.load(0, am.SparseBelief.uniform(41))
    with pytest.raises(ValueError):
        chunk.step(model_of(np.float32, seen=4), [0] * 3, [0] * 3, 0.0, 0, np.empty(3))
    for actions, observations in (([0] * 2, [0] * 3), ([0] * 3, [[0]] * 3), ([9] * 3, [0] * 3), ([0] * 3, [9] * 3)):
        with pytest.raises(ValueError):
            chunk.step(model, actions, observations, 0.0, 0, np.empty(3))
    for relative, most in ((1.0, 0), (-0.1, 0), (math.nan, 0), (0.0, -1)):
        with pytest.raises(ValueError):
            chunk.step(model, [0] * 3, [0] * 3, relative, most, np.empty(3))
    locked = np.empty(3)
    locked.flags.writeable = False
    for evidence in (np.empty(2), np.empty((3, 1)), np.empty(6)[::2], np.empty(3, np.float32), locked, None):
        with pytest.raises((TypeError, ValueError)):
            chunk.step(model, [0] * 3, [0] * 3, 0.0, 0, evidence)
    empty = am._core.CoreChunk(2, 40, np.dtype(np.float64))
    other = am._core.CoreChunk(1, 41, np.dtype(np.float64))
    wrong_takes = ((-1, chunk, [0]), (1, chunk, [0, 0]), (3, chunk, [0]), (0, chunk, [3]), (0, chunk, [-1]))
    for first, source, wanted in (*wrong_takes, (0, empty, [0]), (0, other, [0])):
        with pytest.raises((IndexError, ValueError)):
            empty.take(first, source, wanted)
    empty.take(0, chunk, [2, 0])
    with pytest.raises(ValueError, match="row 1 has a belief already"):
        empty.take(1, chunk, [0])
    for wrong in ((-1, 40), (3, 0), (3, 2**31), (2**31, 40), (2**60, 40)):
        with pytest.raises(ValueError):
            am._core.CoreChunk(*wrong, np.dtype(np.float64))
    with pytest.raises(TypeError):
        am._core.CoreChunk(3, 40, np.dtype(np.int32))
    assert content(belief) == content(model.belief())


# ---- beside a list


class BesideAList(RuleBasedStateMachine):
    """A population and a list of beliefs go through the same."""

    @initialize(n=st.integers(0, 13), seed=st.integers(0, 1000), dtype=st.sampled_from(DTYPES))
    def begin(self, n, seed, dtype):
        self.rng = np.random.default_rng(seed)
        self.model = model_of(dtype, seed=seed)
        self.beliefs = [self.model.belief() for _ in range(n)]
        self.population = am.Population(self.model, n, threads=2)

    @rule(mode=st.sampled_from(["raise", "predict", "likelihood"]))
    def update(self, mode):
        n = len(self.beliefs)
        actions, observations = self.rng.integers(N_ACTIONS, size=n), self.rng.integers(-1, N_OBSERVATIONS, size=n)
        tried = [b.copy() for b in self.beliefs]
        try:
            expected = step_one_by_one(tried, self.model, actions, observations, on_impossible=mode)
        except am.ImpossibleObservation:
            with pytest.raises(am.ImpossibleObservation):
                self.population.update(actions, observations, on_impossible=mode)
            return
        assert self.population.update(actions, observations, on_impossible=mode).tolist() == expected.tolist()
        self.beliefs = tried

    @rule(data=st.data())
    def put(self, data):
        if self.beliefs:
            k = data.draw(st.integers(0, len(self.beliefs) - 1))
            n_stored = data.draw(st.integers(1, 40))
            belief = am.SparseBelief(reference.scattered(self.rng, 40, n_stored, self.model.dtype))
            self.beliefs[k] = belief.copy()
            self.population[k] = belief

    @rule(data=st.data())
    def leave(self, data):
        if self.beliefs:
            gone = data.draw(st.lists(st.integers(0, len(self.beliefs) - 1), max_size=4))
            self.population.remove(np.array(gone, dtype=int))
            self.beliefs = [b for k, b in enumerate(self.beliefs) if k not in gone]

    @rule(n=st.integers(0, 7))
    def join(self, n):
        new = [am.SparseBelief(reference.scattered(self.rng, 40, 1 + k, self.model.dtype)) for k in range(n)]
        self.population.add(new)
        self.beliefs += new

    @invariant()
    def same(self):
        if hasattr(self, "beliefs"):
            assert snapshot(self.population) == [(content(b), b.pruned_mass) for b in self.beliefs]


BesideAList.TestCase.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
TestBesideAList = BesideAList.TestCase
