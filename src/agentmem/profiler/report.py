"""Records as JSON documents, and back; two documents as one. `schema.json` says what is in them.

`text` and `html` show documents; they never see a record, so that what they show is in the JSON.
"""

from __future__ import annotations

import json
import types
from collections.abc import Iterable, Iterator
from dataclasses import asdict, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_type_hints

from agentmem.errors import CorruptData
from agentmem.profiler import schema
from agentmem.profiler.held import fullest
from agentmem.profiler.records import Profile
from agentmem.profiler.tables import SCHEMA
from agentmem.profiler.watching import Look

Document = dict[str, Any]
KINDS = "profile", "watch", "compare", "demo", "verify", "report"  # commands that write documents


def to_json(profile: Profile) -> Document:
    """A profile as JSON types: every field by its name, sizes in bytes, times in seconds, null for what is not known.

    `schema` goes up when a key changes its meaning.
    """
    return {"schema": SCHEMA, "command": "profile", "profile": _plain(asdict(profile))}


def of_looks(looks: Iterable[Look]) -> Document:
    """What was seen of a process from outside, as JSON types."""
    return {"schema": SCHEMA, "command": "watch", "looks": [_plain(asdict(look)) for look in looks]}


def from_json(document: Document) -> Profile:
    """The profile that `to_json` was given. ValueError, which says where, for what it cannot have made.

    Examples
    --------
    >>> run = Profile("walk.py", "2026-01-02T03:04:05+00:00", 1.5, "finished", True, "3.11.9", "Linux")
    >>> from_json(to_json(run)) == run
    True
    """
    _check(document)
    if document["command"] != "profile":
        raise ValueError(f"a document of {document['command']} given; profile expected")
    found: Profile = _made(Profile, document["profile"])
    return found


def read(path: Path) -> Document:
    """The document in a file that a command wrote.

    Raises
    ------
    CorruptData
        For a file that is cut off, no JSON, or no document of this version.
    OSError
        If it cannot be read.
    """
    try:
        document: Document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptData(f"{path} is no whole JSON file: {error}") from None
    except RecursionError:
        raise CorruptData(f"{path} is no document of agentmem: nested too deeply") from None
    command = document.get("command") if isinstance(document, dict) else None
    if command not in KINDS:
        raise CorruptData(f"{path} was not written by a command of agentmem: no command is named in it")
    if document.get("schema") != SCHEMA:
        raise CorruptData(f"{path} is of schema {document.get('schema')!r}; this version reads {SCHEMA}")
    try:
        _check(document)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"{path} is damaged: {error}") from None
    return document


def before_after(before: Document, after: Document) -> Document:
    """What changed from one document to another of its kind, figure by figure, as a document of its own.

    ValueError for documents of two kinds, or of a kind that has no figures to set side by side.
    """
    was, now = _figures_of(before, after)
    changes = [_change(*key, was.get(key), now.get(key)) for key in {**was, **now}]
    return {"schema": SCHEMA, "command": "report", "before": before, "after": after, "changes": changes}


def _change(what: str, unit: str, before: float | None, after: float | None) -> dict[str, Any]:
    ratio = after / before if before and after is not None else None
    if ratio is not None and not isfinite(ratio):  # which JSON cannot say
        ratio = None
    return {"what": what, "unit": unit, "before": before, "after": after, "ratio": ratio}


def _check(document: Any) -> None:
    """Raise ValueError, which says where, for what the schema does not allow, or cannot say."""
    schema.check(document)
    samples = document.get("profile", {}).get("samples")
    if samples is not None and len({len(values) for values in samples.values() if isinstance(values, list)}) > 1:
        raise ValueError("profile.samples: lists of one length expected")
    if "sweep" in document and all(one["configuration"] != document["recommended"] for one in document["measurements"]):
        raise ValueError("recommended: one of the measurements expected")
    if document["command"] == "report":
        _figures_of(document["before"], document["after"])  # so these are no reports themselves
        _check(document["before"])
        _check(document["after"])


# ---- figures of a document: what and unit, and how much

Figures = dict[tuple[str, str], float | None]


def _figures_of(before: Document, after: Document) -> tuple[Figures, Figures]:
    figures = {"profile": _of_profile, "compare": _of_measurements, "demo": _of_measurements}
    kinds = before["command"], after["command"]
    if kinds[0] not in figures or figures.get(kinds[0]) is not figures.get(kinds[1]):
        raise ValueError(f"a {kinds[0]} and a {kinds[1]} document given; expected two profiles or two comparisons")
    was, now = (figures[document["command"]](document) for document in (before, after))
    return _by_name(was), _by_name(now)


def _by_name(figures: Iterable[tuple[tuple[str, str], float | None]]) -> Figures:
    """Figures of one name, as of parts of several agents, together."""
    found: Figures = {}
    for key, value in figures:
        before = found.get(key)
        found[key] = value if before is None else before if value is None else before + value
    return found


def _of_profile(document: Document) -> Iterator[tuple[tuple[str, str], float | None]]:
    profile = document["profile"]
    yield ("duration", "s"), profile["duration"]
    samples = profile["samples"]
    if samples is not None and samples["rss"]:
        yield ("RSS, most of the samples", "bytes"), max(samples["rss"])
        yield ("RSS, last sample", "bytes"), samples["rss"][-1]
    if profile["snapshots"]:
        last = profile["snapshots"][-1]
        for key, name in ("rss", "RSS"), ("pss", "PSS"), ("peak_rss", "peak RSS"):
            yield (f"{name}, last snapshot", "bytes"), last["process"][key]
        yield ("traced, last snapshot", "bytes"), last["traced"] and last["traced"]["nbytes"]
        full = fullest(profile["snapshots"]) or last
        for part, nbytes in (full["parts"] or {}).items():
            yield (f"agents: {part}", "bytes"), nbytes
        for part in full["shared"] or ():
            yield (f"shared: {part['name']}", "bytes"), part["nbytes"]
    for operation in profile["operations"]:
        yield (f"{operation['name']}: longest call", "s"), operation["longest"]
        yield (f"{operation['name']}: peak above its start", "bytes"), operation["peak"]
        yield (f"{operation['name']}: left behind", "bytes"), operation["retained"]


def _of_measurements(document: Document) -> Iterator[tuple[tuple[str, str], float | None]]:
    keys = {
        "model_bytes": ("model", "bytes"),
        "belief_bytes_median": ("belief, median", "bytes"),
        "peak_rss": ("peak RSS", "bytes"),
        "microseconds_per_update": ("an update", "us"),
        "largest_difference": ("largest difference", "probability"),
    }
    for one in document.get("measurements", ()):
        for key, (what, unit) in keys.items():
            yield (f"{one['configuration']}: {what}", unit), one.get(key)


# ---- JSON types into records


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _made(hint: Any, value: Any) -> Any:
    """`value`, whose shape has been checked, as what a type says."""
    inside = get_args(hint)
    if value is None or is_dataclass(hint):
        hints = {} if value is None else _hints(hint)
        return None if value is None else hint(**{name: _made(hints[name], one) for name, one in value.items()})
    if isinstance(hint, types.UnionType):  # something, or None
        return _made(inside[0], value)
    if isinstance(value, list):
        each = inside[:1] * len(value) if inside[-1] is Ellipsis else inside
        return tuple(_made(some, one) for some, one in zip(each, value, strict=True))
    return float(value) if hint is float else value


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
