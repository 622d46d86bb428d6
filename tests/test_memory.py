"""Bytes and threads: what a belief takes, what a step allocates, what stays behind, and who may write when."""

import contextlib
import gc
import pickle
import sys
import threading

import numpy as np
import psutil
import pytest
from scipy import sparse

import agentmem as am
import reference
from agentmem._core import one_writer, release_scratch, scratch_nbytes
from reference import DTYPES, Traced, bits, content, payload, scattered, smallest_payload, unchanged

dtypes = pytest.mark.parametrize("dtype", DTYPES)
MILLION = 1_000_000

# ---- what a belief takes


N_MADE = 10


@pytest.fixture
def traced_bytes():
    """A function that makes something and returns it with the bytes that tracemalloc saw stay, the mean of many."""
    with Traced() as traced:

        def measure(make):
            make()  # first uses: caches, workspaces
            made = [None] * N_MADE
            before = traced.held()
            for k in range(N_MADE):
                made[k] = make()
            return made[0], (traced.held() - before) / N_MADE

        yield measure


NOISE = 4  # bytes a piece that stay in caches


@dtypes
@pytest.mark.parametrize("shape", [(640,), (20, 32), (5000,), (50, 100)])
@pytest.mark.parametrize("prune", [None, 0.0, 1e-2], ids=["fresh", "after 50 updates", "after 50 pruned updates"])
def test_a_belief_takes_little_more_than_its_payload(traced_bytes, shape, prune, dtype):
    n_cells = int(np.prod(shape))
    model = am.Model(*reference.ring_tables(n_cells), dtype=dtype)

    def make():
        b = am.SparseBelief(cells)
        if prune is not None:
            for t in range(50):
                b.update(model, 0, t % 4, prune=prune)
        return b

    for n_stored in reference.densities(n_cells):
        cells = scattered(np.random.default_rng(0), n_cells, n_stored, dtype).reshape(shape)
        b, traced = traced_bytes(make)
        b._check()
        assert payload(b) <= 1.05 * smallest_payload(b) + 8
        assert traced <= payload(b) + 96 + NOISE
        assert b.nbytes <= payload(b) + 96
        assert b.nbytes == sys.getsizeof(b)
        assert abs(b.nbytes - traced) <= 0.02 * traced + NOISE


@dtypes
@pytest.mark.parametrize("shape", [MILLION, (1000, 1000), (100, 100, 100)])
def test_a_uniform_belief_takes_under_256_bytes(traced_bytes, shape, dtype):
    for make in (
        lambda: am.SparseBelief.uniform(shape, dtype=dtype),
        lambda: am.SparseBelief.uniform(shape, dtype=dtype).copy(),
        lambda: pickle.loads(pickle.dumps(am.SparseBelief.uniform(shape, dtype=dtype))),
    ):
        b, traced = traced_bytes(make)
        assert b.storage == "uniform"
        assert traced < 256
        assert b.nbytes < 256
    with Traced() as steps:
        b.normalize()
        b.entropy(), b.mode(), b.copy()
    assert steps.peak < 64_000


@dtypes
def test_a_belief_never_takes_more_than_dense_and_256_bytes(dtype):
    for n_cells in (1, 2, 3, 10, 63, 64, 65, 1000):
        for n_stored in reference.densities(n_cells):
            b = am.SparseBelief(scattered(np.random.default_rng(1), n_cells, n_stored, dtype))
            assert b.nbytes <= n_cells * b.itemsize + 256


def test_a_copy_takes_what_the_original_takes(traced_bytes):
    for b in reference.one_of_each_storage(am.SparseBelief).values():
        other, traced = traced_bytes(b.copy)
        assert other.nbytes == b.nbytes
        assert abs(traced - b.nbytes) <= 0.02 * traced + NOISE


# ---- what a step allocates


@pytest.fixture(scope="module", params=DTYPES, ids=["float64", "float32"])
def million(request):
    """A ring of a million states and a belief of a thousand of them that has made its first steps."""
    model = am.Model(*reference.ring_tables(MILLION), dtype=request.param)
    b = am.SparseBelief.from_indices(np.arange(5000, 6000), np.ones(1000, dtype=request.param), MILLION)
    for verb in (
        lambda: b.update(model, 0, 0),
        lambda: b.predict(model, 0),
        lambda: b.correct(np.ones(MILLION)),
    ):
        verb()
    return model, b


