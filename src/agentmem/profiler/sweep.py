"""Memory against time and error: filters run over the same world, each measured in a process of its own.

`tables` shows what was measured.

    parent                            one child per configuration
    World.save -> directory  -------> World.load, build the filter
                                      pass 1: time, bytes, peak RSS; the first child writes its beliefs
    Measurement <- directory <------- pass 2, untimed: the others compare theirs
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from agentmem.profiler.filters import FILTERS, Configuration, Filter
from agentmem.profiler.process import peak_rss
from agentmem.profiler.worlds import World


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


def _run(world: World, step_filter: Filter) -> Iterator[tuple[list[Any], list[float], float]]:
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
    code = "import sys; from agentmem.profiler.sweep import _child; _child(*sys.argv[1:])"
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
    step_filter: Filter = FILTERS[configuration.filter](world, configuration)
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


def _largest_differences(world: World, step_filter: Filter, reference: Path) -> tuple[float, float]:
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
