"""Seeded series to tell growth from what only looks like it, shared with the benchmark; noise has a deviation of 1.

`BOUNDED` do not leak and must not be called growing, `LEAKS` must, of `HARD` it is only said what happens. Sizes span
what a leak's do, and three orders of magnitude of noise.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Rng = np.random.Generator
Floats = NDArray[np.float64]
Case = Callable[[Rng, Floats], Floats]  # of t, which goes from 0 to 1


def size(rng: Rng, least: float = 10, most: float = 1_000) -> float:
    return float(np.exp(rng.uniform(np.log(least), np.log(most))))


def noise(rng: Rng, t: Floats) -> Floats:
    return rng.normal(size=len(t))


def autocorrelated(rng: Rng, t: Floats, memory: float = 0.9) -> Floats:
    """AR(1): each figure keeps a share of the one before."""
    found = noise(rng, t)
    for i in range(1, len(t)):
        found[i] = memory * found[i - 1] + (1 - memory**2) ** 0.5 * found[i]
    return found


def warm_up(t: Floats, constant: float) -> Floats:
    return 1 - np.exp(-t / constant)


def sawtooth(rng: Rng, t: Floats, longest: float) -> Floats:
    """From 0 to 1 and back at once, every 4 samples to `longest` of the series: what waits for the collector."""
    n = len(t)
    period = rng.integers(4, max(5, round(n * longest) + 1))
    return (np.arange(n) + rng.integers(period)) % period / (period - 1)


def jumps(rng: Rng, t: Floats, sizes: list[float]) -> Floats:
    return np.add.reduce([height * (t >= rng.random()) for height in sizes])


def filling(t: Floats, until: float) -> Floats:
    return np.minimum(1, t / until)


def reallocated(rng: Rng, t: Floats, factor: float) -> Floats:
    """The capacity for t elements beside 1 % to 30 % that were there, where each reallocation is by the factor."""
    return factor ** np.ceil(np.log(rng.uniform(0.01, 0.3) + t) / np.log(factor) + rng.random())


def peaks(rng: Rng, t: Floats) -> Floats:
    """Every other sample or so is of something large, and ever larger, that is gone at the next."""
    return size(rng, 20) * t * (rng.random(len(t)) < 0.5)


BOUNDED: dict[str, Case] = {
    "flat": noise,
    "constant": lambda rng, t: np.full(len(t), size(rng)),
    "tied (0, 1, 2)": lambda rng, t: rng.integers(3, size=len(t)).astype(float),
    "tied, rarely 1": lambda rng, t: (rng.random(len(t)) < 0.05).astype(float),
    "autocorrelated 0.9": autocorrelated,
    "autocorrelated 0.95": lambda rng, t: autocorrelated(rng, t, 0.95),
    "warm-up, n/20": lambda rng, t: size(rng) * warm_up(t, 1 / 20) + noise(rng, t),
    "warm-up, n/3": lambda rng, t: size(rng) * warm_up(t, 1 / 3) + noise(rng, t),
    "warm-up, n/3, of 15": lambda rng, t: 15 * warm_up(t, 1 / 3) + noise(rng, t),
    "sawtooth, to n/4": lambda rng, t: size(rng, 3) * sawtooth(rng, t, 1 / 4) + noise(rng, t),
    "growing peaks": lambda rng, t: peaks(rng, t) + noise(rng, t),
    "one jump": lambda rng, t: jumps(rng, t, [size(rng, 3)]) + noise(rng, t),
    "two jumps": lambda rng, t: jumps(rng, t, [size(rng, 3), size(rng, 3)]) + noise(rng, t),
    "two like jumps": lambda rng, t: jumps(rng, t, [size(rng, 3)] * 2) + noise(rng, t),
    "full by 10-50 %": lambda rng, t: size(rng) * filling(t, rng.uniform(0.1, 0.5)) + noise(rng, t),
    "full at 60 %": lambda rng, t: size(rng) * filling(t, 0.6) + noise(rng, t),
    "full at 70 %": lambda rng, t: size(rng) * filling(t, 0.7) + noise(rng, t),
    "falling": lambda rng, t: -size(rng) * t + noise(rng, t),
}
LEAKS: dict[str, Case] = {
    "rise of 12": lambda rng, t: 12 * t + noise(rng, t),
    "rise of 24": lambda rng, t: 24 * t + noise(rng, t),
    "without noise": lambda rng, t: size(rng) * t,
    "under a sawtooth, to n/10": lambda rng, t: 12 * t + 12**0.5 * sawtooth(rng, t, 1 / 10),  # whose deviation is 1
    "after a warm-up, n/20": lambda rng, t: 12 * t + size(rng, 10, 100) * warm_up(t, 1 / 20) + noise(rng, t),
    "faster and faster": lambda rng, t: 18 * t**2 + noise(rng, t),
    "10 to 40 stairs": lambda rng, t: 12 * np.floor(t * rng.integers(10, 41) + rng.random()) / 10,
    "a list's reallocations": lambda rng, t: reallocated(rng, t, 1.125),
}
HARD: dict[str, Case] = {
    "a random walk": lambda rng, t: noise(rng, t).cumsum(),
    "three like jumps": lambda rng, t: jumps(rng, t, [size(rng, 3)] * 3) + noise(rng, t),
    "full at 80 %": lambda rng, t: size(rng) * filling(t, 0.8) + noise(rng, t),
    "full at 90 %": lambda rng, t: size(rng) * filling(t, 0.9) + noise(rng, t),
    "warm-up, n": lambda rng, t: size(rng) * warm_up(t, 1) + noise(rng, t),
    "sawtooth, n": lambda rng, t: size(rng, 3) * ((t + rng.random()) % 1) + noise(rng, t),
    "leak: rise of 8": lambda rng, t: 8 * t + noise(rng, t),
    "leak of 12, autocorrelated": lambda rng, t: 12 * t + autocorrelated(rng, t),
    "leak of 20, autocorrelated": lambda rng, t: 20 * t + autocorrelated(rng, t),
    "leak, sawtooth to n/4": lambda rng, t: 12 * t + 12**0.5 * sawtooth(rng, t, 1 / 4),
    "leak after a warm-up, n/10": lambda rng, t: 12 * t + size(rng, 10, 100) * warm_up(t, 1 / 10) + noise(rng, t),
    "leak and a jump as high": lambda rng, t: 12 * t + jumps(rng, t, [12]) + noise(rng, t),
    "leak: 5 stairs": lambda rng, t: 12 * np.floor(t * 5 + rng.random()) / 5 + noise(rng, t),
    "leak: a dict's doublings": lambda rng, t: reallocated(rng, t, 2),
    "leak: a dict and its items": lambda rng, t: 0.5 * reallocated(rng, t, 2) + t,
}
MOST_FALSE = dict.fromkeys(BOUNDED, 0.01) | {"two jumps": 0.03, "two like jumps": 0.03}  # share called growing
FEWEST_FOUND = 0.99


def draw(name: str, seed: int, n: int = 120) -> Floats:
    rng = np.random.default_rng([seed, *name.encode()])
    return (BOUNDED | LEAKS | HARD)[name](rng, np.arange(n) / n)
