"""Worlds: a model's tables and what happened to agents there, so that every filter gets the same work.

Here live the workload (`World`), generated grids, and walks on them; worlds of gymnasium come from
`integrations.gymnasium`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


@dataclass(frozen=True, slots=True)
class Extent:
    """How large a world is, and how much happened in it."""

    name: str
    states: int
    actions: int
    observations: int
    agents: int
    steps: int
    episodes: int


@dataclass(frozen=True, slots=True)
class World:
    """A world's tables and what happened to its agents there: the same work for every filter.

    Attributes
    ----------
    transition : one (S, S) csr_array per action, rows are the current state
    observation : (S, O) csr_array, P(reading | state); or (A * S, O), one such table per action below the other
    initial : (S,) float64, what an agent believes when it starts
    actions, observations : (steps, agents) int64
    restarts : (steps, agents) bool, the agent starts anew before this step
    """

    name: str
    transition: Sequence[sparse.csr_array]
    observation: sparse.csr_array
    initial: NDArray[np.float64]
    actions: NDArray[np.int64]
    observations: NDArray[np.int64]
    restarts: NDArray[np.bool_]

    def save(self, directory: Path) -> None:
        """Write the tables and runs into `directory` (no pickle)."""
        for action, table in enumerate(self.transition):
            sparse.save_npz(directory / f"transition{action}.npz", table, compressed=False)
        sparse.save_npz(directory / "observation.npz", self.observation, compressed=False)
        np.savez(
            directory / "runs.npz",
            name=np.array(self.name),
            n_actions=np.array(len(self.transition)),
            initial=self.initial,
            actions=self.actions,
            observations=self.observations,
            restarts=self.restarts,
        )

    @classmethod
    def load(cls, directory: Path) -> World:
        """What `save` wrote."""
        with np.load(directory / "runs.npz", allow_pickle=False) as runs:
            return cls(
                name=str(runs["name"]),
                transition=[
                    sparse.csr_array(sparse.load_npz(directory / f"transition{action}.npz"))
                    for action in range(runs["n_actions"])
                ],
                observation=sparse.csr_array(sparse.load_npz(directory / "observation.npz")),
                initial=runs["initial"],
                actions=runs["actions"],
                observations=runs["observations"],
                restarts=runs["restarts"],
            )

    @property
    def extent(self) -> Extent:
        steps, agents = self.actions.shape
        return Extent(
            name=self.name,
            states=self.initial.size,
            actions=len(self.transition),
            observations=self.observation.shape[1],
            agents=agents,
            steps=steps,
            episodes=int(self.restarts.sum()),
        )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of these tables as dense float64 arrays."""
        readings, n_readings = self.observation.shape
        return 8 * (len(self.transition) * self.initial.size**2 + readings * n_readings)

    def observation_tables(self) -> list[sparse.csr_array]:
        """The distinct tables of readings: one, or one per action."""
        n_states, n_rows = self.initial.size, self.observation.shape[0]
        if n_rows == n_states:
            return [self.observation]
        return [self.observation[first : first + n_states] for first in range(0, n_rows, n_states)]


def position_sensor(rows: int, columns: int) -> sparse.csr_array:
    """(S, S) table of a noisy position sensor on a grid: it reads a cell of the 3 x 3 around the true one.

    Weights are 4 for the cell itself, 2 for those beside it, 1 for the corners; clipped at the borders and
    renormalised. At most 9 entries a row. States are cells in C order.
    """
    # The weights are a product of [1, 2, 1] along each axis, so both can be done axis by axis.
    return sparse.kron(_blur(rows), _blur(columns), format="csr")


def slippery_grid(rows: int, columns: int) -> tuple[list[sparse.csr_array], sparse.csr_array]:
    """One (S, S) transition per action of a grid without walls, and its `position_sensor`. O(states).

    Actions are left, down, right, up, as FrozenLake's. A step goes where it was meant to with probability
    0.8, to either side with 0.1, and stays where the border stops it.
    """
    moves = [
        sparse.kron(_shift(rows, down), _shift(columns, right), format="csr")
        for down, right in ((0, -1), (1, 0), (0, 1), (-1, 0))
    ]
    transition = [
        sparse.csr_array(0.8 * moves[action] + 0.1 * (moves[action - 1] + moves[(action + 1) % 4]))
        for action in range(4)
    ]
    return transition, position_sensor(rows, columns)


