"""The real models beside the repository (`../shared/models`): their tables, and agents that walk in them."""

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler.worlds import sample_rows

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
FOLDERS = {d.parent.name: d.parent for d in sorted(MODELS.glob("corpus/*/*/meta.json"))}
HUGE = {"den312d_k20_known"}  # a million states, 9 x 3.9 million transitions

needed = pytest.mark.skipif(not FOLDERS, reason=f"no models in {MODELS}")
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


def walks(model, n_agents, n_steps):
    """(n_steps, n_agents) actions and observations, each agent on its own; some readings missing, some unheard of."""
    rng = np.random.default_rng(0)
    transitions = [model.transition(action) for action in range(model.n_actions)]
    sensors = [model.observation(action) for action in range(model.n_actions)]
    start = model.belief()
    states = np.array([start.sample(rng=rng) for _ in range(n_agents)])
    actions = rng.integers(model.n_actions, size=(n_steps, n_agents))
    observations = np.empty((n_steps, n_agents), np.intp)
    for done, seen in zip(actions, observations, strict=True):
        for action in np.unique(done):
            chosen = done == action
            states[chosen] = sample_rows(transitions[action], states[chosen], rng)
            seen[chosen] = sample_rows(sensors[action], states[chosen], rng)
        seen[rng.random(n_agents) < 0.1] = -1
        strange = rng.random(n_agents) < 0.02
        seen[strange] = rng.integers(model.n_observations, size=strange.sum())
    return actions, observations
