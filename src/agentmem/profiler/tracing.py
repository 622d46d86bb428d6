"""tracemalloc, of which a process has one, for many who need it: it runs until the last of them stops it, and its one
peak is kept for each of them.
"""

from __future__ import annotations

import threading
import tracemalloc
from typing import Protocol


class Rises(Protocol):
    """Who wants to know a peak."""

    def rise(self, highest: int) -> None: ...


class Tracing:
    """The state of tracemalloc that all profilers of this process share."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._users = 0
        self._open: list[Rises] = []
        self._highest = 0
        self._traced: object = None  # what was allocated in this session of tracing: in the next nobody knows of it
        self.session = 0             # whose number goes up as tracing begins or ends, whoever did that

    def start(self, frames: int) -> int:
        """Trace from now on, `frames` of each allocation if it did not before; return what `stop` is to be given."""
        with self._lock:
            self._look()
            if tracemalloc.is_tracing() and not self._users:
                return 0  # somebody else began it, and will end it
            if not tracemalloc.is_tracing():
                tracemalloc.start(frames)
                self._look()
            self._users += 1
            return self.session

    def stop(self, session: int) -> None:
        """Once for each `start`."""
        with self._lock:
            self._look()
            if session == self.session and self._users:  # else it was ended meanwhile
                self._users -= 1
                if not self._users:
                    tracemalloc.stop()
                    self._look()

    # The one peak is reset when a stretch begins or ends, and handed to all that are open.

    def enter(self, call: Rises) -> int:
        """Bytes traced now; `call` is told of peaks until it leaves."""
        with self._lock:
            now = self._look()
            self._open.append(call)
            return now

    def leave(self, call: Rises) -> int:
        """Bytes traced now."""
        with self._lock:
            now = self._look()
            self._open.remove(call)
            return now

    def highest(self) -> int:
        """The most bytes since tracing began, whoever reset the peak here meanwhile."""
        with self._lock:
            self._look()
            return self._highest

    def _look(self) -> int:
        is_tracing = tracemalloc.is_tracing()
        if is_tracing != (self._traced is not None) or (
            is_tracing and tracemalloc.get_object_traceback(self._traced) is None
        ):
            self.session += 1
            self._users, self._highest = 0, 0
            self._traced = object() if is_tracing else None
        now, peak = tracemalloc.get_traced_memory()
        if is_tracing:
            tracemalloc.reset_peak()
            self._highest = max(self._highest, peak)
            for call in self._open:
                call.rise(peak)
        return now


TRACING = Tracing()
