"""Equal models and arrays become one object, different ones never; processes share the pages of one file."""

import copy
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path

import numpy as np
import pytest

import agentmem as am
import reference
from reference import same_environment


def tables(seed=0, n_states=12):
    return reference.random_tables(np.random.default_rng(seed), n_states, n_observations=4)


def test_equal_content_is_one_object():
    pool = am.ModelPool()
    first = pool.intern(am.Model(*tables()))
    T, Z = tables()
    assert pool.intern(am.Model(np.array(T), Z)) is first
    assert pool.intern(first) is first
    assert len(pool) == 1


@pytest.mark.parametrize("other", ["number", "prior", "dtype", "actions", "model"])
def test_other_content_of_the_same_shape_is_another_object(other):
    pool = am.ModelPool()
    T, Z = tables()
    first = pool.intern(am.Model(T, Z))
    if other == "number":
        T[1] = T[1].copy()
        row = np.flatnonzero(T[1][3])
        T[1][3, row[:2]] += [1e-15, -1e-15]
    second = {
        "number": lambda: am.Model(T, Z),
        "prior": lambda: am.Model(T, Z, reference.normalized(np.arange(1, 13))),
        "dtype": lambda: am.Model(T, Z, dtype=np.float32),
        "actions": lambda: am.Model(T[::-1], Z),
        "model": lambda: am.Model(*tables(1)),
    }[other]()
    assert pool.intern(second) is second is not first
    assert len(pool) == 2


def test_a_model_goes_with_its_last_user():
    pool = am.ModelPool()
    model = pool.intern(am.Model(*tables()))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None and len(pool) == 0
    again = am.Model(*tables())
    assert pool.intern(again) is again


def test_many_threads_get_one_object():
    pool, made, start = am.ModelPool(), [], threading.Barrier(8)

    def run():
        model = am.Model(*tables())
        start.wait()
        made.append(pool.intern(model))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8 and len({id(model) for model in made}) == 1


MATRICES = [
    np.eye(3),
    np.eye(3, dtype=np.float32),
    np.eye(3, dtype=bool),
    np.eye(3).reshape(9),
    np.eye(3)[::-1],
    am.SparseArray(np.eye(3)),
    am.SparseBelief(np.eye(3)),
    am.SparseArray(np.eye(3)).reshape(9),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(6.0).reshape(2, 3),
    np.arange(12.0).reshape(2, 6)[:, ::2],
    np.zeros((3, 0)),
    np.array(0.5),
    np.array([np.nan, np.inf]),
    np.array(["a", "b"]),
]


def test_equal_arrays_are_one_object_and_different_ones_never():
    pool = am.ModelPool()
    kept = [pool.intern(matrix) for matrix in MATRICES]
    assert len(pool) == len({id(array) for array in kept}) == len(MATRICES)
    for matrix, array in zip(MATRICES, kept, strict=True):
        assert pool.intern(matrix) is pool.intern(copy.copy(matrix)) is array is not matrix
        assert pool.intern(array) is array
        assert type(array) is type(matrix) and array.dtype == matrix.dtype and array.shape == matrix.shape
        np.testing.assert_array_equal(array, matrix)


@pytest.mark.parametrize("matrix", [np.eye(3), am.SparseArray(np.eye(3)), np.asfortranarray(np.eye(3)[:2])])
def test_a_shared_array_cannot_be_written_to(matrix):
    shared = am.ModelPool().intern(matrix)
    with pytest.raises(ValueError, match="read-only"):
        shared[0, 0] = 5
    with pytest.raises(ValueError, match="read-only"):
        shared *= 2
    assert shared[0, 0] == 1
    matrix[0, 0] = 7  # the one it was made of still can
    assert shared[0, 0] == 1


def test_an_array_keeps_its_order_in_memory():
    pool, by_rows = am.ModelPool(), np.arange(6.0).reshape(2, 3)
    by_columns = np.asfortranarray(by_rows)
    assert pool.intern(by_rows).flags.c_contiguous and pool.intern(by_columns).flags.f_contiguous
    first = pool.intern(by_columns)
    assert pool.intern(by_columns) is first


def test_an_array_goes_with_its_last_user():
    pool = am.ModelPool()
    for matrix in (np.eye(3), am.SparseArray(np.eye(3))):
        shared = pool.intern(matrix)
        assert len(pool) == 1
        del shared
        gc.collect()
        assert len(pool) == 0


@pytest.mark.parametrize("given", [{}, "a", [0.5, 0.5], np.array([{}, None]), np.ma.array([1, 2])])
def test_nothing_else_is_taken(given):
    with pytest.raises(TypeError, match=f"{type(given).__name__} given; expected an agentmem.Model, an ndarray"):
        am.ModelPool().intern(given)


USER = """
import sys
import numpy as np
import agentmem as am
model = am.Model.open(sys.argv[1])
belief = model.belief()
print(belief.update(model, 0, 1), flush=True)
for line in sys.stdin:
    if line == "pages\\n":
        shared, inside = 0, False
        for row in open("/proc/self/smaps"):
            inside = sys.argv[1] in row if "-" in row.split()[0] else inside
            shared += 1024 * int(row.split()[1]) if inside and row.startswith("Pss:") else 0
        print(shared, flush=True)
    else:
        print(belief.update(model, 0, 1), flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="no /proc/self/smaps here")
def test_processes_share_the_pages_of_a_file(tmp_path):
    path = tmp_path / "shared.model"
    rng = np.random.default_rng(0)
    model = am.Model(rng.dirichlet(np.ones(700), size=700), rng.dirichlet(np.ones(3), size=700))
    model.save(path)
    users = [
        subprocess.Popen(
            [sys.executable, "-c", USER, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=same_environment(),
        )
        for _ in range(4)
    ]

    def ask(user, what):
        user.stdin.write(f"{what}\n")
        user.stdin.flush()
        return float(user.stdout.readline())

    try:
        evidence = {user.stdout.readline() for user in users}
        assert len(evidence) == 1
        held = [ask(user, "pages") for user in users]
        assert sum(held) <= 1.1 * os.path.getsize(path)
        assert max(held) <= 0.4 * os.path.getsize(path)
        users[0].send_signal(signal.SIGKILL)
        users[0].wait()
        assert len({ask(user, "update") for user in users[1:]}) == 1
        assert am.Model.open(path) == model
    finally:
        for user in users:
            user.kill()
            user.communicate()
