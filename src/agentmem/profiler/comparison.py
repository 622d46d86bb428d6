"""Filters side by side, and their trade-off, as JSON, as a table and in words. Pure functions of records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from agentmem.footprint import in_units
from agentmem.profiler.filters import Configuration
from agentmem.profiler.front import BYTES_ALIKE, L1_MOST, TIME_MOST, Measurement, TradeOff
from agentmem.profiler.tables import SCHEMA, error, figure
from agentmem.profiler.worlds import World

if TYPE_CHECKING:
    from rich.table import Table

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
    return {
        "schema": SCHEMA,
        "command": command,
        "parameters": parameters,
        "world": asdict(world.extent),
        "reference": measurements[0].configuration.name,
        "measurements": [_as_json(measurement) for measurement in measurements],
        "summary": summary(measurements),
    }


def to_table(world: World, measurements: Sequence[Measurement]) -> Table:
    """One row per configuration, for a terminal of 80 columns."""
    steps, agents = world.actions.shape
    base = min(measurement.base_rss for measurement in measurements)
    rivals = "".join(_RIVALS.get(measurement.configuration.filter, "") for measurement in measurements)
    table = _table(
        f"{world.name}: {world.initial.size:,} states, {len(world.transition)} actions, "
        f"{agents} agents x {steps} steps",
        f"{rivals}Each ran alone, on one thread. "
        f"Peak RSS is the whole process's, Python with its libraries {in_units(base)} of it.",
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
            figure(measurement.microseconds_per_update),
            "reference" if difference is None else error(difference),
        )
    return table


def summary(measurements: Sequence[Measurement]) -> str:
    """One sentence: the last configuration against each that is not ours, gains and losses alike."""
    ours = measurements[-1]
    rivals = [measurement for measurement in measurements if measurement.configuration.filter != "sparse"]
    clauses = [_against(rival, ours) for rival in rivals]
    sentence = f"{ours.configuration.name} {'; '.join(clauses)}"
    if ours.largest_difference is not None:
        reference = measurements[0].configuration.name
        sentence += f"; largest difference from {reference} {error(ours.largest_difference)}"
    return sentence + "."


def tradeoff_to_json(found: TradeOff, *, command: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """What was asked, the world, each configuration's record, the front and the recommended one, as JSON types.

    Sizes in bytes, times in microseconds. Differences are from the configuration named `reference`; `again` is the
    command that measures the same, null where there is none.
    """
    return {
        "schema": SCHEMA,
        "command": command,
        "sweep": True,
        "parameters": parameters,
        "world": asdict(found.world),
        "reference": found.reference.configuration.name,
        "measurements": [
            {**_as_json(it), "fastest": it.fastest, "slowest": it.slowest, "on_front": it in found.front}
            for it in found.measurements
        ],
        "left_out": [{"configuration": it.configuration.name, "reason": it.reason} for it in found.left_out],
        "front": [it.configuration.name for it in found.front],
        "recommended": found.recommended.configuration.name,
        "in_code": _in_code(found.recommended.configuration),
        "again": found.command,
        "summary": tradeoff_summary(found),
    }


def tradeoff_to_table(found: TradeOff) -> Table:
    """One row per configuration, the front's marked, for a terminal of 80 columns."""
    from rich.text import Text

    world, front = found.world, found.front
    table = _table(
        f"{world.name}: {world.states:,} states, {world.actions} actions, {world.agents} agents x {world.steps} steps",
        "* nothing is clearly better in bytes per agent, time or errors, and in none clearly worse. Bytes are the "
        "median belief's; the model is one for all. Times are medians over "
        f"{_count(len(found.reference.repeats), 'repeat')}, each in its own process. Errors are the largest from "
        f"{found.reference.configuration.name}; changed modes are agent-steps whose most probable state it holds less "
        "probable. sparse: a SparseBelief per agent; population: a Population of all; dense, scipy: by hand.",
    )
    table.padding = (0, 0, 0, 0)  # the line between columns is one space
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold")
    for header in ("model", "belief,\nmedian", "us per\nupdate", "fastest,\nslowest", "L1\nerror", "modes\nchanged"):
        table.add_column(header, justify="right", no_wrap=True)
    for it in found.measurements:
        table.add_row(
            "*" * (it in front),
            Text(it.configuration.name),
            in_units(it.model_bytes),
            in_units(it.belief_bytes_median),
            figure(it.microseconds_per_update),
            f"{figure(it.fastest)}-{figure(it.slowest)}",
            error(it.largest_l1 or 0),
            _share(it.decisions_changed or 0),
            style="bold" if it == found.recommended else None,
        )
    return table


