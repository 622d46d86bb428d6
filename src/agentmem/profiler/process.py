"""What the operating system says of this process's memory, in bytes."""

from __future__ import annotations

import sys
from pathlib import Path


def rss() -> int:
    """The memory this process has resident now, in bytes."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


def peak_rss() -> int:
    """The most memory this process has had resident, in bytes: VmHWM on Linux, elsewhere getrusage's figure.

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
