"""Claim: one exact belief update (predict, correct, normalise) is never slower than the best rival.

Rivals, each as fast as its public interface allows, each returning belief and log evidence as ours does:
* dense NumPy: `Tt.dot(b)` with the transposed matrix contiguous (up to 4,000 states);
* scipy, dense belief: the transposed CSR matrix made once, `Tt @ b`, a dense likelihood column;
* scipy, sparse belief: a 1 x S CSR row, `row @ T`, the likelihood looked up at its support;
* python-graphblas: `vxm`, `ewise_mult`, `reduce`, `apply` into one output vector, used again.
Ours: `SparseBelief.update(..., prune=0.0)` alone; the copies it consumes are made outside the clock.
Every way has one thread: agents fill the cores, and threads of one way that spin on would slow the next one.

The answers are asserted equal before anything is timed. Every round times all ways in turn, see `harness`.
Printed last: rival / ours for every case, losses included; which promises hold; time against support at a
million states. Timing never fails a test.
"""

import math
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from statistics import median
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse

import agentmem as am
from harness import Run, Way, interleaved, micro, noise, repeat, replay, table
from workloads import (
    CLUSTERED_UP_TO,
    GRIDS,
    Case,
    World,
    belief,
    cases,
    dense_of,
    likely_reading,
    model_of,
    smallest_form,
    spread_of,
    world,
)

try:
    import graphblas
except ImportError:
    graphblas = None
else:
    graphblas.ss.config["nthreads"] = 1

OURS = "ours"
RIVALS = NUMPY, SCIPY_DENSE, SCIPY_SPARSE, GRAPHBLAS = "numpy", "scipy dense", "scipy sparse", "graphblas"
NUMPY_UP_TO = 4_000
LOSS = 0.9
# It adds float32 up one after the other in float32: 0.4 % off at 500,000 states. Adding in double takes it up to
# 20 times as long, so it may keep its error.
GRAPHBLAS_SINGLE = 1e-2
CURVE = [(1_000_000, k) for k in (1, 10, 100, 1_000, 10_000, 100_000, 250_000, 500_000, 1_000_000)]
CURVE += [(100_000, 1_000), (10_000, 1_000)]
CALLS = {"copy and update": 0.0, "copy and update with default pruning": None}
MULTIPLY = "np.multiply"

Answer = tuple[NDArray[Any], float]
Step = Callable[[], tuple[Any, float]]


@dataclass(frozen=True)
class Setting:
    """One case, ready: the model, the belief, and the likelihood of the reading."""

    case: Case
    place: World
    reading: int
    likelihood: NDArray[Any]
    indices: NDArray[np.intp]
    values: NDArray[Any]
    dense: NDArray[Any]

    @classmethod
    def of(cls, case: Case) -> "Setting":
        place = world(case.states, case.dtype)
        indices, values = belief(case)
        reading = likely_reading(place, indices)
        likelihood = np.ascontiguousarray(place.observation[:, reading])
        return cls(case, place, reading, likelihood, indices, values, dense_of(case, indices, values))


@lru_cache(maxsize=1)
def transposed(states: int, dtype: str) -> sparse.csr_array:
    return world(states, dtype).transition.T.tocsr()


def our_belief(setting: Setting) -> Any:
    return am.SparseBelief.from_indices(setting.indices, setting.values, (setting.case.states,))


def our_update(setting: Setting) -> Way:
    model, reading = model_of(setting.case.states, setting.case.dtype), setting.reading
    start = our_belief(setting)

    def way(n: int) -> Run:
        copies = [start.copy() for _ in range(n)]

        def run() -> None:
            for b in copies:
                b.update(model, 0, reading, prune=0.0)

        return run

    return way


def numpy_update(setting: Setting) -> Step:
    backward = np.ascontiguousarray(setting.place.transition.toarray().T)
    b, likelihood = setting.dense, setting.likelihood

    def step() -> Answer:
        posterior = backward.dot(b)
        posterior *= likelihood
        evidence = np.add.reduce(posterior)
        posterior /= evidence
        return posterior, math.log(evidence)

    return step


