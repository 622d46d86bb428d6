"""The reference agent: what the agent of the 34.5 MB report holds, made from a seed, and its working step.

All of it is plain Python and NumPy, and the step is written once: dense and compact agents run the same lines.
`verification` measures both.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from math import isqrt
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Reading = tuple[int, float, Any, Any, Any]

PRUNE = 1e-8  # entries of a belief below this share of the largest go at each step
TYPES = "move", "look", "take", "drop", "wait"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the parts of an agent are: shapes of the arrays, states of the transition, entries of the log."""

    belief: tuple[int, int] = (2048, 3840)
    observation: tuple[int, int] = (768, 512)
    states: int = 512
    strings: int = 2_000
    records: int = 3_468
    patch: int = 64  # edge of the square that a likelihood favours


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of agent.

    Attributes
    ----------
    density : share of the belief's cells that are not zero once the step has pruned
    support : cells anywhere; in a block in the middle; all alike; or, with such a block, all others far below `PRUNE`
    log : 2,000 strings of about 1 kB, or 3,468 dicts
    observation : 1 % of the cells, or all of them
    transition : each state to its neighbours on a torus; identity plus noise in all cells; or any to any
    shared : whether the transitions of all agents are equal
    """

    density: float
    support: Literal["random", "clustered", "uniform", "tail"] = "random"
    log: Literal["strings", "records"] = "strings"
    observation: Literal["sparse", "dense"] = "sparse"
    transition: Literal["neighbours", "noise", "dense"] = "neighbours"
    shared: bool = True
    sizes: Sizes = Sizes()

    def __str__(self) -> str:
        """What distinguishes it from an agent of its density."""
        usual = replace(self, log="strings", observation="sparse", transition="neighbours", shared=True)
        words = [f"{100 * self.density:g} % {self.support}"]
        words += [f"{self.log} as log"] if self.log != usual.log else []
        words += ["dense observation"] if self.observation != usual.observation else []
        words += [f"{self.transition} transition"] if self.transition != usual.transition else []
        words += ["of its own"] if self.shared != usual.shared else []
        return ", ".join(words)


# Of no class of ours: `compact` does not look into what this package defines.
Agent = SimpleNamespace


def make_agent(case: Case, seed: int = 0, number: int = 0) -> Agent:
    """The dense agent of this number: 34.6 MiB at full size.

    It has a `belief` (rows, columns), a `log` of what it did, the `observation` it saw last, and a `transition` (S, S).
    """
    rng = np.random.default_rng([seed, number])
    sizes = case.sizes
    return Agent(
        belief=_belief(case, rng),
        log=list(islice(log_entries(case, seed), _n_logged(case))),
        observation=_observation(case, rng),
        transition=_transition(case.transition, sizes.states, np.random.default_rng(seed) if case.shared else rng),
    )


def step(agent: Agent, likelihood: Array, entry: Any, observation: Array) -> Reading:
    """A working step, and what it reads back: the mode and its mass, the last entry, a row of either table."""
    agent.belief *= likelihood
    agent.belief /= agent.belief.sum()
    agent.belief *= agent.belief > PRUNE * agent.belief.max()
    agent.log.append(entry)
    agent.observation[...] = observation

    mode = agent.belief.argmax()
    row = len(agent.log)
    return (
        int(mode),
        float(agent.belief[np.unravel_index(mode, agent.belief.shape)]),
        agent.log[-1],
        np.array(agent.observation[row % len(agent.observation)]),
        np.array(agent.transition[row % len(agent.transition)]),
    )


# ---- what steps are given


def likelihoods(sizes: Sizes) -> list[Array]:
    """Four to be used in turn: 1.0 on a patch that goes round the middle of the belief, 0.9 elsewhere.

    All cells of a block that lies within the four are favoured alike, so that its density holds for ever.
    """
    rows, columns = sizes.belief
    made = []
    for down, right in ((-1, -1), (-1, 0), (0, 0), (0, -1)):
        likelihood = np.full(sizes.belief, 0.9, np.float32)
        top, left = rows // 2 + down * sizes.patch, columns // 2 + right * sizes.patch
        likelihood[top : top + sizes.patch, left : left + sizes.patch] = 1.0
        made.append(likelihood)
    return made


def observations(case: Case, seed: int = 0) -> list[Array]:
    """Five to be written in turn, as dense as the agent's first one."""
    rng = np.random.default_rng([seed, 1 << 32])
    return [_observation(case, rng) for _ in range(5)]


def log_entries(case: Case, seed: int = 0) -> Iterator[Any]:
    """What is logged, without end; the first of them an agent has when it is made."""
    return _strings() if case.log == "strings" else _records(random.Random(seed))


def new_entries(case: Case, seed: int = 0) -> Iterator[Any]:
    """What is logged after that."""
    return islice(log_entries(case, seed), _n_logged(case), None)


# ---- its parts


def _belief(case: Case, rng: np.random.Generator) -> Array:
    rows, columns = shape = case.sizes.belief
    belief = np.zeros(shape, np.float32)
    if case.support == "uniform":
        belief[...] = 1
    elif case.support == "random":
        n = round(case.density * belief.size)
        cells = rng.choice(belief.size, n, replace=False, shuffle=False)
        belief.reshape(-1)[cells] = 0.5 + rng.random(n, np.float32)
    else:
        if case.support == "tail":
            belief[...] = PRUNE / 100 * (0.5 + rng.random(shape, np.float32))
        down, right = max(1, round(rows * case.density**0.5)), max(1, round(columns * case.density**0.5))
        top, left = (rows - down) // 2, (columns - right) // 2
        belief[top : top + down, left : left + right] = 0.5 + rng.random((down, right), np.float32)
    belief /= belief.sum()
    return belief


def _observation(case: Case, rng: np.random.Generator) -> Array:
    shape = case.sizes.observation
    seen = rng.random(shape, np.float32) + np.float32(1)
    if case.observation == "sparse":
        seen *= rng.random(shape, np.float32) < 0.01
    return seen


def _transition(kind: str, n: int, rng: np.random.Generator) -> Array:
    table = rng.random((n, n), np.float32) + np.float32(0.1)
    if kind == "neighbours":
        states, width = np.arange(n), isqrt(n)
        is_neighbour = np.zeros((n, n), np.bool_)
        for away in (0, 1, -1, width, -width):
            is_neighbour[states, (states + away) % n] = True
        table *= is_neighbour
    elif kind == "noise":
        table *= 1 / n
        table += np.eye(n, dtype=np.float32)
    table /= table.sum(axis=1, keepdims=True)
    return table


def _n_logged(case: Case) -> int:
    return case.sizes.strings if case.log == "strings" else case.sizes.records


def _strings() -> Iterator[str]:
    i = 0
    while True:
        yield f"action_{i}" * 100
        i += 1


def _records(rng: random.Random) -> Iterator[dict[str, Any]]:
    x, y, timestamp = 1_000, 2_000, 1.7e9
    while True:
        x, y = x + rng.choice((-1, 0, 1)), y + rng.choice((-1, 0, 1))
        timestamp += 0.5
        yield {
            "type": rng.choice(TYPES),
            "x": x,
            "y": y,
            "target": f"agent_{rng.randrange(100)}",
            "confidence": rng.random(),
            "timestamp": timestamp,
        }
