"""SparseBelief against dense NumPy: constructors, verbs, pruning rules, queries, bits, bad input."""

import copy
import gc
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

import agentmem as am
import reference
from reference import DTYPES, assert_is, bits, content, masses, scattered, unchanged

STORAGES = ("pairs", "bitmap", "dense", "uniform")
N = 640  # states of the fixtures: a size at which every storage is the smallest at some density

dtypes = pytest.mark.parametrize("dtype", DTYPES)
any_dtype = st.sampled_from(DTYPES)
fast = settings(deadline=None, database=None, max_examples=150)


def ring(dtype, n_states=N):
    return am.Model(*reference.ring_tables(n_states), dtype=dtype)


@pytest.fixture(scope="module")
def rings():
    return {dtype: ring(dtype) for dtype in DTYPES}


@pytest.fixture(params=STORAGES)
def storage(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=["float64", "float32"])
def belief(request, storage):
    return reference.one_of_each_storage(am.SparseBelief, request.param)[storage]


# ---- constructors


@dtypes
@pytest.mark.parametrize("shape", [(), (1,), (7,), (64,), (65,), (3, 5), (2, 1, 33)])
def test_a_belief_holds_the_numbers_it_was_given(shape, dtype):
    p = np.random.default_rng(0).random(shape).astype(dtype)
    b = am.SparseBelief(p)
    b._check()
    assert b.shape == shape
    assert b.dtype == dtype
    assert b.to_dense().tobytes() == np.asarray(p).tobytes()


@pytest.mark.parametrize(
    ("given_as", "kept_as"),
    [
        ("f8", "f8"),
        ("f4", "f4"),
        ("f2", "f8"),
        ("i4", "f8"),
        ("u1", "f8"),
        ("?", "f8"),
        (">f8", "f8"),
        ("g", "f8"),
    ],
)
def test_dtype_follows_the_input(given_as, kept_as):
    b = am.SparseBelief(np.array([0, 1, 1], dtype=given_as))
    assert b.dtype == kept_as
    assert b.to_dense().tolist() == [0, 1, 1]


@pytest.mark.parametrize("given_as", ["f8", "f4", "i8"])
@dtypes
def test_dtype_asked_for_is_kept(given_as, dtype):
    b = am.SparseBelief(np.array([0, 1, 3], dtype=given_as), dtype=dtype)
    assert b.dtype == dtype
    assert b.to_dense().tolist() == [0, 1, 3]


@pytest.mark.parametrize(
    "form",
    [
        lambda p: p.tolist(),
        lambda p: tuple(map(tuple, p)),
        np.asfortranarray,
        lambda p: np.repeat(p, 2, axis=1)[:, ::2],
        lambda p: p[::-1][::-1],
        lambda p: p.astype(">f8"),
        pytest.param(np.matrix, marks=pytest.mark.filterwarnings("ignore:the matrix subclass")),
        sparse.csr_matrix,
        sparse.csc_array,
        sparse.coo_array,
        sparse.lil_matrix,
        am.SparseArray,
        am.SparseBelief,
    ],
    ids=lambda form: getattr(form, "__name__", None),
)
def test_every_form_of_input_is_the_same_belief(form):
    p = np.array([[0.0, 0.5, 0.0], [0.125, 0.0, 0.375]])
    assert content(am.SparseBelief(form(p))) == content(am.SparseBelief(p))


@pytest.mark.parametrize("form", [np.array, am.SparseArray, sparse.csr_array, sparse.coo_array])
def test_input_is_copied(form):
    p = form(np.array([[0.5, 0.0, 0.5]]))
    b = am.SparseBelief(p)
    before = bits(b)
    p *= 0.5
    assert bits(b) == before


def test_duplicates_of_a_scipy_matrix_add_up_and_stay_in_the_matrix():
    given = sparse.coo_matrix(([0.5, 0.25, 0.25], ([0, 0, 0], [1, 2, 2])), shape=(1, 3))
    assert am.SparseBelief(given).to_dense().tolist() == [[0, 0.5, 0.5]]
    assert given.data.tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    ("form", "part", "value"),
    [
        ("csr", "indices", 5),
        ("csr", "indices", -1),
        ("csc", "indices", 2**30),
        ("coo", "row", 2**30),
        ("coo", "col", 7),
    ],
)
def test_a_scipy_matrix_that_points_outside_itself_is_refused(form, part, value):
    given = sparse.csr_matrix(np.eye(2, 5)).asformat(form)
    getattr(given, part)[-1] = value
    with pytest.raises(ValueError, match=str(value)):
        am.SparseBelief(given)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_a_scipy_matrix_whose_rows_end_outside_is_refused(form):
    """In a child, since it used to crash."""
    script = (
        "import sys, numpy as np, scipy.sparse as sp, agentmem as am\n"
        "given = sp.csr_matrix(np.eye(2, 5)).asformat(sys.argv[1])\n"
        "given.indptr[-1] = 2**30\n"
        "try: am.SparseBelief(given)\n"
        "except ValueError: print('ValueError')"
    )
    child = subprocess.run(
        [sys.executable, "-c", script, form], capture_output=True, text=True, env=reference.same_environment()
    )
    assert (child.returncode, child.stdout.strip()) == (0, "ValueError"), child.stderr[-300:]


