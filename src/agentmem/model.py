"""Model: immutable sparse transition and observation tables with a prior, shared by every belief.

Built once from matrices, checked row by row; kept as plain arrays that one file, one process or many can share.
"""

from __future__ import annotations

import copy
import hashlib
import operator
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem._core import CoreModel
from agentmem.array import check_scipy
from agentmem.belief import OnImpossible, SparseBelief
from agentmem.files import canonical, read_arrays, write_arrays
from agentmem.trajectory import FilterResult, Trajectory

if TYPE_CHECKING:
    from scipy.sparse import csr_array, csr_matrix


class Table(NamedTuple):
    """One matrix by rows, in CSR or (offsets and columns None) dense; observation tables are transposed and scaled."""

    offsets: NDArray[np.int64] | None
    columns: NDArray[np.int32] | None
    values: NDArray[Any]
    exponents: NDArray[np.int32] | None

    def buffers(self, prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
        for name, array in zip(self._fields, self, strict=True):
            if array is not None:
                yield f"{prefix}.{name}", array


class Model(CoreModel):
    """What all agents of one kind share: P(s' | s, a), P(o | s', a) and a prior. Immutable.

    Parameters
    ----------
    transition : (S, S) matrix, list of them (one per action), or (A, S, S) array; dense or scipy.sparse
        Rows are the current state s and sum to 1.
    observation : (S, O) matrix, or one per action; dense or scipy.sparse
        Rows are the next state s' and sum to 1.
    initial : (S,) array_like or SparseBelief, optional
        Prior over states before the first transition, since `SparseBelief.update` predicts first; uniform if None.
    dtype : {float64, float32}
        Of the stored probabilities, and so of the beliefs.
    drop_below : float
        Drop smaller entries and renormalise their rows; `dropped_entries` and `dropped_mass` tell what that took.
    row_tolerance : float
        How far from 1 a row may sum. Rows within it are used as given.

    Attributes
    ----------
    dropped_entries : int
        How many entries `drop_below` took.
    dropped_mass : float
        The largest probability it took from one row.

    Raises
    ------
    ValueError
        A row that does not sum to 1, a negative or non-finite entry (each named by action and state), or a shape that
        does not fit.

    Notes
    -----
    Inputs are copied. Equal matrices of several actions are kept once, each in the smaller of CSR and dense. Any number
    of threads may use a model. Two models are equal if their `digest` is.

    Examples
    --------
    >>> import agentmem as am
    >>> stay, swap = [[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]
    >>> am.Model([stay, swap], [[0.8, 0.2], [0.3, 0.7]])
    Model(n_states=2, n_actions=2, n_observations=2, dtype=float64, density=0.5, nbytes=528)
    """

    __slots__ = ("_digest", "_header", "_initial", "_nbytes", "_tables")

    _tables: dict[str, list[Table]]
    _header: dict[str, Any]
    _initial: SparseBelief
    _digest: str | None
    _nbytes: int

    def __init__(
        self,
        transition: Any,
        observation: Any,
        initial: Any = None,
        *,
        dtype: DTypeLike = np.float64,
        drop_below: float = 0.0,
        row_tolerance: float = 1e-5,
    ) -> None:
        dtype = np.dtype(dtype)
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype {dtype} given; a model is float32 or float64")
        if not 0 <= row_tolerance < 1:
            raise ValueError(f"row_tolerance={row_tolerance!r} given; expected at least 0 and below 1")
        if not 0 <= drop_below < 1:
            raise ValueError(f"drop_below={drop_below!r} given; expected at least 0 and below 1")
        transitions, observations = _matrices(transition, "transition"), _matrices(observation, "observation")
        if len(observations) not in (1, len(transitions)):
            raise ValueError(
                f"{len(observations)} observation matrices given for {len(transitions)} actions; "
                "expected one, or one each"
            )
        n_states, n_observations = transitions[0].shape[0], observations[0].shape[1]
        if n_states == 0 or n_observations == 0:
            raise ValueError(
                f"transition of shape {transitions[0].shape} and observation of shape {observations[0].shape} given; "
                "expected at least one state and one observation"
            )
        limits = drop_below, row_tolerance
        built_t = _build(transitions, "transition", (n_states, n_states), dtype, limits, transposed=False)
        built_o = _build(observations, "observation", (n_states, n_observations), dtype, limits, transposed=True)
        header = {
            "dtype": dtype.name,
            "n_states": n_states,
            "n_observations": n_observations,
            "transition_of": built_t.table_of,
            "observation_of": built_o.table_of * (len(transitions) if len(observations) == 1 else 1),
            "dropped_entries": built_t.dropped[0] + built_o.dropped[0],
            "dropped_mass": max(built_t.dropped[1], built_o.dropped[1]),
        }
        prior = _prior(initial, n_states, dtype, row_tolerance)
        header["uniform"] = prior is None
        buffers = _named({"transition": built_t.tables, "observation": built_o.tables})
        if prior is not None:
            buffers["initial.indices"] = prior.indices
            buffers["initial.values"] = prior.values
        self._fill(header, buffers)

    # ---- other ways to make one

    @classmethod
    def from_pymdp(cls, A: Any, B: Any, D: Any = None, *, dtype: DTypeLike = np.float64) -> Self:
        """A model from pymdp's layout: A (O, S), B (S', S, U), D (S,); also as pymdp's lists of one modality or factor.

        D is the belief at the first observation: begin with ``belief.correct(model.likelihood(0, first))``, or by
        ``model.filter(..., first="correct")``.
        Raises ValueError for several modalities or factors.
        """
        likelihood, transition = _only(A, "A", "modalities"), _only(B, "B", "factors")
        if likelihood.ndim != 2 or transition.ndim != 3:
            raise ValueError(f"A of shape {likelihood.shape} and B of shape {transition.shape} given; "
                             "expected (O, S) and (S', S, U)")
        return cls(
            [transition[:, :, u].T for u in range(transition.shape[2])],
            likelihood.T,
            None if D is None else _only(D, "D", "factors"),
            dtype=dtype,
        )

    @classmethod
    def from_hmm(cls, startprob: ArrayLike, transmat: Any, emissionprob: Any, *, dtype: DTypeLike = np.float64) -> Self:
        """A model of one action from hmmlearn's `startprob_`, `transmat_` and `emissionprob_`.

        There the start is the belief at the first observation, before any transition: score a sequence by
        ``model.filter(symbols, first="correct").log_evidence.sum()``. Step by step, begin with
        ``belief.correct(model.likelihood(0, first))`` and go on with `update`.
        """
        return cls([transmat], emissionprob, startprob, dtype=dtype)

    @classmethod
    def from_buffers(cls, header: Mapping[str, Any], buffers: Mapping[str, NDArray[Any]]) -> Self:
        """The model whose `header` and `buffers()` these are. Arrays that nobody can write are held, others copied.

        Indices and values are checked for range and sign; that rows sum to 1 is not.
        """
        model = cls.__new__(cls)
        held = {name: array if _is_locked(array) else np.array(array) for name, array in buffers.items()}
        model._fill(copy.deepcopy(dict(header)), held)
        return model

    def _fill(self, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> None:
        """Take arrays that nobody checked yet; the only place that writes a model's fields."""
        expected = {field: kind for field, kind in _HEADER.items() if not isinstance(header.get(field), kind)}
        if expected or len(header) != len(_HEADER):
            raise ValueError(f"header {header!r} given; expected {_HEADER}")
        if header["dtype"] not in ("float32", "float64"):
            raise ValueError(f"dtype {header['dtype']!r} given; a model is float32 or float64")
        for array in buffers.values():
            array.flags.writeable = False
        tables: dict[str, list[Table]] = {"transition": [], "observation": []}
        known = {"initial.indices", "initial.values"}
        for name, of_kind in tables.items():
            while f"{name}.{len(of_kind)}.values" in buffers:
                fields = [f"{name}.{len(of_kind)}.{field}" for field in Table._fields]
                of_kind.append(Table(*(buffers.get(field) for field in fields)))  # type: ignore[arg-type]
                known.update(fields)
        if unknown := buffers.keys() - known:
            raise ValueError(f"buffers {sorted(unknown)} given; expected those of numbered tables")
        self._set(
            header["n_states"],
            header["n_observations"],
            np.dtype(header["dtype"]),
            tables["transition"],
            tables["observation"],
            header["transition_of"],
            header["observation_of"],
        )
        if header["uniform"]:
            self._initial = SparseBelief.uniform(self.n_states, dtype=self.dtype)
        else:
            self._initial = SparseBelief.from_indices(
                buffers["initial.indices"], buffers["initial.values"], self.n_states, dtype=self.dtype
            )
        self._header, self._tables, self._digest = header, tables, None
        arrays = [array for name, array in buffers.items() if not name.startswith("initial")]
        self._nbytes = sys.getsizeof(self) + self._initial.nbytes + sum(array.nbytes for array in arrays)

    # ---- looks

    @property
    def nbytes(self) -> int:
        """Bytes of tables and prior; for an opened file the mapped ones, which processes share."""
        return self._nbytes

    @property
    def density(self) -> float:
        """Share of the transition tables' cells that are not zero, over all actions."""
        per_table = [np.count_nonzero(table.values) for table in self._tables["transition"]]
        met = sum(per_table[k] for k in self._header["transition_of"])
        return float(met / (self.n_actions * self.n_states**2))

    @property
    def observations_depend_on_action(self) -> bool:
        """Whether what a state shows depends on the action that led there. O(n_actions).

        >>> import agentmem as am
        >>> am.Model([np.eye(2)] * 2, [[0.9, 0.1], [0.2, 0.8]]).observations_depend_on_action
        False
        >>> am.Model([np.eye(2)] * 2, [np.eye(2), np.full((2, 2), 0.5)]).observations_depend_on_action
        True
        """
        return len(set(self._header["observation_of"])) > 1

    @property
    def dropped_entries(self) -> int:
        return int(self._header["dropped_entries"])

    @property
    def dropped_mass(self) -> float:
        return float(self._header["dropped_mass"])

    @property
    def digest(self) -> str:
        """Hash of the content: equal for equal models, however they were made. O(nbytes) the first time."""
        if self._digest is None:
            hasher = hashlib.blake2b(digest_size=32)
            hasher.update(canonical({k: v for k, v in self._header.items() if not k.startswith("dropped")}))
            for name, array in self.buffers().items():
                hasher.update(f"{name} {array.dtype.str} {array.size};".encode())
                hasher.update(array.data)
            self._digest = hasher.hexdigest()
        return self._digest

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Model) and self.digest == other.digest)

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(n_states={self.n_states}, n_actions={self.n_actions}, "
            f"n_observations={self.n_observations}, dtype={self.dtype}, density={self.density:.3g}, "
            f"nbytes={self.nbytes})"
        )

    def belief(self) -> SparseBelief:
        """A new belief that holds the prior. O(its support)."""
        return self._initial.copy()

    def transition(self, action: int) -> csr_array:
        """P(s' | s, action) as a new (S, S) scipy.sparse.csr_array. O(its entries)."""
        return as_matrix(self._table("transition", action), self.n_states)

    def observation(self, action: int) -> csr_array:
        """P(o | s', action) as a new (S, O) scipy.sparse.csr_array. O(its entries)."""
        table = self._table("observation", action)
        rows = as_matrix(table, self.n_states)
        exponents: Any = table.exponents
        rows.data = np.ldexp(rows.data, np.repeat(exponents, np.diff(rows.indptr)))
        return rows.T.tocsr()

    def to_padded(self, kind: str = "transition") -> tuple[NDArray[np.int32], NDArray[Any]]:
        """Indices and probabilities of every row, padded to the longest with index 0 of probability 0.

        For libraries that want one shape and no offsets, such as JAX. A step by action a is then, in NumPy's words,
        ``np.add.at(predicted, indices[a], probabilities[a] * belief[:, None])``.

        Parameters
        ----------
        kind : {"transition", "observation"}
            Rows of P(s' | s, a): each state's next states. Or of P(o | s', a): what each next state shows.

        Returns
        -------
        indices : (n_actions, n_states, K) int32, ascending in each row before the padding
        probabilities : (n_actions, n_states, K) of the model's dtype
            K is the number of entries of the longest row. Where all actions have the same table, both are read-only
            broadcasts of it.

        Notes
        -----
        One long row widens all: with over two thirds of a row's cells (float64; a half, float32) this takes more
        bytes than dense. O(n_actions x n_states x K).

        Examples
        --------
        >>> import agentmem as am
        >>> model = am.Model([[[1.0, 0.0], [0.25, 0.75]]], [[0.8, 0.2], [0.3, 0.7]])
        >>> indices, probabilities = model.to_padded()
        >>> indices[0].tolist(), probabilities[0].tolist()
        ([[0, 0], [0, 1]], [[1.0, 0.0], [0.25, 0.75]])
        """
        if kind not in self._tables:
            raise ValueError(f"kind={kind!r} given; expected one of {list(self._tables)}")
        matrix_of = self.transition if kind == "transition" else self.observation
        table_of = self._header[f"{kind}_of"]
        distinct = sorted(set(table_of))
        matrices = [matrix_of(table_of.index(k)) for k in distinct]
        lengths = [np.diff(matrix.indptr) for matrix in matrices]
        shape = len(matrices), self.n_states, max(int(length.max()) for length in lengths)
        indices, probabilities = np.zeros(shape, np.int32), np.zeros(shape, self.dtype)
        for i, (matrix, length) in enumerate(zip(matrices, lengths, strict=True)):
            filled = np.arange(shape[2]) < length[:, None]
            indices[i][filled], probabilities[i][filled] = matrix.indices, matrix.data
        if len(distinct) == 1:
            shape = self.n_actions, *shape[1:]
            return np.broadcast_to(indices, shape), np.broadcast_to(probabilities, shape)
        place_of = np.searchsorted(distinct, table_of)
        return indices[place_of], probabilities[place_of]

    def _table(self, kind: str, action: int) -> Table:
        if not 0 <= operator.index(action) < self.n_actions:
            raise ValueError(f"action {action} given; expected 0 to {self.n_actions - 1}")
        place: int = self._header[f"{kind}_of"][action]
        return self._tables[kind][place]

    # ---- filtering

    def filter(
        self,
        observations: ArrayLike,
        actions: ArrayLike | None = None,
        *,
        initial: Any = None,
        first: Literal["predict", "correct"] = "predict",
        prune: float | None = None,
        on_impossible: OnImpossible = "raise",
        beliefs: bool = False,
    ) -> FilterResult:
        """The forward pass over a whole sequence: what `SparseBelief.update` does for every step, bit for bit.

        Parameters
        ----------
        observations : (T,) ints
            -1 or None: nothing is observed at this step, which only predicts.
        actions : (T,) ints, optional
            The action before each observation; (T - 1,) if the first step corrects. May be left out for a model of
            one action.
        initial : SparseBelief or (S,) array_like, optional
            The belief before the first step, which stays as it is; None: the model's prior.
        first : {"predict", "correct"}
            What the first step does. "predict": what every step does, so that the belief before it lies one transition
            before the first observation. "correct": no transition, as `initial` is the belief at the first observation
            (hmmlearn's startprob, pymdp's D); this step prunes nothing.
        prune, on_impossible
            As in `SparseBelief.update`, at every step.
        beliefs : bool
            Also return the beliefs after all steps.

        Returns
        -------
        FilterResult
            The last `belief`, the `log_evidence` of each step, and `beliefs` if asked for.

        Raises
        ------
        ImpossibleObservation
            An observation has no probability; the message names step, action and observation.
        TypeError, ValueError
            Numbers that are no ints or not of this model (the first is named), or arrays of other lengths.

        Notes
        -----
        The cost of T updates without what Python takes for each. Without the GIL but for pauses: threads that filter
        with one model run beside each other.

        Examples
        --------
        >>> import agentmem as am
        >>> model = am.Model.from_hmm([0.6, 0.4], [[0.7, 0.3], [0.4, 0.6]], [[0.5, 0.4, 0.1], [0.1, 0.3, 0.6]])
        >>> result = model.filter([0, 1, 2], first="correct", beliefs=True)
        >>> round(float(result.log_evidence.sum()), 6)
        -3.316489
        >>> result.beliefs.to_scipy().toarray().round(3)
        array([[0.882, 0.118],
               [0.726, 0.274],
               [0.212, 0.788]])
        """
        if first not in ("predict", "correct"):
            raise ValueError(f"first={first!r} given; expected 'predict' or 'correct'")
        if first == "correct" and self.observations_depend_on_action:
            raise ValueError("first='correct' given, but what this model observes depends on the action before it")
        seen = _numbers(observations, "observations", missing=-1)
        if actions is not None:
            done = _numbers(actions, "actions", missing=None)
        elif self.n_actions == 1:
            done = np.zeros(max(0, len(seen) - (first == "correct")), np.intp)
        else:
            raise ValueError(f"actions=None given with a model of {self.n_actions} actions; expected one per step")
        if initial is None:
            belief = self.belief()
        elif isinstance(initial, SparseBelief):
            belief = initial.copy()
        else:
            belief = SparseBelief(initial, dtype=self.dtype)
        log_evidence, record = belief._filter(self, done, seen, first == "correct", prune, on_impossible, beliefs)
        return FilterResult(belief, log_evidence, Trajectory(*record, belief.shape) if record else None)

    # ---- as header and buffers

    @property
    def header(self) -> dict[str, Any]:
        """The facts that `from_buffers` needs beside the arrays; JSON can hold it."""
        return copy.deepcopy(self._header)

    def buffers(self) -> dict[str, NDArray[Any]]:
        """Every array by name, as a read-only view."""
        named = _named(self._tables)
        if not self._header["uniform"]:
            named["initial.indices"] = self._initial.indices
            named["initial.values"] = self._initial.values
        return {name: array[:] for name, array in named.items()}  # views: unlike owners, they stay read-only

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: Any) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_buffers, (self.header, self.buffers())

    # ---- as a file

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a file for `open`, under a temporary name until it is whole. O(nbytes)."""
        write_arrays(path, self._header, self.buffers())

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a saved model memory-mapped and read-only, so that all processes of a machine share one copy.

        Give other processes the path, not the model: a pickled model carries its content.
        The checksum and every index are checked, which reads the file once; whoever changes the file in place after
        that changes the model. Raises CorruptData for a file that is truncated, damaged, of another version, or no
        model.
        """
        return read_arrays(path, cls.from_buffers)


