"""An active-inference agent finds its way on a 20 x 20 grid: pymdp's own agent, then the same one with agentmem.

Its sensor reads a cell at or beside the true one. Both agents believe, plan and act alike, with the same dice.
"""

import time

import numpy as np
from pymdp.legacy.agent import Agent
from pymdp.legacy.envs import GridWorldEnv

import agentmem as am
from agentmem.integrations.pymdp import SparseAgent
from agentmem.profiler.worlds import position_sensor

SIDE, N_STEPS = 20, 40


def walk(agent, env, sensor):
    """The cells an agent comes through on its way from the first one, and the seconds that a step takes."""
    np.random.seed(0)  # noqa: NPY002  (where actions tie, agents draw from this stream)
    rng, cells, started = np.random.default_rng(0), [env.reset(init_state=0)], time.perf_counter()
    for _ in range(N_STEPS):
        reading = rng.choice(len(sensor), p=sensor[:, cells[-1]])
        agent.infer_states([reading])
        agent.infer_policies()
        action = agent.sample_action()
        cells.append(int(env.step(int(action[0]))))
    return cells, (time.perf_counter() - started) / N_STEPS


def main():
    env = GridWorldEnv([SIDE, SIDE])
    sensor = position_sensor(SIDE, SIDE).toarray().T  # P(reading | cell)
    moves = env.get_transition_dist()  # P(next cell | cell, action)
    rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
    wishes = -0.5 * (abs(rows - 12) + abs(columns - 15))  # the nearer to cell (12, 15), the better

    before = Agent(sensor, moves, C=wishes, policy_len=2)
    path, seconds = walk(before, env, sensor)
    dense_bytes = sum(array.nbytes for array in (*before.A, *before.B, *before.C, *before.D, *before.qs))
    report("pymdp", path, dense_bytes, seconds)

    after = SparseAgent(sensor, moves, C=wishes, policy_len=2)  # the one line that changes
    same_path, seconds = walk(after, env, sensor)
    report("agentmem", same_path, am.footprint(after).total, seconds)

    assert same_path == path
    assert np.abs(after.qs[0].to_dense() - before.qs[0]).max() < 1e-9


def report(name, path, n_bytes, seconds):
    row, column = divmod(path[-1], SIDE)
    print(f"{name:>8}: from (0, 0) to ({row}, {column}) in {N_STEPS} steps; "
          f"{n_bytes:,} bytes, {seconds * 1e3:.2f} ms a step")


if __name__ == "__main__":
    main()