def tradeoff_summary(found: TradeOff) -> str:
    """Which configuration to take, its figures, why, what it gains and loses, and how to do so."""
    ours = found.recommended
    lines = [
        f"For {_count(found.world.agents, 'agent')} take {ours.configuration.name}: "
        f"{in_units(ours.belief_bytes_median)} per agent, {figure(ours.microseconds_per_update)} us per update "
        f"({figure(ours.fastest)} to {figure(ours.slowest)}), L1 error {error(ours.largest_l1 or 0)}, "
        "no decision changed.",
        f"Chosen from the front (*): no decision changed, L1 up to {L1_MOST:.0e}, up to {TIME_MOST:.0f}x the time of "
        f"the fastest such; of those within {BYTES_ALIKE - 1:.0%} of the fewest bytes the most exact, and of these "
        "none that is clearly slower than another.",
    ]
    rivals = [it for it in found.measurements if it.configuration.filter in _RIVALS and it != ours]
    nearest = {it.configuration.filter: it for it in reversed(rivals)}  # the first of each kind
    if nearest:
        clauses = "; ".join(_against(rival, ours) for rival in reversed(nearest.values()))
        lines.append(f"{clauses[0].upper()}{clauses[1:]}.")
    lines += [it.reason for it in found.left_out]
    if code := _in_code(ours.configuration):
        lines.append(f"In code: {code}")
    if found.command:
        lines.append(f"Again: {found.command}")
    return "\n".join(lines)


def _table(title: str, caption: str) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    return Table(
        title=Text(title),
        caption=Text(caption),  # Text, because rich would read the [a] of a string as markup
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
        caption_justify="left",
    )


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' * (n != 1)}"


def _share(value: float) -> str:
    return f"{100 * value:.2g} %" if value else "0"


def _in_code(configuration: Configuration) -> str | None:
    """How one writes a configuration of ours."""
    options = "" if configuration.prune is None else f", prune={configuration.prune!r}"
    model = f'model = am.Model(..., dtype="{configuration.dtype}")'
    match configuration.filter:
        case "sparse":
            return f"{model}; belief = model.belief(); belief.update(model, action, observation{options})"
        case "population":
            return f"{model}; am.Population(model, n_agents{options}).update(actions, observations)"
        case _:
            return None


def _as_json(measurement: Measurement) -> dict[str, Any]:
    record = asdict(measurement)
    configuration = record.pop("configuration")
    return {"configuration": configuration.pop("name"), **configuration, **record}


def _against(rival: Measurement, ours: Measurement) -> str:
    figures = (
        _ratio("bytes per belief", rival.belief_bytes_median, ours.belief_bytes_median, "fewer"),
        _ratio("model bytes", rival.model_bytes, ours.model_bytes, "fewer"),
        _ratio("peak RSS", rival.peak_rss, ours.peak_rss, "less"),
        _ratio("time per update", rival.microseconds_per_update, ours.microseconds_per_update, "less"),
    )
    return f"against {rival.configuration.name}: {', '.join(figures)}"


def _ratio(what: str, rival: float, ours: float, gain: str) -> str:
    ratio = rival / ours
    if 0.95 < ratio < 1.05:
        return f"about the same {what}"
    if ratio > 1:
        return f"{figure(ratio)}x {gain} {what}"
    return f"{figure(1 / ratio)}x more {what} (a loss)"


