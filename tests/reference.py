"""The truth that the tests hold the library against: dense float64 NumPy, slow and obvious.

First the filter and its queries on plain arrays, then inputs and assertions that several test files share.
"""

import contextlib
import gc
import math
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from scipy import sparse

import agentmem

DTYPES = (np.float64, np.float32)
ONE_STEP = {np.float64: 1e-12, np.float32: 2e-7}  # relative error of an entry after one step
SMALLEST = {np.float64: 1e-320, np.float32: 3e-45}  # below this, the dtype has hardly any digits

# ---- the filter: p is any array of masses, T is (S, S) with rows s, Z is (S, n_observations)


def normalized(p):
    p = np.asarray(p, dtype=np.float64)
    return p / p.sum()


def predict(p, T):
    return normalized(normalized(p) @ T)


def correct(p, likelihood):
    """The posterior and the log of its evidence; None and -inf where there is none."""
    joint, scale = normalized(p), np.max(likelihood)
    if scale > 0:
        joint = joint * (likelihood / scale)
    if scale == 0 or joint.sum() == 0:
        return None, -math.inf
    return normalized(joint), math.log(joint.sum()) + math.log(scale)


def update(p, T, Z, observation):
    """The posterior after one step and the log of the observation's probability; rows are used as given."""
    predicted = normalized(p) @ T
    if observation is None:
        return normalized(predicted), 0.0
    posterior, log_evidence = correct(predicted, Z[:, observation])
    return posterior, log_evidence + math.log(predicted.sum())


def prune(p, *, relative=None, absolute=None, mass=None, max_states=None):
    """What is left of p, normalised (None: nothing), and the share dropped. Of equals the last goes first."""
    masses, p = np.ravel(p), normalized(p).ravel()
    order = sorted(np.flatnonzero(masses), key=lambda i: (masses[i], -i))
    keep = {int(i) for i in order}
    dropped_so_far = 0.0
    for rank, i in enumerate(order):
        dropped_so_far += p[i]
        if (
            (relative is not None and p[i] < relative * p.max())
            or (absolute is not None and p[i] < absolute)
            or (mass is not None and dropped_so_far < mass)
            or (max_states is not None and rank < len(order) - max_states)
        ):
            keep.discard(int(i))
    left = np.array([p[i] if i in keep else 0.0 for i in range(len(p))])
    return (normalized(left) if keep else None), 1 - left.sum()


# ---- queries


def entropy(p):
    return -sum(x * math.log(x) for x in normalized(p).ravel() if x > 0) + 0.0


def kl_divergence(p, q):
    total = 0.0
    for x, y in zip(normalized(p).ravel(), normalized(q).ravel(), strict=True):
        if x > 0:
            total += x * (math.log(x) - math.log(y)) if y > 0 else math.inf
    return total


def total_variation(p, q):
    return 0.5 * np.abs(normalized(p).ravel() - normalized(q).ravel()).sum()


def mode(p):
    return int(np.argmax(np.asarray(p)))


def top(p, k):
    masses = np.ravel(p)
    order = sorted(np.flatnonzero(masses), key=lambda i: (-masses[i], i))[:k]
    return np.array(order, dtype=np.intp), normalized(masses)[order]


def marginal(p, kept):
    """Sums over all other axes; the kept ones in the order given."""
    kept = [a % np.ndim(p) for a in kept]
    others = tuple(a for a in range(np.ndim(p)) if a not in kept)
    summed = normalized(p).sum(axis=others)
    return summed.transpose([sorted(kept).index(a) for a in kept])


# ---- models


def random_rows(rng, n_rows, n_columns, branching):
    """A dense stochastic matrix with about `branching` non-zero columns in each row."""
    rows = np.zeros((n_rows, n_columns))
    for row in rows:
        columns = rng.choice(n_columns, size=min(branching, n_columns), replace=False)
        row[columns] = rng.random(len(columns)) + 0.01
    return rows / rows.sum(axis=1, keepdims=True)


