"""Equal models become one object, different ones never; processes share the pages of one file."""

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


def test_only_models_are_taken():
    with pytest.raises(TypeError, match="model of type dict given"):
        am.ModelPool().intern({})


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