_HEADER = {
    "dtype": str,
    "n_states": int,
    "n_observations": int,
    "transition_of": list,
    "observation_of": list,
    "uniform": bool,
    "dropped_entries": int,
    "dropped_mass": float,
}


def _named(tables: Mapping[str, list[Table]]) -> dict[str, NDArray[Any]]:
    """Every array of the numbered tables by its buffer's name."""
    return dict(
        buffer for name, of_kind in tables.items() for k, table in enumerate(of_kind)
        for buffer in table.buffers(f"{name}.{k}")
    )


class _Built(NamedTuple):
    tables: list[Table]      # the distinct ones
    table_of: list[int]      # which of them each given matrix became
    dropped: tuple[int, float]


def _build(
    matrices: Sequence[Any],
    name: str,
    shape: tuple[int, int],
    dtype: np.dtype[Any],
    limits: tuple[float, float],
    *,
    transposed: bool,
) -> _Built:
    """Check every matrix and turn it into a table; equal ones become one."""
    tables: list[Table] = []
    table_of: list[int] = []
    known: dict[int, int] = {}  # id of a matrix -> its table
    entries, largest = 0, 0.0
    for action, matrix in enumerate(matrices):
        if id(matrix) not in known:
            where = name if len(matrices) == 1 else f"{name}, action {action}"
            rows, dropped = _checked_rows(matrix, where, shape, *limits)
            entries, largest = entries + dropped[0], max(largest, dropped[1])
            exponents = None
            if transposed:
                rows = rows.T.tocsr()
                exponents = _scale_rows(rows)
            table = as_table(rows, dtype, exponents)
            equal = (k for k, other in enumerate(tables) if _same(table, other))
            known[id(matrix)] = next(equal, len(tables))
            if known[id(matrix)] == len(tables):
                tables.append(table)
        table_of.append(known[id(matrix)])
    return _Built(tables, table_of, (entries, largest))


