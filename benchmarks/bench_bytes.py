"""Claim: at any density, fresh or after 50 updates, a belief takes the bytes of its best form and 96 more.

The best form is the smallest of pairs (index, value), bitmap (one bit a state, packed values) and dense. All
bytes are what tracemalloc saw allocated for one object, the dense ndarray and scipy's CSR row included. Bytes
do not depend on the clock: the claims are asserted. pytest-benchmark times making the belief from dense.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from scipy import sparse

import agentmem as am
from harness import table, traced
from workloads import GRIDS, Case, belief, cases, dense_of, model_of, smallest_form, walk, world

UPDATES = 50
SLACK, OBJECT = 1.05, 96  # bytes allowed: SLACK x the best form + OBJECT
UNIFORM = 256
COUNTED = 0.02  # nbytes against tracemalloc


@dataclass(frozen=True)
class Held:
    """One belief, and the bytes it was seen to take."""

    belief: Any
    traced: int

    @property
    def best_form(self) -> int:
        return smallest_form(self.belief.size, self.belief.nnz, self.belief.dtype.itemsize)

    def check(self) -> None:
        assert self.traced <= SLACK * self.best_form + OBJECT
        assert abs(self.belief.nbytes - self.traced) <= COUNTED * self.traced


def updated(start: Any, model: Any, readings: list[int]) -> Any:
    b = start.copy()
    for reading in readings:
        b.update(model, 0, reading)
    return b


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        sizes = [n for n in GRIDS if n <= 10_000 or not metafunc.config.getoption("--smoke")]
        metafunc.parametrize("case", cases(sizes, "float64") + cases(sizes, "float32"), ids=str)


@pytest.fixture(scope="module")
def rows(report: Any) -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []
    yield found
    if found:
        cells = [[f"{v:,}" if isinstance(v, int) else v for v in row.values()] for row in found]
        report.sections["bytes of one belief, as traced"] = table(list(found[0]), cells)
        report.records["bytes"] = found


@pytest.mark.benchmark(group="belief from dense")
def test_bytes(benchmark: Any, case: Case, rows: list[dict[str, Any]]) -> None:
    indices, values = belief(case)
    dense = dense_of(case, indices, values)
    row = sparse.csr_array(dense.reshape(1, -1))
    model = model_of(case.states, case.dtype)
    readings = walk(world(case.states, case.dtype), int(indices[len(indices) // 2]), UPDATES)

    copies = 50 if case.states <= 10_000 else 4
    b = am.SparseBelief(dense)
    fresh = Held(b, traced(lambda: am.SparseBelief(dense), copies))
    later = Held(updated(b, model, readings), traced(lambda: updated(b, model, readings), 2))
    rows.append(
        {
            "states": case.states,
            "support": case.support,
            "": case.spread,
            "dtype": case.dtype,
            "dense": traced(dense.copy, copies),
            "scipy row": traced(row.copy, copies),
            "best form": fresh.best_form,
            "ours": fresh.traced,
            "nbytes": fresh.belief.nbytes,
            "form": fresh.belief.storage,
            "then support": later.belief.nnz,
            "then best": later.best_form,
            "then ours": later.traced,
            "then nbytes": later.belief.nbytes,
            "then form": later.belief.storage,
        }
    )
    fresh.check()
    later.check()
    benchmark.pedantic(am.SparseBelief, args=(dense,), rounds=5, warmup_rounds=1)


@pytest.mark.benchmark(group="uniform")
def test_uniform(benchmark: Any) -> None:
    def make() -> Any:
        return am.SparseBelief.uniform((1_000_000,))

    assert traced(make) < UNIFORM
    assert make().nbytes < UNIFORM
    benchmark.pedantic(make, rounds=5, warmup_rounds=1)
