"""Compiled models and sparse histograms of pomdp-py do what its own models and histograms do, dice included."""

import copy
import itertools
import math
import pickle
import random
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import agentmem as am
from reference import masses, same_environment

pomdp_py = pytest.importorskip("pomdp_py", reason="pomdp-py is not installed")

from pomdp_py import SimpleAction, SimpleObservation, SimpleState  # noqa: E402
from pomdp_py.problems.rocksample import rocksample_problem as rocksample  # noqa: E402
from pomdp_py.problems.tiger import tiger_problem as tiger  # noqa: E402

from agentmem.integrations.pomdp_py import Space, SparseHistogram, compile_model  # noqa: E402

# ---- worlds: pomdp-py's own two, and a grid whose robot slips and misreads


def tiger_game(seed):
    return tiger.TigerProblem.create(state=("tiger-left", "tiger-right")[seed % 2])


def rocksample_game(seed, n=3, k=3):
    random.seed(seed)
    start, places = rocksample.RockSampleProblem.generate_instance(n, k)
    rocks = list(itertools.product(["good", "bad"], repeat=k))
    states = [rocksample.State((x, y), kinds, x == n) for x in range(n + 1) for y in range(n) for kinds in rocks]
    prior = {state: float(state.position == start.position) / len(rocks) for state in states}
    return rocksample.RockSampleProblem(n, k, start, places, pomdp_py.Histogram(prior))


# RockSample's sensor has probabilities of good, bad and nothing that sum to more than 1.
ROCKSAMPLE = {"observations": [rocksample.Observation(q) for q in ("good", "bad", None)], "row_tolerance": 0.5}
MOVES = {"north": (0, -1), "south": (0, 1), "east": (1, 0), "west": (-1, 0)}


class GridTransition(pomdp_py.TransitionModel):
    def __init__(self, size):
        self.size, self.asked, self.reached = size, 0, {}
        for (x, y), name in itertools.product(itertools.product(range(size), repeat=2), MOVES):
            cells = self.reached[(x, y), name] = Counter()
            for k, share in enumerate((0.125, 0.75, 0.125)):  # it stays, moves on, or slides one further
                dx, dy = MOVES[name]
                cells[min(max(x + k * dx, 0), size - 1), min(max(y + k * dy, 0), size - 1)] += share

    def successors(self, state, action):
        return map(SimpleState, self.reached[state.data, action.name])

    def probability(self, next_state, state, action):
        self.asked += 1
        return self.reached[state.data, action.name].get(next_state.data, 0.0)

    def get_all_states(self):
        return [SimpleState(cell) for cell in itertools.product(range(self.size), repeat=2)]


class GridObservation(pomdp_py.ObservationModel):
    def probability(self, observation, next_state, action):
        """The row's number modulo 4, or one too many."""
        return {0: 0.75, 1: 0.25}.get((observation.data - next_state.data[1]) % 4, 0.0)

    def get_all_observations(self):
        return {SimpleObservation(reading) for reading in range(4)}


class Actions(pomdp_py.RolloutPolicy):
    def get_all_actions(self, state=None, history=None):
        return [SimpleAction(name) for name in MOVES]


def grid_agent(size, prior=None):
    belief = None if prior is None else pomdp_py.Histogram(prior)
    return pomdp_py.Agent(belief, Actions(), GridTransition(size), GridObservation(), pomdp_py.RewardModel())


def theirs(agent, histogram, action, observation):
    return pomdp_py.update_histogram_belief(
        histogram, action, observation, agent.observation_model, agent.transition_model
    )


def largest_difference(histogram, other):
    assert list(histogram) == list(other)
    return max(abs(histogram[state] - other[state]) for state in other)


# ---- the same games