def _checked_rows(
    matrix: Any, where: str, shape: tuple[int, int], drop_below: float, row_tolerance: float
) -> tuple[csr_matrix, tuple[int, float]]:
    """The matrix as canonical float64 CSR (a copy) whose rows sum to 1, and what dropping took from it."""
    from scipy.sparse import csr_matrix

    if matrix.shape != shape:
        raise ValueError(
            f"{where}: shape {matrix.shape} given; expected {shape}, rows being the current state "
            "(pymdp's layout goes through Model.from_pymdp)"
        )
    if np.iscomplexobj(matrix) or matrix.dtype.kind not in "biuf":
        raise TypeError(f"{where}: dtype {matrix.dtype} given; expected real numbers")
    if _is_sparse(matrix):
        check_scipy(matrix)
    rows = csr_matrix(matrix, dtype=np.float64, copy=True)
    rows.sum_duplicates()
    wrong = np.flatnonzero(~(np.isfinite(rows.data) & (rows.data >= 0)))
    if len(wrong):
        state = int(np.searchsorted(rows.indptr, wrong[0], side="right")) - 1
        raise ValueError(
            f"{where}, state {state}: entry {rows.indices[wrong[0]]} is {rows.data[wrong[0]]}; "
            "expected finite and not negative"
        )
    rows.eliminate_zeros()
    sums = np.asarray(rows.sum(axis=1)).ravel()
    if len(off := np.flatnonzero(~(np.abs(sums - 1) <= row_tolerance))):
        raise ValueError(
            f"{where}, state {off[0]}: row sums to {sums[off[0]]:.12g}; expected 1 within {row_tolerance:g} "
            f"({len(off)} such rows of {len(sums)} here{_transposed(rows, row_tolerance)})"
        )
    small = rows.data < drop_below
    if not small.any():
        return rows, (0, 0.0)
    rows.data[small] = 0
    rows.eliminate_zeros()
    kept = np.asarray(rows.sum(axis=1)).ravel()
    if len(empty := np.flatnonzero(kept == 0)):
        raise ValueError(f"{where}, state {empty[0]}: drop_below={drop_below:g} would drop the whole row")
    rows.data /= np.repeat(kept / sums, np.diff(rows.indptr))
    return rows, (int(small.sum()), float((sums - kept).max()))


