"""The command line: parses arguments, calls, prints. Imports click, rich and gymnasium when needed."""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentmem import __version__, _looking
from agentmem._outputs import check_distinct, check_writable, write_json
from agentmem.errors import CorruptData
from agentmem.formats import read_pomdp
from agentmem.integrations import gymnasium
from agentmem.profiler import comparison, filters, promises, sweep, tables, throughput, verification, workloads, worlds
from agentmem.profiler.workloads import AGENTS, STEPS

if TYPE_CHECKING:
    import click
    from rich.progress import Progress

SECONDS = 20  # that a population goes on after its first step, unless a number of steps is asked for


def main() -> None:
    """The `agentmem` command."""
    try:
        commands().main(prog_name="agentmem")
    except ImportError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in ("click", "rich", "gymnasium", "pympler", "jinja2", "matplotlib"):
            raise
        looks = sys.argv[1:2] in (["profile"], ["watch"], ["report"])
        extra = "profile" if looks or package in ("pympler", "jinja2", "matplotlib") else "demo"
        sys.exit(f"agentmem: {package} is not installed: pip install 'agentmem-native[{extra}]'")


def commands() -> click.Group:
    """The command group. Built in a function, so that this module can be imported without click."""
    import click

    class Count(click.IntRange):
        """Whole numbers, 1e5 among them."""

        def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
            try:
                whole = int(float(value)) == float(value)
            except (OverflowError, ValueError):
                whole = False
            return super().convert(int(float(value)) if whole else value, parameter, context)

    def count(name: str, default: int | None, text: str) -> click.Parameter:
        return click.Option(
            [f"--{name}"],
            metavar="N",
            type=Count(min=1, max=10**7),
            default=default,
            show_default=default is not None,
            help=text,
        )

    def seed_and_json(of_what: str) -> list[click.Parameter]:
        return [
            click.Option(
                ["--seed"],
                metavar="N",
                type=click.IntRange(min=0),
                default=0,
                show_default=True,
                help=f"Of {of_what}.",
            ),
            click.Option(
                ["--json", "json_file"],
                metavar="FILE",
                type=click.Path(dir_okay=False, path_type=Path),
                callback=check_writable,
                help="Also write the figures to FILE, sizes in bytes.",
            ),
        ]

    of_walks = seed_and_json("the map, the walks and the readings")
    which_world: list[click.Parameter] = [
        click.Argument(
            ["file"],
            metavar="[FILE]",
            required=False,
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
        ),
        click.Option(
            ["--env"],
            metavar="NAME",
            help=f"A gymnasium environment: {', '.join(gymnasium.ENVIRONMENTS)}, or one's id.",
        ),
        count("states", None, "A generated grid of about N states, as square as N allows."),
        click.Option(
            ["--workload"],
            metavar="MODULE:FUNCTION",
            help="A function without arguments that returns a World or a Model, here or where Python looks.",
        ),
        click.Option(
            ["--prune"],
            metavar="SHARE",
            type=click.FloatRange(min=0, max=1, max_open=True),
            help="What pruning drops: entries below this share of the largest.  [default: the library's]",
        ),
    ]
    group = click.Group(
        "agentmem",
        help="Sparse belief states for many agents: what they cost beside dense NumPy and scipy.sparse, and what "
        "memory any program holds.",
        commands=[
            click.Command(
                "demo",
                callback=demo,
                help=demo.__doc__,
                params=[
                    count("agents", None, "Show a Population of N agents instead."),
                    count(
                        "steps",
                        None,
                        f"Steps of each agent.  [default: {STEPS}; with --agents, as many of them as {SECONDS} seconds "
                        "after the first allow]",
                    ),
                    *of_walks,
                ],
            ),
            click.Command(
                "compare",
                callback=compare,
                help=compare.__doc__,
                short_help="The same table for another world or a .POMDP file.",
                params=[
                    *which_world,
                    count("agents", AGENTS, "Agents that walk the world."),
                    count("steps", STEPS, "Steps of each agent."),
                    click.Option(
                        ["--sweep", "sweeps"],
                        is_flag=True,
                        help="Memory against time and error, over dtypes, pruning and storage; says which to take.",
                    ),
                    count("repeats", None, f"With --sweep: rounds of measuring.  [default: {sweep.REPEATS}]"),
                    *of_walks,
                ],
            ),
            click.Command(
                "verify",
                callback=verify,
                help=verify.__doc__,
                short_help="Check on this machine what is promised of an agent.",
                params=seed_and_json("the agents and what they are given"),
            ),
            *_looking.commands(),
        ],
    )
    return click.version_option(__version__, prog_name="agentmem")(group)