LIKELIHOOD = np.linspace(0.5, 1.0, MILLION)
FEW = {
    "update": lambda b, m: b.update(m, 0, 1),
    "exact update": lambda b, m: b.update(m, 0, 1, prune=0.0),
    "update without observation": lambda b, m: b.update(m, 0, None),
    "predict": lambda b, m: b.predict(m, 0),
    "correct": lambda b, m: b.correct(LIKELIHOOD),
    "normalize": lambda b, m: b.normalize(),
    "copy": lambda b, m: b.copy(),
    "mode": lambda b, m: b.mode(),
}
MORE = {
    "prune": lambda b, m: b.prune(relative=1e-6),
    "prune by mass": lambda b, m: b.prune(mass=1e-6),
    "entropy": lambda b, m: b.entropy(),
    "top": lambda b, m: b.top(10),
    "sample": lambda b, m: b.sample(10, rng=0),
    "expectation": lambda b, m: b.expectation(LIKELIHOOD),
    "total_variation": lambda b, m: b.total_variation(b),
    "correct sparsely": lambda b, m: b.correct(b),
    "marginal": lambda b, m: b.marginal(0),
    "pickle": lambda b, m: pickle.dumps(b),
}


@pytest.mark.parametrize("limit", [FEW, MORE], ids=["few", "more"])
def test_no_verb_allocates_in_proportion_to_the_states(million, limit):
    """The belief takes 12 kB, a bit for every state 125 kB, a number for every state 8 MB."""
    model, original = million
    for name, call in limit.items():
        b = original.copy()
        call(b, model)
        b = original.copy()
        with Traced() as traced:
            call(b, model)
        assert traced.peak < (40_000 if limit is FEW else 120_000), (name, traced.peak)


