"""Whether a document is what `schema.json` says; knows as much of JSON Schema as is used there."""

from __future__ import annotations

import json
import math
from functools import cache
from importlib import resources
from typing import Any

TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def check(document: object) -> None:
    """Raise ValueError, which says where and what is expected, for what no command writes.

    Examples
    --------
    >>> check({"schema": 1, "command": "watch", "looks": [{"pid": "7"}]})
    Traceback (most recent call last):
        ...
    ValueError: looks[0]: 'began' expected
    """
    _check(document, _definitions()[f"document_{_kind(document)}"], "")


@cache
def _definitions() -> dict[str, Any]:
    text = resources.files("agentmem.profiler").joinpath("schema.json").read_text(encoding="utf-8")
    definitions: dict[str, Any] = json.loads(text)["$defs"]
    return definitions


def _kind(document: object) -> str:
    command = document.get("command") if isinstance(document, dict) else None
    if command == "demo":
        return "throughput" if "throughput" in document else "compare"  # type: ignore[operator]
    if command == "compare":
        return "sweep" if "sweep" in document else "compare"  # type: ignore[operator]
    if command not in ("profile", "watch", "verify", "report"):
        raise ValueError("a document of a command of agentmem expected")
    return str(command)


def _check(value: Any, schema: dict[str, Any], where: str) -> None:
    if schema.get("$ref") == "#":
        schema = _definitions()[f"document_{_kind(value)}"]
    elif "$ref" in schema:
        schema = _definitions()[schema["$ref"].rpartition("/")[2]]
    elif "anyOf" in schema:  # something, or null
        if value is not None:
            _check(value, schema["anyOf"][0], where)
        return
    if "const" in schema or "enum" in schema:
        allowed = schema.get("enum", [schema.get("const")])
        if not any(type(value) is type(one) and value == one for one in allowed):
            raise _expected(where, " or ".join(map(json.dumps, allowed)))
        return
    kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
    if not any(_is(value, kind) for kind in kinds):
        raise _expected(where, " or ".join(kinds))
    if isinstance(value, dict):
        fields = schema.get("properties")
        if fields is not None and fields.keys() != value.keys():
            odd = sorted(fields.keys() - value.keys()) or sorted(value.keys() - fields.keys())
            raise _expected(where, f"{'' if odd[0] in fields else 'no '}{odd[0]!r}")
        for key, one in value.items():
            _check(one, schema["additionalProperties"] if fields is None else fields[key], f"{where}.{key}".lstrip("."))
    elif isinstance(value, list):
        fixed = schema.get("prefixItems")
        if fixed is not None and len(fixed) != len(value):
            raise _expected(where, f"{len(fixed)} values")
        for k, one in enumerate(value):
            _check(one, schema["items"] if fixed is None else fixed[k], f"{where}[{k}]")


def _is(value: object, kind: str) -> bool:
    if kind == "null" or isinstance(value, bool):
        return value is None if kind == "null" else kind == "boolean"
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    return isinstance(value, TYPES[kind]) and not (isinstance(value, float) and not math.isfinite(value))  # type: ignore[arg-type]


def _expected(where: str, what: str) -> ValueError:
    return ValueError(f"{where or 'document'}: {what} expected")
