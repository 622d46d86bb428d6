"""The JAX agent over padded tables does what pymdp's dense one does, step by step and in rollout."""

import re
import subprocess
import sys

import numpy as np
import pytest

import agentmem as am
import reference
from reference import same_environment

pytest.importorskip("jax", reason="JAX is not installed")
pytest.importorskip("pymdp.agent", reason="pymdp is not installed")

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from pymdp.agent import Agent
from pymdp.envs.env import PymdpEnv
from pymdp.envs.grid_world import GridWorld
from pymdp.envs.rollout import rollout

from agentmem.integrations.pymdp_jax import FIXED, SparseAgent

N_STATES, N_OBSERVATIONS, N_ACTIONS = 24, 9, 3
CLOSE = {"rtol": 0, "atol": 1e-5}


def tables(seed):
    """pymdp's A (O, S) and B (S', S, U), sparse: two random actions and one that resets to one of two states."""
    rng = np.random.default_rng(seed)
    transitions, sensor = reference.random_tables(
        rng, N_STATES, n_actions=N_ACTIONS - 1, n_observations=N_OBSERVATIONS, branching=4, seen=3
    )
    reset = np.zeros((N_STATES, N_STATES))
    reset[:, :2] = 0.25, 0.75
    B = np.stack([*transitions, reset]).transpose(2, 1, 0)
    return sensor.T.astype(np.float32), B.astype(np.float32)


def both(A, B, C=None, D=None, **options):
    """The dense agent, and ours over a Model of the same tables."""
    dense = Agent(
        [jnp.asarray(A)], [jnp.asarray(B)], C=None if C is None else [C], D=None if D is None else [D], **options
    )
    return dense, SparseAgent(am.Model.from_pymdp(A, B), C, D, **options)


def walk(agent, observations, keys):
    """What an agent believes, plans and does, (T, ...) each; one compiled function of the agent and its inputs."""

    @eqx.filter_jit
    def step(agent, observation, prior, keys):
        qs = agent.infer_states([observation], prior)
        q_pi, neg_efe = agent.infer_policies(qs)
        action = agent.sample_action(q_pi, rng_key=keys)
        return (qs[0], q_pi, neg_efe, action), agent.update_empirical_prior(action, qs)

    prior, steps = agent.D, []
    for observation, key in zip(observations, keys, strict=True):
        found, prior = step(agent, observation, prior, jr.split(key, agent.batch_size))
        steps.append((*found, prior[0]))
    return [np.stack(part) for part in zip(*steps, strict=True)]


def assert_same_walk(dense, ours, observations):
    keys = jr.split(jr.PRNGKey(0), len(observations))
    expected, found = walk(dense, observations, keys), walk(ours, observations, keys)
    for dense_part, our_part in zip(expected, found, strict=True):
        assert our_part.shape == dense_part.shape
        assert our_part.dtype == dense_part.dtype
        np.testing.assert_allclose(our_part, dense_part, **CLOSE)
    return found


def readings(seed, batch_size, n_steps=6):
    return jr.randint(jr.PRNGKey(seed), (n_steps, batch_size), 0, N_OBSERVATIONS)


def preferences(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(*shape, N_OBSERVATIONS)), jnp.float32)


# ---- in rollout


def assert_same_rollout(dense, ours, env, seed=0, n_steps=30):
    _, expected = rollout(dense, env, n_steps, jr.PRNGKey(seed))
    _, found = eqx.filter_jit(rollout)(ours, env, n_steps, jr.PRNGKey(seed))
    best = np.sort(expected["qpi"], axis=-1)
    assert (best[..., -1] - best[..., -2]).min() > 1e-4  # no ties, which rounding would break either way
    assert found.keys() == expected.keys()
    assert len(np.unique(expected["action"])) > 1
    np.testing.assert_array_equal(found["action"], expected["action"])
    np.testing.assert_array_equal(found["observation"][0], expected["observation"][0])
    for name in ("qpi", "neg_efe"):
        np.testing.assert_allclose(found[name], expected[name], **CLOSE)
    for name in ("qs", "empirical_prior"):
        np.testing.assert_allclose(found[name][0], expected[name][0], **CLOSE)


def test_a_grid_world_is_walked_alike():
    env = GridWorld((7, 7), success_prob=0.9)
    rng = np.random.default_rng(1)
    C = jnp.asarray(rng.normal(size=49), jnp.float32)
    E = jnp.asarray(rng.uniform(0.9, 1.1, 5))  # at a wall some actions are the same: habits break the tie
    dense, ours = both(env.A[0], env.B[0], C, env.D[0], batch_size=8, E=E / E.sum())
    assert_same_rollout(dense, ours, env)


def test_a_noisy_world_is_walked_alike_from_categorical_observations():
    A, B = tables(3)
    D = np.random.default_rng(4).dirichlet(np.ones(N_STATES)).astype(np.float32)
    env = PymdpEnv(
        [jnp.asarray(A)], [jnp.asarray(B)], [jnp.asarray(D)], A_dependencies=[[0]], B_dependencies=[[0]],
        categorical_obs=True,
    )
    options = {"batch_size": 3, "policy_len": 2, "categorical_obs": True, "learning_mode": "offline", "gamma": 8.0}
    dense, ours = both(A, B, preferences(5), D, **options)
    assert_same_rollout(dense, ours, env)


