"""Agents of pomdp-py: their models compiled once, so that a belief update is one kernel call.

`pomdp_py.update_histogram_belief` asks the models for S x S probabilities in Python at every step, and
`pomdp_py.Histogram.random` lists all states for every simulation. Here `compile_model` asks once, and a
`SparseHistogram` is what planners take for the `pomdp_py.Histogram` that it is.
"""

from __future__ import annotations

import math
import random
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike
from scipy import sparse

from agentmem.belief import SparseBelief
from agentmem.errors import ImpossibleObservation
from agentmem.model import Model

try:
    import pomdp_py
except ImportError as error:
    message = "pomdp-py is not installed: pip install 'agentmem-native[pomdp-py]'"
    raise ImportError(message, name="pomdp_py") from error


class Space(tuple[Any, ...]):
    """Different things of one kind, numbered: a tuple whose `index` and `in` are look-ups.

    Immutable and shared: copies, deep ones too, are the space itself.

    >>> actions = Space("action", ["listen", "open"])
    >>> actions.index("open"), "close" in actions
    (1, False)
    """

    kind: str
    _number: dict[Any, int]

    def __new__(cls, kind: str, things: Iterable[Any]) -> Self:
        space = super().__new__(cls, things)
        space.kind = kind
        space._number = {thing: number for number, thing in enumerate(space)}
        if len(space._number) < len(space):
            twice = next(thing for number, thing in enumerate(space) if space._number[thing] != number)
            raise ValueError(f"{kind} {twice!r} given twice; expected different ones")
        if not space:
            raise ValueError(f"no {kind} given; expected at least one")
        return space

    def index(self, thing: Any, *_: Any) -> int:
        """The number of a thing; ValueError naming it if there is none. O(1)."""
        number = self._number.get(thing)
        if number is None:
            some = ", ".join(map(repr, self[:5])) + (", ..." if len(self) > 5 else "")
            raise ValueError(f"{self.kind} {thing!r} given; expected one of the {len(self)}: {some}")
        return number

    def __contains__(self, thing: object) -> bool:
        return thing in self._number

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, tuple(self))


