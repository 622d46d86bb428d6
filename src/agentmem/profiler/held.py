"""What was held, and what grew, by the snapshots in a profile's document; for the text and for the page."""

from __future__ import annotations

from typing import Any

BEFORE = "before the script"  # the snapshot of what Python, NumPy and the profiler take
Grown = tuple[dict[str, Any], dict[str, Any], list[tuple[str, int | None, int]]]


def holder(taken: dict[str, Any]) -> str:
    """Whose parts are in a snapshot: its only agent, or how many there are."""
    agents = taken["agents"]
    return str(agents[0]["name"]) if len(agents) == 1 else f"{len(agents):,} agents"


def fullest(snapshots: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The snapshot in which most was held, by what all of these tell; of equal ones the last."""

    def held(taken: dict[str, Any]) -> int:
        if all(one["traced"] for one in snapshots):
            return int(taken["traced"]["nbytes"])
        if any(one["parts"] is None or one["shared"] is None for one in snapshots):
            return int(taken["process"]["rss"])
        return int(sum(taken["parts"].values()) + sum(part["nbytes"] for part in taken["shared"]))

    full: dict[str, Any] | None = max(reversed(snapshots), key=held, default=None)
    return full


def parts(taken: dict[str, Any]) -> list[tuple[str, int]]:
    """What the agents of a snapshot held, by part, all agents together and shared parts once; the largest first."""
    rows = list((taken["parts"] or {}).items())
    rows += [(f"{part['name']}, shared by {part['holders']}", part["nbytes"]) for part in taken["shared"] or ()]
    return sorted(rows, key=lambda row: (-row[1], row[0]))


def grown(profile: dict[str, Any]) -> Grown | None:
    """The first snapshot after a fifth of the time, for what warms up, the last one, and what that holds more of: parts
    and lines, how much at first, None where it was not there, and at last. None if there are no two, or nothing grew.

    The last one is that before the end where more was held then: what functions held has gone with them.
    """
    looked = [taken for taken in profile["snapshots"] if taken["parts"] is not None or taken["traced"] is not None]
    if not looked:
        return None
    last = looked[-1]
    if profile["is_whole"]:
        last = fullest(looked[-2:]) or last
    first = next(taken for taken in looked if taken["at"] >= 0.2 * last["at"])
    rows: list[tuple[str, int | None, int]] = []
    if first["parts"] is not None and last["parts"] is not None:
        before, now = (taken["parts"] | _shared_bytes(taken) for taken in (first, last))
        rows += [(name, before.get(name), nbytes) for name, nbytes in now.items()]
    lines = _lines(first)
    # Of many lines the largest are kept: one that is not in the first may have been there.
    rows += [(where, lines[where], nbytes) for where, nbytes in _lines(last).items() if where in lines]
    rows = [row for row in rows if row[2] > (row[1] or 0)]
    rows.sort(key=lambda row: ((row[1] or 0) - row[2], row[0]))
    return (first, last, rows) if rows else None


def _shared_bytes(taken: dict[str, Any]) -> dict[str, int]:
    return {f"{part['name']}, shared": part["nbytes"] for part in taken["shared"] or ()}


def _lines(taken: dict[str, Any]) -> dict[str, int]:
    return {} if taken["traced"] is None else {line["where"]: line["nbytes"] for line in taken["traced"]["lines"]}