def scipy_dense_update(setting: Setting) -> Step:
    backward = transposed(setting.case.states, setting.case.dtype)
    b, likelihood = setting.dense, setting.likelihood

    def step() -> Answer:
        posterior = backward @ b
        posterior *= likelihood
        evidence = np.add.reduce(posterior)
        posterior /= evidence
        return posterior, math.log(evidence)

    return step


def scipy_sparse_update(setting: Setting) -> Step:
    transition, likelihood = setting.place.transition, setting.likelihood
    indices, ends = setting.indices.astype(np.int32), np.array([0, setting.case.support], np.int32)
    b = sparse.csr_array((setting.values, indices, ends), shape=(1, setting.case.states))

    def step() -> tuple[sparse.csr_array, float]:
        posterior = b @ transition
        mass = posterior.data
        mass *= likelihood.take(posterior.indices)
        evidence = np.add.reduce(mass)
        mass /= evidence
        return posterior, math.log(evidence)

    return step


@lru_cache(maxsize=1)
def graphblas_transition(states: int, dtype: str) -> Any:
    return graphblas.io.from_scipy_sparse(world(states, dtype).transition)


def graphblas_update(setting: Setting) -> Step:
    transition = graphblas_transition(setting.case.states, setting.case.dtype)
    likelihood = graphblas.Vector.from_dense(setting.likelihood)
    if setting.case.support == setting.case.states:
        b = graphblas.Vector.from_dense(setting.values)
    else:
        b = graphblas.Vector.from_coo(setting.indices, setting.values, size=setting.case.states)
    posterior = graphblas.Vector(setting.case.dtype, setting.case.states)
    times, plus, plus_times = graphblas.binary.times, graphblas.monoid.plus, graphblas.semiring.plus_times

    def step() -> tuple[Any, float]:
        posterior << b.vxm(transition, plus_times)
        posterior << posterior.ewise_mult(likelihood, times)
        evidence = posterior.reduce(plus).new().value
        posterior << posterior.apply(times, right=1 / evidence)
        return posterior, math.log(evidence)

    return step


STEPS = {NUMPY: numpy_update, SCIPY_DENSE: scipy_dense_update, SCIPY_SPARSE: scipy_sparse_update}
if graphblas is not None:
    STEPS[GRAPHBLAS] = graphblas_update


def why_not(case: Case, way: str) -> str | None:
    """The reason a rival is not in the race, as the table prints it."""
    if way == GRAPHBLAS and graphblas is None:
        return "not installed"
    if way == NUMPY and case.states > NUMPY_UP_TO:
        return "-"
    return None


def to_dense(posterior: Any) -> NDArray[Any]:
    if isinstance(posterior, np.ndarray):
        return posterior
    if sparse.issparse(posterior):
        return posterior.toarray().ravel()
    return posterior.to_dense(fill_value=0, dtype=posterior.dtype)


def assert_equal(setting: Setting, steps: dict[str, Step]) -> int:
    """Every way's answer equals the double-precision one; returns the support of the posterior."""
    start = setting.dense.astype(float)
    joint = setting.place.transition.astype(float).T @ (start / start.sum()) * setting.likelihood
    expected, log_evidence = joint / joint.sum(), math.log(joint.sum())
    ours = our_belief(setting)
    ours_log_evidence = ours.update(model_of(setting.case.states, setting.case.dtype), 0, setting.reading, prune=0.0)
    answers: dict[str, Answer] = {OURS: (ours.to_dense(), ours_log_evidence)}
    for name, step in steps.items():
        posterior, found = step()
        answers[name] = to_dense(posterior), found
    for name, (posterior, found) in answers.items():
        assert posterior.dtype == setting.case.dtype, name
        if setting.case.dtype == "float64":
            np.testing.assert_allclose(posterior, expected, rtol=1e-12, atol=0, err_msg=name)
            assert found == pytest.approx(log_evidence, abs=1e-9), name
        else:
            allowed = GRAPHBLAS_SINGLE if name == GRAPHBLAS else 2e-6
            assert np.abs(posterior.astype(float) - expected).sum() < allowed, name
            assert found == pytest.approx(log_evidence, abs=allowed), name
    return int(np.count_nonzero(expected))


