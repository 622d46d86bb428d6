"""Model: every form of input, what it refuses, what it keeps, its digest, and its file, whole and damaged."""

import copy
import hashlib
import json
import math
import os
import pickle
import stat
import struct
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
import reference
from reference import DTYPES, Traced, assert_is, content, same_environment, unchanged

dtypes = pytest.mark.parametrize("dtype", DTYPES)
RNG = np.random.default_rng(0)
(T0, T1), Z = reference.random_tables(RNG, 12, n_observations=5, branching=3, seen=2)  # kept as CSR
FULL, FULL_Z = RNG.dirichlet(np.ones(6), size=6), RNG.dirichlet(np.ones(3), size=6)  # kept dense


def trajectory(model, n_steps=12):
    """Beliefs and evidences along a fixed walk, bit for bit."""
    b, seen = model.belief(), []
    for t in range(n_steps):
        action, observation = t % model.n_actions, t * 7 % model.n_observations
        seen.append((b.update(model, action, observation, on_impossible="predict"), content(b)))
    return seen


def tables_in(model, kind):
    return {name.split(".")[1] for name in model.buffers() if name.startswith(kind)}


# ---- forms of input


def with_duplicates(matrix):
    """The same matrix as COO with every entry in two halves, and with explicit zeros."""
    entries = sparse.coo_matrix(matrix)
    halves = np.tile(entries.data / 2, 2), (np.tile(entries.row, 2), np.tile(entries.col, 2))
    rows, columns = np.nonzero(np.asarray(matrix) == 0)
    return sparse.coo_matrix(
        (
            np.append(halves[0], np.zeros(len(rows))),
            (np.append(halves[1][0], rows), np.append(halves[1][1], columns)),
        ),
        shape=entries.shape,
    )


def unsorted(matrix):
    """The same matrix as CSR with each row's entries in descending order of column."""
    rows = sparse.csr_matrix(matrix)
    order = np.concatenate(
        [np.arange(a, b)[::-1] for a, b in zip(rows.indptr, rows.indptr[1:], strict=False)]
    )
    return sparse.csr_matrix((rows.data[order], rows.indices[order], rows.indptr), shape=rows.shape)


