"""Real models that nobody on this project wrote, every belief and log-evidence against exact arithmetic.

The models lie beside the repository (`../shared/models`), not in it; without them these tests are skipped.
"""

from functools import lru_cache

import numpy as np
import pytest

import agentmem as am
from agentmem import population
from corpus import FOLDERS, model_of, models, needed, walks
from reference import content, unchanged

pytestmark = needed
dtypes = pytest.mark.parametrize("dtype", [np.float64, np.float32])


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


@models
@dtypes
def test_a_population_is_its_beliefs(name, dtype, monkeypatch, tmp_path):
    monkeypatch.setattr(population, "CHUNK", 32)
    monkeypatch.setattr(population, "WORTH_A_THREAD", 1)
    model, n_agents = model_of(name, dtype), 200
    beliefs = [model.belief() for _ in range(n_agents)]
    populations = [am.Population(model, n_agents, threads=threads) for threads in (1, 2, 3, 7)]
    for t, (actions, observations) in enumerate(zip(*walks(model, n_agents, 5), strict=True)):
        if t == 3:
            populations[0].save(tmp_path / "agents")
            populations[0] = am.Population.open(tmp_path / "agents", model)
        expected = [
            belief.update(model, action, None if observation < 0 else observation, on_impossible="predict")
            for belief, action, observation in zip(beliefs, actions.tolist(), observations.tolist(), strict=True)
        ]
        for agents in populations:
            assert agents.update(actions, observations, on_impossible="predict").tolist() == expected
    for agents in populations:
        assert [content(b) for b in agents] == [content(b) for b in beliefs]
