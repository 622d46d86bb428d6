"""Filters over a `World`: what one writes by hand in NumPy and scipy, and ours, behind one protocol."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from agentmem.belief import SparseBelief
from agentmem.model import Model
from agentmem.population import Population
from agentmem.profiler.worlds import World

Array = NDArray[np.floating[Any]]
Kind = Literal["dense", "scipy", "sparse", "population"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run the filter: in NumPy, in scipy, as a SparseBelief per agent, or as a Population of all agents.

    The last two drop at each step what is below the share `prune` of an agent's largest entry; None is the library's.
    """

    name: str
    filter: Kind
    prune: float | None = None
    dtype: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        if self.filter not in FILTERS:
            raise ValueError(f"filter={self.filter!r} given; expected one of {', '.join(FILTERS)}")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"dtype={self.dtype!r} given; expected float64 or float32")
        if self.prune is not None and not 0 <= self.prune < 1:
            raise ValueError(f"prune={self.prune!r} given; expected at least 0 and below 1")


class Filter(Protocol):
    """How one configuration holds a world and steps beliefs through it. `sweep` is what the clock sees.

    Agents' beliefs are what `begin` makes, a list or a Population: `beliefs[agent] = step_filter.start()` starts an
    agent anew, and iteration gives one belief after another.
    """

    model_bytes: int

    def start(self) -> Any: ...
    def begin(self, agents: int) -> Any: ...
    def sweep(self, beliefs: Any, actions: NDArray[np.int64], observations: NDArray[np.int64]) -> Iterable[float]: ...


class ArrayFilter:
    """Beliefs that are NumPy arrays, one for each agent."""

    initial: Array

    def start(self) -> Array:
        return self.initial.copy()

    def begin(self, agents: int) -> list[Array]:
        return [self.start() for _ in range(agents)]


class DenseFilter(ArrayFilter):
    def __init__(self, world: World, configuration: Configuration) -> None:
        dtype = np.dtype(configuration.dtype)
        self.initial: Array = world.initial.astype(dtype)
        self.transition = [table.astype(dtype).toarray() for table in world.transition]
        # (O, S), so that the likelihood of a reading is a contiguous row.
        tables = [table.astype(dtype).T.toarray(order="C") for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = sum(array.nbytes for array in (self.initial, *self.transition, *tables))

    def sweep(
        self, beliefs: list[Array], actions: NDArray[np.int64], observations: NDArray[np.int64]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions.tolist(), observations.tolist(), strict=True)):
            belief = beliefs[agent] @ self.transition[action]
            belief *= self.likelihood[action][observation]
            total = belief.sum()
            belief /= total
            beliefs[agent] = belief
            evidence.append(math.log(total))
        return evidence


class ScipyFilter(ArrayFilter):
    def __init__(self, world: World, configuration: Configuration) -> None:
        dtype = np.dtype(configuration.dtype)
        self.initial: Array = world.initial.astype(dtype)
        self.transition = [sparse.csr_array(table.astype(dtype).T) for table in world.transition]
        tables = [sparse.csr_array(table.astype(dtype).T) for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = self.initial.nbytes + sum(
            table.data.nbytes + table.indices.nbytes + table.indptr.nbytes for table in (*self.transition, *tables)
        )

    def sweep(
        self, beliefs: list[Array], actions: NDArray[np.int64], observations: NDArray[np.int64]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions.tolist(), observations.tolist(), strict=True)):
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


class SparseFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.model = _model_of(world, configuration)
        self.prune = configuration.prune
        self.model_bytes = self.model.nbytes

    def start(self) -> SparseBelief:
        return self.model.belief()

    def begin(self, agents: int) -> list[SparseBelief]:
        return [self.start() for _ in range(agents)]

    def sweep(
        self, beliefs: list[SparseBelief], actions: NDArray[np.int64], observations: NDArray[np.int64]
    ) -> list[float]:
        model, prune = self.model, self.prune
        return [
            belief.update(model, action, observation, prune=prune)
            for belief, action, observation in zip(beliefs, actions.tolist(), observations.tolist(), strict=True)
        ]


class PopulationFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.model = _model_of(world, configuration)
        self.options: dict[str, Any] = {} if configuration.prune is None else {"prune": configuration.prune}
        self.model_bytes = self.model.nbytes

    def start(self) -> SparseBelief:
        return self.model.belief()

    def begin(self, agents: int) -> Population:
        return Population(self.model, agents, threads=1, **self.options)

    def sweep(
        self, beliefs: Population, actions: NDArray[np.int64], observations: NDArray[np.int64]
    ) -> NDArray[np.float64]:
        return beliefs.update(actions, observations)


def belief_bytes(beliefs: list[Any] | Population) -> list[int]:
    """What each agent's belief takes; of a population, which holds them together, its share."""
    if isinstance(beliefs, Population):
        return [beliefs.nbytes // len(beliefs)]
    return list(map(sys.getsizeof, beliefs))


def _model_of(world: World, configuration: Configuration) -> Model:
    return Model(
        world.transition, world.observation_tables(), world.initial, dtype=np.dtype(configuration.dtype)
    )


FILTERS: dict[str, type[DenseFilter] | type[ScipyFilter] | type[SparseFilter] | type[PopulationFilter]] = {
    "dense": DenseFilter,
    "scipy": ScipyFilter,
    "sparse": SparseFilter,
    "population": PopulationFilter,
}
