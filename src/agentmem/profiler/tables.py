"""Records in; a JSON dict, a rich table or text out. Pure functions; nothing is measured here.

Here are what a population takes and what is promised of an agent; `comparison` has filters side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agentmem.footprint import in_units
from agentmem.profiler.promises import LIKE_DENSE, AgentRecord, CrowdRecord, Promise, Record, RunRecord
from agentmem.profiler.throughput import Throughput

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1


def throughput_to_json(record: Throughput, *, command: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What was asked and what a population took, as JSON types; sizes in bytes, rates in agent-steps per second."""
    derived = ("rate", "later_rate", "last_rate", "bytes_per_agent", "dense_bytes")
    return {
        "schema": SCHEMA,
        "command": command,
        "parameters": parameters,
        "throughput": asdict(record) | {name: getattr(record, name) for name in derived},
        "summary": throughput_summary(record),
    }


def progress(record: Throughput) -> str:
    """One line while a population steps, under 80 columns."""
    return (
        f"step {record.steps:,}: {_rate(record.last_rate)} agent-steps/s, "
        f"{record.bytes_per_agent:,.0f} bytes per agent, RSS {in_units(record.rss)}"
    )


def throughput_summary(record: Throughput) -> str:
    """What a population took in all, a line for each figure, under 80 columns."""
    later = "" if record.later_rate is None else f"; {_rate(record.later_rate)} without step 1"
    figures = {
        "agents": f"{record.agents:,}",
        "states": f"{record.states:,}, a {record.world}",
        "states held by an agent": f"{record.states_held:.1f}",
        "steps": f"{record.steps:,} of every agent",
        "agent-steps per second": _rate(record.rate) + later,
        "step 1": f"{_time(record.first_seconds)}, from beliefs over all states",
        "simulation, not counted": f"{_time(record.walk_seconds)} for actions and readings",
        "bytes per agent": f"{record.bytes_per_agent:,.1f}, beside one model of {in_units(record.model_bytes)}",
        "all beliefs": in_units(record.nbytes),
        "as dense float64 rows": f"{in_units(record.dense_bytes)}, {figure(record.dense_bytes / record.nbytes)}x",
        "RSS": f"{in_units(record.rss)}, simulation included; Python {in_units(record.base_rss)}",
        "peak RSS": in_units(record.peak_rss),
    }
    width = max(map(len, figures))
    return "\n".join(f"{name:<{width}}  {figure}" for name, figure in figures.items())


def verification_to_json(
    records: Sequence[Record], *, command: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    """What was asked, every record, and every promise beside what was found, as JSON types; sizes in bytes.

    `agents` are the kinds of agents beside dense ones, `crowds` many at once, `runs` many over many steps; each has
    its `name`, and the limit it was held to, null where there is none. `kept` says whether all promises are.
    """
    derived = {
        AgentRecord: ("agents", ("name", "time")),
        CrowdRecord: ("crowds", ("name",)),
        RunRecord: ("runs", ("name", "growth", "log_growth")),
    }
    found: dict[str, list[dict[str, Any]]] = {"agents": [], "crowds": [], "runs": []}
    for record in records:
        where, names = derived[type(record)]
        found[where].append(asdict(record) | {name: getattr(record, name) for name in names})
    promises = _promises(records)
    return {
        "schema": SCHEMA,
        "command": command,
        "parameters": parameters,
        **found,
        "promises": [asdict(promise) | {"kept": promise.kept} for promise in promises],
        "kept": all(promise.kept for promise in promises),
        "summary": verification_summary(records),
    }


def verification_to_table(records: Sequence[Record]) -> Table:
    """One row per kind of agent, for a terminal of 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    agents = [record for record in records if isinstance(record, AgentRecord)]
    dense = sorted(record.dense_bytes for record in agents)
    table = Table(
        title=Text(
            f"Agents that take {in_units(dense[0])} to {in_units(dense[-1])} dense, after {agents[0].steps} steps"
        )
        if agents
        else None,
        caption=Text(
            "Bytes of all that an agent holds, traced after its steps. Both agents take turns of twenty steps. "
            "L1 is the belief's distance from the dense one; lost are entries, cells and readings."
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption_justify="left",
    )
    table.add_column("", ratio=1)
    for header in ("bytes", "at most", "dense\nms", "ours\nms", "times\nfaster", "L1", "lost"):
        table.add_column(header, justify="right", no_wrap=True)
    for record in agents:
        lost = record.differences
        most = LIKE_DENSE * record.dense_bytes if record.limit.nbytes is None else record.limit.nbytes
        table.add_row(
            record.name,
            in_units(record.nbytes),
            in_units(most),
            figure(1e3 * record.dense_seconds),
            figure(1e3 * record.seconds),
            figure(1 / record.time),
            error(lost.belief),
            f"{lost.log + lost.observation + lost.transition + record.readings_differ:,}",
            style=None if all(promise.kept for promise in record.promises()) else "bold red",
        )
    return table


def verification_summary(records: Sequence[Record]) -> str:
    """A line for each crowd and run, for each promise that was broken, and for how many were kept."""
    lines = []
    for record in records:
        if isinstance(record, CrowdRecord):
            lines.append(f"{record.name}: {in_units(record.nbytes)} in all")
        elif isinstance(record, RunRecord):
            lines.append(
                f"{record.name}: RSS {in_units(record.rss[0])} to {in_units(record.rss[-1])}, "
                f"of which logs {in_units(record.log_bytes[0])} to {in_units(record.log_bytes[-1])}"
            )
    promises = _promises(records)
    broken = [promise for promise in promises if not promise.kept]
    lines += [
        f"BROKEN: {promise.what}: {_amount(promise, promise.found)}, promised at most {_amount(promise, promise.most)}"
        for promise in broken
    ]
    lines.append(f"{len(promises) - len(broken)} of {len(promises)} promises kept")
    return "\n".join(lines)


def _promises(records: Sequence[Record]) -> list[Promise]:
    return [promise for record in records for promise in record.promises()]


def _amount(promise: Promise, value: float) -> str:
    match promise.unit:
        case "bytes":
            return in_units(value)
        case "x":
            return f"{figure(value)} x"
        case "L1":
            return error(value)
        case _:
            return f"{value:,.0f}"


def _rate(per_second: float) -> str:
    """Three figures."""
    if per_second >= 1e6:
        return f"{figure(per_second / 1e6)} million"
    return f"{float(f'{per_second:.3g}'):,.0f}"


def _time(seconds: float) -> str:
    return f"{figure(seconds)} s" if seconds >= 1 else f"{figure(seconds * 1e3)} ms"


def error(value: float) -> str:
    """An error, in two figures."""
    return f"{value:.1e}" if value else "0"


def figure(value: float) -> str:
    """Three figures or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
