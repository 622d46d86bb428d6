"""What is promised of agents that were made compact, and the records that are held to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agentmem.profiler.reference_agent import Case

L1 = 1e-6  # of a compact agent's belief from the dense one's
LIKE_DENSE = 1.01  # bytes, whatever an agent holds


@dataclass(frozen=True, slots=True)
class Limit:
    """What an agent may take: bytes, and the time of a step as a multiple of the dense agent's. None: any."""

    nbytes: float | None = None
    time: float | None = None


@dataclass(frozen=True, slots=True)
class Promise:
    """A figure beside the most it may be: bytes, times the dense agent's, L1, or how many differ."""

    what: str
    unit: Literal["bytes", "x", "L1", "count"]
    found: float
    most: float

    @property
    def kept(self) -> bool:
        return self.found <= self.most


@dataclass(frozen=True, slots=True)
class Differences:
    """Of an agent from the dense one: L1 of the belief, entries of the log, cells of the two tables."""

    belief: float
    log: int
    observation: int
    transition: int


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """A dense and a compact agent of one kind after the same steps.

    `nbytes` is what the compact one holds then, traced in a run of its own; `dense_bytes` and the bytes of each part
    are footprints. Seconds are of a step. `readings_differ` counts the steps that read something else.
    """

    case: Case
    interned: bool  # whether the likelihoods were: if not, each multiplication looks at all of their cells
    steps: int
    limit: Limit
    differences: Differences
    readings_differ: int
    dense_bytes: int
    nbytes: int
    dense_parts: dict[str, int]
    parts: dict[str, int]
    dense_seconds: float
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.case}" if self.interned else f"{self.case}, plain likelihoods"

    @property
    def time(self) -> float:
        """Of a step, as a multiple of the dense agent's."""
        return self.seconds / self.dense_seconds

    def promises(self) -> list[Promise]:
        kind, lost, limit = self.name, self.differences, self.limit
        found = [
            Promise(f"{kind}: belief", "L1", lost.belief, L1),
            Promise(f"{kind}: entries of the log that differ", "count", lost.log, 0),
            Promise(f"{kind}: cells of the observation that differ", "count", lost.observation, 0),
            Promise(f"{kind}: cells of the transition that differ", "count", lost.transition, 0),
            Promise(f"{kind}: steps that read otherwise", "count", self.readings_differ, 0),
            Promise(f"{kind}: agent beside dense", "bytes", self.nbytes, LIKE_DENSE * self.dense_bytes),
        ]
        found += [
            Promise(f"{kind}: {part} beside dense", "bytes", self.parts[part], LIKE_DENSE * dense)
            for part, dense in self.dense_parts.items()
        ]
        if limit.nbytes is not None:
            found.append(Promise(f"{kind}: agent", "bytes", self.nbytes, limit.nbytes))
        if limit.time is not None:
            found.append(Promise(f"{kind}: step beside dense", "x", self.time, limit.time))
        return found


@dataclass(frozen=True, slots=True)
class CrowdRecord:
    """Agents of one kind that were compacted into one pool, after `steps` of each: bytes of all together, traced."""

    case: Case
    agents: int
    steps: int
    limit: Limit
    nbytes: int

    @property
    def name(self) -> str:
        return f"{self.agents} agents, {self.case}"

    def promises(self) -> list[Promise]:
        most = self.limit.nbytes
        return [] if most is None else [Promise(self.name, "bytes", self.nbytes, most)]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Agents of one kind over many steps: memory of the process after the `sampled` ones.

    Logs keep every entry, so they grow as the lists in their place would, in fewer bytes: `log_bytes` of each sample
    are theirs. The rest must not grow.
    """

    case: Case
    agents: int
    limit: Limit
    sampled: tuple[int, ...]
    rss: tuple[int, ...]
    log_bytes: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.agents} agents, {self.case}, step {self.sampled[0]:,} to {self.sampled[-1]:,}"

    @property
    def log_growth(self) -> int:
        return self.log_bytes[-1] - self.log_bytes[0]

    @property
    def growth(self) -> int:
        """By how much the process grew from the first sample to the last, its logs left out."""
        return self.rss[-1] - self.rss[0] - self.log_growth

    def promises(self) -> list[Promise]:
        most = self.limit.nbytes
        return [] if most is None else [Promise(f"{self.name}: growth", "bytes", self.growth, most)]


Record = AgentRecord | CrowdRecord | RunRecord