def touched_bytes(setting: Setting, support_after: int) -> int:
    """Bytes no update can avoid: belief in, its rows of T (offset, index, value), likelihood, belief out."""
    case, itemsize = setting.case, setting.values.itemsize
    offsets = setting.place.transition.indptr
    entries = int((offsets[setting.indices + 1] - offsets[setting.indices]).sum())
    rows = case.support * 8 + entries * (4 + itemsize)
    likelihood = support_after * itemsize
    before, after = (smallest_form(case.states, k, itemsize) for k in (case.support, support_after))
    return before + rows + likelihood + after


def copy_of(n_bytes: int) -> Way:
    """A copy that reads and writes `n_bytes` in all."""
    source = np.ones(n_bytes // 2, np.uint8)
    target = np.empty_like(source)
    return repeat(lambda: np.copyto(target, source))


@dataclass(frozen=True)
class Race:
    """The rounds of one case."""

    case: Case
    seconds: dict[str, list[float]]
    copy_seconds: list[float]
    bytes_touched: int

    def ratios(self, rival: str) -> list[float]:
        """Rival by ours, a figure a round: what slowed the machine down in a round slowed both."""
        return [theirs / ours for theirs, ours in zip(self.seconds[rival], self.seconds[OURS], strict=True)]

    def ratio(self, rival: str) -> float:
        return median(self.ratios(rival))

    @property
    def best_rival(self) -> str:
        return min((way for way in self.seconds if way != OURS), key=self.ratio)

    @property
    def best_ratio(self) -> float:
        return self.ratio(self.best_rival)

    @property
    def scipy_ratio(self) -> float:
        return min(self.ratio(SCIPY_DENSE), self.ratio(SCIPY_SPARSE))

    @property
    def noise(self) -> float:
        return noise(self.ratios(self.best_rival))

    @property
    def gigabytes_per_second(self) -> float:
        return self.bytes_touched / median(self.seconds[OURS]) / 1e9

    @property
    def copy_gigabytes_per_second(self) -> float:
        return self.bytes_touched / median(self.copy_seconds) / 1e9


def run_race(case: Case, budget: float) -> Race:
    setting = Setting.of(case)
    steps = {name: make(setting) for name, make in STEPS.items() if why_not(case, name) is None}
    n_bytes = touched_bytes(setting, assert_equal(setting, steps))
    ways = {OURS: our_update(setting), **{name: repeat(step) for name, step in steps.items()}}
    seconds = interleaved({**ways, "copy": copy_of(n_bytes)}, budget=budget)
    return Race(case, seconds, seconds.pop("copy"), n_bytes)


def race_lines(races: list[Race]) -> list[str]:
    head = ["states", "support", "", "dtype", "ours us", *RIVALS, "best/ours", "noise", "GB/s", "copy", ""]
    rows = []
    for race in races:
        case = race.case
        rows.append(
            [
                f"{case.states:,}",
                f"{case.support:,}",
                case.spread,
                case.dtype,
                micro(race.seconds[OURS]),
                *(why_not(case, way) or f"{race.ratio(way):.2f}" for way in RIVALS),
                f"{race.best_ratio:.2f}",
                f"{race.noise:.0%}",
                f"{race.gigabytes_per_second:.2f}",
                f"{race.copy_gigabytes_per_second:.2f}",
                "LOSS" if race.best_ratio < LOSS else "",
            ]
        )
    return [
        "time of the rival / time of ours (above 1: ours is faster), medians over rounds that time all in turn",
        "noise: half the interquartile range of best/ours",
        "GB/s: what any update must touch (belief, its rows, likelihood, result) by time; a copy of as much",
        *table(head, rows),
    ]


def promise(what: str, least: float, races: list[Race], ratio: Callable[[Race], float]) -> str:
    if not races:
        return f"not measured: {what}"
    worst = min(races, key=ratio)
    kept = sum(ratio(race) >= least for race in races)
    verdict = "kept" if kept == len(races) else "BROKEN"
    return f"{verdict}: {what} >= {least}: {kept} of {len(races)}; worst {ratio(worst):.2f} at {worst.case}"


def promise_lines(races: list[Race]) -> list[str]:
    def best(race: Race) -> float:
        return race.best_ratio

    def scipy(race: Race) -> float:
        return race.scipy_ratio

    double = [race for race in races if race.case.dtype == "float64"]
    single = [race for race in races if race.case.dtype == "float32"]
    narrow = [race for race in single if race.case.support <= CLUSTERED_UP_TO * race.case.states]
    wide = [race for race in single if race.case.support > CLUSTERED_UP_TO * race.case.states]
    large = [race for race in races if race.case.states >= 10_000]
    few = [race for race in large if race.case.support <= 100 and race.case.spread == "clustered"]
    one_percent = [race for race in large if race.case.support == race.case.states // 100]
    clustered = [race for race in one_percent if race.case.spread == "clustered"]
    random = [race for race in one_percent if race.case.spread == "random"]
    return [
        promise("float64, best rival", 0.9, double, best),
        promise("float64, best rival (goal)", 1.0, double, best),
        promise("float32 up to 25 % support, best rival", 0.9, narrow, best),
        promise("float32 above, best rival", 0.6, wide, best),
        promise("from 10,000 states, support up to 100, scipy", 10, few, scipy),
        promise("from 10,000 states, 1 % clustered, scipy", 5, clustered, scipy),
        promise("from 10,000 states, 1 % random, scipy", 3, random, scipy),
    ]


def race_record(race: Race) -> dict[str, Any]:
    return {
        **vars(race.case),
        "microseconds": {way: median(seconds) * 1e6 for way, seconds in race.seconds.items()},
        "not_measured": {way: why for way in RIVALS if (why := why_not(race.case, way))},
        "best_rival": race.best_rival,
        "best_ratio": race.best_ratio,
        "noise": race.noise,
        "bytes_touched": race.bytes_touched,
        "gigabytes_per_second": race.gigabytes_per_second,
        "copy_gigabytes_per_second": race.copy_gigabytes_per_second,
    }


def sizes(smoke: bool) -> list[int]:
    return [states for states in GRIDS if not smoke or states <= 10_000]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    measured = sizes(metafunc.config.getoption("--smoke"))
    if "case" in metafunc.fixturenames:
        # Double last and ascending: each world is built once, and the last one serves the tests below.
        grid = cases(measured, "float32") + cases(measured, "float64")
        ways = [(case, way) for case in grid for way in (OURS, *RIVALS)]
        metafunc.parametrize(("case", "way"), ways, ids=["-".join(map(str, pair)) for pair in ways])
    if "point" in metafunc.fixturenames:
        metafunc.parametrize("point", [point for point in CURVE if point[0] in measured], ids=str)


@dataclass
class Findings:
    races: dict[Case, Race] = field(default_factory=dict)
    peak: str = "not measured: peak"
    curve: dict[tuple[int, int], list[float]] = field(default_factory=dict)
    calls: dict[str, list[float]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def findings(report: Any) -> Iterator[Findings]:
    found = Findings()
    yield found
    races = sorted(found.races.values(), key=lambda race: race.case.dtype, reverse=True)
    if races:
        report.sections["one update against the rivals"] = race_lines(races)
    if found.curve:
        report.sections["time follows the support, float64"] = curve_lines(found.curve)
    if races or found.calls:
        report.sections["promises"] = [*promise_lines(races), *call_lines(found.calls), found.peak]
    report.records["update"] = [race_record(race) for race in races]
    report.records["curve_microseconds"] = [[*k, median(rounds) * 1e6] for k, rounds in found.curve.items()]
    report.records["call_microseconds"] = {name: median(rounds) * 1e6 for name, rounds in found.calls.items()}


@pytest.mark.benchmark(timer=replay.read)
def test_update(benchmark: Any, case: Case, way: str, findings: Findings, smoke: bool) -> None:
    benchmark.group = f"update {case}"
    if why := why_not(case, way):
        pytest.skip(f"{way}: {why}")
    if case not in findings.races:
        findings.races[case] = run_race(case, budget=0.05 if smoke else 3.5)
    replay.play(benchmark, findings.races[case].seconds[way])


@pytest.mark.benchmark(group="traced peak")
def test_peak(benchmark: Any, findings: Findings, smoke: bool) -> None:
    """The traced peak of an update after the first, 1,000 of a million states: not the space's size."""
    states = max(sizes(smoke))
    setting = Setting.of(Case(states, 1_000, "clustered", "float64"))
    model, reading = model_of(states, "float64"), setting.reading
    first, b = our_belief(setting), our_belief(setting)
    first.update(model, 0, reading, prune=0.0)
    tracemalloc.start()
    try:
        b.update(model, 0, reading, prune=0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    findings.peak = (
        f"traced peak of an update after the first, 1,000 of {states:,} states: {peak:,} bytes "
        f"(the dense belief: {states * 8:,})"
    )
    copies = [b.copy() for _ in range(20)]
    benchmark.pedantic(lambda: copies.pop().update(model, 0, reading, prune=0.0), rounds=len(copies))


def curve_lines(curve: dict[tuple[int, int], list[float]]) -> list[str]:
    rows = []
    for (states, support), seconds in curve.items():
        each = f"{median(seconds) / support * 1e9:.1f}"
        rows.append([f"{states:,}", f"{support:,}", micro(seconds), each, f"{noise(seconds):.0%}"])
    return table(["states", "support", "us", "ns a state of the support", "noise"], rows)


@pytest.mark.benchmark(timer=replay.read, group="time follows the support")
def test_curve(benchmark: Any, point: tuple[int, int], findings: Findings, smoke: bool) -> None:
    states, support = point
    setting = Setting.of(Case(states, support, spread_of(states, support), "float64"))
    findings.curve[point] = interleaved({OURS: our_update(setting)}, budget=0.05 if smoke else 0.5)[OURS]
    replay.play(benchmark, findings.curve[point])


def call_lines(calls: dict[str, list[float]]) -> list[str]:
    lines = []
    for name in CALLS if calls else ():
        ratio = median(calls[name]) / median(calls[MULTIPLY])
        verdict = "kept" if ratio <= 4 else "BROKEN"
        lines.append(f"{verdict}: {name}, 10 of 10,000 states <= 4 x np.multiply of 10 elements: {ratio:.2f}")
        lines[-1] += f" ({micro(calls[name])} us and {micro(calls[MULTIPLY])} us)"
    return lines


@pytest.mark.benchmark(timer=replay.read, group="whole call")
@pytest.mark.parametrize("way", [*CALLS, MULTIPLY])
def test_whole_call(benchmark: Any, way: str, findings: Findings, smoke: bool) -> None:
    if not findings.calls:
        setting = Setting.of(Case(10_000, 10, "clustered", "float64"))
        b, model, reading = our_belief(setting), model_of(10_000, "float64"), setting.reading
        x, y = np.full(10, 0.5), np.full(10, 0.5)

        def copy_update(n: int, prune: float | None) -> Run:
            def run() -> None:
                for _ in range(n):
                    b.copy().update(model, 0, reading, prune=prune)

            return run

        def multiply(n: int) -> Run:
            def run() -> None:
                for _ in range(n):
                    np.multiply(x, y)

            return run

        ways: dict[str, Way] = {name: partial(copy_update, prune=prune) for name, prune in CALLS.items()}
        findings.calls.update(interleaved({**ways, MULTIPLY: multiply}, budget=0.1 if smoke else 1.0))
    replay.play(benchmark, findings.calls[way])
