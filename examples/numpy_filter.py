"""Where is the robot? A filter by hand in dense NumPy, then the same with agentmem.

It walks a ring of 2,000 cells and sees, mostly, the colour of its cell. Both filters print the same numbers.
"""

import time

import numpy as np

import agentmem as am

N_CELLS, N_COLOURS, N_STEPS = 2_000, 8, 200


def dense_filter(transition, observation, seen):
    """Before: every step multiplies a vector by the whole matrix."""
    belief = np.full(N_CELLS, 1 / N_CELLS)
    log_likelihood = 0.0
    for colour in seen:
        joint = (belief @ transition) * observation[:, colour]
        belief = joint / joint.sum()
        log_likelihood += np.log(joint.sum())
    return belief, log_likelihood


def main():
    cells = np.arange(N_CELLS)
    transition = np.zeros((N_CELLS, N_CELLS))
    for step, probability in enumerate([0.1, 0.8, 0.1]):
        transition[cells, (cells + step) % N_CELLS] = probability
    colours = np.random.default_rng(0).integers(N_COLOURS, size=N_CELLS)
    observation = np.full((N_CELLS, N_COLOURS), 0.01)
    observation[cells, colours] = 0.93
    seen = colours[500 : 500 + N_STEPS]  # a robot that moves on by one cell each time

    started = time.perf_counter()
    dense, log_likelihood = dense_filter(transition, observation, seen)
    n_bytes = transition.nbytes + observation.nbytes
    report("NumPy", dense, log_likelihood, n_bytes, dense.nbytes, time.perf_counter() - started)

    # After: the model keeps what is not zero, and one call takes all steps.
    model = am.Model(transition, observation)
    started = time.perf_counter()
    result = model.filter(seen)
    belief, total = result.belief, result.log_evidence.sum()
    report("agentmem", belief, total, model.nbytes, belief.nbytes, time.perf_counter() - started)

    assert np.abs(belief - dense).max() < 1e-9 and abs(total - log_likelihood) < 1e-9


def report(name, belief, log_likelihood, model_bytes, belief_bytes, seconds):
    print(f"{name:>8}: cell {np.argmax(belief)} with probability {np.max(belief):.6f}, "
          f"log-likelihood {log_likelihood:.6f}")
    print(f"{'':>8}  model {model_bytes:,} bytes, belief {belief_bytes:,} bytes, {seconds * 1e3:,.1f} ms")


if __name__ == "__main__":
    main()
