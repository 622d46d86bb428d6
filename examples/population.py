"""A hundred thousand robots on a 100 x 100 grid, each with a belief of its own, stepped together."""

import time

import numpy as np

import agentmem as am
from agentmem.profiler.tradeoff import grid_world

N_AGENTS, N_STEPS = 100_000, 10


def main():
    world = grid_world(100, 100, agents=200, steps=N_STEPS, seed=0)  # what 200 robots did and read
    actions, readings = np.tile(world.actions, N_AGENTS // 200), np.tile(world.observations, N_AGENTS // 200)

    model = am.Model(world.transition, world.observation)
    robots = am.Population(model, N_AGENTS, prune=1e-6)
    started = time.perf_counter()
    for action, reading in zip(actions, readings, strict=True):
        log_evidence = robots.update(action, reading)
    rate = N_AGENTS * N_STEPS / (time.perf_counter() - started)

    print(f"{N_AGENTS:,} robots hold {robots.nnz.mean():.1f} of {model.n_states:,} states each: "
          f"{robots.nbytes / 1e6:.1f} MB, beside a model of {model.nbytes / 1e6:.1f} MB")
    print(f"as dense arrays: {8 * N_AGENTS * model.n_states / 1e9:.0f} GB")
    print(f"{rate / 1e6:.1f} million steps a second; mean log-evidence {log_evidence.mean():.3f}, "
          f"mean entropy {robots.entropy().mean():.3f} nats")


if __name__ == "__main__":
    main()