def _transposed(rows: csr_matrix, tolerance: float) -> str:
    columns = np.asarray(rows.sum(axis=0)).ravel()
    return "; all columns sum to 1: transposed?" if (np.abs(columns - 1) <= tolerance).all() else ""


def _scale_rows(rows: csr_matrix) -> NDArray[np.int32]:
    """Bring each row's largest entry to [0.5, 1) by a power of two, in place; return the exponents taken out."""
    rows.sort_indices()
    largest = np.asarray(rows.max(axis=1).todense()).ravel()
    exponents: NDArray[np.int32] = np.frexp(largest)[1].astype(np.int32)
    np.ldexp(rows.data, np.repeat(-exponents, np.diff(rows.indptr)), out=rows.data)
    return exponents


def as_table(rows: csr_matrix | csr_array, dtype: np.dtype[Any], exponents: NDArray[np.int32] | None = None) -> Table:
    """The smaller of CSR and dense; takes the rows' arrays over where it can."""
    rows.data = rows.data.astype(dtype, copy=False)
    rows.eliminate_zeros()  # what the dtype cannot hold
    n_rows, n_columns = rows.shape
    if n_rows * n_columns * dtype.itemsize <= rows.nnz * (dtype.itemsize + 4) + (n_rows + 1) * 8:
        return Table(None, None, rows.toarray().ravel(), exponents)
    return Table(rows.indptr.astype(np.int64), rows.indices.astype(np.int32, copy=False), rows.data, exponents)


