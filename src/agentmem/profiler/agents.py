"""What registered agents hold: each by part, and once what several of them share.

    agents  -- one walk over all -->  what each alone leads to, and what a second one reached
            -- one walk over that -->  shared bytes, taken off the agent that was there first
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from agentmem.budget import Budget
from agentmem.footprint import ITSELF, Walk, is_container
from agentmem.model import Model
from agentmem.profiler.records import AgentMemory, SharedPart

Agents = Mapping[str, object] | Iterable[object]

SMALL = 256  # bytes of a shared part with a name; below are numbers, names of attributes, empty tuples
SMALL_PARTS = "(small)"
MOST_NESTED = 1_000  # shared things, up to which those in others are told apart


@dataclass(frozen=True, slots=True)
class Holdings:
    """What `holdings` found. Bytes; `mapped`, of all: memory maps, which other processes may share.

    `counts` are objects, by agent and part, where `agents` has their bytes.
    """

    agents: tuple[AgentMemory, ...]
    counts: tuple[dict[str, int], ...]
    shared: tuple[SharedPart, ...]
    mapped: int


def named(agents: Agents, first: int = 0, last: int | None = None) -> list[tuple[str, object]]:
    """Names and agents, from one place to another, as they are now: by a mapping's keys, else by position."""
    if isinstance(agents, Mapping):
        return [(str(name), agent) for name, agent in list(agents.items())[first:last]]
    some = islice(agents, first, last) if isinstance(agents, Collection) else list(agents)[first:last]
    return [(f"agent[{i}]", agent) for i, agent in enumerate(some, first)]


class TooManyObjects(Exception):
    """More than were to be looked at."""


def holdings(
    given: Sequence[tuple[str, object]], shared_before: Walk | None = None, *, most: int | None = None
) -> Holdings:
    """Count what agents with names hold, each object once. About 2 us per object.

    What one agent alone leads to is its own. What a second one reaches as well is shared, with all that it leads to,
    under the name of the part in which the first has it. Bytes are those of `agentmem.footprint`. What `shared_before`
    has met counts no more; it will have met what is found to be shared. Raises TooManyObjects beyond `most` of them.
    It takes 30 bytes of memory for each object of one agent, of several agents 200.
    """
    if len(given) == 1:
        return _of_one(*given[0], Walk(besides=shared_before), most)
    met: dict[int, int] = {}  # by id of what is alive, its place in these: first agent, part, bytes
    firsts, in_parts, sizes = list[int](), list[str](), list[int]()  # no tuples, for the collector
    holders: dict[int, tuple[object, list[int]]] = {}  # of what several reached
    names: dict[int, str] = {}
    now = 0

    def met_again(item: object) -> None:
        key = id(item)
        place = met[key]
        first = firsts[place]
        if first == now:
            return
        if key not in holders:
            holders[key] = item, [first]
            names[key] = part_name(given[first][0], in_parts[place])
        reachers = holders[key][1]
        if reachers[-1] != now:
            reachers.append(now)

    walk = Walk(met_again=met_again, besides=shared_before)
    for now, (_, agent) in enumerate(given):
        for item, part, nbytes in walk.over(agent):
            _check_number(len(firsts), most)
            met[id(item)] = len(firsts)
            firsts.append(now)
            in_parts.append(part)
            sizes.append(nbytes)

    if len(holders) <= MOST_NESTED:
        _spread(holders)
    reached = [0] * len(given)
    shared: list[SharedPart] = []
    small, most, below = 0, 0, shared_before or Walk()
    for root, reachers in sorted(holders.values(), key=lambda item: -len(item[1])):  # what most share is apart
        nbytes = 0
        for item, _, _ in below.over(root):
            if (place := met.pop(id(item), -1)) >= 0:
                nbytes += sizes[place]
        for agent in reachers:
            reached[agent] += nbytes
        if nbytes < SMALL:
            small, most = small + nbytes, max(most, len(reachers))
        else:
            shared.append(SharedPart(names[id(root)], nbytes, len(reachers)))
    if small:
        shared.append(SharedPart(SMALL_PARTS, small, most))

    parts: list[dict[str, int]] = [{} for _ in given]
    counts: list[dict[str, int]] = [{} for _ in given]
    for place in met.values():
        first, part = firsts[place], in_parts[place]
        parts[first][part] = parts[first].get(part, 0) + sizes[place]
        counts[first][part] = counts[first].get(part, 0) + 1
    agents_found = [
        AgentMemory(name, sum(own.values()), both, own)
        for (name, _), own, both in zip(given, parts, reached, strict=True)
    ]
    return Holdings(tuple(agents_found), tuple(counts), _by_name(shared), walk.mapped)


def _of_one(name: str, agent: object, walk: Walk, most: int | None) -> Holdings:
    """`holdings` of an agent that shares with nobody: what was met by whom need not be known."""
    parts: dict[str, int] = {}
    counts: dict[str, int] = {}
    for n, (_, part, nbytes) in enumerate(walk.over(agent)):
        _check_number(n, most)
        parts[part] = parts.get(part, 0) + nbytes
        counts[part] = counts.get(part, 0) + 1
    return Holdings((AgentMemory(name, sum(parts.values()), 0, parts),), (counts,), (), walk.mapped)


def _check_number(n: int, most: int | None) -> None:
    if most is not None and n >= most:
        raise TooManyObjects(f"they lead to over {most:,} objects")


def _by_name(shared: list[SharedPart]) -> tuple[SharedPart, ...]:
    """Parts of one name as one, as what several lists hold alike; the largest first."""
    found: dict[str, SharedPart] = {}
    for part in shared:
        same = found.get(part.name, SharedPart(part.name, 0, 0))
        found[part.name] = SharedPart(part.name, same.nbytes + part.nbytes, max(same.holders, part.holders))
    return tuple(sorted(found.values(), key=lambda part: -part.nbytes))


def _spread(holders: dict[int, tuple[object, list[int]]]) -> None:
    """Who reaches something shared reaches what lies below it, too."""
    found = {key: set(reachers) for key, (_, reachers) in holders.items()}
    for root, reachers in holders.values():
        for item, _, _ in Walk().over(root):
            if id(item) in found:
                found[id(item)].update(reachers)
    for key, (_, reachers) in holders.items():
        reachers[:] = sorted(found[key])


def counters(agents: Agents) -> int:
    """What the containers that these lead to say of themselves, each once, and none that another one counts."""
    kinds: dict[type, bool] = {}
    found: list[Any] = []
    for item, _, _ in Walk().over([agent for _, agent in named(agents)]):
        kind = type(item)
        if kind not in kinds:
            kinds[kind] = is_container(kind)
        if kinds[kind]:
            found.append(item)
    within = {id(item) for container in found for item in _counted_in(container)}
    return sum(container.nbytes for container in found if id(container) not in within)


def _counted_in(container: Any) -> list[object]:
    """What else its `nbytes` has: not a model that it uses, nor a budget that it is under."""
    others = Budget if isinstance(container, Model) else (Budget, Model)
    return [item for item, _, _ in Walk(others).over(container) if item is not container]


def part_name(agent: str, part: str) -> str:
    """How a part of an agent is called: ``"agent.log"``, ``"agent[3]"``."""
    return agent if part == ITSELF else f"{agent}{part}" if part.startswith("[") else f"{agent}.{part}"
