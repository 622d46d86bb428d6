"""A belief through any sequence of verbs and array operations, beside a dense array."""

import copy
import math
import pickle

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import agentmem as am
import reference
from reference import DTYPES, assert_is, bits, content

SHAPES = [(1,), (5,), (64,), (65,), (200,), (3, 4), (2, 3, 11)]
MODES = st.sampled_from(["raise", "predict", "likelihood"])
SHARES = st.sampled_from([None, 0.0, 1e-12, 0.0371, 0.2113])
FACTORS = st.sampled_from([0.5, 3.0, 1e-3, 1e5])
CELLS = st.sampled_from([0.0, 0.0, 0.25, 0.5, 1.0, 7.0, 1e-7, 1e-13, -0.0, -1.0, math.nan])
SEEDS = st.integers(0, 2**20)


class BeliefMachine(RuleBasedStateMachine):
    """`x` is the belief as a dense array of the same dtype: what NumPy made of it, or what the last verb left."""

    @initialize(
        shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES), seed=SEEDS, branching=st.integers(1, 4)
    )
    def start(self, shape, dtype, seed, branching):
        n = math.prod(shape)
        T, Z = reference.random_tables(np.random.default_rng(seed), n, branching=branching, n_observations=4)
        Z[:, 3] = 0.0  # a reading that never comes
        Z /= Z.sum(axis=1, keepdims=True) + (Z.sum(axis=1, keepdims=True) == 0)
        Z[Z.sum(axis=1) == 0, 0] = 1.0
        self.model = am.Model(T, Z, dtype=dtype)
        self.T, self.Z = [reference.as_stored(t, dtype) for t in T], reference.as_stored(Z, dtype)
        self.b = am.SparseBelief.uniform(shape, dtype=dtype)
        self.x = self.b.to_dense()
        self.pruned = 0.0
        self.kept = []  # arrays handed out, and what was in them
        self.copies = []  # copies made, and their bits

    # ---- what has to be true all the time

    @invariant()
    def is_sound(self):
        self.b._check()
        assert self.b.shape == self.x.shape
        assert self.b.dtype == self.x.dtype
        np.testing.assert_array_equal(self.b.to_dense(), self.x)
        if self.b.storage != "uniform":
            assert reference.payload(self.b) <= 1.05 * reference.smallest_payload(self.b) + 8
        assert self.b.nbytes <= self.x.nbytes + 256
        assert self.b.pruned_mass == pytest.approx(self.pruned, abs=1e-12)

    @invariant()
    def what_was_handed_out_is_as_it_was(self):
        assert all(array.tobytes() == before for array, before in self.kept)
        assert all(bits(other) == before for other, before in self.copies)

    # ---- verbs

    @property
    def is_measure(self):
        return bool(np.isfinite(self.x).all() and (self.x >= 0).all() and self.x.any())

    def verb(self, call, expected, dropped=0.0):
        """Call a verb that should leave `expected`; None: the observation is impossible and that raises."""
        before = bits(self.b)
        if not self.is_measure or expected is None:
            with pytest.raises(am.ImpossibleObservation if self.is_measure else ValueError):
                call()
            assert bits(self.b) == before
            return None
        returned = call()
        assert_is(self.b, expected.reshape(self.x.shape))
        self.x = self.b.to_dense()
        self.pruned += dropped
        return returned

    def flat(self):
        return self.x.ravel().astype(np.float64) if self.is_measure else np.ones(self.x.size)

    @rule(action=st.integers(0, 1), observation=st.sampled_from([None, 0, 1, 2, 3]), prune=SHARES, mode=MODES)
    def update(self, action, observation, prune, mode):
        share = self.b.prune_below if prune is None else prune
        exact, evidence = reference.update(self.flat(), self.T[action], self.Z, observation)
        if exact is None and mode == "predict":
            exact = reference.predict(self.flat(), self.T[action])
        restarts = exact is None and mode == "likelihood" and self.Z[:, observation].any()
        left, dropped = (None, 0.0) if exact is None else reference.prune(exact, relative=share)
        if restarts:
            left = reference.normalized(self.Z[:, observation])
        got = self.verb(
            lambda: self.b.update(self.model, action, observation, prune=prune, on_impossible=mode),
            left,
            dropped,
        )
        if got is not None:
            assert got == pytest.approx(evidence, abs=1e-11)

    @rule(action=st.integers(0, 1))
    def predict(self, action):
        self.verb(lambda: self.b.predict(self.model, action), reference.predict(self.flat(), self.T[action]))

    @rule(seed=SEEDS, share=st.sampled_from([0.02, 0.5, 1.0]), scale=st.sampled_from([1.0, 1e-200]), mode=MODES,
          kind=st.sampled_from([np.array, am.SparseArray]))  # fmt: skip
    def correct(self, seed, share, scale, mode, kind):
        rng = np.random.default_rng(seed)
        likelihood = np.where(rng.random(self.x.size) < share, rng.random(self.x.size) * scale, 0.0)
        expected, evidence = reference.correct(self.flat(), likelihood)
        if expected is None and mode == "predict":
            expected = reference.normalized(self.flat())
        elif expected is None and mode == "likelihood" and likelihood.any():
            expected = reference.normalized(likelihood)
        got = self.verb(lambda: self.b.correct(kind(likelihood), on_impossible=mode), expected)
        if got is not None:
            assert got == pytest.approx(evidence, abs=1e-11)

    @rule()
    def normalize(self):
        total = self.flat().sum()
        got = self.verb(self.b.normalize, reference.normalized(self.flat()))
        if got is not None:
            assert got == pytest.approx(total)

    @rule(
        relative=SHARES,
        absolute=SHARES,
        mass=SHARES,
        max_states=st.sampled_from([None, None, 1, 2, 60, 10**6]),
    )
    def prune(self, **rules):
        rules = {name: value for name, value in rules.items() if value is not None}
        expected, dropped = reference.prune(self.flat(), **(rules or {"relative": self.b.prune_below}))
        if expected is None:
            with pytest.raises(ValueError):
                self.b.prune(**rules)
        else:
            got = self.verb(lambda: self.b.prune(**rules), expected, dropped)
            assert got is None or got == pytest.approx(dropped, abs=1e-14)

    @rule(share=st.sampled_from([0.0, 1e-12, 1e-6, 0.0371]))
    def set_prune_below(self, share):
        self.b.prune_below = share

    # ---- the belief as an array

    @rule(place=st.integers(0, 10**6), value=CELLS)
    def assign(self, place, value):
        at = np.unravel_index(place % self.x.size, self.x.shape)
        self.b[at] = value
        self.x[at] = value

    @rule(seed=SEEDS, share=st.sampled_from([0.01, 0.3, 1.0]))
    def assign_many(self, seed, share):
        rng = np.random.default_rng(seed)
        mask = rng.random(self.x.shape) < share
        values = rng.choice([0.0, 0.5, 2.0], mask.sum())
        self.b[mask] = values
        self.x[mask] = values

    @rule(stop=st.integers(-3, 3), value=CELLS)
    def assign_slice(self, stop, value):
        self.b[..., :stop] = value
        self.x[..., :stop] = value

    @rule(factor=FACTORS)
    def scale(self, factor):
        self.b *= factor
        self.x *= factor

    @rule(factor=FACTORS)
    def scale_cells(self, factor):
        by = (np.arange(self.x.shape[-1]) % 3 * factor).astype(self.x.dtype)
        self.b *= by
        self.x *= by

    @rule()
    def add(self):
        self.b += 0.125
        self.x += 0.125

    @rule()
    def sort(self):
        self.b.sort()
        self.x.sort()

    @precondition(lambda self: not self.is_measure)
    @rule()
    def mend(self):
        np.nan_to_num(self.x, copy=False)
        np.abs(self.x, out=self.x)
        self.x.flat[0] = 1.0
        self.b[...] = self.x

    # ---- looks and copies

    @rule()
    def keep_what_it_hands_out(self):
        self.kept = [(array, array.tobytes()) for array in (self.b.values, self.b.indices, self.b.to_dense())]

    @rule(
        how=st.sampled_from(
            [lambda b: b.copy(), copy.copy, copy.deepcopy, lambda b: pickle.loads(pickle.dumps(b))]
        )
    )
    def go_on_with_a_copy(self, how):
        other = how(self.b)
        assert content(other) == content(self.b)
        assert (other.prune_below, other.pruned_mass) == (self.b.prune_below, self.b.pruned_mass)
        self.copies = [*self.copies[-3:], (self.b, bits(self.b))]
        self.b = other

    @precondition(lambda self: self.is_measure)
    @rule(k=st.integers(0, 10), seed=SEEDS)
    def ask(self, k, seed):
        q = np.random.default_rng(seed).random(self.x.size)
        assert self.b.entropy() == pytest.approx(reference.entropy(self.x), abs=1e-11)
        assert self.b.kl_divergence(q) == pytest.approx(reference.kl_divergence(self.x, q), abs=1e-11)
        assert self.b.total_variation(q) == pytest.approx(reference.total_variation(self.x, q), abs=1e-11)
        assert self.b.mode() == reference.mode(self.x)
        assert self.b.top(k)[0].tolist() == reference.top(self.x, k)[0].tolist()
        assert_is(self.b.marginal(-1), reference.marginal(self.x, [-1]))
        assert self.x.flat[self.b.sample(rng=seed)] > 0


BeliefMachine.TestCase.settings = settings(
    deadline=None, database=None, max_examples=60, stateful_step_count=40
)
TestBelief = pytest.mark.filterwarnings("ignore::RuntimeWarning")(BeliefMachine.TestCase)
