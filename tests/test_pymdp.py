"""SparseAgent acts, believes and draws as pymdp's own agent does: both play the same game, in a pass each.

pymdp, some of its worlds and SparseAgent draw from NumPy's global random stream, so every pass begins by seeding it:
as long as the actions are equal, so are the observations.
"""

import copy
import itertools
import pickle
import subprocess
import sys
import threading
import types

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
from reference import Traced, same_environment

pytest.importorskip("pymdp", reason="pymdp is not installed")

from pymdp.legacy import default_models, utils
from pymdp.legacy.agent import Agent
from pymdp.legacy.envs import GridWorldEnv, RandomDotMotion, SceneConstruction, TMazeEnv
from pymdp.legacy.envs.visual_foraging import (
    initialize_RDM_GM,
    initialize_scene_construction_GM,
)

from agentmem.integrations.gymnasium import model_from_env
from agentmem.integrations.pymdp import SparseAgent
from agentmem.profiler.worlds import position_sensor

objects = utils.obj_array_from_list

# ---- playing


def dense(qs):
    return [np.asarray(q, dtype=np.float64) for q in qs]


def play(agent, world, n_steps, seed, *, take_over_at=None):
    """What an agent believed, planned and did at each step; from `take_over_at` on a SparseAgent acts in its place.

    A world is a generator that yields (observation, whether an episode begins) and is sent the actions.
    """
    np.random.seed(seed)  # noqa: NPY002
    world, record, action = world(), [], None
    for step in range(n_steps):
        if step == take_over_at:
            agent = SparseAgent.from_pymdp(agent)
        observation, begins = world.send(action)
        if begins:
            agent.reset()
            agent.action = None
        qs = dense(agent.infer_states(observation))
        q_pi, G = agent.infer_policies()
        action = agent.sample_action()
        record.append(types.SimpleNamespace(qs=qs, q_pi=q_pi, G=G, action=action, seen=observation))
    return record, agent


def assert_same_game(record, expected, within=1e-9):
    for step, (now, then) in enumerate(zip(record, expected, strict=True)):
        assert np.array_equal(now.action, then.action), step
        assert now.seen == then.seen
        assert now.action.dtype == then.action.dtype
        for q, p in zip(now.qs, then.qs, strict=True):
            np.testing.assert_allclose(q, p, rtol=0, atol=within)
        np.testing.assert_allclose(now.q_pi, then.q_pi, rtol=0, atol=within)
        np.testing.assert_allclose(now.G, then.G, rtol=within, atol=within)


def assert_play_alike(dense_agent, agent, world, n_steps, *, seed=0, within=1e-9):
    expected, _ = play(dense_agent, world, n_steps, seed)
    drawn = np.random.random()  # noqa: NPY002
    record, _ = play(agent, world, n_steps, seed)
    drawn_too = np.random.random()  # noqa: NPY002
    assert_same_game(record, expected, within)
    assert drawn_too == drawn
    return record


# ---- worlds


def grid_world(sensor, shape=(7, 7), episode=25):
    """pymdp's grid, read by a sensor (S, S); the agent is put elsewhere now and then."""

    def world():
        env = GridWorldEnv(list(shape))
        rows = np.asarray(sensor)
        for step in itertools.count():
            if step % episode == 0:
                env.reset()
            reading = np.random.choice(len(rows), p=rows[env.state])  # noqa: NPY002
            action = yield [int(reading)], step % episode == 0
            env.step(int(action[0]))

    return world


def frozen_lake(env, sensor):
    def world():
        rng = np.random.default_rng(0)
        state, _ = env.reset(seed=0)
        begins = True
        while True:
            reading = rng.choice(sensor.shape[1], p=sensor[[state]].toarray().ravel())
            action = yield [int(reading)], begins
            state, _, terminated, truncated, _ = env.step(int(action[0]))
            if begins := terminated or truncated:
                state, _ = env.reset()

    return world


def t_maze(episode=4):
    def world():
        env = TMazeEnv()
        while True:
            seen = env.reset()
            for step in range(episode):
                action = yield [int(o) for o in seen], step == 0
                seen = env.step(action)

    return world


def scenes(mapping, episode=7):
    places, readings = mapping["action_names"], mapping["what_obs_names"]

    def world():
        for scene, config in itertools.product(mapping["scene_names"], ("1_2", "4_3")):
            env = SceneConstruction(scene_name=scene, config=config)
            seen = env.reset()
            for step in range(episode):
                action = yield [readings.index(seen[0]), places.index(seen[1])], step == 0
                seen = env.step(places[int(action[1])])

    return world


def dots(mapping, episode=8):
    """Who has stopped looking keeps seeing that: to the agent this is for ever, to pymdp's world it is not."""

    def world():
        for direction in itertools.cycle(mapping["motion_dir"]):
            env = RandomDotMotion(precision=2.0, dot_direction=direction, sampling_state="sample")
            seen = env.reset()
            for step in range(episode):
                readings = mapping["what_obs_names"].index(seen[0]), mapping["where_obs_names"].index(seen[1])
                action = yield list(readings), step == 0
                if seen[1] == "sampling":
                    seen = env.step(mapping["action_names"][int(action[1])])

    return world


def drawn_from(A, B, A_factor_list=None, B_factor_list=None, *, start=None, episode=1000):
    """A world that is as the tables say: it draws next states and observations from them."""
    of_a = A_factor_list or [list(range(len(B)))] * len(A)
    of_b = B_factor_list or [[f] for f in range(len(B))]

    def world():
        for step in itertools.count():
            if step % episode == 0:
                states = [utils.sample(np.full(len(b), 1 / len(b)) if start is None else start[f])
                          for f, b in enumerate(B)]  # fmt: skip
            seen = [utils.sample(a[(slice(None), *(states[f] for f in fs))]) for a, fs in zip(A, of_a, strict=True)]
            action = yield [int(o) for o in seen], step % episode == 0
            columns = [b[(slice(None), *(states[f] for f in fs), int(u))]
                       for b, fs, u in zip(B, of_b, action, strict=True)]  # fmt: skip
            states = [utils.sample(column) for column in columns]

    return world


# ---- tables


def random_table(rng, shape, zeros=0.0):
    """Probabilities along the first axis, about that share of them zero, the others not small."""
    table = rng.random(shape) + 0.1
    table *= rng.random(shape) >= zeros
    table[0] += table.sum(axis=0) == 0
    return table / table.sum(axis=0)


def one_factor(rng, n_states=6, n_obs=(4,), n_controls=3, zeros=0.4):
    A = objects([random_table(rng, (n, n_states), zeros) for n in n_obs])
    return A, objects([random_table(rng, (n_states, n_states, n_controls), zeros)])


SIZES, CONTROLS = (3, 4, 2), (2, 1, 3)
LISTS = {"A_factor_list": [[0], [0, 1], [2, 1], [2]], "B_factor_list": [[0], [1, 2], [0, 2]]}


def several_factors(rng, lists=LISTS, zeros=0.0):
    of_a, of_b = lists["A_factor_list"], lists["B_factor_list"]
    A = [random_table(rng, (n, *(SIZES[f] for f in fs)), zeros) for n, fs in zip((3, 2, 4, 3), of_a, strict=True)]
    B = [random_table(rng, (SIZES[f], *(SIZES[g] for g in fs), CONTROLS[f]), zeros) for f, fs in enumerate(of_b)]
    return objects(A), objects(B)


