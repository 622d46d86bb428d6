"""The tables behind pymdp's agents, in two forms with the same methods, and the reading of pymdp's A and B.

`OneFactor` runs on a `Model` and compiled kernels: the filter is `SparseBelief.update`, planning is `_core.policy`.
`Factors` is pymdp's mean-field treatment of several hidden-state factors, on scipy.sparse. Both are immutable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

try:
    from pymdp.legacy import maths
    from pymdp.legacy.algos import run_vanilla_fpi_factorized
except ImportError as missing:
    message = "pymdp is not installed: pip install 'agentmem-native[pymdp]'"
    raise ImportError(message, name=missing.name) from missing

from agentmem._core import CoreSensors
from agentmem.array import SparseArray
from agentmem.belief import SparseBelief
from agentmem.errors import ImpossibleObservation
from agentmem.model import Model, as_matrix, as_table
from agentmem.policy import NEGLIGIBLE, Tree

ObjectArray = NDArray[Any]  # of dtype object, as pymdp holds one item per factor or modality

# Below this share of a belief's largest entry is what pymdp's 1e-16 inside logs put there, divided by the evidence.
DUST = 1e-12


def without_dust(q: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(q > DUST * q.max(), q, 0)


class OneFactor:
    """Tables of agents with one factor: a Model for the filter, and the sensors by states for the planning."""

    def __init__(self, model: Model, others: Sequence[Any] = ()) -> None:
        """`others`: (S, O) csr tables of the modalities that the model does not hold."""
        if model.observations_depend_on_action:
            raise ValueError("model whose observations depend on the action given; pymdp's A knows one for all")
        by_state = [model.observation(0), *others]
        self.model, self.dtype = model, model.dtype
        self.num_states, self.num_controls = [model.n_states], [model.n_actions]
        self.num_obs = [int(table.shape[1]) for table in by_state]
        self.A_factor_list, self.B_factor_list = [[0] for _ in by_state], [[0]]
        self._by_state = [as_table(table, self.dtype) for table in by_state]
        tables = zip(self._by_state, self.num_obs, strict=True)
        self._sensors = CoreSensors(model, [(t.offsets, t.columns, t.values, n) for t, n in tables])

    @property
    def A(self) -> list[SparseArray]:
        return [SparseArray(as_matrix(t, n).T) for t, n in zip(self._by_state, self.num_obs, strict=True)]

    @property
    def B(self) -> list[SparseArray]:
        return [_stacked([self.model.transition(u).T for u in range(self.model.n_actions)], [self.model.n_states])]

    def infer(
        self, before: ObjectArray, action: list[int] | None, seen: list[Any], prune: float
    ) -> list[SparseBelief]:
        """The posterior; without an action, `before` is already about now."""
        belief = before[0].copy()
        left = list(enumerate(seen))
        if action is not None:
            first = seen[0] if isinstance(seen[0], int) else None
            left = left if first is None else left[1:]
            belief.update(self.model, action[0], first, prune=0.0 if left else prune)
        if left:
            states = belief.indices
            weights = reduce(np.multiply, [self._likelihood(m, reading, states) for m, reading in left])
            belief.correct(SparseArray.from_indices(states, weights, self.model.n_states))
            if prune:
                belief.prune(relative=prune)
        return [belief]

    def mix(self, before: ObjectArray, action: list[int] | None, seen: list[Any]) -> list[SparseBelief]:
        """What pymdp makes of an impossible observation."""
        belief = before[0].copy()
        if action is not None:
            belief.predict(self.model, action[0])
        states = np.arange(self.model.n_states)
        logs = [maths.spm_log_single(self._likelihood(m, reading, states)) for m, reading in enumerate(seen)]
        posterior = maths.softmax(sum(logs) + maths.spm_log_single(belief.to_dense()))
        return [SparseBelief(without_dust(posterior), dtype=self.dtype)]

    def _likelihood(self, modality: int, reading: Any, states: NDArray[np.intp]) -> NDArray[np.float64]:
        if isinstance(reading, int):
            return self._sensors.likelihood(modality, reading, states)
        return self._sensors.expectation(modality, reading)[states]

    def utility(self, preferences: Sequence[NDArray[np.float64]], depth: int) -> NDArray[np.float64]:
        """(1 or depth, S): what a state is worth by its expected log-preference, over all modalities."""
        n_times = max(min(p.shape[1], depth) for p in preferences)
        value = np.zeros((n_times, self.model.n_states))
        for m, p in enumerate(preferences):
            for t in range(n_times):
                value[t] += self._sensors.expectation(m, p[:, t if p.shape[1] > 1 else 0])
        return value

    def worth(
        self, qs: ObjectArray, tree: Tree, utility: Any, costs: list[Any] | None, information: bool
    ) -> NDArray[np.float64]:
        """(n_nodes,): what the way to each node of the tree is worth."""
        mass = qs[0].values.astype(np.float64, copy=False)
        return self._sensors.worth(
            qs[0].indices, mass, tree.depths, tree.actions[:, 0],
            value=utility, extra=costs[0] if costs else None, information=information,
        )  # fmt: skip

    def induction(self, goals: list[Any], threshold: float, depth: int) -> ObjectArray:
        tables = map(self.model.transition, range(self.model.n_actions))
        return object_array([_reached(goals[0], tables, threshold, depth)])


class Factors:
    """Tables of agents with several factors, each matrix in the smaller of CSR and dense: observations or next states
    by rows, joint states of the factors concerned by columns.

    Beliefs are pymdp's to rounding, with what its 1e-16 inside logs puts everywhere: mean field may give the true state
    less than that, and finds back by it.
    """

    dtype = np.dtype(np.float64)

    def __init__(
        self,
        A: list[Any],
        B: list[list[Any]],
        A_factor_list: list[list[int]],
        B_factor_list: list[list[int]],
    ) -> None:
        self.num_obs, self.num_states = [a.shape[0] for a in A], [b[0].shape[0] for b in B]
        self.num_controls = [len(b) for b in B]
        self.A_factor_list, self.B_factor_list = A_factor_list, B_factor_list
        for m, (table, factors) in enumerate(zip(A, A_factor_list, strict=True)):
            _check_stochastic(table, self._extents(factors), f"A of modality {m}")
        for f, (controls, factors) in enumerate(zip(B, B_factor_list, strict=True)):
            for u, table in enumerate(controls):
                _check_stochastic(table, self._extents(factors), f"B of factor {f}, control {u}")
        self._A = [_smaller(table) for table in A]
        self._B = [[_smaller(table) for table in controls] for controls in B]
        self._ambiguity = [_ambiguity(table) for table in A]
        concerned = [[m for m, factors in enumerate(A_factor_list) if f in factors] for f in range(len(B))]
        self._blanket = {"A_factor_list": A_factor_list, "A_modality_list": concerned}

    def _extents(self, factors: Sequence[int]) -> list[int]:
        return [self.num_states[f] for f in factors]

    @property
    def A(self) -> list[SparseArray]:
        pairs = zip(self._A, self.A_factor_list, strict=True)
        return [SparseArray(table).reshape(-1, *self._extents(factors)) for table, factors in pairs]

    @property
    def B(self) -> list[SparseArray]:
        pairs = zip(self._B, self.B_factor_list, strict=True)
        return [_stacked(controls, self._extents(factors)) for controls, factors in pairs]

    def infer(
        self, before: ObjectArray, action: list[int] | None, seen: list[Any], prune: float
    ) -> list[SparseBelief]:
        """The posterior of each factor by pymdp's fixed-point iteration; without an action, `before` is about now."""
        prior, likelihoods = self._prior_and_likelihoods(before, action, seen)
        for likelihood, factors in zip(likelihoods, self.A_factor_list, strict=True):
            if likelihood @ _joint(prior, factors) == 0:
                raise ImpossibleObservation("a modality's likelihood is zero wherever the prior is not")
        beliefs = [SparseBelief(q) for q in self._iterate(prior, likelihoods)]
        if prune:
            for belief in beliefs:
                belief.prune(relative=prune)
        return beliefs

    def mix(self, before: ObjectArray, action: list[int] | None, seen: list[Any]) -> list[SparseBelief]:
        """What pymdp makes of an impossible observation."""
        return [SparseBelief(q) for q in self._iterate(*self._prior_and_likelihoods(before, action, seen))]

    def _prior_and_likelihoods(
        self, before: ObjectArray, action: list[int] | None, seen: list[Any]
    ) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
        prior = [belief.to_dense() for belief in before]
        if action is not None:
            prior = self._predict(prior, action)
        return prior, [self._likelihood(m, reading) for m, reading in enumerate(seen)]

    def _iterate(self, prior: list[NDArray[Any]], likelihoods: list[NDArray[Any]]) -> ObjectArray:
        """pymdp's own iteration, given what was seen as the only observation there is."""
        shaped = zip(likelihoods, self.A_factor_list, strict=True)
        A = object_array([likelihood.reshape(1, *self._extents(factors)) for likelihood, factors in shaped])
        certain, once = object_array([np.ones(1)] * len(A)), [1] * len(A)
        q: ObjectArray = run_vanilla_fpi_factorized(
            A, certain, once, self.num_states, self._blanket, object_array(prior)
        )
        return q

    def _likelihood(self, modality: int, reading: Any) -> NDArray[np.float64]:
        table = self._A[modality]
        if not isinstance(reading, int):
            return np.asarray(reading @ table)
        row = table[reading] if isinstance(table, np.ndarray) else table[[reading]].toarray().ravel()
        return np.asarray(row)

    def _predict(self, qs: list[NDArray[Any]], controls: Sequence[int]) -> list[NDArray[Any]]:
        """Beliefs about each factor after an action."""
        steps = zip(self._B, self.B_factor_list, controls, strict=True)
        return [tables[u] @ _joint(qs, factors) for tables, factors, u in steps]

    def utility(self, preferences: Sequence[NDArray[np.float64]], depth: int) -> list[NDArray[np.float64]]:
        """Per modality (1 or depth, joint states): what a state is worth by its expected log-preference."""
        return [(table.T @ p[:, :depth]).T for table, p in zip(self._A, preferences, strict=True)]

    def worth(
        self, qs: ObjectArray, tree: Tree, utility: Any, costs: list[Any] | None, information: bool
    ) -> NDArray[np.float64]:
        """(n_nodes,): what the way to each node of the tree is worth. As `_core.policy` does it for one factor."""
        way = [([belief.to_dense() for belief in qs], 0.0)] + [([], 0.0)] * tree.depth  # beliefs and worth by depth
        out = np.empty(len(tree.depths))
        for node, (depth, controls) in enumerate(zip(tree.depths.tolist(), tree.actions.tolist(), strict=True)):
            before, worth = way[depth - 1]
            beliefs = self._predict(before, controls)
            for m, factors in enumerate(self.A_factor_list):
                joint = _joint(beliefs, factors)
                if utility is not None:
                    worth += joint @ utility[m][min(depth, len(utility[m])) - 1]
                if information:
                    joint = np.where(joint > NEGLIGIBLE, joint, 0)
                    expected = self._A[m] @ joint
                    worth += joint @ self._ambiguity[m] - expected @ maths.spm_log_single(expected)
            for q, cost in zip(beliefs, costs or (), strict=False):
                worth += 0 if cost is None else q @ cost
            way[depth] = beliefs, worth
            out[node] = worth
        return out

    def induction(self, goals: list[Any], threshold: float, depth: int) -> ObjectArray:
        if any(len(factors) > 1 for factors in self.B_factor_list):
            raise NotImplementedError("inductive inference where a factor depends on others is not supported")
        return object_array(
            [_reached(goal, [t.T for t in self._B[factors[0]]], threshold, depth)
             for goal, factors in zip(goals, self.B_factor_list, strict=True)]
        )  # fmt: skip


