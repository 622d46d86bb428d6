"""Population: the beliefs of many agents over one model, stepped together.

Agents lie in chunks of `CHUNK`, each a `CoreChunk`; a step makes new chunks, on several threads, and swaps them in when
all agents have succeeded. The result does not depend on the number of threads, nor on how agents lie in chunks.
"""

from __future__ import annotations

import numbers
import operator
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentmem._core import CoreChunk, CoreSensors
from agentmem.belief import SparseBelief
from agentmem.errors import ImpossibleObservation
from agentmem.files import read_arrays, write_arrays
from agentmem.model import Model
from agentmem.policy import Tree, choose_actions, log_preferences, sensors_of

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Part = TypeVar("Part")
Done = TypeVar("Done")
OnImpossible = Literal["raise", "predict", "likelihood"]

CHUNK = 1024              # agents: enough that a chunk's Python is lost in its work, few enough to fit in a cache twice
RECORD = 1 << 20          # entries that a query unfolds at a time
WORTH_A_THREAD = 200_000  # bytes of beliefs: waking one takes as long as 500 agents of six states each do


class Population:
    """Many agents' beliefs over the states of one model: 12 bytes a stored state (float64) and 24 an agent.

    Parameters
    ----------
    model : Model
    n_agents : int
    initial : (S,) array_like or SparseBelief, optional
        What every agent believes first, which need not sum to 1; the model's prior if None.
    prune : float
        What `update` drops: entries below this share of an agent's largest; 0.0 is exact.
    max_states : int, optional
        How many states an agent may hold possible after an update: the most probable, of equals the lowest.
    threads : int, optional
        How many work on an update; the CPUs this process may use if None.

    Raises
    ------
    ValueError
        A belief or number that does not fit.

    Notes
    -----
    Every agent's belief is, bit for bit, what `SparseBelief.update` makes of it, for any number of threads. An update
    holds the old beliefs and the new ones at the same time, so it peaks at twice the bytes at rest. One writer: two
    threads must not change one population at the same time.

    Examples
    --------
    >>> import agentmem as am
    >>> model = am.Model([[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]])
    >>> agents = am.Population(model, 3)
    >>> agents.update([0, 0, 0], [1, 0, -1]).round(3)
    array([-0.562, -0.844,  0.   ])
    >>> agents[1].to_dense().round(3)
    array([0.895, 0.105])
    """

    __slots__ = (
        "__weakref__", "_chunks", "_max_states", "_model", "_pool", "_prune", "_sensors", "_template", "_threads",
        "_writing",
    )  # fmt: skip

    def __init__(
        self,
        model: Model,
        n_agents: int,
        *,
        initial: Any = None,
        prune: float = 1e-12,
        max_states: int | None = None,
        threads: int | None = None,
    ) -> None:
        n = whole(n_agents, "n_agents", 0)
        _check_model(model)
        belief = model.belief() if initial is None else _copy_of(initial, model.dtype)
        self._begin(model, belief, prune, max_states, threads)
        [one] = self._stored([belief])
        if n * (each := sys.getsizeof(one) - CoreChunk.__basicsize__) > (there := _memory()):
            raise MemoryError(f"n_agents={n} given; they need {n * each:,} bytes where {there:,} are")
        for first in range(0, n, CHUNK):
            self._chunks += self._gathered([one], np.zeros(min(CHUNK, n - first), np.intp))

    @classmethod
    def from_beliefs(
        cls,
        model: Model,
        beliefs: Iterable[SparseBelief],
        *,
        prune: float = 1e-12,
        max_states: int | None = None,
        threads: int | None = None,
    ) -> Self:
        """A population of these beliefs, which are copied."""
        population = cls(model, 0, prune=prune, max_states=max_states, threads=threads)
        given = list(beliefs)
        if given:
            population._begin(model, _copy_of(given[0]), prune, max_states, threads)
        population._chunks = population._stored([population._checked(belief) for belief in given])
        return population

    def _begin(
        self, model: Model, template: SparseBelief, prune: float, max_states: int | None, threads: int | None
    ) -> None:
        self._model, self.prune, self.max_states, self.threads = model, prune, max_states, threads
        self._chunks: list[CoreChunk] = []
        self._template = template  # of shape, dtype and class
        self._checked(template)
        template.prune_below = self.prune
        self._sensors: CoreSensors | None = None
        self._writing = threading.Lock()
        self._pool: tuple[tuple[int, int], ThreadPoolExecutor] | None = None  # for how many threads, in which process

    def _checked(self, belief: SparseBelief) -> SparseBelief:
        """The same, which fits this population."""
        model = self.model
        if not isinstance(belief, SparseBelief):
            raise TypeError(f"belief of type {type(belief).__name__} given; expected a SparseBelief")
        if belief.size != model.n_states:
            raise ValueError(f"belief of {belief.size} states given with a model of {model.n_states}")
        if belief.dtype != model.dtype:
            raise TypeError(f"belief of {belief.dtype} given with a model of {model.dtype}; expected the same dtype")
        if belief.shape != self._template.shape:
            raise ValueError(f"belief of shape {belief.shape} given; expected {self._template.shape} as the others")
        return belief

    # ---- how it steps

    @property
    def model(self) -> Model:
        """What all agents share."""
        return self._model

    @property
    def prune(self) -> float:
        """What `update` drops: entries below this share of an agent's largest; 0.0 is exact."""
        return self._prune

    @prune.setter
    def prune(self, value: float) -> None:
        if not isinstance(value, numbers.Real) or not 0 <= value < 1:
            raise ValueError(f"prune={value!r} given; expected at least 0 and below 1")
        self._prune: float = float(value)

    @property
    def max_states(self) -> int | None:
        """How many states an agent may hold possible after an update; None: any number."""
        return self._max_states

    @max_states.setter
    def max_states(self, value: int | None) -> None:
        self._max_states: int | None = None if value is None else whole(value, "max_states", 1)

    @property
    def threads(self) -> int | None:
        """How many work on an update; None: the CPUs this process may use."""
        return self._threads

    @threads.setter
    def threads(self, value: int | None) -> None:
        self._threads: int | None = None if value is None else whole(value, "threads", 1)

    # ---- the step

    def update(
        self, actions: ArrayLike, observations: ArrayLike, *, on_impossible: OnImpossible = "raise"
    ) -> NDArray[np.float64]:
        """One filter step of every agent: predict, correct, normalise, prune.

        Parameters
        ----------
        actions : (n,) ints, or one for all
        observations : (n,) ints, or one for all
            -1: nothing is observed, which only predicts.
        on_impossible : {"raise", "predict", "likelihood"}
            When belief and model rule an agent's observation out: raise, keep its predicted belief, or restart it from
            the likelihood alone.

        Returns
        -------
        (n,) float64
            Log of the probability of each observation given all before (nats); 0.0 without one; -inf when it was
            impossible and that was not raised.

        Raises
        ------
        ImpossibleObservation
            With the agents in `.agents`. Nothing has changed, as after any other error.

        Notes
        -----
        O(entries of T in the rows of all supports), on `threads` threads without the GIL.
        """
        with self._as_writer():
            a, o = checked_step(self.model, len(self), actions, observations, on_impossible)
            evidence = np.empty(len(self))
            chunks = self._step_chunks(a, o, evidence)
            impossible = np.flatnonzero(evidence == -np.inf)
            if len(impossible) and on_impossible == "raise":
                raise impossible_observations(impossible.tolist(), a, o)
            hopeless = []
            for agent in impossible.tolist():
                belief = self[agent]
                try:
                    belief.update(self.model, a[agent], o[agent], prune=self.prune, on_impossible=on_impossible)
                except ImpossibleObservation:  # no state gives it
                    hopeless.append(agent)
                    continue
                if self.max_states is not None and belief.nnz > self.max_states:
                    belief.prune(max_states=self.max_states)
                chunks[agent // CHUNK].store(agent % CHUNK, belief)
            if hopeless:
                raise impossible_observations(hopeless, a, o)
            self._chunks = chunks
        return evidence

    # ---- active inference

    def expected_free_energy(
        self,
        policies: Sequence[ArrayLike],
        preferences: ArrayLike,
        *,
        use_utility: bool = True,
        use_states_info_gain: bool = True,
    ) -> NDArray[np.float64]:
        """The negative expected free energy of each policy to each agent, as pymdp's G: the higher, the better.

        Parameters
        ----------
        policies : sequence of int sequences, or (n_policies, policy_len) ints
            The actions of each.
        preferences : (O,) or (O, policy_len) array_like
            Relative log-probabilities of what agents would like to observe (C).
        use_utility, use_states_info_gain : bool
            Which of its two parts count: preferences met, and information on states gained.

        Returns
        -------
        (n, n_policies) float64

        Notes
        -----
        O(entries of T and O in the rows of all predicted supports), on `threads` threads without the GIL. What agents
        share (observations by states) is made at the first call and kept.
        """
        tree = Tree.of([np.reshape(policy, (-1, 1)) for policy in policies], [self.model.n_actions])
        if self._sensors is None:
            self._sensors = sensors_of(self.model)
        sensors = self._sensors
        value = None
        if use_utility:
            logs = log_preferences(preferences, self.model.n_observations, tree.depth)
            value = np.array([sensors.expectation(0, row) for row in logs])

        def weigh(chunk: CoreChunk) -> NDArray[np.float64]:
            found = []
            for _, (offsets, states, mass) in records(chunk):
                totals = np.add.reduceat(mass, offsets[:-1])
                if abs(totals - 1).max() > 1e-5:  # beliefs that were put in and do not sum to 1
                    mass = shares(offsets, mass).astype(mass.dtype)
                worth = sensors.worth(
                    states, mass, tree.depths, tree.actions[:, 0], offsets=offsets, value=value,
                    information=use_states_info_gain,
                )  # fmt: skip
                found.append(worth[:, tree.ends])
            return np.concatenate(found)

        found = self._on_threads(weigh, self._chunks)
        return np.concatenate(found) if found else np.empty((0, len(tree.ends)))

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
        """Choose an action for each agent by the expected free energy of policies; (n,) ints.

        An action is as probable as the policies that begin with it, each of softmax(gamma G). Deterministic selection
        takes the most probable, of equals (within 1e-8) one by lot; stochastic selection draws from the probabilities
        to the power of alpha. `rng` is a Generator or a seed; `options` are those of `expected_free_energy`.
        """
        G = self.expected_free_energy(policies, preferences, **options)
        return choose_actions(G, policies, self.model.n_actions, gamma, alpha, action_selection, rng)

    def _step_chunks(
        self, a: NDArray[np.intp], o: NDArray[np.intp], evidence: NDArray[np.float64]
    ) -> list[CoreChunk]:
        """New chunks; each agent's log-evidence is written."""
        model, prune, most = self.model, self.prune, min(self.max_states or 0, self.model.n_states)

        def step(place: tuple[int, CoreChunk]) -> CoreChunk:
            k, chunk = place
            agents = slice(k * CHUNK, k * CHUNK + chunk.n_rows)
            try:
                return chunk.step(model, a[agents], o[agents], prune, most, evidence[agents])
            except ValueError as error:
                raise ValueError(f"of agents {agents.start} to {agents.stop - 1}, {error}") from None

        return self._on_threads(step, list(enumerate(self._chunks)))

    def _on_threads(self, function: Callable[[Part], Done], parts: Sequence[Part]) -> list[Done]:
        """A function of every part, in order."""
        found: dict[int, Done] = {}
        left = iter(range(len(parts)))  # shared: each thread takes the next part

        def work() -> None:
            try:
                for k in left:
                    found[k] = function(parts[k])
            finally:
                for _ in left:  # an error here ends the others' work too
                    pass

        wanted = self.threads or _available_cpus()
        beside: list[Future[None]] = []
        with suppress(RuntimeError):  # where the interpreter is ending and starts no threads
            while len(beside) < min(wanted, len(parts), 1 + self.nbytes // WORTH_A_THREAD) - 1:
                beside.append(self._workers(wanted - 1).submit(work))
        try:
            work()
        finally:  # nobody works on when this has returned
            errors = [task.exception() for task in beside if not task.cancel()]
        for error in filter(None, errors):
            raise error
        return [found[k] for k in range(len(parts))]

    def _workers(self, n_threads: int) -> ThreadPoolExecutor:
        """At most so many threads, kept: one takes longer to start than 500 agents take to step."""
        kind = n_threads, os.getpid()  # a forked process has none of its parent's threads
        if self._pool is None or self._pool[0] != kind:
            from concurrent.futures import ThreadPoolExecutor

            self._pool = kind, ThreadPoolExecutor(n_threads, thread_name_prefix="agentmem-population")
        return self._pool[1]

    # ---- one agent

    def __len__(self) -> int:
        return (len(self._chunks) - 1) * CHUNK + self._chunks[-1].n_rows if self._chunks else 0

    @overload
    def __getitem__(self, agent: int) -> SparseBelief: ...

    @overload
    def __getitem__(self, agent: slice) -> Self: ...

    def __getitem__(self, agent: int | slice) -> SparseBelief | Self:
        """A copy of one agent's belief; for a slice, a smaller population of copies."""
        if isinstance(agent, slice):
            return self._picked(np.arange(len(self))[agent])
        k = self._place(agent)
        belief = self._template.copy()
        self._chunks[k // CHUNK].load(k % CHUNK, belief)
        return belief

    def __setitem__(self, agent: int, belief: SparseBelief) -> None:
        """Make a copy of the belief, which need not sum to 1, that of this agent."""
        k = self._place(agent)
        self._checked(belief)
        with self._as_writer():
            self._chunks[k // CHUNK].store(k % CHUNK, belief)

    def __iter__(self) -> Iterator[SparseBelief]:
        return (self[k] for k in range(len(self)))

    def _place(self, agent: int) -> int:
        k, n = whole(agent, "agent"), len(self)
        if not -n <= k < n:
            raise IndexError(f"agent {k} given; there are {n}")
        return k % n

    def _all_checked(self, beliefs: Iterable[SparseBelief]) -> list[SparseBelief]:
        if isinstance(beliefs, SparseBelief):
            raise TypeError("one belief given; expected several, in a list for example")
        return [self._checked(belief) for belief in beliefs]

    # ---- which agents

    def copy(self) -> Self:
        """An independent population of the same beliefs. O(bytes held)."""
        return self._picked(np.arange(len(self)))

    def add(self, beliefs: Iterable[SparseBelief]) -> None:
        """Append agents with these beliefs, which are copied. O(bytes held)."""
        given = self._all_checked(beliefs)
        with self._as_writer():
            self._chunks = self._gathered([*self._chunks, *self._stored(given)], np.arange(len(self) + len(given)))

    def remove(self, agents: ArrayLike) -> None:
        """Drop these agents, an index, several, or an (n,) mask; the others move up. O(bytes held)."""
        kept = np.ones(len(self), dtype=bool)
        kept[agents_of(agents, len(self))] = False
        with self._as_writer():
            self._chunks = self._gathered(self._chunks, np.flatnonzero(kept))

    def _picked(self, agents: NDArray[np.intp]) -> Self:
        other = type(self).__new__(type(self))
        other._begin(self.model, self._template.copy(), self.prune, self.max_states, self.threads)
        other._chunks = self._gathered(self._chunks, agents)
        return other

    def _stored(self, beliefs: Sequence[SparseBelief]) -> list[CoreChunk]:
        """New chunks of these beliefs."""
        chunks = []
        for first in range(0, len(beliefs), CHUNK):
            part = beliefs[first : first + CHUNK]
            chunk = CoreChunk(len(part), self.model.n_states, self.model.dtype)
            for k, belief in enumerate(part):
                chunk.store(k, belief)
            chunks.append(chunk.trim())
        return chunks

    def _gathered(self, sources: Sequence[CoreChunk], agents: NDArray[np.intp]) -> list[CoreChunk]:
        """New chunks of these agents, which are numbered through all sources."""
        ends = np.cumsum([source.n_rows for source in sources], dtype=np.intp)
        source_of = np.searchsorted(ends, agents, side="right")
        chunks = []
        for first in range(0, len(agents), CHUNK):
            part, of_part = agents[first : first + CHUNK], source_of[first : first + CHUNK]
            chunk, at = CoreChunk(len(part), self.model.n_states, self.model.dtype), 0
            for run in np.split(part, np.flatnonzero(np.diff(of_part)) + 1):
                k = of_part[at]
                chunk.take(at, sources[k], run - (ends[k] - sources[k].n_rows))
                at += len(run)
            chunks.append(chunk.trim())
        return chunks

    @contextmanager
    def _as_writer(self) -> Iterator[None]:
        if not self._writing.acquire(blocking=False):
            raise RuntimeError("two writers in one population: another thread is changing it")
        try:
            yield
        finally:
            self._writing.release()

    # ---- all agents

    @property
    def nbytes(self) -> int:
        """Bytes of all beliefs, the shared model not counted."""
        return sys.getsizeof(self) + sys.getsizeof(self._chunks) + sum(map(sys.getsizeof, self._chunks))

    @property
    def nnz(self) -> NDArray[np.int64]:
        """(n,): how many states each agent holds possible."""
        return np.concatenate([chunk.nnz() for chunk in self._chunks]) if self._chunks else np.empty(0, np.int64)

    def mode(self) -> NDArray[np.intp]:
        """(n,) flat indices: each agent's most probable state (of equals, the lowest). O(nnz)."""
        return self._of_rows(_modes, np.intp)

    def entropy(self) -> NDArray[np.float64]:
        """(n,): each agent's uncertainty in nats. O(nnz)."""
        return self._of_rows(_entropies, np.float64)

    def top(self, k: int) -> tuple[NDArray[np.intp], NDArray[Any]]:
        """Each agent's k most probable states (of equals, the lowest first) and their probabilities, both (n, k).

        Agents with fewer states have -1 and 0.0 in the rest. O(nnz log nnz).
        """
        k = whole(k, "k", 0)
        states, values = np.full((len(self), k), -1, np.intp), np.zeros((len(self), k), self.model.dtype)
        for agents, (offsets, found, mass) in self._records():
            row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            order = np.lexsort((found, -mass, row))
            rank = np.arange(len(found)) - offsets[row]
            best = rank < k
            states[agents][row[best], rank[best]] = found[order[best]]
            values[agents][row[best], rank[best]] = mass[order[best]]
        return states, values

    def expectation(self, f: ArrayLike) -> NDArray[np.float64]:
        """(n,): the mean of f, (S,) or of the beliefs' shape, under each agent's belief. O(nnz)."""
        values = np.asarray(f, dtype=np.float64)
        if values.shape not in (self._template.shape, (self.model.n_states,)):
            raise ValueError(f"f of shape {values.shape} given; expected {self._template.shape}")
        flat, found = values.ravel(), np.empty(len(self))
        for agents, (offsets, states, mass) in self._records():
            found[agents] = np.add.reduceat(shares(offsets, mass) * flat[states], offsets[:-1])
        return found

    def marginal(self, axis: int | Sequence[int]) -> list[SparseBelief]:
        """Each agent's belief over the given axes, as `SparseBelief.marginal`."""
        return [belief.marginal(axis) for belief in self]

    def sample(self, rng: Any = None) -> NDArray[np.intp]:
        """(n,) flat indices: a state drawn for each agent. `rng` is a Generator or a seed. O(nnz)."""
        return self._drawn(np.random.default_rng(rng).random(len(self)))

    def _drawn(self, draws: NDArray[np.float64]) -> NDArray[np.intp]:
        """The state that each agent's number, from 0 to 1, falls on."""
        return self._of_rows(_draws, np.intp, draws)

    def _of_rows(self, function: Any, dtype: Any, *arguments: NDArray[Any]) -> NDArray[Any]:
        """A function of the CSR record of every chunk, and of its agents' share of arguments."""
        found = np.empty(len(self), dtype)
        for agents, record in self._records():
            found[agents] = function(*record, *(argument[agents] for argument in arguments))
        return found

    def _records(self) -> Iterator[tuple[slice, Record]]:
        """Some agents at a time: which, and their beliefs as a CSR record."""
        for k, chunk in enumerate(self._chunks):
            for rows, record in records(chunk):
                yield slice(k * CHUNK + rows.start, k * CHUNK + rows.stop), record

    # ---- as header and buffers

    @property
    def header(self) -> dict[str, Any]:
        """The facts that `from_buffers` needs beside the arrays and the model; JSON can hold it."""
        facts = {"model": self.model.digest, "shape": list(self._template.shape)}
        return facts | {"prune": self.prune, "max_states": self.max_states}

    def buffers(self) -> dict[str, NDArray[Any]]:
        """Every array by name. Beliefs are views, read-only: while they are held, no agent's belief can be set."""
        return numbered(chunk.buffers() for chunk in self._chunks)

    @classmethod
    def from_buffers(
        cls, model: Model, header: dict[str, Any], buffers: dict[str, NDArray[Any]], *, threads: int | None = None
    ) -> Self:
        """The population over this model that `header` and `buffers` were taken from; copies. O(bytes)."""
        if header.keys() != {"model", "shape", "prune", "max_states"}:
            raise ValueError(f"header {sorted(header)} of no population")
        if header["model"] != model.digest:
            raise ValueError(f"a population over the model {header['model']}; this one is {model.digest}")
        population = cls.__new__(cls)
        template = SparseBelief.uniform(tuple(header["shape"]), dtype=model.dtype)
        population._begin(model, template, header["prune"], header["max_states"], threads)
        chunks = []
        for arrays in unnumbered(buffers):
            chunks.append(CoreChunk(len(arrays["counts"]), model.n_states, model.dtype))
            chunks[-1].fill(**arrays)
        n = sum(chunk.n_rows for chunk in chunks)
        even = all(chunk.n_rows == CHUNK for chunk in chunks[:-1]) and (not chunks or chunks[-1].n_rows <= CHUNK)
        population._chunks = chunks if even else population._gathered(chunks, np.arange(n))
        return population

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.model, self.header, self.buffers(), self.threads)

    # ---- as a file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `open`, under a temporary name until it is whole; the model is not in it. O(nbytes)."""
        write_arrays(path, self.header, self.buffers())

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Model, *, threads: int | None = None) -> Self:
        """The population that `save` wrote, over the same model. O(nbytes).

        Raises CorruptData for a file that is truncated, damaged or no population, ValueError for another model.
        """
        _check_model(model)

        def build(header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> tuple[str, Any]:
            other: str = header.get("model", model.digest)
            same = other == model.digest
            return other, cls.from_buffers(model, header, buffers, threads=threads) if same else None

        digest, population = read_arrays(path, build)
        if population is None:
            raise ValueError(f"{path}: a population over the model {digest}; this one is {model.digest}")
        made: Self = population
        return made

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} agents, n_states={self.model.n_states}, nbytes={self.nbytes})"


def _check_model(model: Any) -> None:
    if not isinstance(model, Model):
        raise TypeError(f"model of type {type(model).__name__} given; expected an agentmem.Model")


def _copy_of(belief: Any, dtype: Any = None) -> SparseBelief:
    return belief.copy() if isinstance(belief, SparseBelief) else SparseBelief(belief, dtype=dtype)


def _unpickled(
    cls: type[Population], model: Model, header: dict[str, Any], buffers: dict[str, NDArray[Any]], threads: int | None
) -> Population:
    return cls.from_buffers(model, header, buffers, threads=threads)


def numbered(parts: Iterable[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The arrays of several chunks under names of their own."""
    return {f"{name}.{k}": array for k, part in enumerate(parts) for name, array in part.items()}


def unnumbered(buffers: dict[str, NDArray[Any]]) -> list[dict[str, NDArray[Any]]]:
    """The arrays of each chunk that `numbered` put together."""
    parts: dict[int, dict[str, NDArray[Any]]] = {}
    for key, array in buffers.items():
        name, k = key.split(".")
        parts.setdefault(int(k), {})[name] = array
    return [parts[k] for k in range(len(parts))]


def whole(value: Any, name: str, lowest: int | None = None) -> int:
    """An int, which is at least the lowest."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} given; expected an int") from None
    if lowest is not None and number < lowest:
        raise ValueError(f"{name}={number} given; expected at least {lowest}")
    return number


def agents_of(given: ArrayLike, n: int) -> NDArray[np.intp]:
    """The numbers, from 0 to n - 1, of agents given as an int, several, or a mask of n."""
    agents = np.asarray(given)
    if agents.dtype == np.bool_:
        if agents.shape != (n,):
            raise ValueError(f"mask of shape {agents.shape} given; expected ({n},)")
        return np.flatnonzero(agents)
    if agents.ndim > 1 or (agents.size and agents.dtype.kind not in "iu"):
        raise TypeError(f"agents of shape {agents.shape} and {agents.dtype} given; expected ints")
    agents = np.atleast_1d(agents).astype(np.intp)
    if len(wrong := agents[(agents < -n) | (agents >= n)]):
        raise IndexError(f"agent {wrong[0]} given; there are {n}")
    return agents % max(n, 1)


def checked_step(
    model: Model, n_agents: int, actions: ArrayLike, observations: ArrayLike, on_impossible: OnImpossible
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """What `update` is given, as an action and an observation for each agent."""
    if on_impossible not in ("raise", "predict", "likelihood"):
        raise ValueError(f"on_impossible={on_impossible!r} given; expected 'raise', 'predict' or 'likelihood'")
    a = _per_agent(actions, n_agents, "action", 0, model.n_actions)
    return a, _per_agent(observations, n_agents, "observation", -1, model.n_observations)


def _per_agent(given: ArrayLike, n_agents: int, name: str, lowest: int, end: int) -> NDArray[np.intp]:
    """One number for each agent, in range."""
    found = np.asarray(given)
    if found.shape not in ((), (n_agents,)):
        raise ValueError(f"{name}s of shape {found.shape} given; expected ({n_agents},)")
    if found.dtype.kind not in "iu" and found.size:
        raise TypeError(f"{name}s of dtype {found.dtype} given; expected ints")
    if n_agents and not lowest <= found.min() <= found.max() < end:
        wrong = np.flatnonzero((found < lowest) | (found >= end))[0]
        raise ValueError(f"agent {wrong}: {name} {found.flat[wrong]} given; expected {lowest} to {end - 1}")
    each = np.empty(n_agents, np.intp)
    each[:] = found
    return each


def impossible_observations(
    agents: list[int], a: NDArray[np.intp], o: NDArray[np.intp]
) -> ImpossibleObservation:
    """The error that names these agents, of all agents' actions and observations."""
    named = ", ".join(f"{k} (action {a[k]}, observation {o[k]})" for k in agents[:5])
    more = f" and {len(agents) - 5} more" if len(agents) > 5 else ""
    message = f"impossible observations of agents {named}{more}: evidence 0.0; see on_impossible= for ways to go on"
    return ImpossibleObservation(message, agents)


Record = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]]  # CSR: offsets, states, values


def records(chunk: CoreChunk) -> Iterator[tuple[slice, Record]]:
    """The rows of a chunk as CSR records of about a million entries at most, since a uniform belief unfolds."""
    ends = np.cumsum(chunk.nnz())
    first = 0
    while first < chunk.n_rows:
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + RECORD, side="right")))
        yield slice(first, last), chunk.entries(first, last)
        first = last