class SparseHistogram(pomdp_py.Histogram):
    """A `pomdp_py.Histogram` over a shared space of states, of which it holds only those with probability.

    Parameters
    ----------
    histogram : mapping from state to probability, or any distribution of pomdp-py with `get_histogram()`
        Finite, not negative, not all zero. States of the space that it leaves out have probability 0.
    states : iterable of states, optional
        The space, in order; the histogram's own keys if None. Give several histograms one `Space`, such as
        `CompiledModel.states`, and they share it.
    dtype : float64 or float32, of the stored probabilities

    Raises
    ------
    ValueError
        A state that is not in the space, or probabilities that are no measure.

    Notes
    -----
    Iteration, `len`, `mpe`, `==` and what `random` draws from a given generator are those of a `Histogram` with
    all states as keys. Two things differ: `histogram` and `get_histogram()` make a new dict, O(S), so that
    writing to it changes nothing here; and a state that is not in the space cannot be set.

    Copies are independent and share the space. One thread at a time.

    Examples
    --------
    >>> belief = SparseHistogram({"left": 0.25, "middle": 0.0, "right": 0.75})
    >>> belief["right"], belief["middle"], belief["elsewhere"], belief.mpe(), len(belief)
    (0.75, 0.0, 0, 'right', 3)
    >>> import random
    >>> dice, same = random.Random(1), random.Random(1)
    >>> belief.random(dice) == pomdp_py.Histogram(belief.get_histogram()).random(same)
    True
    """

    __slots__ = ("_belief", "_cumulative", "_support", "states")

    states: Space
    _belief: SparseBelief
    _support: tuple[Any, ...] | None  # what `random` draws from, made when it is first called: the states with
    _cumulative: array[float] | None  # probability, and the running sums of their probabilities

    def __init__(self, histogram: Any, states: Iterable[Any] | None = None, *, dtype: DTypeLike = np.float64) -> None:
        given = dict(histogram.get_histogram() if hasattr(histogram, "get_histogram") else histogram)
        states = given if states is None else states
        space = states if isinstance(states, Space) else Space("state", states)
        numbers = [space.index(state) for state in given]
        masses = np.fromiter(given.values(), np.float64, len(given))
        self._take(space, SparseBelief.from_indices(numbers, masses, len(space), dtype=dtype))

    @classmethod
    def from_belief(cls, belief: SparseBelief, states: Space) -> Self:
        """The histogram that holds a copy of this belief."""
        if belief.shape != (len(states),):
            raise ValueError(f"belief of shape {belief.shape} given; expected ({len(states)},)")
        return cls._holding(belief.copy(), states)

    @classmethod
    def _holding(cls, belief: SparseBelief, states: Space) -> Self:
        """The histogram whose own this belief, which nobody else holds, becomes."""
        made = cls.__new__(cls)
        made._take(states, belief)
        return made

    def _take(self, states: Space, belief: SparseBelief) -> None:
        self.states, self._belief = states, belief
        self._support = self._cumulative = None

    # ---- looks

    @property
    def belief(self) -> SparseBelief:
        """A copy as SparseBelief, in the order of `states`: entropy, pruning, divergences."""
        return self._belief.copy()

    @property
    def nbytes(self) -> int:
        """Bytes of this histogram without the shared space: the object, its belief, and what `random` keeps."""
        held = [self, self._belief]
        if self._cumulative is not None:
            held += [self._cumulative] if self._support is self.states else [self._support, self._cumulative]
        return sum(map(sys.getsizeof, held))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(states={len(self.states)}, support={self._belief.nnz}, "
            f"dtype={self._belief.dtype}, nbytes={self.nbytes})"
        )

    # ---- as a Histogram

    @property
    def histogram(self) -> dict[Any, float]:
        """A new dict from every state to its probability. O(S)."""
        return dict(zip(self.states, self._belief.to_dense().tolist(), strict=True))

    def get_histogram(self) -> dict[Any, float]:
        """A new dict from every state to its probability. O(S)."""
        return self.histogram

    def __str__(self) -> str:
        return str(self.histogram)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.states)

    def __contains__(self, state: object) -> bool:
        return state in self.states

    def __getitem__(self, state: Any) -> float:
        return float(self._belief[self.states.index(state)]) if state in self.states else 0

    def __setitem__(self, state: Any, probability: float) -> None:
        if not 0 <= probability < math.inf:
            raise ValueError(f"probability {probability!r} of {state!r} given; expected a finite one of at least 0")
        self._belief[self.states.index(state)] = probability
        self._support = self._cumulative = None

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SparseHistogram) and other.states is self.states:
            return bool(np.array_equal(self._belief, other._belief))
        return isinstance(other, pomdp_py.Histogram) and bool(self.histogram == other.histogram)

    __hash__ = None  # type: ignore[assignment]  # as a Histogram's

    def mpe(self) -> Any:
        """The most probable state (of equals, the first). O(support)."""
        return self.states[self._belief.mode()]

    def random(self, rnd: Any = random) -> Any:
        """Draw a state: for the same generator the same one as a Histogram. O(log support) after the first call.

        `rnd` is the module `random`, or a `random.Random`. The first call after a change takes O(support), and
        keeps 16 bytes per state with probability.
        """
        if self._support is None or self._cumulative is None:
            chosen = self._belief.indices.tolist()
            if not chosen:
                raise ValueError("histogram without any mass given; expected at least one probability above zero")
            everywhere = len(chosen) == len(self.states)
            self._support = self.states if everywhere else tuple(map(self.states.__getitem__, chosen))
            # One after the other, as `random.choices` adds weights up; zeros in between would change nothing.
            self._cumulative = array("d", np.cumsum(self._belief.values, dtype=np.float64).tobytes())
        return rnd.choices(self._support, cum_weights=self._cumulative)[0]

    def is_normalized(self, epsilon: float = 1e-9) -> bool:
        """Whether the probabilities sum to 1 within `epsilon`."""
        return abs(1.0 - float(self._belief.values.sum(dtype=np.float64))) < epsilon

    # ---- copies

    def __copy__(self) -> Self:
        return self.from_belief(self._belief, self.states)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.from_belief, (self._belief, self.states)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class CompiledModel:
    """The transition and observation models of pomdp-py agents as tables; what `compile_model` returns.

    All agents of one kind share it, on any number of threads. Immutable.

    Attributes
    ----------
    model : Model
    states, actions, observations : Space
        What the numbers of the model mean.
    """

    model: Model
    states: Space
    actions: Space
    observations: Space

    @property
    def dropped_entries(self) -> int:
        """How many probabilities `drop_below` took from the tables."""
        return self.model.dropped_entries

    @property
    def dropped_mass(self) -> float:
        """The largest probability that `drop_below` took from P(. | s, a) of one state and action, or P(. | s', a)."""
        return self.model.dropped_mass

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(states={len(self.states)}, actions={len(self.actions)}, "
            f"observations={len(self.observations)}, density={self.model.density:.3g}, "
            f"dropped_entries={self.dropped_entries}, dropped_mass={self.dropped_mass:.3g}, "
            f"nbytes={self.model.nbytes})"
        )

    def belief(self, histogram: Any = None) -> SparseHistogram:
        """These probabilities over the states of this model; those that the agent began with if None.

        `histogram` is a mapping or a distribution of pomdp-py, particles too. Raises ValueError as `SparseHistogram`.
        """
        if histogram is None:
            return SparseHistogram._holding(self.model.belief(), self.states)
        return SparseHistogram(histogram, self.states, dtype=self.model.dtype)

    def update(
        self, current_histogram: Any, real_action: Any, real_observation: Any, *, prune: float = 0.0
    ) -> SparseHistogram:
        """The belief after an action and an observation, as `pomdp_py.update_histogram_belief` returns it.

        Parameters
        ----------
        current_histogram : SparseHistogram, or what `belief` takes
            Not changed. One that `belief` or `update` of this model returned is not searched through.
        real_action, real_observation : one of `actions`, one of `observations`
        prune : float
            Drop what is below this share of the largest probability; 0.0 is exact.

        Raises
        ------
        ImpossibleObservation
            If the belief rules the observation out. (pomdp-py returns a histogram of zeros.)
        ValueError
            An action, observation or state that this model does not know.

        Notes
        -----
        O(support x successors of a state).
        """
        action, observation = self.actions.index(real_action), self.observations.index(real_observation)
        if not (isinstance(current_histogram, SparseHistogram) and current_histogram.states is self.states):
            current_histogram = self.belief(current_histogram)
        posterior = current_histogram.belief
        try:
            posterior.update(self.model, action, observation, prune=prune)
        except ImpossibleObservation:
            raise ImpossibleObservation(
                f"observation {real_observation!r} after action {real_action!r} is impossible: evidence 0.0"
            ) from None
        return SparseHistogram._holding(posterior, self.states)