# ---- reading pymdp's forms


def read_tables(
    A: Any, B: Any, A_factor_list: Sequence[Sequence[int]] | None, B_factor_list: Sequence[Sequence[int]] | None
) -> OneFactor | Factors:
    likelihoods = [_by_joint_state(a) for a in ([A] if is_table(A) else A)]
    is_one_factor = is_table(B) or (len(B) > 0 and getattr(B[0], "ndim", 0) == 2)
    transitions = [_by_control(b) for b in ([B] if is_one_factor else B)]
    if not likelihoods or not transitions:
        raise ValueError(f"A of {len(likelihoods)} modalities and B of {len(transitions)} factors given")
    factors = list(range(len(transitions)))
    num_states = [controls[0].shape[0] for controls in transitions]
    a_lists = [list(factors) for _ in likelihoods] if A_factor_list is None else [list(fs) for fs in A_factor_list]
    b_lists = [[f] for f in factors] if B_factor_list is None else [list(fs) for fs in B_factor_list]
    for name, tables, lists in (("A", likelihoods, a_lists), ("B", [b[0] for b in transitions], b_lists)):
        if len(lists) != len(tables) or not all(fs and set(fs) <= set(factors) for fs in lists):
            raise ValueError(f"{name}_factor_list={lists} given; expected factors below {len(factors)} for each of "
                             f"{len(tables)} tables")
        for k, (table, fs) in enumerate(zip(tables, lists, strict=True)):
            n_joint = math.prod(num_states[f] for f in fs)
            if table.shape[1] != n_joint:
                raise ValueError(f"{name}[{k}] is over {table.shape[1]} joint states; expected {n_joint}, "
                                 f"those of factors {fs}")
    if len(factors) > 1:
        return Factors(likelihoods, transitions, a_lists, b_lists)
    model = Model([table.T for table in transitions[0]], likelihoods[0].T)
    others = [table.T.tocsr() for table in likelihoods[1:]]
    for m, table in enumerate(likelihoods[1:], 1):
        _check_stochastic(table, num_states, f"A of modality {m}")
    return OneFactor(model, others)


