"""The reference agent is what it says, its compact twin is compared with it in full, and broken promises are told."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import agentmem as am
from agentmem.profiler import tables, verification
from agentmem.profiler.promises import AgentRecord, CrowdRecord, Differences, Limit, RunRecord
from agentmem.profiler.reference_agent import (
    Case,
    Sizes,
    likelihoods,
    make_agent,
    new_entries,
    observations,
    step,
)
from agentmem.profiler.verification import (
    Inputs,
    compare,
    differences,
    hold,
    is_same_reading,
    limit_of,
    run,
)

MIB = 2**20
SMALL = Sizes(belief=(64, 96), observation=(48, 64), states=128, strings=100, records=150, patch=8)
SMALL_CASES = [
    replace(case, sizes=SMALL)
    for case in [
        *(Case(density, where) for density in (0.002, 0.01, 0.1, 0.5) for where in ("random", "clustered")),
        Case(1.0),
        Case(1.0, "uniform"),
        Case(0.01, "tail"),
        Case(0.01, log="records"),
        Case(0.01, observation="dense", transition="noise"),
        Case(0.01, log="records", observation="dense", transition="dense", shared=False),
    ]
]
USUAL = Case(0.1, sizes=SMALL)


@pytest.fixture(scope="module")
def inputs():
    return Inputs(SMALL, seed=1)


# ---- the agent


def test_the_agent_of_full_size_takes_what_the_report_counted():
    agent = make_agent(Case(0.001, "clustered"))
    assert am.footprint(agent).total == pytest.approx(34.6 * MIB, rel=0.002)
    assert len(agent.log) == 2_000
    assert len(make_agent(replace(USUAL, log="records", sizes=Sizes(belief=(8, 8)))).log) == 3_468


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_an_agent_is_what_its_case_says(case):
    agent = make_agent(case, seed=3)
    assert agent.belief.shape == (64, 96) and agent.belief.dtype == np.float32
    assert agent.belief.sum(dtype=float) == pytest.approx(1, abs=1e-5)
    if case.support == "tail":
        assert agent.belief.all()
        assert np.sum(agent.belief < 1e-9 * agent.belief.max()) == pytest.approx(0.99 * agent.belief.size, rel=0.01)
    else:
        assert np.count_nonzero(agent.belief) / agent.belief.size == pytest.approx(case.density, rel=0.2)
    if case.support == "uniform":
        assert len(np.unique(agent.belief)) == 1
    if case.support == "clustered":
        rows, columns = agent.belief.nonzero()
        assert np.ptp(rows) + 1 <= 64 * case.density**0.5 + 1 and np.ptp(columns) + 1 <= 96 * case.density**0.5 + 1

    share = np.count_nonzero(agent.observation) / agent.observation.size
    assert share == pytest.approx(1.0 if case.observation == "dense" else 0.01, rel=0.5)
    np.testing.assert_allclose(agent.transition.sum(axis=1, dtype=float), 1, atol=1e-6)
    entries = np.count_nonzero(agent.transition, axis=1)
    assert set(entries) == ({5} if case.transition == "neighbours" else {128})
    assert case.transition != "noise" or agent.transition.diagonal().min() > 0.4

    if case.log == "strings":
        assert agent.log == [f"action_{i}" * 100 for i in range(100)]
    else:
        kinds = [(key, type(value)) for key, value in agent.log[0].items()]
        assert kinds == [("type", str), ("x", int), ("y", int), ("target", str), ("confidence", float),
                         ("timestamp", float)]  # fmt: skip
        assert all([(key, type(value)) for key, value in entry.items()] == kinds for entry in agent.log)
        assert len(agent.log) == 150


@pytest.mark.parametrize("shared", [True, False])
def test_agents_come_from_their_seed(shared):
    case = replace(USUAL, shared=shared, transition="noise")
    first, again, second = make_agent(case, 5), make_agent(case, 5), make_agent(case, 5, number=1)
    assert differences(again, first) == Differences(0.0, 0, 0, 0)
    assert (second.transition == first.transition).all() == shared
    assert (second.belief != first.belief).any() and (make_agent(case, 6).belief != first.belief).any()


def test_a_step_is_the_filter_written_out():
    agent = make_agent(USUAL)
    agent.belief[0, 0] = 1e-9 * agent.belief.max()  # goes
    expected = agent.belief.astype(float)
    favour, seen, entries = likelihoods(SMALL), observations(USUAL), new_entries(USUAL)
    for k in range(20):
        expected *= favour[k % 4]
        expected /= expected.sum()
        expected[expected <= 1e-8 * expected.max()] = 0
        mode, mass, entry, observed, moved = step(agent, favour[k % 4], next(entries), seen[k % 5])
        np.testing.assert_allclose(agent.belief, expected, rtol=2e-5)
        assert mass == agent.belief.max() == agent.belief.reshape(-1)[mode]
        assert entry == agent.log[-1] == f"action_{100 + k}" * 100
        assert (agent.observation == seen[k % 5]).all()
        assert (observed == seen[k % 5][(101 + k) % 48]).all() and (moved == agent.transition[(101 + k) % 128]).all()
    assert expected[0, 0] == agent.belief[0, 0] == 0
    assert len(agent.log) == 120


def test_likelihoods_favour_a_patch_that_goes_round_the_middle():
    made = likelihoods(SMALL)
    for likelihood in made:
        favoured = likelihood == 1
        assert favoured.sum() == 64 and (likelihood[~favoured] == np.float32(0.9)).all()
    favoured = np.sum([likelihood == 1 for likelihood in made], axis=0)
    assert (favoured[24:40, 40:56] == 1).all() and favoured.sum() == 256


# ---- beside its compact twin


@pytest.mark.parametrize("case", SMALL_CASES, ids=str)
def test_a_compact_agent_loses_nothing(case, inputs):
    record = compare(case, inputs, limit=Limit())
    lost = record.differences
    assert (lost.log, lost.observation, lost.transition, record.readings_differ) == (0, 0, 0, 0)
    assert lost.belief <= 1e-6
    assert [promise.what for promise in record.promises() if not promise.kept] == []
    assert record.nbytes < record.dense_bytes
    assert list(record.parts) == list(record.dense_parts) == ["belief", "log", "observation", "transition"]
    assert record.seconds > 0 and record.dense_seconds > 0
    assert (record.steps, record.case, record.interned) == (20, case, True)


def test_likelihoods_may_be_plain(inputs):
    assert not any(likelihood.flags.writeable for likelihood, *_ in zip(*[inputs.likelihoods] * 2, strict=True))
    likelihood, *_ = next(inputs.of(USUAL, interned=False))
    assert likelihood.flags.writeable
    record = compare(USUAL, inputs, limit=Limit(), interned=False)
    assert record.differences.belief <= 1e-6 and record.name == "10 % random, plain likelihoods"


def test_many_agents_hold_what_they_hold(inputs):
    case = replace(USUAL, transition="noise")

    def ten_more(case):
        # The difference: NumPy keeps some kB of small blocks for later, whatever was traced.
        five, fifteen = (hold(case, n, inputs, limit=Limit(), steps=5).nbytes for n in (5, 15))
        return fifteen - five

    agent = inputs.compact_agent(case)
    for _, given in zip(range(5), inputs.of(case), strict=False):
        step(agent, *given)
    parts = am.footprint(agent).parts
    transition, others = parts["transition"], am.footprint(agent).total - parts["transition"]
    assert ten_more(case) == pytest.approx(10 * others, rel=0.1)  # one transition for all
    assert ten_more(replace(case, shared=False)) == pytest.approx(10 * (others + transition), rel=0.05)


def test_a_run_is_sampled_ten_times(inputs):
    record = run(USUAL, 3, inputs, steps=20, limit=Limit(50 * MIB))
    assert record.sampled == tuple(range(2, 21, 2))
    assert len(record.rss) == len(record.log_bytes) == 10
    assert min(record.rss) > MIB and min(record.log_bytes) > 0
    assert [promise.kept for promise in record.promises()] == [True]
    assert run(USUAL, 1, inputs, steps=3, limit=Limit()).sampled == (1, 2, 3)


# ---- what is broken is told


def forgetful(agent):
    agent.log, kept = am.RecordHistory(maxlen=100), agent.log
    agent.log.extend(kept)


def blurred(agent):
    agent.belief = np.asarray(agent.belief).astype(np.float16).astype(np.float32)


def moved(agent):
    agent.transition = np.asarray(agent.transition).copy()
    agent.transition[105] = np.roll(agent.transition[105], 1)  # read at the fifth step


def hoarding(agent):
    agent.hidden = np.ones(100_000)


@pytest.mark.parametrize(
    ("breaks", "what"),
    [
        (forgetful, ["entries of the log that differ", "steps that read otherwise"]),
        (blurred, ["belief", "steps that read otherwise"]),
        (moved, ["cells of the transition that differ", "steps that read otherwise"]),
        (hoarding, ["agent beside dense"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_agent_is_found_out(breaks, what):
    class Broken(Inputs):
        def compact_agent(self, case, number=0):
            agent = super().compact_agent(case, number)
            breaks(agent)
            return agent

    case = replace(USUAL, transition="dense")
    record = compare(case, Broken(SMALL, 1), limit=Limit())
    assert broken(record) == [f"{case}: {promise}" for promise in what]
    assert record.readings_differ == {forgetful: 20, moved: 1, hoarding: 0}.get(breaks, record.readings_differ)


@pytest.fixture
def twins(inputs):
    return inputs.compact_agent(USUAL), make_agent(USUAL, inputs.seed)


def test_equal_agents_do_not_differ(twins):
    assert differences(*twins) == Differences(0.0, 0, 0, 0)


def test_a_lost_entry_differs(twins):
    ours, dense = twins
    ours.log = am.RecordHistory(maxlen=99)
    ours.log.extend(dense.log)
    assert differences(ours, dense).log == 100  # each is at another place
    ours.log = dense.log[:-1]
    assert differences(ours, dense).log == 1
    ours.log = [*dense.log, dense.log[0]]
    assert differences(ours, dense).log == 1


def test_an_entry_of_another_type_differs(twins):
    ours, dense = twins
    ours.log, dense.log = [1, 2.0, True, {"x": 1, "y": 2}], [True, 2.0, 1, {"x": 1.0, "y": 2}]
    assert differences(ours, dense).log == 3


def test_a_belief_off_by_a_thousandth_differs(twins):
    ours, dense = twins
    ours.belief[0, 0] += np.float32(1e-3)
    assert differences(ours, dense).belief == pytest.approx(1e-3, rel=1e-3)
    ours.belief[0, 0] = np.nan
    assert differences(ours, dense).belief == 2.0
    ours.belief = dense.belief[1:]
    assert differences(ours, dense).belief == 2.0


def test_changed_cells_differ(twins):
    ours, dense = twins
    ours.observation[3, 4] += 1
    dense.transition[5] = 0
    assert differences(ours, dense) == Differences(0.0, 0, 1, 5)
    ours.observation = ours.observation.astype(np.float64)
    ours.transition = ours.transition[:-1]
    assert differences(ours, dense) == Differences(0.0, 0, 48 * 64, 128 * 128)


def test_what_a_step_read_is_compared():
    agent = make_agent(USUAL)
    given = next(Inputs(SMALL, 0).of(USUAL))
    reading = mode, mass, entry, observed, moved = step(agent, *given)
    assert is_same_reading(reading, reading, agent)
    other = int(np.argmin(agent.belief))
    for wrong in (
        (other, mass, entry, observed, moved),
        (mode, mass * 1.001, entry, observed, moved),
        (mode, float("nan"), entry, observed, moved),
        (mode, mass, entry[1:], observed, moved),
        (mode, mass, entry, observed + 1, moved),
        (mode, mass, entry, observed, moved[1:]),
    ):
        assert not is_same_reading(wrong, reading, agent)
    agent.belief.reshape(-1)[other] = mass  # now a mode as well
    assert is_same_reading((other, mass, entry, observed, moved), reading, agent)


GOOD = AgentRecord(
    case=Case(0.01),
    interned=True,
    steps=20,
    limit=Limit(900_000, 0.05),
    differences=Differences(1e-7, 0, 0, 0),
    readings_differ=0,
    dense_bytes=1_000_000,
    nbytes=800_000,
    dense_parts={"belief": 500_000, "log": 500_000},
    parts={"belief": 505_000, "log": 1_000},
    dense_seconds=0.02,
    seconds=0.001,
)
CROWD = CrowdRecord(Case(0.01), 50, 20, Limit(45 * MIB), 45 * MIB)
RUN = RunRecord(Case(0.01), 100, Limit(2 * MIB), (5, 50), (100 * MIB, 105 * MIB), (4 * MIB, 7 * MIB))


def broken(*records):
    return [promise.what for record in records for promise in record.promises() if not promise.kept]


def test_promises_are_kept_up_to_their_limits():
    assert broken(GOOD, CROWD, RUN) == []
    assert GOOD.time == pytest.approx(0.05) and (RUN.growth, RUN.log_growth) == (2 * MIB, 3 * MIB)
    assert len(GOOD.promises()) == 10
    assert len(replace(GOOD, limit=Limit()).promises()) == 8
    assert replace(CROWD, limit=Limit()).promises() == replace(RUN, limit=Limit()).promises() == []


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (replace(GOOD, differences=Differences(1e-3, 0, 0, 0)), "1 % random: belief"),
        (replace(GOOD, differences=Differences(float("nan"), 0, 0, 0)), "1 % random: belief"),
        (replace(GOOD, differences=Differences(0.0, 1, 0, 0)), "1 % random: entries of the log that differ"),
        (replace(GOOD, differences=Differences(0.0, 0, 1, 0)), "1 % random: cells of the observation that differ"),
        (replace(GOOD, differences=Differences(0.0, 0, 0, 1)), "1 % random: cells of the transition that differ"),
        (replace(GOOD, readings_differ=1), "1 % random: steps that read otherwise"),
        (replace(GOOD, nbytes=900_001), "1 % random: agent"),
        (replace(GOOD, limit=Limit(), nbytes=1_010_001), "1 % random: agent beside dense"),
        (replace(GOOD, parts={"belief": 505_001, "log": 0}), "1 % random: belief beside dense"),
        (replace(GOOD, seconds=0.00101), "1 % random: step beside dense"),
        (replace(CROWD, nbytes=45 * MIB + 1), "50 agents, 1 % random"),
        (replace(RUN, rss=(100 * MIB, 106 * MIB)), "100 agents, 1 % random, step 5 to 50: growth"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_promise_is_told(record, what):
    assert broken(record) == [what]
    found = tables.verification_to_json([GOOD, record], command="verify", parameters={})
    assert not found["kept"] and [promise["what"] for promise in found["promises"] if not promise["kept"]] == [what]
    assert f"BROKEN: {what}: " in found["summary"]


def test_limits_are_those_promised():
    assert [limit_of(Case(density)) for density in (1e-4, 0.001, 0.01, 0.1, 0.5, 1.0)] == [
        Limit(0.25 * MIB, 0.05),
        Limit(0.25 * MIB, 0.05),
        Limit(0.9 * MIB, 0.05),
        Limit(4.6 * MIB, 1.0),
        Limit(18 * MIB, 1.5),
        Limit(None, 1.5),
    ]
    assert limit_of(Case(0.01, observation="dense")) == limit_of(Case(0.01, transition="noise")) == Limit(None, 0.05)
    assert limit_of(Case(0.1, log="records"), lenience=3.0) == Limit(4.6 * MIB, 3.0)


def test_the_plan_covers_what_is_promised():
    tasks = verification.standard_plan(seed=2)
    agents = [task for task in tasks if task.func is compare]
    cases = [task.args[0] for task in agents]
    for density in (0.0001, 0.001, 0.01, 0.05, 0.1, 0.5):
        assert Case(density, "random") in cases and Case(density, "clustered") in cases
    assert {case.support for case in cases} == {"random", "clustered", "uniform", "tail"} and Case(1.0) in cases
    assert {case.log for case in cases} == {"strings", "records"}
    assert {case.transition for case in cases} == {"neighbours", "noise", "dense"}
    assert all(task.args[1].seed == 2 and task.keywords["limit"].time is not None for task in agents)
    crowd, long = tasks[len(agents) :]
    assert crowd.func is hold and crowd.args[1] == 50 and crowd.keywords["limit"] == Limit(45 * MIB)
    assert long.func is run and long.args[1] == 100


# ---- shown


def test_json_has_all_that_was_found():
    found = tables.verification_to_json([GOOD, CROWD, RUN], command="verify", parameters={"seed": 4})
    assert json.loads(json.dumps(found, allow_nan=False)) == json.loads(json.dumps(found))
    assert list(found) == [
        "schema", "command", "parameters", "agents", "crowds", "runs", "promises", "kept", "summary"
    ]  # fmt: skip
    assert (found["schema"], found["command"], found["parameters"], found["kept"]) == (1, "verify", {"seed": 4}, True)
    [agent], [crowd], [ran] = found["agents"], found["crowds"], found["runs"]
    assert agent["name"] == "1 % random" and agent["time"] == GOOD.time and agent["case"]["density"] == 0.01
    assert agent["limit"] == {"nbytes": 900_000, "time": 0.05}
    assert agent["differences"] == {"belief": 1e-7, "log": 0, "observation": 0, "transition": 0}
    assert crowd["nbytes"] == 45 * MIB and crowd["agents"] == 50
    assert ran["growth"] == 2 * MIB and ran["log_growth"] == 3 * MIB and ran["sampled"] == (5, 50)
    assert found["promises"][0] == {
        "what": "1 % random: belief", "unit": "L1", "found": 1e-7, "most": 1e-6, "kept": True
    }  # fmt: skip


def test_the_table_fits_a_terminal():
    from rich.console import Console

    long = replace(
        GOOD, interned=False, case=Case(0.0001, "clustered", "records", "dense", "neighbours", False), nbytes=10**9
    )
    screen = io.StringIO()
    Console(file=screen, width=80).print(tables.verification_to_table([GOOD, long, CROWD]))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    row = next(line for line in lines if line.startswith("1 % random"))
    assert row.split()[3:] == ["781", "KiB", "879", "KiB", "20.0", "1.00", "20.0", "1.0e-07", "0"]
    assert "954 MiB" in screen.getvalue() and "\u2026" not in screen.getvalue()


def test_the_summary_counts():
    lines = tables.verification_summary([GOOD, CROWD, RUN]).splitlines()
    assert lines == [
        "50 agents, 1 % random: 45.0 MiB in all",
        "100 agents, 1 % random, step 5 to 50: RSS 100 MiB to 105 MiB, of which logs 4.0 MiB to 7.0 MiB",
        "12 of 12 promises kept",
    ]
    late = tables.verification_summary([replace(GOOD, seconds=0.004)]).splitlines()
    assert late == ["BROKEN: 1 % random: step beside dense: 0.20 x, promised at most 0.05 x", "9 of 10 promises kept"]


def test_a_plan_is_a_list_of_what_to_do(inputs):
    plan: verification.Plan = [
        partial(compare, USUAL, inputs, limit=Limit()), partial(hold, USUAL, 2, inputs, limit=Limit())
    ]
    assert [type(task()) for task in plan] == [AgentRecord, CrowdRecord]