@dtypes
def test_from_indices_takes_any_order(dtype):
    b = am.SparseBelief.from_indices([7, 0, 3], np.array([1, 2, 3], dtype=dtype), (2, 5))
    b._check()
    assert b.dtype == dtype
    assert b.indices.tolist() == [0, 3, 7]
    assert b.to_dense().tolist() == [[2, 0, 0, 3, 0], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize("integers", ["i1", "u2", "i4", "u4", "i8", "u8"])
def test_from_indices_takes_every_kind_of_integer(integers):
    assert am.SparseBelief.from_indices(np.array([3, 1], dtype=integers), [1.0, 2.0], 5).indices.tolist() == [
        1,
        3,
    ]


def test_from_indices_drops_zeros():
    b = am.SparseBelief.from_indices([1, 2], [0.0, 1.0], 4)
    b._check()
    assert b.indices.tolist() == [2]


@dtypes
@pytest.mark.parametrize("shape", [1, 7, (7,), (2, 3), [2, 3], (1000, 1000), np.int64(5)])
def test_uniform(shape, dtype):
    b = am.SparseBelief.uniform(shape, dtype=dtype)
    b._check()
    assert b.storage == "uniform"
    assert b.dtype == dtype
    assert b.nnz == b.size == math.prod(np.atleast_1d(shape).tolist())
    assert b._lookup(np.array([0, b.size - 1])).tolist() == [dtype(1 / b.size)] * 2


@dtypes
@pytest.mark.parametrize(
    ("shape", "state", "flat"),
    [
        (5, 3, 3),
        ((2, 3), 4, 4),
        ((2, 3), (1, 1), 4),
        ((2, 3), [1, 1], 4),
        ((2, 3), np.array([1, 1]), 4),
        (5, np.int8(3), 3),
    ],
)
def test_point(shape, state, flat, dtype):
    b = am.SparseBelief.point(shape, state, dtype=dtype)
    b._check()
    assert b.dtype == dtype
    assert b.indices.tolist() == [flat]
    assert b.values.tolist() == [1]


NOT_MEASURES = {
    "NaN": ([0.5, math.nan], "nan at index 1"),
    "infinite": ([0.5, math.inf], "inf at index 1"),
    "minus infinite": ([-math.inf, 1.0], "-inf at index 0"),
    "negative": ([0.5, -0.25, 0.75], "-0.25 at index 1"),
    "all zero": ([0.0, 0.0], "without any mass"),
    "minus zero": ([-0.0], "without any mass"),
    "empty": ([], "without any mass"),
}


@pytest.mark.parametrize(("given_masses", "said"), NOT_MEASURES.values(), ids=NOT_MEASURES)
@pytest.mark.parametrize(
    "make",
    [
        am.SparseBelief,
        lambda p: am.SparseBelief(np.array(p, dtype=np.float32)),
        lambda p: am.SparseBelief.from_indices(range(len(p)), p, len(p)),
        lambda p: am.SparseBelief(am.SparseArray(p)),
    ],
    ids=["array", "float32", "from_indices", "SparseArray"],
)
def test_constructors_refuse_what_is_no_measure(make, given_masses, said):
    with pytest.raises(ValueError, match=said):
        make(given_masses)


BAD_CONSTRUCTIONS = {
    "complex": (lambda: am.SparseBelief([0.5, 1j]), TypeError, "complex"),
    "complex SparseArray": (lambda: am.SparseBelief(np.array([0.5, 1j])), TypeError, "complex"),
    "complex scipy": (lambda: am.SparseBelief(sparse.csr_array(np.array([[0.5, 1j]]))), TypeError, "complex"),
    "strings": (lambda: am.SparseBelief(["a", "b"]), ValueError, "'a'"),
    "a string": (lambda: am.SparseBelief("abc"), ValueError, "'abc'"),
    "None": (lambda: am.SparseBelief(None), (TypeError, ValueError), "(?i)none|nan"),
    "an object": (lambda: am.SparseBelief(object()), TypeError, "object"),
    "a dict": (lambda: am.SparseBelief({0: 1.0}), TypeError, "dict"),
    "ragged": (lambda: am.SparseBelief([[1.0], [1.0, 2.0]]), ValueError, "inhomogeneous"),
    "integer dtype": (lambda: am.SparseBelief([1.0], dtype=int), TypeError, "int64"),
    "half dtype": (lambda: am.SparseBelief([1.0], dtype=np.float16), TypeError, "float16"),
    "complex dtype": (lambda: am.SparseBelief([1.0], dtype=complex), TypeError, "complex128"),
    "index too large": (lambda: am.SparseBelief.from_indices([0, 5], [1, 1], 5), ValueError, "index 5 .*4"),
    "index negative": (lambda: am.SparseBelief.from_indices([-1], [1], 5), ValueError, "index -1"),
    "index twice": (
        lambda: am.SparseBelief.from_indices([3, 1, 3], [1, 1, 1], 5),
        ValueError,
        "index 3.*more than once",
    ),
    "index a float": (lambda: am.SparseBelief.from_indices([0.5], [1.0], 5), ValueError, "float64"),
    "index a bool": (lambda: am.SparseBelief.from_indices([True], [1.0], 5), ValueError, "bool"),
    "index a string": (lambda: am.SparseBelief.from_indices(["1"], [1.0], 5), ValueError, "U1"),
    "index huge": (
        lambda: am.SparseBelief.from_indices(np.array([2**64 - 1], "u8"), [1.0], 5),
        ValueError,
        "1844",
    ),
    "indices in 2-D": (lambda: am.SparseBelief.from_indices([[0]], [[1.0]], 5), ValueError, r"\(1, 1\)"),
    "fewer values": (lambda: am.SparseBelief.from_indices([0, 1], [1.0], 5), ValueError, r"\(2,\).*\(1,\)"),
    "one value": (lambda: am.SparseBelief.from_indices([0, 1], 1.0, 5), ValueError, r"\(2,\).*\(\)"),
    "complex values": (lambda: am.SparseBelief.from_indices([0], [1 + 1j], 5), TypeError, "complex128"),
    "string values": (lambda: am.SparseBelief.from_indices([0], ["1"], 5), (TypeError, ValueError), "U1"),
    "None values": (
        lambda: am.SparseBelief.from_indices([0], [None], 5),
        (TypeError, ValueError),
        "object|nan",
    ),
    "no values": (lambda: am.SparseBelief.from_indices([], [], 5), ValueError, "without any mass"),
    "integer dtype of values": (
        lambda: am.SparseBelief.from_indices([0], [1.5], 5, dtype=int),
        TypeError,
        "int64",
    ),
    "negative shape": (lambda: am.SparseBelief.from_indices([0], [1.0], -5), ValueError, "-5|-6"),
    "shape a float": (lambda: am.SparseBelief.from_indices([0], [1.0], 5.0), TypeError, "float"),
    "shape a string": (lambda: am.SparseBelief.from_indices([0], [1.0], "5"), TypeError, "str"),
    "shape None": (lambda: am.SparseBelief.from_indices([0], [1.0], None), TypeError, "None"),
    "shape huge": (lambda: am.SparseBelief.from_indices([0], [1.0], (2**40, 2**40)), ValueError, str(2**40)),
    "uniform over nothing": (lambda: am.SparseBelief.uniform(0), ValueError, "0"),
    "uniform over (3, 0)": (lambda: am.SparseBelief.uniform((3, 0)), ValueError, r"\(3, 0\)"),
    "uniform over -3": (lambda: am.SparseBelief.uniform(-3), ValueError, "-3"),
    "uniform over (-2, -3)": (lambda: am.SparseBelief.uniform((-2, -3)), ValueError, "-2"),
    "uniform over 2.7": (lambda: am.SparseBelief.uniform(2.7), TypeError, "float"),
    "uniform over (2.7,)": (lambda: am.SparseBelief.uniform((2.7,)), TypeError, "float"),
    "uniform over a string": (lambda: am.SparseBelief.uniform("12"), TypeError, "str"),
    "uniform over 2**80": (lambda: am.SparseBelief.uniform(2**80), ValueError, str(2**80)),
    "uniform of int": (lambda: am.SparseBelief.uniform(3, dtype=int), TypeError, "int64"),
    "point beyond": (lambda: am.SparseBelief.point(5, 5), ValueError, "index 5"),
    "point at -1": (lambda: am.SparseBelief.point(5, -1), ValueError, "index -1"),
    "point off an axis": (lambda: am.SparseBelief.point((2, 3), (0, 3)), ValueError, "invalid|3"),
    "point at 2.7": (lambda: am.SparseBelief.point(5, 2.7), TypeError, "float"),
    "point at (1.5, 0)": (lambda: am.SparseBelief.point((2, 3), (1.5, 0)), TypeError, "float|int"),
    "point at a string": (lambda: am.SparseBelief.point(5, "2"), TypeError, "str|int"),
    "point of int": (lambda: am.SparseBelief.point(5, 1, dtype=int), TypeError, "int64"),
}


@pytest.mark.parametrize(("make", "error", "said"), BAD_CONSTRUCTIONS.values(), ids=BAD_CONSTRUCTIONS)
def test_bad_construction_says_what_was_given(make, error, said):
    with pytest.raises(error, match=said):
        make()


# ---- update


@st.composite
def steps(draw):
    p = draw(masses())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    branching, seen = draw(st.sampled_from([1, 2, 5, len(p)])), draw(st.integers(1, 3))
    T, Z = reference.random_tables(rng, len(p), branching=branching, seen=seen)
    return p, T, Z, draw(st.integers(0, 1)), draw(st.sampled_from([None, 0, 1, 2]))


@fast
@given(steps(), any_dtype)
def test_an_exact_update_is_the_dense_filter(step, dtype):
    p, T, Z, action, observation = step
    model, b = am.Model(T, Z, dtype=dtype), am.SparseBelief(p.astype(dtype))
    stored_t, stored_z = reference.as_stored(T[action], dtype), reference.as_stored(Z, dtype)
    expected, log_evidence = reference.update(b.to_dense(), stored_t, stored_z, observation)
    if expected is None:
        with unchanged(b), pytest.raises(am.ImpossibleObservation):
            b.update(model, action, observation, prune=0.0)
        return
    assert b.update(model, action, observation, prune=0.0) == pytest.approx(log_evidence, abs=1e-11)
    assert_is(b, expected)
    assert b.pruned_mass == 0


@fast
@given(steps(), any_dtype, st.sampled_from([1e-13, 1e-12, 1e-6, 0.0371, 0.2113, 0.9777]))
def test_a_pruned_update_drops_what_is_below_the_share_of_the_largest(step, dtype, share):
    p, T, Z, action, observation = step
    model, b = am.Model(T, Z, dtype=dtype), am.SparseBelief(p.astype(dtype))
    stored_t, stored_z = reference.as_stored(T[action], dtype), reference.as_stored(Z, dtype)
    exact, log_evidence = reference.update(b.to_dense(), stored_t, stored_z, observation)
    if exact is None:
        return
    assert b.update(model, action, observation, prune=share) == pytest.approx(log_evidence, abs=1e-11)
    left, dropped = reference.prune(exact, relative=share)
    assert_is(b, left)
    assert b.pruned_mass == pytest.approx(dropped, abs=1e-14)


@dtypes
def test_prune_below_is_the_default_of_update(rings, dtype):
    told, set_before = (am.SparseBelief(scattered(np.random.default_rng(1), N, N, dtype)) for _ in range(2))
    set_before.prune_below = 0.4
    assert told.update(rings[dtype], 0, 1, prune=0.4) == set_before.update(rings[dtype], 0, 1)
    assert content(told) == content(set_before)
    assert told.pruned_mass == set_before.pruned_mass > 0


def test_the_default_share_is_1e12():
    b = am.SparseBelief([1.0, 1.01e-12, 0.99e-12])
    assert b.prune_below == 1e-12
    b.update(am.Model(np.eye(3), np.ones((3, 1))), 0, 0)
    assert b.indices.tolist() == [0, 1]


@pytest.mark.parametrize("bad", [-0.1, 1.0, 2, math.nan, math.inf, "x", None, [0.1], 1j])
def test_prune_below_refuses_what_is_no_share(bad):
    b = am.SparseBelief([0.5, 0.5])
    with pytest.raises((TypeError, ValueError)):
        b.prune_below = bad
    assert b.prune_below == 1e-12


@dtypes
@pytest.mark.parametrize("shape", [(60,), (3, 20), (20, 3), (2, 5, 6), (1, 60, 1)])
def test_any_shape_goes_in_c_order(shape, dtype):
    rng = np.random.default_rng(2)
    model = am.Model(*reference.random_tables(rng, 60), dtype=dtype)
    p = scattered(rng, 60, 20, dtype)
    flat, b = am.SparseBelief(p), am.SparseBelief(p.reshape(shape))
    for action, observation in ((0, 1), (1, None), (0, 2)):
        flat_evidence = flat.update(model, action, observation, on_impossible="predict")
        assert b.update(model, action, observation, on_impossible="predict") == flat_evidence
        assert b.shape == shape
        b._check()
        assert b.to_dense().tobytes() == flat.to_dense().tobytes()


def test_a_belief_without_axes_goes_with_a_model_of_one_state():
    b = am.SparseBelief(3.0)
    assert b.update(am.Model([[1.0]], [[0.25, 0.75]]), 0, 1) == pytest.approx(math.log(0.75))
    assert b.to_dense() == 1.0
    assert b.shape == ()


def test_no_observation_means_predict_only(rings, belief):
    dtype = belief.dtype.type
    T = reference.as_stored(reference.ring_tables(N)[0].toarray(), dtype)
    expected = reference.predict(belief.to_dense(), T)
    told, predicted = belief.copy(), belief.copy()
    assert told.update(rings[dtype], 0, None, prune=0.0) == 0.0
    assert predicted.predict(rings[dtype], 0) is None
    assert content(told) == content(predicted)
    assert_is(told, expected)


def test_predict_prunes_nothing():
    b = am.SparseBelief([1.0, 1e-200])
    b.prune_below = 0.5
    b.predict(am.Model(np.eye(2), np.ones((2, 1))), 0)
    assert b.values.tolist() == [1.0, 1e-200]


@pytest.mark.parametrize("action", [0, np.int8(0), np.uint64(0), np.intp(0), np.array(0), False])
def test_every_integer_is_an_action(rings, action):
    b = am.SparseBelief.point(N, 3)
    assert b.update(rings[np.float64], action, 3) == am.SparseBelief.point(N, 3).update(rings[np.float64], 0, 3)


# ---- evidence


@dtypes
@pytest.mark.parametrize("exponent", [-900, -60, -1, 1, 60, 900])
def test_a_belief_counts_as_normalised_whatever_its_sum(dtype, exponent):
    if dtype == np.float32:
        exponent //= 10
    rng = np.random.default_rng(3)
    model = am.Model(*reference.random_tables(rng, 50), dtype=dtype)
    p = scattered(rng, 50, 20, dtype)
    b, scaled = am.SparseBelief(p), am.SparseBelief(np.ldexp(p, exponent))
    assert b.update(model, 0, 0) == scaled.update(model, 0, 0)
    assert content(b) == content(scaled)


@pytest.mark.parametrize("total", [1e-3, 0.3, 7.0, 1e9])
def test_evidence_does_not_depend_on_the_sum(total):
    rng = np.random.default_rng(3)
    T, Z = reference.random_tables(rng, 50)
    p = scattered(rng, 50, 20)
    _, expected = reference.update(p, T[0], Z, 0)
    assert am.SparseBelief(p * total).update(am.Model(T, Z), 0, 0) == pytest.approx(expected, abs=1e-13)
    assert am.SparseBelief(p * total).correct(Z[:, 0]) == pytest.approx(reference.correct(p, Z[:, 0])[1], abs=1e-13)


@pytest.mark.parametrize(
    "look",
    [lambda b: b.update(am.Model(np.eye(2), np.eye(2)), 0, 1), lambda b: b.correct([0.0, 1.0])],
    ids=["update", "correct"],
)
def test_evidence_of_a_belief_that_spans_330_orders_of_magnitude(look):
    b = am.SparseBelief([1e300, 1e-30])
    assert look(b) == pytest.approx(math.log(1e-30) - math.log(1e300))
    assert b.to_dense().tolist() == [0.0, 1.0]


@pytest.mark.parametrize(("dtype", "tiny"), [(np.float64, 1e-300), (np.float32, 1e-40)])
@pytest.mark.parametrize("n_stored", [1, 7, 40])
def test_a_tiny_likelihood_is_not_impossible(dtype, tiny, n_stored):
    rng, n = np.random.default_rng(4), 40
    T = reference.random_rows(rng, n, n, 4)
    Z = np.zeros((n, 2))
    Z[:, 0] = tiny * rng.integers(1, 9, n)
    Z[:, 1] = 1 - Z[:, 0]
    b = am.SparseBelief(scattered(rng, n, n_stored, dtype))
    expected, log_evidence = reference.update(b.to_dense(), reference.as_stored(T, dtype), Z, 0)
    got = b.update(am.Model(T, Z, dtype=dtype), 0, 0, prune=0.0)
    assert got == pytest.approx(log_evidence, abs=1e-9 if dtype == np.float64 else 2e-6)
    assert_is(b, expected, rtol=1e-12 if dtype == np.float64 else 1e-6)


@pytest.mark.parametrize(
    ("dtype", "tiny", "error"),
    [
        (np.float64, 1e-300, 1e-12),
        (np.float32, 1e-30, 2e-6),
        (np.float32, 1e-40, 2e-5),
    ],  # subnormal: 16 bits are left
)
def test_a_tiny_likelihood_beside_a_large_one_is_not_impossible(dtype, tiny, error):
    Z = np.array([[0.5, 0.5], [tiny, 1 - tiny]])
    b = am.SparseBelief.point(2, 1, dtype=dtype)
    assert b.update(am.Model(np.eye(2), Z, dtype=dtype), 0, 0) == pytest.approx(math.log(tiny), abs=error)
    assert b.to_dense().tolist() == [0.0, 1.0]


@dtypes
@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e-5, 1.0, 1e5, 1e200, 1e300])
@pytest.mark.parametrize("kind", [np.array, am.SparseArray], ids=["dense", "sparse"])
def test_the_scale_of_a_likelihood_is_part_of_the_evidence(dtype, scale, kind):
    rng = np.random.default_rng(5)
    b, likelihood = am.SparseBelief(scattered(rng, 30, 10, dtype)), rng.random(30)
    expected, log_evidence = reference.correct(b.to_dense(), likelihood)
    assert b.correct(kind(likelihood * scale)) == pytest.approx(log_evidence + math.log(scale), rel=1e-13, abs=1e-12)
    assert_is(b, expected)