def _by_joint_state(a: Any) -> Any:
    """One modality's A as (O, joint states) csr_array of float64."""
    table = a if _is_sparse(a) else np.asarray(a, dtype=np.float64)
    if table.ndim < 2:
        raise ValueError(f"A of shape {table.shape} given; expected (observations, states, ...), "
                         "an ndarray or sparse matrix for each modality")
    return _csr(table.reshape(table.shape[0], -1) if table.ndim > 2 else table)


def _by_control(b: Any) -> list[Any]:
    """One factor's B as a (S', joint states) csr_array of float64 for each control."""
    if not is_table(b) and len(b) > 0 and all(getattr(table, "ndim", 0) == 2 for table in b):
        return [_csr(table) for table in b]
    table = b if _is_sparse(b) else np.asarray(b, dtype=np.float64)
    if table.ndim < 3:
        raise ValueError(f"B of shape {table.shape} given; expected (next states, states, ..., controls), "
                         "or a (next states, joint states) matrix for each control")
    return [_csr(table[..., u].reshape(table.shape[0], -1)) for u in range(table.shape[-1])]


def is_table(given: Any) -> bool:
    """One table, NumPy's, JAX's or sparse, rather than a sequence of them."""
    return _is_sparse(given) or (hasattr(given, "__array__") and np.dtype(given.dtype).kind != "O")


