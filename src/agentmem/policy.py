"""Policies as a tree, and what sensors and preferences make of them: the planning of active inference.

The numbers are pymdp's, its constants included; the kernel is `_core.policy`. Here live the parts that one agent
(`integrations.pymdp`) and a population share.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentmem._core import CoreSensors
from agentmem.model import Model, as_table

NEGLIGIBLE = np.exp(-16)  # to pymdp, a joint state below it gains no information; added inside that log
EPSILON = 1e-16           # pymdp's, added inside all other logs


class Tree:
    """Policies as a tree of their beginnings, in depth-first order."""

    __slots__ = ("actions", "depth", "depths", "ends")

    def __init__(self, depths: NDArray[np.int32], actions: NDArray[np.int32], ends: NDArray[np.intp]) -> None:
        self.depths = depths      # (n_nodes,): how many actions lead to the node
        self.actions = actions    # (n_nodes, n_factors): the last of them
        self.ends = ends          # (n_policies,): the node of each whole policy
        self.depth = int(depths.max(initial=0))

    @classmethod
    def of(cls, policies: Sequence[NDArray[Any]], num_controls: Sequence[int]) -> Self:
        for k, policy in enumerate(policies):
            given = np.asarray(policy)
            if not np.array_equal(given, given.astype(int)):
                raise ValueError(f"policy {k} of {given.ravel()} given; expected whole numbers")
            if given.ndim != 2 or given.shape[1] != len(num_controls) or not len(given):
                raise ValueError(f"policy {k} of shape {given.shape} given; expected (policy_len, {len(num_controls)})")
            if not ((given >= 0) & (given < num_controls)).all():
                raise ValueError(f"policy {k} has controls beyond {list(num_controls)}: {given.tolist()}")
        paths = [tuple(map(tuple, np.asarray(policy, dtype=int).tolist())) for policy in policies]
        nodes = sorted({path[:k] for path in paths for k in range(1, len(path) + 1)})  # a beginning before its ends
        if not nodes:
            raise ValueError("no policies given; expected at least one")
        place = {path: k for k, path in enumerate(nodes)}
        return cls(
            np.array([len(path) for path in nodes], dtype=np.int32),
            np.array([path[-1] for path in nodes], dtype=np.int32),
            np.array([place[path] for path in paths], dtype=np.intp),
        )


def sensors_of(model: Model) -> CoreSensors:
    """The observations of a model by states, as planning reads them. O(their entries).

    Raises ValueError where they depend on the action, which the expected free energy here does not provide for.
    """
    if model.observations_depend_on_action:
        raise ValueError("model whose observations depend on the action given; expected one table for all")
    table = as_table(model.observation(0), model.dtype)
    return CoreSensors(model, [(table.offsets, table.columns, table.values, model.n_observations)])


def log_preferences(preferences: ArrayLike, n_observations: int, depth: int) -> NDArray[np.float64]:
    """(1 or depth, O): logs of the probabilities that relative log-preferences (O,) or (O, depth) stand for."""
    C = np.array(preferences, dtype=np.float64)
    if C.ndim not in (1, 2) or len(C) != n_observations or (C.ndim == 2 and C.shape[1] < depth):
        raise ValueError(f"preferences of shape {C.shape} given; expected ({n_observations},) or "
                         f"({n_observations}, {depth})")
    if not np.isfinite(C).all():
        raise ValueError(f"preferences with {C[~np.isfinite(C)][0]} given; expected finite numbers")
    by_time = C[np.newaxis] if C.ndim == 1 else C.T[:depth]
    return np.log(softmax(by_time) + EPSILON)


def choose_actions(
    G: NDArray[np.float64],
    policies: Sequence[ArrayLike],
    n_actions: int,
    gamma: float,
    alpha: float,
    action_selection: str,
    rng: Any,
) -> NDArray[np.intp]:
    """(n,): an action for each agent by what policies are worth to it, (n, n_policies); see `Population.act`."""
    if action_selection not in ("deterministic", "stochastic"):
        raise ValueError(f"action_selection={action_selection!r} given; expected 'deterministic' or 'stochastic'")
    for name, value in (("gamma", gamma), ("alpha", alpha)):
        if not isinstance(value, numbers.Real) or not 0 <= value < np.inf:
            raise ValueError(f"{name}={value!r} given; expected a finite number of at least 0")
    first = np.array([np.ravel(policy)[0] for policy in policies], dtype=np.intp)
    p = softmax(gamma * G) @ np.eye(n_actions)[first]
    if action_selection == "deterministic":
        weights = (p >= p.max(axis=1, keepdims=True) - 1e-8).astype(np.float64)
    else:
        weights = softmax(alpha * np.log(p + EPSILON))
    before = np.cumsum(weights, axis=1)
    drawn = np.random.default_rng(rng).random((len(p), 1)) * before[:, -1:]
    chosen = (before <= drawn).sum(axis=1)
    return np.asarray(np.minimum(chosen, n_actions - 1), dtype=np.intp)


def softmax(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis."""
    p = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(p / p.sum(axis=-1, keepdims=True))