@dtypes
@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1e-45, 1e-40])
def test_a_subnormal_likelihood_is_not_impossible(dtype, tiny):
    b = am.SparseBelief(np.array([0.25, 0.75], dtype=dtype))
    assert b.correct([tiny, 0.0]) == pytest.approx(math.log(tiny) + math.log(0.25), rel=1e-12)
    assert b.to_dense().tolist() == [1.0, 0.0]


# ---- correct


@fast
@given(masses(), st.data(), any_dtype)
def test_correct_multiplies_and_normalises(p, data, dtype):
    likelihood = np.array(data.draw(st.lists(st.sampled_from(reference.NASTY), min_size=len(p), max_size=len(p))))
    b = am.SparseBelief(p.astype(dtype))
    expected, log_evidence = reference.correct(b.to_dense(), likelihood)
    sparsely = b.copy()
    if expected is None:
        for twin, given_as in ((b, likelihood), (sparsely, am.SparseArray(likelihood))):
            with unchanged(twin), pytest.raises(am.ImpossibleObservation):
                twin.correct(given_as)
        return
    assert b.correct(likelihood) == pytest.approx(log_evidence, abs=1e-11)
    assert_is(b, expected)
    assert sparsely.correct(am.SparseArray(likelihood)) == pytest.approx(log_evidence, abs=1e-11)
    assert content(sparsely) == content(b)


@pytest.mark.parametrize("likelihood_dtype", ["f8", "f4", "f2", ">f8", "i8", "u1", "?", "g"])
def test_a_likelihood_may_have_any_real_dtype(belief, likelihood_dtype):
    likelihood = (np.arange(N) % 3).astype(likelihood_dtype)
    expected, log_evidence = reference.correct(belief.to_dense(), likelihood.astype(float))
    assert belief.correct(likelihood) == pytest.approx(log_evidence)
    assert_is(belief, expected)


@pytest.mark.parametrize("kind", [np.array, am.SparseArray, am.SparseBelief, np.ndarray.tolist])
@pytest.mark.parametrize("shape", [(12,), (3, 4)])
def test_a_likelihood_has_the_shape_of_the_belief_or_is_flat(kind, shape):
    p, likelihood = np.arange(12.0).reshape(3, 4), np.arange(12.0)[::-1].reshape(shape)
    b = am.SparseBelief(p)
    b.correct(kind(likelihood))
    assert_is(b, reference.normalized(p * likelihood.reshape(3, 4)))


