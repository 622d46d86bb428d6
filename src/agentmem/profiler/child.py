"""One configuration measured over a world, in a process of its own.

    parent                            child
    World.save -> directory  -------> World.load, build the filter
                                      pass 1: time, bytes, peak RSS; the first child writes its beliefs
    Measurement <- directory <------- pass 2, untimed, where it was asked to compare: its beliefs beside those
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from agentmem.profiler.filters import FILTERS, Configuration, Filter, belief_bytes
from agentmem.profiler.front import Measurement
from agentmem.profiler.process import peak_rss
from agentmem.profiler.worlds import World

WARM_UP = 5  # steps

# By how much of the larger one two probabilities may differ and be called equal: float32's rounding, and what
# symmetric worlds leave between states that are equally probable.
TIE = 1e-6


def run(world: World, step_filter: Filter) -> Iterator[tuple[Any, Any, float]]:
    """After each step: all agents' beliefs, their log-evidence, and the microseconds per update."""
    steps, agents = world.actions.shape
    beliefs = step_filter.begin(agents)
    for step in range(steps):
        for agent in np.flatnonzero(world.restarts[step]):
            beliefs[agent] = step_filter.start()
        actions, observations = world.actions[step], world.observations[step]
        cpu_began, began = time.thread_time_ns(), time.perf_counter_ns()
        evidence = step_filter.sweep(beliefs, actions, observations)
        elapsed, cpu_elapsed = time.perf_counter_ns() - began, time.thread_time_ns() - cpu_began
        # CPU time leaves out what other processes took: on a busy machine 2 ms of dense update took 10-30 ms,
        # and SparseBelief, done within a time slice, would look that much better. But asking for it costs
        # 0.7 us, so it counts only where it is less, and some systems count it in ticks of 10 ms.
        yield beliefs, evidence, min(elapsed, cpu_elapsed or elapsed) / 1000 / agents


def measure_in_child(directory: str, configuration: Configuration, *, compare: bool) -> Measurement:
    """Measure it over the world that was saved in `directory`; RuntimeError with the child's last words if it fails.

    The first one is the reference: later ones compare their beliefs with its, if they are asked to.
    """
    # Not multiprocessing: it would import the parent's main module (click, rich, a whole test suite) into the
    # child, and that would count as the filter's memory.
    code = "import sys; from agentmem.profiler.child import _child; _child(*sys.argv[1:])"
    # Two BLAS threads on two cores make a dense update of 2,500 states 1.5x faster when both are idle, and
    # 10x slower as soon as one is not.
    one_thread = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    child = subprocess.run(
        [sys.executable, "-P", "-c", code, directory, json.dumps(asdict(configuration)), "compare" * compare],
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
    return Measurement(**{**record, "configuration": configuration, "repeats": tuple(record["repeats"])})


def _child(directory: str, configuration_json: str, compare: str) -> None:
    base_rss = peak_rss()
    home = Path(directory)
    configuration = Configuration(**json.loads(configuration_json))
    world = World.load(home)
    step_filter: Filter = FILTERS[configuration.filter](world, configuration)
    reference = home / "reference.beliefs"
    is_reference = not reference.exists()

    for _ in islice(run(world, step_filter), WARM_UP):
        pass
    microseconds: list[float] = []
    bytes_held: list[int] = []
    with reference.open("wb") if is_reference else nullcontext() as file:
        for beliefs, evidence, per_update in run(world, step_filter):
            microseconds.append(per_update)
            bytes_held.extend(belief_bytes(beliefs))
            if file is not None:
                for belief, log_evidence in zip(beliefs, evidence, strict=True):
                    _write_belief(file, np.asarray(belief, np.float64), log_evidence)
    peak, per_update = peak_rss(), float(np.median(microseconds))
    difference = evidence_difference = l1 = changed = None
    if compare and not is_reference:
        difference, evidence_difference, l1, changed = _differences(world, step_filter, reference)
    measurement = Measurement(
        configuration=configuration,
        model_bytes=step_filter.model_bytes,
        belief_bytes_median=int(np.median(bytes_held)),
        belief_bytes_peak=max(bytes_held),
        base_rss=base_rss,
        peak_rss=peak,
        microseconds_per_update=per_update,
        largest_difference=difference,
        largest_log_evidence_difference=evidence_difference,
        largest_l1=l1,
        decisions_changed=changed,
        repeats=(per_update,),
    )
    (home / "measurement.json").write_text(json.dumps(asdict(measurement)))


def _differences(world: World, step_filter: Filter, reference: Path) -> tuple[float, float, float, float]:
    """The largest of a state, of the log-evidence and in L1, and the share of decisions that changed."""
    difference = evidence_difference = l1 = changed = 0.0
    with reference.open("rb") as file:
        for beliefs, evidence, _ in run(world, step_filter):
            for belief, log_evidence in zip(beliefs, evidence, strict=True):
                expected, expected_evidence = _read_belief(file, world.initial.size)
                found = np.asarray(belief)
                residual = np.abs(found - expected)
                difference, l1 = max(difference, float(residual.max())), max(l1, float(residual.sum()))
                evidence_difference = max(evidence_difference, abs(log_evidence - expected_evidence))
                changed += expected[np.argmax(found)] < (1 - TIE) * expected.max()
    return difference, evidence_difference, l1, changed / world.actions.size


# Reference beliefs go to the file one by one, as their nonzeros: 20 agents' 200 steps as a mapped dense
# array would take 80 MB at 2,500 states and 32 GB at a million, and its pages would count as RSS.


def _write_belief(file: BinaryIO, belief: NDArray[np.float64], log_evidence: float) -> None:
    indices = np.flatnonzero(belief)
    file.write(np.array([log_evidence, indices.size]).tobytes())
    file.write(indices.astype(np.int64).tobytes())
    file.write(belief[indices].tobytes())


def _read_belief(file: BinaryIO, n_states: int) -> tuple[NDArray[np.float64], float]:
    log_evidence, size = np.frombuffer(file.read(16))
    belief = np.zeros(n_states)
    indices = np.frombuffer(file.read(8 * int(size)), np.int64)
    belief[indices] = np.frombuffer(file.read(8 * int(size)))
    return belief, float(log_evidence)
