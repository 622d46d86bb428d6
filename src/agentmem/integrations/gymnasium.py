"""Environments of gymnasium with a table `P` (FrozenLake, Taxi, CliffWalking), as models and as worlds.

`model_from_env`, `sensor_table` and `preferences_from_env` read any object with such a table and need no gymnasium;
`make_env` and `frozen_lake` do.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import index
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse

from agentmem.model import Model
from agentmem.profiler.worlds import World, position_sensor, sample_rows

Observation = ArrayLike | sparse.sparray | sparse.spmatrix | Callable[[int], ArrayLike] | None


def model_from_env(env: Any, observation: Observation = None, *, dtype: DTypeLike = np.float64) -> Model:
    """The Model of an environment whose `unwrapped.P[s][a]` lists (probability, next state, reward, done).

    Probabilities of the same next state add up; a terminal transition keeps the next state its table names.
    The prior is the environment's `initial_state_distrib` where it has one, else uniform. O(entries of the
    table and of the observation); no (S, S) array is made.

    Parameters
    ----------
    env : gymnasium.Env or any object with a table P
    observation : (S, O) array or sparse matrix, or a function state -> (O,) probabilities
        P(reading | state). None: the state itself is read. `sensor_table` makes one of vectors of readings.
    dtype : float64 or float32, of the model

    Raises
    ------
    TypeError
        If there is no table P.
    ValueError
        If the table is not one, or the observation does not fit it.

    Examples
    --------
    >>> import gymnasium
    >>> model = model_from_env(gymnasium.make("FrozenLake-v1"))
    >>> model.n_states, model.n_actions
    (16, 4)
    """
    transition = _transition_tables(env)
    table = _observation_table(observation, transition[0].shape[0])
    return Model(transition, table, _initial(env), dtype=dtype)


def sensor_table(
    env: Any, sensor: Callable[[int], ArrayLike]
) -> tuple[sparse.csr_array, dict[tuple[int, ...], int]]:
    """What a sensor without noise reads in each state, as an observation matrix.

    A `Model` has one observation, so each distinct vector of readings becomes one. For a matrix per
    modality (the A of active inference, transposed) call this once for each.

    Parameters
    ----------
    env : gymnasium.Env or any object with a table P
    sensor : function state -> (M,) ints
        The readings in that state, as many in every state. It is called once per state.

    Returns
    -------
    table : (S, O) csr_array
        P(observation | state), ones and zeros: the `observation` of `model_from_env`.
    readings : dict of tuple of int -> int
        The number of each vector, in lexical order: ``list(readings)[observation]`` is the vector.

    Raises
    ------
    TypeError
        If there is no table P.
    ValueError
        If the sensor returns anything else.

    Examples
    --------
    >>> import gymnasium
    >>> env = gymnasium.make("FrozenLake-v1")
    >>> table, readings = sensor_table(env, lambda state: (state // 4, state % 4 == 0))
    >>> table.shape, readings[2, 0]
    ((16, 8), 4)
    >>> belief = model_from_env(env, table).belief()
    """
    n_states = _transition_tables(env)[0].shape[0]
    rows: list[NDArray[Any]] = []
    for state in range(n_states):
        row = np.asarray(sensor(state))
        if row.ndim != 1 or row.dtype.kind not in "biu" or row.size != (rows[0].size if rows else row.size or -1):
            expected = f"{rows[0].size} ints" if rows else "a vector of ints"
            raise ValueError(f"sensor({state}) has shape {row.shape} and dtype {row.dtype}; expected {expected}")
        rows.append(row.astype(np.int64))
    distinct, observed = np.unique(np.array(rows), axis=0, return_inverse=True)
    table = sparse.csr_array(
        (np.ones(n_states), observed.ravel(), np.arange(n_states + 1)), shape=(n_states, len(distinct))
    )
    return table, {tuple(row): k for k, row in enumerate(distinct.tolist())}


def preferences_from_env(env: Any, observation: Observation = None) -> NDArray[np.float64]:
    """How much reward each observation stands for, as preferences over observations (the C of active inference).

    The reward of a state s' is the mean over the table's entries that lead there, each weighted by its probability:
    r(s') = sum_{s, a} P(s' | s, a) R(s, a, s') / sum_{s, a} P(s' | s, a), and 0 where none leads. Entries out of
    states in which episodes end do not count, as nobody takes them. An observation stands for the mean over the states
    that show it, C(o) = sum_s' r(s') P(o | s') / sum_s' P(o | s'), and for 0 where none does.

    Parameters
    ----------
    env, observation
        As in `model_from_env`. None: the state itself is observed, and C is r.

    Returns
    -------
    (O,) float64, in units of reward

    Raises
    ------
    TypeError
        If there is no table P.
    ValueError
        If the table is not one or has a reward that is not finite, or the observation does not fit it.

    Examples
    --------
    >>> import gymnasium
    >>> preferences_from_env(gymnasium.make("FrozenLake-v1")).nonzero()
    (array([15]),)
    """
    transition = _transition_tables(env)
    n_states, P = transition[0].shape[0], _unwrapped(env).P
    table = _observation_table(observation, n_states)
    try:
        entries = [
            (state, float(probability), index(target), float(reward), bool(done))
            for state in range(n_states)
            for action in range(len(transition))
            for probability, target, reward, done in P[state][action]
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"P is not P[s][a] = [(probability, next state, reward, done), ...]: {error}") from None
    if wrong := [entry for entry in entries if not 0 <= entry[1] <= 1]:
        raise ValueError(f"P of state {wrong[0][0]} has a probability of {wrong[0][1]}; expected 0 to 1")
    ends = {target for _, probability, target, _, done in entries if done and probability > 0}
    gained, weight = np.zeros(n_states), np.zeros(n_states)
    for state, probability, target, reward, _ in entries:
        if state not in ends:
            gained[target] += probability * reward
            weight[target] += probability
    if len(bad := np.flatnonzero(~np.isfinite(gained))):
        raise ValueError(f"rewards of state {bad[0]} in P sum to {gained[bad[0]]}; expected finite ones")
    return _ratio(table.T @ _ratio(gained, weight), table.T @ np.ones(n_states))


def world_from_env(
    env: Any, observation: Observation = None, *, name: str, agents: int, steps: int, seed: int
) -> World:
    """Walk `agents` agents at random through `env`, `steps` steps each, and keep what they did and read.

    An agent whose episode ends is reset and starts anew. `env.reset` and `env.step` must return the state.
    """
    transition = _transition_tables(env)
    n_states = transition[0].shape[0]
    table = _observation_table(observation, n_states)
    initial = _initial(env)

    rng = np.random.default_rng(seed)
    actions = rng.integers(len(transition), size=(steps, agents))
    states = np.empty((agents, steps), np.int64)
    restarts = np.zeros((steps, agents), np.bool_)
    env.reset(seed=seed)
    for agent in range(agents):
        done = True
        for step in range(steps):
            if done:
                env.reset()
                restarts[step, agent] = True
            states[agent, step], _, terminated, truncated, _ = env.step(int(actions[step, agent]))
            done = terminated or truncated
    return World(
        name=name,
        transition=transition,
        observation=table,
        initial=np.full(n_states, 1 / n_states) if initial is None else initial,
        actions=actions,
        observations=sample_rows(table, states.ravel(), rng).reshape(agents, steps).T,
        restarts=restarts,
    )


def make_env(name: str) -> tuple[Any, sparse.csr_array]:
    """The environment of that name and a noisy sensor for it, as `compare --env` uses them.

    `name` is one of `ENVIRONMENTS`, of which the newest version is made, or an id such as "Taxi-v3". The
    sensor is `position_sensor` for the cell; on Taxi for the taxi's, so that passenger and destination stay
    unseen. CliffWalking is made slippery: without that there is nothing to infer. For any other name a
    ValueError lists the choices.
    """
    gymnasium = _import_gymnasium()
    short, _, version = name.partition("-v")
    specs = [spec for spec in gymnasium.registry.values() if spec.namespace is None and spec.name == short]
    if version:
        specs = [spec for spec in specs if spec.id == name]
    if short not in ENVIRONMENTS or not specs:
        known = [
            spec.id
            for spec in gymnasium.registry.values()
            if spec.namespace is None and spec.name in ENVIRONMENTS
        ]
        choice = ", ".join([*ENVIRONMENTS, *known])
        raise ValueError(f"no environment {name!r} with a transition table and a sensor; choose from {choice}")
    newest = max(specs, key=lambda spec: spec.version or 0)
    options = {"is_slippery": True} if short == "CliffWalking" else {}
    env = gymnasium.make(newest.id, **options)
    return env, ENVIRONMENTS[short](env.unwrapped)


def frozen_lake(size: int, seed: int) -> tuple[Any, sparse.csr_array]:
    """A slippery FrozenLake on gymnasium's random map of that size and seed, and its position sensor."""
    gymnasium = _import_gymnasium()
    from gymnasium.envs.toy_text.frozen_lake import generate_random_map

    env = gymnasium.make("FrozenLake-v1", desc=generate_random_map(size=size, seed=seed), is_slippery=True)
    return env, position_sensor(size, size)


def _taxi_sensor(env: Any) -> sparse.csr_array:
    # States count up ((row * 5 + column) * 5 + passenger) * 4 + destination: 20 in a row share a cell.
    return sparse.kron(position_sensor(5, 5), np.ones((20, 1)), format="csr")


ENVIRONMENTS: dict[str, Callable[[Any], sparse.csr_array]] = {
    "FrozenLake": lambda env: position_sensor(env.nrow, env.ncol),
    "Taxi": _taxi_sensor,
    "CliffWalking": lambda env: position_sensor(*env.shape),
}


def _import_gymnasium() -> Any:
    try:
        import gymnasium
    except ImportError:
        message = "gymnasium is not installed: pip install 'agentmem-native[demo]'"
        raise ImportError(message, name="gymnasium") from None
    return gymnasium


def _transition_tables(env: Any) -> list[sparse.csr_array]:
    table = getattr(_unwrapped(env), "P", None)
    if table is None:
        raise TypeError(
            f"{type(_unwrapped(env)).__name__} has no table P; expected an environment with "
            "env.unwrapped.P[s][a] = [(probability, next state, reward, done), ...], as FrozenLake has"
        )
    n_states = len(table)
    try:
        n_actions = len(table[0])
        return [_transition_table(table, action, n_actions) for action in range(n_actions)]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(
            f"P of {n_states} states is not P[s][a] = [(probability, next state, ...), ...]: {error!r}"
        ) from None


def _transition_table(table: Any, action: int, n_actions: int) -> sparse.csr_array:
    n_states = len(table)
    states, targets, probabilities = [], [], []
    for state in range(n_states):
        if len(table[state]) != n_actions:
            raise ValueError(
                f"state {state} has {len(table[state])} actions in P where state 0 has {n_actions}"
            )
        for entry in table[state][action]:
            probability, target = entry[0], index(entry[1])
            if not 0 <= target < n_states:
                raise ValueError(
                    f"P leads from state {state} by action {action} to {target}, of {n_states} states"
                )
            states.append(state)
            targets.append(target)
            probabilities.append(float(probability))
    # COO to CSR adds up entries of the same place. scipy keeps the index type it is given: int32 is half.
    places = np.array(states, np.int32), np.array(targets, np.int32)
    transition = sparse.coo_array((np.array(probabilities), places), shape=(n_states, n_states)).tocsr()
    transition.eliminate_zeros()
    return transition


def _observation_table(observation: Observation, n_states: int) -> sparse.csr_array:
    if observation is None:
        return sparse.csr_array(sparse.identity(n_states))
    if callable(observation):
        rows = [np.asarray(observation(state), dtype=np.float64) for state in range(n_states)]
        for state, row in enumerate(rows):
            if row.ndim != 1 or row.size != rows[0].size:
                raise ValueError(
                    f"observation({state}) has shape {row.shape}; expected ({rows[0].size},) probabilities "
                    "(for a sensor that returns readings see sensor_table)"
                )
        return sparse.csr_array(sparse.vstack([sparse.csr_array(row[None, :]) for row in rows], format="csr"))
    table: Any = observation if sparse.issparse(observation) else np.asarray(observation, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != n_states:
        raise ValueError(f"observation has shape {table.shape}; expected (S, O) with S = {n_states}")
    return sparse.csr_array(table)


def _ratio(total: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float64]:
    """total / weight, and 0 without weight."""
    means = np.zeros(len(weight))
    np.divide(total, weight, out=means, where=weight > 0)
    return means


def _unwrapped(env: Any) -> Any:
    return getattr(env, "unwrapped", env)


def _initial(env: Any) -> NDArray[np.float64] | None:
    initial = getattr(_unwrapped(env), "initial_state_distrib", None)
    return None if initial is None else np.asarray(initial, dtype=np.float64)