# ---- step by step


@pytest.mark.parametrize(
    ("batch_size", "options"),
    [
        (1, {}),
        (3, {"use_states_info_gain": False, "policy_len": 3}),
        (3, {"use_utility": False, "policy_len": 2}),
        (
            3,
            {
                "policies": jnp.array([[[0], [2]], [[1], [1]], [[2], [0]]]),
                "policy_len": 2,
                "E": jnp.array([0.2, 0.5, 0.3]),
                "gamma": 3.0,
            },
        ),
    ],
    ids=["one agent", "utility", "information gain", "given policies and habits"],
)
def test_every_step_is_the_dense_one(batch_size, options):
    A, B = tables(batch_size)
    D = np.random.default_rng(7).dirichlet(np.ones(N_STATES)).astype(np.float32)
    dense, ours = both(A, B, preferences(6), D, batch_size=batch_size, **options)
    assert_same_walk(dense, ours, readings(8, batch_size))


def test_sampled_actions_are_the_dense_ones():
    A, B = tables(0)
    dense, ours = both(A, B, preferences(1), batch_size=3, action_selection="stochastic", alpha=2.0)
    *_, actions, _ = assert_same_walk(dense, ours, readings(2, 3, 12))
    assert len(np.unique(actions)) == N_ACTIONS


def test_without_jit_nor_options():
    A, B = tables(0)
    dense, ours = both(A, B)

    def step(agent):
        qs = agent.infer_states([jnp.array([4])], agent.D)
        q_pi, neg_efe = agent.infer_policies(qs)
        return qs[0], q_pi, neg_efe, agent.update_empirical_prior(agent.sample_action(q_pi), qs)[0]

    for found, expected in zip(step(ours), eqx.filter_jit(step)(dense), strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)


def test_what_no_state_shows_and_no_reading_at_all():
    A, B = tables(0)
    A = np.vstack([A, np.zeros((1, N_STATES), np.float32)])
    dense, ours = both(A, B, batch_size=3)
    prior = [jr.dirichlet(jr.PRNGKey(0), jnp.ones(N_STATES), (3,)).at[:, 5].set(0.0)]
    observation = [jnp.array([N_OBSERVATIONS, -1, 2])]
    found, expected = (
        eqx.filter_jit(lambda agent: agent.infer_states(observation, prior)[0])(agent) for agent in (ours, dense)
    )
    np.testing.assert_allclose(found, expected, **CLOSE)


def test_a_history_grows_up_to_its_horizon_and_its_last_belief_counts():
    A, B = tables(0)
    dense, ours = both(A, B, batch_size=3, inference_horizon=2)
    history = [jr.dirichlet(jr.PRNGKey(0), jnp.ones(N_STATES), (3, 2))]

    def step(agent):
        qs = agent.infer_states([jnp.arange(3)], agent.D, qs_hist=history)
        return qs[0], agent.infer_policies(qs)[1], agent.update_empirical_prior(jnp.array([[2], [0], [1]]), qs)[0]

    found, expected = step(ours), eqx.filter_jit(step)(dense)
    assert expected[0].shape == (3, 2, N_STATES)
    for our_part, dense_part in zip(found, expected, strict=True):
        np.testing.assert_allclose(our_part, dense_part, **CLOSE)


def test_the_prior_of_the_model_is_where_it_starts():
    A, B = tables(0)
    D = np.random.default_rng(7).dirichlet(np.ones(N_STATES))
    agent = SparseAgent(am.Model.from_pymdp(A, B, D), batch_size=2)
    np.testing.assert_allclose(agent.D[0], [D, D], rtol=1e-6)


# ---- from a dense agent


def test_a_dense_agent_with_preferences_of_its_own_per_batch_element_and_step():
    A, B = tables(0)
    rng = np.random.default_rng(1)
    dense = Agent(
        [jnp.broadcast_to(A, (3, *A.shape))],
        [jnp.broadcast_to(B, (3, *B.shape))],
        C=[preferences(2, 3, 2)],
        D=[jnp.asarray(rng.dirichlet(np.ones(N_STATES), size=3), jnp.float32)],
        E=jnp.asarray(rng.dirichlet(np.ones(9), size=3), jnp.float32),
        gamma=jnp.array([1.0, 2.0, 4.0]),
        alpha=jnp.array([3.0, 2.0, 1.0]),
        batch_size=3,
        policy_len=2,
        action_selection="stochastic",
        sampling_mode="marginal",
    )
    ours = SparseAgent.from_pymdp(dense)
    for name in ("C", "D", "E", "gamma", "alpha"):
        np.testing.assert_array_equal(*map(jax.tree.leaves, (getattr(ours, name), getattr(dense, name))))
    assert_same_walk(dense, ours, readings(3, 3))