def demo(agents: int | None, steps: int | None, seed: int, json_file: Path | None) -> None:
    """Track agents on a 50 x 50 frozen lake, four ways.

    Agents slip at random over a generated map of gymnasium's FrozenLake (2,500 states) and read their
    position with noise; one whose episode ends starts again. A dense NumPy filter, a scipy.sparse one,
    SparseBelief exact and SparseBelief pruned follow the same walks, each in its own process. Prints what
    each held, how long an update took, and how far its beliefs are from dense NumPy's. Takes less than a
    minute.

    With --agents N, a Population of N agents, a million for example, walks a slippery 100 x 100 grid instead:
    from anywhere, knowing nothing, sensing its position with noise. Shows agent-steps per second while they
    step, the bytes per agent, and the memory of the process. The clock sees Population.update alone, not the
    simulation of what the agents do and read.
    """
    if agents is not None:
        _step_population(agents, steps, seed, json_file)
        return
    agents, steps = AGENTS, STEPS if steps is None else steps
    env, sensor = gymnasium.frozen_lake(50, seed)
    world = gymnasium.world_from_env(
        env, sensor, name="FrozenLake 50 x 50", agents=agents, steps=steps, seed=seed
    )
    parameters = {"agents": agents, "steps": steps, "seed": seed}
    _compare(world, sweep.standard_configurations(), "demo", parameters, json_file)


def _step_population(agents: int, steps: int | None, seed: int, json_file: Path | None) -> None:
    import click
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)
    watched = sys.stderr.isatty() and not console.is_dumb_terminal  # whatever FORCE_COLOR says of a file
    limits = (STEPS, SECONDS) if steps is None else (steps, math.inf)
    with console.status(f"{agents:,} agents take their first step") if watched else nullcontext() as status:
        for record in throughput.measure(100, 100, agents, steps=limits[0], seconds=limits[1], seed=seed):
            if status is not None:
                status.update(Text(tables.progress(record)))
            elif record.steps.bit_count() == 1:  # each time the steps double: a log has no use for hundreds
                click.echo(tables.progress(record), err=True)
    click.echo(tables.throughput_summary(record))
    parameters = {"agents": agents, "steps": steps, "seed": seed}
    write_json(json_file, tables.throughput_to_json(record, command="demo", parameters=parameters))


def compare(
    file: Path | None,
    env: str | None,
    states: int | None,
    workload: str | None,
    prune: float | None,
    agents: int,
    steps: int,
    sweeps: bool,
    repeats: int | None,
    seed: int,
    json_file: Path | None,
) -> None:
    """The demo's table for another world: a .POMDP file, a gymnasium environment, a grid of any size, or your own.

    \b
    agentmem compare tiger.pomdp
    agentmem compare --env Taxi
    agentmem compare --states 100000 --steps 50
    agentmem compare --sweep --workload simulation:warehouse

    FILE is in Cassandra's POMDP format; agents act at random in it, from where it starts, and so they do in a Model
    that a workload returns; a World has its own agents. In the other worlds sensors read a position with noise: one
    of the 3 x 3 cells around the true one. On Taxi that is the taxi's; passenger and destination stay unseen.
    CliffWalking is the slippery one. Grids are slippery and have no walls, and agents start anywhere. Dense NumPy is
    left out where its arrays would take over 2 GiB.

    With --sweep, dense NumPy, scipy.sparse, a SparseBelief per agent and a Population of all agents are measured in
    float64 and float32, and the latter two with more and less pruning, each several times in turns. The table marks
    those that no other beats in memory, time and error; below it stands which one to take, and how. Takes under a
    minute where dense updates are quick.
    """
    import click

    if [file, env, states, workload].count(None) != 3:
        raise click.UsageError("give one of FILE, --env NAME, --states N and --workload MODULE:FUNCTION")
    if sweeps and prune is not None:
        raise click.UsageError("--sweep goes through shares to prune itself; leave out --prune")
    if repeats is not None and not sweeps:
        raise click.UsageError("--repeats goes with --sweep")
    check_distinct([] if file is None else [file], json_file)
    world, words = _world(file, env, states, workload, agents=agents, steps=steps, seed=seed)
    parameters = {
        "file": None if file is None else str(file),
        "env": env,
        "states": states,
        "workload": workload,
        "prune": prune,
        "agents": agents,
        "steps": steps,
        "seed": seed,
    }
    if sweeps:
        numbers = {"agents": agents, "steps": steps, "seed": seed, "repeats": repeats or sweep.REPEATS}
        _sweep(world, workloads.command_line(*words, **numbers), {**parameters, **numbers}, json_file)
        return
    configurations = sweep.standard_configurations(prune)
    if sweep.is_too_large(world, configurations[0]):
        click.echo(
            f"Dense NumPy is left out: its arrays would take {world.dense_nbytes / 2**30:,.1f} GiB.", err=True
        )
        configurations = configurations[1:]
    _compare(world, configurations, "compare", parameters, json_file)


