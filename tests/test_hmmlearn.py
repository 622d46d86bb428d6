"""A pass over a sequence is what hmmlearn's CategoricalHMM makes of it."""

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
from reference import random_rows

hmm = pytest.importorskip("hmmlearn.hmm", reason="needs hmmlearn")

N_SYMBOLS = 20


def random_hmm(seed, n_states, branching):
    """One of theirs with `branching` targets a state, and 300 symbols drawn from it."""
    rng = np.random.default_rng(seed)
    theirs = hmm.CategoricalHMM(n_states, n_features=N_SYMBOLS)
    theirs.startprob_ = rng.dirichlet(np.ones(n_states))
    theirs.transmat_ = random_rows(rng, n_states, n_states, branching)
    theirs.emissionprob_ = random_rows(rng, n_states, N_SYMBOLS, N_SYMBOLS // 2)
    symbols, _ = theirs.sample(300, random_state=seed)
    return theirs, symbols.ravel()


@pytest.mark.parametrize(
    ("seed", "n_states", "branching"), [(0, 50, 3), (1, 120, 4), (2, 200, 5), (3, 350, 6), (4, 500, 5)]
)
def test_evidence_and_last_belief_are_theirs(seed, n_states, branching):
    theirs, symbols = random_hmm(seed, n_states, branching)
    model = am.Model.from_hmm(theirs.startprob_, sparse.csr_array(theirs.transmat_), theirs.emissionprob_)
    ours = model.filter(symbols, first="correct")
    column = symbols[:, None]
    assert ours.log_evidence.sum() == pytest.approx(theirs.score(column), rel=1e-8)
    assert np.abs(ours.belief - theirs.predict_proba(column)[-1]).max() < 1e-9  # a smoother, but at its last step


def test_every_prefix_has_their_evidence():
    theirs, symbols = random_hmm(5, 50, 4)
    model = am.Model.from_hmm(theirs.startprob_, theirs.transmat_, theirs.emissionprob_)
    found = model.filter(symbols[:40], first="correct").log_evidence.cumsum()
    expected = [theirs.score(symbols[: t + 1, None]) for t in range(40)]
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_sparse_and_dense_matrices_are_one_model():
    theirs, _ = random_hmm(6, 60, 3)
    start, transition, emission = theirs.startprob_, theirs.transmat_, theirs.emissionprob_
    models = [
        am.Model.from_hmm(start, form(transition), other(emission))
        for form in (np.asarray, sparse.csr_array, sparse.coo_matrix, sparse.csc_array)
        for other in (np.asarray, sparse.csr_matrix)
    ]
    assert len({model.digest for model in models}) == 1
