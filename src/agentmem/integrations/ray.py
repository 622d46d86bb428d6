"""RayPopulation: a Population whose agents lie in shards, each in a process of its own, on one machine or a cluster.

    driver: what each shard began with, and the changes since   --actions, observations-->   Shard (actor): Population
                                                                <-- evidence, answers --     the model: read in place

A change is made by all shards or by none: each makes it and can still take it back until the driver, which has heard
from all of them, has noted it. A shard whose process dies is begun again from what the driver has noted.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple, Self, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentmem.belief import SparseBelief
from agentmem.errors import ImpossibleObservation
from agentmem.files import write_arrays
from agentmem.model import Model
from agentmem.policy import choose_actions
from agentmem.population import (
    OnImpossible,
    Population,
    agents_of,
    checked_step,
    impossible_observations,
    numbered,
    unnumbered,
    whole,
)

if find_spec("ray") is None:  # not imported yet: what it reads of the environment then is set in `_connect`
    raise ImportError("ray is not installed: pip install 'agentmem-native[ray]'", name="ray")

State = tuple[dict[str, Any], dict[str, NDArray[Any]]]  # a population's header and buffers
Call = tuple[str, tuple[Any, ...], dict[str, Any]]      # a population's method and its arguments

LOG = logging.getLogger(__name__)

NOTED_ROOM = 1 << 24  # bytes of changes that are noted before notes begin anew, or as many as all shards held then
LIVES = 4             # processes that one call of one shard may use up


class Shard:
    """Some of the agents, in an actor.

    Every call tells how many of its changes count, so that one that was made but does not count is taken back first.
    """

    def __init__(self, model: Model, start: State, n_agents: int, threads: int | None, changes: Sequence[Call]) -> None:
        """The agents of `start`, again and again where there are not so many, after these changes."""
        population = Population.from_buffers(model, *start, threads=threads)
        if len(population) != n_agents:
            population = population._picked(np.resize(np.arange(len(population)), n_agents))
        self._population = population
        self._take_back: tuple[int, Callable[[], None]] | None = None
        for method, arguments, options in changes:
            getattr(population, method)(*arguments, **options)

    def change(self, count: int, call: Call) -> Any:
        """Make a change that does not count yet. An impossible observation is returned, not raised."""
        self.settle(count)
        population, (method, arguments, options) = self._population, call
        if method == "__setitem__":
            agent, before = arguments[0], population[arguments[0]]
            self._take_back = count, lambda: population.__setitem__(agent, before)
        else:
            chunks = population._chunks
            self._take_back = count, lambda: setattr(population, "_chunks", chunks)
        try:
            return getattr(population, method)(*arguments, **options)
        except ImpossibleObservation as error:
            return error

    def settle(self, count: int) -> None:
        """Take the last change back unless it counts; let go of what was before it."""
        if self._take_back is not None and self._take_back[0] >= count:
            self._take_back[1]()
        self._take_back = None

    def ask(self, count: int, call: Call) -> Any:
        """The value of an attribute, or what a method that changes nothing returns."""
        self.settle(count)
        method, arguments, options = call
        found = getattr(self._population, method)
        return found(*arguments, **options) if callable(found) else found

    def state(self, count: int, agents: NDArray[np.intp] | None) -> State:
        """Header and buffers of all agents, or of these."""
        self.settle(count)
        part = self._population if agents is None else self._population._picked(agents)
        return part.header, part.buffers()


class Change(NamedTuple):
    """What all shards have done."""

    calls: dict[int, Call]  # by shard
    sizes: list[int]        # agents in each shard afterwards
    counts: list[int]       # changes that each shard has made, ever
    nbytes: int             # of all noted changes up to here, about


class Notes(NamedTuple):
    """From what every shard can begin again."""

    starts: list[Any]  # references to a State each
    sizes: list[int]   # agents in each shard then
    counts: list[int]  # changes that each shard had made then
    changes: list[Change]


class RayPopulation:
    """A `Population` in shards, each an actor of Ray: for more agents than one process or one machine should hold.

    Parameters
    ----------
    model : Model
        Put into Ray's object store once; the shards of a machine read it in place.
    n_agents : int
    n_shards : int
        Actors, spread over the machines there are. Agents lie in them in order, in equal shares.
    initial, prune, max_states
        As of `Population`.
    threads : int, optional
        How many work on an update in each shard; the CPUs its process may use if None.
    address : str, optional
        Of a running Ray cluster; where this process is connected already, that connection is taken. If None and no
        cluster is connected or named by `RAY_ADDRESS`, a local Ray is started on the loopback interface, without
        dashboard and usage statistics. (Where `ray` was imported before, it listens where Ray's own default says.)

    Raises
    ------
    ValueError
        A belief or number that does not fit.
    RuntimeError
        A shard that cannot be kept alive. The population is as it was before that call.

    Notes
    -----
    Numbers are those of `Population`, bit for bit, for any number of shards. A change that fails in one shard changes
    none. A shard whose process or machine dies is begun again from the last checkpoint (one of its own in Ray's object
    store, or the last that `checkpoint` wrote) and the changes since, which the driver keeps; so nothing is lost while
    the driver lives. Each update costs some milliseconds for the messages, so shards pay from about 10,000 agents each.
    A shard begun again is a warning of the logger `agentmem.integrations.ray`; Ray itself prints why it died. The
    actors end with the population (`del`), a local Ray with the process or `ray.shutdown()`, after which a checkpoint
    is what is left. One thread at a time; it cannot be pickled.

    Examples
    --------
    >>> import agentmem as am
    >>> from agentmem.integrations.ray import RayPopulation
    >>> model = am.Model([[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]])
    >>> agents = RayPopulation(model, 3, n_shards=2)
    >>> agents.update([0, 0, 0], [1, 0, -1]).round(3)
    array([-0.562, -0.844,  0.   ])
    >>> agents[1].to_dense().round(3)
    array([0.895, 0.105])
    """

    __slots__ = ("_actors", "_in_use", "_local", "_model", "_notes", "_room")

    def __init__(
        self,
        model: Model,
        n_agents: int,
        *,
        n_shards: int,
        initial: Any = None,
        prune: float = 1e-12,
        max_states: int | None = None,
        threads: int | None = 1,
        address: str | None = None,
    ) -> None:
        sizes = _shares(n_agents, n_shards)
        one = Population(model, 1, initial=initial, prune=prune, max_states=max_states, threads=threads)
        ray = _connect(address)
        start = ray.put((one.header, one.buffers()))
        self._begin(one, [start] * n_shards, sizes)

    @classmethod
    def from_beliefs(
        cls,
        model: Model,
        beliefs: Iterable[SparseBelief],
        *,
        n_shards: int,
        prune: float = 1e-12,
        max_states: int | None = None,
        threads: int | None = 1,
        address: str | None = None,
    ) -> Self:
        """A population of these beliefs, which are copied."""
        whole = Population.from_beliefs(model, beliefs, prune=prune, max_states=max_states, threads=threads)
        return cls._of(whole, n_shards, address)

    @classmethod
    def restore(
        cls,
        path: str | os.PathLike[str],
        model: Model,
        *,
        n_shards: int,
        threads: int | None = 1,
        address: str | None = None,
    ) -> Self:
        """The population that `checkpoint` or `Population.save` wrote, over the same model, in any number of shards.

        Raises CorruptData for a file that is truncated, damaged or no population, ValueError for another model.
        """
        return cls._of(Population.open(path, model, threads=threads), n_shards, address)

    @classmethod
    def _of(cls, whole: Population, n_shards: int, address: str | None) -> Self:
        sizes = _shares(len(whole), n_shards)
        ray = _connect(address)
        ends = np.cumsum(sizes).tolist()
        parts = (whole[end - size : end] for size, end in zip(sizes, ends, strict=True))
        population = cls.__new__(cls)
        population._begin(whole, [ray.put((part.header, part.buffers())) for part in parts], sizes)
        return population

    def _begin(self, like: Population, starts: list[Any], sizes: list[int]) -> None:
        import ray

        self._local = like[:0]
        self._model = ray.put(like.model)
        self._notes = Notes(starts, sizes, [0] * len(starts), [])
        self._room = NOTED_ROOM
        self._in_use = threading.Lock()
        self._actors = [self._actor(k) for k in range(len(starts))]

    def _actor(self, k: int) -> Any:
        """Shard k in a new process, from what is noted of it."""
        import ray

        notes = self._notes
        changes = [change.calls[k] for change in notes.changes if k in change.calls]
        kind = ray.remote(scheduling_strategy="SPREAD")(Shard)
        return kind.remote(self._model, notes.starts[k], notes.sizes[k], self._local.threads, changes)

    # ---- what all is made of

    @property
    def _counts(self) -> list[int]:
        """How many changes of each shard count."""
        return self._notes.changes[-1].counts if self._notes.changes else self._notes.counts

    @property
    def _noted(self) -> int:
        """Bytes of noted changes."""
        return self._notes.changes[-1].nbytes if self._notes.changes else 0

    @property
    def _sizes(self) -> list[int]:
        return self._notes.changes[-1].sizes if self._notes.changes else self._notes.sizes

    def _change(self, calls: dict[int, Call], sizes: list[int] | None = None) -> list[Any]:
        """Let shards change; what they return, in order. All of them do or none, whatever is raised."""
        with self._alone():
            if self._noted > self._room:
                self._begin_notes_anew()
            try:
                found = self._results("change", [(k, (call,)) for k, call in calls.items()])
                if calls and not any(isinstance(result, ImpossibleObservation) for result in found):
                    counts = [count + (k in calls) for k, count in enumerate(self._counts)]
                    noted = self._noted + sum(map(_nbytes, calls.values()))
                    self._notes.changes.append(Change(calls, sizes or self._sizes, counts, noted))  # now it counts
            finally:
                for k in calls:
                    self._actors[k].settle.remote(self._counts[k])
        return found

    def _answers(self, calls: dict[int, Call]) -> list[Any]:
        """What these shards answer, in order."""
        with self._alone():
            return self._results("ask", [(k, (call,)) for k, call in calls.items()])

    def _ask(self, method: str, *arguments: Any, **options: Any) -> list[Any]:
        """What every shard answers, in order."""
        return self._answers(dict.fromkeys(range(len(self._actors)), (method, arguments, options)))

    def _results(self, remote: str, calls: Sequence[tuple[int, tuple[Any, ...]]]) -> list[Any]:
        """What an actor's method returns in every shard called, begun again where one dies."""
        import ray

        if not ray.is_initialized():
            raise RuntimeError("Ray was shut down, and the shards with it; what is left is the last checkpoint")
        sent = [self._send(remote, *call) for call in calls]
        return [self._result(answer, remote, *call) for answer, call in zip(sent, calls, strict=True)]

    def _send(self, remote: str, k: int, arguments: tuple[Any, ...]) -> Any:
        return getattr(self._actors[k], remote).remote(self._counts[k], *arguments)

    def _result(self, answer: Any, remote: str, k: int, arguments: tuple[Any, ...]) -> Any:
        import ray

        lives = LIVES
        while True:
            try:
                return ray.get(answer)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:  # it died, was ended for want of memory, or is out of reach
                ray.kill(self._actors[k])
                self._actors[k] = self._actor(k)
                lives -= 1
                if not lives:
                    message = f"shard {k} of {len(self._actors)} died {LIVES} times in one call; nothing has changed"
                    raise RuntimeError(message) from error
                LOG.warning("shard %d of %d died and is begun again: %s", k, len(self._actors), type(error).__name__)
            answer = self._send(remote, k, arguments)

    def _begin_notes_anew(self, states: list[State] | None = None) -> None:
        """From the shards as they are; where that fails, go on with the notes there are."""
        import ray

        try:
            states = self._states() if states is None else states
            # Put once more: what an actor returned would be lost with its machine.
            self._notes = Notes([ray.put(state) for state in states], self._sizes, self._counts, [])
            self._room = max(NOTED_ROOM, sum(array.nbytes for _, buffers in states for array in buffers.values()))
        except (MemoryError, OSError, RuntimeError, ray.exceptions.RayError) as error:
            self._room *= 2
            kept = f"{self._noted} bytes of changes are kept, since no checkpoint of them could be made"
            warnings.warn(f"{kept}: {error}", RuntimeWarning, stacklevel=4)

    def _states(self) -> list[State]:
        """All there is, by shard: views of what lies in Ray's object store."""
        return self._results("state", [(k, (None,)) for k in range(len(self._actors))])

    @contextmanager
    def _alone(self) -> Iterator[None]:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("two threads in one RayPopulation; it serves one at a time")
        try:
            yield
        finally:
            self._in_use.release()

    # ---- the interface of Population

    model = property(lambda self: self._local.model, doc="The shared Model.")
    prune = property(lambda self: self._local.prune, doc="What an update drops: entries below this share of the most.")
    threads = property(lambda self: self._local.threads, doc="How many work on an update in each shard.")
    max_states = property(lambda self: self._local.max_states, doc="How many states an agent may hold possible.")

    @property
    def actors(self) -> list[Any]:
        """The Ray actors of the shards as of now."""
        return list(self._actors)

    def update(
        self, actions: ArrayLike, observations: ArrayLike, *, on_impossible: OnImpossible = "raise"
    ) -> NDArray[np.float64]:
        """One filter step of every agent, as `Population.update`. O(entries of T met), in all shards at once."""
        a, o = checked_step(self.model, len(self), actions, observations, on_impossible)
        a, o, spans = a.astype(np.int32), o.astype(np.int32), self._spans()
        found = self._change(
            {k: ("update", (a[span], o[span]), {"on_impossible": on_impossible}) for k, span in spans.items()}
        )
        impossible = [
            spans[k].start + agent
            for k, result in zip(spans, found, strict=True)
            if isinstance(result, ImpossibleObservation)
            for agent in result.agents
        ]
        if impossible:
            raise impossible_observations(impossible, a, o)
        return np.concatenate([np.empty(0), *found])

    def expected_free_energy(
        self, policies: Sequence[ArrayLike], preferences: ArrayLike, **options: bool
    ) -> NDArray[np.float64]:
        """(n, n_policies), as `Population.expected_free_energy`."""
        self._local.expected_free_energy(policies, preferences, **options)  # refuses what does not fit
        return self._concatenated("expected_free_energy", policies, preferences, **options)

    def act(
        self,
        policies: Sequence[ArrayLike],
        preferences: ArrayLike,
        *,
        gamma: float = 16.0,
        alpha: float = 16.0,
        action_selection: Literal["deterministic", "stochastic"] = "deterministic",
        rng: Any = None,
        **options: bool,
    ) -> NDArray[np.intp]:
        """(n,): an action for each agent, as `Population.act`; the same ones for the same seed."""
        G = self.expected_free_energy(policies, preferences, **options)
        return choose_actions(G, policies, self.model.n_actions, gamma, alpha, action_selection, rng)

    def __len__(self) -> int:
        return sum(self._sizes)

    @overload
    def __getitem__(self, agent: int) -> SparseBelief: ...

    @overload
    def __getitem__(self, agent: slice) -> Population: ...

    def __getitem__(self, agent: int | slice) -> SparseBelief | Population:
        """A copy of one agent's belief; for a slice, a `Population` of copies here."""
        if isinstance(agent, slice):
            agents = np.arange(len(self))[agent]
            ends = np.cumsum(self._sizes)
            owners = np.searchsorted(ends, agents, side="right")
            runs = np.split(agents, np.flatnonzero(np.diff(owners)) + 1) if len(agents) else []
            calls = []
            for run in runs:
                k = int(np.searchsorted(ends, run[0], side="right"))
                calls.append((k, (run - (ends[k] - self._sizes[k]),)))
            with self._alone():
                return self._joined(self._results("state", calls))
        k, place = self._place(agent)
        belief: SparseBelief = self._answers({k: ("__getitem__", (place,), {})})[0]
        return belief

    def __setitem__(self, agent: int, belief: SparseBelief) -> None:
        k, place = self._place(agent)
        self._local._checked(belief)
        self._change({k: ("__setitem__", (place, belief.copy()), {})})

    def __iter__(self) -> Iterator[SparseBelief]:
        return (belief for span in self._spans().values() for belief in self[span])

    def _place(self, agent: int) -> tuple[int, int]:
        """The shard of an agent, and its number there."""
        agent, n = whole(agent, "agent"), len(self)
        if not -n <= agent < n:
            raise IndexError(f"agent {agent} given; there are {n}")
        [(k, span)] = [(k, span) for k, span in self._spans().items() if span.start <= agent % n < span.stop]
        return k, agent % n - span.start

    def _spans(self) -> dict[int, slice]:
        """The agents of each shard that has any."""
        ends = np.cumsum(self._sizes).tolist()
        return {k: slice(ends[k] - size, ends[k]) for k, size in enumerate(self._sizes) if size}

    def copy(self) -> Self:
        """An independent population of the same beliefs, in as many shards. O(bytes held)."""
        return self._of(self[:], len(self._actors), None)

    def add(self, beliefs: Iterable[SparseBelief]) -> None:
        """Append agents with these beliefs, which are copied, to the last shard. O(bytes it holds)."""
        new = [belief.copy() for belief in self._local._all_checked(beliefs)]
        *sizes, last = self._sizes
        if new:
            self._change({len(sizes): ("add", (new,), {})}, [*sizes, last + len(new)])

    def remove(self, agents: ArrayLike) -> None:
        """Drop these agents, an index, several, or an (n,) mask; the others move up. O(bytes held)."""
        calls: dict[int, Call] = {}
        sizes = self._sizes.copy()
        places = {self._place(agent) for agent in agents_of(agents, len(self)).tolist()}
        for k in {k for k, _ in places}:
            gone = np.array(sorted(place for owner, place in places if owner == k))
            calls[k] = "remove", (gone,), {}
            sizes[k] -= len(gone)
        if calls:
            self._change(calls, sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of all beliefs, wherever they lie; the shared model not counted."""
        return sum(self._ask("nbytes"))

    @property
    def nnz(self) -> NDArray[np.int64]:
        """(n,): how many states each agent holds possible."""
        return self._concatenated("nnz")

    def mode(self) -> NDArray[np.intp]:
        """(n,) flat indices: each agent's most probable state (of equals, the lowest). O(nnz)."""
        return self._concatenated("mode")

    def entropy(self) -> NDArray[np.float64]:
        """(n,): each agent's uncertainty in nats. O(nnz)."""
        return self._concatenated("entropy")

    def top(self, k: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Each agent's k most probable states and their probabilities, as `Population.top`."""
        states, values = zip(*self._ask("top", k), strict=True)
        return np.concatenate(states), np.concatenate(values)

    def expectation(self, f: ArrayLike) -> NDArray[np.float64]:
        """(n,): the mean of f, (S,) or of the beliefs' shape, under each agent's belief. O(nnz)."""
        return self._concatenated("expectation", np.asarray(f))

    def marginal(self, axis: int | Sequence[int]) -> list[SparseBelief]:
        """Each agent's belief over the given axes, as `SparseBelief.marginal`."""
        return [belief for part in self._ask("marginal", axis) for belief in part]

    def sample(self, rng: Any = None) -> NDArray[np.intp]:
        """(n,) flat indices: a state drawn for each agent; the same ones as `Population.sample` for the same seed."""
        draws = np.random.default_rng(rng).random(len(self))
        found = self._answers({k: ("_drawn", (draws[span],), {}) for k, span in self._spans().items()})
        return np.concatenate([np.empty(0, np.intp), *found])

    def _concatenated(self, method: str, *arguments: Any, **options: Any) -> NDArray[Any]:
        return np.concatenate(self._ask(method, *arguments, **options))

    # ---- as a file

    def checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Write all agents to a file, whole or not at all, for `restore` or `Population.open`. O(bytes held).

        Raises OSError where that fails; what was at this path is there still.
        """
        with self._alone():
            states = self._states()
            write_arrays(path, self._local.header, _merged(states))
            self._begin_notes_anew(states)

    def _joined(self, states: Sequence[State]) -> Population:
        return Population.from_buffers(self.model, self._local.header, _merged(states), threads=self._local.threads)

    def __repr__(self) -> str:
        shards = f"{len(self._actors)} shards"
        return f"{type(self).__name__}({len(self)} agents in {shards}, n_states={self.model.n_states})"


def _merged(states: Iterable[State]) -> dict[str, NDArray[Any]]:
    """The buffers of several populations as those of one."""
    return numbered(arrays for _, buffers in states for arrays in unnumbered(buffers))


def _nbytes(call: Call) -> int:
    """What noting a call takes, about."""
    _, arguments, _ = call
    parts = [part for argument in arguments for part in (argument if isinstance(argument, list) else [argument])]
    return 1024 + sum(int(part.nbytes) for part in parts if hasattr(part, "nbytes"))


def _shares(n_agents: int, n_shards: int) -> list[int]:
    """How many agents each shard gets."""
    n, shards = whole(n_agents, "n_agents", 0), whole(n_shards, "n_shards", 1)
    return [n // shards + (k < n % shards) for k in range(shards)]


def _connect(address: str | None) -> Any:
    """The module ray, connected: to what it is connected to already, to this address, or to a local Ray of its own."""
    local = address is None and "RAY_ADDRESS" not in os.environ
    if local:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # which is what makes Ray keep to the loopback
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if not ray.is_initialized():
        options = {"include_dashboard": False} if local else {}
        ray.init("local" if local else address, log_to_driver=False, logging_level="warning", **options)
    return ray