def shares(offsets: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """The values of each row as shares of their sum, however large or small."""
    lengths = np.diff(offsets)
    p = values / np.repeat(np.maximum.reduceat(values, offsets[:-1]).astype(np.float64), lengths)
    return np.asarray(p / np.repeat(np.add.reduceat(p, offsets[:-1]), lengths))


def _modes(offsets: NDArray[Any], states: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    largest = np.repeat(np.maximum.reduceat(values, offsets[:-1]), np.diff(offsets))
    places = np.flatnonzero(values == largest)
    return states[places[np.searchsorted(places, offsets[:-1])]]


def _entropies(offsets: NDArray[Any], states: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    p = shares(offsets, values)
    return 0.0 - np.add.reduceat(p * np.log(p, where=p > 0, out=np.zeros_like(p)), offsets[:-1])


def _draws(offsets: NDArray[Any], states: NDArray[Any], values: NDArray[Any], draws: NDArray[Any]) -> NDArray[Any]:
    # In whole numbers, whose sums do not depend on which other agents lie in the same record.
    totals = np.cumsum((shares(offsets, values) * 2.0**40).astype(np.int64))
    before = np.append(0, totals)[offsets]
    wanted = before[:-1] + (draws * np.diff(before)).astype(np.int64)
    chosen: NDArray[Any] = states[np.searchsorted(totals, wanted, side="right")]
    return chosen


def _memory() -> int:
    """Bytes of this machine, what it may swap included."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().total + psutil.swap_memory().total)


def _available_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
