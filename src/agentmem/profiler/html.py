"""A document as one HTML file: no network, no script, light or dark as its reader is.

`report.html.j2` is the page; here is what it is given. Every number on it is in the document.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from agentmem.profiler import charts
from agentmem.profiler.held import fullest, grown, holder, parts
from agentmem.profiler.live import shortened
from agentmem.profiler.reconcile import SIGHTS
from agentmem.profiler.report import Document
from agentmem.profiler.text import amount

TEMPLATE = "report.html.j2"
MOST_ROWS = 40


def check_installed() -> None:
    """ImportError, naming the extra, unless all is there that `to_html` needs: to be asked before an hour's run."""
    _template()
    charts.check_installed()


def to_html(document: Document) -> str:
    """A profile, a sweep, or two documents set side by side, as a page.

    Raises
    ------
    ValueError
        For a document of another kind: it has no page.
    ImportError
        If jinja2 or matplotlib is missing, naming the extra.

    Examples
    --------
    >>> from agentmem.profiler import records, report
    >>> profile = records.Profile("walk.py", "2026-01-02T03:04:05+00:00", 1.5, "finished", True, "3.11.9", "Linux")
    >>> page = to_html(report.to_json(profile))
    >>> "Memory was not sampled." in page, "<script" in page
    (True, False)
    """
    kind = "sweep" if document.get("sweep") else document["command"]
    if kind not in ("profile", "sweep", "report"):
        raise ValueError(f"a document of `agentmem {kind}` has no page; profiles, sweeps and comparisons of two have")
    full = fullest(document["profile"]["snapshots"]) if kind == "profile" else None
    page: str = _template().render(
        document=document,
        kind=kind,
        title=_title(document, kind),
        profile=document["profile"] if kind == "profile" else None,
        full=full,
        parts=[] if full is None or full["agents"] is None else parts(full),
        holder=None if full is None or full["agents"] is None else holder(full),
        grown=None if kind != "profile" else grown(document["profile"]),
        sights=[asdict(sight) for sight in SIGHTS],
        changes=_grouped(document.get("changes", ())),
        charts=charts,
    )
    return page


def _title(document: Document, kind: str) -> str:
    if kind == "report":
        return f"{_title(document['before'], _kind(document['before']))}, before and after"
    return str(document["profile"]["command"] or "a profile") if kind == "profile" else str(document["world"]["name"])


def _grouped(changes: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What fell and what rose, most of its kind first, and what only one of two documents has; the rest is left out."""
    both = [one for one in changes if None not in (one["before"], one["after"])]
    less, more = ([one for one in both if (one["after"] - one["before"]) * sign > 0] for sign in (-1, 1))
    return {
        "Less": sorted(less, key=lambda one: one["ratio"] or 0),
        "More": sorted(more, key=lambda one: -(one["ratio"] or math.inf)),
        "In one of them": [one for one in changes if (one["before"] is None) != (one["after"] is None)],
    }


def _kind(document: Document) -> str:
    return "profile" if "profile" in document else "sweep"


def _template() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ImportError:
        raise ImportError("pages need jinja2: pip install 'agentmem-native[profile]'", name="jinja2") from None
    environment = Environment(
        loader=PackageLoader("agentmem.profiler", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["amount"] = amount
    environment.filters["shortened"] = shortened
    environment.globals["MOST_ROWS"] = MOST_ROWS
    return environment.get_template(TEMPLATE)