def test_a_belief_corrects_itself():
    b = am.SparseBelief([0.25, 0.75])
    assert b.correct(b) == pytest.approx(math.log(0.625))
    assert_is(b, np.array([0.1, 0.9]))


def test_correct_with_strided_and_read_only_input_leaves_it_alone():
    likelihood = np.arange(2.0 * N)
    likelihood.flags.writeable = False
    b = am.SparseBelief.uniform(N)
    b.correct(likelihood[::-2])
    assert_is(b, reference.normalized(np.arange(2.0 * N)[::-2]))
    assert likelihood.tolist() == np.arange(2.0 * N).tolist()


# ---- impossible observations


@pytest.fixture
def two_rooms():
    """Two rooms of four states that never meet; the sensor tells which; its reading 2 never comes."""
    T = np.kron(np.eye(2), np.full((4, 4), 0.25))
    Z = np.repeat([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], 4, axis=0)
    return am.Model(T, Z)


def test_impossible_raises_and_names_action_and_observation(two_rooms):
    b = am.SparseBelief.point(8, 1)
    with (
        unchanged(b),
        pytest.raises(am.ImpossibleObservation, match=r"observation 1 .*action 0 .*evidence 0"),
    ):
        b.update(two_rooms, 0, 1)


def test_impossible_is_a_value_error():
    assert issubclass(am.ImpossibleObservation, ValueError)


def test_impossible_may_keep_the_predicted_belief(two_rooms):
    b, predicted = am.SparseBelief.point(8, 1), am.SparseBelief.point(8, 1)
    assert b.update(two_rooms, 0, 1, on_impossible="predict") == -math.inf
    predicted.update(two_rooms, 0, None)
    assert bits(b) == bits(predicted)


def test_keeping_the_predicted_belief_prunes_as_asked():
    T = [[0.9, 0.1], [0.0, 1.0]]
    b = am.SparseBelief.point(2, 0)
    b.update(am.Model(T, [[1.0, 0.0], [1.0, 0.0]]), 0, 1, prune=0.5, on_impossible="predict")
    assert b.to_dense().tolist() == [1.0, 0.0]
    assert b.pruned_mass == pytest.approx(0.1)


def test_impossible_may_restart_from_the_likelihood(two_rooms):
    b = am.SparseBelief.point(8, 1)
    assert b.update(two_rooms, 0, 1, on_impossible="likelihood") == -math.inf
    assert_is(b, np.repeat([0.0, 0.25], 4))


@pytest.mark.parametrize("mode", ["raise", "likelihood"])
def test_no_restart_from_a_likelihood_that_is_zero(two_rooms, mode):
    b = am.SparseBelief.point(8, 1)
    with unchanged(b), pytest.raises(am.ImpossibleObservation, match="observation 2"):
        b.update(two_rooms, 0, 2, on_impossible=mode)


@pytest.mark.parametrize("mode", ["raise", "predict", "likelihood"])
def test_the_mode_does_not_matter_where_the_observation_is_possible(two_rooms, mode):
    b, plain = am.SparseBelief.uniform(8), am.SparseBelief.uniform(8)
    assert b.update(two_rooms, 0, 1, on_impossible=mode) == plain.update(two_rooms, 0, 1)
    assert bits(b) == bits(plain)


@dtypes
@pytest.mark.parametrize("kind", [np.array, am.SparseArray])
def test_correct_by_the_impossible(dtype, kind):
    likelihood = kind(np.array([0.0, 0.0, 1e-300, 3e-300]))
    start = am.SparseBelief(np.array([1.0, 3.0, 0.0, 0.0], dtype=dtype))
    raised, kept, restarted = start.copy(), start.copy(), start.copy()
    with unchanged(raised), pytest.raises(am.ImpossibleObservation, match="evidence 0"):
        raised.correct(likelihood)
    assert kept.correct(likelihood, on_impossible="predict") == -math.inf
    assert_is(kept, np.array([0.25, 0.75, 0.0, 0.0]))
    assert restarted.correct(likelihood, on_impossible="likelihood") == -math.inf
    assert_is(restarted, np.array([0.0, 0.0, 0.25, 0.75]))


@pytest.mark.parametrize("mode", ["raise", "likelihood"])
def test_correct_by_nothing_raises(mode):
    b = am.SparseBelief([0.5, 0.5])
    with unchanged(b), pytest.raises(am.ImpossibleObservation):
        b.correct([0.0, 0.0], on_impossible=mode)


# ---- normalize


@fast
@given(masses(), any_dtype, st.sampled_from([1.0, 0.25, 1e-10, 1e10]))
def test_normalize_returns_what_the_belief_summed_to(p, dtype, scale):
    b = am.SparseBelief((p * scale).astype(dtype))
    total = b.to_dense().astype(np.float64).sum()
    expected = reference.normalized(b.to_dense())
    assert b.normalize() == pytest.approx(total, rel=1e-13)
    assert_is(b, expected)


def test_a_uniform_belief_stays_uniform_when_normalised():
    b = am.SparseBelief.uniform(1000)
    b *= 3.0
    assert b.normalize() == pytest.approx(3.0)
    assert b.storage == "uniform"
    assert b.nbytes < 256


def test_normalize_again_changes_little(belief):
    belief.normalize()
    once = belief.to_dense()
    assert belief.normalize() == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(belief.to_dense(), once, rtol=1e-6)


@pytest.mark.parametrize("verb", ["normalize", "prune", "update", "correct"])
@pytest.mark.parametrize("p", [[1.7e308, 1.6e308], [1.7e308, 1.7e308]], ids=["two", "uniform"])
def test_a_sum_that_overflows_is_refused(verb, p):
    b = am.SparseBelief(p)
    model = am.Model(np.eye(2), np.ones((2, 1)))
    calls = {
        "normalize": b.normalize,
        "prune": b.prune,
        "update": lambda: b.update(model, 0, 0),
        "correct": lambda: b.correct([1.0, 1.0]),
    }
    with unchanged(b), pytest.raises(ValueError, match="overflows"):
        calls[verb]()


def test_a_float32_belief_may_sum_to_more_than_float32_holds():
    b = am.SparseBelief(np.array([3e38, 3e38], dtype=np.float32))
    assert b.normalize() == pytest.approx(6e38)
    assert b.to_dense().tolist() == [0.5, 0.5]


# ---- prune

P = np.array([0.0, 0.125, 0.25, 0.0, 0.125, 0.0625, 0.25, 0.0625, 0.125])  # exact in binary, sums to 1, full of ties

RULES = [
    ({"relative": 0.0}, [1, 2, 4, 5, 6, 7, 8]),
    ({"relative": 0.25}, [1, 2, 4, 5, 6, 7, 8]),  # at the threshold: stays
    ({"relative": 0.2500001}, [1, 2, 4, 6, 8]),
    ({"relative": 0.5}, [1, 2, 4, 6, 8]),
    ({"relative": 1.0}, [2, 6]),
    ({"absolute": 0.0}, [1, 2, 4, 5, 6, 7, 8]),
    ({"absolute": 0.0625}, [1, 2, 4, 5, 6, 7, 8]),
    ({"absolute": 0.125}, [1, 2, 4, 6, 8]),
    ({"absolute": 0.25}, [2, 6]),
    ({"mass": 0.0}, [1, 2, 4, 5, 6, 7, 8]),
    ({"mass": 0.0625}, [1, 2, 4, 5, 6, 7, 8]),  # the sum has to stay below
    ({"mass": 0.0626}, [1, 2, 4, 5, 6, 8]),  # of equals the highest index goes first
    ({"mass": 0.126}, [1, 2, 4, 6, 8]),
    ({"mass": 0.25}, [1, 2, 4, 6, 8]),
    ({"mass": 0.2501}, [1, 2, 4, 6]),
    ({"mass": 1.0}, [2]),
    ({"max_states": 1}, [2]),  # of equals the lowest index stays
    ({"max_states": 2}, [2, 6]),
    ({"max_states": 3}, [1, 2, 6]),
    ({"max_states": 6}, [1, 2, 4, 5, 6, 8]),
    ({"max_states": 7}, [1, 2, 4, 5, 6, 7, 8]),
    ({"max_states": 10**9}, [1, 2, 4, 5, 6, 7, 8]),
    ({"relative": 0.5, "max_states": 4}, [1, 2, 4, 6]),
    ({"relative": 1.0, "max_states": 4}, [2, 6]),
    ({"absolute": 0.125, "mass": 0.2501}, [1, 2, 4, 6]),
    ({"absolute": 0.01, "relative": 0.01, "mass": 0.01, "max_states": 3}, [1, 2, 6]),
]


