"""Looking at another process, again and again, from outside: its memory by kind, and which of its maps grow.

Everything is read from /proc; nothing is asked of the process itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOST_GROWERS = 5
EVERY_MAP = 20  # times what a look at all maps takes pass at least until the next one


@dataclass(frozen=True, slots=True)
class Grower:
    """A file, heap or other map of a process, whose resident bytes have grown by so many since the watch began."""

    name: str
    nbytes: int
    grown: int


@dataclass(frozen=True, slots=True)
class Look:
    """A process at one moment, `seconds` after the watch began. Sizes are bytes.

    `growers` are those maps that have grown most.
    """

    pid: int
    command: str
    seconds: float
    began: str  # ticks of the machine: what tells it from a later one of its number
    rss: int
    peak_rss: int
    parts: dict[str, int]  # of `rss`: anonymous memory, files, shared memory; and swap beside it
    threads: int
    growers: tuple[Grower, ...]


def watch(pid: int, interval: float, command: str | None = None) -> Iterator[Look]:
    """Look at a process every `interval` seconds until it ends. Its command is what the system says unless told.

    Raises ProcessLookupError where there is none, and PermissionError where it belongs to another user.
    """
    home = Path(f"/proc/{pid}")
    try:
        began_as = _started(home)
        first = _maps(home)
    except FileNotFoundError:
        raise ProcessLookupError(f"there is no process {pid}") from None
    except PermissionError:
        user = f"number {home.stat().st_uid}"
        with suppress(KeyError):  # a user without a name, as in containers
            user = home.owner()
        raise PermissionError(f"process {pid} belongs to another user, {user}: its memory is hidden") from None
    if "VmRSS" not in _status(home):
        raise ProcessLookupError(f"process {pid} has no memory of its own: it is one of the kernel's, or has ended")
    command = _command(home) if command is None else command
    zero = time.monotonic()
    growers: tuple[Grower, ...] = ()
    mapped_at, cost = zero, 0.0
    due = zero
    while True:
        now = time.monotonic()
        try:
            status = _status(home)
            if now - mapped_at >= EVERY_MAP * cost:
                growers, mapped_at = _growers(first, _maps(home)), now
                cost = time.monotonic() - now
            if _started(home) != began_as or "VmRSS" not in status:  # its number is another's, or it is a zombie
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        yield Look(
            pid=pid,
            command=command,
            seconds=now - zero,
            began=began_as,
            rss=status["VmRSS"],
            peak_rss=status.get("VmHWM", status["VmRSS"]),
            parts={
                "anonymous": status.get("RssAnon", 0),
                "files": status.get("RssFile", 0),
                "shared memory": status.get("RssShmem", 0),
                "swapped out": status.get("VmSwap", 0),
            },
            threads=status.get("Threads", 1),
            growers=growers,
        )
        due = max(due + interval, time.monotonic())
        time.sleep(max(0.0, due - time.monotonic()))


def is_running(look: Look) -> bool:
    """Whether the process of a look still runs."""
    home = Path(f"/proc/{look.pid}")
    try:
        return _started(home) == look.began and "VmRSS" in _status(home)
    except OSError:
        return False


def _started(home: Path) -> str:
    return (home / "stat").read_text().rpartition(")")[2].split()[19]


def _command(home: Path) -> str:
    words = (home / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    return " ".join(word.decode(errors="replace") for word in words) or (home / "comm").read_text().strip()


def _status(home: Path) -> dict[str, int]:
    found = {}
    for line in (home / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            found[name] = int(words[0]) * (1024 if words[-1] == "kB" else 1)
    return found


def _maps(home: Path) -> dict[str, int]:
    """Resident bytes by what is mapped: a path, "[heap]", or "(anonymous)"."""
    found: dict[str, int] = {}
    name = ""
    with open(home / "smaps", encoding="utf-8", errors="replace") as smaps:
        for line in smaps:
            if line.startswith("Rss:"):
                found[name] = found.get(name, 0) + 1024 * int(line.split()[1])
            elif line[0] in "0123456789abcdef":
                fields = line.split(maxsplit=5)
                name = fields[5].strip() if len(fields) > 5 else "(anonymous)"
    return found


def _growers(before: dict[str, int], now: dict[str, int]) -> tuple[Grower, ...]:
    grown = [Grower(name, nbytes, nbytes - before.get(name, 0)) for name, nbytes in now.items()]
    grown = [one for one in grown if one.grown > 0]
    return tuple(sorted(grown, key=lambda one: (-one.grown, one.name))[:MOST_GROWERS])