def play(problem, update, steps, seed):
    """What an agent with this belief update did, saw and believed."""
    agent, env, log = problem.agent, problem.env, []
    planner = pomdp_py.POUCT(
        max_depth=6, num_sims=150, exploration_const=20, rollout_policy=agent.policy_model, discount_factor=0.95
    )
    random.seed(seed)
    for step in range(steps):
        action = planner.plan(agent)
        if step % 3 == 1:  # now and then another one, for variety
            action = random.choice(list(agent.tree.children))
        env.state_transition(action, execute=True)
        observation = env.provide_observation(agent.observation_model, action)
        agent.update_history(action, observation)
        planner.update(agent, action, observation)
        agent.set_belief(update(agent.belief, action, observation))
        log.append((action, observation, agent.belief))
    return log, random.getstate()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("game", "options", "steps"), [(tiger_game, {}, 30), (rocksample_game, ROCKSAMPLE, 8)])
def test_planners_play_the_same_game(game, options, steps, seed):
    before, after = game(seed), game(seed)
    compiled = compile_model(after, **options)
    after.agent.set_belief(compiled.belief(), prior=True)
    expected, dice = play(before, lambda *step: theirs(before.agent, *step), steps, seed)
    played, same_dice = play(after, compiled.update, steps, seed)
    assert [step[:2] for step in played] == [step[:2] for step in expected]
    assert same_dice == dice
    for (_, _, belief), (_, _, histogram) in zip(played, expected, strict=True):
        assert type(belief) is SparseHistogram
        assert largest_difference(belief, histogram) < 1e-9
        assert histogram[belief.mpe()] > histogram[histogram.mpe()] - 1e-9


@pytest.mark.parametrize(("left", "best"), [(0.99, "open-right"), (0.5, "listen")])
def test_value_iteration_takes_it_too(left, best):
    for kind in (SparseHistogram, pomdp_py.Histogram):
        problem = tiger_game(0)
        belief = {tiger.TigerState("tiger-left"): left, tiger.TigerState("tiger-right"): 1 - left}
        problem.agent.set_belief(kind(belief), prior=True)
        assert pomdp_py.ValueIteration(horizon=2, discount_factor=0.95).plan(problem.agent).name == best


def test_a_thousand_states_of_a_grid():
    agent = grid_agent(32)
    states = agent.transition_model.get_all_states()
    compiled = compile_model(agent, successors=agent.transition_model.successors)
    rng = np.random.default_rng(0)
    prior = dict(zip(states, rng.dirichlet(np.ones(1024)).tolist(), strict=True))
    action, observation = SimpleAction("east"), SimpleObservation(2)
    expected = theirs(agent, pomdp_py.Histogram(prior), action, observation)
    assert largest_difference(compiled.update(prior, action, observation), expected) < 1e-15


def test_steps_on_a_grid_with_true_zeros():
    agent = grid_agent(5)
    compiled = compile_model(agent)
    histogram = pomdp_py.Histogram({state: float(state.data == (2, 2)) for state in compiled.states})
    belief = compiled.belief(histogram)
    rng, impossible = random.Random(1), 0
    for _ in range(12):
        action, options = rng.choice(compiled.actions), []
        for observation in compiled.observations:
            after = theirs(agent, histogram, action, observation)
            if any(after[state] for state in after):
                options.append((observation, after))
            else:
                with pytest.raises(am.ImpossibleObservation) as raised:
                    compiled.update(belief, action, observation)
                assert repr(observation) in str(raised.value)
                assert repr(action) in str(raised.value)
                impossible += 1
        observation, histogram = rng.choice(options)
        before = belief.get_histogram()
        belief, previous = compiled.update(belief, action, observation), belief
        assert previous.get_histogram() == before
        assert largest_difference(belief, histogram) < 1e-15
        assert belief.belief.nnz == sum(histogram[state] > 0 for state in histogram)
        assert all(belief.random(random.Random(k)) == histogram.random(random.Random(k)) for k in range(20))
    assert impossible > 3


def test_prune_drops_the_small_ones_of_one_update():
    compiled = compile_model(grid_agent(6))
    action, observation = SimpleAction("south"), SimpleObservation(1)
    exact = compiled.update(compiled.belief(), action, observation)
    pruned = compiled.update(compiled.belief(), action, observation, prune=0.4)
    expected = exact.belief
    assert 0 < expected.prune(relative=0.4) < 0.6
    assert np.allclose(pruned.belief.to_dense(), expected.to_dense(), atol=1e-15)


