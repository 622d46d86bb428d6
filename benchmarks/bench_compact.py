"""Claim: a compacted agent loses nothing, stays small while it works, and is no slower than the dense one.

The agent of the 34.5 MB report (`reference_agent`) takes turns of twenty steps with its compact twin: every density and
support of the belief with the usual other parts, then at 1 % every kind of the others, for no part depends on
another. Then 1 to 100 agents, and 100 agents over 5,000 steps.

What every step reads is compared, and all that the agents hold after the last one; this and the bytes are asserted.
Times are medians over the steps, against the strict promises, losses printed too: timing never fails a test.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any

import pytest

from agentmem.profiler.promises import AgentRecord, CrowdRecord, Limit, RunRecord
from agentmem.profiler.verification import (
    BELIEFS,
    CROWD,
    MIB,
    RUN,
    Inputs,
    compare,
    hold,
    limit_of,
    run,
)
from harness import replay, table
from workloads import reference_agent

Case, Sizes = reference_agent.Case, reference_agent.Sizes
OTHERS = [
    Case(0.01, log=log, observation=observation, transition=transition, shared=shared)
    for log, observation, transition, shared in product(
        ("strings", "records"), ("sparse", "dense"), ("neighbours", "noise", "dense"), (True, False)
    )
]
PLAIN = [Case(0.001), Case(0.01), Case(0.1)]  # with likelihoods that anybody may write to
CROWDS = 1, 10, 50, 100
LONG = Case(0.001, "clustered")
AGENTS, STEPS = 100, 5_000


@lru_cache(maxsize=1)
def inputs() -> Inputs:
    return Inputs(Sizes(), seed=0)


@dataclass
class Findings:
    agents: list[AgentRecord] = field(default_factory=list)
    crowds: list[CrowdRecord] = field(default_factory=list)
    runs: list[RunRecord] = field(default_factory=list)


@pytest.fixture(scope="module")
def findings(report: Any) -> Iterator[Findings]:
    found = Findings()
    yield found
    if found.agents:
        report.sections["one agent"] = agent_lines(found.agents)
        report.sections["promises of time"] = promise_lines(found.agents)
    if found.crowds:
        report.sections["many agents, 1 %, one transition"] = crowd_lines(found.crowds)
    report.sections |= {record.name: run_lines(record) for record in found.runs}
    report.records["compact"] = asdict(found)


def agent_lines(records: list[AgentRecord]) -> list[str]:
    head = ["", "dense MiB", "MiB", "at most", "dense ms", "ms", "dense/ours", "at least", "L1", ""]
    rows = []
    for record in records:
        most, time = record.limit.nbytes, record.limit.time
        rows.append(
            [
                record.name,
                f"{record.dense_bytes / MIB:.2f}",
                f"{record.nbytes / MIB:.3f}",
                "-" if most is None else f"{most / MIB:.2f}",
                f"{record.dense_seconds * 1e3:.2f}",
                f"{record.seconds * 1e3:.3f}",
                f"{1 / record.time:.2f}",
                "-" if time is None else f"{1 / time:.2f}",
                f"{record.differences.belief:.0e}",
                "LOSS" if record.time > 1 else "",
            ]
        )
    return [
        "bytes of all that the agent holds after its steps, as traced; a step's time beside the dense agent's",
        *table(head, rows),
    ]


def promise_lines(records: list[AgentRecord]) -> list[str]:
    lines = []
    for most in sorted({record.limit.time for record in records if record.limit.time is not None}):
        held = [record for record in records if record.limit.time == most]
        worst = max(held, key=lambda record: record.time)
        kept = sum(record.time <= most for record in held)
        verdict = "kept" if kept == len(held) else "BROKEN"
        lines.append(
            f"{verdict}: a step takes at most {most:.2f} x the dense one: {kept} of {len(held)}; "
            f"worst {worst.time:.3f} at {worst.name}"
        )
    return lines


def crowd_lines(records: list[CrowdRecord]) -> list[str]:
    rows = [
        [f"{record.agents}", f"{record.nbytes / MIB:.2f}", f"{record.nbytes / record.agents / MIB:.3f}"]
        for record in records
    ]
    return table(["agents", "MiB", "MiB an agent"], rows)


def run_lines(record: RunRecord) -> list[str]:
    rows = [
        [f"{step:,}", f"{rss / MIB:.2f}", f"{logs / MIB:.2f}", f"{(rss - logs) / MIB:.2f}"]
        for step, rss, logs in zip(record.sampled, record.rss, record.log_bytes, strict=True)
    ]
    return [
        *table(["step", "RSS MiB", "of which logs", "the rest"], rows),
        f"the rest grew by {record.growth / MIB:.2f} MiB (at most {RUN.nbytes / MIB:.0f}), the logs, which keep "
        f"every entry, by {record.log_growth / MIB:.2f}",
    ]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        kinds = [(case, True) for case in BELIEFS + OTHERS[1:]] + [(case, False) for case in PLAIN]
        if metafunc.config.getoption("--smoke"):
            kinds = kinds[2:3]
        metafunc.parametrize("kind", kinds, ids=[f"{case}{'' if interned else ', plain'}" for case, interned in kinds])


@pytest.mark.benchmark(timer=replay.read, group="a step")
def test_agent(benchmark: Any, kind: tuple[Any, bool], findings: Findings, smoke: bool) -> None:
    case, interned = kind
    limit = limit_of(case)
    if not interned:
        limit = Limit(limit.nbytes)
    record = compare(case, inputs(), limit=limit, interned=interned, steps=20 if smoke else 60)
    findings.agents.append(record)
    assert not [promise for promise in record.promises() if not promise.kept and promise.unit != "x"]
    replay.play(benchmark, [record.seconds])


@pytest.mark.benchmark(group="many agents, made and put to work")
@pytest.mark.parametrize("agents", CROWDS)
def test_crowd(benchmark: Any, agents: int, findings: Findings, smoke: bool) -> None:
    if smoke and agents > 10:
        pytest.skip("a few are enough to see whether it runs")
    limit = CROWD if agents <= 50 else Limit()
    record = benchmark.pedantic(hold, args=(Case(0.01), agents, inputs()), kwargs={"limit": limit}, rounds=1)
    findings.crowds.append(record)
    assert all(promise.kept for promise in record.promises())


@pytest.mark.benchmark(group="many agents, made and put to work")
def test_run(benchmark: Any, findings: Findings, smoke: bool) -> None:
    agents, steps = (10, 50) if smoke else (AGENTS, STEPS)
    record = benchmark.pedantic(run, args=(LONG, agents, inputs()), kwargs={"steps": steps, "limit": RUN}, rounds=1)
    findings.runs.append(record)
    assert all(promise.kept for promise in record.promises())