def as_matrix(table: Table, n_columns: int) -> csr_array:
    """A new csr_array of what a table stores, not scaled back."""
    from scipy.sparse import csr_array

    if table.offsets is None:
        return csr_array(table.values.reshape(-1, n_columns))
    entries: Any = table.values, table.columns, table.offsets
    return csr_array(entries, shape=(len(table.offsets) - 1, n_columns), copy=True)


def _same(a: Table, b: Table) -> bool:
    return all(
        (x is None and y is None) or (x is not None and y is not None and np.array_equal(x, y))
        for x, y in zip(a, b, strict=True)
    )


def _matrices(given: Any, name: str) -> list[Any]:
    """One matrix per action, from any of the forms `Model` takes; arrays and scipy.sparse matrices stay as they are."""
    if _is_sparse(given):
        return [given]
    if isinstance(given, Sequence) and any(_is_sparse(matrix) for matrix in given):
        matrices = [matrix if _is_sparse(matrix) else np.asarray(matrix) for matrix in given]
    elif isinstance(given, Sequence) and all(np.ndim(matrix) == 2 for matrix in given):
        matrices = [np.asarray(matrix) for matrix in given]
    else:
        array = np.asarray(given)
        if array.ndim not in (2, 3):
            raise ValueError(f"{name} of shape {array.shape} given; expected a matrix, or one per action")
        matrices = [array] if array.ndim == 2 else list(array)
    if not matrices:
        raise ValueError(f"{name} of no matrices given; expected at least one")
    if any(matrix.ndim != 2 for matrix in matrices):
        raise ValueError(f"{name}: shapes {[matrix.shape for matrix in matrices]} given; expected matrices")
    return matrices