def test_float32_tables_give_float32_beliefs():
    agent = grid_agent(6)
    compiled = compile_model(agent, dtype=np.float32)
    action, observation = SimpleAction("south"), SimpleObservation(1)
    belief = compiled.update(compiled.update(compiled.belief(), action, observation), action, observation)
    histogram = pomdp_py.Histogram(compiled.belief().get_histogram())
    histogram = theirs(agent, theirs(agent, histogram, action, observation), action, observation)
    assert belief.belief.dtype == compiled.belief({belief.mpe(): 1}).belief.dtype == np.float32
    assert largest_difference(belief, histogram) < 2e-7


# ---- a histogram like any other


@given(masses(), st.integers(0, 2**32))
def test_dice_fall_as_for_a_histogram(cells, seed):
    probabilities = dict(enumerate((cells / cells.sum()).tolist()))
    belief, histogram = SparseHistogram(probabilities), pomdp_py.Histogram(probabilities)
    dice, same_dice = random.Random(seed), random.Random(seed)
    assert [belief.random(dice) for _ in range(9)] == [histogram.random(same_dice) for _ in range(9)]
    assert dice.getstate() == same_dice.getstate()
    random.seed(seed)
    drawn = histogram.random()
    random.seed(seed)
    assert belief.random() == drawn


@given(masses())
def test_it_answers_as_a_histogram(cells):
    probabilities = {f"state {i}": p for i, p in enumerate(cells.tolist())}
    belief, histogram = SparseHistogram(probabilities), pomdp_py.Histogram(probabilities)
    assert isinstance(belief, pomdp_py.Histogram)
    assert list(belief) == list(histogram)
    assert len(belief) == len(histogram)
    assert belief.histogram == belief.get_histogram() == histogram.histogram
    assert str(belief) == str(histogram)
    assert belief.mpe() == belief.argmax() == histogram.mpe()
    assert belief.is_normalized() == histogram.is_normalized()
    assert belief.is_normalized(epsilon=math.inf)
    for state in [*probabilities, "elsewhere"]:
        assert belief[state] == histogram[state] == belief.probability(state)
        assert type(belief[state]) is type(histogram[state])
        assert (state in belief) == (state in histogram)


def test_equality_is_that_of_histograms():
    probabilities = {"a": 0.5, "b": 0.5, "c": 0.0}
    belief, same = SparseHistogram(probabilities), SparseHistogram(probabilities)
    assert belief == same
    assert belief == pomdp_py.Histogram(probabilities)
    assert pomdp_py.Histogram(probabilities) == belief
    assert belief != SparseHistogram({"a": 0.5, "b": 0.5})
    assert belief != SparseHistogram({"a": 0.5, "c": 0.5}, belief.states)
    assert belief == SparseHistogram({"b": 0.5, "a": 0.5}, belief.states)
    assert belief == SparseHistogram({"c": 0.0, "b": 0.5, "a": 0.5})
    assert belief != SparseHistogram({"x": 0.5, "y": 0.5, "z": 0.0})
    assert belief != pomdp_py.Histogram({"a": 1.0})
    assert belief != probabilities
    with pytest.raises(TypeError, match="unhashable"):
        hash(belief)