def compile_model(
    agent: Any,
    states: Iterable[Any] | None = None,
    actions: Iterable[Any] | None = None,
    observations: Iterable[Any] | None = None,
    *,
    successors: Callable[[Any, Any], Iterable[Any]] | None = None,
    dtype: DTypeLike = np.float64,
    drop_below: float = 0.0,
    row_tolerance: float = 1e-5,
) -> CompiledModel:
    """Ask the models of an agent for every probability, once, and keep them as sparse tables.

    Parameters
    ----------
    agent : pomdp_py.Agent, or a pomdp_py.POMDP, whose agent is taken
        Its `transition_model` and `observation_model` are asked for `probability`. Its belief becomes the prior.
    states : iterable of states, optional
        Those that its belief names, if that is a Histogram, else those that its transition model enumerates.
    actions, observations : iterables, optional
        Those that its policy model and its observation model enumerate.
    successors : function (state, action) -> iterable of states, optional
        The next states that have any probability: no others are asked for. Without it, S x S x A are.
    dtype : float64 or float32, of the tables and beliefs
    drop_below : float
        Drop smaller probabilities and renormalise their rows. Problems that write 1e-9 for zero have tables without
        a zero; `dropped_entries` and `dropped_mass` of what is returned tell what this took.
    row_tolerance : float
        How far from 1 the probabilities of a row may sum. Those within it are used as given, as pomdp-py uses them.

    Raises
    ------
    ValueError
        Something is not enumerated and not given either; a state, action or observation twice; a successor or a state
        of the belief that is not one of the states; probabilities that do not sum to 1.

    Examples
    --------
    >>> from pomdp_py.problems.tiger.tiger_problem import TigerAction, TigerObservation, TigerProblem
    >>> tiger = TigerProblem.create()
    >>> compiled = compile_model(tiger)
    >>> listen, growl = TigerAction("listen"), TigerObservation("tiger-left")
    >>> belief = compiled.update(compiled.belief(), listen, growl)
    >>> {state.name: round(belief[state], 6) for state in belief}
    {'tiger-left': 0.85, 'tiger-right': 0.15}
    >>> tiger.agent.set_belief(belief)
    """
    agent = getattr(agent, "agent", agent)
    transition, observation, prior = agent.transition_model, agent.observation_model, agent.belief
    if transition is None or observation is None:
        raise ValueError("agent without transition and observation model given; a blackbox has no probabilities")
    if states is None and isinstance(prior, pomdp_py.Histogram):
        states = prior
    state_space = _space("state", states, lambda: transition.get_all_states())
    action_space = _space("action", actions, lambda: agent.policy_model.get_all_actions())
    observation_space = _space("observation", observations, lambda: observation.get_all_observations())
    initial = None
    if prior is not None:
        initial = SparseHistogram(prior, state_space).belief
        initial.normalize()
    transitions = [
        _table(transition.probability, state_space, state_space, action, successors, row_tolerance)
        for action in action_space
    ]
    readings = [
        _table(observation.probability, state_space, observation_space, action, None, row_tolerance)
        for action in action_space
    ]
    model = Model(transitions, readings, initial, dtype=dtype, drop_below=drop_below, row_tolerance=row_tolerance)
    return CompiledModel(model, state_space, action_space, observation_space)


