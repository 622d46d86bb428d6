"""Memory against time and error: filters run over the same world, each measured in a process of its own.

`child` measures one, `front` holds the records and what follows from them, `comparison` shows them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from agentmem.population import whole
from agentmem.profiler.child import measure_in_child
from agentmem.profiler.filters import Configuration
from agentmem.profiler.front import LeftOut, Measurement, TradeOff
from agentmem.profiler.workloads import AGENTS, STEPS, Workload, command_line, world_of
from agentmem.profiler.worlds import World

# Beyond this the dense rival would measure the machine's swap.
DENSE_LIMIT = 2 * 2**30

PRUNES = 0.0, 1e-12, 1e-9, 1e-6
REPEATS = 3


def standard_configurations(prune: float | None = None) -> list[Configuration]:
    """The two rivals, the exact SparseBelief and the pruned one (`prune=None`: the library's default).

    The rivals are what one writes by hand: contiguous dense arrays, and scipy's CSR with a dense belief, each
    transition transposed once so that a step is a gather.
    """
    return [
        Configuration("dense NumPy", "dense"),
        Configuration("scipy.sparse", "scipy"),
        Configuration("SparseBelief exact", "sparse", prune=0.0),
        Configuration("SparseBelief pruned", "sparse", prune=prune),
    ]


def swept_configurations() -> list[Configuration]:
    """Every dtype with both rivals, and with both of our storages over what is pruned; dense float64 first."""
    dtypes: Sequence[Any] = "float64", "float32"
    return [Configuration(f"{kind} {dtype}", kind, dtype=dtype) for kind in ("dense", "scipy") for dtype in dtypes] + [
        Configuration(f"{kind} {dtype} {f'{prune:.0e}' if prune else 'exact'}", kind, prune, dtype)
        for kind in ("sparse", "population")
        for dtype in dtypes
        for prune in PRUNES
    ]


def is_too_large(world: World, configuration: Configuration) -> bool:
    """Whether it is a dense rival whose arrays, in float64, would not fit in `DENSE_LIMIT`."""
    return configuration.filter == "dense" and world.dense_nbytes > DENSE_LIMIT


def tradeoff(
    workload: Workload,
    configurations: Sequence[Configuration] | None = None,
    *,
    repeats: int = REPEATS,
    agents: int = AGENTS,
    steps: int = STEPS,
    seed: int = 0,
    on_measured: Callable[[Configuration], None] | None = None,
) -> TradeOff:
    """What each way to hold agents' beliefs takes in memory, time and error on a workload, and which one to take.

    Parameters
    ----------
    workload : World, str or callable
        What agents do and read; or "module:function", or a function, without arguments, which returns a World or a
        Model. Agents act at random in a Model.
    configurations : sequence of Configuration, optional
        The first is what the others are compared with. By default dense NumPy, scipy, a `SparseBelief` per agent and
        a `Population`, in float64 and float32, and pruned not at all to 1e-6 of an agent's largest entry. Of these,
        dense NumPy is left out where its arrays would take over 2 GiB.
    repeats : int
        How often each is measured, in turns, in a new process each time.
    agents, steps, seed : int
        Of the walk in a Model.
    on_measured : callable, optional
        Called with each configuration when it has been measured once more.

    Returns
    -------
    TradeOff

    Raises
    ------
    ValueError, TypeError
        What was given does not fit.
    RuntimeError
        The function failed, or the first configuration did. Others that fail are left out, and say why.

    Notes
    -----
    Takes a third of a second for each process, and the updates. Nothing else should run on the machine.

    Examples
    --------
    >>> from agentmem.profiler.filters import Configuration
    >>> from agentmem.profiler.worlds import grid_world
    >>> found = tradeoff(
    ...     grid_world(40, 40, agents=2, steps=30, seed=0),
    ...     [Configuration("scipy", "scipy"), Configuration("ours", "sparse", prune=1e-9)],
    ...     repeats=1,
    ... )
    >>> found.recommended.configuration.name, found.recommended.largest_l1 < 1e-6
    ('ours', True)
    """
    whole(repeats, "repeats", 1)
    chosen = swept_configurations() if configurations is None else list(configurations)
    if not chosen:
        raise ValueError("no configurations given")
    names = [configuration.name for configuration in chosen]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"two configurations are called {min(twice)!r}")
    world = world_of(workload, agents=agents, steps=steps, seed=seed)
    left_out = []
    if configurations is None:
        reason = f"is left out: dense float64 arrays would take {world.dense_nbytes / 2**30:,.1f} GiB"
        left_out = [LeftOut(it, f"{it.name} {reason}") for it in chosen if is_too_large(world, it)]
        chosen = [it for it in chosen if not is_too_large(world, it)]
    measured: dict[Configuration, list[Measurement]] = {it: [] for it in chosen}
    with _saved(world) as directory:
        for turn, configuration in turns(chosen, repeats):
            if configuration in measured:
                try:
                    measured[configuration].append(measure_in_child(directory, configuration, compare=turn == 0))
                except RuntimeError as error:
                    if configuration == chosen[0]:
                        raise
                    del measured[configuration]
                    left_out.append(LeftOut(configuration, str(error)))
            if on_measured is not None:
                on_measured(configuration)
    return TradeOff(
        world=world.extent,
        measurements=tuple(map(_settled, measured.values())),
        left_out=tuple(left_out),
        command=command_line("--workload", workload, agents=agents, steps=steps, seed=seed, repeats=repeats)
        if isinstance(workload, str) and configurations is None
        else None,
    )


def turns(configurations: Sequence[Configuration], rounds: int) -> Iterator[tuple[int, Configuration]]:
    """Every configuration once per round, with the number of the round.

    The first round begins with the first, each later one further on, so that what a busy machine adds for a while
    meets different ones, at different places.
    """
    n = len(configurations)
    for turn in range(rounds):
        for k in range(n):
            yield turn, configurations[(k + turn * n // rounds) % n]


def measure(world: World, configurations: Sequence[Configuration]) -> Iterator[Measurement]:
    """Measure each configuration over `world`, one fresh process after the other; the first is the reference.

    Yields a record as soon as it is there. Raises RuntimeError with the child's last words if one fails.
    """
    with _saved(world) as directory:
        for configuration in configurations:
            yield measure_in_child(directory, configuration, compare=True)


@contextmanager
def _saved(world: World) -> Iterator[str]:
    with TemporaryDirectory(prefix="agentmem-") as directory:
        world.save(Path(directory))
        yield directory


def _settled(records: Sequence[Measurement]) -> Measurement:
    """The first, which was compared, with the times of all."""
    times = tuple(record.microseconds_per_update for record in records)
    return replace(records[0], microseconds_per_update=median(times), repeats=times)