def _is_sparse(table: Any) -> bool:
    return bool(sparse.issparse(table)) or isinstance(table, SparseArray)


def _csr(table: Any) -> Any:
    """A copy, each place once."""
    given = table.to_scipy() if isinstance(table, SparseArray) else table
    rows = sparse.csr_array(given, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    return rows


def _check_stochastic(table: Any, extents: Sequence[int], name: str) -> None:
    """Raise ValueError unless the columns are probabilities; `extents` tell which joint state a column is."""
    values = table.data
    if not ((values >= 0) & (values < np.inf)).all():
        raise ValueError(f"{name}: entry {values[~((values >= 0) & (values < np.inf))][0]} given; expected at least 0")
    sums = np.asarray(table.sum(axis=0)).ravel()
    if len(off := np.flatnonzero(~(np.abs(sums - 1) <= 1e-5))):
        at = tuple(int(x) for x in np.unravel_index(off[0], extents))
        raise ValueError(f"{name}, state {at}: sums to {sums[off[0]]:.12g}; expected 1")


def object_array(items: Sequence[Any]) -> ObjectArray:
    array = np.empty(len(items), dtype=object)
    for k, item in enumerate(items):
        array[k] = item
    return array


# ---- small parts of the tables


def _smaller(table: Any) -> Any:
    n_rows, n_columns = table.shape
    return table.toarray() if 8 * n_rows * n_columns <= 12 * table.nnz + 4 * n_rows else table


def _stacked(tables: Sequence[Any], extents: Sequence[int]) -> SparseArray:
    """The (S', joint states) tables of all controls as pymdp's one (S', S1, ..., U) array."""
    by_control = [sparse.coo_array(table) for table in tables]
    n_next, n_joint = by_control[0].shape
    flat = [(t.row.astype(np.intp) * n_joint + t.col) * len(tables) + u for u, t in enumerate(by_control)]
    values = np.concatenate([t.data for t in by_control])
    return SparseArray.from_indices(np.concatenate(flat), values, (n_next, *extents, len(tables)))


def _joint(qs: Sequence[NDArray[Any]], factors: Sequence[int]) -> NDArray[Any]:
    """The joint distribution of some factors that are independent, flat in C order."""
    return reduce(np.multiply.outer, [qs[f] for f in factors]).ravel()


def _ambiguity(table: Any) -> NDArray[np.float64]:
    """(joint states,): sum over o of P(o | s) ln(P(o | s) + e**-16)."""
    terms = table.copy()
    terms.data = table.data * np.log(table.data + NEGLIGIBLE)
    return np.asarray(terms.sum(axis=0)).ravel()


def _reached(goal: Any, tables: Iterable[Any], threshold: float, depth: int) -> NDArray[np.float64]:
    """(depth, S) ones and zeros: what pymdp holds to be within so many steps of the goal.

    `tables` are P(s' | s) by rows s. pymdp walks from the goal along transitions, not against them; so do we.
    """
    link = reduce(lambda a, b: a + b, [sparse.csr_array(table > threshold).astype(np.float64) for table in tables])
    if np.shape(goal) != (link.shape[0],):
        raise ValueError(f"H of shape {np.shape(goal)} given; expected ({link.shape[0]},)")
    reached = np.zeros((depth, link.shape[0]))
    reached[0] = goal
    for step in range(1, depth):
        reached[step] = reached[step - 1] @ (link > 0) > 0.1
    return reached
