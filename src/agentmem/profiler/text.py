"""Documents as text for a terminal of 80 columns. Pure functions of documents; what was not measured says so."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from agentmem.footprint import in_units
from agentmem.profiler.held import BEFORE, fullest, grown, holder, parts
from agentmem.profiler.live import shortened, sparkline
from agentmem.profiler.report import Document
from agentmem.profiler.tables import figure

if TYPE_CHECKING:
    from rich.console import RenderableType

MOST = 10  # rows of a table
NOT_MEASURED = "not measured"


def to_text(document: Document) -> RenderableType:
    """What a document says: of a profile, of a comparison or sweep, or of two that were set side by side."""
    from rich.console import Group
    from rich.text import Text

    if document["command"] == "profile":
        return Group(*_profile(document["profile"]))
    if document["command"] == "report":
        return Group(*_before_after(document))
    if document["command"] == "watch":
        return Group(*_looks(document["looks"]))
    if "measurements" in document:
        return Group(*_measurements(document))
    return Text(document["summary"])


def in_a_line(document: Document) -> str:
    """The most a profile's process had resident, for how long it ran, its largest variables, and what grows."""
    profile = document["profile"]
    before = [taken for taken in profile["snapshots"] if taken["label"] == BEFORE]
    of_it = f" ({in_units(before[0]['process']['rss'])} before the script)" if before else ""
    said = f"peak RSS {amount(_peak(profile), 'bytes')}{of_it}, {figure(profile['duration'])} s"
    full = fullest(profile["snapshots"])
    if full is not None and full["agents"]:
        largest = ", ".join(f"{name} {in_units(nbytes)}" for name, nbytes in parts(full)[:3] if nbytes >= 2**20)
        said += f"; largest {largest}" if largest else ""
    growing = [one["name"] for one in profile["trends"] if one["verdict"] == "growing"]
    return said + (f"; growing: {', '.join(growing)}" if growing else "")


def amount(value: float | None, unit: str) -> str:
    """A number with its unit, sizes in the largest that fits."""
    if value is None:
        return NOT_MEASURED
    if unit == "bytes":
        return f"-{in_units(-value)}" if value < 0 else in_units(value)
    return f"{value:.2g}" if unit == "probability" else f"{figure(value)} {unit}"


# ---- a profile


