"""Figures for Prometheus: the process, its agents, and the populations, histories and budgets among them.

    Prometheus  --GET-->  serve(): an endpoint on loopback  -->  Exporter.collect()  -->  looks, then

Nothing is measured between two questions, and a look at agents is used again for some seconds.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from agentmem.budget import Budget
from agentmem.groups import HistoryGroup
from agentmem.history import HistoryBuffer
from agentmem.population import Population
from agentmem.profiler.agents import Agents, Holdings, holdings, named
from agentmem.profiler.process import process_memory
from agentmem.records import RecordHistory

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from agentmem.profiler.monitor import Profiler

MOST_NAMES = 20    # agents, parts or others with a label of their own; the smaller ones are one, OTHERS
OTHERS = "(others)"
LASTS = 5.0        # seconds that a look at agents is used again
WORTH = 20         # times what it takes, at least

T = TypeVar("T")


class Exporter:
    """A collector for prometheus_client: register it, or let `serve` do it.

    Parameters
    ----------
    profiler : Profiler
        Whose agents' footprints are exported, by agent and by part, and whose operations: at most 20 names of each, so
        that labels stay few however many there are. Populations, histories and budgets among the agents have figures of
        their own.

    Notes
    -----
    A question takes what a look at the agents does, some 2 us an object, at most every 5 seconds. Any thread may ask.
    What raises when it is looked at is left out, and counted. A registry takes one Exporter.

    Examples
    --------
    >>> import agentmem as am
    >>> from agentmem.profiler import Profiler
    >>> profiler = Profiler({"all": am.Budget("10 MB")})
    >>> names = {metric.name for metric in Exporter(profiler).collect()}
    >>> "agentmem_process_resident_bytes" in names, "agentmem_budget_used_bytes" in names
    (True, True)
    """

    __slots__ = ("_failures", "_lock", "_looked", "_profiler", "_until")

    def __init__(self, profiler: Profiler) -> None:
        _client()
        self._profiler = profiler
        self._lock = threading.Lock()
        self._looked: Holdings | None = None
        self._until = 0.0
        self._failures = 0

    def collect(self) -> Iterator[Any]:
        """Metric families, for prometheus_client."""
        yield from _of_process()
        yield from _of_operations(self._profiler)
        agents = self._profiler.agents
        if agents is None:
            return
        found, known = self._tried(lambda: self._look(agents)), self._tried(lambda: named(agents)) or []
        if found is not None:
            yield from _of_agents(found)
        for kind, (classes, figures) in KINDS.items():
            some = [(name, agent) for name, agent in known if issubclass(type(agent), classes)]
            for figure, (text, measure) in figures.items():
                values = [(name, self._tried(partial(measure, agent))) for name, agent in some]
                by_name: Counter[str] = Counter()
                for name, value in values:
                    if value is not None:
                        by_name[name] += value
                yield _gauge(f"{kind}_{figure}", text, kind, by_name)
        yield _family("Counter", "failed_looks", "Looks at agents that raised", None, {"": self._failures})

    def describe(self) -> list[Any]:
        """Of the process only: prometheus_client is not to look at agents when it registers."""
        return list(_of_process())

    def _tried(self, look: Callable[[], T]) -> T | None:
        try:
            return look()
        except Exception:  # of an agent's own code, or because another thread changes it
            self._failures += 1
            return None

    def _look(self, agents: Agents) -> Holdings | None:
        with self._lock:
            began = time.monotonic()
            if began >= self._until:
                self._looked = None
                try:
                    self._looked = holdings(named(agents))
                finally:
                    took = time.monotonic() - began
                    self._until = began + max(LASTS, WORTH * took)
            return self._looked


def serve(
    profiler: Profiler, *, port: int = 9464, address: str = "127.0.0.1", registry: CollectorRegistry | None = None
) -> Any:
    """Answer Prometheus at ``http://address:port/metrics`` from a thread of its own.

    Parameters
    ----------
    profiler : Profiler
        As for `Exporter`.
    port : int
        0: any that is free.
    address : str
        Loopback unless told: whoever can reach it can read it.
    registry : prometheus_client.CollectorRegistry, optional
        What else is to be exported; None: nothing else.

    Returns
    -------
    server
        An HTTP server: ``server.server_port`` is its port; ``server.shutdown()`` and ``server.server_close()`` end it.
    """
    client = _client()
    registry = client.CollectorRegistry() if registry is None else registry
    exporter = Exporter(profiler)
    registry.register(exporter)
    try:
        server, _ = client.start_http_server(port, addr=address, registry=registry)
    except OSError:  # the port is taken
        registry.unregister(exporter)
        raise
    return server


# ---- families


# Kinds of agents with figures of their own: the classes, and what is measured of one.
KINDS: dict[str, tuple[tuple[type, ...], dict[str, tuple[str, Callable[[Any], int]]]]] = {
    "population": ((Population,), {
        "agents": ("Agents of a population", len),
        "states": ("States that the beliefs of a population hold", lambda one: int(one.nnz.sum())),
        "bytes": ("Bytes that a population holds", lambda one: one.nbytes),
    }),
    "history": ((HistoryBuffer, HistoryGroup, RecordHistory), {
        "entries": ("Entries of a history", len),
        "bytes": ("Bytes that a history holds", lambda one: one.nbytes),
    }),
    "budget": ((Budget,), {
        "limit_bytes": ("Bytes that a budget allows", lambda one: one.limit),
        "used_bytes": ("Bytes that are reserved in a budget", lambda one: one.used),
    }),
}  # fmt: skip


def _of_process() -> Iterator[Any]:
    memory = process_memory()
    figures = {"resident": memory.rss, "peak_resident": memory.peak_rss, "proportional": memory.pss}
    if tracemalloc.is_tracing():
        figures["traced"] = tracemalloc.get_traced_memory()[0]
    for name, nbytes in figures.items():
        if nbytes is not None:
            text = f"{name.replace('_', ' ').capitalize()} memory of the process"
            yield _gauge(f"process_{name}_bytes", text, None, {"": nbytes})
    collections = {str(k): generation["collections"] for k, generation in enumerate(gc.get_stats())}
    yield _family("Counter", "gc_collections", "Times the garbage collector ran", "generation", collections)


def _of_agents(found: Holdings) -> Iterator[Any]:
    own: Counter[str] = Counter()
    parts: Counter[str] = Counter()
    for agent in found.agents:
        own[agent.name] += agent.own
        parts.update(agent.parts)
    yield _gauge("agents", "Agents that are registered", None, {"": len(found.agents)})
    yield _gauge("agent_bytes", "Bytes that only this agent holds", "agent", own)
    yield _gauge("part_bytes", "Bytes that only one agent holds in parts of this name, of all agents", "part", parts)
    shared: Counter[str] = Counter()
    for part in found.shared:
        shared[part.name] += part.nbytes
    yield _gauge("shared_bytes", "Bytes that several agents hold, once", "part", shared)
    yield _gauge("mapped_bytes", "Of what agents hold: memory maps", None, {"": found.mapped})


def _of_operations(profiler: Profiler) -> Iterator[Any]:
    calls = {one.name: one.calls for one in profiler.operations}
    seconds = {one.name: one.seconds for one in profiler.operations}
    yield _family("Counter", "operation_calls", "Calls of an operation", "operation", calls)
    yield _family("Counter", "operation_seconds", "Seconds in an operation", "operation", seconds)


def _gauge(name: str, text: str, label: str | None, values: Mapping[str, float]) -> Any:
    return _family("Gauge", name, text, label, values)


def _family(
    kind: Literal["Counter", "Gauge"], name: str, text: str, label: str | None, values: Mapping[str, float]
) -> Any:
    """A metric for each of the largest values, and one for the sum of the others; of what counts on, of the first ones.

    Were these the largest, a name could come and go, and its count fall.
    """
    make = getattr(_client().core, f"{kind}MetricFamily")
    family = make(f"agentmem_{name}", text, labels=[] if label is None else [label])
    items = list(values.items())
    if kind == "Gauge":
        items.sort(key=lambda item: (-item[1], item[0]))
    for key, value in items[:MOST_NAMES]:
        family.add_metric([] if label is None else [key.encode(errors="backslashreplace").decode()], value)
    if items[MOST_NAMES:]:
        family.add_metric([OTHERS], sum(value for _, value in items[MOST_NAMES:]))
    return family


def _client() -> Any:
    try:
        import prometheus_client.core
    except ImportError:
        raise ImportError(
            "metrics need prometheus-client: pip install 'agentmem-native[metrics]'", name="prometheus_client"
        ) from None
    return prometheus_client
