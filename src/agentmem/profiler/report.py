"""Records as JSON documents, and back; two documents as one. `schema.json` says what is in them.

`text` and `html` show documents; they never see a record, so that what they show is in the JSON.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Iterator
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from agentmem.errors import CorruptData
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
    """The profile that `to_json` was given. ValueError, which says where, for what it cannot have made."""
    if not isinstance(document, dict) or document.keys() != {"schema", "command", "profile"}:
        raise ValueError("keys schema, command and profile expected")
    if document["schema"] != SCHEMA or document["command"] != "profile":
        raise ValueError(f"a profile of schema {SCHEMA} expected")
    found: Profile = _made(Profile, document["profile"], "profile")
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
        if command == "profile":
            from_json(document)
    except ValueError as error:
        raise CorruptData(f"{path} is damaged: {error}") from None
    return document


def before_after(before: Document, after: Document) -> Document:
    """What changed from one document to another of its kind, figure by figure, as a document of its own.

    ValueError for documents of two kinds, or of a kind that has no figures to set side by side.
    """
    figures = {"profile": _of_profile, "compare": _of_measurements, "demo": _of_measurements}
    kinds = before["command"], after["command"]
    if kinds[0] not in figures or figures.get(kinds[0]) is not figures.get(kinds[1]):
        raise ValueError(f"a {kinds[0]} and a {kinds[1]} document given; expected two profiles or two comparisons")
    was, now = (dict(figures[kind](document)) for kind, document in zip(kinds, (before, after), strict=True))
    changes = [
        {"what": what, "unit": unit, "before": was.get((what, unit)), "after": now.get((what, unit))}
        for what, unit in {**was, **now}
    ]
    return {"schema": SCHEMA, "command": "report", "before": before, "after": after, "changes": changes}


# ---- figures of a document: what and unit, and how much


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
        for part, nbytes in (last["parts"] or {}).items():
            yield (f"agents: {part}", "bytes"), nbytes
        for part in last["shared"] or ():
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


def _made(hint: Any, value: Any, where: str) -> Any:
    """`value` as what a type says; ValueError for what it does not allow."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        [some] = [one for one in inside if one is not type(None)]
        return None if value is None else _made(some, value, where)
    if isinstance(hint, type) and is_dataclass(hint):
        names = {field.name for field in fields(hint)}
        if not isinstance(value, dict) or value.keys() != names:
            raise ValueError(f"{where}: keys {', '.join(sorted(names))} expected")
        hints = _hints(hint)
        return hint(**{name: _made(hints[name], one, f"{where}.{name}") for name, one in value.items()})
    if origin is tuple and isinstance(value, list):
        if inside[-1] is Ellipsis:
            return tuple(_made(inside[0], one, f"{where}[{k}]") for k, one in enumerate(value))
        if len(value) == len(inside):
            return tuple(_made(some, one, where) for some, one in zip(inside, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {key: _made(inside[1], one, f"{where}.{key}") for key, one in value.items()}
    elif origin is Literal and value in inside:
        return value
    elif hint is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    elif hint in (int, str, bool) and type(value) is hint:
        return value
    raise ValueError(f"{where}: {_described(hint)} expected")


def _described(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)


def _plain(value: Any) -> Any:
    """Tuples as lists."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value