def preferences(rng, A, n_times=None):
    return objects([rng.normal(size=len(a) if n_times is None else (len(a), n_times)) for a in A])


def some_prior(rng, B):
    return objects([random_table(rng, len(b)) for b in B])


def some_goal(B, factor=0, state=1):
    """Only this state of this factor is a goal."""
    goal = [np.zeros(len(b)) for b in B]
    goal[factor][state] = 1.0
    return objects(goal)


def grid_model(rows, columns):
    """A grid where moves succeed, by sparse tables, under a noisy position sensor."""
    at = np.arange(rows * columns)
    y, x = np.divmod(at, columns)
    moves = []
    for dy, dx in ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)):
        to = np.clip(y + dy, 0, rows - 1) * columns + np.clip(x + dx, 0, columns - 1)
        moves.append(sparse.csr_array((np.ones(len(at)), (at, to)), shape=(len(at), len(at))))
    return am.Model(moves, position_sensor(rows, columns))


# ---- pymdp's worlds and gymnasium's


@pytest.mark.parametrize("sensor", [np.eye(49), position_sensor(7, 7).toarray()], ids=["exact", "noisy"])
def test_the_same_game_on_a_grid(sensor):
    env = GridWorldEnv([7, 7])
    C = np.zeros(49)
    C[24] = 3.0
    tables = sensor.T.copy(), env.get_transition_dist()
    agents = [kind(*tables, C=C, policy_len=2) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, grid_world(sensor), 200)
    assert len({int(step.action[0]) for step in record}) == 5


def test_the_same_game_on_a_frozen_lake():
    gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
    env, sensor = gymnasium.make("FrozenLake-v1", map_name="8x8", is_slippery=True), position_sensor(8, 8)
    model = model_from_env(env, sensor)
    C = np.where(env.unwrapped.desc.ravel() == b"H", -2.0, 0.0)
    C[63] = 4.0
    B = np.stack([model.transition(a).toarray().T for a in range(model.n_actions)], axis=-1)
    dense_agent = Agent(model.observation(0).toarray().T, B, C=C, D=model.belief().to_dense(), policy_len=2)
    agent = SparseAgent.from_model(model, C=C, policy_len=2)
    record = assert_play_alike(dense_agent, agent, frozen_lake(env, sensor), 200)
    assert len({int(step.action[0]) for step in record}) >= 3


def t_maze_tables():
    env = TMazeEnv()
    A, B = env.get_likelihood_dist(), env.get_transition_dist()
    C = utils.obj_array_zeros([len(a) for a in A])
    C[1][1], C[1][2] = 3.0, -3.0
    D = utils.obj_array_uniform(env.num_states)
    D[0] = utils.onehot(0, 4)
    return {"A": A, "B": B, "C": C, "D": D}


@pytest.mark.parametrize("policy_len", [1, 2])
def test_the_same_game_in_a_t_maze(policy_len):
    agents = [kind(**t_maze_tables(), policy_len=policy_len) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, t_maze(), 48, within=1e-8)
    assert len({int(step.action[0]) for step in record}) >= 2


def test_the_same_game_of_scenes():
    tables, mapping, _ = initialize_scene_construction_GM()
    agents = [kind(**tables, control_fac_idx=[1]) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, scenes(mapping), 56, within=1e-8)
    assert len({int(step.action[1]) for step in record}) >= 4


def test_the_same_game_of_dots():
    tables, mapping, _ = initialize_RDM_GM(A_precis=2.0, break_reward=2.0)
    agents = [kind(**tables, policy_len=2) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, dots(mapping), 100, within=1e-8)
    assert {int(step.action[1]) for step in record} == {0, 1}


def test_the_same_game_at_the_bandits():
    A, B, C, control_fac_idx = default_models.generate_epistemic_MAB_model()
    agents = [kind(A, B, C=C, control_fac_idx=control_fac_idx) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, drawn_from(A, B, episode=10), 60, within=1e-8)


# ---- the random stream


@pytest.mark.parametrize("sampling_mode", ["marginal", "full"])
@pytest.mark.parametrize("action_selection", ["deterministic", "stochastic"])
def test_the_same_dice(action_selection, sampling_mode):
    chosen = {"action_selection": action_selection, "sampling_mode": sampling_mode, "alpha": 0.5, "gamma": 1.0}
    A, B = one_factor(np.random.default_rng(3))
    agents = [kind(A, B, policy_len=2, **chosen) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, drawn_from(A, B), 40)
    assert action_selection == "deterministic" or len({int(step.action[0]) for step in record}) == 3
    agents = [kind(**t_maze_tables(), **chosen) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, t_maze(), 40, within=1e-8)


# ---- models at random, and every option