def random_tables(rng, n_states, *, n_actions=2, n_observations=3, branching=3, seen=2):
    """Transition matrices and one observation matrix, dense; each state shows `seen` of the observations."""
    transitions = [random_rows(rng, n_states, n_states, branching) for _ in range(n_actions)]
    return transitions, random_rows(rng, n_states, n_observations, seen)


def as_stored(table, dtype):
    """The numbers that a model of this dtype keeps of a table, as float64."""
    return np.asarray(table).astype(dtype).astype(np.float64)


def ring_tables(n_states, n_observations=4, noise=0.1):
    """A walk on a ring, in CSR: stay 0.5, step 0.3 or 0.2; a noisy sensor reads the state's residue."""
    s = np.arange(n_states)
    targets = np.concatenate([s, (s + 1) % n_states, (s - 1) % n_states])
    T = sparse.csr_matrix((np.repeat([0.5, 0.3, 0.2], n_states), (np.tile(s, 3), targets)), shape=(n_states, n_states))
    Z = np.full((n_states, n_observations), noise / (n_observations - 1))
    Z[s, s % n_observations] = 1 - noise
    return T, Z


# ---- inputs

NASTY = (0.0, 0.0, 0.25, 0.5, 0.5, 1.0, 3.0, 1e-7, 1e-13, 1e-30, 5e4)


def masses(min_size=1, max_size=70):
    """Arrays of masses, not all zero: many zeros, many ties, some far apart; across the word of a bitmap."""
    cells = st.one_of(st.sampled_from(NASTY), st.floats(1e-6, 1.0))
    return st.lists(cells, min_size=min_size, max_size=max_size).map(np.array).filter(np.any)


def densities(n_cells):
    """How many of `n_cells` to fill: one, all, and around every change of storage."""
    shares = (0, 0.01, 0.02, 0.03, 0.031, 0.032, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.96, 0.97, 0.98, 0.99, 1)
    return sorted({max(1, round(share * n_cells)) for share in shares} | {max(1, n_cells - 1)})


def scattered(rng, n_cells, n_stored, dtype=np.float64):
    """Cells of which `n_stored` are not zero, each of its own size."""
    cells = np.zeros(n_cells, dtype=dtype)
    cells[rng.choice(n_cells, size=n_stored, replace=False)] = rng.random(n_stored) + 0.5
    return cells


