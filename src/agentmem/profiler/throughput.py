"""How many steps a second a population takes, and in how many bytes: agents at random on a grid, in this process.

Here live the record and the measuring; `worlds` has the grid and the walk, `tables` shows what was measured.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agentmem.model import Model
from agentmem.population import Population
from agentmem.profiler.process import peak_rss, rss
from agentmem.profiler.worlds import random_walk, slippery_grid


@dataclass(frozen=True, slots=True)
class Throughput:
    """What the steps of a population took so far, and what it holds after them. Sizes in bytes.

    Times are seconds in `Population.update` alone: at the first step, the last one, and all of them; simulating the
    agents took `walk_seconds` beside them. `states_held` is the mean over agents. `rss` and `peak_rss` are the whole
    process's, `base_rss` what it was before there was a model: Python and its libraries.
    """

    world: str
    states: int
    agents: int
    steps: int
    first_seconds: float
    last_seconds: float
    seconds: float
    walk_seconds: float
    states_held: float
    nbytes: int
    model_bytes: int
    base_rss: int
    rss: int
    peak_rss: int

    @property
    def rate(self) -> float:
        """Agent-steps per second, over all steps."""
        return self.agents * self.steps / self.seconds

    @property
    def last_rate(self) -> float:
        """Agent-steps per second, of the last step."""
        return self.agents / self.last_seconds

    @property
    def later_rate(self) -> float | None:
        """Agent-steps per second, over all steps but the first; None if there are no others."""
        if self.steps == 1:
            return None
        return self.agents * (self.steps - 1) / (self.seconds - self.first_seconds)

    @property
    def bytes_per_agent(self) -> float:
        return self.nbytes / self.agents

    @property
    def dense_bytes(self) -> int:
        """Bytes of the same beliefs as rows of float64."""
        return self.agents * self.states * 8


def measure(
    rows: int, columns: int, agents: int, *, steps: int, seconds: float = math.inf, seed: int
) -> Iterator[Throughput]:
    """Step agents that walk a slippery grid, from anywhere and knowing nothing; a record after each step.

    Ends after `steps`, or when `seconds` have passed since the first step: that one, from beliefs over all states,
    takes as long as many later ones. The simulation's time counts among these, and in no rate.
    """
    base = rss()
    transition, observation = slippery_grid(rows, columns)
    model = Model(transition, observation)
    population = Population(model, agents)
    rng = np.random.default_rng(seed)
    walk = random_walk(transition, observation, rng.integers(model.n_states, size=agents), rng)
    walked = first = total = 0.0
    deadline = math.inf
    for step in range(1, steps + 1):
        began = time.perf_counter()
        actions, observations = next(walk)
        simulated = time.perf_counter()
        population.update(actions, observations)
        ended = time.perf_counter()
        walked, last, total = walked + simulated - began, ended - simulated, total + ended - simulated
        if step == 1:
            first, deadline = last, ended + seconds
        yield Throughput(
            world=f"{rows} x {columns} slippery grid",
            states=model.n_states,
            agents=agents,
            steps=step,
            first_seconds=first,
            last_seconds=last,
            seconds=total,
            walk_seconds=walked,
            states_held=float(population.nnz.mean()),
            nbytes=population.nbytes,
            model_bytes=model.nbytes,
            base_rss=base,
            rss=rss(),
            peak_rss=peak_rss(),
        )
        if time.perf_counter() >= deadline:
            return
