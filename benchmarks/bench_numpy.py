"""Claim: elementwise operations and reductions on a SparseArray cost by its support, not by its size.

The same expression on a SparseArray and on the dense ndarray, results equal before anything is timed, rounds
interleaved. NumPy wins where arrays are small (a call of ours costs more) or full (indices are in the way):
those ratios are printed too.
"""

from collections.abc import Callable, Iterator
from itertools import product
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import agentmem as am
from harness import interleaved, repeat, replay, table

SIZES = [10_000, 1_000_000]
DENSITIES = [0.0001, 0.001, 0.01, 0.1, 0.5, 1.0]
WAYS = OURS, NUMPY = "ours", "numpy"

# b and b2: the arrays under test; y: a dense array; at: 100 positions
OPERATIONS: dict[str, Callable[..., Any]] = {
    "b * y": lambda b, b2, y, at: b * y,
    "b * 2": lambda b, b2, y, at: b * 2,
    "b + b2": lambda b, b2, y, at: b + b2,
    "np.sqrt(b)": lambda b, b2, y, at: np.sqrt(b),
    "b.sum()": lambda b, b2, y, at: b.sum(),
    "b.max()": lambda b, b2, y, at: b.max(),
    "b.argmax()": lambda b, b2, y, at: b.argmax(),
    "b @ y": lambda b, b2, y, at: b @ y,
    "b[b > t]": lambda b, b2, y, at: b[b > 1.0],
    "b[i]": lambda b, b2, y, at: b[77],
    "b[indices]": lambda b, b2, y, at: b[at],
    "b.copy()": lambda b, b2, y, at: b.copy(),
}

Key = tuple[int, float, str]


def array(size: int, density: float, seed: int) -> NDArray[np.float64]:
    rng = np.random.default_rng([seed, size])
    support = max(1, round(size * density))
    dense = np.zeros(size)
    dense[rng.choice(size, support, replace=False)] = rng.uniform(0.5, 1.5, support)
    return dense


def race(size: int, density: float, operation: str, budget: float) -> dict[str, list[float]]:
    x, x2 = array(size, density, 1), array(size, density, 2)
    rng = np.random.default_rng(3)
    y, at = rng.uniform(0.5, 1.5, size), rng.integers(0, size, 100)
    b, b2 = am.SparseArray(x), am.SparseArray(x2)
    run = OPERATIONS[operation]
    np.testing.assert_allclose(np.asarray(run(b, b2, y, at)), run(x, x2, y, at), rtol=1e-12)
    ways = {OURS: repeat(lambda: run(b, b2, y, at)), NUMPY: repeat(lambda: run(x, x2, y, at))}
    return interleaved(ways, budget=budget)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "operation" in metafunc.fixturenames:
        smoke = metafunc.config.getoption("--smoke")
        metafunc.parametrize("way", WAYS)
        metafunc.parametrize("operation", OPERATIONS)
        metafunc.parametrize("density", DENSITIES)
        metafunc.parametrize("size", SIZES[:1] if smoke else SIZES)


@pytest.fixture(scope="module")
def races(report: Any) -> Iterator[dict[Key, dict[str, list[float]]]]:
    found: dict[Key, dict[str, list[float]]] = {}
    yield found
    if not found:
        return
    ratios = {key: median(seconds[NUMPY]) / median(seconds[OURS]) for key, seconds in found.items()}
    rows = []
    for size, operation in product(SIZES, OPERATIONS):
        by_density = [ratios.get((size, density, operation)) for density in DENSITIES]
        if any(by_density):
            rows.append([f"{size:,}", operation, *map(format_ratio, by_density)])
    report.sections["time of numpy / time of ours (above 1: ours is faster), by density"] = table(
        ["cells", "", *(f"{density:.4g}" for density in DENSITIES)], rows
    )
    report.records["numpy_ratios"] = [[*key, ratio] for key, ratio in ratios.items()]


def format_ratio(ratio: float | None) -> str:
    if ratio is None:
        return "-"
    return f"{ratio:.2g}" if ratio < 10 else f"{ratio:,.0f}"


@pytest.mark.benchmark(timer=replay.read)
def test_operation(
    benchmark: Any, size: int, density: float, operation: str, way: str, races: dict[Key, Any], smoke: bool
) -> None:
    benchmark.group = f"{operation}, {size} cells, density {density}"
    key = size, density, operation
    if key not in races:
        races[key] = race(*key, budget=0.02 if smoke else 0.1)
    replay.play(benchmark, races[key][way])
