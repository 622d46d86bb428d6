"""What a profiler has seen of the script beside it, written now and then: little is lost if the process is killed.

    States ---- a thread ----> looks at the script's variables, less often the longer it runs and the more they are
                               writes what has been seen, for `script.Run` in the other process
"""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from agentmem.footprint import in_units
from agentmem.profiler.monitor import Profiler
from agentmem.profiler.process import peak_rss, rss
from agentmem.profiler.report import to_json

EVERY = 0.2       # seconds between two states
FIRST_LOOK = 0.2  # seconds between two snapshots, or
SHARE = 0.1       # of the time that it has run, up to
LOOK = 5.0        # seconds
PATIENCE = 20     # times what a state or snapshot takes pass at least until the next one
MOST_OBJECTS = 1_000_000  # of variables, that are looked at: more would take the script's time and memory


class States:
    """A thread beside a script; `look` and `write` are called by the script's own thread, too, when it ends."""

    __slots__ = ("_path", "_profiler", "_stop", "_taken", "_thread", "duration", "notes", "resident")

    def __init__(self, profiler: Profiler, path: Path) -> None:
        self._profiler, self._path = profiler, path
        self.notes: tuple[str, ...] = ()
        self.duration: float | None = None  # of the script, when it has ended
        self.resident = 0  # bytes, before the script
        self._taken = 0  # bytes resident, by the most costly look
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="agentmem-states", daemon=True)

    def start(self) -> None:
        self.write("still running")
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def look(self, label: str, *, types: bool = False, counters: bool = False) -> float:
        """Take a snapshot, and return the seconds it took, not those that this thread waited for the script's. What a
        script holds may raise when it is looked at.
        """
        began = time.thread_time()
        try:
            if self._profiler.snapshot(label, types=types, counters=counters).agents is None:
                self.note(f"its variables lead to over {MOST_OBJECTS:,} objects, and were not looked at then")
        except Exception as error:
            self.note(f"a look at what the script holds failed: {type(error).__name__}")
        return time.thread_time() - began

    def note(self, said: str) -> None:
        self.notes = tuple(dict.fromkeys([*self.notes, said]))

    def write(self, ended: str) -> None:
        """Write what has been seen; without a place for it the script goes on."""
        unfinished = self._path.with_suffix(".new")
        notes = self.notes
        if self._taken >= 2**20:
            taken = in_units(self._taken)
            notes += (f"RSS rose by up to {taken} while variables were looked at, which is in its peak",)
        profile = self._profiler.profile(ended=ended, notes=notes)
        seen = max((taken.agent_bytes or 0 for taken in profile.snapshots), default=0)
        more = in_units(max(0, peak_rss() - self.resident))
        on_top = f"at its most the script had {more} more resident, and its variables held {in_units(seen)}"
        profile = replace(profile, notes=(*profile.notes, on_top))
        if self.duration is not None:
            profile = replace(profile, duration=self.duration)
        with suppress(OSError):
            unfinished.write_text(json.dumps(to_json(profile)), encoding="utf-8")
            unfinished.replace(self._path)

    def _go_on(self) -> None:
        pause, cost, started = EVERY, 0.0, time.monotonic()
        looked = started
        while not self._stop.wait(pause):
            began, cpu = time.monotonic(), time.thread_time()
            look = min(max(FIRST_LOOK, SHARE * (began - started)), LOOK)
            if began - looked >= max(look, PATIENCE * cost):
                before, highest = rss(), peak_rss()
                cost = self.look("while it runs")
                peak = peak_rss()
                self._taken = max(self._taken, (peak if peak > highest else rss()) - before)
                looked = began
            try:
                self.write("still running")
            except Exception as error:  # the next one may be written
                self.note(f"a state was not written: {type(error).__name__}")
            pause = max(EVERY, PATIENCE * (time.thread_time() - cpu))