def _is_sparse(matrix: Any) -> bool:
    return hasattr(matrix, "tocsr") and hasattr(matrix, "nnz")


def _prior(initial: Any, n_states: int, dtype: np.dtype[Any], tolerance: float) -> SparseBelief | None:
    """The prior, normalised; None for uniform."""
    if initial is None:
        return None
    if np.shape(initial) != (n_states,) and getattr(initial, "size", 0) != n_states:
        raise ValueError(f"initial of shape {np.shape(initial)} given; expected ({n_states},)")
    try:
        prior = SparseBelief(initial if _is_sparse(initial) else np.ravel(initial), dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"initial: {error}") from None
    total = float(prior.values.sum())
    if not abs(total - 1) <= tolerance:
        raise ValueError(f"initial sums to {total:.12g}; expected 1 within {tolerance:g}")
    prior.normalize()
    if prior.storage == "uniform":
        return None
    return prior if dtype == np.float64 else SparseBelief(prior, dtype=dtype)


def _only(given: Any, name: str, of: str) -> NDArray[Any]:
    """The one array of a list or object array of one, or the array itself."""
    if isinstance(given, list | tuple) or (isinstance(given, np.ndarray) and given.dtype == object):
        if len(given) != 1 and (not len(given) or np.ndim(given[0]) > 0):
            raise ValueError(f"{name} with {len(given)} {of} given; a Model has one")
        if np.ndim(given[0]) > 0 and len(given) == 1:
            return np.asarray(given[0], dtype=float)
    return np.asarray(given, dtype=float)


def _numbers(given: ArrayLike, name: str, *, missing: int | None) -> NDArray[np.intp]:
    """One int per step, with `missing` in the place of None."""
    array = np.asarray(given.tolist() if np.ma.isMaskedArray(given) else given)  # None where masked
    if array.ndim != 1:
        raise ValueError(f"{name} of shape {array.shape} given; expected one number per step, ({array.size},): ravel?")
    if array.dtype.kind in "iu" and np.can_cast(array.dtype, np.intp):
        return array.astype(np.intp)
    numbers = np.empty(len(array), np.intp)
    for t, number in enumerate(array.tolist()):
        try:
            numbers[t] = missing if number is None and missing is not None else operator.index(number)
        except TypeError:
            raise TypeError(f"{name}[{t}] is {number!r} of type {type(number).__name__}; expected an int") from None
        except OverflowError:
            raise ValueError(f"{name}[{t}] is {number!r}; no model has so many") from None
    return numbers


def _is_locked(array: NDArray[Any]) -> bool:
    """Whether nobody can write to the memory of this array through NumPy."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if owner.flags.writeable:
            return False
        array, owner = owner, owner.base
    return owner is not None and memoryview(owner).readonly