def verify(seed: int, json_file: Path | None, plan: verification.Plan | None = None) -> None:
    """Check on this machine what is promised of an agent.

    An agent in plain NumPy that takes 34.6 MiB (a belief over 2048 x 3840 states, a log, an observation, a
    transition) works for 20 steps beside one that agentmem.compact made small, at densities of the belief from
    0.01 % to 100 %. Shows what the small one holds while it works, how long a step takes, and whether anything
    is lost; then 50 and 100 such agents. Takes about a minute.

    Ends with exit code 1 if a promise is broken, and says which and by how much. A step may take three times
    what is promised before that, because the machine may be busy: the promise is for an idle one.
    """
    import click
    from rich.console import Console

    tasks = verification.standard_plan(seed) if plan is None else plan
    records = []
    with _progress() as progress:
        task = progress.add_task("the first agent", total=len(tasks))
        for measure in tasks:
            record = measure()
            records.append(record)
            progress.update(task, advance=1, description=f"checked {record.name}")
    if any(isinstance(record, promises.AgentRecord) for record in records):
        Console().print(tables.verification_to_table(records))
    click.echo("\n" + tables.verification_summary(records))
    found = tables.verification_to_json(records, command="verify", parameters={"seed": seed})
    write_json(json_file, found)
    if not found["kept"]:
        sys.exit(1)


def _world(
    file: Path | None, env: str | None, states: int | None, workload: str | None, **walk: int
) -> tuple[worlds.World, list[str]]:
    """The world that was asked for, and the words that ask for it."""
    import click

    if file is not None:
        try:
            model = read_pomdp(file).model
        except (CorruptData, OSError) as error:
            raise click.ClickException(str(error)) from None
        return workloads.walked_model(file.name, model, **walk), [str(file)]
    if env is not None:
        try:
            made, sensor = gymnasium.make_env(_spelled(env))
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="--env") from None
        return gymnasium.world_from_env(made, sensor, name=made.spec.id, **walk), ["--env", env]
    if workload is not None:
        return _imported(workload, **walk), ["--workload", workload]
    assert states is not None
    rows = round(math.sqrt(states))
    return worlds.grid_world(rows, max(1, round(states / rows)), **walk), ["--states", str(states)]


def _imported(workload: str, **walk: int) -> worlds.World:
    """The world of "module:function", looked for in the current directory first, as `python -m` does."""
    import click

    sys.path.insert(0, os.getcwd())
    try:
        return workloads.world_of(workload, **walk)
    except (ValueError, TypeError) as error:
        raise click.BadParameter(str(error), param_hint="--workload") from None
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    finally:
        sys.path.pop(0)  # not the children's: a random.py in this directory would be theirs


def _spelled(env: str) -> str:
    """The name of an environment as gymnasium spells it, whatever the case it was given in."""
    spelled = {name.lower(): name for name in gymnasium.ENVIRONMENTS}
    name, version, number = env.lower().partition("-v")
    return spelled[name] + version + number if name in spelled else env


def _compare(
    world: worlds.World,
    configurations: list[filters.Configuration],
    command: str,
    parameters: dict[str, Any],
    json_file: Path | None,
) -> None:
    import click
    from rich.console import Console

    measurements = []
    with _progress() as progress:
        task = progress.add_task(configurations[0].name, total=len(configurations))
        try:
            for measurement in sweep.measure(world, configurations):
                measurements.append(measurement)
                following = configurations[len(measurements) :]
                progress.update(task, advance=1, description=following[0].name if following else "measured")
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None

    Console().print(comparison.to_table(world, measurements))
    click.echo("\n" + comparison.summary(measurements))
    write_json(json_file, comparison.to_json(world, measurements, command=command, parameters=parameters))


def _sweep(world: worlds.World, command: str, parameters: dict[str, Any], json_file: Path | None) -> None:
    import click
    from rich.console import Console

    repeats = parameters["repeats"]
    chosen = [it for it in sweep.swept_configurations() if not sweep.is_too_large(world, it)]
    with _progress() as progress:
        task = progress.add_task(chosen[0].name, total=repeats * len(chosen))
        try:
            found = sweep.tradeoff(
                world,
                repeats=repeats,
                on_measured=lambda it: progress.update(task, advance=1, description=f"measured {it.name}"),
            )
        except RuntimeError as error:
            raise click.ClickException(str(error)) from None
    found = replace(found, command=command)
    Console().print(comparison.tradeoff_to_table(found))
    click.echo("\n" + comparison.tradeoff_summary(found))
    write_json(json_file, comparison.tradeoff_to_json(found, command="compare", parameters=parameters))


def _progress() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=Console(stderr=True))
