"""Memory against time and error: filters run over the same world, each measured in a process of its own.

Here live the workload (`World`), generated grids and walks on them, the rival filters, and the measuring. What
was measured is shown by `report`; worlds of gymnasium come from `integrations.gymnasium`.

    parent                            one child per configuration
    World.save -> directory  -------> World.load, build the filter
                                      pass 1: time, bytes, peak RSS; the first child writes its beliefs
    Measurement <- directory <------- pass 2, untimed: the others compare theirs
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from agentmem.belief import SparseBelief
from agentmem.model import Model


@dataclass(frozen=True, slots=True)
class World:
    """A world's tables and what happened to its agents there: the same work for every filter.

    Attributes
    ----------
    transition : one (S, S) csr_array per action, rows are the current state
    observation : (S, O) csr_array, P(reading | state); or (A * S, O), one such table per action below the other
    initial : (S,) float64, what an agent believes when it starts
    actions, observations : (steps, agents) int64
    restarts : (steps, agents) bool, the agent starts anew before this step
    """

    name: str
    transition: Sequence[sparse.csr_array]
    observation: sparse.csr_array
    initial: NDArray[np.float64]
    actions: NDArray[np.int64]
    observations: NDArray[np.int64]
    restarts: NDArray[np.bool_]

    def save(self, directory: Path) -> None:
        """Write the tables and runs into `directory` (no pickle)."""
        for action, table in enumerate(self.transition):
            sparse.save_npz(directory / f"transition{action}.npz", table, compressed=False)
        sparse.save_npz(directory / "observation.npz", self.observation, compressed=False)
        np.savez(
            directory / "runs.npz",
            name=np.array(self.name),
            n_actions=np.array(len(self.transition)),
            initial=self.initial,
            actions=self.actions,
            observations=self.observations,
            restarts=self.restarts,
        )

    @classmethod
    def load(cls, directory: Path) -> World:
        """What `save` wrote."""
        with np.load(directory / "runs.npz", allow_pickle=False) as runs:
            return cls(
                name=str(runs["name"]),
                transition=[
                    sparse.csr_array(sparse.load_npz(directory / f"transition{action}.npz"))
                    for action in range(runs["n_actions"])
                ],
                observation=sparse.csr_array(sparse.load_npz(directory / "observation.npz")),
                initial=runs["initial"],
                actions=runs["actions"],
                observations=runs["observations"],
                restarts=runs["restarts"],
            )

    @property
    def dense_nbytes(self) -> int:
        """Bytes of these tables as dense float64 arrays."""
        readings, n_readings = self.observation.shape
        return 8 * (len(self.transition) * self.initial.size**2 + readings * n_readings)

    def observation_tables(self) -> list[sparse.csr_array]:
        """The distinct tables of readings: one, or one per action."""
        n_states, n_rows = self.initial.size, self.observation.shape[0]
        if n_rows == n_states:
            return [self.observation]
        return [self.observation[first : first + n_states] for first in range(0, n_rows, n_states)]


@dataclass(frozen=True, slots=True)
class Configuration:
    """One way to run the filter: "dense", "scipy" or "sparse", which prunes as `SparseBelief.update` does."""

    name: str
    filter: str
    prune: float | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one configuration cost in its own process, and how far it is from the first one. Sizes in bytes.

    `peak_rss` is the whole process's, `base_rss` what it was before the world was read: Python and its
    libraries. An update's time is the median over the steps, of the update alone, on one thread. Differences
    are the largest over all agents, steps and states, None for the reference itself.
    """

    configuration: Configuration
    model_bytes: int
    belief_bytes_median: int
    belief_bytes_peak: int
    base_rss: int
    peak_rss: int
    microseconds_per_update: float
    largest_difference: float | None
    largest_log_evidence_difference: float | None


