"""One look at the process and its agents, by every tool that was asked for; and what is between two looks.

Each tool may be left out. What was not measured is None, never zero; what a look costs itself is in it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, islice
from traceback import walk_stack
from types import FrameType, ModuleType

from agentmem._core import variables_of
from agentmem.footprint import Walk
from agentmem.profiler.agents import Agents, TooManyObjects, counters, holdings, named
from agentmem.profiler.process import process_memory
from agentmem.profiler.records import (
    AgentMemory,
    Change,
    Collector,
    Difference,
    Hotspot,
    Line,
    Snapshot,
    Traced,
    TypeUse,
)
from agentmem.profiler.tracing import TRACING

MOST = 200  # lines and types that are kept, of thousands: those that hold most
MOST_CHANGES = 50
OURS = "agentmem-sampler"  # the profiler's thread, in which no tuple is made of a generator
HERE = os.path.dirname(__file__) + os.sep
LOOKING = HERE, Walk.over.__code__.co_filename, tracemalloc.__file__  # is not what is looked for
RUNNING = tuple(HERE + name for name in ("script.py", "operations.py", "growth.py", "monitor.py"))  # what others wrote


def take(
    label: str,
    agents: Agents | None,
    *,
    types: bool,
    zero: float,
    most_objects: int | None = None,
    counted: bool = False,
) -> Snapshot:
    """Measure now; `zero` is when the clock began. Lines if tracemalloc is tracing, agents and types if asked for, and
    if `counted` what the containers that agents hold say of themselves.

    Agents of more than `most_objects` are not measured.
    """
    began, before = time.perf_counter(), tracemalloc.get_traced_memory()[0]
    process, collector = process_memory(), garbage_collector()  # before what takes memory itself
    traced = traced_lines() if tracemalloc.is_tracing() else None
    found, said = None, None
    if agents is not None:
        with suppress(TooManyObjects):
            found = holdings(named(agents), most=most_objects)
            said = counters(agents) if counted else None
    used = type_uses() if types and not _others_run() else None
    return Snapshot(
        label=label,
        at=began - zero,
        process=process,
        traced=traced,
        types=used,
        collector=collector,
        agents=None if found is None else found.agents,
        parts=None if found is None else _by_name(found.agents),
        shared=None if found is None else found.shared,
        mapped=None if found is None else found.mapped,
        counters=said,
        seconds=time.perf_counter() - began,
        nbytes=None if traced is None else max(0, tracemalloc.get_traced_memory()[0] - before),
    )


def traced_lines(most: int | None = MOST) -> Traced:
    """What tracemalloc holds, by line or, where it keeps several frames, by traceback. About 3 us per block held."""
    nbytes, peak = tracemalloc.get_traced_memory()[0], TRACING.highest()
    by = "lineno" if tracemalloc.get_traceback_limit() == 1 else "traceback"
    found = tracemalloc.take_snapshot().statistics(by)
    lines = (
        Line(" < ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(one.traceback)), one.size, one.count)
        for one in found
        if not _is_ours(one.traceback)
    )
    return Traced(nbytes, peak, tuple(islice(lines, most)))


def _is_ours(traceback: tracemalloc.Traceback) -> bool:
    """Whether a profiler allocated it: its own code did, or what that called, but not what it runs for others."""
    *callers, allocates = (frame.filename for frame in traceback)
    return allocates.startswith(LOOKING) or any(
        name.startswith(LOOKING) and not name.startswith(RUNNING) for name in callers
    )


def _others_run() -> bool:
    """Whether there are threads but this one and those that sample.

    While one of them makes a tuple of what a generator yields, CPython fails if another holds a reference to it; and
    who lists all objects holds one to each.
    """
    ours = {thread.ident for thread in threading.enumerate() if thread.name == OURS}
    return len(sys._current_frames().keys() - ours - {threading.get_ident()}) > 0


def type_uses() -> tuple[TypeUse, ...]:
    """The types whose objects take most bytes. About 4 us an object, of all the process has."""
    try:
        from pympler import summary
    except ImportError:
        raise ImportError("types need pympler: pip install 'agentmem-native[profile]'", name="pympler") from None
    rows = summary.summarize(_all_objects())
    rows.sort(key=lambda row: (-row[2], row[0]))
    return tuple(TypeUse(name, count, nbytes) for name, count, nbytes in rows[:MOST])


def _all_objects() -> list[object]:
    """What the garbage collector tracks, but frames, what the functions that run here hold, and what these refer to.

    Modules are not asked, as pympler's muppy does: what they hold is in their dicts, and in CPython 3.12.1 the one of
    asyncio gives away objects that it keeps for later, and the process never ends.
    """
    gc.collect()
    below = [one for one in gc.get_objects() if type(one) is not FrameType]
    found = {id(one): one for one in below}
    below += (variables_of(caller) for caller, _ in walk_stack(sys._getframe(1)))
    while below:
        one = below.pop()
        for held in () if issubclass(type(one), ModuleType) else gc.get_referents(one):
            if not gc.is_tracked(held) and id(held) not in found:  # no closure: it would be found, and have itself
                found[id(held)] = held
                below.append(held)
    return list(found.values())


def garbage_collector() -> Collector:
    generations = gc.get_stats()
    collections, collected, uncollectable = (
        sum(generation[key] for generation in generations) for key in ("collections", "collected", "uncollectable")
    )
    return Collector(gc.isenabled(), collections, collected, uncollectable)


# ---- what is in a snapshot


def held(snapshot: Snapshot) -> dict[tuple[str, str], int]:
    """Bytes by kind and name: all that a snapshot says of who holds what."""
    found: Counter[tuple[str, str]] = Counter()
    for line in () if snapshot.traced is None else snapshot.traced.lines:
        found["line", line.where] += line.nbytes
    for use in snapshot.types or ():
        found["type", use.name] += use.nbytes
    for agent in snapshot.agents or ():
        found["agent", agent.name] += agent.own
    for part, nbytes in (snapshot.parts or {}).items():
        found["part", part] += nbytes
    for shared in snapshot.shared or ():
        found["shared", shared.name] += shared.nbytes
    return dict(found)


def difference(before: Snapshot, after: Snapshot) -> Difference:
    """What changed from one snapshot to another; what grew most first.

    Of many lines and types a snapshot keeps the largest: what is missing is taken to have been as large as they.
    """
    process = [("rss", "rss"), ("pss", "pss"), ("peak RSS", "peak_rss")]
    changes = [
        Change("process", name, was, now)
        for name, field in process
        if (was := getattr(before.process, field)) is not None and (now := getattr(after.process, field)) is not None
    ]
    if before.traced is not None and after.traced is not None:
        changes.append(Change("process", "traced", before.traced.nbytes, after.traced.nbytes))
    old, new = held(before), held(after)
    least_old, least_new = _least_kept(before), _least_kept(after)
    moved = []
    for kind, name in sorted({*old, *new}):
        if kind in least_old and kind in least_new:
            was, now = old.get((kind, name), least_old[kind]), new.get((kind, name), least_new[kind])
            appeared, vanished = (kind, name) not in old, (kind, name) not in new
            if (now > was and not vanished) or (now < was and not appeared):
                moved.append(Change(kind, name, was, now))
    moved = sorted(moved, key=lambda change: -abs(change.grown))[:MOST_CHANGES]
    moved.sort(key=lambda change: -change.grown)
    return Difference(before.label, after.label, after.at - before.at, tuple(chain(changes, moved)))


def hotspots(snapshot: Snapshot, share: float = 0.05) -> tuple[Hotspot, ...]:
    """Who holds at least this share of what is held by all of its kind, most first.

    Of lines that is all that tracemalloc traced, of types the bytes of those that were kept, of agents, their parts and
    what they share the bytes of all of these.
    """
    if not isinstance(share, int | float) or not 0 < share <= 1:
        raise ValueError(f"share={share} given; expected a number above 0 and at most 1")
    return tuple(sorted(_hotspots(snapshot, share), key=_by_share))


def hotspots_of_all(snapshots: Sequence[Snapshot], share: float = 0.05) -> tuple[Hotspot, ...]:
    """Of each kind, those in the snapshot in which all of it held most: a function's variables end with it."""
    found: list[Hotspot] = []
    totals = [_totals(one) for one in snapshots]
    for kind in totals[0] if totals else ():
        most = max(range(len(snapshots)), key=lambda k: (totals[k][kind], k))
        found += [spot for spot in _hotspots(snapshots[most], share) if spot.kind == kind]
    return tuple(sorted(found, key=_by_share))