def test_setting_a_probability_changes_what_is_drawn():
    probabilities = {"a": 1.0, "b": 0.0, "c": 0.0}
    belief, histogram = SparseHistogram(probabilities), pomdp_py.Histogram(dict(probabilities))
    assert belief.random() == "a"
    for state, probability in (("b", 3), ("a", 0.0), ("c", 0.25)):
        belief[state] = histogram[state] = probability
        assert belief.histogram == histogram.histogram
        dice, same_dice = random.Random(4), random.Random(4)
        assert [belief.random(dice) for _ in range(40)] == [histogram.random(same_dice) for _ in range(40)]
    for state, probability, says in [
        ("elsewhere", 0.5, "state 'elsewhere' given; expected one of the 3: 'a', 'b', 'c'"),
        ("a", -0.5, "probability -0.5 of 'a' given"),
        ("a", math.nan, "probability nan of 'a' given"),
        ("a", math.inf, "probability inf of 'a' given"),
    ]:
        with pytest.raises(ValueError, match=says):
            belief[state] = probability
        assert belief.histogram == histogram.histogram
    belief["b"] = belief["c"] = 0.0
    with pytest.raises(ValueError, match="without any mass"):
        belief.random()


@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))])
def test_copies_are_equal_and_independent(duplicate, drawn):
    compiled = compile_model(grid_agent(4))
    belief = compiled.update(compiled.belief(), SimpleAction("east"), SimpleObservation(0))
    if drawn:
        belief.random()
    before = belief.get_histogram()
    made = duplicate(belief)
    assert type(made) is SparseHistogram
    assert made == belief
    assert made.random(random.Random(2)) == belief.random(random.Random(2))
    made[made.mpe()] = 0.0
    assert belief.get_histogram() == before
    assert made.get_histogram() != before


def test_copies_share_their_space_and_travel_with_their_model():
    compiled = compile_model(grid_agent(4))
    belief = compiled.belief()
    assert copy.copy(belief).states is copy.deepcopy(belief).states is compiled.states
    model, there = pickle.loads(pickle.dumps((compiled, belief)))
    assert there.states is model.states
    assert model.states == compiled.states
    assert model.model == compiled.model
    step = SimpleAction("east"), SimpleObservation(0)
    assert model.update(there, *step) == compiled.update(belief, *step)
    assert model.update(belief, *step) == compiled.update(belief, *step)  # of another space: translated


def test_its_belief_is_a_copy():
    belief = SparseHistogram({"a": 0.75, "b": 0.25})
    taken = belief.belief
    assert taken.entropy() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    taken[0] = 0.0
    assert belief["a"] == 0.75
    again = SparseHistogram.from_belief(taken, belief.states)
    assert again.get_histogram() == {"a": 0.0, "b": 0.25}
    with pytest.raises(ValueError, match=r"belief of shape \(3,\) given; expected \(2,\)"):
        SparseHistogram.from_belief(am.SparseBelief.uniform(3), belief.states)


@pytest.mark.parametrize("drawn", [False, True])
def test_bytes_of_ten_states_in_ten_thousand(drawn):
    states = Space("state", range(10_000))
    belief = SparseHistogram({1000 * i: 0.1 for i in range(10)}, states)
    if drawn:
        belief.random()
    held = am.footprint({"states": states, "belief": belief})
    assert belief.nbytes == held.parts["belief"] <= (600 if drawn else 350)
    full = am.footprint({"states": states, "histogram": pomdp_py.Histogram(belief.histogram)})
    assert full.parts["histogram"] > 100 * belief.nbytes
    assert repr(belief) == f"SparseHistogram(states=10000, support=10, dtype=float64, nbytes={belief.nbytes})"


def test_a_full_histogram_draws_from_the_shared_states():
    states = Space("state", range(1000))
    belief = SparseHistogram({i: i + 1.0 for i in range(1000)}, states)
    belief.random()
    held = am.footprint({"states": states, "belief": belief})
    assert belief.nbytes == held.parts["belief"] < 17_000


def test_a_histogram_from_other_distributions():
    particles = pomdp_py.Particles(["b", "c", "b", "b"])
    belief = SparseHistogram(particles, "abc")
    assert belief.get_histogram() == {"a": 0.0, "b": 0.75, "c": 0.25}
    assert SparseHistogram(belief, "cba").get_histogram() == belief.get_histogram()
    assert list(SparseHistogram(belief, "cba")) == ["c", "b", "a"]
    random.seed(0)
    assert set(pomdp_py.Particles.from_histogram(belief, num_particles=50).particles) == {"b", "c"}