@dtypes
@pytest.mark.parametrize(("rules", "left"), RULES, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_each_rule_and_its_ties(rules, left, dtype):
    b = am.SparseBelief(P.astype(dtype))
    expected, dropped = reference.prune(P, **rules)
    assert np.flatnonzero(expected).tolist() == left  # the reference says the same
    assert b.prune(**rules) == pytest.approx(dropped, abs=1e-15)
    assert b.indices.tolist() == left
    assert b.pruned_mass == pytest.approx(dropped, abs=1e-15)
    assert_is(b, expected)


shares = st.sampled_from([0.0, 1e-13, 1e-8, 0.0371, 0.2113, 0.617])  # not where masses() may have a ratio


@fast
@given(masses(), any_dtype, st.fixed_dictionaries({}, optional={
    "relative": shares, "absolute": shares, "mass": shares, "max_states": st.integers(1, 80),
}))  # fmt: skip
@example(np.array([1e300, 1e-30, 1e-40]), np.float64, {"max_states": 2})
@example(np.array([3e38, 1e-30, 1e-40]), np.float32, {"max_states": 2})
def test_prune_is_the_slow_one(p, dtype, rules):
    b = am.SparseBelief(p.astype(dtype))
    asked = rules or {"relative": b.prune_below}
    expected, dropped = reference.prune(b.to_dense(), **asked)
    if expected is None:
        with unchanged(b), pytest.raises(ValueError, match="every state"):
            b.prune(**rules)
        return
    assert b.prune(**rules) == pytest.approx(dropped, abs=1e-14)
    assert_is(b, expected)


def test_without_a_rule_prune_takes_prune_below():
    b = am.SparseBelief([0.6, 0.3, 0.1])
    b.prune_below = 0.4
    assert b.prune() == pytest.approx(0.1)
    assert b.indices.tolist() == [0, 1]


@pytest.mark.parametrize("rules", [{}, {"max_states": 5}, {"absolute": 0.1}, {"mass": 0.1}], ids=str)
def test_what_is_left_is_normalised_even_if_nothing_goes(rules):
    b = am.SparseBelief([2.0, 6.0])
    assert b.prune(**rules) == 0.0
    assert b.to_dense().tolist() == [0.25, 0.75]


def test_pruned_mass_accumulates(rings):
    b = am.SparseBelief(scattered(np.random.default_rng(7), N, N))
    assert b.pruned_mass == 0.0
    dropped = b.prune(max_states=500) + b.prune(relative=0.5) + b.prune(mass=0.2)
    assert b.pruned_mass == pytest.approx(dropped)
    b.update(rings[np.float64], 0, 1, prune=0.5)
    assert b.pruned_mass > dropped


def test_pruning_every_state_raises():
    b = am.SparseBelief.uniform(10)
    with unchanged(b), pytest.raises(ValueError, match=r"every state.*0\.1\b"):
        b.prune(absolute=0.2)


# ---- queries


@fast
@given(masses(), any_dtype)
def test_entropy(p, dtype):
    b = am.SparseBelief(p.astype(dtype))
    assert b.entropy() == pytest.approx(reference.entropy(b.to_dense()), abs=1e-11)


@pytest.mark.parametrize("n", [1, 2, 1000, 10**9])
def test_entropy_of_uniform_is_log_n(n):
    assert am.SparseBelief.uniform(n).entropy() == pytest.approx(math.log(n))


@fast
@given(masses(), st.data(), any_dtype, any_dtype)
def test_divergences(p, data, dtype, other_dtype):
    q = data.draw(masses(min_size=len(p), max_size=len(p)))
    b, other = am.SparseBelief(p.astype(dtype)), am.SparseBelief(q.astype(other_dtype))
    p, q = b.to_dense(), other.to_dense()
    for given_as in (other, q, q.tolist(), am.SparseArray(q)):
        assert b.kl_divergence(given_as) == pytest.approx(reference.kl_divergence(p, q), abs=1e-11)
        assert b.total_variation(given_as) == pytest.approx(reference.total_variation(p, q), abs=1e-11)


def test_divergence_from_itself_is_zero(belief):
    assert belief.kl_divergence(belief) == pytest.approx(0.0, abs=1e-14)
    assert belief.total_variation(belief) == pytest.approx(0.0, abs=1e-14)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("p", "q"), [([0.5, 0.5], [1.0, 1e-310]), ([1e-310, 1.0], [0.5, 0.5]), ([0.0, 1.0], [1.0, 1e-323])]
)
def test_kl_divergence_of_the_nearly_impossible_is_finite(p, q):
    expected = reference.kl_divergence(np.array(p), np.array(q))
    assert math.isfinite(expected)
    assert am.SparseBelief(p).kl_divergence(q) == pytest.approx(expected)


@pytest.mark.filterwarnings("error")
def test_kl_divergence_from_what_rules_it_out_is_infinite():
    assert am.SparseBelief([0.5, 0.5]).kl_divergence([1.0, 0.0]) == math.inf
    assert am.SparseBelief([1.0, 0.0]).kl_divergence([0.5, 0.5]) == pytest.approx(math.log(2))


@fast
@given(masses(), any_dtype, st.integers(0, 80))
def test_mode_and_top(p, dtype, k):
    b = am.SparseBelief(p.astype(dtype))
    assert b.mode() == reference.mode(b.to_dense())
    indices, probabilities = b.top(k)
    expected_indices, expected = reference.top(b.to_dense(), k)
    assert indices.tolist() == expected_indices.tolist()
    assert probabilities.dtype == dtype
    np.testing.assert_allclose(probabilities, expected, rtol=2e-7)


def test_top_and_prune_rank_the_masses_not_their_rounded_shares():
    """Two masses one rounding apart may be the same share of the whole; the larger one still comes first."""
    p = np.array(
        [0.0299, 0.8215, 2.108, 0.8298039852781027, 0.8298039852781028, 1.0951, 0.829803985278103, 0.2359, 1.9578]
    )
    for rest in np.linspace(0.0, 0.8, 50):
        b = am.SparseBelief(np.append(p, rest))
        assert b.top(6)[0].tolist() == [2, 8, 5, 6, 4, 3]
        b.prune(max_states=4)
        assert b.indices.tolist() == [2, 5, 6, 8]


def test_queries_of_uniform_take_the_lowest_index():
    b = am.SparseBelief.uniform((3, 4))
    assert b.mode() == 0
    assert b.top(3)[0].tolist() == [0, 1, 2]


@dtypes
@pytest.mark.parametrize(
    ("shape", "f_shape"),
    [((12,), (12,)), ((12,), (12, 3)), ((3, 4), (3, 4)), ((3, 4), (12,)), ((3, 4), (3, 4, 2))],
)
def test_expectation(shape, f_shape, dtype):
    rng = np.random.default_rng(8)
    b, f = am.SparseBelief(scattered(rng, 12, 7, dtype).reshape(shape)), rng.normal(size=f_shape)
    p = reference.normalized(b.to_dense()).ravel()
    expected = sum(p[state] * f.reshape(12, -1)[state] for state in range(12))
    np.testing.assert_allclose(np.ravel(b.expectation(f)), expected)


@pytest.mark.parametrize(("f_shape", "mean_shape"), [((6,), ()), ((6, 4, 5), (4, 5)), ((2, 3), ()), ((2, 3, 4), (4,))])
def test_expectation_has_the_axes_after_the_states(f_shape, mean_shape):
    assert np.shape(am.SparseBelief.uniform((2, 3)).expectation(np.ones(f_shape))) == mean_shape


def test_expectation_does_not_look_at_impossible_states():
    assert am.SparseBelief([0.0, 1.0]).expectation([math.nan, 3.0]) == 3.0


@fast
@given(st.data(), any_dtype)
def test_marginal(data, dtype):
    shape = data.draw(st.sampled_from([(7,), (2, 3), (3, 1, 4), (2, 2, 2, 3)]))
    p = data.draw(masses(min_size=math.prod(shape), max_size=math.prod(shape))).astype(dtype).reshape(shape)
    b = am.SparseBelief(p)
    axes = data.draw(st.permutations(range(len(shape))))[: data.draw(st.integers(1, len(shape)))]
    assert_is(b.marginal(axes), reference.marginal(b.to_dense(), axes))
    assert content(b.marginal([a - len(shape) for a in axes])) == content(b.marginal(axes))
    assert content(b.marginal(axes[0])) == content(b.marginal(axes[:1]))


@dtypes
def test_samples_follow_the_belief(dtype):
    p = np.array([0.0, 0.5, 0.0, 0.3, 0.2, 0.0])
    drawn = am.SparseBelief(p.astype(dtype)).sample(20_000, rng=1)
    counts = np.bincount(drawn, minlength=6)
    assert counts[p == 0].sum() == 0
    assert np.abs(counts / 20_000 - p).max() < 0.015  # five standard deviations


