"""Claim: agents of other libraries act alike on sparse tables, in a small share of their time and memory.

* pymdp.legacy: infer_states + infer_policies + sample_action on a grid with a position sensor, 5 actions: at least
  1,000x faster at 2,500 states and 10,000x at 10,000, with a model under 4 MB;
* pymdp's JAX agent, batch of 40, 2,500 states, called as it is and as one compiled step: at least 500x faster, peak
  under 500 MB;
* pomdp-py's belief update at 1,024 states: at least 5,000x faster;
* hmmlearn's score (the faster of its implementations) at 2,000 states, 5 entries a row, 200 symbols: `Model.filter` at
  least 100x faster.

Moves on the grid are certain, as in pymdp's GridWorldEnv, so that beliefs there become narrow; the tests compare agents
in slippery worlds too.

Each side runs alone in a process of its own, on one thread, which tells its median time, the bytes of its tables and
its peak RSS; the answers of both are asserted equal before anything is printed. Losses are printed too; time never
fails a test. Needs the extra `integrations`; what is missing is skipped. The dense rivals take up to 10 GB.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import agentmem as am
from agentmem.profiler.process import peak_rss
from agentmem.profiler.worlds import position_sensor
from harness import in_child, replay, table

THEIRS, OURS = "theirs", "ours"


@dataclass(frozen=True)
class Comparison:
    """One line of the table: sides of this name, their size, how often each steps, and what is promised."""

    name: str
    needs: str
    size: int
    steps: dict[str, int]
    times: float
    within: float
    model_below: float = np.inf  # bytes of our tables
    peak_below: float = np.inf   # bytes, of our whole process

    def __str__(self) -> str:
        return f"{self.name}-{self.size}"


COMPARISONS = [
    Comparison("pymdp", "pymdp", 2_500, {THEIRS: 20, OURS: 400}, 1_000, 1e-9),
    Comparison("pymdp", "pymdp", 10_000, {THEIRS: 4, OURS: 400}, 10_000, 1e-9, model_below=4e6),
    Comparison("pymdp_jax", "jax", 2_500, {THEIRS: 3, OURS: 30}, 500, 1e-5, peak_below=500e6),
    Comparison("pymdp_jax_jit", "jax", 2_500, {THEIRS: 3, OURS: 30}, 500, 1e-5, peak_below=500e6),
    Comparison("pomdp_py", "pomdp_py", 1_024, {THEIRS: 5, OURS: 400}, 5_000, 1e-9),
    Comparison("hmmlearn", "hmmlearn", 2_000, {THEIRS: 10, OURS: 200}, 100, 1e-8),
]
SMOKE = [
    Comparison(c.name, c.needs, {"hmmlearn": 50}.get(c.name, 36), {THEIRS: 3, OURS: 3}, c.times, c.within)
    for c in COMPARISONS
    if c.size != 10_000
]


# ---- workloads


def grid(n_states: int) -> tuple[list[sparse.csr_array], sparse.csr_array]:
    """Transitions of up, right, down, left and stay on a square grid, and its noisy position sensor."""
    side = round(n_states**0.5)
    row, column = np.divmod(np.arange(n_states), side)
    moves = []
    for down, right in ((-1, 0), (0, 1), (1, 0), (0, -1), (0, 0)):
        target = np.clip(row + down, 0, side - 1) * side + np.clip(column + right, 0, side - 1)
        moves.append(sparse.csr_array((np.ones(n_states), (np.arange(n_states), target)), shape=(n_states, n_states)))
    return moves, position_sensor(side, side)


def preferences(n_states: int) -> np.ndarray:
    """Preferences over observations without ties."""
    return np.random.default_rng(0).normal(size=n_states)


def sensor_readings(agents: int, n_states: int) -> Callable[[np.ndarray | None], np.ndarray]:
    """A function from the actions of agents (None at first) to what their sensors read then."""
    moves, sensor = grid(n_states)
    rng = np.random.default_rng(1)
    states = np.full(agents, n_states // 2)

    def read(actions: np.ndarray | None) -> np.ndarray:
        if actions is not None:
            for agent, action in enumerate(actions):
                states[agent] = moves[int(action)].indices[states[agent]]
        rows = [slice(sensor.indptr[s], sensor.indptr[s + 1]) for s in states]
        return np.array([rng.choice(sensor.indices[row], p=sensor.data[row]) for row in rows])

    return read


def hidden_markov(n_states: int) -> tuple[np.ndarray, sparse.csr_array, np.ndarray, np.ndarray]:
    """startprob, transmat of 5 entries a row, emissionprob of 20 symbols, and 200 symbols."""
    rng = np.random.default_rng(2)
    targets = np.concatenate([rng.choice(n_states, 5, replace=False) for _ in range(n_states)])
    rows = np.repeat(np.arange(n_states), 5)
    values = rng.dirichlet(np.ones(5), size=n_states).ravel()
    transmat = sparse.csr_array((values, (rows, targets)), shape=(n_states, n_states))
    emissionprob = rng.dirichlet(np.ones(20), size=n_states)
    return rng.dirichlet(np.ones(n_states)), transmat, emissionprob, rng.integers(20, size=200)


# ---- sides: each returns seconds per step, bytes of its tables, and its answers, one row a step

Side = tuple[list[float], int, np.ndarray]


def run_pymdp(agent: Any, n_states: int, steps: int) -> tuple[list[float], np.ndarray]:
    seconds, answers, action, read = [], [], None, sensor_readings(1, n_states)
    for step in range(steps):
        observation = read(action).tolist()
        np.random.seed(step)  # noqa: NPY002 - pymdp draws from the global stream where policies tie
        began = time.perf_counter()
        qs = agent.infer_states(observation)
        q_pi, _ = agent.infer_policies()
        action = agent.sample_action()
        seconds.append(time.perf_counter() - began)
        answers.append(np.concatenate([action, q_pi, np.asarray(qs[0])]))
    return seconds, np.array(answers[:20])


def pymdp_theirs(n_states: int, steps: int) -> Side:
    from pymdp.legacy.agent import Agent
    from pymdp.legacy.utils import to_obj_array

    moves, sensor = grid(n_states)
    B = np.zeros((n_states, n_states, len(moves)))
    for action, move in enumerate(moves):
        B[move.indices, np.arange(n_states), action] = 1
    A = np.ascontiguousarray(sensor.toarray().T)
    agent = Agent(to_obj_array(A), to_obj_array(B), to_obj_array(preferences(n_states)))
    seconds, answers = run_pymdp(agent, n_states, steps)
    return seconds, A.nbytes + B.nbytes, answers


def pymdp_ours(n_states: int, steps: int) -> Side:
    from agentmem.integrations.pymdp import SparseAgent

    moves, sensor = grid(n_states)
    agent = SparseAgent(sensor.T, [move.T for move in moves], preferences(n_states))
    seconds, answers = run_pymdp(agent, n_states, steps)
    return seconds, am.footprint(agent).total, answers


BATCH = 40


def run_jax(agent: Any, n_states: int, steps: int, jit: bool) -> tuple[list[float], np.ndarray]:
    import equinox
    import jax
    import jax.numpy as jnp

    def step(agent: Any, observation: Any, prior: Any) -> Any:
        qs = agent.infer_states([observation[:, None]], prior)
        q_pi, _ = agent.infer_policies(qs)
        action = agent.sample_action(q_pi)
        return action, q_pi, qs[0], agent.update_empirical_prior(action, qs)

    act = equinox.filter_jit(step) if jit else step
    seconds, answers, action, prior, read = [], [], None, agent.D, sensor_readings(BATCH, n_states)
    for _ in range(steps + 1):
        observation = jnp.asarray(read(action))
        began = time.perf_counter()
        chosen, q_pi, qs, prior = jax.block_until_ready(act(agent, observation, prior))
        seconds.append(time.perf_counter() - began)
        action = np.asarray(chosen)[:, 0]
        answers.append(np.hstack([np.asarray(chosen), np.asarray(q_pi), np.asarray(qs)[:, -1]]))
    return seconds[1:], np.array(answers[:3])  # the first step compiles


def pymdp_jax_theirs(n_states: int, steps: int, jit: bool = False) -> Side:
    import jax.numpy as jnp
    from pymdp.agent import Agent

    moves, sensor = grid(n_states)
    A, C = jnp.asarray(sensor.toarray().T, jnp.float32), jnp.asarray(preferences(n_states), jnp.float32)
    B = jnp.stack([jnp.asarray(move.toarray().T, jnp.float32) for move in moves], axis=-1)
    agent = Agent([A], [B], [C], batch_size=BATCH)
    seconds, answers = run_jax(agent, n_states, steps, jit)
    return seconds, agent.A[0].nbytes + agent.B[0].nbytes, answers


def pymdp_jax_ours(n_states: int, steps: int, jit: bool = False) -> Side:
    from agentmem.integrations.pymdp_jax import SparseAgent

    moves, sensor = grid(n_states)
    agent = SparseAgent(am.Model(moves, sensor, dtype=np.float32), C=preferences(n_states), batch_size=BATCH)
    seconds, answers = run_jax(agent, n_states, steps, jit)
    tables = [array for padded in (*agent.A, *agent.B) for array in padded]
    return seconds, sum(array.nbytes for array in tables), answers


pymdp_jax_jit_theirs, pymdp_jax_jit_ours = partial(pymdp_jax_theirs, jit=True), partial(pymdp_jax_ours, jit=True)


def pomdp_py_world(n_states: int) -> Any:
    """The grid as pomdp-py has it: both models, all states, actions and observations, and where actions lead."""
    import pomdp_py

    moves, sensor = grid(n_states)
    states = [pomdp_py.SimpleState(s) for s in range(n_states)]
    actions = [pomdp_py.SimpleAction(str(a)) for a in range(len(moves))]
    observations = [pomdp_py.SimpleObservation(o) for o in range(n_states)]
    target, likelihood = {a: m.indices.tolist() for a, m in zip(actions, moves, strict=True)}, sensor.toarray().tolist()

    class Transition(pomdp_py.TransitionModel):
        def probability(self, next_state: Any, state: Any, action: Any) -> float:
            return float(target[action][state.data] == next_state.data)

        def get_all_states(self) -> Any:
            return states

    class Sensor(pomdp_py.ObservationModel):
        def probability(self, observation: Any, next_state: Any, action: Any) -> float:
            return likelihood[next_state.data][observation.data]

        def get_all_observations(self) -> Any:
            return observations

    return Transition(), Sensor(), states, actions, observations, target


def run_pomdp_py(update: Callable[..., Any], belief: Any, world: Any, steps: int) -> tuple[list[float], np.ndarray]:
    _, _, states, actions, observations, _ = world
    rng, read = np.random.default_rng(3), sensor_readings(1, len(states))
    seconds, answers = [], []
    for _ in range(steps):
        action = rng.integers(len(actions), size=1)
        observation = observations[int(read(action)[0])]
        began = time.perf_counter()
        belief = update(belief, actions[int(action[0])], observation)
        seconds.append(time.perf_counter() - began)
        answers.append([belief[state] for state in states] if len(answers) < 5 else answers[-1])
    return seconds, np.array(answers[:5])


def pomdp_py_theirs(n_states: int, steps: int) -> Side:
    import pomdp_py

    transition, sensor, *_ = world = pomdp_py_world(n_states)
    belief = pomdp_py.Histogram({state: 1 / n_states for state in world[2]})

    def update(belief: Any, action: Any, observation: Any) -> Any:
        return pomdp_py.update_histogram_belief(belief, action, observation, sensor, transition)

    seconds, answers = run_pomdp_py(update, belief, world, steps)
    return seconds, 0, answers  # its models are functions


def pomdp_py_ours(n_states: int, steps: int) -> Side:
    import pomdp_py

    from agentmem.integrations.pomdp_py import compile_model

    transition, sensor, states, actions, observations, target = world = pomdp_py_world(n_states)
    belief = pomdp_py.Histogram({state: 1 / n_states for state in states})
    agent = pomdp_py.Agent(belief, None, transition, sensor, None)
    compiled = compile_model(
        agent, states, actions, observations, successors=lambda state, action: [states[target[action][state.data]]]
    )
    seconds, answers = run_pomdp_py(compiled.update, compiled.belief(), world, steps)
    return seconds, compiled.model.nbytes, answers


def hmmlearn_theirs(n_states: int, steps: int) -> Side:
    from hmmlearn.hmm import CategoricalHMM

    startprob, transmat, emissionprob, symbols = hidden_markov(n_states)
    hmm = CategoricalHMM(n_states, n_features=20, implementation="scaling")
    hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = startprob, transmat.toarray(), emissionprob
    seconds, score = [], 0.0
    for _ in range(steps):
        began = time.perf_counter()
        score = hmm.score(symbols[:, None])
        seconds.append(time.perf_counter() - began)
    return seconds, hmm.transmat_.nbytes + emissionprob.nbytes, np.array([[score]])


def hmmlearn_ours(n_states: int, steps: int) -> Side:
    startprob, transmat, emissionprob, symbols = hidden_markov(n_states)
    model = am.Model.from_hmm(startprob, transmat, emissionprob)
    seconds, score = [], 0.0
    for _ in range(steps):
        began = time.perf_counter()
        score = model.filter(symbols, first="correct", prune=0.0).log_evidence.sum()
        seconds.append(time.perf_counter() - began)
    return seconds, model.nbytes, np.array([[score]])


# ---- one process for each side


def measure(comparison: Comparison, side: str, directory: Path) -> dict[str, Any]:
    one_thread = {name: "1" for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    one_thread |= {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"}
    answers = directory / f"{side}.npy"
    record = in_child(__file__, f"{comparison.name}_{side}", comparison.size, comparison.steps[side], answers,
                      JAX_PLATFORMS="cpu", **one_thread)
    return {**record, "answers": np.load(answers)}


def main(side: str, size: int, steps: int, answers_file: str) -> None:
    before = peak_rss()
    seconds, table_bytes, answers = globals()[side](size, steps)
    record = {"seconds": seconds, "model": table_bytes, "before": before, "peak": peak_rss()}
    np.save(answers_file, answers)
    print(json.dumps(record))


# ---- the table


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "comparison" in metafunc.fixturenames:
        metafunc.parametrize("comparison", SMOKE if metafunc.config.getoption("--smoke") else COMPARISONS, ids=str)


@pytest.fixture(scope="module")
def rows(report: Any) -> Iterator[list[list[str]]]:
    found: list[list[str]] = []
    yield found
    head = ["agents", "states", "theirs ms", "ours ms", "faster", "promised", "model MB theirs", "ours",
            "peak MB theirs", "ours", "largest difference", "holds"]
    if found:
        report.sections["whole steps of other libraries' agents, each side in its own process"] = table(head, found)


@pytest.mark.benchmark(timer=replay.read)
def test_agents(benchmark: Any, comparison: Comparison, rows: list[list[str]], report: Any, tmp_path: Path) -> None:
    if find_spec(comparison.needs) is None:
        pytest.skip(f"{comparison.needs} is not installed: pip install 'agentmem-native[integrations]'")
    theirs, ours = (measure(comparison, side, tmp_path) for side in (THEIRS, OURS))
    n = min(len(theirs["answers"]), len(ours["answers"]))
    expected, found = theirs["answers"][:n], ours["answers"][:n]
    difference = float((np.abs(found - expected) / np.maximum(1, np.abs(expected))).max())
    assert difference <= comparison.within

    replay.play(benchmark, ours["seconds"])
    faster = median(theirs["seconds"]) / median(ours["seconds"])
    holds = (
        faster >= comparison.times and ours["model"] < comparison.model_below and ours["peak"] < comparison.peak_below
    )
    verdict = "yes" if holds else "NO" if comparison in COMPARISONS else "-"
    times = [f"{median(side['seconds']) * 1e3:,.4g}" for side in (theirs, ours)]
    model, peak = ([f"{side[k] / 1e6:,.4g}" if side[k] else "-" for side in (theirs, ours)] for k in ("model", "peak"))
    rows.append([comparison.name, f"{comparison.size:,}", *times, f"{faster:,.0f}x", f"{comparison.times:,.0f}x",
                 *model, *peak, f"{difference:.1e}", verdict])
    report.records.setdefault("agents", []).append(
        {"name": comparison.name, "states": comparison.size, "faster": faster, "difference": difference}
        | {f"{who} {what}": side[what] for who, side in ((THEIRS, theirs), (OURS, ours)) for what in ("model", "peak")}
    )


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
