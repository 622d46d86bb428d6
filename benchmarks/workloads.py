"""Seeded inputs that benchmarks and tests share: grid worlds, a noisy sensor, beliefs of an asked support.

A world is a rectangle of cells. A move succeeds with probability 0.6, slips to each other neighbour or stays
with 0.1 (5 entries a row; a wall in the way means staying). The sensor reads the ground's height with
Gaussian noise, and now and then anything at all: every reading is possible everywhere, and no update narrows
the support.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

import agentmem as am

# The 34.5 MB agent and its step live in the package: `agentmem verify` runs where only a wheel is installed.
from agentmem.profiler import reference_agent as reference_agent

GRIDS = {100: (10, 10), 1_000: (25, 40), 10_000: (100, 100), 100_000: (250, 400), 1_000_000: (1_000, 1_000)}
STEPS = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]  # stay, up, down, left, right
RIGHT = 4
READINGS = 16
CLUSTERED_UP_TO = 0.25  # of the states; a wider belief is a random set


@dataclass(frozen=True)
class Case:
    """A belief to be measured."""

    states: int
    support: int
    spread: str  # "clustered" or "random"
    dtype: str

    def __str__(self) -> str:
        return f"{self.states}-{self.support}-{self.spread}-{self.dtype}"


@dataclass(frozen=True)
class World:
    transition: sparse.csr_array  # (S, S), rows are the current state and sum to 1
    observation: NDArray[Any]  # (S, READINGS), rows sum to 1


def supports(states: int) -> list[int]:
    """1, 10, 100 states, and 1 %, 10 %, 50 %, 100 % of them, each number once."""
    wanted = {1, 10, 100, states // 100, states // 10, states // 2, states}
    return sorted(support for support in wanted if support <= states)


def spread_of(states: int, support: int) -> str:
    return "clustered" if support <= CLUSTERED_UP_TO * states else "random"


def cases(sizes: list[int], dtype: str) -> list[Case]:
    """The grid of the claims; 1 % from 10,000 states on comes clustered and random."""
    grid = []
    for states in sizes:
        for support in supports(states):
            grid.append(Case(states, support, spread_of(states, support), dtype))
            if states >= 10_000 and support == states // 100:
                grid.append(Case(states, support, "random", dtype))
    return grid


def grid_transition(rows: int, columns: int, action: int = RIGHT, dtype: str = "float64") -> sparse.csr_array:
    """P(s' | s) of one of the five `STEPS`."""
    states = rows * columns
    here = np.arange(states)
    row, column = np.divmod(here, columns)
    targets = np.empty((states, len(STEPS)), np.int32)
    for step, (down, right) in enumerate(STEPS):
        inside = (row + down >= 0) & (row + down < rows) & (column + right >= 0) & (column + right < columns)
        targets[:, step] = np.where(inside, here + down * columns + right, here)
    chances = np.where(np.arange(len(STEPS)) == action, 0.6, 0.1)
    offsets = np.arange(0, targets.size + 1, len(STEPS), dtype=np.int32)
    table = sparse.csr_array((np.tile(chances, states), targets.ravel(), offsets), shape=(states, states))
    table.sum_duplicates()
    return table.astype(dtype)


def height_sensor(
    rows: int,
    columns: int,
    readings: int = READINGS,
    *,
    noise: float = 1.5,
    floor: float = 0.01,
    dtype: str = "float64",
) -> NDArray[Any]:
    """P(reading | state): the height of two hills in `readings` bands, blurred by `noise` bands.

    A share of `floor` of all readings is uniform. With none, readings over three `noise` away are impossible.
    """
    down, right = np.meshgrid(np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, columns), indexing="ij")
    height = (readings - 1) * np.sin(down) * np.sin(right) ** 2
    away = (np.arange(readings) - height.reshape(-1, 1)) / noise
    likelihood = np.exp(-0.5 * away**2)
    if not floor:
        likelihood[np.abs(away) > 3] = 0
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    return ((1 - floor) * likelihood + floor / readings).astype(dtype)


@lru_cache(maxsize=1)
def world(states: int, dtype: str) -> World:
    rows, columns = GRIDS[states]
    return World(grid_transition(rows, columns, dtype=dtype), height_sensor(rows, columns, dtype=dtype))


@lru_cache(maxsize=1)
def model_of(states: int, dtype: str) -> am.Model:
    place = world(states, dtype)
    return am.Model(place.transition, place.observation, dtype=np.dtype(dtype))


def disc(rows: int, columns: int, support: int) -> NDArray[np.intp]:
    """The `support` cells nearest to the middle cell, ascending."""
    down, right = np.ogrid[:rows, :columns]
    distance = ((down - rows // 2) ** 2 + (right - columns // 2) ** 2).ravel()
    return np.sort(np.argsort(distance, kind="stable")[:support])


def belief(case: Case, seed: int = 1) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Indices (ascending) and values (sum to 1, within a factor of 3 of each other) of the case's belief."""
    rng = np.random.default_rng([seed, case.states, case.support])
    if case.spread == "clustered":
        indices = disc(*GRIDS[case.states], case.support)
    else:
        indices = np.sort(rng.choice(case.states, case.support, replace=False))
    values = rng.uniform(0.5, 1.5, case.support)
    return indices, (values / values.sum()).astype(case.dtype)


def dense_of(case: Case, indices: NDArray[np.intp], values: NDArray[Any]) -> NDArray[Any]:
    dense = np.zeros(case.states, case.dtype)
    dense[indices] = values
    return dense


def likely_reading(place: World, indices: NDArray[np.intp]) -> int:
    """The reading that the middle of the support expects most."""
    return int(place.observation[indices[len(indices) // 2]].argmax())


def walk(place: World, start: int, steps: int, seed: int = 1) -> list[int]:
    """Readings along a walk of the true state from `start`."""
    rng = np.random.default_rng(seed)
    readings, here = [], start
    table = place.transition
    for _ in range(steps):
        row = slice(table.indptr[here], table.indptr[here + 1])
        chances = table.data[row].astype(float)
        here = int(rng.choice(table.indices[row], p=chances / chances.sum()))
        chances = place.observation[here].astype(float)
        readings.append(int(rng.choice(chances.size, p=chances / chances.sum())))
    return readings


def smallest_form(states: int, support: int, itemsize: int) -> int:
    """Bytes of the numbers alone in the smallest of pairs, bitmap and dense."""
    return min(support * (4 + itemsize), states // 8 + support * itemsize, states * itemsize)