def _by_share(spot: Hotspot) -> tuple[float, str, str]:
    return -spot.share, spot.kind, spot.name


def _hotspots(snapshot: Snapshot, share: float) -> Iterator[Hotspot]:
    totals = _totals(snapshot)
    for (kind, name), nbytes in held(snapshot).items():
        if totals[kind] and nbytes >= share * totals[kind]:
            yield Hotspot(kind, name, nbytes, nbytes / totals[kind])  # type: ignore[arg-type]


def _totals(snapshot: Snapshot) -> dict[str, int]:
    """Bytes of all there is of a kind."""
    return {
        "line": 0 if snapshot.traced is None else snapshot.traced.nbytes,
        "type": sum(use.nbytes for use in snapshot.types or ()),
    } | dict.fromkeys(("agent", "part", "shared"), snapshot.agent_bytes or 0)


def _by_name(agents: tuple[AgentMemory, ...]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for agent in agents:
        found.update(agent.parts)
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def _least_kept(snapshot: Snapshot) -> dict[str, int]:
    """For each kind that was measured, what a holder that does not appear has at most."""
    least = {}
    if snapshot.traced is not None:
        least["line"] = snapshot.traced.lines[-1].nbytes if len(snapshot.traced.lines) == MOST else 0
    if snapshot.types is not None:
        least["type"] = snapshot.types[-1].nbytes if len(snapshot.types) == MOST else 0
    return least if snapshot.agents is None else least | dict.fromkeys(("agent", "part", "shared"), 0)
