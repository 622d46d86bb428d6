"""Records in; a JSON dict, a rich table or text out. Pure functions; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agentmem.footprint import in_units
from agentmem.profiler.promises import LIKE_DENSE, AgentRecord, CrowdRecord, Promise, Record, RunRecord
from agentmem.profiler.sweep import Measurement
from agentmem.profiler.throughput import Throughput
from agentmem.profiler.worlds import World

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA = 1

_RIVALS = {
    "dense": "Dense NumPy is b @ T[a] on contiguous arrays. ",
    "scipy": "scipy.sparse is CSR, transposed once, with a dense belief. ",
}


def to_json(
    world: World, measurements: Sequence[Measurement], *, command: str, parameters: dict[str, Any]
) -> dict[str, Any]:
    """What was asked, the world it ran on and each configuration's record, as JSON types; sizes in bytes.

    `schema` goes up when a key changes its meaning. Differences are from the configuration named `reference`.
    """
    steps, agents = world.actions.shape
    records = []
    for measurement in measurements:
        record = asdict(measurement)
        configuration = record.pop("configuration")
        records.append({"configuration": configuration.pop("name"), **configuration, **record})
    return {
        "schema": SCHEMA,
        "command": command,
        "parameters": parameters,
        "world": {
            "name": world.name,
            "states": world.initial.size,
            "actions": len(world.transition),
            "observations": world.observation.shape[1],
            "agents": agents,
            "steps": steps,
            "episodes": int(world.restarts.sum()),
        },
        "reference": measurements[0].configuration.name,
        "measurements": records,
        "summary": summary(measurements),
    }


def to_table(world: World, measurements: Sequence[Measurement]) -> Table:
    """One row per configuration, for a terminal of 80 columns."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    steps, agents = world.actions.shape
    base = min(measurement.base_rss for measurement in measurements)
    rivals = "".join(_RIVALS.get(measurement.configuration.filter, "") for measurement in measurements)
    table = Table(
        title=Text(
            f"{world.name}: {world.initial.size:,} states, {len(world.transition)} actions, "
            f"{agents} agents x {steps} steps"
        ),
        # Text, because rich would read the [a] of a string as markup.
        caption=Text(
            f"{rivals}Each ran alone, on one thread. "
            f"Peak RSS is the whole process's, Python with its libraries {in_units(base)} of it."
        ),
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for header in (
        "model",
        "belief,\nmedian",
        "belief,\npeak",
        "peak\nRSS",
        "us per\nupdate",
        "largest\ndifference",
    ):
        table.add_column(header, justify="right", no_wrap=True)
    for measurement in measurements:
        difference = measurement.largest_difference
        table.add_row(
            measurement.configuration.name,
            in_units(measurement.model_bytes),
            in_units(measurement.belief_bytes_median),
            in_units(measurement.belief_bytes_peak),
            in_units(measurement.peak_rss),
            _figure(measurement.microseconds_per_update),
            "reference" if difference is None else _difference(difference),
        )
    return table


def summary(measurements: Sequence[Measurement]) -> str:
    """One sentence: the last configuration against each that is not ours, gains and losses alike."""
    ours = measurements[-1]
    rivals = [measurement for measurement in measurements if measurement.configuration.filter != "sparse"]
    clauses = []
    for rival in rivals:
        figures = (
            _ratio("bytes per belief", rival.belief_bytes_median, ours.belief_bytes_median, "fewer"),
            _ratio("model bytes", rival.model_bytes, ours.model_bytes, "fewer"),
            _ratio("peak RSS", rival.peak_rss, ours.peak_rss, "less"),
            _ratio("time per update", rival.microseconds_per_update, ours.microseconds_per_update, "less"),
        )
        clauses.append(f"against {rival.configuration.name}: {', '.join(figures)}")
    sentence = f"{ours.configuration.name} {'; '.join(clauses)}"
    if ours.largest_difference is not None:
        reference = measurements[0].configuration.name
        sentence += f"; largest difference from {reference} {_difference(ours.largest_difference)}"
    return sentence + "."


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
        "as dense float64 rows": f"{in_units(record.dense_bytes)}, {_figure(record.dense_bytes / record.nbytes)}x",
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
            _figure(1e3 * record.dense_seconds),
            _figure(1e3 * record.seconds),
            _figure(1 / record.time),
            _difference(lost.belief),
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
            return f"{_figure(value)} x"
        case "L1":
            return _difference(value)
        case _:
            return f"{value:,.0f}"


def _rate(per_second: float) -> str:
    """Three figures."""
    if per_second >= 1e6:
        return f"{_figure(per_second / 1e6)} million"
    return f"{float(f'{per_second:.3g}'):,.0f}"


def _time(seconds: float) -> str:
    return f"{_figure(seconds)} s" if seconds >= 1 else f"{_figure(seconds * 1e3)} ms"


def _ratio(what: str, rival: float, ours: float, gain: str) -> str:
    ratio = rival / ours
    if 0.95 < ratio < 1.05:
        return f"about the same {what}"
    if ratio > 1:
        return f"{_figure(ratio)}x {gain} {what}"
    return f"{_figure(1 / ratio)}x more {what} (a loss)"


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _figure(value: float) -> str:
    """Three figures or all before the point."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
