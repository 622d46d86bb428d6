"""SparseArray beside ndarray: construction, storage, indexing, assignment, arithmetic, copies, threads."""

import copy
import operator
import pickle
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import agentmem as am
from agentmem.array import SparseArray, read_only
from reference import same_environment

DTYPES = ["?", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8"]
SHARES = [(0.001, "pairs"), (0.3, "bitmap"), (0.99, "dense"), (1, "uniform")]
EMPTY = [np.zeros(0), np.zeros((3, 0)), np.array(2.5), np.array(0), np.zeros((2, 3, 4, 5))]
BAD = [[1j], ["a"], [None], np.zeros(2, "g"), np.zeros(2, "M8[s]"), np.zeros(2, "i4,i4")]
REDUCTIONS = ["sum", "prod", "min", "max", "any", "all", "mean", "var", "std", "argmax", "argmin"]
UFUNCS = [np.add, np.multiply, np.true_divide, np.maximum, np.greater, np.power, np.less_equal, np.fmod]
UFUNCS += [np.floor_divide, np.logical_and, np.copysign]
quick = settings(max_examples=200, deadline=None)


class Child(SparseArray):
    __slots__ = ()


def same(ours, theirs):
    """Assert that a result is NumPy's."""
    if isinstance(ours, SparseArray):
        ours._check()
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(np.asarray(ours), theirs, 1e-6 if theirs.itemsize < 8 else 1e-12)


@st.composite
def cells(draw, shape=None, dtype=None):
    """Arrays of which a drawn share is zero, with NaN and inf among the rest."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=7)) if shape is None else shape
    dtype = draw(st.sampled_from(["f8", "f4", "i4", "?"])) if dtype is None else dtype
    values = st.sampled_from([1, 1, 2, 3, 0.5, 0.25, -1, np.nan, np.inf] if dtype[0] == "f" else [0, 1, 2, 3])
    filled = draw(hnp.arrays(dtype, shape, elements=values.map(np.dtype(dtype).type), fill=st.just(0)))
    kept = draw(hnp.arrays(bool, shape, elements=st.booleans(), fill=st.just(False)))
    return np.where(kept, filled, filled.dtype.type(0))


# ---- construction


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("share", "storage"), SHARES)
def test_each_storage_in_each_dtype(share, storage, dtype):
    rng = np.random.default_rng(0)
    dense = np.zeros(4000, dtype)
    dense[rng.permutation(4000)[: int(4000 * share)]] = 1
    if storage == "dense" and dtype != "?":
        dense[:100] = 2
    for x in (SparseArray(dense), SparseArray.from_indices(np.flatnonzero(dense), dense[dense != 0], 4000)):
        same(x, dense)
        if np.dtype(dtype).itemsize > 1:
            assert x.storage == storage
        assert x.nnz == np.count_nonzero(dense)
        assert x.density == x.nnz / 4000
        assert x.nbytes <= dense.nbytes + 256
        assert x.nbytes == sys.getsizeof(x)
        np.testing.assert_array_equal(x.indices, np.flatnonzero(dense))
        np.testing.assert_array_equal(x.values, dense[dense != 0])
        for y in (x.copy(), pickle.loads(pickle.dumps(x)), SparseArray(x)):
            same(y, dense)
            assert y.storage == x.storage
        if dtype != "f2":  # scipy has none
            same(SparseArray(x.to_scipy()), dense)


@pytest.mark.parametrize("dense", EMPTY)
@pytest.mark.filterwarnings("ignore")
def test_empty_and_no_axes(dense):
    x = SparseArray(dense)
    same(x, dense)
    same(x * 2, dense * 2) if dense.ndim else None
    same(x.copy().reshape(-1), dense.reshape(-1))
    same(pickle.loads(pickle.dumps(x)), dense)
    assert x.sum() == dense.sum()


@pytest.mark.parametrize("make", [scipy.sparse.csr_array, scipy.sparse.coo_array, scipy.sparse.csc_matrix])
def test_scipy_arrays_go_in_and_out(make):
    dense = np.diag([1.0, 0, 2])[:, ::-1]
    x = SparseArray(make(dense))
    same(x, dense)
    assert x.to_scipy().format == "csr"
    assert x[0].to_scipy().format == "coo"
    np.testing.assert_array_equal(x.to_scipy().toarray(), dense)
    twice = scipy.sparse.coo_array(([1.0, 2.0], ([0, 0], [1, 1])), shape=(1, 3))
    same(SparseArray(twice), np.array([[0.0, 3, 0]]))
    assert len(twice.data) == 2


def test_input_is_copied_and_may_be_read_only_or_strided_or_swapped():
    dense = np.array([[0, 1.0], [2, 0]])
    x = SparseArray(dense)
    dense[0, 0] = 9
    assert x[0, 0] == 0
    dense.flags.writeable = False
    same(SparseArray(dense), dense)
    same(SparseArray(dense.T), dense.T)
    same(SparseArray(dense[:, ::-1]), dense[:, ::-1])
    assert SparseArray(dense.astype(">f8")).dtype == np.dtype("f8")
    same(SparseArray(dense.tolist(), dtype="f4"), dense.astype("f4"))


def test_what_was_read_stays():
    x = SparseArray([0, 1.0, 2])
    indices, values = x.indices, x.values
    x[:] = 0
    assert indices.tolist() == [1, 2]
    assert values.tolist() == [1, 2]
    for a in (indices, values):
        with pytest.raises(ValueError, match="read-only"):
            a[0] = 1


@pytest.mark.parametrize("bad", BAD)
def test_numbers_that_cannot_be_kept(bad):
    with pytest.raises(TypeError, match="dtype"):
        SparseArray(bad)
    with pytest.raises(TypeError, match="dtype"):
        SparseArray.from_indices(range(len(bad)), bad, 5)


@pytest.mark.parametrize(
    ("indices", "values", "shape", "message"),
    [
        ([0, 5], [1, 2], 5, "index 5 .* 0 to 4"),
        ([-1], [1], 5, "index -1 .* 0 to 4"),
        ([3, 1, 3], [1, 2, 3], 5, "index 3 given more than once"),
        ([0, 1], [1], 5, "one value per index"),
        ([[0]], [[1]], 5, "one value per index"),
        ([0.5], [1], 5, "expected integers"),
        ([0], [1], (-5,), "at least 0"),
        ([0], [1], (2, 0), "index 0"),
        ([2**63], [1], 5, "index 9223372036854775808"),
    ],
)
def test_bad_indices_are_named(indices, values, shape, message):
    with pytest.raises(ValueError, match=message):
        SparseArray.from_indices(indices, values, shape)


def test_more_cells_than_int32():
    shape = (100_000, 100_000)
    x = SparseArray.from_indices([9_999_999_999, 0, 5_000_012_345], [3.0, 1, 2], shape)
    x._check()
    assert x.storage == "pairs"
    assert x[99_999, 99_999] == 3
    assert x[50_000].indices.tolist() == [12_345]
    assert (x * 2).sum() == 12
    assert x.sum(axis=0)[12_345] == 2
    x[7, 7] = 5
    x[:2, :2] += 0
    assert x.T[7, 7] == 5
    assert x.nnz == 4
    assert x.argmax() == 700_007
    assert pickle.loads(pickle.dumps(x)).indices.tolist() == x.indices.tolist()


# ---- beside an ndarray

KEYS_1D = st.one_of(
    st.integers(-8, 8), st.slices(7), hnp.arrays("i8", st.integers(0, 6), elements=st.integers(-7, 7)),
    hnp.arrays(bool, st.just(7)), st.just(Ellipsis), st.none(),
)  # fmt: skip


@quick
@given(cells((7,)), KEYS_1D)
def test_indexing_one_axis(dense, key):
    check_indexing(dense, key)


@quick
@given(cells((3, 4, 2)), hnp.basic_indices((3, 4, 2), allow_newaxis=True))
def test_indexing_basic(dense, key):
    check_indexing(dense, key)


@quick
@given(cells((3, 4, 2)), st.tuples(hnp.integer_array_indices((3, 4)), st.integers(-3, 2)))
def test_indexing_advanced(dense, key):
    check_indexing(dense, (*key[0], key[1]))
    check_indexing(dense, key[0])


def check_indexing(dense, key):
    x = Child(dense)
    try:
        theirs = dense[key]
    except IndexError:
        with pytest.raises(IndexError):
            x[key]
        return
    ours = x[key]
    assert type(ours) is (Child if isinstance(theirs, np.ndarray) else type(theirs))
    same(ours, theirs)
    values = np.arange(theirs.size).reshape(theirs.shape) % 3
    for value in (0, 3, values):
        changed, expected = x.copy(), dense.copy()
        changed[key] = value
        expected[key] = value
        same(changed, expected)
    same(x, dense)


@quick
@given(st.data())
def test_arithmetic(data):
    shapes = data.draw(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=5))
    a, b = (data.draw(cells(s)) for s in shapes.input_shapes)
    ufunc = data.draw(st.sampled_from(UFUNCS))
    with np.errstate(all="ignore"):
        try:
            theirs = ufunc(a, b)
        except (ValueError, TypeError) as error:
            with pytest.raises(type(error)):
                ufunc(SparseArray(a), b)
            return
        x, y = SparseArray(a), SparseArray(b)
        for ours in (ufunc(x, b), ufunc(a, y), ufunc(x, y)):
            same(ours, theirs)


@pytest.mark.filterwarnings("ignore")
@quick
@given(cells(), st.sampled_from(REDUCTIONS), st.data())
def test_reductions(dense, name, data):
    axis = data.draw(st.one_of(st.none(), st.integers(0, dense.ndim - 1)))
    keepdims = data.draw(st.booleans())
    with np.errstate(all="ignore"):
        try:
            theirs = getattr(dense, name)(axis=axis, keepdims=keepdims)
        except ValueError:
            with pytest.raises(ValueError, match=r"empty|zero-size"):
                getattr(SparseArray(dense), name)(axis=axis, keepdims=keepdims)
            return
        ours = getattr(SparseArray(dense), name)(axis=axis, keepdims=keepdims)
    assert type(ours) is type(theirs)
    same(ours, theirs)


def test_exact_off_the_support():
    x = SparseArray([0, 1.0, 0, 2, 0, 0, 0, 0])
    y = np.array([0, 1, np.inf, 1, np.nan, -1, 1, 1])
    dense = x.to_dense()
    with np.errstate(all="ignore"):
        for other in (y, y[0], np.inf, 0, -1, 2.5):
            for ufunc in (np.multiply, np.true_divide, np.floor_divide, np.greater, np.equal, np.power):
                ours = ufunc(x, other)
                same(ours, ufunc(dense, other))
                assert type(ours) is SparseArray


def test_whether_sparse_depends_on_kinds_alone():
    x = SparseArray([0, 0.5, 0, 0.25])
    for value in (1.0, 0.0, -1.0, np.inf):
        with np.errstate(all="ignore"):
            assert type(x * value) is type(x / value) is type(x > value) is type(value * x) is SparseArray
            assert type(x + value) is type(value / x) is type(x < value) is np.ndarray


def test_the_more_derived_class_is_kept():
    x, y = SparseArray([0, 1.0]), Child([2.0, 0])
    results = [y * 2, x + y, y + x, y[:1], y.T, y.astype("f4"), y > 1, copy.copy(y), -y]
    results += [pickle.loads(pickle.dumps(y)), np.zeros_like(y), y.reshape(2, 1), np.ones(2) * y]
    results += [np.concatenate([x, y])]
    for result in results:
        assert type(result) is Child
    assert type(x * 2) is SparseArray


def test_in_place_keeps_identity_and_dtype():
    x = original = SparseArray(np.array([0, 3, 0, 4], "i4"))
    x *= 2
    x += 1
    x //= np.array([1, 2, 3, 1])
    assert x is original
    same(x, np.array([1, 3, 0, 9], "i4"))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.__iadd__(1.5),
        lambda x: x.__itruediv__(2),
        lambda x: x.__imul__(np.ones(3)),
        lambda x: x.__setitem__(9, 1),
        lambda x: x.__setitem__(0, "a"),
        lambda x: x.__setitem__(slice(2), [1, 2, 3]),
        lambda x: x.__setitem__(x > 0, [1, 2, 3]),
        lambda x: np.add(x, 1, out=x, casting="no", dtype="f8"),
        lambda x: np.copyto(x, np.ones(4)),
        lambda x: x.put([7], 1),
        lambda x: x.fill("a"),
        lambda x: x.sort(axis=4),
        lambda x: np.add.at(x, [9], 1),
        lambda x: setattr(x, "shape", (3, 3)),
        lambda x: x.resize(-1),
    ],
)
def test_a_failed_change_changes_nothing(change):
    x = SparseArray([0, 3, 0, 4])
    before = pickle.dumps(x)
    with pytest.raises((TypeError, ValueError, IndexError)):
        change(x)
    assert pickle.dumps(x) == before
    x._check()


# ---- protocols


def test_conversion_follows_numpy_2():
    x = SparseArray([0, 1.0])
    assert np.asarray(x).flags.writeable
    assert np.asarray(x, "f4").dtype == np.float32
    with pytest.raises(ValueError, match="copy"):
        np.array(x, copy=False)


def test_buffers_rebuild_the_array():
    for dense in (np.eye(20), np.arange(12.0).reshape(3, 4), np.full((2, 3), 2.5), np.zeros((0, 3))):
        x = Child(dense)
        buffers = x.buffers()
        assert all(b.ndim == 1 for b in buffers.values())
        y = Child.from_buffers(x.header, buffers)
        same(y, dense)
        assert y.storage == x.storage


def test_pickling_out_of_band():
    buffers = []
    x = SparseArray(np.eye(100))
    data = pickle.dumps(x, 5, buffer_callback=buffers.append)
    assert len(data) < 1000
    same(pickle.loads(data, buffers=buffers), np.eye(100))


def test_other_libraries_decide_for_themselves():
    class Theirs:
        def __array_ufunc__(self, *args, **kwargs):
            return "theirs"

        def __array_function__(self, *args, **kwargs):
            return "theirs"

    assert np.add(SparseArray([1.0]), Theirs()) == "theirs"
    assert np.concatenate([SparseArray([1.0]), Theirs()]) == "theirs"


def test_flat_reads_and_writes():
    m = SparseArray(np.arange(6.0).reshape(2, 3))
    m.flat[4] = 9
    m.flat[[0, 1]] = [7, 8]
    assert list(m.flat) == [7, 8, 2, 3, 9, 5]
    assert m.flat[4] == 9
    assert len(m.flat) == 6


def test_looks():
    x = SparseArray(np.eye(1000))
    assert repr(x).startswith("SparseArray(shape=(1000, 1000), dtype=float64, nnz=1000, storage='pairs'")
    assert f"{x}" == str(x) == repr(x)
    assert not hasattr(x, "__dict__")
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


def test_a_second_writer_is_told():
    x = SparseArray(np.zeros(10))

    class Slow:
        def __array__(self, dtype=None, copy=None):
            entered.set()
            assert left.wait(10)
            return np.ones(10)

    entered, left = threading.Event(), threading.Event()
    writer = threading.Thread(target=lambda: x.__setitem__(slice(None), Slow()))
    writer.start()
    assert entered.wait(10)
    changes = [lambda: x.fill(2), lambda: x.__setitem__(0, 1), lambda: x.__imul__(2), lambda: np.copyto(x, 3)]
    for change in changes:
        with pytest.raises(RuntimeError, match="two writers"):
            change()
    assert x.sum() == 0
    left.set()
    writer.join()
    same(x, np.ones(10))
    x[0] = 5
    assert x[0] == 5


def test_libraries_that_ask_for_values_first_ask_for_to_numpy():
    """matplotlib takes `values` of what is no ndarray, unless it has `to_numpy`."""
    x = SparseArray([0.0, 0.25, 0.0, 0.75])
    assert x.to_numpy().tolist() == [0.0, 0.25, 0.0, 0.75]


# ---- read-only


def test_a_read_only_array_cannot_be_written():
    x = am.SparseBelief([0.5, 0.0, 0.5])
    x.setflags(write=False)
    assert not x.flags.writeable and not x.flags["WRITEABLE"] and x.flags.c_contiguous
    writes = [
        lambda: x.__init__([1.0, 1.0, 1.0]),
        lambda: operator.imul(x, 2),
        lambda: x.__setitem__(0, 1),
        lambda: x.fill(1),
        lambda: x.resize(2),
        lambda: x.normalize(),
        lambda: x.correct([1.0, 1.0, 0.0]),
        lambda: x.update(am.Model(np.eye(3), np.eye(3)), 0, 0),
        lambda: np.add(x, 1, out=x),
        lambda: np.copyto(x, 1),
    ]
    for write in writes:
        with pytest.raises(ValueError, match="read-only"):
            write()
    assert x.to_dense().tolist() == [0.5, 0.0, 0.5]
    y = x.copy()
    y *= 2  # a copy is its owner's
    x.flags.writeable = True
    x *= 2
    assert x.to_dense().tolist() == y.to_dense().tolist() == [1.0, 0.0, 1.0]


def test_what_is_known_of_a_read_only_operand_is_true():
    x = am.SparseArray([0.0, 0.0, 2.0, 0.0])
    cells = np.array([1.0, np.inf, 3.0, 0.0])
    y = read_only(cells)
    with pytest.raises(ValueError):
        y.setflags(write=True)
    for _ in range(2):  # the second time it is known
        with np.errstate(all="ignore"):
            for operation in (np.multiply, np.true_divide):
                for operand, dense in ((y, cells), (y[::-1], cells[::-1]), (y[:1], cells[:1])):
                    np.testing.assert_array_equal(operation(x, operand), operation(x.to_dense(), dense))
            assert np.array_equal(x[:2] * y.view(np.float32)[:2], x.to_dense()[:2] * cells.view(np.float32)[:2])
            assert np.array_equal(x[:2] * y[:3].view("f4")[:2], x.to_dense()[:2] * cells[:3].view("f4")[:2])
    assert read_only(x) is not x
    assert not read_only(x).flags.writeable
    fields = np.zeros(4, "i4,f8,i4")
    fields["f1"] = np.inf
    with np.errstate(all="ignore"):
        for y in (read_only(fields)["f1"], read_only(fields).view("u4")[1:-3].view("u4")[:4]):
            np.testing.assert_array_equal(x * y, x.to_dense() * y)


@pytest.mark.filterwarnings("ignore")
def test_a_dtype_that_is_asked_for_is_that_of_zeros_too():
    cells = np.array([0.0, 0.5, 0.0])
    huge = np.full(3, 1e300)
    expected = np.multiply(cells, huge, dtype="e", casting="unsafe")
    np.testing.assert_array_equal(np.multiply(SparseArray(cells), huge, dtype="e", casting="unsafe"), expected)
    whole = np.array([0, 2, 0], "i2")
    np.testing.assert_array_equal(np.reciprocal(SparseArray(whole), dtype="d"), np.reciprocal(whole, dtype="d"))


def test_numbers_of_other_libraries_never_see_what_an_array_holds():
    class Nosy(np.float64):
        def __array_ufunc__(self, ufunc, method, *inputs, **options):
            seen.extend(inputs)
            return "theirs"

    seen = []
    x = SparseArray([0.0, 1.0])
    assert x * Nosy(2) == "theirs"
    assert any(one is x for one in seen)


def test_a_result_is_nobodys_to_write_until_it_is_whole():
    made = []

    class Shown(SparseArray):
        __slots__ = ()

        def __new__(cls, *args, **kwargs):
            made.append(super().__new__(cls))
            return made[-1]

    def write(*_):
        with pytest.raises(RuntimeError):
            made[-1].resize(1)
        called.append(True)

    called = []
    x = Shown(large_cells(0.3, "f8"))
    x[0] = 1e300
    with np.errstate(over="call", call=write):
        y = x * 1e300
    assert called
    y._check()


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_a_matrix_is_assigned():
    x = SparseArray(np.eye(3))
    x[...] = np.matrix(np.ones((3, 3)))
    x[:] = np.matrix(np.eye(3))
    assert x.nnz == 3


def test_without_memory_for_another_form_an_array_keeps_its_own():
    script = """if True:
        import resource
        import numpy as np
        from agentmem.array import SparseArray
        for share in (0.3, 0.99):
            x = SparseArray(np.random.default_rng(0).random(4_000_000) < share, dtype="f8")
            y = np.arange(4_000_000) % 16 == 0
            expected = x.to_dense() * y
            held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (held + 3_000_000, resource.RLIM_INFINITY))
            x *= y
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert x.nnz == np.count_nonzero(expected) and (x.to_dense() == expected).all()
            assert (np.diff(x.indices) > 0).all() and (x.values != 0).all()
            x *= 1  # and changes it when it can
            x._check()
        """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert not done.returncode, done.stderr


# ---- large arrays, which kernels go through in parts

LARGE = 144_000  # cells: several parts of float32
IN_PLACE = [np.multiply, np.true_divide, np.minimum, np.fmod, np.copysign, np.greater]


def large_cells(share, dtype, seed=1):
    rng = np.random.default_rng(seed)
    cells = np.zeros(LARGE, dtype)
    if share == 1:
        cells[:] = 2
    else:
        support = rng.choice(LARGE, int(share * LARGE), replace=False)
        cells[support] = rng.integers(1, 100, len(support)) / (1 if dtype[0] in "iu" else 7)
    return cells


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["f4", "f8", "i2"])
@pytest.mark.parametrize("share", [0, 0.01, 0.4, 0.98, 1])
@pytest.mark.parametrize("ufunc", IN_PLACE)
def test_large_arrays_meet_each_other_numbers_and_cells(ufunc, share, dtype):
    cells = large_cells(share, dtype)
    rng = np.random.default_rng(2)
    likelihood = rng.uniform(0.5, 1, LARGE).astype(dtype)
    numbers = (2.5, np.float32(0.5), cells.dtype.type(0))
    for other in (*numbers, likelihood, likelihood[::-1], cells > 40, large_cells(0.3, "f4", 2)):
        for operand in (other, SparseArray(other)) if isinstance(other, np.ndarray) else (other,):
            x = SparseArray(cells)
            expected = ufunc(cells, other)
            found = ufunc(x, operand)
            np.testing.assert_array_equal(found, expected)
            if isinstance(found, SparseArray):
                found._check()
            flipped = ufunc(operand, x)
            np.testing.assert_array_equal(flipped, ufunc(other, cells))
            dense = cells.copy()
            try:
                ufunc(dense, other, out=dense)
            except TypeError:
                with pytest.raises(TypeError):
                    ufunc(x, operand, out=x)
            else:
                assert ufunc(x, operand, out=x) is x
            np.testing.assert_array_equal(x, dense)
            x._check()


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.98, 0.9999, 1])
@pytest.mark.parametrize("sign", [1, -1])
def test_large_arrays_are_reduced(share, sign):
    cells = sign * large_cells(share, "f8")
    for poisoned in (None, 5, LARGE - 1):
        if poisoned is not None:
            cells[poisoned] = np.nan
        x = SparseArray(cells)
        for name in ("min", "max", "argmin", "argmax", "any", "all"):
            np.testing.assert_array_equal(getattr(x, name)(), getattr(cells, name)())
        np.testing.assert_allclose(x.sum(), cells.sum(), rtol=1e-13)
        assert x.sum(initial=3).dtype == cells.sum(initial=3).dtype
        np.testing.assert_allclose(x.reshape(144, 1000).sum(axis=0), cells.reshape(144, 1000).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.98])
def test_what_numpy_raises_of_numbers_it_raises_when_all_is_written(share):
    cells = large_cells(share, "f4")
    cells[LARGE // 2] = 1e30
    for errors in ({"over": "raise"}, {"over": "warn"}):
        x, dense = SparseArray(cells), cells.copy()
        with np.errstate(**errors), warnings.catch_warnings():
            warnings.simplefilter("error")
            for array in (x, dense):
                with pytest.raises((FloatingPointError, RuntimeWarning), match="overflow"):
                    array *= np.float32(1e20)
        np.testing.assert_array_equal(x, dense)
        x._check()
        with np.errstate(over="ignore"):
            x *= 1  # nobody is writing any more


def test_signed_zeros_and_what_underflows_vanish():
    for share in (0.01, 0.3, 0.98, 1):
        cells = large_cells(share, "f4")
        x = SparseArray(cells)
        x *= np.float32(-0.0)
        assert x.nnz == 0 and x.storage == "pairs"
        x = SparseArray(cells)
        x *= np.where(np.arange(LARGE) % 3, np.float32(1e-44), np.float32(-1e-46))
        x._check()
        assert not np.signbit(x.to_dense()[x.to_dense() == 0]).any()


def test_cells_beyond_32_bits_are_picked():
    size = 2**32
    x = SparseArray.from_indices([3, size - 2], [1.0, 2.0], size)
    x *= 4
    assert ((x > 5) * x).to_scipy().data.tolist() == [8.0]
    assert x.argmax() == size - 2 and x.argmin() == 0 and x.sum() == 12 and x[size - 2] == 8
    y = SparseArray.from_indices(np.arange(3), np.arange(1, 4), size)
    assert (-y).argmax() == 3


def test_a_reader_sees_a_moment_whatever_another_thread_writes():
    """Sums are of one moment; a reader may be told that somebody is writing, the writer never that somebody reads."""
    x = SparseArray(large_cells(0.3, "f8") > 0, dtype="f8")
    whole = x.sum()
    seen, failures = set(), []
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                seen.add(float(x.sum()) / whole)
                seen.add(float((x * 1).values.sum()) / whole)
                x.argmax()
            except RuntimeError as error:
                if "while another thread" not in str(error):
                    failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for thread in readers:
        thread.start()
    try:
        for k in range(40):
            x *= 2
            x /= 2
            x[...] = x.to_dense() * 2
            x /= 2
            x[LARGE - 1 - k] = 0
            x[LARGE - 1 - k] = 1
            x[LARGE - 1 - k] = 0
    finally:
        done.set()
        for thread in readers:
            thread.join()
    x._check()
    assert not failures
    assert all(abs(total - round(total)) < 0.01 for total in seen)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.98, 1])
def test_cells_of_large_arrays_are_written(share):
    rng = np.random.default_rng(3)
    cells = large_cells(share, "f4").reshape(144, 1000)
    x = SparseArray(cells)
    for value in (1, 0, -0.0, 2, np.nan):
        for _ in range(20):
            row, column = int(rng.integers(144)), int(rng.integers(1000))
            for array in (x, cells):
                array[row, column] = value
                array[row, column - 5 : column] = value
                array[[row, 0, row], [column, 3, column]] = [1, 2, value]
    np.testing.assert_array_equal(x, cells)
    x._check()
    for key in (slice(None, None, -1), (5, slice(None, None, -7)), (slice(3, 9), slice(1, 2))):
        np.testing.assert_array_equal(x[key], cells[key])
