"""Sampler: a thread that looks at the process again and again, and costs next to nothing.

    each interval:  RSS, traced bytes if tracemalloc runs, and the footprint of as many agents as its time allows
        -> ring of the last samples, in a HistoryBuffer
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from math import isfinite

import numpy as np

from agentmem.footprint import Walk
from agentmem.history import HistoryBuffer
from agentmem.profiler.agents import Agents, TooManyObjects, holdings, named
from agentmem.profiler.process import Resident
from agentmem.profiler.records import Samples
from agentmem.profiler.snapshot import OURS

SHARE = 0.004  # of one core, that footprints take
UNKNOWN = -1   # in the ring, where nothing was measured
SAMPLE = np.dtype([("seconds", "f8"), ("rss", "i8"), ("traced", "i8"), ("agents", "i8")])


class Sampler:
    """Samples of this process, from `start` to `stop`.

    Parameters
    ----------
    interval : float
        Seconds from one sample to the next, from 0.001 on. A sample that is late by one or more is an overrun; what it
        missed is not made up.
    agents : mapping, iterable or None
        Whose bytes are estimated: a few at each sample, in turn, those of the others as they were last.
    capacity : int
        Samples that are kept; the oldest go first.
    zero : float
        When the clock, `time.perf_counter`, began.

    Notes
    -----
    A sample takes about 50 us. Footprints take 0.4 % of one core after the first look at all agents: half of it for
    more such looks, half for a few agents at a time. What agents share counts once, and is kept alive from one look at
    all to the next. One thread, which ends with the process; `samples` may be called from any.
    """

    __slots__ = ("_cpu", "_interval", "_lock", "_overruns", "_resident", "_ring", "_stop", "_thread", "_turns", "_zero",
                 "failures")  # fmt: skip

    def __init__(
        self, interval: float, agents: Agents | None, *, capacity: int, zero: float, most_objects: int | None = None
    ) -> None:
        if not (isfinite(interval) and interval >= 0.001):
            raise ValueError(f"interval={interval} given; expected seconds, at least 0.001")
        self._interval, self._zero = interval, zero
        self._turns = None if agents is None else Turns(agents, SHARE * interval, most_objects)
        self.failures: dict[str, int] = {}  # what failed, and how often
        self._ring = HistoryBuffer(capacity, dtype=SAMPLE)
        self._overruns, self._cpu, self._resident = 0, 0.0, Resident()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin. RuntimeError if it has."""
        if self._thread is not None:
            raise RuntimeError("the sampler has begun already; a profiler samples once: make another")
        self._thread = threading.Thread(target=self._run, name=OURS, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take the last sample and end; nothing if it did not begin, or ended."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        due = time.perf_counter()
        while True:
            is_last = self._stop.is_set()
            self._sample()
            self._cpu = time.thread_time()
            if is_last:
                self._resident.close()
                self._turns = None  # nothing of the agents is kept
                return
            due += self._interval
            late = time.perf_counter() - due
            if late >= self._interval:
                self._overruns += int(late / self._interval)
                due += int(late / self._interval) * self._interval
            self._stop.wait(max(0.0, due - time.perf_counter()))

    def _sample(self) -> None:
        traced = tracemalloc.get_traced_memory()[0] if tracemalloc.is_tracing() else UNKNOWN
        agents = None
        try:
            agents = None if self._turns is None else self._turns.next()
        except TooManyObjects as error:
            self._failed(f"the agents' bytes were not sampled: {error}")  # they may be fewer later
        except Exception as error:  # of an agent's own code, or because another thread changes it: the samples go on
            self._failed(f"a look at agents failed: {type(error).__name__}")
        known = UNKNOWN if agents is None else agents
        try:
            row = np.array((time.perf_counter() - self._zero, self._resident.now(), traced, known), SAMPLE)
            with self._lock:
                self._ring.append(row)
        except Exception as error:  # no file can be opened, no memory is left
            self._failed(f"a sample failed: {type(error).__name__}")

    def _failed(self, said: str) -> None:
        self.failures[said] = self.failures.get(said, 0) + 1

    @property
    def samples(self) -> Samples:
        """What there is of them."""
        with self._lock:
            rows = self._ring[:]

        def measured(name: str) -> tuple[int | None, ...]:
            return tuple(None if value == UNKNOWN else value for value in rows[name].tolist())

        return Samples(
            interval=self._interval,
            seconds=tuple(rows["seconds"].tolist()),
            rss=tuple(rows["rss"].tolist()),
            traced=measured("traced"),
            agents=measured("agents"),
            overruns=self._overruns,
            cpu_seconds=self._cpu,
        )


class Turns:
    """An estimate of what agents hold: now and then a look at all of them, in between at some, in turn."""

    __slots__ = ("_agents", "_at", "_for_all", "_for_some", "_look_at_all", "_most", "_own", "_seconds",
                 "_shared", "_shared_bytes")  # fmt: skip

    def __init__(self, agents: Agents, seconds: float, most_objects: int | None = None) -> None:
        """`seconds` of a thread's time is what each look takes, on average over many; the first one is a gift."""
        self._agents, self._seconds, self._most = agents, seconds, most_objects
        self._for_all, self._for_some = 0.0, 0.0  # seconds that were not needed yet
        self._look_at_all = 0.0                   # seconds that the last one took
        self._at = 0                              # whose turn it is
        self._own: list[int] = []                 # bytes that only this agent holds, by place
        self._shared, self._shared_bytes = Walk(), 0

    def next(self) -> int | None:
        """Bytes of all agents, shared ones once, the others than those whose turn it is as they were last.

        None where it is nobody's turn.
        """
        self._for_all += self._seconds / 2
        self._for_some += self._seconds / 2
        began = time.thread_time()
        if self._for_all >= self._look_at_all:
            try:
                self._look(0, None)
            finally:  # one that fails is paid for as well
                self._look_at_all, self._for_all = max(time.thread_time() - began, 1e-6), 0.0
        elif (n := int(self._for_some * len(self._own) / self._look_at_all)) > 0:
            try:
                self._look(self._at, self._at + n)
            finally:
                self._for_some -= time.thread_time() - began
        else:
            return None
        return sum(self._own) + self._shared_bytes

    def _look(self, first: int, last: int | None) -> None:
        """Look at agents from one place to another."""
        given = named(self._agents, first, last)
        if last is None:  # who shares what, and who is still there, is seen at a look at all
            self._own, self._shared, self._shared_bytes = [], Walk(), 0
        self._at = first + len(given) if len(given) == (last or 0) - first else 0
        found = holdings(given, self._shared, most=self._most)
        self._own[first : first + len(given)] = [agent.own for agent in found.agents]
        self._shared_bytes += sum(part.nbytes for part in found.shared)