def _profile(profile: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text(shortened(profile["command"] or "a profile", 78), style="bold")
    ended = shortened(profile["ended"], 70)
    yield Text(ended, style="" if ended == "finished" else "bold red")
    if not profile["is_whole"]:
        yield Text("what was seen until then; its end was not", style="red")
    yield Text(f"{profile['started']}, {figure(profile['duration'])} s, Python {profile['python']}")
    yield Text()
    yield from _memory(profile)
    if (full := fullest(profile["snapshots"])) is not None:
        yield from _held(full)
        yield from _lines_and_types(full, profile["snapshots"][-1])
    if (changed := grown(profile)) is not None:
        yield _grown(*changed)
    for title, heads, rows in (_hotspots(profile), _operations(profile), _trends(profile), _reconciled(profile)):
        if rows:
            yield _table(title, heads, rows)
    yield from (Text(f"note: {note}") for note in profile["notes"])


Rows = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # with a title, and heads of the columns


def _hotspots(profile: dict[str, Any]) -> Rows:
    rows = [
        (one["kind"], _tail(one["name"]), amount(one["nbytes"], "bytes"), f"{100 * one['share']:.0f} %")
        for one in profile["hotspots"][:MOST]
    ]
    return "who held most, of what its kind held at its most", ("", "", "", ""), rows


def _operations(profile: dict[str, Any]) -> Rows:
    rows = [
        (
            one["name"],
            f"{one['calls']:,}",
            f"{figure(one['seconds'])} s",
            f"{figure(one['longest'])} s",
            amount(one["peak"], "bytes"),
            amount(one["retained"], "bytes"),
            one["measured"],
        )
        for one in profile["operations"]
    ]
    return "operations", ("", "calls", "in all", "longest", "peak", "left", "by"), rows


def _trends(profile: dict[str, Any]) -> Rows:
    rows = [
        (one["name"], one["verdict"], "" if one["slope"] is None else f"{one['slope']:,.0f} B a sample", one["reason"])
        for one in profile["trends"]
    ]
    return "does it grow", ("", "", "", ""), rows


def _reconciled(profile: dict[str, Any]) -> Rows:
    rows = [(one["what"], amount(one["nbytes"], "bytes"), one["tool"]) for one in profile["reconciled"]]
    taken = profile["snapshots"][-1] if profile["snapshots"] else None
    return "what each tool says" + (f", at {taken['label']!r}" if taken else ""), ("", "", "by"), rows


def _peak(profile: dict[str, Any]) -> int | None:
    peaks = [taken["process"]["peak_rss"] for taken in profile["snapshots"]]
    if profile["samples"] is not None:
        peaks += profile["samples"]["rss"]
    return max(peaks, default=None)


def _memory(profile: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    samples = profile["samples"]
    if samples is None or not samples["rss"]:
        yield Text("memory over time: not sampled")
        return
    rss = samples["rss"]
    every = max(1, len(rss) // 60)
    peaks = [max(rss[k : k + every]) for k in range(0, len(rss), every)]
    yield Text(f"RSS  {sparkline(peaks, 64)}")
    yield Text(
        f"     {in_units(rss[0])} at first, {in_units(rss[-1])} at last, peak {amount(_peak(profile), 'bytes')}; "
        f"{len(rss):,} samples, {samples['overruns']:,} late"
    )


def _grown(first: dict[str, Any], last: dict[str, Any], rows: list[tuple[str, int | None, int]]) -> RenderableType:
    heads = "", *(f"at {taken['at']:.1f} s" for taken in (first, last))
    said = [(_tail(name), "" if was is None else in_units(was), in_units(now)) for name, was, now in rows[:MOST]]
    return _table("what grew from one look to a later one", heads, said)


def _held(taken: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    if taken["agents"] is None:
        yield Text("\nwhat is held: no agents were looked at")
        return
    rows = [(name, in_units(nbytes)) for name, nbytes in parts(taken)[:MOST]]
    yield _table(f"what {holder(taken)} held, at {taken['at']:.1f} s, {taken['label']!r}", ("", ""), rows)


def _lines_and_types(taken: dict[str, Any], last: dict[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    if taken["traced"] is None:
        yield Text("\nlines of source: not traced")
    else:
        lines = taken["traced"]["lines"][:MOST]
        rows = [(_tail(one["where"]), in_units(one["nbytes"]), f"{one['count']:,}") for one in lines]
        yield _table("lines that hold most", ("", "", "blocks"), rows)
    if last["types"] is None:
        yield Text("\ntypes of objects: not counted")
    else:
        rows = [(one["name"], in_units(one["nbytes"]), f"{one['count']:,}") for one in last["types"][:MOST]]
        yield _table(f"types that take most, at {last['label']!r}", ("", "", "objects"), rows)


def _looks(looks: list[dict[str, Any]]) -> Iterator[RenderableType]:
    from rich.text import Text

    if not looks:
        yield Text("nothing was seen")
        return
    last = looks[-1]
    yield Text(f"{last['pid']}  {shortened(last['command'], 70)}", style="bold")
    rss = [look["rss"] for look in looks]
    yield Text(f"RSS  {sparkline(rss, 64)}")
    yield Text(
        f"     {in_units(rss[0])} at first, {in_units(rss[-1])} at last, peak {in_units(last['peak_rss'])}; "
        f"{len(looks):,} looks in {figure(last['seconds'])} s"
    )
    rows = [(one["name"], f"+{in_units(one['grown'])}", in_units(one["nbytes"])) for one in last["growers"]]
    if rows:
        yield _table("grown since the watch began", ("", "", ""), rows)


# ---- comparisons


def _measurements(document: Document) -> Iterator[RenderableType]:
    from rich.text import Text

    world = document["world"]
    rows = [
        (
            "*" * bool(one.get("on_front")),
            one["configuration"],
            in_units(one["model_bytes"]),
            in_units(one["belief_bytes_median"]),
            f"{figure(one['microseconds_per_update'])} us",
            "reference" if one["largest_difference"] is None else amount(one["largest_difference"], "probability"),
        )
        for one in document["measurements"]
    ]
    title = f"{world['name']}: {world['states']:,} states, {world['agents']} agents x {world['steps']} steps"
    yield _table(title, ("", "", "model", "belief", "an update", "difference"), rows)
    yield Text()
    yield Text(document["summary"])


def _before_after(document: Document) -> Iterator[RenderableType]:
    from rich.text import Text

    rows = [
        (one["what"], amount(one["before"], one["unit"]), amount(one["after"], one["unit"]), _ratio(**one))
        for one in document["changes"]
        if one["before"] != one["after"]
    ]
    title = " -> ".join(shortened(_name(document[side]), 36) for side in ("before", "after"))
    yield _table(title, ("", "before", "after", ""), rows)
    if not rows:
        yield Text("no figure differs")


def _tail(where: str, most: int = 56) -> str:
    """Of a long path, its end."""
    return where if len(where) <= most else f"…{where[1 - most:]}"


def _ratio(before: float | None, after: float | None, **_: object) -> str:
    if not before or not after:
        return ""
    return f"{figure(before / after)}x less" if after < before else f"{figure(after / before)}x more"


def _name(document: Document) -> str:
    return str(document["profile"]["command"] if "profile" in document else document["world"]["name"])


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=box.SIMPLE_HEAD if any(heads) else None,
        show_header=any(heads),
        padding=(0, 1, 0, 0),
        show_edge=False,
        pad_edge=False,
    )
    for k, head in enumerate(heads):
        # Text, because rich would read the [0] of a name as markup; of paths the end is what tells.
        table.add_column(Text(head), justify="left" if k == 0 or not head else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shortened(cell, 200)) for cell in row))
    return Group(Text(f"\n{title}", style="bold"), table)