def grid_world(rows: int, columns: int, *, agents: int, steps: int, seed: int) -> World:
    """A `slippery_grid` where agents walk at random, from anywhere. The prior is uniform.

    O(states + agents x steps).
    """
    transition, observation = slippery_grid(rows, columns)
    return walked_world(
        f"{rows} x {columns} slippery grid",
        transition,
        observation,
        np.full(rows * columns, 1 / (rows * columns)),
        agents=agents,
        steps=steps,
        seed=seed,
    )


def walked_world(
    name: str,
    transition: Sequence[sparse.csr_array],
    observation: sparse.csr_array,
    initial: NDArray[np.float64],
    *,
    agents: int,
    steps: int,
    seed: int,
) -> World:
    """The world of these tables, and agents that start as `initial` says and act at random. O(agents x steps)."""
    rng = np.random.default_rng(seed)
    actions, observations = np.empty((steps, agents), np.int64), np.empty((steps, agents), np.int64)
    restarts = np.zeros((steps, agents), np.bool_)
    restarts[0] = True
    walk = random_walk(transition, observation, rng.choice(initial.size, size=agents, p=initial), rng)
    for step in range(steps):
        actions[step], observations[step] = next(walk)
    return World(
        name=name,
        transition=transition,
        observation=observation,
        initial=initial,
        actions=actions,
        observations=observations,
        restarts=restarts,
    )


def random_walk(
    transition: Sequence[sparse.csr_array],
    observation: sparse.csr_array,
    states: NDArray[np.int64],
    rng: np.random.Generator,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Actions and readings, (n,) each, of agents that begin in these states and act at random; without end.

    The tables are as a `World`'s. A step is O(entries in the rows it meets).
    """
    n_states = transition[0].shape[0]
    of_action = n_states if observation.shape[0] > n_states else 0
    while True:
        actions = rng.integers(len(transition), size=len(states))
        after = np.empty_like(states)
        for action in np.unique(actions).tolist():
            chosen = actions == action
            after[chosen] = sample_rows(transition[action], states[chosen], rng)
        states = after
        yield actions, sample_rows(observation, actions * of_action + states, rng)


def sample_rows(
    table: sparse.csr_array, rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,): for each of n rows a column of `table`, drawn with that row's weights. O(entries in these rows)."""
    columns = np.empty(len(rows), np.int64)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(begin, begin + _ROWS_AT_ONCE)
        lengths = table.indptr[rows[block] + 1] - table.indptr[rows[block]]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        entries = np.arange(ends[-1]) + np.repeat(table.indptr[rows[block]] - starts, lengths)
        cumulated = np.append(0.0, np.cumsum(table.data[entries]))
        before = cumulated[starts]
        wanted = before + rng.random(len(lengths)) * (cumulated[ends] - before)
        drawn = np.searchsorted(cumulated[1:], wanted, side="right")
        columns[block] = table.indices[entries[np.minimum(drawn, ends - 1)]]
    return columns


# Of a million at once, the weights would take more memory than a million agents' beliefs.
_ROWS_AT_ONCE = 65_536


def _blur(n: int) -> sparse.csr_array:
    weights = np.array([[1.0], [2.0], [1.0]]).repeat(n, axis=1)
    blur = sparse.dia_array((weights, np.array([-1, 0, 1])), shape=(n, n)).tocsr()
    totals = np.full(n, 4.0)
    totals[0] -= 1
    totals[-1] -= 1
    return sparse.csr_array(
        (blur.data / totals.repeat(np.diff(blur.indptr)), blur.indices, blur.indptr), shape=(n, n)
    )


def _shift(n: int, by: int) -> sparse.csr_array:
    # scipy keeps the index type it is given; int64 would fatten it.
    offsets = np.arange(n + 1, dtype=np.int32)
    targets = np.clip(offsets[:-1] + np.int32(by), 0, n - 1).astype(np.int32)
    return sparse.csr_array((np.ones(n), targets, offsets), shape=(n, n))