def test_samples_of_each_storage_stay_in_the_support(belief):
    drawn = belief.sample(1000, rng=2)
    assert np.isin(drawn, belief.indices).all()
    assert len(np.unique(drawn)) > min(4, belief.nnz - 1)


def test_sample_has_the_form_of_size():
    b = am.SparseBelief([[0.5, 0.0], [0.0, 0.5]])
    assert type(b.sample(rng=0)) is int
    assert b.sample(5, rng=0).shape == (5,)
    assert b.sample((2, 3), rng=0).shape == (2, 3)
    assert b.sample(0, rng=0).shape == (0,)


def test_sample_with_the_same_generator_is_the_same():
    b = am.SparseBelief(scattered(np.random.default_rng(9), 100, 30))
    assert b.sample(10, rng=3).tolist() == b.sample(10, rng=np.random.default_rng(3)).tolist()


def test_queries_leave_the_belief_alone(belief):
    with unchanged(belief):
        belief.entropy(), belief.mode(), belief.top(3), belief.sample(3, rng=0), belief.marginal(0)
        belief.expectation(np.arange(N)), belief.kl_divergence(belief), belief.total_variation(np.ones(N))


@pytest.mark.parametrize("p", [[2.0, 6.0], [0.25, 0.75]])
def test_queries_count_the_belief_as_normalised(p):
    b = am.SparseBelief(p)
    assert b.entropy() == pytest.approx(reference.entropy([0.25, 0.75]))
    assert b.top(1)[1].tolist() == [0.75]
    assert b.expectation([0.0, 1.0]) == 0.75
    assert b.marginal(0).to_dense().tolist() == [0.25, 0.75]
    assert b.kl_divergence([3.0, 9.0]) == pytest.approx(0.0, abs=1e-15)


# ---- equal bits, whatever the way


