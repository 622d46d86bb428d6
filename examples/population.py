"""A hundred thousand robots on a 100 x 100 grid, each with a belief of its own, stepped together."""

import time

import agentmem as am
from agentmem.profiler.worlds import grid_world

world = grid_world(100, 100, agents=100_000, steps=20, seed=0)  # what they do and read
model = am.Model(world.transition, world.observation)
robots = am.Population(model, 100_000)
began = time.perf_counter()
for actions, readings in zip(world.actions, world.observations, strict=True):
    robots.update(actions, readings)
rate = 20 * 100_000 / (time.perf_counter() - began)
print(f"{len(robots):,} robots, {robots.nnz.mean():.1f} states each: {robots.nbytes / 1e6:.1f} MB, dense 8,000 MB")
print(f"{rate / 1e6:.2f} million steps a second, the first ones from a belief over all cells")