BY_HAND = [np.array(p) for p in ([[2]], [[0], [1]], [[0], [2]], [[0], [1], [2]], [[1], [1]], [[0], [1]])]
OPTIONS = {
    "nothing": lambda rng, A, B: {},
    "preferences": lambda rng, A, B: {"C": preferences(rng, A)},
    "preferences in time": lambda rng, A, B: {"C": preferences(rng, A, 3), "policy_len": 2},
    "utility alone": lambda rng, A, B: {"C": preferences(rng, A), "use_states_info_gain": False},
    "information alone": lambda rng, A, B: {"C": preferences(rng, A), "use_utility": False, "policy_len": 2},
    "neither": lambda rng, A, B: {"use_utility": False, "use_states_info_gain": False},
    "prior": lambda rng, A, B: {"D": some_prior(rng, B)},
    "certain prior": lambda rng, A, B: {"D": objects([utils.onehot(1, len(b)) for b in B])},
    "goal": lambda rng, A, B: {"H": some_goal(B), "ii_threshold": 0.3},
    "far goal": lambda rng, A, B: {"H": some_goal(B), "ii_depth": 2, "ii_threshold": 0.6, "policy_len": 2},
    "no way to the goal": lambda rng, A, B: {"H": some_goal(B), "ii_threshold": 1.0},
    "precision": lambda rng, A, B: {"C": preferences(rng, A), "gamma": 0.7, "alpha": 2.0, "num_controls": [
        b.shape[-1] for b in B]},
    "learning rates that nothing uses": lambda rng, A, B: {"lr_pA": 0.1, "use_BMA": False, "si_horizon": 9},
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_the_same_game_in_a_model_at_random(option, seed):
    rng = np.random.default_rng(seed)
    A, B = one_factor(rng, n_obs=((5,), (4, 3), (3, 4, 2))[seed])
    options = option(rng, A, B)
    agents = [kind(A, B, **options) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, drawn_from(A, B, start=options.get("D")), 15, seed=seed)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
def test_the_same_game_with_several_factors(option, seed):
    rng = np.random.default_rng(seed)
    A, B = several_factors(rng, zeros=0)
    options = option(rng, A, B)
    lists = LISTS
    if "H" in options:  # pymdp's backward induction knows factors that depend on themselves alone
        lists = {**LISTS, "B_factor_list": [[0], [1], [2]]}
        A, B = several_factors(rng, lists)
    agents = [kind(A, B, **lists, **options) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, drawn_from(A, B, **lists, start=options.get("D")), 8, seed=seed, within=1e-8)


# Among them the models where pymdp's mean field all but loses the true states, or believes in some it had ruled out.
@pytest.mark.parametrize(
    ("zeros", "seed"),
    [(0.3, 0), (0.3, 8), (0.6, 0), (0.6, 24), (0.6, 27), (0.6, 29), (0.6, 41), (0.6, 57), (0.6, 122), (0.6, 130)],
)
def test_the_same_game_with_several_factors_and_zeros(zeros, seed):
    rng = np.random.default_rng(seed)
    A, B = several_factors(rng, zeros=zeros)
    agents = [kind(A, B, **LISTS) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, drawn_from(A, B, **LISTS), 12, seed=seed, within=1e-8)


@pytest.mark.parametrize("selection", ["deterministic", "stochastic"])
@pytest.mark.parametrize("mode", ["marginal", "full"])
def test_policies_by_hand_with_a_prior(mode, selection):
    rng = np.random.default_rng(4)
    A, B = one_factor(rng)
    options = {"policies": BY_HAND, "E": np.array([0.1, 0.3, 0.2, 0.0, 0.15, 0.25]), "gamma": 2.0}
    options |= {"sampling_mode": mode, "action_selection": selection, "C": preferences(rng, A)}
    agents = [kind(A, B, **options) for kind in (Agent, SparseAgent)]
    assert_play_alike(*agents, drawn_from(A, B), 30)


def test_only_some_factors_are_controlled():
    A, B = several_factors(np.random.default_rng(5))
    policies = [np.array([[0, 0, u], [0, 0, v]]) for u in range(3) for v in range(3)]
    agents = [kind(A, B, **LISTS, control_fac_idx=[2], policies=policies) for kind in (Agent, SparseAgent)]
    record = assert_play_alike(*agents, drawn_from(A, B, **LISTS), 15, within=1e-8)
    assert {int(step.action[0]) for step in record} == {0}
    agents = [kind(A, B, **LISTS, control_fac_idx=[2]) for kind in (Agent, SparseAgent)]
    assert np.array_equal(agents[1].policies, agents[0].policies)
    assert agents[1].control_fac_idx == [2]


@pytest.mark.parametrize("case", ["one modality", "three modalities", "several factors"])
def test_readings_that_are_distributions(case):
    rng = np.random.default_rng(6)
    A, B = several_factors(rng) if case == "several factors" else one_factor(rng, n_obs=(4, 3, 2))
    A, lists = (A[:1], {}) if case == "one modality" else (A, LISTS if len(B) > 1 else {})
    agents = [kind(A, B, **lists) for kind in (Agent, SparseAgent)]
    for step in range(10):
        seen = objects([random_table(rng, len(a), zeros=0.3) for a in A])
        qs, same = (dense(agent.infer_states(seen, distr_obs=True)) for agent in agents)
        for q, p in zip(same, qs, strict=True):
            np.testing.assert_allclose(q, p, rtol=0, atol=1e-9)
        for agent in agents:
            agent.action = np.array([float(step % b.shape[-1]) for b in B])
    agent, same = (copy.deepcopy(agents[1]) for _ in range(2))
    certain = objects([utils.onehot(len(a) - 1, len(a)) for a in A])
    sure, read = agent.infer_states(certain, distr_obs=True), same.infer_states([len(a) - 1 for a in A])
    for q, p in zip(sure, read, strict=True):
        np.testing.assert_allclose(q.to_dense(), p.to_dense(), rtol=1e-14, atol=0)


def test_the_ways_to_give_one_reading_are_one():
    A, B = one_factor(np.random.default_rng(7))
    expected = SparseAgent(A, B).infer_states([1])[0].to_dense()
    for seen in (1, (1,), np.array([1]), np.int64(1), [np.int32(1)], [True]):
        assert np.array_equal(SparseAgent(A, B).infer_states(seen)[0].to_dense(), expected)
    weights = np.array([0.0, 1.0, 0.0, 0.0])
    for seen in (weights, [weights], objects([weights]), weights.tolist()):
        after = SparseAgent(A, B).infer_states(seen, distr_obs=True)[0].to_dense()
        np.testing.assert_allclose(after, expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("tables", [one_factor, several_factors])
def test_time_and_histories_are_pymdps(tables):
    rng = np.random.default_rng(8)
    A, B = tables(rng)
    lists = LISTS if len(B) > 1 else {}
    agents = [kind(A, B, **lists, save_belief_hist=True) for kind in (Agent, SparseAgent)]
    for agent in agents:
        play(agent, drawn_from(A, B, **lists), 6, seed=8)
    expected, agent = agents
    assert agent.curr_timestep == expected.curr_timestep == 6
    assert np.array_equal(agent.prev_actions, expected.prev_actions)
    assert len(agent.qs_hist) == len(expected.qs_hist) == 6
    for qs, same in zip(expected.qs_hist, agent.qs_hist, strict=True):
        for q, p in zip(qs, dense(same), strict=True):
            np.testing.assert_allclose(p, q, rtol=0, atol=1e-8)
    np.testing.assert_allclose(agent.q_pi_hist, expected.q_pi_hist, rtol=0, atol=1e-8)
    assert agent.step_time() == expected.step_time() == 7
    assert np.array_equal(agent.prev_actions, expected.prev_actions)
    init_qs = some_prior(rng, B)
    for agent in agents:  # the action stays: what is believed is what was believed before it
        agent.reset(init_qs)
    assert agent.curr_timestep == 0
    qs, same = (dense(agent.infer_states([1] * len(A))) for agent in agents)
    for q, p in zip(qs, same, strict=True):
        np.testing.assert_allclose(p, q, rtol=0, atol=1e-8)
    assert [b.storage for b in agents[1].reset()] == ["uniform"] * len(B)


def test_beliefs_and_actions_can_be_set():
    rng = np.random.default_rng(9)
    A, B = one_factor(rng)
    agents = [kind(A, B) for kind in (Agent, SparseAgent)]
    qs, D = some_prior(rng, B), some_prior(rng, B)
    results = []
    for agent in agents:
        agent.qs, agent.action, agent.D = qs, np.array([2.0]), D
        q_pi, G = agent.infer_policies()
        after = dense(agent.infer_states([0]))
        agent.action = None
        results.append([q_pi, G, *after, *dense(agent.infer_states([0]))])
    assert isinstance(agents[1].qs[0], am.SparseBelief)
    for expected, result in zip(*results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-9)


# ---- sparse in, nothing dense made


def sparse_forms(table, n_leading=1):
    """A (O, S1, ...) table in the forms that A takes, or a (S', S1, ..., U) one in those of B."""
    yield table
    yield am.SparseArray(table)
    for form in (sparse.csr_array, sparse.csc_matrix, sparse.coo_array):
        if n_leading:
            yield form(table.reshape(len(table), -1))
        else:
            yield [form(table[..., u].reshape(len(table), -1)) for u in range(table.shape[-1])]


@pytest.mark.parametrize("tables", [one_factor, several_factors])
def test_dense_and_sparse_tables_give_the_same_bits(tables):
    A, B = tables(np.random.default_rng(10), zeros=0.5)
    lists = LISTS if len(B) > 1 else {}
    C, world = preferences(np.random.default_rng(11), A), drawn_from(A, B, **lists)
    forms_of_a = zip(*(sparse_forms(a) for a in A), strict=True)
    forms_of_b = zip(*(sparse_forms(b, 0) for b in B), strict=True)
    results = []
    for a, b in zip(forms_of_a, forms_of_b, strict=True):
        record, agent = play(SparseAgent(list(a), list(b), C, **lists), world, 8, seed=10)
        results.append([(step.action.tobytes(), step.G.tobytes(), [q.tobytes() for q in step.qs]) for step in record])
        if len(B) == 1:
            agent = SparseAgent(a[0], b[0], C)  # the only ones may be given bare
        for table, same in [*zip(A, agent.A, strict=True), *zip(B, agent.B, strict=True)]:
            assert isinstance(same, am.SparseArray)
            assert np.array_equal(same.to_dense(), table)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize("kind", [list, am.SparseArray], ids=["scipy", "SparseArray"])
def test_no_dense_table_is_made_of_sparse_ones(kind):
    rows, columns = 50, 100
    model = grid_model(rows, columns)
    B, A = [model.transition(u).T for u in range(5)], sparse.csr_array(position_sensor(rows, columns).T)
    C = np.zeros(rows * columns)
    C[-1] = 1.0
    if kind is am.SparseArray:
        A = am.SparseArray(A)
        B = SparseAgent.from_model(model).B[0]
    SparseAgent(A, B, C)  # first uses: caches, workspaces
    with Traced() as traced:
        agent = SparseAgent(A, B, C)
        agent.infer_states([1234])
        agent.infer_policies()
        agent.sample_action()
    assert traced.peak < 10e6  # a dense A alone: 200e6
    assert agent.qs[0].nnz == 9


def test_sparse_tables_of_factors_stay_sparse():
    n = 400
    at = np.arange(n)
    moves = [sparse.csc_array((np.ones(n), ((at + step) % n, at)), shape=(n, n)) for step in (-1, 1)]
    place = sparse.eye_array(n, format="csc")
    with Traced() as traced:
        agent = SparseAgent([place, place], [moves, moves], A_factor_list=[[0], [1]])
        agent.infer_policies()
    assert traced.peak < 300_000  # a dense table alone: 1.28e6
    assert [q.mode() for q in agent.infer_states([1, 7])] == [1, 7]


@pytest.mark.parametrize("form", [sparse.csr_array, am.SparseArray, np.array])
@pytest.mark.parametrize("n_factors", [1, 2])
def test_tables_are_copied(n_factors, form):
    A = [form(np.array([[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]])) for _ in range(2)]
    steps = [np.eye(3), np.roll(np.eye(3), 1, axis=0)]
    B = [[form(step) for step in steps] if form is sparse.csr_array else form(np.stack(steps, axis=-1))] * n_factors
    given = [*A, *B[0]] if form is sparse.csr_array else [*A, B[0]]
    lists = {"A_factor_list": [[0], [n_factors - 1]]}
    agent = SparseAgent(A, B, **lists)
    expected = [q.tobytes() for q in dense(agent.infer_states([0, 1]))], agent.infer_policies()[1].tobytes()
    for table in given:
        table *= 0.5
    agent.reset()
    assert ([q.tobytes() for q in dense(agent.infer_states([0, 1]))], agent.infer_policies()[1].tobytes()) == expected
    assert agent.A[0].to_dense()[0].tolist() == [0.5, 1.0, 0.0]
    assert agent.B[0].to_dense()[0, 0].tolist() == [1.0, 0.0]


@pytest.mark.parametrize("n_factors", [1, 2])
def test_messy_sparse_tables_are_read_as_their_sums(n_factors):
    """Entries twice, out of order, and zeros that are stored."""
    values, rows = np.array([0.5, 0.25, 0.25, 0.0, 1.0, 1.0, 0.0]), np.array([1, 0, 0, 1, 0, 1, 0])
    messy = sparse.csc_array((values, rows, np.array([0, 3, 5, 7])), shape=(2, 3))
    values, columns = np.array([1.0, 0.25, 0.25, 1.0, 0.0, 0.5]), np.array([1, 0, 0, 2, 1, 0])
    by_rows = sparse.csr_array((values, columns, np.array([0, 3, 6])), shape=(2, 3))
    step = sparse.csr_array((np.full(6, 0.5), np.array([1, 1, 2, 2, 0, 0]), np.array([0, 2, 4, 6])), shape=(3, 3))
    results = []
    for tables in ([messy, by_rows], [messy.toarray(), by_rows.toarray()]):
        for moves in ([step, step], np.stack([step.toarray()] * 2, axis=-1)):
            agent = SparseAgent(tables, [moves] * n_factors, A_factor_list=[[0], [n_factors - 1]])
            qs = dense(agent.infer_states([0, 1]))
            results.append([*qs, agent.infer_policies()[1]])
    for result in results[1:]:
        for array, expected in zip(result, results[0], strict=True):
            np.testing.assert_allclose(array, expected, rtol=1e-14, atol=1e-300)


# ---- other kinds of numbers


def test_priors_may_be_beliefs_and_stay_as_they_are():
    rng = np.random.default_rng(26)
    for (A, B), lists in ((one_factor(rng), {}), (several_factors(rng), LISTS)):
        D = [am.SparseBelief(d, dtype=np.float32 if f == 1 else np.float64) for f, d in enumerate(some_prior(rng, B))]
        given = [b.to_dense() for b in D]
        agents = [SparseAgent(A, B, D=prior, **lists) for prior in (D, objects(D), objects(given))]
        results = [dense(agent.infer_states([0] * len(A))) for agent in agents]
        for result in results[1:]:
            assert all(np.array_equal(q, p) for q, p in zip(result, results[0], strict=True))
        assert all(np.array_equal(b, q) for b, q in zip(D, given, strict=True))
        assert all(b.dtype == np.float64 for agent in agents for b in (*agent.D, *agent.qs))


def test_a_model_of_float32_makes_an_agent_of_float32():
    whole = grid_model(8, 8)
    half = am.Model([whole.transition(u) for u in range(5)], position_sensor(8, 8), dtype=np.float32)
    C = np.linspace(0, 3, 64)
    agents = [SparseAgent.from_model(model, C=C, policy_len=2) for model in (whole, half)]
    for seen, action in ((9, 1), (10, 1), (11, 2), (19, 4), (19, 0)):
        (q, *plan), (p, *plan_too) = ((agent.infer_states([seen])[0], *agent.infer_policies()) for agent in agents)
        assert p.dtype == np.float32
        np.testing.assert_allclose(p.to_dense(), q.to_dense(), rtol=0, atol=1e-6)
        np.testing.assert_allclose(plan_too[1], plan[1], rtol=1e-5)
        assert plan_too[1].dtype == np.float64
        for agent in agents:
            agent.action = np.array([float(action)])


# ---- agents of agents


@pytest.mark.parametrize("case", ["one factor", "T-maze", "histories"])
def test_a_takeover_midway_changes_nothing(case):
    rng = np.random.default_rng(12)
    if case == "T-maze":
        make, world, within = lambda: Agent(**t_maze_tables(), policy_len=2), t_maze(), 1e-8
    else:
        A, B = one_factor(rng, n_obs=(4, 3))
        options = {"C": preferences(rng, A), "D": some_prior(rng, B), "policy_len": 2, "gamma": 2.0, "alpha": 3.0}
        options |= {"action_selection": "stochastic", "sampling_mode": "full", "E": random_table(rng, 9)}
        options |= {"save_belief_hist": case == "histories", "H": some_goal(B), "ii_depth": 3}
        make, world, within = lambda: Agent(A, B, **options), drawn_from(A, B), 1e-9
    for take_over_at in (0, 1, 6):
        expected, original = play(make(), world, 16, seed=12)
        record, agent = play(make(), world, 16, seed=12, take_over_at=take_over_at)
        assert isinstance(agent, SparseAgent)
        assert_same_game(record, expected, within)
        assert agent.curr_timestep == original.curr_timestep
        assert np.array_equal(agent.prev_actions, original.prev_actions)
        if case == "histories":
            assert len(agent.qs_hist) == len(agent.q_pi_hist) == 16
            np.testing.assert_allclose(agent.q_pi_hist, original.q_pi_hist, rtol=0, atol=within)


def test_a_takeover_leaves_the_original_alone_and_takes_options():
    A, B = one_factor(np.random.default_rng(13))
    _, original = play(Agent(A, B, save_belief_hist=True), drawn_from(A, B), 4, seed=13)
    before = pickle.dumps(original.__dict__)
    agent = SparseAgent.from_pymdp(original, prune=0.5, on_impossible="pymdp", gamma=1.0)
    assert (agent.prune, agent.on_impossible, agent.gamma) == (0.5, "pymdp", 1.0)
    play(agent, drawn_from(A, B), 4, seed=14)
    assert pickle.dumps(original.__dict__) == before


def test_a_takeover_does_not_believe_in_dust():
    """To pymdp every state has a probability of about 1e-16 at least."""
    A, B = one_factor(np.random.default_rng(14), n_states=60, n_obs=(9,), zeros=0.95)
    A[0] = random_table(np.random.default_rng(15), A[0].shape)  # rules nothing out
    D = utils.onehot(3, 60)
    _, original = play(Agent(A, B, D=D), drawn_from(A, B, start=[D]), 4, seed=14)
    _, fresh = play(SparseAgent(A, B, D=D), drawn_from(A, B, start=[D]), 4, seed=14)
    assert np.count_nonzero(original.qs[0]) == 60
    agent = SparseAgent.from_pymdp(original)
    assert agent.qs[0].nnz == fresh.qs[0].nnz < 60
    np.testing.assert_allclose(agent.qs[0].to_dense(), original.qs[0], rtol=0, atol=1e-9)


def test_agents_share_their_model():
    model = grid_model(6, 6)
    one, other = SparseAgent.from_model(model), SparseAgent.from_model(model)
    assert one._tables.model is other._tables.model is model
    assert (one.D[0] == model.belief()).all()
    assert one.num_states == [36]
    assert one.num_controls == [5]


@pytest.mark.parametrize("case", ["one factor", "several factors"])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
def test_copies_act_alike_and_alone(duplicate, case):
    rng = np.random.default_rng(16)
    A, B = (one_factor if case == "one factor" else several_factors)(rng)
    lists = {} if case == "one factor" else LISTS
    _, agent = play(SparseAgent(A, B, **lists, save_belief_hist=True), drawn_from(A, B, **lists), 5, seed=16)
    made = duplicate(agent)
    before = dense(agent.qs)
    seen = [0] * len(A)
    results = []
    for each in (made, agent):
        np.random.seed(16)  # noqa: NPY002
        after = [q.tobytes() for q in dense(each.infer_states(seen))]
        assert each is agent or all(np.array_equal(q, p) for q, p in zip(dense(agent.qs), before, strict=True))
        q_pi, G = each.infer_policies()
        results.append((after, q_pi.tobytes(), G.tobytes(), each.sample_action().tobytes()))
        assert (each.curr_timestep, len(each.prev_actions), len(each.qs_hist)) == (6, 6, 6)
    assert results[0] == results[1]
    made.E[:] = 0.0
    made.C = objects([np.ones(len(a)) for a in A])
    assert agent.E.all()
    assert not agent.C[0].any()


def test_a_hundred_copies_share_their_tables():
    agent = SparseAgent.from_model(grid_model(30, 30), policy_len=2, H=utils.onehot(899, 900))
    agent.reset([am.SparseBelief.point(900, 7)])
    agent.D = agent.qs
    copies = [copy.deepcopy(agent) for _ in range(100)]
    assert all(each._tables is agent._tables for each in copies)
    alone = am.footprint([agent]).total
    assert am.footprint([agent, *copies]).total - alone < 100 * 2000
    assert alone > 100_000
    assert copies[0].qs[0] is not agent.qs[0]


def test_threads_with_agents_over_the_same_tables():
    A, B = one_factor(np.random.default_rng(25), n_states=60, n_obs=(4, 5), zeros=0)
    first = SparseAgent(A, B, policy_len=3)
    readings = [[step % 4, step % 5] for step in range(6)]
    found = []

    def think(agent):
        for seen in readings:
            agent.infer_states(seen)
            q_pi, G = agent.infer_policies()
            agent.action = np.array([float(np.argmax(q_pi) % 3)])
            found.append((agent.qs[0].to_dense().tobytes(), G.tobytes()))

    alone = copy.deepcopy(first)
    think(alone)
    expected, found = found, []
    threads = [threading.Thread(target=think, args=(copy.deepcopy(first),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(2 * expected)


# ---- what agents know


def test_tables_and_preferences_are_as_given():
    rng = np.random.default_rng(17)
    A, B = several_factors(rng, zeros=0.4)
    C, D = preferences(rng, A, 4), some_prior(rng, B)
    agent = SparseAgent(A, B, C, D, **LISTS)
    for given, held in zip((A, B, C, D), (agent.A, agent.B, agent.C, agent.D), strict=True):
        assert held.dtype == object
        for table, same in zip(given, held, strict=True):
            assert np.array_equal(np.asarray(same), table)
    assert agent.A_factor_list == LISTS["A_factor_list"]
    assert agent.B_factor_list == LISTS["B_factor_list"]
    assert (agent.num_states, agent.num_controls) == ([*SIZES], [*CONTROLS])
    assert (agent.num_modalities, agent.num_factors) == (4, 3)


@pytest.mark.parametrize("tables", [one_factor, several_factors])
def test_preferences_change_when_all_are_set(tables):
    rng = np.random.default_rng(18)
    A, B = tables(rng)
    lists = LISTS if len(B) > 1 else {}
    agent, C = SparseAgent(A, B, **lists), preferences(rng, A)
    agent.infer_states([0] * len(A))
    before = agent.infer_policies()[1]
    with pytest.raises(ValueError, match="read-only"):
        agent.C[0][0] = 1.0
    agent.C = C
    expected = Agent(A, B, C=C, **lists)
    expected.infer_states([0] * len(A))
    for result, same in zip(agent.infer_policies(), expected.infer_policies(), strict=True):
        np.testing.assert_allclose(result, same, rtol=0, atol=1e-9)
    assert not np.allclose(agent.G, before)
    C[0][:] = 99.0  # the agent keeps its own
    np.testing.assert_array_equal(agent.infer_policies()[1], agent.G)
    kept = agent.C[0].copy()
    with pytest.raises(ValueError, match="C of modality 0 has shape"):
        agent.C = objects([np.zeros(9)] + [np.zeros(len(a)) for a in A[1:]])
    assert np.array_equal(agent.C[0], kept)


# ---- impossible observations


def impossible_game(n_modalities):
    """A model of one factor where modality 0 shows in which half the state is; moves stay in a half."""
    rng = np.random.default_rng(19)
    half = random_table(rng, (3, 3, 2))
    B = np.zeros((6, 6, 2))
    B[:3, :3], B[3:, 3:] = half, half
    halves = np.repeat(np.eye(3, 2), 3, axis=1)  # reading 2 never comes
    A = [halves] + [random_table(rng, (4, 6)) for _ in range(n_modalities - 1)]
    return objects(A), objects([B]), objects([np.array([0.5, 0.2, 0.3, 0, 0, 0])])


def impossible_game_of_factors():
    """A model of three factors where modality 3 shows the last of them, which stays as it is."""
    A, B = several_factors(np.random.default_rng(20))
    A[3] = np.eye(3, 2)
    B[2] = np.zeros((2, 3, 2, 3))
    B[2][0, :, 0], B[2][1, :, 1] = 1.0, 1.0
    D = some_prior(np.random.default_rng(20), B)
    D[2] = np.array([1.0, 0.0])
    return A, B, D


# Two readings of a half rule the other out for pymdp too: one leaves it 1e-16, which adds to the 1e-16 inside its logs.
HALVES = [0, 1, 1, 1, 0, 0, 0, 2, 0, 0, 1]
IMPOSSIBLE = {
    "one modality": (lambda: impossible_game(1), {}, [[half] for half in HALVES]),
    "two modalities": (lambda: impossible_game(2), {}, [[half, k % 4] for k, half in enumerate(HALVES)]),
    "several factors": (impossible_game_of_factors, LISTS, [[0, 0, 0, 0], [1, 0, 2, 1], [1, 0, 2, 0], [0, 1, 1, 2]]),
}


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize(("tables", "lists", "readings"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_an_impossible_observation_is_mixed_in_as_pymdp_does(tables, lists, readings, first):
    A, B, D = tables()
    agents = [Agent(A, B, D=D, **lists), SparseAgent(A, B, D=D, **lists, on_impossible="pymdp")]
    for seen in readings[first:]:
        qs, same = (dense(agent.infer_states(seen)) for agent in agents)
        for q, p in zip(same, qs, strict=True):
            np.testing.assert_allclose(q, p, rtol=0, atol=1e-9)
        for agent in agents:
            agent.action = np.array([1.0] if len(B) == 1 else [1.0, 0.0, 2.0])


def everything(agent):
    """All that an agent is, bit for bit."""
    return pickle.dumps([{name: [q.to_dense() for q in value] if name in ("_qs", "D") else value
                          for name, value in sorted(vars(agent).items()) if name != "_tables"}])  # fmt: skip


@pytest.mark.parametrize(
    ("case", "options", "possible", "impossible"),
    [
        ("one modality", {}, None, [1]),
        ("one modality", {}, [0], [1]),
        ("one modality", {}, [0], [2]),
        ("two modalities", {}, None, [1, 1]),
        ("two modalities", {}, [0, 1], [1, 1]),
        ("several factors", {}, None, [0, 0, 0, 1]),
        ("several factors", {}, [0, 0, 0, 0], [0, 0, 0, 2]),
        ("several factors", {"prune": 1e-9}, [0, 0, 0, 0], [0, 0, 0, 1]),
    ],
)
def test_an_impossible_observation_raises_and_changes_nothing(case, options, possible, impossible):
    tables, lists, _ = IMPOSSIBLE[case]
    A, B, D = tables()
    agent = SparseAgent(A, B, D=D, **lists, save_belief_hist=True, **options)
    if possible:
        agent.infer_states(possible)
        agent.infer_policies()
        agent.sample_action()
    before, qs = everything(agent), agent.qs
    with pytest.raises(am.ImpossibleObservation, match=r"observation \[.*\] after action .* on_impossible='pymdp'"):
        agent.infer_states(impossible)
    assert everything(agent) == before
    assert agent.qs is qs
    agent.infer_states(possible or [0, 0, 0, 0][: len(A)])


# ---- pruning


@pytest.mark.parametrize("n_modalities", [1, 2])
def test_pruned_beliefs_are_smaller_and_close(n_modalities):
    rows, columns = 12, 12
    model = grid_model(rows, columns)
    slip = np.stack([0.7 * model.transition(u).toarray().T for u in range(5)], axis=-1)
    B = slip + 0.3 * slip.mean(axis=-1, keepdims=True) / 0.7
    noise = 0.9 * position_sensor(rows, columns).toarray().T + 0.1 / 144
    A = objects([noise, random_table(np.random.default_rng(21), (3, 144))][:n_modalities])
    world = drawn_from(A, [B])
    exact, _ = play(SparseAgent(A, B, use_states_info_gain=False), world, 40, seed=21)
    readings = [step.seen for step in exact]
    pruned, whole = SparseAgent(A, B, prune=1e-6), SparseAgent(A, B)
    sizes = []
    for seen, step in zip(readings, exact, strict=True):
        after, q = pruned.infer_states(seen)[0], whole.infer_states(seen)[0]
        assert np.abs(after.to_dense() - q.to_dense()).sum() < 1e-4
        np.testing.assert_allclose(pruned.infer_policies()[1], whole.infer_policies()[1], rtol=0, atol=1e-3)
        assert after.values.min() >= 1e-6 * after.values.max()
        sizes.append(after.nnz)
        pruned.action = whole.action = step.action
    assert whole.qs[0].nnz == 144
    assert np.mean(sizes[5:]) < 100


def test_with_factors_pruning_drops_too():
    A, B = several_factors(np.random.default_rng(22))
    exact, pruned = SparseAgent(A, B, **LISTS), SparseAgent(A, B, **LISTS, prune=0.2)
    for before, after in zip(exact.infer_states([0] * 4), pruned.infer_states([0] * 4), strict=True):
        kept = np.where(before.to_dense() >= 0.2 * before.values.max(), before.to_dense(), 0)
        np.testing.assert_allclose(after.to_dense(), kept / kept.sum(), rtol=1e-12)


# ---- what is refused

TWO = np.eye(2)
UNSUPPORTED = {
    "pA": [TWO, objects([TWO, TWO])],
    "pB": [np.ones((2, 2, 2)), objects([np.ones((2, 2, 2))])],
    "pD": [np.ones(2), objects([np.ones(2)])],
    "inference_algo": ["MMP"],
    "inference_horizon": [2],
    "policy_sep_prior": [True],
    "sophisticated": [True],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, each in UNSUPPORTED.items() for value in each])
def test_options_that_are_not_supported_say_who_does(name, value):
    A, B = one_factor(np.random.default_rng(23))
    for make in (lambda: SparseAgent(A, B, **{name: value}),
                 lambda: SparseAgent.from_model(grid_model(2, 2), **{name: value})):  # fmt: skip
        with pytest.raises(NotImplementedError, match=rf"^{name}.* given: .*pymdp\.legacy\.agent\.Agent does that"):
            make()


def test_an_agent_of_pymdp_that_does_more_is_not_taken_over():
    A, B = one_factor(np.random.default_rng(23))
    learner = Agent(A, B, pA=utils.dirichlet_like(A))
    with pytest.raises(NotImplementedError, match=r"^pA given: .*pymdp\.legacy\.agent\.Agent does that"):
        SparseAgent.from_pymdp(learner)
    with pytest.raises(NotImplementedError, match=r"^inference_algo='MMP'"):
        SparseAgent.from_pymdp(Agent(A, B, inference_algo="MMP", inference_horizon=2))


def test_factors_without_a_backward_induction():
    A, B = several_factors(np.random.default_rng(24))
    with pytest.raises(NotImplementedError, match="factor depends on others"):
        SparseAgent(A, B, **LISTS, H=some_goal(B))


A3, B3 = np.array([[0.5, 0.9, 0.1], [0.5, 0.1, 0.9]]), np.stack([np.eye(3), np.eye(3)[::-1]], axis=-1)
WRONG = {
    "A of too few states": ({"A": A3[:, :2] * 1.0}, r"A\[0\] is over 2 joint states; expected 3"),
    "A with one axis": ({"A": np.ones(3)}, r"A of shape \(3,\)"),
    "A not normalised": ({"A": A3 * 2}, "state 0: row sums to 2"),
    "A negative": ({"A": A3 - 0.2}, "-0.1.*not negative"),
    "A with nan": ({"A": A3 * np.nan}, "nan"),
    "second A not normalised": ({"A": [A3, A3 * 2]}, r"A of modality 1, state \(0,\): sums to 2"),
    "second A negative": ({"A": [A3, A3 - 0.2]}, "A of modality 1: entry -0.1"),
    "second A with nan": ({"A": [A3, A3 * np.nan]}, "A of modality 1: entry nan"),
    "no A": ({"A": []}, "A of 0 modalities"),
    "no B": ({"B": []}, "0 factors"),
    "B without controls": ({"B": np.eye(3)}, r"B of shape \(3, 3\)"),
    "B not square": ({"B": B3[:2]}, r"B\[0\] is over 3 joint states; expected 2|A\[0\] is over 3"),
    "B not normalised": ({"B": B3 / 2}, "row sums to 0.5"),
    "a factor too many": ({"B": [B3, B3]}, r"A\[0\] is over 3 joint states; expected 9, those of factors \[0, 1\]"),
    "unknown factor of A": ({"A_factor_list": [[1]]}, r"A_factor_list=\[\[1\]\] given; expected factors below 1"),
    "A_factor_list too long": ({"A_factor_list": [[0], [0]]}, "A_factor_list"),
    "empty A_factor_list": ({"A_factor_list": [[]]}, "A_factor_list"),
    "unknown factor of B": ({"B_factor_list": [[3]]}, "B_factor_list"),
    "C too short": ({"C": np.zeros(3)}, r"C of modality 0 has shape \(3,\); expected \(2,\)"),
    "C of one modality too many": ({"C": objects([np.zeros(2)] * 2)}, "C of 2 arrays given; expected 1"),
    "C of too few times": ({"C": np.zeros((2, 1)), "policy_len": 2}, r"C of modality 0 has shape \(2, 1\)"),
    "C with nan": ({"C": np.array([0, np.nan])}, "nan; expected finite"),
    "D too short": ({"D": np.ones(2) / 2}, r"belief about factor 0 of shape \(2,\) given; expected \(3,\)"),
    "D negative": ({"D": np.array([-1.0, 1, 1])}, "-1.0 at index 0"),
    "D not normalised": ({"D": np.ones(3)}, "sum"),
    "D of one factor too many": ({"D": objects([np.ones(3) / 3] * 2)}, "D of 2 arrays given; expected 1"),
    "E too short": ({"E": np.ones(1)}, r"E of shape \(1,\) given; expected \(2,\)"),
    "E negative": ({"E": np.array([1.5, -0.5])}, "E of .* at least 0"),
    "E with nan": ({"E": np.array([1.0, np.nan])}, "E of .* finite"),
    "H too short": ({"H": np.ones(2)}, r"H of shape \(2,\) given; expected \(3,\)"),
    "H of one factor too many": ({"H": objects([np.ones(3)] * 2)}, "H of 2 arrays given; expected 1"),
    "num_controls": ({"num_controls": [3]}, r"num_controls=\[3\] given; B has \[2\]"),
    "unknown controlled factor": ({"control_fac_idx": [1]}, r"control_fac_idx=\[1\] given"),
    "no policy": ({"policies": []}, "no policies"),
    "an empty policy": ({"policy_len": 0}, r"policy 0 of shape \(0, 1\)"),
    "a policy for another number of factors": ({"policies": [np.zeros((1, 2))]}, r"policy 0 of shape \(1, 2\)"),
    "a policy of unknown controls": ({"policies": [np.array([[2]])]}, "policy 0 has controls beyond"),
    "a policy of negative controls": ({"policies": [np.array([[-1]])]}, "policy 0 has controls beyond"),
    "a policy of fractions": ({"policies": [np.array([[0.5]])]}, "whole numbers"),
    "action_selection": ({"action_selection": "best"}, "action_selection='best' given; expected one of 'determ"),
    "sampling_mode": ({"sampling_mode": "half"}, "sampling_mode='half' given"),
    "on_impossible": ({"on_impossible": "predict"}, "on_impossible='predict' given; expected one of 'raise', 'pymdp'"),
    "prune": ({"prune": 1.0}, "prune=1.0 given; expected at least 0 and below 1"),
}


@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        SparseAgent(**{"A": A3, "B": B3, **change})


def test_unknown_arguments_are_named():
    with pytest.raises(TypeError, match=r"unexpected arguments \['policy_length'\]"):
        SparseAgent(A3, B3, policy_length=2)
    with pytest.raises(TypeError, match=r"model of type ndarray given; expected an agentmem.Model"):
        SparseAgent.from_model(A3)
    transition = [np.eye(2)] * 2
    with pytest.raises(ValueError, match="observations depend on the action"):
        SparseAgent.from_model(am.Model(transition, [np.eye(2), np.full((2, 2), 0.5)]))


OBSERVATIONS = {
    "out of range": ([2], {}, "modality 0: observation 2 given; expected 0 to 1"),
    "negative": ([-1], {}, "observation -1 given"),
    "too many": ([0, 0], {}, "observation of 2 readings given; expected 1"),
    "none": ([], {}, "observation of 0 readings given; expected 1"),
    "a fraction": ([0.5], {}, "modality 0: observation 0.5 given; expected an int"),
    "a word": (["a"], {}, "observation 'a' given; expected an int"),
    "nothing": (None, {}, "observation None given; expected an int"),
    "a short distribution": ([[1.0]], {"distr_obs": True}, r"modality 0: .* expected \(2,\)"),
    "a negative distribution": ([[1.0, -0.5]], {"distr_obs": True}, "modality 0: .* at least 0"),
    "a distribution of nan": ([[1.0, np.nan]], {"distr_obs": True}, "modality 0: .*nan"),
    "a distribution of nothing": ([[0.0, 0.0]], {"distr_obs": True}, "modality 0"),
    "a distribution too many": ([[0.5, 0.5]] * 2, {"distr_obs": True}, "observation of 2"),
}


@pytest.mark.parametrize(("seen", "how", "says"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_a_wrong_observation_changes_nothing(seen, how, says):
    agent = SparseAgent(A3, B3, save_belief_hist=True)
    for _ in range(2):
        before = everything(agent)
        with pytest.raises((TypeError, ValueError), match=says):
            agent.infer_states(seen, **how)
        assert everything(agent) == before
        agent.infer_states([1])
        agent.infer_policies()
        agent.sample_action()


@pytest.mark.parametrize("action", [np.array([2.0]), np.array([-1.0]), np.array([0.0, 0.0]), np.array([])])
def test_a_wrong_action_is_refused(action):
    agent = SparseAgent(A3, B3)
    agent.action = action
    with pytest.raises(ValueError, match=r"action \[.*\] given; expected"):
        agent.infer_states([0])


@pytest.mark.parametrize("qs", [np.ones(2) / 2, [np.ones(3) / 3] * 2, [np.array([np.nan, 1, 1])], [np.zeros(3)]])
def test_wrong_beliefs_are_refused_and_change_nothing(qs):
    agent = SparseAgent(A3, B3)
    agent.infer_states([0])
    agent.infer_policies()
    agent.sample_action()
    before = everything(agent)
    for change in (lambda: agent.reset(qs), lambda: setattr(agent, "qs", qs)):
        with pytest.raises(ValueError, match="expected"):
            change()
        assert everything(agent) == before


def test_without_pymdp_it_says_what_to_install():
    code = (
        "import sys; sys.modules['pymdp'] = None\n"
        "try: import agentmem.integrations.pymdp\n"
        "except ImportError as error: print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=same_environment()
    )
    assert shown.stdout.strip() == "pymdp is not installed: pip install 'agentmem-native[pymdp]'"


# ---- what is set later


def two_policies():
    return [np.array([[0]]), np.array([[1]])], [np.array([[1]]), np.array([[0]])]


@pytest.mark.parametrize("others", [two_policies()[1], [np.array([[1], [1]])]], ids=["reversed", "longer"])
def test_other_policies_count_at_once(others):
    A, B = one_factor(np.random.default_rng(30), n_states=4, n_obs=(3,))
    C = np.array([0.0, 1.0, 3.0])
    agent = SparseAgent(A, B, C=C, policies=two_policies()[0])
    agent.infer_states([1])
    agent.infer_policies()
    agent.policies = others
    fresh = SparseAgent(A, B, C=C, policies=others)
    fresh.infer_states([1])
    assert agent.infer_policies()[1].tolist() == fresh.infer_policies()[1].tolist()
    assert agent.E.tolist() == fresh.E.tolist()


def test_what_was_given_may_change_afterwards():
    A, B = one_factor(np.random.default_rng(31), n_states=4, n_obs=(3,))
    D, E, policies = am.SparseBelief.uniform(4), np.array([0.3, 0.7]), two_policies()[0]
    agent, expected = (SparseAgent(A, B, D=[D], E=E, policies=policies) for _ in range(2))
    D.correct(np.array([0.0, 1.0, 0.0, 1.0]))
    E[:], policies[0][:] = 0.5, 1
    assert agent.infer_states([1])[0].tolist() == expected.infer_states([1])[0].tolist()
    assert agent.D[0].tolist() == [0.25] * 4 and agent.E.tolist() == [0.3, 0.7] and agent.policies[0].tolist() == [[0]]


@pytest.mark.parametrize("name", ["C", "D", "qs"])
def test_parts_are_not_replaced_one_by_one(name):
    A, B = one_factor(np.random.default_rng(32), n_states=4, n_obs=(3,))
    agent = SparseAgent(A, B)
    with pytest.raises(ValueError, match="read-only"):
        getattr(agent, name)[0] = np.ones(4) / 4


def test_a_takeover_may_change_what_the_agent_has():
    A, B = one_factor(np.random.default_rng(33), n_states=4, n_obs=(3,))
    original = Agent(A, B, E=np.array([0.3, 0.7]), policies=two_policies()[0])
    agent = SparseAgent.from_pymdp(original, policy_len=2, C=[np.array([0.0, 1.0, 2.0])], H=[np.array([0.0, 0, 0, 1])])
    assert len(agent.policies) == 9 and agent.E.tolist() == [1 / 9] * 9
    assert agent.C[0].tolist() == [0, 1, 2] and agent.I is not None


def test_preferences_over_time_may_reach_further_than_policies():
    A, B = one_factor(np.random.default_rng(35), n_states=4, n_obs=(3, 2))
    C = objects([np.arange(6.0).reshape(3, 2), np.array([[0.0, 2.0, 1.0], [1.0, 0.0, 3.0]])])
    agents = [kind(A, B, C=C, policy_len=2) for kind in (Agent, SparseAgent)]
    for agent in agents:
        agent.infer_states([1, 0])
    expected, found = (agent.infer_policies()[1] for agent in agents)
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["sampling_mode", "action_selection"])
def test_choices_are_checked_when_they_count(name):
    A, B = one_factor(np.random.default_rng(34), n_states=4, n_obs=(3,))
    agent = SparseAgent(A, B)
    agent.infer_states([1])
    agent.infer_policies()
    setattr(agent, name, "nonsense")
    with pytest.raises(ValueError, match=f"{name}='nonsense' given"):
        agent.sample_action()
    assert agent.action is None and agent.curr_timestep == 0


def test_pruning_waits_for_all_modalities():
    """The second modality favours the state that the first one makes improbable."""
    A = objects([np.array([[0.999, 0.001], [0.001, 0.999]]), np.array([[1e-6, 1 - 1e-6], [1 - 1e-6, 1e-6]])])
    B = np.eye(2)[:, :, np.newaxis].repeat(2, axis=2)
    agent = SparseAgent(A, B, prune=0.01)
    agent.action = np.array([0.0])
    assert agent.infer_states([0, 0])[0].nnz == 1
    assert agent.qs[0].mode() == 1


def test_other_kinds_of_arrays_are_read_as_numpys():
    """JAX's, nested lists, a matrix for each control: never with axes mistaken."""
    jnp = pytest.importorskip("jax.numpy")
    A, B = np.eye(4) * 0.9 + 0.025, np.zeros((4, 4, 3))
    for u in range(3):
        B[(np.arange(4) + u) % 4, np.arange(4), u] = 1
    forms = [
        (jnp.array(A), jnp.array(B)),
        ([jnp.array(A)], [jnp.array(B)]),
        ([A], [B.tolist()]),
        ([A.tolist()], [B]),
        ([A], [[B[:, :, u] for u in range(3)]]),
        ([A], [B[:, :, u] for u in range(3)]),
    ]
    for a, b in forms:
        agent = SparseAgent(a, b)
        np.testing.assert_allclose(np.asarray(agent.A[0]), A, atol=1e-7)
        assert np.asarray(agent.B[0]).tolist() == B.tolist()


def test_too_many_policies_are_not_begun():
    A, B = one_factor(np.random.default_rng(36), n_states=4, n_obs=(3,))
    with pytest.raises(ValueError, match=r"policy_len=20 makes [\d,]+ policies .* pass those that count as policies="):
        SparseAgent(A, B, policy_len=20)


@pytest.mark.parametrize("agent", [None, object()])
def test_only_agents_of_this_half_are_taken_over(agent):
    with pytest.raises(TypeError, match=r"expected a pymdp\.legacy\.agent\.Agent"):
        SparseAgent.from_pymdp(agent)


@pytest.mark.parametrize("reading", [0.5, "a", None, [1], np.array([1.0, 0.0])])
def test_readings_that_are_no_ints_say_so(reading):
    A, B = one_factor(np.random.default_rng(37), n_states=4, n_obs=(3, 2))
    with pytest.raises(TypeError, match=r"modality 1: observation .* given; expected an int"):
        SparseAgent(A, B).infer_states([0, reading])


def test_a_population_plans_as_its_agents():
    A, B = one_factor(np.random.default_rng(38), n_states=9, n_obs=(4,))
    C = np.array([0.0, 1.0, 3.0, -1.0])
    model = am.Model.from_pymdp(A, B)
    agents = [SparseAgent.from_model(model, C=C, policy_len=2) for _ in range(4)]
    population = am.Population.from_beliefs(
        model, [agent.infer_states([k])[0] for k, agent in enumerate(agents)], prune=0.0
    )
    policies = [policy[:, 0] for policy in agents[0].policies]
    expected = [agent.infer_policies()[1] for agent in agents]
    np.testing.assert_allclose(population.expected_free_energy(policies, C), expected, atol=1e-12)