def _space(kind: str, given: Iterable[Any] | None, enumerate_all: Callable[[], Iterable[Any]]) -> Space:
    if given is None:
        try:
            given = enumerate_all()
        except (NotImplementedError, TypeError) as error:
            raise ValueError(f"the agent's models do not enumerate {kind}s: pass {kind}s=") from error
    return given if isinstance(given, Space) else Space(kind, given)


def _table(
    probability: Callable[[Any, Any, Any], float],
    rows: Space,
    columns: Space,
    action: Any,
    candidates: Callable[[Any, Any], Iterable[Any]] | None,
    row_tolerance: float,
) -> sparse.csr_array:
    """`probability(column, row, action)` of all, or of the candidates for each row."""
    everywhere = np.arange(len(columns))
    starts, numbers, probabilities = [0], [], []
    for row in rows:
        asked = everywhere
        if candidates is not None:
            asked = np.array(list({columns.index(column) for column in candidates(row, action)}), np.intp)
        p = np.fromiter((probability(columns[number], row, action) for number in asked), np.float64, len(asked))
        if not abs(p.sum() - 1) <= row_tolerance:
            raise ValueError(
                f"the {columns.kind} probabilities at state {row!r}, action {action!r} sum to {p.sum():.12g} over "
                f"{len(p)} {columns.kind}s; expected 1 within row_tolerance={row_tolerance:g}: "
                f"pass the {columns.kind}s that are missing, or a larger tolerance if the model means it"
            )
        stored = np.flatnonzero(p)
        starts.append(starts[-1] + len(stored))
        numbers.append(asked[stored])
        probabilities.append(p[stored])
    entries = np.concatenate(probabilities), np.concatenate(numbers), np.array(starts)
    return sparse.csr_array(entries, shape=(len(rows), len(columns)))