FORMS = {
    "array": np.array,
    "nested lists": np.ndarray.tolist,
    "tuples": lambda m: tuple(map(tuple, m)),
    "list of rows": list,
    "Fortran": np.asfortranarray,
    "strided": lambda m: np.repeat(m, 2, axis=1)[:, ::2],
    "byte-swapped": lambda m: m.astype(">f8"),
    "long double": lambda m: m.astype(np.longdouble),
    "read-only": lambda m: np.broadcast_to(m, m.shape),
    "matrix": np.asmatrix,
    "csr_matrix": sparse.csr_matrix,
    "csr_array": sparse.csr_array,
    "csc": sparse.csc_matrix,
    "coo": sparse.coo_array,
    "lil": sparse.lil_matrix,
    "dok": sparse.dok_array,
    "bsr": sparse.bsr_matrix,
    "dia": sparse.dia_matrix,
    "duplicates and zeros": with_duplicates,
    "unsorted": unsorted,
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@dtypes
@forms
def test_every_form_of_matrix_is_the_same_model(form, dtype):
    expected = am.Model([T0, T1], Z, dtype=dtype)
    made = am.Model([form(T0), form(T1)], form(Z), dtype=dtype)
    assert made.digest == expected.digest
    assert made == expected
    assert trajectory(made) == trajectory(expected)


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@forms
def test_a_bare_matrix_is_one_action(form):
    made = am.Model(form(T0), form(Z))
    assert made.n_actions == 1
    assert made.digest == am.Model([T0], [Z]).digest


@pytest.mark.parametrize(
    "transitions",
    [
        np.stack([T0, T1]),
        [T0.tolist(), T1.tolist()],
        (T0, sparse.csr_array(T1)),
        [T0.tolist(), sparse.coo_matrix(T1)],
    ],
    ids=["3-D array", "nested lists", "mixed", "list and sparse"],
)
@pytest.mark.parametrize(
    "observations", [Z, [Z], [Z, Z], np.stack([Z, Z]), [Z.tolist(), sparse.csr_matrix(Z)]]
)
def test_every_form_of_many_matrices_is_the_same_model(transitions, observations):
    assert am.Model(transitions, observations).digest == am.Model([T0, T1], Z).digest


@pytest.mark.parametrize("integers", [int, np.uint8, bool])
def test_integers_are_probabilities_too(integers):
    swap = np.array([[0, 1], [1, 0]], dtype=integers)
    b = am.SparseBelief.point(2, 0)
    assert b.update(am.Model([swap], np.eye(2, dtype=integers)), 0, 1) == 0.0
    assert b.indices.tolist() == [1]


@dtypes
def test_sizes_and_dtype(dtype):
    model = am.Model([T0, T1], Z, dtype=dtype)
    assert (model.n_states, model.n_actions, model.n_observations) == (12, 2, 5)
    assert model.dtype == dtype
    assert model.belief().dtype == dtype
    assert model.density == pytest.approx(np.mean([T0 != 0, T1 != 0]))


def test_the_smallest_model():
    model = am.Model([[1.0]], [[1.0]])
    assert model.belief().update(model, 0, 0) == 0.0


@dtypes
def test_the_numbers_are_those_given(dtype):
    model = am.Model([T0, T1], [Z, Z[::-1]], dtype=dtype)
    for action, (T, seen) in enumerate([(T0, Z), (T1, Z[::-1])]):
        for state in range(12):
            b = am.SparseBelief.point(12, state, dtype=dtype)
            b.predict(model, action)
            assert_is(b, reference.normalized(reference.as_stored(T, dtype)[state]))
        for observation in range(5):
            expected = reference.as_stored(seen[:, observation], dtype)
            assert model.likelihood(action, observation).tolist() == expected.tolist()


# ---- from other libraries' layouts


def test_from_pymdp():
    B = np.stack([T0.T, T1.T], axis=-1)  # (S', S, U)
    D = reference.normalized(np.arange(12.0))
    expected = am.Model([T0, T1], Z, D)
    in_object_arrays = [np.empty(1, dtype=object) for _ in range(3)]
    for holder, array in zip(in_object_arrays, (Z.T, B, D), strict=True):
        holder[0] = array
    for a, b, d in [(Z.T, B, D), ([Z.T], [B], [D]), in_object_arrays]:
        assert am.Model.from_pymdp(a, b, d).digest == expected.digest


@pytest.mark.parametrize(
    ("A", "B"),
    [
        (Z.T, T0.T),
        (Z.T[0], np.stack([T0.T], axis=-1)),
        ([Z.T, Z.T], [np.stack([T0.T], axis=-1)]),
        ([Z.T], [np.stack([T0.T], axis=-1)] * 2),
        (Z, np.stack([T0.T], axis=-1)),
        (Z.T, np.stack([T0], axis=-1)),
        (Z.T, np.stack([T0.T])),
    ],
    ids=[
        "B of 2 axes",
        "A of 1 axis",
        "two modalities",
        "two factors",
        "A transposed",
        "B transposed",
        "U first",
    ],
)
def test_from_pymdp_refuses_what_is_not_its_layout(A, B):
    with pytest.raises(ValueError, match=r"given; expected|expected|has one"):
        am.Model.from_pymdp(A, B)


def test_from_hmm_is_the_forward_algorithm():
    start = reference.normalized(np.arange(1.0, 13.0))
    model = am.Model.from_hmm(start, T0, Z)
    b, forward, log_likelihood = model.belief(), start, 0.0
    for observation in (1, 4, 0, 2):
        predicted = forward @ T0
        if not (joint := predicted * Z[:, observation]).any():
            continue
        log_likelihood += b.update(model, 0, observation, prune=0.0)
        forward = joint
    assert log_likelihood == pytest.approx(math.log(forward.sum()))
    assert_is(b, forward / forward.sum())


# ---- the prior


def test_without_a_prior_a_belief_starts_uniform():
    b = am.Model([T0], Z).belief()
    assert b.storage == "uniform"
    assert b.size == 12


PRIOR = np.array([0.0, 0.5, 0.25, 0.0, 0.25, 0, 0, 0, 0, 0, 0, 0])


@dtypes
@pytest.mark.parametrize(
    "form",
    [
        np.array,
        list,
        lambda p: p.astype(np.float32),
        lambda p: p.reshape(3, 4),
        am.SparseBelief,
        am.SparseArray,
        sparse.coo_array,
    ],
    ids=["array", "list", "float32", "3x4", "SparseBelief", "SparseArray", "scipy"],
)
def test_every_form_of_prior(form, dtype):
    model = am.Model([T0], Z, form(PRIOR), dtype=dtype)
    assert model.belief().to_dense().tolist() == PRIOR.tolist()
    assert model.digest == am.Model([T0], Z, PRIOR, dtype=dtype).digest


@pytest.mark.parametrize("n", [2, 10, 12, 49])
def test_an_equal_prior_is_the_uniform_one(n):
    tables = np.eye(n), np.ones((n, 1))
    explicit = am.Model(*tables, np.full(n, 1 / n))
    assert explicit.digest == am.Model(*tables).digest
    assert explicit.nbytes == am.Model(*tables).nbytes


def test_a_prior_that_is_nearly_normalised_is_normalised():
    b = am.Model(np.eye(2), np.ones((2, 1)), [0.25, 0.750001]).belief()
    assert b.values.sum() == pytest.approx(1.0, abs=1e-15)


def test_beliefs_of_a_model_are_independent():
    model = am.Model([T0], Z, PRIOR)
    b, other = model.belief(), model.belief()
    with unchanged(other):
        b.update(model, 0, 1, on_impossible="predict")
    assert model.belief().to_dense().tolist() == PRIOR.tolist()


@pytest.mark.parametrize(
    ("prior", "error", "said"),
    [
        (np.ones(11) / 11, ValueError, r"initial.*\(11,\).*12"),
        (0.5, ValueError, "initial"),
        (np.ones(12), ValueError, "initial sums to 12"),
        (np.zeros(12), ValueError, "initial.*without any mass"),
        (np.where(PRIOR == 0.5, -0.5, PRIOR), ValueError, "initial.*-0.5 at index 1"),
        (np.where(PRIOR == 0.5, math.nan, PRIOR), ValueError, "initial.*nan at index 1"),
        (PRIOR * 1j, TypeError, "complex"),
        ("x" * 12, (TypeError, ValueError), "initial"),
        (["x"] * 12, (TypeError, ValueError), "'x'"),
    ],
    ids=["short", "a number", "unnormalised", "zero", "negative", "NaN", "complex", "a string", "strings"],
)
def test_a_bad_prior_is_named(prior, error, said):
    with pytest.raises(error, match=said):
        am.Model([T0], Z, prior)


# ---- what a model refuses


def but(table, place, value):
    changed = np.array(table, dtype=np.result_type(table, type(value)))
    changed[place] = value
    return changed


def no(**changes):
    """A call of Model with good arguments but these."""
    arguments = {"transition": [T0, T1], "observation": Z, **changes}
    return lambda: am.Model(**arguments)


REFUSED = {
    "row sum": (no(transition=[T0, but(T1, (3, 3), 0.75)]), r"transition, action 1, state 3\b.*sums to"),
    "row of zeros": (no(transition=[T0, but(T1, 5, 0.0)]), "transition, action 1, state 5: row sums to 0"),
    "rows transposed": (no(transition=FULL.T, observation=FULL_Z), r"transition.*state \d.*such rows"),
    "negative": (no(transition=[T0, but(T1, (4, 2), -0.5)]), r"action 1, state 4: entry 2 is -0\.5"),
    "NaN": (no(transition=[but(T0, (4, 2), math.nan), T1]), "action 0, state 4: entry 2 is nan"),
    "inf": (no(transition=[T0, but(T1, (0, 0), math.inf)]), "action 1, state 0: entry 0 is inf"),
    "of one action": (no(transition=but(T0, (4, 2), -1.0)), "transition, state 4"),
    "observation row sum": (no(observation=but(Z, 7, 0.3)), r"observation, state 7: row sums to 1\.5"),
    "observation NaN": (
        no(observation=[Z, but(Z, (2, 1), math.nan)]),
        "observation, action 1, state 2: entry 1",
    ),
    "observation negative": (no(observation=but(Z, (2, 1), -1.0)), "observation, state 2: entry 1 is -1"),
    "not square": (no(transition=T0[:, :11]), r"\(12, 11\).*\(12, 12\)"),
    "sizes differ": (no(transition=[T0, np.eye(11)]), r"action 1: shape \(11, 11\).*\(12, 12\)"),
    "too few rows": (no(observation=Z[:11]), r"observation.*\(11, 5\).*\(12, 5\)"),
    "observation sizes differ": (no(observation=[Z, Z[:, :4]]), r"action 1: shape \(12, 4\)"),
    "too few observations": (no(transition=[T0] * 3, observation=[Z, Z]), "2 observation.*3 actions"),
    "no actions": (no(transition=[]), "transition"),
    "no actions in 3-D": (no(transition=np.zeros((0, 12, 12))), "transition"),
    "no states": (no(transition=np.zeros((0, 0)), observation=np.zeros((0, 2))), "states|transition"),
    "no observations": (no(observation=np.zeros((12, 0))), "observation"),
    "a vector": (no(transition=np.ones(3)), r"transition.*\(3,\)"),
    "4-D": (no(transition=np.ones((1, 1, 1, 1))), r"\(1, 1, 1, 1\)"),
    "a number": (no(transition=1.0), r"transition.*\(\)"),
    "ragged": (no(transition=[[0.5, 0.5], [1.0]]), "transition|inhomogeneous"),
    "drop_below -1": (no(drop_below=-1), "drop_below=-1"),
    "drop_below 1": (no(drop_below=1.0), r"drop_below=1\.0"),
    "drop_below NaN": (no(drop_below=math.nan), "drop_below=nan"),
    "whole row": (no(transition=FULL, observation=FULL_Z, drop_below=0.9999), r"state \d.*whole row"),
    "row_tolerance NaN": (no(row_tolerance=math.nan), "nan"),
}
NOT_NUMBERS = {
    "None": (no(transition=None), "transition"),
    "None in a list": (no(transition=[T0, None]), "transition|inhomogeneous"),
    "a string": (no(transition="T"), "transition"),
    "strings": (no(transition=[["a"]], observation=[[1.0]]), "transition.*U1"),
    "complex": (no(transition=T0 + 0j), "transition.*complex128"),
    "complex sparse": (no(transition=sparse.csr_array(T0 + 0j)), "transition.*complex128"),
    "objects": (no(transition=T0.astype(object)), "transition.*object"),
    "dtype int": (no(dtype=int), "int64"),
    "dtype half": (no(dtype=np.float16), "float16"),
    "dtype complex": (no(dtype=complex), "complex128"),
    "dtype nonsense": (no(dtype="nonsense"), "nonsense"),
    "drop_below 'x'": (no(drop_below="x"), "str"),
}


@pytest.mark.parametrize(("make", "said"), NOT_NUMBERS.values(), ids=NOT_NUMBERS)
def test_what_is_no_table_of_numbers_is_named(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_a_bad_table_is_named(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_within_the_tolerance_are_used_as_given(sign):
    row = 1 + sign * 9e-6
    model = am.Model([[row]], [[1.0]])
    assert model.belief().update(model, 0, 0) == pytest.approx(math.log(row), abs=1e-12)


def test_row_tolerance_can_be_chosen():
    rough = np.array([[0.5, 0.49], [0.0, 1.0]])
    with pytest.raises(ValueError, match=r"state 0: row sums to 0\.99;"):
        am.Model(rough, np.eye(2))
    with pytest.raises(ValueError, match="state 0"):
        am.Model(rough, np.eye(2), row_tolerance=0.009)
    assert am.Model(rough, np.eye(2), row_tolerance=0.011).n_states == 2


BROKEN_MATRIX = """
import resource, sys
import numpy as np, scipy.sparse as sp
import agentmem as am
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
where, part, value, form = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
tables = {"T": sp.eye_array(50).asformat(form), "Z": sp.csr_array(np.full((50, 2), 0.5)).asformat(form)}
array = getattr(tables[where], part)
array[3] = value
try:
    am.Model(tables["T"], tables["Z"])
except ValueError:
    print("ValueError")
"""


@pytest.mark.parametrize("where", ["T", "Z"])
@pytest.mark.parametrize(
    ("form", "part", "value"),
    [
        ("csr", "indices", 50),
        ("csr", "indices", 2**30),
        ("csr", "indices", -7),
        ("csr", "indptr", 2**30),
        ("csr", "indptr", -1),
        ("csc", "indices", 2**30),
        ("coo", "row", 2**30),
        ("coo", "col", -5),
    ],
)
def test_a_scipy_matrix_that_points_outside_itself_is_refused(where, form, part, value):
    child = subprocess.run(
        [sys.executable, "-c", BROKEN_MATRIX, where, part, str(value), form],
        capture_output=True,
        text=True,
        env=same_environment(),
    )
    assert (child.returncode, child.stdout.strip()) == (0, "ValueError"), child.stderr[-300:]


# ---- drop_below


def test_drop_below_drops_small_entries_and_keeps_row_sums():
    T = np.array([[0.9, 0.06, 0.04], [0.5, 0.5, 0.0], [0.01, 0.02, 0.97]])
    seen = np.array([[0.98, 0.02], [0.5, 0.5], [0.05, 0.95]])
    model = am.Model(T, seen, drop_below=0.05)
    assert model.dropped_entries == 4
    assert model.dropped_mass == pytest.approx(0.04)
    expected = [[0.9 / 0.96, 0.06 / 0.96, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]
    for state in range(3):
        b = am.SparseBelief.point(3, state)
        b.predict(model, 0)
        assert_is(b, np.array(expected[state]))
    assert model.likelihood(0, 0) == pytest.approx([1.0, 0.5, 0.05])


def test_drop_below_keeps_what_is_at_the_threshold():
    model = am.Model(np.array([[0.75, 0.25], [0.0, 1.0]]), np.eye(2), drop_below=0.25)
    assert (model.dropped_entries, model.dropped_mass) == (0, 0.0)


def test_dropping_is_not_part_of_the_digest():
    assert am.Model(np.eye(2), np.eye(2), drop_below=0.1).digest == am.Model(np.eye(2), np.eye(2)).digest


# ---- storage


@dtypes
@pytest.mark.parametrize("branching", [1, 2, 5, 10, 20, 25, 26, 27, 30, 33, 34, 36, 38, 39, 40])
def test_each_table_is_kept_in_the_smaller_form(branching, dtype):
    n, item = 40, np.dtype(dtype).itemsize
    T = reference.random_rows(np.random.default_rng(1), n, n, branching)
    buffers = am.Model(T, np.eye(n), dtype=dtype).buffers()
    kept = sum(array.nbytes for name, array in buffers.items() if name.startswith("transition"))
    as_rows, as_cells = n * branching * (item + 4) + (n + 1) * 8, n * n * item
    assert kept == min(as_rows, as_cells)
    assert ("transition.0.offsets" in buffers) == (as_rows < as_cells)


@dtypes
def test_both_forms_give_equal_bits(dtype):
    """A full table is kept dense; a header that says so of the same numbers in CSR is as good."""
    dense = am.Model(FULL, FULL_Z, dtype=dtype)
    buffers = {name: array.copy() for name, array in dense.buffers().items()}
    for kind, n_rows in (("transition.0", 6), ("observation.0", 3)):
        assert f"{kind}.offsets" not in buffers
        buffers[f"{kind}.offsets"] = np.arange(n_rows + 1, dtype=np.int64) * 6
        buffers[f"{kind}.columns"] = np.tile(np.arange(6, dtype=np.int32), n_rows)
    assert trajectory(am.Model.from_buffers(dense.header, buffers)) == trajectory(dense)


def test_equal_tables_are_kept_once():
    many = am.Model([T0, T1, T0.copy(), sparse.csr_array(T1), T0], [Z, Z.copy(), sparse.coo_array(Z), Z, Z])
    assert tables_in(many, "transition") == {"0", "1"}
    assert tables_in(many, "observation") == {"0"}
    assert many.nbytes <= am.Model([T0, T1], Z).nbytes + 5 * 8


def test_actions_keep_their_own_tables():
    model = am.Model([T0, T1, T0], [Z, Z[::-1], Z[::-1]])
    for action, (T, seen) in enumerate([(T0, Z), (T1, Z[::-1]), (T0, Z[::-1])]):
        expected, log_evidence = reference.update(np.ones(12), T, seen, 1)
        b = am.SparseBelief.uniform(12)
        assert b.update(model, action, 1) == pytest.approx(log_evidence)
        assert_is(b, expected)


def test_nbytes_is_what_the_arrays_take():
    model = am.Model([T0, T1], Z, PRIOR)
    tables = sum(a.nbytes for name, a in model.buffers().items() if not name.startswith("initial"))
    assert tables + model.belief().nbytes <= model.nbytes <= tables + model.belief().nbytes + 400
    assert f"nbytes={model.nbytes}" in repr(model)


# ---- immutable


@pytest.mark.parametrize("form", [np.array, sparse.csr_matrix, sparse.csc_matrix, sparse.coo_matrix])
def test_later_changes_of_the_inputs_do_not_matter(form):
    T, seen, prior = form(T0), form(Z), PRIOR.copy()
    model = am.Model([T], seen, prior)
    before = trajectory(model)
    for array in (T, seen, prior):
        data = getattr(array, "data", array) if sparse.issparse(array) else array
        data *= 0.5
    assert trajectory(model) == before
    assert model.digest == am.Model([T0], Z, PRIOR).digest


@pytest.mark.parametrize(
    "make", [with_duplicates, unsorted, lambda m: unsorted(m).tocsc(), sparse.csr_array, np.array]
)
def test_inputs_stay_as_they_are(make):
    def all_bytes(matrix):
        if not sparse.issparse(matrix):
            return matrix.tobytes()
        parts = (matrix.row, matrix.col) if matrix.format == "coo" else (matrix.indices, matrix.indptr)
        return matrix.data.tobytes(), *(part.tobytes() for part in parts)

    T, seen = make(T0), make(Z)
    before = all_bytes(T), all_bytes(seen)
    am.Model([T, T1], seen, drop_below=0.1)
    assert (all_bytes(T), all_bytes(seen)) == before


def test_buffers_are_read_only():
    for name, array in am.Model([T0, FULL.repeat(2, 0).repeat(2, 1) / 2], Z, PRIOR).buffers().items():
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
        assert not array.flags.writeable, name


@pytest.mark.parametrize(
    "name", ["n_states", "n_actions", "n_observations", "dtype", "nbytes", "digest", "density", "new"]
)
def test_attributes_cannot_be_set(name):
    with pytest.raises(AttributeError):
        setattr(am.Model(np.eye(2), np.eye(2)), name, 3)


def test_the_header_is_the_callers_own():
    model = am.Model([T0, T1], Z)
    model.header["transition_of"].append(7)
    model.header["n_states"] = 1
    assert model.header["transition_of"] == [0, 1]
    assert model.digest == am.Model([T0, T1], Z).digest


def test_a_model_is_filled_once():
    model = am.Model([T0, T1], Z)
    before = trajectory(model)
    with pytest.raises(ValueError, match=r"immutable|filled"):
        am.Model.__init__(model, [T1], Z)
    tables = [(None, None, np.ones(1), None)], [(None, None, np.ones(1), np.zeros(1, np.int32))]
    with pytest.raises(ValueError, match=r"immutable|filled"):
        model._set(1, 1, np.dtype(np.float64), *tables, [0], [0])
    assert (model.n_states, model.n_actions) == (12, 2)
    assert trajectory(model) == before


def test_a_model_that_was_never_filled_lets_nothing_in():
    empty = am.Model.__new__(am.Model)
    b = am.SparseBelief([0.5, 0.5])
    for call in (
        lambda: b.update(empty, 0, 0),
        lambda: b.update(empty, 0, None),
        lambda: b.predict(empty, 0),
    ):
        with unchanged(b), pytest.raises(ValueError, match="action 0"):
            call()
    with pytest.raises(ValueError, match="action 0"):
        empty.likelihood(0, 0)


def test_a_model_whose_filling_failed_lets_nothing_in():
    half = am.Model.__new__(am.Model)
    good = (None, None, np.ones(1), None)
    with pytest.raises(ValueError, match="observation table 0"):
        half._set(
            1, 1, np.dtype(np.float64), [good], [(None, None, np.ones(3), np.zeros(1, np.int32))], [0], [0]
        )
    b = am.SparseBelief([1.0])
    with unchanged(b), pytest.raises(ValueError, match="action 0"):
        b.update(half, 0, 0)


@dtypes
def test_gives_its_matrices_back(dtype):
    for transition, observation in (((T0, T1), (Z, Z[::-1])), ((FULL,), (FULL_Z,))):
        model = am.Model(list(transition), list(observation), dtype=dtype)
        for action, (T, given_O) in enumerate(zip(transition, observation, strict=True)):
            for given, kept in ((T, model.transition(action)), (given_O, model.observation(action))):
                assert sparse.issparse(kept) and kept.dtype == dtype
                np.testing.assert_allclose(kept.toarray(), given, rtol=1e-7 if dtype == np.float32 else 0)
            likelihood = model.likelihood(action, 0)
            assert model.observation(action).toarray()[:, 0].tolist() == likelihood.tolist()


def test_its_matrices_are_copies():
    model = am.Model([T0, T1], Z)
    digest = model.digest
    for matrix in (model.transition(0), model.observation(1)):
        matrix.data[:] = 0
    model._digest = None
    assert model.digest == digest


@pytest.mark.parametrize("action", [-1, 2])
@pytest.mark.parametrize("kind", ["transition", "observation"])
def test_matrices_check_the_action(kind, action):
    with pytest.raises(ValueError, match=f"action {action} given; expected 0 to 1"):
        getattr(am.Model([T0, T1], Z), kind)(action)


@pytest.mark.parametrize(("action", "observation"), [(2, 0), (-1, 0), (0, 5), (0, -1)])
def test_likelihood_checks_its_range(action, observation):
    with pytest.raises(ValueError, match=f"{min(action, observation)}|{max(action, observation)}"):
        am.Model([T0, T1], Z).likelihood(action, observation)


# ---- digest

DIFFERENT = {
    "base": lambda: am.Model([T0, T1], Z),
    "float32": lambda: am.Model([T0, T1], Z, dtype=np.float32),
    "actions swapped": lambda: am.Model([T1, T0], Z),
    "action repeated": lambda: am.Model([T0, T1, T1], Z),
    "first action only": lambda: am.Model([T0], Z),
    "one ulp in T": lambda: am.Model([T0, but(T1, (0, T1[0].argmax()), np.nextafter(T1[0].max(), 1))], Z),
    "one ulp in Z": lambda: am.Model([T0, T1], but(Z, (0, Z[0].argmax()), np.nextafter(Z[0].max(), 0))),
    "observations reversed": lambda: am.Model([T0, T1], Z[:, ::-1]),
    "an observation that never comes": lambda: am.Model([T0, T1], np.pad(Z, ((0, 0), (0, 1)))),
    "own observations": lambda: am.Model([T0, T1], [Z, Z[::-1]]),
    "the other's observations": lambda: am.Model([T0, T1], [Z[::-1], Z]),
    "prior": lambda: am.Model([T0, T1], Z, PRIOR),
    "other prior": lambda: am.Model([T0, T1], Z, PRIOR[::-1]),
    "states permuted": lambda: am.Model([T0[::-1, ::-1], T1[::-1, ::-1]], Z[::-1]),
}


def test_any_change_changes_the_digest():
    digests = {name: make().digest for name, make in DIFFERENT.items()}
    assert len(set(digests.values())) == len(digests), digests


def test_models_are_equal_by_content():
    a, b, other = am.Model([T0, T1], Z), am.Model(np.stack([T0, T1]), sparse.csr_array(Z)), am.Model([T0], Z)
    assert a == b
    assert hash(a) == hash(b)
    assert a != other
    assert a != "a model"
    assert len({a, b, other}) == 2


# ---- pickle


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("make", DIFFERENT.values(), ids=DIFFERENT)
def test_pickle_keeps_a_model(make, protocol):
    model = make()
    loaded = pickle.loads(pickle.dumps(model, protocol))
    assert loaded.digest == model.digest
    assert trajectory(loaded) == trajectory(model)
    assert not any(array.flags.writeable for array in loaded.buffers().values())


def test_copies_are_equal():
    model = am.Model([T0, T1], Z, PRIOR, drop_below=0.01)
    for other in (copy.copy(model), copy.deepcopy(model)):
        assert trajectory(other) == trajectory(model)
        assert (other.digest, other.dropped_entries, other.dropped_mass) == (
            model.digest,
            model.dropped_entries,
            model.dropped_mass,
        )


# ---- file: what it keeps

KEPT = {
    **DIFFERENT,
    "dense": lambda: am.Model(FULL, FULL_Z),
    "dropped": lambda: am.Model(FULL, FULL_Z, drop_below=0.05),
}


@pytest.mark.parametrize("make", KEPT.values(), ids=KEPT)
def test_a_saved_model_opens_as_it_was(make, tmp_path):
    model = make()
    model.save(tmp_path / "model")
    opened = am.Model.open(str(tmp_path / "model"))
    assert opened.digest == model.digest
    assert trajectory(opened) == trajectory(model)
    assert (opened.dropped_entries, opened.dropped_mass) == (model.dropped_entries, model.dropped_mass)
    assert opened.nbytes == model.nbytes


def test_an_opened_model_is_a_model(tmp_path):
    am.Model([T0, T1], Z, PRIOR).save(tmp_path / "first")
    opened = am.Model.open(tmp_path / "first")
    opened.save(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    assert trajectory(pickle.loads(pickle.dumps(opened))) == trajectory(opened)


def test_an_opened_model_outlives_its_file(tmp_path):
    model = am.Model([T0, T1], Z)
    model.save(tmp_path / "model")
    opened = am.Model.open(tmp_path / "model")
    am.Model([T1], Z).save(tmp_path / "model")
    assert trajectory(opened) == trajectory(model)
    (tmp_path / "model").unlink()
    assert trajectory(opened) == trajectory(model)


def test_open_maps_the_file_and_copies_nothing(tmp_path):
    model = am.Model(*reference.ring_tables(100_000))
    model.save(tmp_path / "model")
    am.Model.open(tmp_path / "model")
    with Traced() as traced:
        opened = am.Model.open(tmp_path / "model")
    assert model.nbytes > 4_000_000
    assert traced.peak < 64_000
    assert not any(array.flags.writeable for array in opened.buffers().values())


def test_the_file_is_for_everyone_whom_the_umask_lets(tmp_path):
    umask = os.umask(0o027)
    try:
        am.Model([T0], Z).save(tmp_path / "model")
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o640


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    am.Model([T0], Z).save(tmp_path / "model")
    before = (tmp_path / "model").read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        am.Model([T1], Z).save(tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_many_processes_open_one_file(tmp_path):
    model = am.Model([T0, T1], Z, PRIOR)
    model.save(tmp_path / "model")
    script = (
        "import sys, hashlib, agentmem as am, test_model\n"
        "model = am.Model.open(sys.argv[1])\n"
        "print(model.digest, hashlib.sha256(repr(test_model.trajectory(model)).encode()).hexdigest())"
    )
    children = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "model")],
            stdout=subprocess.PIPE,
            text=True,
            env=same_environment(),
        )
        for _ in range(3)
    ]
    expected = [model.digest, hashlib.sha256(repr(trajectory(model)).encode()).hexdigest()]
    assert [child.communicate()[0].split() for child in children] == [expected] * 3


# ---- file: damaged

PREAMBLE = struct.Struct(
    "<8sIIQ40s"
)  # magic, version, bytes of the header, of the file, checksum of all but itself


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "model"
    am.Model(np.stack([np.roll(np.eye(5), 1, axis=1), np.full((5, 5), 0.2)]), np.eye(5)).save(path)
    return path.read_bytes()


def opens(path, written):
    path.write_bytes(written)
    try:
        am.Model.open(path)
    except am.CorruptData as error:
        assert path.name in str(error)
        return False
    return True


def test_the_undamaged_file_opens(saved, tmp_path):
    assert opens(tmp_path / "model", saved)


def test_a_flipped_bit_in_any_byte_is_found(saved, tmp_path):
    undetected = []
    for place in range(len(saved)):
        for bit in range(8) if place < PREAMBLE.size else (place % 8,):
            damaged = bytearray(saved)
            damaged[place] ^= 1 << bit
            if opens(tmp_path / "model", damaged):
                undetected.append((place, bit))
    assert not undetected


def test_a_truncated_file_is_refused(saved, tmp_path):
    lengths = [*range(2 * PREAMBLE.size), *range(2 * PREAMBLE.size, len(saved), 7), len(saved) - 1]
    assert [n for n in lengths if opens(tmp_path / "model", saved[:n])] == []


@pytest.mark.parametrize("more", [b"\0", b" " * 64, b"AGENTMEM"])
def test_what_is_appended_is_found(saved, tmp_path, more):
    assert not opens(tmp_path / "model", saved + more)


@pytest.mark.parametrize("version", [0, 2, 2**32 - 1])
def test_another_version_is_named(saved, tmp_path, version):
    (tmp_path / "model").write_bytes(saved[:8] + struct.pack("<I", version) + saved[12:])
    with pytest.raises(am.CorruptData, match=f"version {version};.*version 1"):
        am.Model.open(tmp_path / "model")


NOT_OURS = {
    "empty": b"",
    "short": b"AGENTMEM",
    "zeros": bytes(4096),
    "text": b"transition: 1 0 0 1\n" * 100,
    "numpy": b"\x93NUMPY\x01\x00v\x00" + bytes(200),
    "zip": b"PK\x03\x04" + bytes(200),
    "another magic": b"AGENTMEN" + bytes(200),
}


@pytest.mark.parametrize("written", NOT_OURS.values(), ids=NOT_OURS)
def test_a_file_that_is_not_ours_is_refused(written, tmp_path):
    assert not opens(tmp_path / "model", written)


def test_corrupt_data_is_a_value_error():
    assert issubclass(am.CorruptData, ValueError)


@pytest.mark.parametrize("missing", ["nothing", "folder/nothing"])
def test_a_file_that_is_not_there_is_said_so(tmp_path, missing):
    with pytest.raises(FileNotFoundError):
        am.Model.open(tmp_path / missing)
    with pytest.raises(OSError):
        am.Model([T0], Z).save(tmp_path / "folder" / "model")


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def test_open_never_unpickles(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bomb = pickle.dumps(Bomb())
    assert not opens(tmp_path / "model", bomb + bytes(200))
    header, buffers = read_parts(saved)
    for name in buffers:
        (tmp_path / "model").write_bytes(
            file_of(header, {**buffers, name: np.frombuffer(bomb, np.uint8)}, places={name: ["|O", 1, 0]})
        )
        with pytest.raises(am.CorruptData):
            am.Model.open(tmp_path / "model")
    assert not (tmp_path / "unpickled").exists()


# ---- file: evil, with a checksum that agrees


def read_parts(written):
    """Header and arrays of a saved model."""
    _, _, n_header, _, _ = PREAMBLE.unpack_from(written)
    header = json.loads(written[PREAMBLE.size : PREAMBLE.size + n_header])
    start = PREAMBLE.size + n_header
    buffers = {
        name: np.frombuffer(written, kind, count, start + at).copy()
        for name, (kind, count, at) in header.pop("buffers").items()
    }
    return header, buffers


def file_of(header, buffers, *, places=None, text=None, n_header=None):
    """A file with this header and these arrays whose checksum agrees; the options replace what would be true."""
    true_places, at, blocks = {}, 0, []
    for name, array in buffers.items():
        true_places[name] = [array.dtype.str, array.size, at]
        blocks.append(array.tobytes() + bytes(-array.nbytes % 64))
        at += len(blocks[-1])
    if text is None:
        text = json.dumps({**header, "buffers": {**true_places, **(places or {})}}).encode()
    text += b" " * (-(PREAMBLE.size + len(text)) % 64)
    body = text + b"".join(blocks)
    facts = b"AGENTMEM", 1, len(text) if n_header is None else n_header, PREAMBLE.size + len(body)
    checksum = hashlib.blake2b(PREAMBLE.pack(*facts, b"") + body, digest_size=40).digest()
    return PREAMBLE.pack(*facts, checksum) + body


SPARSE = am.Model(
    [np.roll(np.eye(40), 1, axis=1), np.eye(40)],
    np.eye(8)[np.arange(40) % 8],
    np.eye(40)[0] * 0.5 + np.eye(40)[7] * 0.5,
)
DENSE = am.Model(FULL, FULL_Z)


def parts_of(model):
    return model.header, {name: array.copy() for name, array in model.buffers().items()}


def evil_files():
    """Every evil file by name."""
    made = {}

    def header_with(name, model=SPARSE, **changes):
        header, buffers = parts_of(model)
        made[name] = file_of({**header, **changes}, buffers)

    def buffers_with(name, model=SPARSE, **changes):
        header, buffers = parts_of(model)
        buffers.update({key.replace("_", "."): value for key, value in changes.items()})
        made[name] = file_of(header, {key: value for key, value in buffers.items() if value is not None})

    anything = (None, "x", -1, 0, 2**31, 2**40, 2**62, 2**70, 1.5, [], [[]], ["x"], {}, {"x": 1})
    for field, true in SPARSE.header.items():
        for value in anything:
            if type(value) is not type(true) or field in ("n_states", "n_observations"):
                header_with(f"{field} = {value!r}", **{field: value})
        header, buffers = parts_of(SPARSE)
        del header[field]
        made[f"no {field}"] = file_of(header, buffers)
    header_with("a field too many", n_tables=10**12)
    for dtype in ("float32", "float16", "f8", ">f8", "object", "int8", ""):
        header_with(f"dtype = {dtype!r}", dtype=dtype)
    for field in ("transition_of", "observation_of"):
        for value in (
            [],
            [0],
            [0, 5],
            [0, -1],
            [0, 2**31],
            [0, 2**70],
            [0, 0.0],
            [0, None],
            [0, [0]],
            [[0, 0]],
            [0, 0, 0],
        ):
            header_with(f"{field} = {value!r}", **{field: value})
    for n in (39, 41):
        header_with(f"n_states = {n}", n_states=n)
    for n in (7, 9):
        header_with(f"n_observations = {n}", n_observations=n)
    for n in (5, 7, 2**40, 2**62, 3 * 2**62):
        header_with(f"dense, n_states = {n}", DENSE, n_states=n)
    for n in (2, 4, 2**40, 2**62, 2**63, 2**64 - 1):
        header_with(f"dense, n_observations = {n}", DENSE, n_observations=n)

    for model, kind in ((SPARSE, "CSR"), (DENSE, "dense")):
        for name, array in model.buffers().items():
            argument = name.replace(".", "_")
            buffers_with(f"{kind}, no {name}", model, **{argument: None})
            buffers_with(f"{kind}, {name} empty", model, **{argument: array[:0]})
            buffers_with(f"{kind}, {name} too short", model, **{argument: array[:-1]})
            buffers_with(f"{kind}, {name} too long", model, **{argument: np.append(array, array[-1:])})
            if not name.startswith("initial"):
                other = np.float32 if array.dtype.itemsize == 8 else np.int64
                buffers_with(f"{kind}, {name} as {other.__name__}", model, **{argument: array.astype(other)})
                buffers_with(
                    f"{kind}, {name} swapped", model, **{argument: array.astype(array.dtype.newbyteorder())}
                )
            bad = {
                "values": (-1.0, math.nan, math.inf),
                "columns": (-1, 40, 2**31 - 1),
                "indices": (-1, 40, 2**31 - 1),
            }
            bad |= {"offsets": (-1, 10**6, 2**62, -(2**62)), "exponents": (5000, -5000, 2**31 - 1, -(2**31))}
            for value in bad[name.split(".")[-1]]:
                for place in (0, len(array) // 2, -1):
                    changed = array.copy()
                    changed[place] = value
                    buffers_with(f"{kind}, {name}[{place}] = {value}", model, **{argument: changed})
    header, buffers = parts_of(SPARSE)
    columns = np.tile(np.arange(2, dtype=np.int32), 20)
    two_a_row = {
        "transition.0.offsets": np.arange(41, dtype=np.int64) * 2,
        "transition.0.values": np.full(80, 0.5),
        "transition.0.columns": np.tile(np.arange(2, dtype=np.int32), 40),
    }
    assert file_of(header, {**buffers, **two_a_row})  # the next three break only one thing
    for name, broken in (
        ("unsorted columns", {"transition.0.columns": columns[::-1].repeat(2)}),
        ("equal columns", {"transition.0.columns": np.zeros(80, np.int32)}),
        ("falling offsets", {"transition.0.offsets": but(two_a_row["transition.0.offsets"], 3, 2)}),
    ):
        made[name] = file_of(header, {**buffers, **two_a_row, **broken})
    buffers_with("offsets without columns", transition_0_columns=None)
    buffers_with("columns without offsets", transition_0_offsets=None)
    buffers_with("prior twice the same state", initial_indices=np.zeros(2, np.int32))
    buffers_with("prior of zeros", initial_values=np.zeros(2))
    made["a buffer too many"] = file_of(header, {**buffers, "transition.7.values": np.ones(3)})
    made["a buffer of no name"] = file_of(header, {**buffers, "": np.ones(3)})

    values = "transition.0.values"
    for place in (
        *(["<f8", n, 0] for n in (-1, -2, 10**6, 2**62, 2**63, 2**70, 1.5, None, "40")),
        *(["<f8", 40, at] for at in (-64, -(2**40), 3, 10**6, 2**62, 2**63, 2**70, 0.0, None)),
        *(
            [kind, 40, 0]
            for kind in (
                "|O",
                "|V0",
                "|S0",
                "|V8",
                "M8[s]",
                ">f8",
                "<c8",
                "nonsense",
                "",
                5,
                None,
                [["a", "<f8"]],
            )
        ),
        *([], ["<f8"], ["<f8", 40, 0, 0], "abc", "abcd", None, 3, {}),
    ):
        made[f"place = {place!r}"] = file_of(header, buffers, places={values: place})
    for name, text in {
        "deep header": b"[" * 200_000,
        "deep header of objects": b'{"a":' * 200_000,
        "header a list": b"[]",
        "header a number": b"3",
        "header a string": b'"x"',
        "header null": b"null",
        "header empty": b"",
        "header {}": b"{}",
        "header with buffers only": b'{"buffers": {}}',
        "header with a list of buffers": b'{"buffers": []}',
        "header no text": b"\xff\xfe\x00",
        "header with a huge number": b'{"buffers": {}, "n_states": ' + b"9" * 10_000 + b"}",
        "header cut": b'{"buffers": {',
    }.items():
        made[name] = file_of(header, buffers, text=text)
    for n in (0, 1, 63, 2**31, 2**32 - 1):
        made[f"header of {n} bytes"] = file_of(header, buffers, n_header=n)
    return made


OPEN_ALL = """
import os, resource, sys
import agentmem as am
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:  # each file in a process of its own, with little memory and time
        if "asan" not in os.environ.get("LD_PRELOAD", ""):  # which maps terabytes
            resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        try:
            model = am.Model.open(path)
            b = model.belief()
            for observation in range(min(model.n_observations, 100)):
                b.update(model, 0, observation, on_impossible="likelihood")
            outcome = "opened"
        except BaseException as error:
            outcome = type(error).__name__
        os.write(1, f"{os.path.basename(path)} {outcome}\\n".encode())
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status:
        os.write(1, f"{os.path.basename(path)} died:{status}\\n".encode())
"""

EVIL = evil_files()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What became of each evil file, opened in a child that may crash."""
    folder = tmp_path_factory.mktemp("evil")
    good = {"good": file_of(*parts_of(SPARSE)), "good dense": file_of(*parts_of(DENSE))}
    names = {}
    for number, (name, written) in enumerate({**good, **EVIL}.items()):
        (folder / str(number)).write_bytes(written)
        names[str(number)] = name
    paths = [str(folder / number) for number in names]
    printed = subprocess.run(
        [sys.executable, "-c", OPEN_ALL, *paths], capture_output=True, text=True, env=same_environment()
    ).stdout
    return {names[number]: outcome for number, outcome in map(str.split, printed.splitlines())}


def test_the_maker_of_evil_files_makes_good_ones(outcomes):
    assert (outcomes["good"], outcomes["good dense"]) == ("opened", "opened")


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_file_is_refused(outcomes, name):
    assert outcomes[name] == "CorruptData"


def test_from_buffers_checks_as_open_does():
    header, buffers = parts_of(SPARSE)
    buffers["transition.0.columns"][5] = 40
    with pytest.raises(ValueError, match="row 5"):
        am.Model.from_buffers(header, buffers)


def test_arrays_that_somebody_can_write_are_copied():
    buffers = {name: array.copy() for name, array in model_of_two().buffers().items()}
    model = am.Model.from_buffers(model_of_two().header, buffers)
    digest = model.digest
    for array in buffers.values():
        array[:] = 1
    again = am.Model.from_buffers(model.header, model.buffers())
    assert again.digest == digest
    with pytest.raises(ValueError, match=r"writ|WRITEABLE"):
        model.buffers()["transition.0.values"].flags.writeable = True


def test_a_deep_copy_shares_the_model():
    model = model_of_two()
    assert copy.deepcopy({"model": model})["model"] is model


def model_of_two():
    return am.Model([[0.9, 0.1], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]])