@pytest.mark.parametrize("mode", ["raise", "predict"])
def test_an_impossible_observation_allocates_little(mode):
    T = sparse.eye_array(MILLION, format="csr")
    half = np.repeat([0, 1], MILLION // 2)
    model = am.Model(T, sparse.csr_array((np.ones(MILLION), (np.arange(MILLION), half)), shape=(MILLION, 2)))
    b = am.SparseBelief.point(MILLION, 3)
    for _ in range(2):
        with Traced() as traced, contextlib.suppress(am.ImpossibleObservation):
            b.update(model, 0, 1, on_impossible=mode)
    assert traced.peak < 40_000


def test_a_step_to_everywhere_takes_what_the_result_takes():
    """A uniform start is the one case where every state is touched: the result is dense, and nothing beside it."""
    n = 200_000
    model = am.Model(*reference.ring_tables(n))
    b = am.SparseBelief.uniform(n)
    b.update(model, 0, 1)
    with Traced() as traced:
        b.update(model, 0, 2)
    assert traced.peak <= 8 * n + 1000


def test_scratch_is_counted_released_and_made_again(million):
    model, b = million
    b = b.copy()
    b.update(model, 0, 1)
    held = scratch_nbytes()
    assert held >= 8 * MILLION
    assert release_scratch() == held
    assert scratch_nbytes() == 0
    again = b.copy()
    with Traced() as traced:
        again.update(model, 0, 2)
    assert traced.peak >= 8 * MILLION
    assert content(again) != content(b)


# ---- what stays behind


def calls_that_raise(b, model, other_model):
    return [
        lambda: b.update(model, 9, 0),
        lambda: b.update(model, "x", 0),
        lambda: b.update(model, 0, 9),
        lambda: b.update(model, 0, 0, prune=2.0),
        lambda: b.update(other_model, 0, 0),
        lambda: b.update(None, 0, 0),
        lambda: b.correct(np.zeros(b.size)),
        lambda: b.correct(np.ones(b.size - 1)),
        lambda: b.correct(np.full(b.size, -1.0)),
        lambda: b.prune(absolute=1.0),
        lambda: b.kl_divergence(np.zeros(b.size)),
        lambda: am.SparseBelief(np.zeros(100)),
        lambda: am.SparseBelief.from_indices([5], [1.0], 5),
        lambda: am.Model(np.eye(3) * 2, np.eye(3)),
    ]


@pytest.mark.parametrize("storage", ["pairs", "bitmap", "dense", "uniform"])
def test_no_verb_leaves_anything_behind(storage):
    """Verbs that succeed and verbs that fail, each many times over."""
    n, n_times = 640, 100
    T, Z = reference.ring_tables(n)
    Z = np.pad(Z, ((0, 0), (0, 1)))  # observation 4 never comes
    model, other_model = am.Model(T, Z), am.Model(T, Z, dtype=np.float32)
    b = reference.one_of_each_storage(am.SparseBelief, n_cells=n)[storage]
    likelihood, sparse_likelihood = np.ones(n), am.SparseArray(np.ones(n))
    calls = [
        lambda: b.copy().update(model, 0, 1),
        lambda: b.copy().update(model, 0, 1, prune=0.5),
        lambda: b.copy().predict(model, 0),
        lambda: b.copy().correct(likelihood),
        lambda: b.copy().correct(sparse_likelihood),
        lambda: b.copy().normalize(),
        lambda: b.copy().prune(max_states=3),
        lambda: b.copy().__imul__(2.0),
        lambda: b.copy().__setitem__(3, 0.5),
        lambda: b.copy().update(model, 0, 4),
        lambda: b.copy().update(model, 0, 4, on_impossible="predict"),
        lambda: b.copy().update(model, 0, 4, on_impossible="likelihood"),
        lambda: (b.values, b.indices, b.to_dense(), repr(b)),
        lambda: (b.entropy(), b.mode(), b.top(3), b.sample(rng=0), b.marginal(0), b.total_variation(b)),
        lambda: pickle.loads(pickle.dumps(b)),
        *calls_that_raise(b, model, other_model),
    ]

    def repeat(call, times):
        for _ in range(times):
            with contextlib.suppress(TypeError, ValueError):
                call()

    with Traced() as traced:
        for number, call in enumerate(calls):
            repeat(call, 5)  # fills caches
            before = traced.held()
            repeat(call, n_times)
            assert traced.held() - before < 8 * n_times, number  # the smallest block is 16 bytes


def test_models_leave_nothing_behind(tmp_path):
    T, Z = reference.ring_tables(100)
    am.Model(T, Z).save(tmp_path / "model")
    makers = (
        lambda: am.Model(T, Z),
        lambda: am.Model.open(tmp_path / "model"),
        lambda: am.Model(T, Z).belief(),
    )
    with Traced() as traced:
        for make in makers:
            make()
            before = traced.held()
            for _ in range(30):
                make()
            assert traced.held() - before < 30 * 64


def test_an_opened_model_gives_its_file_back(tmp_path):
    am.Model(*reference.ring_tables(100)).save(tmp_path / "model")
    process = psutil.Process()
    before = len(process.open_files()), process.num_fds()
    for _ in range(20):
        b = am.Model.open(tmp_path / "model").belief()
    gc.collect()
    assert b.size == 100
    assert (len(process.open_files()), process.num_fds()) == before
    assert not any(str(tmp_path) in region.path for region in process.memory_maps())


def test_memory_stays_flat_over_300_000_updates():
    """A leak of one small block an update would be 5 MB or more."""
    model = am.Model(*reference.ring_tables(640))
    process, b = psutil.Process(), am.SparseBelief.point(640, 3)

    def step(n_updates):
        for t in range(n_updates):
            b.update(model, 0, t & 3, prune=1e-3)

    step(20_000)
    gc.collect()
    before = process.memory_info().rss
    step(300_000)
    gc.collect()
    assert process.memory_info().rss - before < 2_000_000


# ---- who may write when

WRITES = {
    "update": lambda b, m: b.update(m, 0, 1),
    "update without observation": lambda b, m: b.update(m, 0, None),
    "predict": lambda b, m: b.predict(m, 0),
    "correct": lambda b, m: b.correct(np.ones(b.size)),
    "correct sparsely": lambda b, m: b.correct(am.SparseArray(np.ones(b.size))),
    "correct by the impossible": lambda b, m: b.correct(np.zeros(b.size), on_impossible="predict"),
    "normalize": lambda b, m: b.normalize(),
    "prune": lambda b, m: b.prune(max_states=2),
    "assign": lambda b, m: b.__setitem__(3, 0.5),
    "scale": lambda b, m: b.__imul__(2.0),
    "sort": lambda b, m: b.sort(),
    "fill": lambda b, m: b.fill(0.5),
    "out": lambda b, m: np.multiply(b, 2.0, out=b),
    "resize": lambda b, m: b.resize(10),
}


@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_a_second_writer_is_refused_and_the_first_goes_on(call):
    model = am.Model(*reference.ring_tables(640))
    b = am.SparseBelief(scattered(np.random.default_rng(2), 640, 300))
    with one_writer([b]):
        before = bits(b)
        for _ in range(2):  # the first refusal does not let the second in
            with pytest.raises(RuntimeError, match="writer"):
                call(b, model)
        assert bits(b) == before
    call(b, model)
    b._check()


def test_readers_need_not_wait_for_a_writer():
    b = am.SparseBelief(scattered(np.random.default_rng(2), 640, 300))
    before = bits(b), b.to_dense().tobytes()
    with one_writer([b]):
        assert (bits(b), b.to_dense().tobytes()) == before
        assert bits(b.copy()) == before[0]
        b.copy().normalize()


@pytest.mark.parametrize("spoil", [None, lambda b: b.__setitem__(0, np.nan)], ids=["sound", "no measure"])
@pytest.mark.parametrize("call", WRITES.values(), ids=WRITES)
def test_a_writer_leaves_whether_it_succeeds_or_not(call, spoil):
    model = am.Model(*reference.ring_tables(640))
    b = am.SparseBelief(scattered(np.random.default_rng(2), 640, 300))
    if spoil:
        spoil(b)
    with contextlib.suppress(ValueError):
        call(b, model)
    with one_writer([b]):
        pass


def test_a_writer_that_is_interrupted_or_dropped_leaves():
    b = am.SparseBelief([0.5, 0.5])
    inside = one_writer([b, b, None])
    inside.__enter__()
    with pytest.raises(RuntimeError, match="writer"):
        b.normalize()
    del inside
    b.normalize()


def in_threads(*functions):
    """Run each in a thread of its own, all at once; raise what any of them raised."""
    failures, start = [], threading.Barrier(len(functions))

    def guarded(function):
        start.wait()
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


@pytest.fixture(scope="module")
def turn():
    """Moves every state one on: after k steps the largest entry is k places further. Its steps release the GIL."""
    n = 60_000
    T = sparse.csr_array((np.ones(n), (np.arange(n), np.roll(np.arange(n), -1))), shape=(n, n))
    return am.Model(T, np.full((n, 2), 0.5))


@pytest.mark.parametrize("known", [True, False], ids=["known to be a measure", "to be looked at first"])
def test_two_threads_in_one_belief_raise_or_take_turns(turn, known):
    """No update is lost, done twice or half done, however the two meet."""
    n = turn.n_states
    ramp = np.arange(1.0, n + 1)
    for _ in range(30):
        b, done = am.SparseBelief(ramp), []
        if known:
            b.normalize()
        else:
            b *= 0.5

        def work(b=b, done=done):
            for _ in range(3):
                with contextlib.suppress(RuntimeError):
                    b.update(turn, 0, 0)
                    done.append(1)

        in_threads(work, work)
        assert len(done) >= 1
        b._check()
        assert b.mode() == (n - 1 + len(done)) % n
        np.testing.assert_allclose(b.to_dense(), np.roll(ramp / ramp.sum(), len(done)), rtol=1e-12)


def test_all_kinds_of_writers_and_readers_at_once(turn):
    n = turn.n_states
    b = am.SparseBelief(np.arange(1.0, n + 1))
    likelihood = np.ones(n)
    busy = threading.Event()

    def writer(call):
        def work():
            for _ in range(25):
                with contextlib.suppress(RuntimeError):
                    call()

        return work

    def reader():
        while not busy.is_set():
            with contextlib.suppress(RuntimeError):
                b.copy()._check()
            with contextlib.suppress(RuntimeError):
                assert b.to_dense().shape == (n,)
            with contextlib.suppress(RuntimeError):
                assert 0 < b.values.sum() < n**2
            with contextlib.suppress(RuntimeError):
                assert len(b.indices) == n
            assert len(repr(b)) < 200

    writers = [
        writer(lambda: b.update(turn, 0, 0)),
        writer(lambda: b.correct(likelihood)),
        writer(lambda: b.__imul__(1.0)),
        writer(b.normalize),
    ]
    reading = threading.Thread(target=reader)
    reading.start()
    in_threads(*writers)
    busy.set()
    reading.join()
    b._check()
    b.normalize()
    assert b.values.sum() == pytest.approx(1.0)


def test_what_a_reader_sees_is_one_belief(turn):
    """Every copy and dense form that a reader gets is the start, turned by a whole number of steps."""
    n = turn.n_states
    start = am.SparseBelief(np.arange(1.0, n + 1))
    start.normalize()
    b, seen, over = start.copy(), [], threading.Event()

    def write():
        for _ in range(40):
            b.update(turn, 0, 1)
        over.set()

    def read():
        while not over.is_set():
            with contextlib.suppress(RuntimeError):
                seen.append(b.to_dense() if len(seen) % 2 else b.copy().to_dense())

    in_threads(write, read)
    expected = start.to_dense()
    for cells in seen[:: max(1, len(seen) // 20)]:
        np.testing.assert_allclose(cells, np.roll(expected, int(cells.argmax()) - (n - 1)), rtol=1e-11)


def test_correct_by_a_sparse_likelihood_is_one_write():
    """Another writer that comes while the likelihood is looked up is refused, or was there before."""
    model = am.Model([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]], np.ones((3, 1)))
    b, refused = am.SparseBelief([0.5, 0.5, 0.0]), []

    class Meddler(am.SparseArray):
        def _lookup(self, wanted):
            found = super()._lookup(wanted)
            if len(wanted) > 1 and not refused:
                try:
                    b.update(model, 0, 0)
                    refused.append(False)
                except RuntimeError:
                    refused.append(True)
            return found

    b.correct(Meddler([0.2, 0.6, 0.4]))
    assert refused in ([], [True], [False])
    moved_first = refused == [False]
    assert b.to_dense() == pytest.approx([0.0, 0.6, 0.4] if moved_first else [0.25, 0.75, 0.0])


@dtypes
def test_beliefs_on_many_threads_are_those_of_one(dtype):
    n = 5000
    model = am.Model(*reference.ring_tables(n), dtype=dtype)

    def walk(number):
        b = am.SparseBelief(scattered(np.random.default_rng(number), n, 10 ** (number % 4), dtype))
        evidence = [b.update(model, 0, (t * number) % 4) for t in range(40)]
        return evidence, bits(b)

    expected = [walk(number) for number in range(8)]
    got = [None] * 8

    def work(number):
        got[number] = walk(number)

    in_threads(*(lambda number=number: work(number) for number in range(8)))
    assert got == expected


def test_scratch_may_be_released_while_others_work(turn):
    expected = am.SparseBelief(np.arange(1.0, turn.n_states + 1))
    b = expected.copy()
    for _ in range(20):
        expected.update(turn, 0, 0)

    def step():
        for _ in range(20):
            b.update(turn, 0, 0)

    def release():
        for _ in range(200):
            release_scratch()

    in_threads(step, release)
    assert bits(b) == bits(expected)


def test_a_failed_step_leaves_the_workspace_clean():
    """What an impossible or overflowing step summed up must not leak into the next one's result."""
    T, Z = reference.ring_tables(640)
    model = am.Model(T, np.pad(Z, ((0, 0), (0, 1))))
    release_scratch()
    for start in reference.one_of_each_storage(am.SparseBelief).values():
        release_scratch()
        expected = start.copy()
        expected.update(model, 0, 1)
        for fail in (
            lambda start=start: start.copy().update(model, 0, 4),
            lambda: am.SparseBelief(np.linspace(1e308, 1.7e308, 640)).update(model, 0, 1),
        ):
            with pytest.raises(ValueError):
                fail()
            b = start.copy()
            with unchanged(start):
                b.update(model, 0, 1)
            assert bits(b) == bits(expected)