def one_of_each_storage(belief_class, dtype=np.float64, n_cells=640):
    """Beliefs of the same size, one in each storage, by name."""
    rng = np.random.default_rng(5)
    made = {
        name: belief_class(scattered(rng, n_cells, n_stored, dtype))
        for name, n_stored in (("pairs", 5), ("bitmap", n_cells // 4), ("dense", n_cells))
    }
    made["uniform"] = belief_class.uniform(n_cells, dtype=dtype)
    assert all(b.storage == name for name, b in made.items())
    return made


def twins(belief_class, dtype):
    """Pairs of beliefs with the same content in two storages.

    A verb keeps pairs or bitmap until the other is 3 % smaller; a constructor takes the smaller. So what a
    verb cut down to a size where the two are about equal stays a bitmap. What grew equal need not be uniform.
    """
    rng, n_cells = np.random.default_rng(6), 640
    cut = belief_class(scattered(rng, n_cells, 30, dtype))
    likelihood = np.zeros(n_cells)
    likelihood[cut.indices[:20]] = 1.0
    cut.correct(likelihood)
    rebuilt = belief_class.from_indices(cut.indices, cut.values, n_cells)
    assert (cut.storage, rebuilt.storage) == ("bitmap", "pairs")
    yield cut, rebuilt
    step = np.where(np.arange(n_cells) % 2, 2.0, 1.0)
    level = belief_class(step.astype(dtype))
    level.correct(3.0 - step)
    yield level, belief_class(level.to_dense())


# ---- assertions


def bits(b):
    """All that a belief is, bit for bit."""
    return (
        *(type(b), b.shape, b.dtype.str, b.storage, b.indices.tobytes(), b.values.tobytes()),
        *(b.nbytes, b.prune_below, b.pruned_mass),
    )


def content(b):
    """What a belief says, whatever its storage: entries bit for bit."""
    return b.shape, b.dtype.str, b.indices.tolist(), b.values.tobytes()


@contextlib.contextmanager
def full_disk(nbytes):
    """Let no file grow over so many bytes: writing on is an OSError, as on a full disk."""
    import resource  # not on Windows

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def unchanged(b):
    """Assert that the block leaves the belief bit for bit as it was, and sound."""
    before = bits(b)
    yield
    assert bits(b) == before
    b._check()


def assert_is(b, expected, rtol=None, shape=None):
    """Assert that a belief is sound, normalised and equal to the expected probabilities, entry by entry."""
    b._check()
    dtype = b.dtype.type
    expected = np.asarray(expected)
    rtol = ONE_STEP[dtype] if rtol is None else rtol
    assert b.shape == (expected.shape if shape is None else shape)
    assert abs(b.values.astype(np.float64).sum() - 1) <= (1e-12 if dtype == np.float64 else 1e-6)
    np.testing.assert_allclose(
        b.to_dense().astype(np.float64).ravel(), expected.ravel(), rtol=rtol, atol=SMALLEST[dtype]
    )


def payload(b, storage=None):
    """Bytes that the content takes in a storage (its own by default), with nothing around it."""
    item, n_stored, n_cells = b.dtype.itemsize, b.nnz, b.size
    return {
        "pairs": n_stored * (item + (4 if n_cells < 2**31 else 8)),
        "bitmap": n_stored * item + -(-n_cells // 64) * 8,
        "dense": n_cells * item,
        "uniform": item,
    }[storage or b.storage]


def smallest_payload(b):
    return min(payload(b, storage) for storage in ("pairs", "bitmap", "dense"))


forget_names = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache


class Traced:
    """What tracemalloc saw in a block: `kept` bytes still held at its end, `peak` bytes above its start."""

    def __enter__(self):
        gc.collect()
        gc.disable()
        gc.freeze()  # so that collecting in the block is quick
        tracemalloc.start()
        self._start = self.held()
        return self

    @staticmethod
    def held():
        gc.collect()
        forget_names()  # the cache of attribute look-ups keeps the strings it was asked with
        return tracemalloc.get_traced_memory()[0]

    def __exit__(self, *_):
        peak = tracemalloc.get_traced_memory()[1]
        self.kept, self.peak = self.held() - self._start, peak - self._start
        tracemalloc.stop()
        gc.unfreeze()
        gc.enable()


def same_environment():
    """The environment of a child that imports the same agentmem and the same tests as this process."""
    paths = [str(Path(agentmem.__file__).parents[1]), str(Path(__file__).parent)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}


# ---- the worth of policies: T is a list of (S, S), A a list of (S, n_observations), both with rows s


def run_alone(function, *arguments):
    """Call a function of a test file in a process of its own, with `sys.argv[3:]`; what it raises fails the test."""
    script = "import runpy, sys; runpy.run_path(sys.argv[1])[sys.argv[2]]()"
    command = [sys.executable, "-c", script, function.__code__.co_filename, function.__name__, *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, env=same_environment())
    assert ran.returncode == 0, ran.stdout + ran.stderr


def expected_free_energy(p, T, A, policies, *, value=None, extra=None, information=True):
    """What each policy, a sequence of actions, is worth from the masses p: its negative expected free energy.

    `value` (1 or depth, S) and `extra` (S,) say what being in a state is worth. States of up to e**-16 gain no
    information.
    """
    negligible, worths = math.exp(-16), []
    for policy in policies:
        q, worth = np.asarray(p, dtype=np.float64), 0.0
        for depth, action in enumerate(policy):
            q = q @ T[action]
            if value is not None:
                worth += q @ value[min(depth, len(value) - 1)]
            if extra is not None:
                worth += q @ extra
            if information:
                counted = np.where(q > negligible, q, 0.0)
                for Z in A:
                    seen = counted @ Z
                    ambiguity = (Z * np.log(Z + negligible)).sum(axis=1)
                    worth += counted @ ambiguity - seen @ np.log(seen + 1e-16)
        worths.append(worth)
    return np.array(worths)
