"""What the profiler finds, as frozen records; `None` is what was not measured. Sizes are bytes, times seconds.

    Snapshot    the process and each agent at one moment
    Samples     figures of the process, again and again
    Operation   what a piece of work took
    Trend       whether a series grows
    Profile     all of these, of one run: what a report is made of

Nothing is measured and nothing is rendered here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["growing", "decelerating", "flat", "not enough data"]


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """What the operating system says. `pss` divides each shared page among those who share it."""

    rss: int
    peak_rss: int
    pss: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """What tracemalloc traced to one line of source and is still held; with callers where it keeps several frames."""

    where: str  # "file.py:12", "file.py:12 < caller.py:7"
    nbytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Traced:
    """What tracemalloc saw: bytes held now, the most since tracing began, and the lines that hold most."""

    nbytes: int
    peak: int
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class TypeUse:
    """Objects of one type, as pympler finds them; bytes are their own, not what they refer to."""

    name: str
    count: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Collector:
    """The garbage collector: whether it runs, and since the start of the process how often it ran, what it collected
    and could not, over all generations."""

    enabled: bool
    collections: int
    collected: int
    uncollectable: int


@dataclass(frozen=True, slots=True)
class AgentMemory:
    """One registered agent: bytes that only it keeps alive, by part; and those that others keep alive too."""

    name: str
    own: int
    shared: int
    parts: dict[str, int]  # of `own`


@dataclass(frozen=True, slots=True)
class SharedPart:
    """What several agents hold, counted once; named after the first that reaches it. Of one name, all together; then
    `holders` are those of the one that most hold."""

    name: str
    nbytes: int
    holders: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The process and its agents at one moment, `at` seconds after the profiler was made.

    `seconds` is what the taking of it cost, `nbytes` what of it is kept, where tracemalloc runs.
    """

    label: str
    at: float
    process: ProcessMemory
    traced: Traced | None
    types: tuple[TypeUse, ...] | None
    collector: Collector | None
    agents: tuple[AgentMemory, ...] | None
    parts: dict[str, int] | None  # bytes of parts by name, all agents together, shared ones left out; most first
    shared: tuple[SharedPart, ...] | None
    mapped: int | None  # of what the agents hold: memory maps, which other processes may share
    counters: int | None  # of what they hold: agentmem's containers, as these count themselves
    seconds: float
    nbytes: int | None

    @property
    def agent_bytes(self) -> int | None:
        """All that the agents hold, shared parts once."""
        if self.agents is None or self.shared is None:
            return None
        return sum(agent.own for agent in self.agents) + sum(part.nbytes for part in self.shared)


@dataclass(frozen=True, slots=True)
class Change:
    """By how much something grew from one snapshot to the next; `kind` is that of a `Hotspot`, or "process"."""

    kind: str
    name: str
    before: int
    after: int

    @property
    def grown(self) -> int:
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Difference:
    """What changed between two snapshots, by their labels, what grew most first. What one of them lacks is left out."""

    before: str
    after: str
    seconds: float
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Hotspot:
    """A holder of at least the share of memory that was asked for, of what its kind holds in all."""

    kind: Literal["line", "type", "agent", "part", "shared"]
    name: str
    nbytes: int
    share: float


@dataclass(frozen=True, slots=True)
class Operation:
    """What the calls of one name took: the longest and all of them, and in the one that took most memory the peak above
    its start and what it left behind. Memory is traced where tracemalloc runs, else RSS; of that a peak is known only
    where the process was never larger before."""

    name: str
    calls: int
    seconds: float
    longest: float
    peak: int | None
    retained: int
    measured: Literal["traced", "rss"]


@dataclass(frozen=True, slots=True)
class Trend:
    """What `detect_trend` says of a series: `slope` and the 99 % `interval` around it are per sample, `rise` is the
    growth over the samples judged, and `projection` the value after as many samples again, None where it is flat.

    Where `reason` says so, the largest step does not count in them.
    """

    name: str
    verdict: Verdict
    samples: int
    slope: float | None
    interval: tuple[float, float] | None
    rise: float | None
    projection: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Cycle:
    """What `check_cycle` found: traced bytes that each cycle left behind after the warm-up, and by which lines.

    `returns`: whether memory comes back to where it was, but for `allowed` bytes a cycle.
    """

    cycles: int
    left: tuple[int, ...]
    allowed: int
    returns: bool
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Samples:
    """What a sampling thread saw: one entry each `interval` seconds, `seconds` after the profiler was made.

    `agents` is the estimate of a round-robin over the agents, a few at each sample. `overruns` are samples that came
    late by an interval or more; `cpu_seconds` is the thread's own time.
    """

    interval: float
    seconds: tuple[float, ...] = ()
    rss: tuple[int, ...] = ()
    traced: tuple[int | None, ...] = ()
    agents: tuple[int | None, ...] = ()
    overruns: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth a mark in the chart: a snapshot, or what the program marks."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Reconciled:
    """One line of `Profiler.reconcile`: bytes, the tool that counts them, and what else is in them or is not."""

    what: str
    nbytes: int | None
    tool: str
    note: str


@dataclass(frozen=True, slots=True)
class Profile:
    """One run of a program, as far as it was seen.

    `ended` is "finished", or says what ended it: "raised ValueError: ...", "exited with 3", "killed by SIGKILL",
    "still running". `is_whole`: whether the last figures are of its end.
    """

    command: str
    started: str  # ISO 8601, UTC
    duration: float
    ended: str
    is_whole: bool
    python: str
    platform: str
    samples: Samples | None = None
    snapshots: tuple[Snapshot, ...] = ()
    events: tuple[Event, ...] = ()
    operations: tuple[Operation, ...] = ()
    hotspots: tuple[Hotspot, ...] = ()
    trends: tuple[Trend, ...] = ()
    reconciled: tuple[Reconciled, ...] = ()
    notes: tuple[str, ...] = ()