def standard_configurations(prune: float | None = None) -> list[Configuration]:
    """The two rivals, the exact SparseBelief and the pruned one (`prune=None`: the library's default).

    The rivals are what one writes by hand: contiguous dense arrays, and scipy's CSR with a dense belief, each
    transition transposed once so that a step is a gather.
    """
    return [
        Configuration("dense NumPy", "dense"),
        Configuration("scipy.sparse", "scipy"),
        Configuration("SparseBelief exact", "sparse", prune=0.0),
        Configuration("SparseBelief pruned", "sparse", prune=prune),
    ]


def measure(world: World, configurations: Sequence[Configuration]) -> Iterator[Measurement]:
    """Measure each configuration over `world`, one fresh process after the other; the first is the reference.

    Yields a record as soon as it is there. Raises RuntimeError with the child's last words if one fails.
    """
    with TemporaryDirectory(prefix="agentmem-") as directory:
        world.save(Path(directory))
        for configuration in configurations:
            yield _measure_in_child(directory, configuration)


def position_sensor(rows: int, columns: int) -> sparse.csr_array:
    """(S, S) table of a noisy position sensor on a grid: it reads a cell of the 3 x 3 around the true one.

    Weights are 4 for the cell itself, 2 for those beside it, 1 for the corners; clipped at the borders and
    renormalised. At most 9 entries a row. States are cells in C order.
    """
    # The weights are a product of [1, 2, 1] along each axis, so both can be done axis by axis.
    return sparse.kron(_blur(rows), _blur(columns), format="csr")


def slippery_grid(rows: int, columns: int) -> tuple[list[sparse.csr_array], sparse.csr_array]:
    """One (S, S) transition per action of a grid without walls, and its `position_sensor`. O(states).

    Actions are left, down, right, up, as FrozenLake's. A step goes where it was meant to with probability
    0.8, to either side with 0.1, and stays where the border stops it.
    """
    moves = [
        sparse.kron(_shift(rows, down), _shift(columns, right), format="csr")
        for down, right in ((0, -1), (1, 0), (0, 1), (-1, 0))
    ]
    transition = [
        sparse.csr_array(0.8 * moves[action] + 0.1 * (moves[action - 1] + moves[(action + 1) % 4]))
        for action in range(4)
    ]
    return transition, position_sensor(rows, columns)


def grid_world(rows: int, columns: int, *, agents: int, steps: int, seed: int) -> World:
    """A `slippery_grid` where agents walk at random, from anywhere. The prior is uniform.

    O(states + agents x steps).
    """
    transition, observation = slippery_grid(rows, columns)
    return walked_world(
        f"{rows} x {columns} slippery grid",
        transition,
        observation,
        np.full(rows * columns, 1 / (rows * columns)),
        agents=agents,
        steps=steps,
        seed=seed,
    )


def walked_world(
    name: str,
    transition: Sequence[sparse.csr_array],
    observation: sparse.csr_array,
    initial: NDArray[np.float64],
    *,
    agents: int,
    steps: int,
    seed: int,
) -> World:
    """The world of these tables, and agents that start as `initial` says and act at random. O(agents x steps)."""
    rng = np.random.default_rng(seed)
    actions, observations = np.empty((steps, agents), np.int64), np.empty((steps, agents), np.int64)
    restarts = np.zeros((steps, agents), np.bool_)
    restarts[0] = True
    walk = random_walk(transition, observation, rng.choice(initial.size, size=agents, p=initial), rng)
    for step in range(steps):
        actions[step], observations[step] = next(walk)
    return World(
        name=name,
        transition=transition,
        observation=observation,
        initial=initial,
        actions=actions,
        observations=observations,
        restarts=restarts,
    )