@pytest.mark.parametrize(
    ("given", "states", "says"),
    [
        ({}, None, "no state given"),
        ({"a": 0.0}, None, "without any mass"),
        ({"a": -1.0, "b": 2.0}, None, "-1.0 at index 0"),
        ({"a": math.nan}, None, "nan at index 0"),
        ({"z": 1.0}, "abc", "state 'z' given; expected one of the 3: 'a', 'b', 'c'"),
        ({"a": 1.0}, "abcb", "state 'b' given twice"),
        ({-1: 1.0}, range(9), r"state -1 given; expected one of the 9: 0, 1, 2, 3, 4, \.\.\."),
    ],
)
def test_what_is_no_histogram_is_refused(given, states, says):
    with pytest.raises(ValueError, match=says):
        SparseHistogram(given, states)


# ---- compiling


def test_tables_are_the_models_probabilities():
    problem = rocksample_game(5)
    agent, compiled = problem.agent, compile_model(problem, **ROCKSAMPLE)
    assert compiled.states == tuple(agent.belief)
    assert set(compiled.actions) == set(agent.policy_model.get_all_actions())
    assert compiled.observations == tuple(ROCKSAMPLE["observations"])
    assert (compiled.model.density, compiled.dropped_entries, compiled.dropped_mass) == (1.0, 0, 0.0)
    for number, action in enumerate(compiled.actions):
        for at in (0, 50, 95):
            start = compiled.belief({compiled.states[at]: 1.0}).belief
            start.predict(compiled.model, number)
            row = [agent.transition_model.probability(s, compiled.states[at], action) for s in compiled.states]
            assert np.allclose(start.to_dense(), np.array(row) / sum(row), rtol=1e-14, atol=0)
        for seen, observation in enumerate(compiled.observations):
            column = [agent.observation_model.probability(observation, s, action) for s in compiled.states]
            assert np.allclose(compiled.model.likelihood(number, seen), column, rtol=1e-15, atol=0)


def test_it_says_what_drop_below_took():
    problem = rocksample_game(5)
    exact = compile_model(problem, **ROCKSAMPLE)
    compiled = compile_model(problem, **ROCKSAMPLE, drop_below=1e-8)
    n_states, n_actions, n_checks = 96, 8, 3
    assert (len(compiled.states), len(compiled.actions)) == (n_states, n_actions)
    assert exact.model.density == 1.0
    assert compiled.model.density == 1 / n_states
    unseen = 2 * n_states * (n_actions - n_checks)
    assert compiled.dropped_entries == n_actions * n_states * (n_states - 1) + unseen
    assert compiled.dropped_mass == pytest.approx((n_states - 1) * 1e-9, rel=1e-6)
    assert f"dropped_entries={compiled.dropped_entries}, dropped_mass=9.5e-08" in repr(compiled)
    assert compiled.model.nbytes < exact.model.nbytes / 20
    belief, close = exact.belief(), compiled.belief()
    for action in sorted(compiled.actions, key=str):  # check, move, sample
        seen = compiled.observations[0 if "check" in action.name else 2]
        belief, close = exact.update(belief, action, seen), compiled.update(close, action, seen)
        assert 0 < largest_difference(belief, close) < 1e-5
        assert close.belief.nnz <= 8 < belief.belief.nnz


def test_states_are_those_of_the_belief_or_of_the_model():
    everywhere = GridTransition(3).get_all_states()
    agent = grid_agent(3)
    assert compile_model(agent).states == tuple(everywhere)
    assert compile_model(agent).belief().get_histogram() == dict.fromkeys(everywhere, 1 / 9)
    prior = {state: float(i) for i, state in enumerate(reversed(everywhere))}
    compiled = compile_model(grid_agent(3, prior))
    assert compiled.states == tuple(reversed(everywhere))
    expected = {state: i / 36 for state, i in prior.items()}
    assert compiled.belief().get_histogram() == pytest.approx(expected, abs=1e-15)
    compiled = compile_model(grid_agent(3, prior), states=everywhere)
    assert compiled.states == tuple(everywhere)
    assert compiled.belief().get_histogram() == pytest.approx(expected, abs=1e-15)


