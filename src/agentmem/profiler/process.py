"""What the operating system says of this process's memory, in bytes."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from agentmem.profiler.records import ProcessMemory

PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def rss() -> int:
    """The memory this process has resident now. About 10 us on Linux, where no library is needed."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as statm:
            return int(statm.read().split()[1]) * PAGE
    except OSError:
        import psutil  # type: ignore[import-untyped]

        return int(psutil.Process().memory_info().rss)


class Resident:
    """`rss` again and again, from a file that stays open: it gives the interpreter's lock away once, not three times,
    and gets it back late where other threads are busy. Of the process that made it, not of one that it forks.
    """

    __slots__ = ("_file", "_node")

    def __init__(self) -> None:
        self._file: int | None = None
        self._node = 0, 0

    def now(self) -> int:
        try:
            if self._file is None:
                self._file = os.open("/proc/self/statm", os.O_RDONLY)
                self._node = _node(self._file)
            _, resident, _, _, _, _, _ = os.pread(self._file, 200, 0).split()
            return int(resident) * PAGE
        except (OSError, ValueError):  # not Linux; or the program has closed all files, and opened others
            self._file = None
            return rss()

    def close(self) -> None:
        with suppress(OSError):
            if self._file is not None and _node(self._file) == self._node:
                os.close(self._file)
        self._file = None


def _node(file: int) -> tuple[int, int]:
    status = os.fstat(file)
    return status.st_dev, status.st_ino


def peak_rss() -> int:
    """The most memory this process has had resident: VmHWM on Linux, elsewhere getrusage's figure.

    VmHWM first, because Linux hands `ru_maxrss` down from the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def children_peak_rss() -> int:
    """The most that a child process had resident which has ended and was waited for; 0 if there was none."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def process_memory() -> ProcessMemory:
    """All three figures; `pss` where Linux keeps a `smaps_rollup`. It goes through all pages: 0.1 ms to 10 ms a GiB."""
    pss = None
    rollup = Path("/proc/self/smaps_rollup")
    if rollup.exists():
        for line in rollup.read_text().splitlines():
            if line.startswith("Pss:"):
                pss = 1024 * int(line.split()[1])
    return ProcessMemory(rss=rss(), peak_rss=peak_rss(), pss=pss)
