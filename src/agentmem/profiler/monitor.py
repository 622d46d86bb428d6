"""Profiler: looks at a process and its agents, when asked and again and again.

    Profiler --- snapshot(), difference(), hotspots(), reconcile()      at one moment, or between two
             --- with profiler: ...                                     a thread that samples
             --- profile_operation(name)                                blocks, functions, generators, coroutines
             --- growth(n_samples), check_cycle(run)                    does it grow, and where
             --- profile()                                              all of it, for a report
"""

from __future__ import annotations

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from operator import index
from typing import Self

import numpy as np

from agentmem.profiler import growth, records, snapshot
from agentmem.profiler.agents import Agents
from agentmem.profiler.operations import Operation
from agentmem.profiler.reconcile import reconcile
from agentmem.profiler.records import (
    Cycle,
    Difference,
    Event,
    Hotspot,
    Profile,
    Reconciled,
    Snapshot,
    Trend,
)
from agentmem.profiler.sampler import Sampler
from agentmem.profiler.tracing import TRACING
from agentmem.profiler.trend import FEWEST, detect_trend

MOST_SNAPSHOTS = 100  # that are kept, the latest; a caller has the others
MOST_FRAMES = 100     # of an allocation


class Profiler:
    """What memory is held, by whom, and whether it grows.

    Parameters
    ----------
    agents : mapping, iterable or None
        Whose footprints are measured, part by part. Looked up anew at each look: agents may come and go.
    interval : float, optional
        Seconds between two samples, for ``with profiler:``; None: no thread.
    lines : int or bool
        Frames that tracemalloc keeps of each allocation, from here to `close` or the end of the ``with``; True is one,
        the line that allocates; 0: it does not trace. What allocates much takes 2.5 to 13 times as long meanwhile.
        Several profilers trace together, with the frames of the first, until the last of them ends.
    types : bool
        Count objects by type at each snapshot, with pympler (extra `profile`): about 4 us an object. Not while other
        threads run: one that makes a tuple just then would fail.
    capacity : int
        Samples that are kept; the oldest go first.
    most_objects : int, optional
        Agents of more objects than that together are not looked at: a look takes 2 us and 200 bytes for each.

    Raises
    ------
    ValueError, TypeError
        For options that do not fit.

    Notes
    -----
    Nothing starts before it is asked for, and nothing in the agents changes. Any thread may call any method. What is
    looked at has another reference meanwhile: `ndarray.resize` refuses, and what ends then ends after the look, on the
    thread that looked, which cannot release a lock of the one that it was made on.

    Examples
    --------
    >>> import numpy as np
    >>> table = np.zeros(10_000)
    >>> robots = {"left": {"table": table, "log": ["begin"]}, "right": {"table": table, "log": []}}
    >>> profiler = Profiler(agents=robots)
    >>> before = profiler.snapshot("before")
    >>> before.shared[0].name, before.shared[0].nbytes, before.shared[0].holders
    ('left.table', 80112, 2)
    >>> robots["right"]["map"] = np.ones(5_000)
    >>> change = profiler.difference(before, profiler.snapshot("after")).changes
    >>> [(one.name, one.grown) for one in change if one.kind == "part"][0]
    ('map', 40112)
    """

    __slots__ = (
        "_agents", "_events", "_most_objects", "_n_snapshots", "_operations", "_sampler", "_snapshots", "_started",
        "_traces", "_types", "_zero",
    )  # fmt: skip

    def __init__(
        self,
        agents: Agents | None = None,
        *,
        interval: float | None = None,
        lines: int = 0,
        types: bool = False,
        capacity: int = 10_000,
        most_objects: int | None = None,
    ) -> None:
        self._zero = time.perf_counter()
        if index(capacity) < 1:
            raise ValueError(f"capacity={capacity} given; expected at least 1")
        if not 0 <= index(lines) <= MOST_FRAMES:
            raise ValueError(f"lines={lines} given; expected 0 to {MOST_FRAMES} frames")
        is_collection = isinstance(agents, Iterable) and not isinstance(agents, str | bytes | Iterator)
        if agents is not None and not is_collection:
            given = type(agents).__name__
            raise TypeError(f"agents of type {given} given; expected a mapping, a list or another collection")
        if not (interval is None or isinstance(interval, int | float)):
            raise TypeError(f"interval={interval!r} given; expected seconds, or None")
        self._agents, self._types, self._most_objects = agents, types, most_objects
        self._n_snapshots = 0
        self._sampler = (
            None
            if interval is None
            else Sampler(interval, agents, capacity=capacity, zero=self._zero, most_objects=most_objects)
        )
        self._started = datetime.now(UTC)
        self._snapshots: deque[Snapshot] = deque(maxlen=MOST_SNAPSHOTS)
        self._events: deque[Event] = deque(maxlen=capacity)
        self._operations: dict[str, Operation] = {}
        self._traces = TRACING.start(index(lines)) if index(lines) else 0

    def __enter__(self) -> Self:
        """Begin to sample, where an interval was given."""
        if self._sampler is not None:
            self._sampler.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def end_samples(self) -> None:
        """Take a last sample, and no more; tracing goes on."""
        if self._sampler is not None:
            self._sampler.stop()

    def close(self) -> None:
        """End what this profiler began: the thread, after a last sample, and the tracing. What was seen stays."""
        self.end_samples()
        TRACING.stop(self._traces)
        self._traces = 0

    # ---- at one moment

    def snapshot(self, label: str = "", *, types: bool | None = None, counters: bool = False) -> Snapshot:
        """Measure the process and each agent now; the last 100 snapshots are kept. Its cost in seconds is in it.

        `types` as for the profiler; None: as that was told. `counters`: ask the containers of agentmem, too, what they
        hold; that takes as long again as to look at them.
        """
        _check_text(label)
        taken = snapshot.take(
            label,
            self._agents,
            types=self._types if types is None else types,
            zero=self._zero,
            most_objects=self._most_objects,
            counted=counters,
        )
        self._snapshots.append(taken)
        self._n_snapshots += 1
        mark = label or f"snapshot {self._n_snapshots}"
        if not (self._events and self._events[-1].text == mark):  # of many looks the first is marked
            self._events.append(Event(taken.at, mark))
        return taken

    @staticmethod
    def difference(before: Snapshot, after: Snapshot) -> Difference:
        """What grew and what shrank between two snapshots, what grew most first."""
        return snapshot.difference(before, after)

    def hotspots(self, share: float = 0.05) -> tuple[Hotspot, ...]:
        """Lines, types, agents, parts of agents, and what agents share, that hold at least this share of their kind's.

        Of the last snapshot; one is taken if there is none.
        """
        return snapshot.hotspots(self._latest(), share)

    def reconcile(self) -> tuple[Reconciled, ...]:
        """Counters, walk, traced bytes and RSS of now beside each other, and what the differences are made of."""
        return reconcile(self.snapshot("reconcile", counters=True))

    def _latest(self) -> Snapshot:
        return self._snapshots[-1] if self._snapshots else self.snapshot("hotspots")

    @property
    def agents(self) -> Agents | None:
        """The agents that were given."""
        return self._agents

    # ---- over time

    @property
    def samples(self) -> records.Samples | None:
        """What the thread has seen until now; None if no interval was given."""
        return None if self._sampler is None else self._sampler.samples

    def profile_operation(self, name: str) -> Operation:
        """What is done under this name, to be measured: ``with`` it, or as a decorator. The same for the same name."""
        _check_text(name)
        return self._operations.setdefault(name, Operation(name))

    @property
    def operations(self) -> tuple[records.Operation, ...]:
        """What the operations have taken until now."""
        return tuple(operation.record for operation in list(self._operations.values()))

    def mark(self, text: str) -> None:
        """Put a mark into the chart of memory over time."""
        _check_text(text)
        self._events.append(Event(self.seconds, text))

    def growth(self, n_samples: int) -> growth.Growth:
        """A recorder of where memory is, for one verdict per line and part of an agent: see `Growth`."""
        return growth.Growth(self._agents, n_samples=n_samples)

    @staticmethod
    def check_cycle(run: Callable[[], object], *, cycles: int = 5, allowed: int = 64) -> Cycle:
        """Whether building, running and dropping something returns to where it was: see `growth.check_cycle`."""
        return growth.check_cycle(run, cycles=cycles, allowed=allowed)

    @property
    def seconds(self) -> float:
        """Since this profiler was made."""
        return time.perf_counter() - self._zero

    # ---- all of it

    def profile(self, command: str = "", *, ended: str = "still running", notes: tuple[str, ...] = ()) -> Profile:
        """All that was seen until now, as one record for `report`."""
        snapshots, samples = tuple(self._snapshots), self.samples
        return Profile(
            command=command,
            started=self._started.isoformat(timespec="seconds"),
            duration=self.seconds,
            ended=ended,
            is_whole=ended != "still running",
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.release()} {platform.machine()}",  # platform() runs a command
            samples=samples,
            snapshots=snapshots,
            events=tuple(self._events),
            operations=self.operations,
            hotspots=snapshot.hotspots_of_all(snapshots),
            trends=() if samples is None else judged(samples),
            reconciled=reconcile(snapshots[-1]) if snapshots else (),
            notes=(*notes, *self._failures()),
        )

    def _failures(self) -> list[str]:
        failures = {} if self._sampler is None else self._sampler.failures
        return [said if n == 1 else f"{n:,} times: {said}" for said, n in list(failures.items())]


def judged(samples: records.Samples) -> tuple[Trend, ...]:
    """Whether each series grows, as far as it was sampled. RSS only by a MiB or more: looks leave some of it behind."""
    series = {"RSS": samples.rss, "traced": samples.traced, "agents": samples.agents}
    found = []
    for name, values in series.items():
        known = [(k, value) for k, value in enumerate(values) if value is not None]
        if known:
            places, heights = np.array(known, float).T
            if len(known) >= FEWEST:  # in between it goes straight
                heights = np.interp(np.arange(places[0], places[-1] + 1), places, heights)
            least = max(growth.LEAST, 2**20 / len(heights)) if name == "RSS" else growth.LEAST
            found.append(detect_trend(heights, name=name, minimum_slope=least))
    return tuple(found)


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} given; expected a text")