def test_dense_agents_that_it_cannot_stand_in_for():
    A, B = tables(0)
    with pytest.raises(ValueError, match="an agent of 2 factors and 1 modalities given"):
        SparseAgent.from_pymdp(Agent([np.ones((2, 3, 4)) / 2], [np.eye(3)[..., None], np.eye(4)[..., None]]))
    with pytest.raises(ValueError, match="an agent of 1 factors and 2 modalities given"):
        SparseAgent.from_pymdp(Agent([A, A], [B]))
    with pytest.raises(ValueError, match="whose B differs between batch elements"):
        SparseAgent.from_pymdp(
            Agent([np.stack([A, A])], [jnp.stack([B, B[..., ::-1]])], batch_size=2)
        )
    with pytest.raises(ValueError, match="pA="):
        SparseAgent.from_pymdp(Agent([A], [B], pA=[A + 1], learn_A=True))
    with pytest.raises(ValueError, match="inference_algo='mmp' given"):
        SparseAgent.from_pymdp(Agent([A], [B], inference_algo="mmp"))


# ---- what it holds, and refuses


def test_no_array_of_a_step_is_as_large_as_a_dense_table():
    n_states, batch_size = 400, 5
    T, Z = reference.ring_tables(n_states, n_observations=6)
    agent = SparseAgent(am.Model([T, T.T], Z), batch_size=batch_size, policy_len=2)
    for rows in (agent.A[0], agent.B[0]):
        assert all(array.shape[-2] == n_states and array.shape[-1] <= 6 for array in rows)

    def step(observation, prior):
        qs = agent.infer_states([observation], prior)
        action = agent.sample_action(agent.infer_policies(qs)[0])
        return agent.update_empirical_prior(action, qs)

    text = str(jax.make_jaxpr(step)(jnp.zeros(batch_size, int), agent.D))
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in re.findall(r"\w+\d+\[([\d,]+)\]", text)]
    assert max(sizes) >= batch_size * n_states
    assert max(sizes) < n_states**2 / 8


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pA", [np.ones((1, N_OBSERVATIONS, N_STATES))]),
        ("pB", [np.ones((1, N_STATES, N_STATES, N_ACTIONS))]),
        ("use_param_info_gain", True),
        ("use_inductive", True),
        ("learn_A", True),
        ("learn_B", True),
        ("learn_C", True),
        ("learn_D", True),
        ("learn_E", True),
        ("inference_algo", "mmp"),
        ("inference_algo", "vmp"),
        ("inference_algo", "ovf"),
        ("inference_algo", "exact"),
    ],
)
def test_what_needs_dense_tables_is_refused(name, value):
    model = am.Model.from_pymdp(*tables(0))
    with pytest.raises(ValueError, match=rf"(?s){name}=.* use pymdp.agent.Agent"):
        SparseAgent(model, **{name: value})
    SparseAgent(model, **{name: FIXED[name]})


def test_shapes_that_do_not_fit_are_refused():
    model = am.Model.from_pymdp(*tables(0))
    with pytest.raises(ValueError, match=r"C of shape \(4,\) given; expected \(9,\) or \(2, 9\), or by step"):
        SparseAgent(model, C=np.ones(4), batch_size=2)
    with pytest.raises(ValueError, match=r"C of shape \(3, 9\) given"):
        SparseAgent(model, C=np.ones((3, 9)), batch_size=2)
    with pytest.raises(ValueError, match=r"D of shape \(2, 1, 24\) given; expected \(24,\) or \(2, 24\)$"):
        SparseAgent(model, D=np.ones((2, 1, 24)), batch_size=2)
    with pytest.raises(TypeError, match="A_matrix"):
        SparseAgent(model, A_matrix=None)


def test_observations_that_depend_on_the_action_are_refused():
    transitions, sensor = reference.random_tables(np.random.default_rng(0), 5, n_actions=2)
    with pytest.raises(ValueError, match="a table of observations for each action"):
        SparseAgent(am.Model(transitions, [sensor, sensor[::-1]]))


def test_calls_it_does_not_take_are_refused():
    agent = SparseAgent(am.Model.from_pymdp(*tables(0)))
    observation = [jnp.array([1])]
    with pytest.raises(ValueError, match="mask or return_info given"):
        agent.infer_states(observation, agent.D, return_info=True)
    with pytest.raises(ValueError, match="mask or return_info given"):
        agent.infer_states(observation, agent.D, mask=[jnp.array([1.0])])
    for prior in (agent.D[0], agent.D * 2):
        with pytest.raises(ValueError, match="must be a list of one array"):
            agent.infer_states(observation, prior)


def test_without_pymdp_it_says_what_to_install():
    script = "import sys; sys.modules['pymdp'] = None; import agentmem.integrations.pymdp_jax"
    ran = subprocess.run([sys.executable, "-c", script], env=same_environment(), capture_output=True, text=True)
    assert "ImportError: pymdp 1.0 or JAX is not installed: pip install 'agentmem-native[pymdp]'" in ran.stderr
