"""RockSample of pomdp-py, played with the same dice by its own Histogram and by ours: same game, less time and memory.

Needs pomdp-py: pip install 'agentmem-native[pomdp-py]'
"""

import itertools
import random
import time

import pomdp_py
from pomdp_py.problems.rocksample.rocksample_problem import Observation, RockSampleProblem, State

import agentmem as am
from agentmem.integrations.pomdp_py import Space, compile_model

N, K = 3, 4  # cells per side, rocks
rocks = list(itertools.product(["good", "bad"], repeat=K))
states = Space("state", [State((x, y), kinds, x == N) for x in range(N + 1) for y in range(N) for kinds in rocks])
seen = [Observation(quality) for quality in ("good", "bad", None)]


def new_game():
    random.seed(7)
    start, places = RockSampleProblem.generate_instance(N, K)
    prior = {state: float(state.position == start.position) / len(rocks) for state in states}
    return RockSampleProblem(N, K, start, places, pomdp_py.Histogram(prior))


def play(game, update, steps=10):
    """Plan, act, look, update the belief: what was done and seen, and seconds per update."""
    agent, done, seconds = game.agent, [], 0.0
    planner = pomdp_py.POUCT(max_depth=10, num_sims=200, rollout_policy=agent.policy_model)
    random.seed(8)
    for _ in range(steps):
        action = planner.plan(agent)
        game.env.state_transition(action, execute=True)
        observation = game.env.provide_observation(agent.observation_model, action)
        planner.update(agent, action, observation)
        start = time.perf_counter()
        agent.set_belief(update(agent.belief, action, observation))
        seconds += time.perf_counter() - start
        done.append((str(action), str(observation)))
    nbytes = am.footprint({"states": states, "belief": agent.belief}).parts["belief"]
    return done, f"{seconds / steps * 1e6:9,.0f} us per belief update, {nbytes:6,} bytes per belief"


before = new_game()
models = before.agent.observation_model, before.agent.transition_model
theirs, figures = play(before, lambda belief, a, o: pomdp_py.update_histogram_belief(belief, a, o, *models))
print(f"Histogram, {len(states)} states:    {figures}")
for smallest in (0.0, 1e-8):  # RockSample writes 1e-9 for zero
    game = new_game()  # its sensor's probabilities of good, bad and nothing sum to more than 1: hence the tolerance
    compiled = compile_model(game, states, observations=seen, drop_below=smallest, row_tolerance=0.5)
    game.agent.set_belief(compiled.belief())
    ours, figures = play(game, compiled.update)
    print(f"SparseHistogram, {'same' if ours == theirs else 'another'} game: {figures}")
    taken = f"at most {compiled.dropped_mass:.2g} of any row of probabilities"
    print(f"  tables of {compiled.model.nbytes:,} bytes: drop_below={smallest} took {taken}")