def random_walk(
    transition: Sequence[sparse.csr_array],
    observation: sparse.csr_array,
    states: NDArray[np.int64],
    rng: np.random.Generator,
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Actions and readings, (n,) each, of agents that begin in these states and act at random; without end.

    The tables are as a `World`'s. A step is O(entries in the rows it meets).
    """
    n_states = transition[0].shape[0]
    of_action = n_states if observation.shape[0] > n_states else 0
    while True:
        actions = rng.integers(len(transition), size=len(states))
        after = np.empty_like(states)
        for action in np.unique(actions).tolist():
            chosen = actions == action
            after[chosen] = sample_rows(transition[action], states[chosen], rng)
        states = after
        yield actions, sample_rows(observation, actions * of_action + states, rng)


def sample_rows(
    table: sparse.csr_array, rows: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """(n,): for each of n rows a column of `table`, drawn with that row's weights. O(entries in these rows)."""
    columns = np.empty(len(rows), np.int64)
    for begin in range(0, len(rows), _ROWS_AT_ONCE):
        block = slice(begin, begin + _ROWS_AT_ONCE)
        lengths = table.indptr[rows[block] + 1] - table.indptr[rows[block]]
        ends = np.cumsum(lengths, dtype=np.int64)
        starts = ends - lengths
        entries = np.arange(ends[-1]) + np.repeat(table.indptr[rows[block]] - starts, lengths)
        cumulated = np.append(0.0, np.cumsum(table.data[entries]))
        before = cumulated[starts]
        wanted = before + rng.random(len(lengths)) * (cumulated[ends] - before)
        drawn = np.searchsorted(cumulated[1:], wanted, side="right")
        columns[block] = table.indices[entries[np.minimum(drawn, ends - 1)]]
    return columns


# Of a million at once, the weights would take more memory than a million agents' beliefs.
_ROWS_AT_ONCE = 65_536


def rss() -> int:
    """The memory this process has resident now, in bytes."""
    import psutil  # type: ignore[import-untyped]

    return int(psutil.Process().memory_info().rss)


def peak_rss() -> int:
    """The most memory this process has had resident, in bytes: VmHWM on Linux, elsewhere getrusage's figure.

    VmHWM first, because Linux hands `ru_maxrss` down from the parent.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _blur(n: int) -> sparse.csr_array:
    weights = np.array([[1.0], [2.0], [1.0]]).repeat(n, axis=1)
    blur = sparse.dia_array((weights, np.array([-1, 0, 1])), shape=(n, n)).tocsr()
    totals = np.full(n, 4.0)
    totals[0] -= 1
    totals[-1] -= 1
    return sparse.csr_array(
        (blur.data / totals.repeat(np.diff(blur.indptr)), blur.indices, blur.indptr), shape=(n, n)
    )


def _shift(n: int, by: int) -> sparse.csr_array:
    # scipy keeps the index type it is given; int64 would fatten it.
    offsets = np.arange(n + 1, dtype=np.int32)
    targets = np.clip(offsets[:-1] + np.int32(by), 0, n - 1).astype(np.int32)
    return sparse.csr_array((np.ones(n), targets, offsets), shape=(n, n))


class _Filter(Protocol):
    """How one configuration holds a world and steps beliefs through it. `sweep` is what the clock sees."""

    model_bytes: int

    def start(self) -> Any: ...
    def sweep(self, beliefs: list[Any], actions: list[int], observations: list[int]) -> list[float]: ...
    def belief_bytes(self, belief: Any) -> int: ...
    def to_dense(self, belief: Any) -> NDArray[np.float64]: ...


class _DenseFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.initial = world.initial
        self.transition = [table.toarray() for table in world.transition]
        # (O, S), so that the likelihood of a reading is a contiguous row.
        tables = [table.T.toarray(order="C") for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = sum(array.nbytes for array in (self.initial, *self.transition, *tables))

    def start(self) -> NDArray[np.float64]:
        return self.initial.copy()

    def sweep(
        self, beliefs: list[NDArray[np.float64]], actions: list[int], observations: list[int]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions, observations, strict=True)):
            belief = beliefs[agent] @ self.transition[action]
            belief *= self.likelihood[action][observation]
            total = belief.sum()
            belief /= total
            beliefs[agent] = belief
            evidence.append(math.log(total))
        return evidence

    def belief_bytes(self, belief: NDArray[np.float64]) -> int:
        return sys.getsizeof(belief)

    def to_dense(self, belief: NDArray[np.float64]) -> NDArray[np.float64]:
        return belief


class _ScipyFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.initial = world.initial
        self.transition = [table.T.tocsr() for table in world.transition]
        tables = [table.T.tocsr() for table in world.observation_tables()]
        self.likelihood = tables if len(tables) > 1 else tables * len(self.transition)
        self.model_bytes = self.initial.nbytes + sum(
            table.data.nbytes + table.indices.nbytes + table.indptr.nbytes for table in (*self.transition, *tables)
        )

    def start(self) -> NDArray[np.float64]:
        return self.initial.copy()

    def sweep(
        self, beliefs: list[NDArray[np.float64]], actions: list[int], observations: list[int]
    ) -> list[float]:
        evidence = []
        for agent, (action, observation) in enumerate(zip(actions, observations, strict=True)):
            likelihood = self.likelihood[action]
            predicted = self.transition[action] @ beliefs[agent]
            column = slice(likelihood.indptr[observation], likelihood.indptr[observation + 1])
            states = likelihood.indices[column]
            mass = predicted[states] * likelihood.data[column]
            total = mass.sum()
            belief = np.zeros_like(predicted)
            belief[states] = mass / total
            beliefs[agent] = belief
            evidence.append(math.log(total))
        return evidence

    def belief_bytes(self, belief: NDArray[np.float64]) -> int:
        return sys.getsizeof(belief)

    def to_dense(self, belief: NDArray[np.float64]) -> NDArray[np.float64]:
        return belief


class _SparseFilter:
    def __init__(self, world: World, configuration: Configuration) -> None:
        self.model = Model(world.transition, world.observation_tables(), world.initial)
        self.prune = configuration.prune
        self.model_bytes = self.model.nbytes

    def start(self) -> SparseBelief:
        return self.model.belief()

    def sweep(self, beliefs: list[SparseBelief], actions: list[int], observations: list[int]) -> list[float]:
        model, prune = self.model, self.prune
        return [
            belief.update(model, action, observation, prune=prune)
            for belief, action, observation in zip(beliefs, actions, observations, strict=True)
        ]

    def belief_bytes(self, belief: SparseBelief) -> int:
        return belief.nbytes

    def to_dense(self, belief: SparseBelief) -> NDArray[np.float64]:
        return belief.to_dense()


_FILTERS: dict[str, type[_DenseFilter] | type[_ScipyFilter] | type[_SparseFilter]] = {
    "dense": _DenseFilter,
    "scipy": _ScipyFilter,
    "sparse": _SparseFilter,
}


def _run(world: World, step_filter: _Filter) -> Iterator[tuple[list[Any], list[float], float]]:
    """After each step: all agents' beliefs, their log-evidence, and the microseconds per update."""
    steps, agents = world.actions.shape
    beliefs: list[Any] = [None] * agents
    for step in range(steps):
        for agent in np.flatnonzero(world.restarts[step]):
            beliefs[agent] = step_filter.start()
        actions, observations = world.actions[step].tolist(), world.observations[step].tolist()
        cpu_began, began = time.thread_time_ns(), time.perf_counter_ns()
        evidence = step_filter.sweep(beliefs, actions, observations)
        elapsed, cpu_elapsed = time.perf_counter_ns() - began, time.thread_time_ns() - cpu_began
        # CPU time leaves out what other processes took: on a busy machine 2 ms of dense update took 10-30 ms,
        # and SparseBelief, done within a time slice, would look that much better. But asking for it costs
        # 0.7 us, so it counts only where it is less, and some systems count it in ticks of 10 ms.
        yield beliefs, evidence, min(elapsed, cpu_elapsed or elapsed) / 1000 / agents


def _measure_in_child(directory: str, configuration: Configuration) -> Measurement:
    # Not multiprocessing: it would import the parent's main module (click, rich, a whole test suite) into the
    # child, and that would count as the filter's memory.
    code = "import sys; from agentmem.profiler.tradeoff import _child; _child(*sys.argv[1:])"
    # Two BLAS threads on two cores make a dense update of 2,500 states 1.5x faster when both are idle, and
    # 10x slower as soon as one is not.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    child = subprocess.run(
        [sys.executable, "-P", "-c", code, directory, json.dumps(asdict(configuration))],
        env={
            **os.environ,
            **one_thread,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
        },
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if child.returncode < 0:
        raise RuntimeError(f"{configuration.name} was killed by signal {-child.returncode} (out of memory?)")
    if child.returncode:
        raise RuntimeError(f"{configuration.name} failed: {child.stderr.strip().splitlines()[-1]}")
    record = json.loads((Path(directory) / "measurement.json").read_text())
    return Measurement(**{**record, "configuration": configuration})


def _child(directory: str, configuration_json: str) -> None:
    base_rss = peak_rss()
    home = Path(directory)
    configuration = Configuration(**json.loads(configuration_json))
    world = World.load(home)
    step_filter: _Filter = _FILTERS[configuration.filter](world, configuration)
    reference = home / "reference.beliefs"
    is_reference = not reference.exists()

    microseconds: list[float] = []
    belief_bytes: list[int] = []
    with reference.open("wb") if is_reference else nullcontext() as file:
        for beliefs, evidence, per_update in _run(world, step_filter):
            microseconds.append(per_update)
            belief_bytes.extend(map(step_filter.belief_bytes, beliefs))
            if file is not None:
                for belief, log_evidence in zip(beliefs, evidence, strict=True):
                    _write_belief(file, step_filter.to_dense(belief), log_evidence)
    peak = peak_rss()

    difference = evidence_difference = None
    if not is_reference:
        difference, evidence_difference = _largest_differences(world, step_filter, reference)
    measurement = Measurement(
        configuration=configuration,
        model_bytes=step_filter.model_bytes,
        belief_bytes_median=int(np.median(belief_bytes)),
        belief_bytes_peak=max(belief_bytes),
        base_rss=base_rss,
        peak_rss=peak,
        microseconds_per_update=float(np.median(microseconds)),
        largest_difference=difference,
        largest_log_evidence_difference=evidence_difference,
    )
    (home / "measurement.json").write_text(json.dumps(asdict(measurement)))


def _largest_differences(world: World, step_filter: _Filter, reference: Path) -> tuple[float, float]:
    difference = evidence_difference = 0.0
    with reference.open("rb") as file:
        for beliefs, evidence, _ in _run(world, step_filter):
            for belief, log_evidence in zip(beliefs, evidence, strict=True):
                indices, values, expected_evidence = _read_belief(file)
                residual = step_filter.to_dense(belief).copy()
                residual[indices] -= values
                difference = max(difference, float(np.abs(residual).max()))
                evidence_difference = max(evidence_difference, abs(log_evidence - expected_evidence))
    return difference, evidence_difference


# Reference beliefs go to the file one by one, as their nonzeros: 20 agents' 200 steps as a mapped dense
# array would take 80 MB at 2,500 states and 32 GB at a million, and its pages would count as RSS.


def _write_belief(file: BinaryIO, belief: NDArray[np.float64], log_evidence: float) -> None:
    indices = np.flatnonzero(belief)
    file.write(np.array([log_evidence, indices.size]).tobytes())
    file.write(indices.astype(np.int64).tobytes())
    file.write(belief[indices].tobytes())


def _read_belief(file: BinaryIO) -> tuple[NDArray[np.int64], NDArray[np.float64], float]:
    log_evidence, size = np.frombuffer(file.read(16))
    indices = np.frombuffer(file.read(8 * int(size)), np.int64)
    return indices, np.frombuffer(file.read(8 * int(size))), float(log_evidence)