def test_successors_save_asking():
    agent, patient = grid_agent(6), grid_agent(6)
    compiled = compile_model(agent, successors=agent.transition_model.successors)
    assert compiled.model == compile_model(patient).model
    assert agent.transition_model.asked <= 3 * 36 * 4
    assert patient.transition_model.asked == 36 * 36 * 4


def test_compiled_models_share_given_spaces():
    states = Space("state", GridTransition(3).get_all_states())
    one, other = compile_model(grid_agent(3), states), compile_model(grid_agent(3), states)
    assert one.states is other.states is states
    assert other.belief(one.belief()).states is states


def test_a_histogram_of_another_order_is_translated():
    compiled, step = compile_model(grid_agent(3)), (SimpleAction("east"), SimpleObservation(1))
    belief = compiled.belief({state: float(i) for i, state in enumerate(compiled.states)})
    reordered = SparseHistogram(belief, reversed(compiled.states))
    after = compiled.update(reordered, *step)
    assert after.states is compiled.states
    assert after == compiled.update(belief, *step)
    assert after == compiled.update(reordered.get_histogram(), *step)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"observations": None}, "do not enumerate observations: pass observations="),
        ({"row_tolerance": 1e-5}, "the observation probabilities at state .*check-.* sum to 1.* over 3 observations"),
        ({"states": []}, "no state given"),
        ({"actions": []}, "no action given"),
        ({"actions": [rocksample.MoveEast, rocksample.MoveEast]}, "action .*move-EAST.* given twice"),
        ({"states": [rocksample.State((0, 0), ("good",) * 3)]}, "state .* given; expected one of the 1"),
        ({"successors": lambda state, action: [state]}, "the state probabilities at state .* sum to 1e-09 over 1 "),
        ({"successors": lambda state, action: ["x"]}, "state 'x' given; expected one of the 96"),
        ({"drop_below": 2.0}, "drop_below=2.0 given"),
    ],
)
def test_what_does_not_fit_is_refused(change, says):
    with pytest.raises(ValueError, match=says):
        compile_model(rocksample_game(5), **{**ROCKSAMPLE, **change})


def test_a_belief_over_too_few_states_is_refused():
    agent = grid_agent(3, {SimpleState((0, 0)): 1.0})
    with pytest.raises(ValueError, match=r"the state probabilities at .*sum to .* over 1 states.*missing"):
        compile_model(agent)


def test_a_blackbox_is_refused():
    agent = pomdp_py.Agent(None, Actions(), blackbox_model=pomdp_py.BlackboxModel())
    with pytest.raises(ValueError, match="without transition and observation model"):
        compile_model(agent)


def test_unknown_things_are_named_and_change_nothing():
    compiled = compile_model(grid_agent(3))
    belief = compiled.belief()
    before = belief.get_histogram()
    east, zero = SimpleAction("east"), SimpleObservation(0)
    for step, says in [
        ((belief, SimpleAction("up"), zero), r"action SimpleAction\(up\) given; expected one of the 4"),
        ((belief, east, SimpleObservation(7)), r"observation SimpleObservation\(7\) given; expected one of the 4"),
        (({SimpleState("attic"): 1.0}, east, zero), r"state SimpleState\(attic\) given; expected one of the 9"),
    ]:
        with pytest.raises(ValueError, match=says):
            compiled.update(*step)
    assert belief.get_histogram() == before


def test_without_pomdp_py_it_says_what_to_install():
    code = (
        "import sys; sys.modules['pomdp_py'] = None\n"
        "try: import agentmem.integrations.pomdp_py\n"
        "except ImportError as error: print(error)\n"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=same_environment()
    )
    assert shown.stdout.strip() == "pomdp-py is not installed: pip install 'agentmem-native[pomdp-py]'"
