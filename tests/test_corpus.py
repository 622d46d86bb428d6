"""Real models that nobody on this project wrote, every belief and log-evidence against exact arithmetic.

The models lie beside the repository (`../shared/models`), not in it; without them these tests are skipped.
"""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import agentmem as am
from agentmem import population
from reference import content, unchanged

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
FOLDERS = {d.parent.name: d.parent for d in sorted(MODELS.glob("corpus/*/*/meta.json"))}
HUGE = {"den312d_k20_known"}  # a million states, 9 x 3.9 million transitions

pytestmark = pytest.mark.skipif(not FOLDERS, reason=f"no models in {MODELS}")
models = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                name in HUGE and os.environ.get("AGENTMEM_FULL") != "1", reason="huge; set AGENTMEM_FULL=1"
            ),
        )
        for name in FOLDERS
    ],
)
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


@lru_cache(maxsize=1)
def tables_of(name):
    spec = importlib.util.spec_from_file_location("corpus_check", MODELS / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    return check.load_model(str(FOLDERS[name]), json.loads((FOLDERS[name] / "meta.json").read_text()))


@lru_cache(maxsize=2)
def model_of(name, dtype):
    transitions, observations, start = tables_of(name)
    return am.Model(transitions, observations, start / start.sum(), dtype=dtype)


@lru_cache(maxsize=1)
def reference_of(name):
    with np.load(FOLDERS[name] / "reference.npz") as stored:
        return dict(stored)


def l1_errors(name, model, **options):
    """The worst L1 distance of a belief and the worst error of a log-evidence, over all trajectories."""
    r = reference_of(name)
    stored, begins = r["stored_steps"].tolist(), r["b_ptr"]
    worst_l1 = worst_evidence = 0.0
    for k in range(int(r["K"])):
        b, n_seen = model.belief(), 0
        for t, (action, observation) in enumerate(zip(r["actions"][k], r["observations"][k], strict=True)):
            log_evidence = b.update(model, int(action), int(observation), **options)
            worst_evidence = max(worst_evidence, abs(log_evidence - r["loglik"][k, t]))
            if t + 1 not in stored:
                continue
            place = k * len(stored) + n_seen
            n_seen += 1
            entries = slice(begins[place], begins[place + 1])
            expected = np.zeros(b.size)
            expected[r["b_idx"][entries]] = r["b_val"][entries]
            worst_l1 = max(worst_l1, np.abs(b.to_dense() - expected).sum())
        assert n_seen == len(stored)
        b._check()
    return worst_l1, worst_evidence


@models
@dtypes
def test_exact_steps_are_those_of_exact_arithmetic(name, dtype):
    l1, evidence = l1_errors(name, model_of(name, dtype), prune=0.0)
    assert l1 <= (1e-12 if dtype == np.float64 else 2e-6)
    assert evidence <= (1e-9 if dtype == np.float64 else 2e-6)


@models
@dtypes
def test_default_pruning_stays_close(name, dtype):
    l1, _ = l1_errors(name, model_of(name, dtype))
    assert l1 <= (1e-7 if dtype == np.float64 else 2e-6)


@models
@dtypes
@pytest.mark.parametrize("prune", [0.0, None], ids=["exact", "pruned"])
def test_impossible_observations_raise_and_change_nothing(name, dtype, prune):
    model, r = model_of(name, dtype), reference_of(name)
    for n_steps, action, observation in r["impossible"].tolist():
        b = model.belief()
        for a, o in zip(r["actions"][0][:n_steps], r["observations"][0][:n_steps], strict=True):
            b.update(model, int(a), int(o), prune=prune)
        named = rf"observation {observation}\b.*action {action}\b.*evidence 0"
        with unchanged(b), pytest.raises(am.ImpossibleObservation, match=named):
            b.update(model, action, observation, prune=prune)


@models
def test_a_step_back_after_an_impossible_observation_goes_on_as_if_nothing_had_happened(name):
    model, r = model_of(name, np.float64), reference_of(name)
    for n_steps, action, observation in r["impossible"].tolist():
        b, undisturbed = model.belief(), model.belief()
        for t in range(n_steps + 3):
            if t == n_steps:
                with pytest.raises(am.ImpossibleObservation):
                    b.update(model, action, observation)
            a, o = int(r["actions"][0][t]), int(r["observations"][0][t])
            assert b.update(model, a, o) == undisturbed.update(model, a, o)
        assert b.values.tobytes() == undisturbed.values.tobytes()


def drawn(rng, matrix, rows):
    """A column of each row of a CSR matrix, by its probabilities."""
    before = np.append(0.0, np.cumsum(matrix.data, dtype=np.float64))
    first, last = matrix.indptr[rows], matrix.indptr[rows + 1]
    wanted = before[first] + rng.random(len(rows)) * (before[last] - before[first])
    return matrix.indices[np.clip(np.searchsorted(before, wanted, side="right") - 1, first, last - 1)]


@models
@dtypes
def test_a_population_is_its_beliefs(name, dtype, monkeypatch):
    """200 agents, each on a walk of its own, with some readings missing and some beyond what they hold possible."""
    monkeypatch.setattr(population, "CHUNK", 32)
    model, n_agents, rng = model_of(name, dtype), 200, np.random.default_rng(0)
    transitions = [model.transition(action) for action in range(model.n_actions)]
    sensors = [model.observation(action) for action in range(model.n_actions)]
    beliefs = [model.belief() for _ in range(n_agents)]
    populations = [am.Population(model, n_agents, threads=threads) for threads in (1, 2, 3, 7)]
    states = np.array([belief.sample(rng=rng) for belief in beliefs])
    for _ in range(5):
        actions, observations = rng.integers(model.n_actions, size=n_agents), np.empty(n_agents, np.intp)
        for action in np.unique(actions):
            chosen = actions == action
            states[chosen] = drawn(rng, transitions[action], states[chosen])
            observations[chosen] = drawn(rng, sensors[action], states[chosen])
        observations[rng.random(n_agents) < 0.1] = -1
        strange = rng.random(n_agents) < 0.02
        observations[strange] = rng.integers(model.n_observations, size=strange.sum())
        expected = [
            belief.update(model, action, None if observation < 0 else observation, on_impossible="predict")
            for belief, action, observation in zip(beliefs, actions.tolist(), observations.tolist(), strict=True)
        ]
        for agents in populations:
            assert agents.update(actions, observations, on_impossible="predict").tolist() == expected
    for agents in populations:
        assert [content(b) for b in agents] == [content(b) for b in beliefs]
