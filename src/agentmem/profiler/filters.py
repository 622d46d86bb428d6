"""Filters over a `World`: what one writes by hand in NumPy and scipy, and ours, behind one protocol."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from agentmem.belief import SparseBelief
from agentmem.model import Model
from agentmem.profiler.worlds import World


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run the filter: "dense", "scipy" or "sparse", which prunes as `SparseBelief.update` does."""

    name: str
    filter: str
    prune: float | None = None


class Filter(Protocol):
    """How one configuration holds a world and steps beliefs through it. `sweep` is what the clock sees."""

    model_bytes: int

    def start(self) -> Any: ...
    def sweep(self, beliefs: list[Any], actions: list[int], observations: list[int]) -> list[float]: ...
    def belief_bytes(self, belief: Any) -> int: ...
    def to_dense(self, belief: Any) -> NDArray[np.float64]: ...


class DenseFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.initial = world.initial
        self.transition = [table.toarray() for table in world.transition]
        # (O, S), so that the likelihood of a reading is a contiguous row.
        tables = [table.T.toarray(order="C") for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = sum(array.nbytes for array in (self.initial, *self.transition, *tables))

    def start(self) -> NDArray[np.float64]:
        return self.initial.copy()

    def sweep(
        self, beliefs: list[NDArray[np.float64]], actions: list[int], observations: list[int]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions, observations, strict=True)):
            belief = beliefs[agent] @ self.transition[action]
            belief *= self.likelihood[action][observation]
            total = belief.sum()
            belief /= total
            beliefs[agent] = belief
            evidence.append(math.log(total))
        return evidence

    def belief_bytes(self, belief: NDArray[np.float64]) -> int:
        return sys.getsizeof(belief)

    def to_dense(self, belief: NDArray[np.float64]) -> NDArray[np.float64]:
        return belief


class ScipyFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.initial = world.initial
        self.transition = [table.T.tocsr() for table in world.transition]
        tables = [table.T.tocsr() for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = self.initial.nbytes + sum(
            table.data.nbytes + table.indices.nbytes + table.indptr.nbytes for table in (*self.transition, *tables)
        )

    def start(self) -> NDArray[np.float64]:
        return self.initial.copy()

    def sweep(
        self, beliefs: list[NDArray[np.float64]], actions: list[int], observations: list[int]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions, observations, strict=True)):
            likelihood = self.likelihood[action]
            predicted = self.transition[action] @ beliefs[agent]
            column = slice(likelihood.indptr[observation], likelihood.indptr[observation + 1])
            states = likelihood.indices[column]
            mass = predicted[states] * likelihood.data[column]
            total = mass.sum()
            belief = np.zeros_like(predicted)
            belief[states] = mass / total
            beliefs[agent] = belief
            evidence.append(math.log(total))
        return evidence

    def belief_bytes(self, belief: NDArray[np.float64]) -> int:
        return sys.getsizeof(belief)

    def to_dense(self, belief: NDArray[np.float64]) -> NDArray[np.float64]:
        return belief


class SparseFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.model = Model(world.transition, world.observation_tables(), world.initial)
        self.prune = configuration.prune
        self.model_bytes = self.model.nbytes

    def start(self) -> SparseBelief:
        return self.model.belief()

    def sweep(self, beliefs: list[SparseBelief], actions: list[int], observations: list[int]) -> list[float]:
        model, prune = self.model, self.prune
        return [
            belief.update(model, action, observation, prune=prune)
            for belief, action, observation in zip(beliefs, actions, observations, strict=True)
        ]

    def belief_bytes(self, belief: SparseBelief) -> int:
        return belief.nbytes

    def to_dense(self, belief: SparseBelief) -> NDArray[np.float64]:
        return belief.to_dense()


FILTERS: dict[str, type[DenseFilter] | type[ScipyFilter] | type[SparseFilter]] = {
    "dense": DenseFilter,
    "scipy": ScipyFilter,
    "sparse": SparseFilter,
}