def verbs(model, n_more=0):
    """Verbs and queries as functions of a belief of N states and `n_more` that never play a part."""
    rng = np.random.default_rng(10)
    likelihood = np.pad(rng.random(N), (0, n_more))
    sparse_likelihood = am.SparseArray(np.pad(scattered(rng, N, N // 2), (0, n_more)))
    return {
        "update": lambda b: b.update(model, 0, 1, prune=0.0),
        "pruned update": lambda b: b.update(model, 0, 1, prune=0.1),
        "predict": lambda b: b.predict(model, 0),
        "correct": lambda b: b.correct(likelihood),
        "correct sparsely": lambda b: b.correct(sparse_likelihood),
        "normalize": lambda b: b.normalize(),
        "prune": lambda b: b.prune(relative=0.6, max_states=400),
        "kl_divergence": lambda b: b.kl_divergence(likelihood),
        "total_variation": lambda b: b.total_variation(likelihood),
        "expectation": lambda b: b.expectation(likelihood),
        "mode": lambda b: b.mode(),
        "top": lambda b: [x.tolist() for x in b.top(17)],
        "sample": lambda b: b.sample(9, rng=1).tolist(),
    }


def entries(b):
    return b.indices.tolist(), b.values.tobytes(), b.pruned_mass


@dtypes
@pytest.mark.parametrize("verb", verbs(None))
def test_bits_do_not_depend_on_the_storage(rings, dtype, verb):
    call = verbs(rings[dtype])[verb]
    for x, y in reference.twins(am.SparseBelief, dtype):
        assert content(x) == content(y)
        assert call(x) == call(y)
        assert content(x) == content(y)


@pytest.fixture(scope="module")
def roomy_rings():
    """The ring of N states among 20,000 others."""
    n_more = 20_000
    T, Z = reference.ring_tables(N)
    apart = [sparse.block_diag([T, sparse.eye(n_more)], format="csr")]
    return {dtype: am.Model(apart, np.vstack([Z, np.tile(Z[0], (n_more, 1))]), dtype=dtype) for dtype in DTYPES}


@pytest.mark.parametrize("verb", verbs(None))
def test_bits_do_not_depend_on_the_room_around_them(rings, roomy_rings, belief, verb):
    """Among many states that play no part every belief is stored in pairs, and its steps are marked."""
    dtype, n_more = belief.dtype.type, 20_000
    roomy = am.SparseBelief.from_indices(belief.indices, belief.values, N + n_more)
    assert roomy.storage == "pairs"
    in_little, in_much = verbs(rings[dtype])[verb], verbs(roomy_rings[dtype], n_more)[verb]
    assert in_little(belief) == in_much(roomy)
    assert entries(belief) == entries(roomy)


@dtypes
@pytest.mark.parametrize("n_stored", [1, 2, 7, 50, 100, 199, 200])
@pytest.mark.parametrize("branching", [1, 3, 20, 200])
@pytest.mark.parametrize("n_observations", [3, 20], ids=["dense likelihoods", "sparse likelihoods"])
def test_bits_do_not_depend_on_the_way_through_the_step(dtype, n_stored, branching, n_observations):
    """Among 20,000 states that play no part: marked for unmarked, pairs for dense, CSR for a dense table."""
    rng, n, n_more = np.random.default_rng(n_stored * 7 + branching), 200, 20_000
    T, Z = reference.random_tables(rng, n, n_actions=1, branching=branching, n_observations=n_observations, seen=3)
    small = am.Model(T, Z, dtype=dtype)
    T_among, Z_among = sparse.block_diag([T[0], sparse.eye(n_more)], format="csr"), np.tile(Z[0], (n_more, 1))
    large = am.Model(T_among, np.vstack([Z, Z_among]), dtype=dtype)
    start = am.SparseBelief(scattered(rng, n, n_stored, dtype))
    for observation in (None, *range(n_observations)):
        x = start.copy()
        y = am.SparseBelief.from_indices(x.indices, x.values, n + n_more)
        for seen in (observation, None, observation):
            evidence = x.update(small, 0, seen, on_impossible="predict")
            assert evidence == y.update(large, 0, seen, on_impossible="predict")
            assert entries(x) == entries(y)


@dtypes
def test_update_is_predict_then_correct(dtype):
    rng, n = np.random.default_rng(11), 300
    Z = np.eye(30)[np.arange(n) % 30]
    model = am.Model(reference.random_rows(rng, n, n, 4), Z, dtype=dtype)
    at_once = am.SparseBelief(scattered(rng, n, 40, dtype))
    in_two = at_once.copy()
    log_evidence = at_once.update(model, 0, 7, prune=0.0)
    in_two.predict(model, 0)
    assert in_two.correct(Z[:, 7]) == pytest.approx(log_evidence, abs=1e-13 if dtype == np.float64 else 1e-6)
    assert_is(at_once, in_two.to_dense())


def test_a_copy_goes_the_same_way(rings, belief):
    model, other = rings[belief.dtype.type], belief.copy()
    for observation in (0, None, 3):
        assert belief.update(model, 0, observation) == other.update(model, 0, observation)
        assert bits(belief) == bits(other)


# ---- bytes along the way


@dtypes
@pytest.mark.parametrize("n", [1, 2, 63, 64, 65, 128, 640, 5000])
@pytest.mark.parametrize("start", ["point", "uniform"])
def test_fifty_steps_stay_near_the_smallest_payload_and_near_the_dense_filter(n, start, dtype):
    T, Z = reference.random_tables(np.random.default_rng(n), n, branching=2, seen=3) if n < 700 else (None, None)
    if T is None:
        T, Z = reference.ring_tables(n)
        T = [T, T]
    model = am.Model(T, Z, dtype=dtype)
    b = am.SparseBelief.point(n, n // 2, dtype=dtype) if start == "point" else am.SparseBelief.uniform(n, dtype=dtype)
    dense = b.to_dense().astype(np.float64)
    rng = np.random.default_rng(12)
    for _ in range(50):
        action = int(rng.integers(2))
        predicted = reference.normalized(np.asarray(dense @ T[action]).ravel())
        observation = int(np.argmax(predicted @ Z))
        assert b.update(model, action, observation) == pytest.approx(math.log(predicted @ Z[:, observation]), abs=1e-5)
        dense = reference.normalized(predicted * Z[:, observation])
        b._check()
        assert reference.payload(b) <= 1.05 * reference.smallest_payload(b) + 8
        assert b.nbytes <= dense.size * b.itemsize + 256
    assert np.abs(b.to_dense() - dense).sum() < (1e-9 if dtype == np.float64 else 2e-6)


# ---- who owns what


def test_values_and_indices_stay_valid_and_unchanged(rings, belief):
    values, indices = belief.values, belief.indices
    before = values.tobytes(), indices.tobytes()
    for _ in range(5):
        belief.update(rings[belief.dtype.type], 0, 1)
    del belief
    gc.collect()
    assert (values.tobytes(), indices.tobytes()) == before


@pytest.mark.parametrize("name", ["values", "indices"])
def test_values_and_indices_cannot_be_written(belief, name):
    with unchanged(belief), pytest.raises(ValueError, match="read-only"):
        getattr(belief, name)[0] = 1


def test_to_dense_is_the_callers_own(belief):
    cells = belief.to_dense()
    with unchanged(belief):
        cells[:] = 7


@pytest.mark.parametrize(
    "duplicate",
    [lambda b: b.copy(), copy.copy, copy.deepcopy]
    + [
        lambda b, protocol=protocol: pickle.loads(pickle.dumps(b, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    ],
    ids=["copy", "copy.copy", "deepcopy"] + [f"pickle {k}" for k in range(pickle.HIGHEST_PROTOCOL + 1)],
)
def test_duplicates_are_equal_and_independent(rings, belief, duplicate):
    belief.prune_below, belief.pruned_mass = 1e-5, 0.125
    other = duplicate(belief)
    assert bits(other) == bits(belief)
    other._check()
    with unchanged(belief):
        other.update(rings[belief.dtype.type], 0, 1)
        other.prune_below = 0.25
    assert other.prune_below == 0.25


def test_pruned_mass_can_be_reset():
    b = am.SparseBelief([0.9, 0.1])
    b.prune(max_states=1)
    b.pruned_mass = 0.0
    assert b.copy().pruned_mass == 0.0


def test_inputs_of_verbs_stay_as_they_are(rings, belief):
    likelihood = np.arange(N, dtype=np.float64)
    sparse_likelihood = am.SparseArray(likelihood)
    q = am.SparseBelief(likelihood)
    before = likelihood.tobytes(), content(sparse_likelihood), bits(q)
    likelihood.flags.writeable = False
    belief.kl_divergence(q), belief.total_variation(likelihood), belief.expectation(likelihood)
    belief.correct(sparse_likelihood, on_impossible="likelihood")
    belief.correct(likelihood, on_impossible="likelihood")
    assert (likelihood.tobytes(), content(sparse_likelihood), bits(q)) == before


# ---- bad input: a clear error, and nothing changed

BAD_ACTIONS = {
    "1": (1, ValueError, "action 1 .*0 to 0"),
    "-1": (-1, ValueError, "action -1 "),
    "2**70": (2**70, ValueError, f"action {2**70}"),
    "-2**70": (-(2**70), ValueError, f"action -{2**70}"),
    "uint64": (np.uint64(2**63), ValueError, str(2**63)),
    "0.0": (0.0, TypeError, "action 0.0 .*float"),
    "NaN": (math.nan, TypeError, "action nan"),
    "float64": (np.float64(0), TypeError, "action .*float64"),
    "string": ("0", TypeError, "action '0' .*str"),
    "None": (None, TypeError, "action None"),
    "list": ([0], TypeError, r"action \[0\] .*list"),
    "array": (np.array([0]), TypeError, "action .*ndarray"),
    "bool array": (np.array([True]), TypeError, "action .*ndarray"),
    "complex": (0j, TypeError, "action 0j"),
}
NO_MODELS = {"None": None, "str": "m", "SparseBelief": am.SparseBelief([1.0]), "type": am.Model}


@pytest.mark.parametrize(("action", "error", "said"), BAD_ACTIONS.values(), ids=BAD_ACTIONS)
@pytest.mark.parametrize("observation", [0, None])
def test_a_bad_action_is_named_and_changes_nothing(rings, belief, action, observation, error, said):
    model = rings[belief.dtype.type]
    with unchanged(belief), pytest.raises(error, match=said):
        belief.update(model, action, observation)
    with unchanged(belief), pytest.raises(error, match=said):
        belief.predict(model, action)


@pytest.mark.parametrize(("said", "model"), NO_MODELS.items(), ids=NO_MODELS)
def test_what_is_no_model_is_named_and_changes_nothing(belief, model, said):
    with unchanged(belief), pytest.raises(TypeError, match=said):
        belief.update(model, 0, 0)
    with unchanged(belief), pytest.raises(TypeError, match=said):
        belief.predict(model, 0)


def ones_but(value):
    return np.where(np.arange(N) == 3, value, 1)


BAD_CALLS = {
    "observation 4": (lambda b, m: b.update(m, 0, 4), ValueError, "observation 4 .*0 to 3"),
    "observation -1": (lambda b, m: b.update(m, 0, -1), ValueError, "observation -1 "),
    "observation 2**70": (lambda b, m: b.update(m, 0, 2**70), ValueError, f"observation {2**70}"),
    "observation 0.0": (lambda b, m: b.update(m, 0, 0.0), TypeError, "observation 0.0 .*float"),
    "observation '0'": (lambda b, m: b.update(m, 0, "0"), TypeError, "observation '0' .*str"),
    "observation [0]": (lambda b, m: b.update(m, 0, [0]), TypeError, r"observation \[0\] .*list"),
    "observation array": (lambda b, m: b.update(m, 0, np.array([True])), TypeError, "observation .*ndarray"),
    "bad action without observation": (lambda b, m: b.update(m, 5, None), ValueError, "action 5"),
    "prune -0.1": (lambda b, m: b.update(m, 0, 0, prune=-0.1), ValueError, r"prune=-0\.1"),
    "prune 1": (lambda b, m: b.update(m, 0, 0, prune=1), ValueError, "prune=1"),
    "prune NaN": (lambda b, m: b.update(m, 0, 0, prune=math.nan), ValueError, "prune=nan"),
    "prune inf": (lambda b, m: b.update(m, 0, 0, prune=math.inf), ValueError, "prune=inf"),
    "prune 'x'": (lambda b, m: b.update(m, 0, 0, prune="x"), TypeError, "prune='x'"),
    "prune array": (lambda b, m: b.update(m, 0, 0, prune=[0.1]), TypeError, r"prune=\[0\.1\]"),
    "on_impossible 'no'": (lambda b, m: b.update(m, 0, 0, on_impossible="no"), ValueError, "'no'"),
    "on_impossible ''": (lambda b, m: b.update(m, 0, 0, on_impossible=""), ValueError, "''"),
    "on_impossible None": (lambda b, m: b.update(m, 0, 0, on_impossible=None), TypeError, "None"),
    "on_impossible 3": (lambda b, m: b.update(m, 0, 0, on_impossible=3), TypeError, "int"),
    "update without observation": (lambda b, m: b.update(m, 0), TypeError, "observation|argument"),
    "likelihood too short": (lambda b, m: b.correct(np.ones(N - 1)), ValueError, rf"\({N - 1},\).*\({N},\)"),
    "likelihood a column": (lambda b, m: b.correct(np.ones((N, 1))), ValueError, rf"\({N}, 1\)"),
    "likelihood of one": (lambda b, m: b.correct(1.0), ValueError, r"\(\)"),
    "likelihood empty": (lambda b, m: b.correct([]), ValueError, r"\(0,\)"),
    "likelihood None": (lambda b, m: b.correct(None), (TypeError, ValueError), r"None|\(\)"),
    "likelihood a string": (lambda b, m: b.correct("x" * N), (TypeError, ValueError), r"str|\(\)"),
    "likelihood NaN": (lambda b, m: b.correct(ones_but(math.nan)), ValueError, "non-finite|nan"),
    "likelihood inf": (lambda b, m: b.correct(ones_but(math.inf)), ValueError, "non-finite|inf"),
    "likelihood negative": (lambda b, m: b.correct(ones_but(-1)), ValueError, "negative|-1"),
    "likelihood complex": (lambda b, m: b.correct(np.full(N, 1j)), TypeError, "complex128"),
    "likelihood strings": (lambda b, m: b.correct(["1"] * N), TypeError, "U1"),
    "likelihood objects": (lambda b, m: b.correct([None] * N), TypeError, "object"),
    "likelihood dates": (lambda b, m: b.correct(np.zeros(N, "M8[s]")), TypeError, "datetime64"),
    "sparse likelihood NaN": (
        lambda b, m: b.correct(am.SparseArray([math.nan] + [0.0] * (N - 1))), ValueError, "non-finite|nan"),
    "sparse likelihood negative": (
        lambda b, m: b.correct(am.SparseArray([-1.0] + [0.0] * (N - 1))), ValueError, "negative|-1"),
    "sparse likelihood too long": (
        lambda b, m: b.correct(am.SparseArray(np.ones(N + 1))), ValueError, rf"\({N + 1},\)"),
    "correct on_impossible": (lambda b, m: b.correct(np.ones(N), on_impossible="no"), ValueError, "'no'"),
    "correct on_impossible None": (
        lambda b, m: b.correct(np.ones(N), on_impossible=None), (TypeError, ValueError), "None"),
    **{
        f"prune {rule}={bad}": (lambda b, m, asked={rule: bad}: b.prune(**asked), ValueError, f"{rule}={bad}")
        for rule in ("relative", "absolute", "mass")
        for bad in (-0.1, 1.5, math.nan, -math.inf)
    },
    **{
        f"prune {rule}='x'": (lambda b, m, rule=rule: b.prune(**{rule: "x"}), TypeError, "str|'x'")
        for rule in ("relative", "absolute", "mass", "max_states")
    },
    "prune max_states=0": (lambda b, m: b.prune(max_states=0), ValueError, "max_states=0"),
    "prune max_states=-3": (lambda b, m: b.prune(max_states=-3), ValueError, "max_states=-3"),
    "prune max_states=1.5": (lambda b, m: b.prune(max_states=1.5), TypeError, r"1\.5|float"),
    "prune max_states=NaN": (lambda b, m: b.prune(max_states=math.nan), (TypeError, ValueError), "nan|float"),
    "prune everything": (lambda b, m: b.prune(absolute=1.0), ValueError, "every state"),
    "prune positionally": (lambda b, m: b.prune(0.1), TypeError, "positional"),
    "q of another shape": (lambda b, m: b.kl_divergence(np.ones(3)), ValueError, r"\(3,\)"),
    "q no measure": (lambda b, m: b.kl_divergence(np.zeros(N)), ValueError, "without any mass"),
    "q negative": (lambda b, m: b.total_variation(np.full(N, -1.0)), ValueError, "-1.0"),
    "q None": (lambda b, m: b.total_variation(None), (TypeError, ValueError), r"None|\(\)"),
    "top -1": (lambda b, m: b.top(-1), ValueError, "k=-1"),
    "top 1.5": (lambda b, m: b.top(1.5), TypeError, r"1\.5|float"),
    "top None": (lambda b, m: b.top(None), TypeError, "None"),
    "f too short": (lambda b, m: b.expectation(np.ones(3)), ValueError, r"\(3,\)"),
    "f a number": (lambda b, m: b.expectation(1.0), ValueError, r"\(\)"),
    "axis 1": (lambda b, m: b.marginal(1), ValueError, "axis=1"),
    "axis -2": (lambda b, m: b.marginal(-2), ValueError, "axis=-2"),
    "axis twice": (lambda b, m: b.marginal((0, 0)), ValueError, r"\(0, 0\)"),
    "no axis": (lambda b, m: b.marginal(()), ValueError, r"\(\)"),
    "axis a string": (lambda b, m: b.marginal("x"), TypeError, "str|'x'"),
    "axis 0.0": (lambda b, m: b.marginal(0.0), TypeError, "float"),
    "sample -1": (lambda b, m: b.sample(-1), ValueError, "negative|-1"),
    "sample 'x'": (lambda b, m: b.sample("x"), TypeError, "str|'x'|int"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "error", "said"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_a_bad_call_says_what_was_given_and_changes_nothing(rings, belief, call, error, said):
    with unchanged(belief), pytest.raises(error, match=said):
        call(belief, rings[belief.dtype.type])


MODEL_VERBS = {
    "update": lambda b, m: b.update(m, 0, 0),
    "update without observation": lambda b, m: b.update(m, 0, None),
    "predict": lambda b, m: b.predict(m, 0),
}


@pytest.mark.parametrize("call", MODEL_VERBS.values(), ids=MODEL_VERBS)
def test_dtypes_of_belief_and_model_must_agree(rings, belief, call):
    (other,) = {np.float64, np.float32} - {belief.dtype.type}
    with unchanged(belief), pytest.raises(TypeError, match=rf"{belief.dtype}.*{np.dtype(other)}"):
        call(belief, rings[other])


@pytest.mark.parametrize("call", MODEL_VERBS.values(), ids=MODEL_VERBS)
@pytest.mark.parametrize("n_states", [1, N - 1, N + 1])
def test_sizes_of_belief_and_model_must_agree(belief, call, n_states):
    model = ring(belief.dtype, n_states)
    with unchanged(belief), pytest.raises(ValueError, match=rf"{N} states.*model of {n_states}\b"):
        call(belief, model)


ALL_VERBS = {
    **MODEL_VERBS,
    "correct": lambda b, m: b.correct(np.ones(N)),
    "correct sparsely": lambda b, m: b.correct(am.SparseArray(np.ones(N))),
    "normalize": lambda b, m: b.normalize(),
    "prune": lambda b, m: b.prune(max_states=2),
    "entropy": lambda b, m: b.entropy(),
    "kl_divergence": lambda b, m: b.kl_divergence(np.ones(N)),
    "kl_divergence of it": lambda b, m: am.SparseBelief.uniform(N).kl_divergence(b),
    "total_variation": lambda b, m: b.total_variation(np.ones(N)),
    "mode": lambda b, m: b.mode(),
    "top": lambda b, m: b.top(2),
    "expectation": lambda b, m: b.expectation(np.ones(N)),
    "marginal": lambda b, m: b.marginal(0),
    "sample": lambda b, m: b.sample(rng=0),
}
SPOILERS = {
    "NaN": (lambda b: b.__setitem__(3, math.nan), "nan at index 3"),
    "inf": (lambda b: b.__setitem__(3, math.inf), "inf at index 3"),
    "negative": (lambda b: b.__setitem__(3, -0.5), "-0.5 at index 3"),
    "zero": (lambda b: b.__setitem__(slice(None), 0.0), "without any mass"),
    "negative everywhere": (lambda b: b.__imul__(-1.0), r"-\d.* at index"),
}


@pytest.mark.parametrize("call", ALL_VERBS.values(), ids=ALL_VERBS)
@pytest.mark.parametrize(("spoil", "said"), SPOILERS.values(), ids=SPOILERS)
def test_a_verb_of_what_is_no_measure_any_more_raises_and_changes_nothing(rings, belief, call, spoil, said):
    dtype = belief.dtype.type
    spoil(belief)
    with unchanged(belief), pytest.raises(ValueError, match=said):
        call(belief, rings[dtype])


def test_a_spoiled_belief_can_be_mended(rings):
    b = am.SparseBelief.uniform(N)
    b[3] = math.nan
    b[3] = 1 / N
    assert b.update(rings[np.float64], 0, 1) == am.SparseBelief.uniform(N).update(rings[np.float64], 0, 1)


def test_a_belief_that_was_never_filled_raises():
    with pytest.raises(ValueError, match="0 states"):
        am.SparseBelief.__new__(am.SparseBelief).update(ring(np.float64, 3), 0, 0)


def test_more_states_than_a_model_can_have_are_refused_without_listing_them():
    b = am.SparseBelief.uniform(2**40)
    for call in (b.mode, b.normalize, b.prune, lambda: b.top(1)):
        with pytest.raises(ValueError, match=str(2**40)):
            call()


class Subclass(am.SparseBelief):
    """Adds nothing."""


def test_a_subclass_stays_itself(rings):
    b = Subclass.point(N, 3)
    b.update(rings[np.float64], 0, 3)
    assert type(b) is type(b.copy()) is type(pickle.loads(pickle.dumps(b))) is Subclass


@pytest.mark.parametrize(
    ("p", "likelihood", "log_evidence"),
    [([0, 1], [1e300, 1e-300], -690.7755278982137), ([1e-300, 0], [1e-300, 1.0], -690.7755278982137)],
)
def test_what_is_possible_stays_possible_at_any_scale(p, likelihood, log_evidence):
    b = am.SparseBelief(p)
    assert b.correct(likelihood) == pytest.approx(log_evidence, rel=1e-14)
    assert b.to_dense().tolist() == [float(x > 0) for x in p]


@pytest.mark.parametrize("scale", [1.0, 1e-305, 5e-324])
def test_an_update_counts_a_tiny_belief_as_normalised(scale):
    model = am.Model([[0.1, 0.9], [0.5, 0.5]], [[1e-20, 1 - 1e-20], [0.5, 0.5]])
    b, plain = am.SparseBelief([scale, 0]), am.SparseBelief([1.0, 0])
    assert b.update(model, 0, 0, prune=0.0) == pytest.approx(plain.update(model, 0, 0, prune=0.0), rel=1e-14)
    assert b.to_dense() == pytest.approx(plain.to_dense(), rel=1e-14)


def test_pruning_by_mass_keeps_the_largest():
    b = am.SparseBelief.uniform(10)
    assert b.prune(mass=1.0) == pytest.approx(0.9)
    assert b.to_dense().tolist() == [1.0] + [0.0] * 9


def test_a_copy_by_a_strange_subclass_is_refused():
    class Strange(am.SparseBelief):
        def __new__(cls, *args, **kwargs):
            return super().__new__(cls) if args else 5

    with pytest.raises(TypeError):
        Strange([0.5, 0.5]).copy()
