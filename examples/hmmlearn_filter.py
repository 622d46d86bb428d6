"""Score a sequence under a hidden Markov model of 500 states: hmmlearn, then agentmem with the same arrays.

Each state leads to five others. Both find the same log-likelihood and the same belief after the last symbol.
"""

import time

import numpy as np
from hmmlearn.hmm import CategoricalHMM
from scipy import sparse

import agentmem as am

N_STATES, N_SYMBOLS, N_STEPS, N_TARGETS = 500, 20, 200, 5


def main():
    rng = np.random.default_rng(0)
    startprob = np.full(N_STATES, 1 / N_STATES)
    emissionprob = rng.dirichlet(np.full(N_SYMBOLS, 0.3), size=N_STATES)
    states = np.repeat(np.arange(N_STATES), N_TARGETS)
    targets = np.concatenate([rng.choice(N_STATES, N_TARGETS, replace=False) for _ in range(N_STATES)])
    probabilities = rng.dirichlet(np.ones(N_TARGETS), size=N_STATES).ravel()
    transmat = sparse.csr_array((probabilities, (states, targets)), shape=(N_STATES, N_STATES))

    # Before: hmmlearn keeps the whole matrix.
    hmm = CategoricalHMM(N_STATES, n_features=N_SYMBOLS)
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = startprob, transmat.toarray(), emissionprob
    symbols, _ = hmm.sample(N_STEPS, random_state=0)
    started = time.perf_counter()
    score = hmm.score(symbols)
    report("hmmlearn", score, hmm.transmat_.nbytes + emissionprob.nbytes, time.perf_counter() - started)

    # After: sparse matrices are taken as they are. In hmmlearn the start is the belief at the first symbol, before any
    # transition, so the first step only corrects.
    model = am.Model.from_hmm(startprob, transmat, emissionprob)
    started = time.perf_counter()
    result = model.filter(symbols.ravel(), first="correct")
    report("agentmem", result.log_evidence.sum(), model.nbytes, time.perf_counter() - started)

    last = hmm.predict_proba(symbols)[-1]
    print(f"most probable last state: {last.argmax()} and {result.belief.mode()}")
    assert abs(result.log_evidence.sum() - score) < 1e-8 * abs(score)
    assert np.abs(result.belief - last).max() < 1e-9


def report(name, log_likelihood, n_bytes, seconds):
    print(f"{name}: log-likelihood {log_likelihood:.6f}, model {n_bytes:,} bytes, {seconds * 1e3:,.1f} ms")


if __name__ == "__main__":
    main()
