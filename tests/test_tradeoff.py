"""Memory against time and error: which configurations no other beats, which one to take, and on what work."""

import io
import json
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

import agentmem as am
from agentmem.profiler import child, comparison, filters, sweep, workloads
from agentmem.profiler.filters import Configuration
from agentmem.profiler.front import LeftOut, Measurement, TradeOff, beats
from agentmem.profiler.sweep import tradeoff
from agentmem.profiler.worlds import World, grid_world
from test_sweep import assert_same_world, dense_beliefs

GRID = grid_world(4, 5, agents=3, steps=30, seed=1)


def made(name, nbytes, times, l1, changed=0.0, filter="sparse"):
    """A measurement as it might have been; its time is the middle one."""
    times = (times,) if isinstance(times, float) else times
    return Measurement(
        Configuration(name, filter), 1000, nbytes, 2 * nbytes, 10**7, 2 * 10**7, sorted(times)[len(times) // 2], l1, l1,
        l1, changed, times,
    )  # fmt: skip


REFERENCE = made("dense", 240, (2.9, 2.8, 3.0), None, None, filter="dense")


def found(*measurements, left_out=(), command=None):
    return TradeOff(GRID.extent, measurements, left_out, command)


def on_front(*measurements):
    return [it.configuration.name for it in found(*measurements).front]


# ---- the front


def test_what_is_better_in_nothing_is_not_on_the_front():
    small, quick, exact = made("small", 50, 2.0, 1e-3), made("quick", 90, 0.2, 1e-3), made("exact", 90, 2.0, 0.0)
    worse = made("worse", 91, 2.0, 1e-3)
    for order in permutations([small, quick, exact, worse]):
        assert set(on_front(*order)) == {"small", "quick", "exact"}
    assert on_front(worse) == ["worse"]


def test_equals_are_all_on_the_front():
    assert on_front(made("a", 50, 1.0, 1e-9), made("b", 50, 1.0, 1e-9)) == ["a", "b"]


@pytest.mark.parametrize(
    ("one", "other", "is_beaten"),
    [
        ((1.0,), (1.15,), False),  # noise, though both repeats may agree
        ((1.0,), (1.25,), True),
        ((0.9, 1.0, 1.3), (1.2, 1.25, 1.4), False),  # they overlap
        ((0.9, 1.0, 1.1), (1.2, 1.25, 1.4), True),
    ],
)
def test_a_time_must_be_clearly_less(one, other, is_beaten):
    one, other = made("one", 50, one, 1e-9), made("other", 50, other, 1e-9)
    assert beats(one, other) is is_beaten
    assert not beats(other, one)
    assert beats(replace(one, belief_bytes_median=49), other)
    assert not beats(replace(one, belief_bytes_median=51), other)
    assert beats(replace(other, belief_bytes_median=49), one) is not is_beaten


def test_errors_count_as_printed_and_above_rounding():
    a, b = made("a", 50, 1.0, 3e-16), made("b", 50, 1.0, 8e-13)
    assert on_front(a, b) == ["a", "b"]
    assert on_front(made("a", 50, 1.0, 1.51e-7), made("b", 50, 1.0, 1.52e-7)) == ["a", "b"]
    assert on_front(made("a", 50, 1.0, 1.4e-7), made("b", 50, 1.0, 1.5e-7)) == ["a"]
    assert on_front(made("reference", 50, 1.0, None, None), made("b", 50, 1.0, 1e-9)) == ["reference"]


TIMES = st.lists(st.floats(1, 1.6), min_size=1, max_size=3).map(tuple)
ANY = st.builds(
    made, st.just("any"), st.integers(1, 3), TIMES, st.sampled_from([1e-16, 1e-9, 1e-5]), st.sampled_from([0.0, 0.1])
)


@given(st.lists(ANY, min_size=1, max_size=6))
def test_there_is_a_front_whatever_was_measured(measurements):
    trade = found(REFERENCE, *measurements)
    assert trade.recommended in trade.front
    assert trade.recommended.decisions_changed in (None, 0.0) and trade.recommended.error <= 1e-6
    assert not any(beats(a, b) and beats(b, a) for a in measurements for b in measurements)


# ---- the one to take


def taken(*measurements):
    return found(REFERENCE, *measurements).recommended.configuration.name


def test_it_takes_the_fewest_bytes_of_what_is_as_good_as_exact_and_not_slow():
    good = made("good", 80, 0.30, 4e-7), made("larger", 120, 0.2, 1e-16)
    assert taken(*good) == "good"
    assert taken(*good, made("changes decisions", 40, 0.2, 4e-7, changed=0.01)) == "good"
    assert taken(*good, made("inexact", 40, 0.2, 2e-6)) == "good"
    assert taken(*good, made("slow", 40, 0.41, 4e-7)) == "good"
    assert taken(*good, made("smaller", 40, 0.39, 4e-7)) == "smaller"
    assert taken(*reversed(good)) == "good"


def test_of_about_equal_bytes_it_takes_the_most_exact():
    a, b, c = made("a", 100, 0.2, 4e-7), made("b", 109, 0.2, 1e-9), made("c", 111, 0.2, 1e-13)
    assert taken(a, b, c) == "b"
    assert taken(replace(b, belief_bytes_median=100), c, a) == "b"
    first, same = made("first", 100, 0.2, 1e-16), made("same", 100, 0.2, 3e-16)
    assert taken(first, same) == "first"


def test_it_takes_the_reference_where_nothing_else_is_good():
    assert taken(made("coarse", 10, 0.1, 1e-2, changed=0.5)) == "dense"


def test_noise_does_not_change_what_it_takes():
    quiet = [
        made("scipy", 240, (9.0, 9.1, 9.2), 4e-16, filter="scipy"),
        made("sparse64", 128, (0.28, 0.27, 0.28), 4e-16),
        made("sparse64 pruned", 128, (0.30, 0.29, 0.30), 4e-16),
        made("sparse32", 112, (0.29, 0.29, 0.30), 2e-7),
        made("sparse32 pruned", 112, (0.29, 0.28, 0.31), 2e-7),
        made("population32", 64, (1.6, 1.5, 1.6), 2e-7),
    ]
    rng = np.random.default_rng(0)
    for _ in range(200):
        noisy = []
        for it in quiet:
            times = tuple((np.array(it.repeats) * rng.uniform(1, 1.1, 3)).tolist())
            noisy.append(replace(it, repeats=times, microseconds_per_update=sorted(times)[1]))
        assert taken(*noisy) == "sparse32"


# ---- measured


def test_turns_go_round():
    turns = list(sweep.turns("abcdef", 3))
    assert [turn for turn, _ in turns] == [0] * 6 + [1] * 6 + [2] * 6
    rounds = ["".join(it for turn, it in turns if turn == k) for k in range(3)]
    assert rounds == ["abcdef", "cdefab", "efabcd"]
    assert list(sweep.turns("ab", 3)) == [(0, "a"), (0, "b"), (1, "a"), (1, "b"), (2, "b"), (2, "a")]


FOUR = [
    Configuration("dense", "dense"),
    Configuration("dense32", "dense", dtype="float32"),
    Configuration("coarse", "sparse", prune=0.05),
    Configuration("all32", "population", prune=1e-9, dtype="float32"),
]


@pytest.fixture(scope="module")
def four():
    calls = []
    return tradeoff(GRID, FOUR, repeats=2, on_measured=calls.append), calls


def test_a_trade_off_measures_in_turns(four):
    trade, calls = four
    assert calls == [it for _, it in sweep.turns(FOUR, 2)]
    assert [it.configuration for it in trade.measurements] == FOUR
    assert trade.world == GRID.extent and trade.world.states == 20
    assert trade.left_out == () and trade.command is None
    for it in trade.measurements:
        assert len(it.repeats) == 2
        assert it.fastest <= it.microseconds_per_update == sum(it.repeats) / 2 <= it.slowest


def test_errors_are_those_of_the_obvious_loop(four):
    trade, _ = four
    expected, expected_evidence = dense_beliefs(GRID)
    assert trade.reference.largest_l1 is trade.reference.decisions_changed is None
    for it in trade.measurements[1:]:
        step_filter = filters.FILTERS[it.configuration.filter](GRID, it.configuration)
        l1 = evidence_difference = changed = 0
        for step, (beliefs, evidence, _) in enumerate(child.run(GRID, step_filter)):
            for agent, belief in enumerate(map(np.asarray, beliefs)):
                truth = expected[step, agent]
                l1 = max(l1, np.abs(belief - truth).sum())
                evidence_difference = max(evidence_difference, abs(evidence[agent] - expected_evidence[step, agent]))
                changed += truth[belief.argmax()] < truth.max() * 0.999999
        assert it.largest_l1 == pytest.approx(l1, rel=1e-6)
        assert it.largest_log_evidence_difference == pytest.approx(evidence_difference, rel=1e-6)
        assert it.decisions_changed == changed / GRID.actions.size
    _, dense32, coarse, all32 = trade.measurements
    assert dense32.decisions_changed == all32.decisions_changed == 0 < dense32.largest_l1 < 2e-6
    assert coarse.decisions_changed > 0 and coarse.largest_l1 > 0.01


def test_bytes_are_those_of_each_storage(four):
    dense, dense32, _, all32 = four[0].measurements
    n = GRID.initial.size
    assert dense.belief_bytes_median - dense32.belief_bytes_median == 4 * n
    assert dense.model_bytes == 2 * dense32.model_bytes
    population = am.Population(am.Model(GRID.transition, GRID.observation, dtype=np.float32), 3, prune=1e-9)
    held = []
    for actions, observations in zip(GRID.actions, GRID.observations, strict=True):
        population.update(actions, observations)
        held.append(population.nbytes // 3)
    assert (all32.belief_bytes_median, all32.belief_bytes_peak) == (int(np.median(held)), max(held))


def still(initial, observation, actions, observations):
    """One agent in a world where nothing moves."""
    observation = sparse.csr_array(np.array(observation, float))
    n_actions = observation.shape[0] // len(initial)
    return World(
        "still",
        [sparse.eye_array(len(initial), format="csr")] * n_actions,
        observation,
        np.array(initial),
        np.array(actions)[:, None],
        np.array(observations)[:, None],
        np.arange(len(actions))[:, None] == 0,
    )


def test_a_decision_between_equals_is_no_decision():
    world = still([0.5 - 1e-9, 0.5 + 1e-9], [[1], [1]], [0, 0, 0], [0, 0, 0])
    modes = set()
    for it in FOUR[:2]:
        [*_, (beliefs, _, _)] = child.run(world, filters.FILTERS[it.filter](world, it))
        modes.add(int(beliefs[0].argmax()))
    assert modes == {0, 1}
    assert tradeoff(world, FOUR[:2], repeats=1).measurements[1].decisions_changed == 0


# Action 0 says nothing; action 1 tells the states apart, and shows the one that was less probable.
SURPRISE = still([0.1, 0.9], [[1, 0], [1, 0], [1, 0], [0, 1]], [0, 1], [0, 0])


def test_what_fails_is_left_out_and_says_why():
    bold = Configuration("bold", "sparse", prune=0.5)
    trade = tradeoff(SURPRISE, [FOUR[0], bold, FOUR[3]], repeats=2)
    assert [it.configuration for it in trade.measurements] == [FOUR[0], FOUR[3]]
    [left_out] = trade.left_out
    assert left_out.configuration == bold
    assert left_out.reason.startswith("bold failed: agentmem.errors.ImpossibleObservation: ")
    with pytest.raises(RuntimeError, match=r"^bold failed: agentmem\.errors\.ImpossibleObservation"):
        tradeoff(SURPRISE, [bold, FOUR[0]])


@pytest.fixture
def measured(monkeypatch):
    """What would have been measured; nothing is, and every configuration costs the same."""
    calls = []

    def measure_in_child(directory, configuration, *, compare):
        calls.append((configuration, compare))
        return replace(made("", 100, 1.0, 0.0), configuration=configuration)

    monkeypatch.setattr(sweep, "measure_in_child", measure_in_child)
    return calls


def test_all_ways_are_measured_and_compared_once(measured):
    trade = tradeoff(GRID)
    configurations = sweep.swept_configurations()
    assert [it for it, compare in measured if compare] == configurations
    assert len(measured) == 3 * len(configurations) == 60
    assert [it.configuration for it in trade.measurements] == configurations
    assert len({(it.filter, it.dtype, it.prune) for it in configurations}) == 20
    assert all(it.repeats == (1.0, 1.0, 1.0) for it in trade.measurements)


def test_dense_is_left_out_where_it_does_not_fit(measured, monkeypatch):
    monkeypatch.setattr(sweep, "DENSE_LIMIT", GRID.dense_nbytes - 1)
    trade = tradeoff(GRID, repeats=1)
    assert trade.reference.configuration.name == "scipy float64"
    assert [it.configuration.name for it in trade.left_out] == ["dense float64", "dense float32"]
    assert trade.left_out[0].reason == "dense float64 is left out: dense float64 arrays would take 0.0 GiB"
    assert len(tradeoff(GRID, FOUR, repeats=1).measurements) == 4  # who asks for it gets it


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"repeats": 0}, ValueError, "repeats"),
        ({"repeats": 1.5}, TypeError, "repeats"),
        ({"configurations": []}, ValueError, "no configurations given"),
        ({"configurations": [FOUR[0], FOUR[0]]}, ValueError, "two configurations are called 'dense'"),
        ({"agents": 0}, ValueError, "agents"),
        ({"steps": 0}, ValueError, "steps"),
        ({"seed": -1}, ValueError, "seed"),
    ],
)
def test_wrong_input_is_refused(options, error, says, measured):
    with pytest.raises(error, match=says):
        tradeoff(GRID, **options)
    assert not measured


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"filter": "magic"}, "'magic' given; expected one of dense, scipy, sparse, population"),
        ({"dtype": "float16"}, "'float16' given; expected float64 or float32"),
        ({"prune": 1}, "prune=1 given; expected at least 0 and below 1"),
        ({"prune": -0.1}, "prune=-0.1 given"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(options, says):
    with pytest.raises(ValueError, match=says):
        Configuration(**{"name": "it", "filter": "sparse", **options})


# ---- workloads

MODULE = """
import numpy as np
import agentmem as am
from agentmem.profiler.worlds import grid_world

answer = 42

def world():
    return grid_world(4, 5, agents=3, steps=30, seed=1)

def coin():
    return am.Model(np.full((2, 2), 0.5), [[0.9, 0.1], [0.1, 0.9]], [0.3, 0.7], dtype=np.float32)

def nothing():
    pass

def broken():
    raise OSError("no such\\nplace")
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "my_agents.py").write_text(MODULE)
    (tmp_path / "my_torn.py").write_text("def f(:")
    (tmp_path / "my_needy.py").write_text("import my_absent")
    monkeypatch.syspath_prepend(tmp_path)


def test_a_world_is_itself_and_so_is_what_a_function_returns(module):
    assert workloads.world_of(GRID) is GRID
    assert workloads.world_of(lambda: GRID) is GRID
    assert_same_world(workloads.world_of("my_agents:world"), GRID)


def test_agents_act_at_random_in_a_model(module):
    world = workloads.world_of("my_agents:coin", agents=400, steps=9, seed=3)
    assert world.name == "my_agents:coin"
    assert world.actions.shape == (9, 400) and world.initial == pytest.approx([0.3, 0.7])
    assert [table.toarray().tolist() for table in world.transition] == [[[0.5, 0.5], [0.5, 0.5]]]
    assert world.observation.toarray() == pytest.approx(np.array([[0.9, 0.1], [0.1, 0.9]]), rel=1e-6)
    assert {table.dtype for table in (*world.transition, world.observation, world.initial)} == {np.dtype(float)}
    assert 0.4 < world.observations.mean() < 0.6
    assert_same_world(world, workloads.world_of("my_agents:coin", agents=400, steps=9, seed=3))


@pytest.mark.parametrize(
    ("workload", "error", "says"),
    [
        ("my_agents", ValueError, "workload 'my_agents' given; expected module:function"),
        ("my_agents:", ValueError, "workload 'my_agents:' given; expected module:function"),
        (":world", ValueError, "workload ':world' given; expected module:function"),
        ("my_absent:world", ValueError, "there is no module my_absent, of the workload 'my_absent:world'"),
        ("my_agents.more:world", ValueError, "there is no module my_agents.more, of the workload"),
        ("my_agents:worlds", ValueError, "there is no worlds in the module my_agents"),
        ("my_agents:answer", TypeError, "my_agents:answer is an object of type int; expected a function"),
        ("my_agents:nothing", TypeError, "my_agents:nothing returned None; expected a World or a Model"),
        ("my_agents:broken", RuntimeError, "my_agents:broken raised OSError: no such place"),
        ("my_torn:f", RuntimeError, "importing my_torn raised SyntaxError"),
        ("my_needy:f", RuntimeError, "importing my_needy raised ModuleNotFoundError: No module named 'my_absent'"),
        (42, TypeError, "workload of type int given; expected a World, a name or a function"),
        (lambda: 42, TypeError, "<lambda> returned an object of type int; expected a World or a Model"),
        (lambda: 1 / 0, RuntimeError, "<lambda> raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_workload_is_an_error_in_one_line(workload, error, says, module):
    with pytest.raises(error) as raised:
        workloads.world_of(workload)
    assert str(raised.value).startswith(says) and "\n" not in str(raised.value)


def test_a_world_without_steps_is_refused():
    with pytest.raises(ValueError, match="no agents or no steps"):
        workloads.world_of(replace(GRID, actions=GRID.actions[:0]))


def test_the_command_of_a_named_workload_is_known(module, measured):
    trade = tradeoff("my_agents:coin", agents=5, steps=7, seed=2, repeats=1)
    assert (trade.world.agents, trade.world.steps) == (5, 7)
    assert trade.command == (
        "agentmem compare --sweep --workload my_agents:coin --agents 5 --steps 7 --seed 2 --repeats 1"
    )
    assert tradeoff("my_agents:coin", FOUR, repeats=1).command is None
    assert workloads.command_line("a b.pomdp", agents=1, steps=2, seed=3, repeats=4) == (
        "agentmem compare --sweep 'a b.pomdp' --agents 1 --steps 2 --seed 3 --repeats 4"
    )


# ---- shown

SHOWN = found(
    made("dense float64", 20_112, (2957.0, 2920.0, 3036.0), None, None, filter="dense"),
    made("scipy float64", 20_112, (19.3, 19.1, 19.8), 4.5e-16, filter="scipy"),
    made("scipy float32", 10_112, (18.3, 18.1, 19.9), 4.5e-8, filter="scipy"),
    made("population float32 exact", 76, (0.43, 0.42, 0.45), 1.5e-7, filter="population"),
    made("sparse float64 exact", 136, (0.29, 0.28, 0.3), 4e-16),
    made("sparse float64 1e-06", 124, (0.28, 0.275, 0.31), 0.7, changed=0.0123),
    left_out=(LeftOut(FOUR[1], "dense32 failed: MemoryError"),),
    command="agentmem compare --sweep --env FrozenLake",
)


def printed(trade, width=80):
    from rich.console import Console

    console = Console(width=width, record=True, file=io.StringIO())
    console.print(comparison.tradeoff_to_table(trade))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_the_table_marks_the_front_in_eighty_columns():
    lines = printed(SHOWN)
    assert max(map(len, lines)) <= 80
    rows = lines[4:10]
    assert [row[:26].rstrip() for row in rows] == [
        "  dense float64", "  scipy float64", "  scipy float32", "* population float32 exact", "* sparse float64 exact",
        "* sparse float64 1e-06",
    ]  # fmt: skip
    assert rows[0].split()[2:] == ["1,000", "B", "19.6", "KiB", "2,957", "2,920-3,036", "0", "0"]
    assert rows[5].split()[4:] == ["1,000", "B", "124", "B", "0.28", "0.28-0.31", "7.0e-01", "1.2", "%"]


def test_long_names_are_folded_not_lost():
    name = "a configuration of one's own with a long name"
    long = replace(SHOWN, measurements=(*SHOWN.measurements, made(name, 50, (12345.0, 12000.0, 13000.0), 1e-9)))
    lines = printed(long)
    assert max(map(len, lines)) <= 80
    assert any("12,000-13,000" in line for line in lines)


def test_the_summary_says_what_to_take_and_what_that_loses():
    assert comparison.tradeoff_summary(SHOWN).splitlines() == [
        "For 3 agents take population float32 exact: 76 B per agent, 0.43 us per update (0.42 to 0.45), L1 error "
        "1.5e-07, no decision changed.",
        "Chosen from the front (*): no decision changed, L1 up to 1e-06, up to 2x the time of the fastest such; of "
        "those within 10% of the fewest bytes the most exact, and of these none that is clearly slower than another.",
        "Against dense float64: 265x fewer bytes per belief, about the same model bytes, about the same peak RSS, "
        "6,877x less time per update; against scipy float64: 265x fewer bytes per belief, about the same model bytes, "
        "about the same peak RSS, 44.9x less time per update.",
        "dense32 failed: MemoryError",
        'In code: model = am.Model(..., dtype="float64"); '
        "am.Population(model, n_agents).update(actions, observations)",
        "Again: agentmem compare --sweep --env FrozenLake",
    ]
    slow = replace(SHOWN, measurements=(REFERENCE, made("ours", 24, (5.8, 5.6, 5.9), 0.0)))
    assert "2.00x more time per update (a loss)" in comparison.tradeoff_summary(slow)
    assert comparison.tradeoff_summary(found(REFERENCE)).splitlines()[0].startswith("For 3 agents take dense: 240 B ")
    assert "In code" not in comparison.tradeoff_summary(found(REFERENCE))


def test_what_is_taken_can_be_written():
    configuration = Configuration("it", "sparse", prune=1e-9, dtype="float32")
    code = comparison._in_code(configuration).replace("...", "np.eye(2), np.eye(2)")
    names = {"am": am, "np": np, "action": 0, "observation": 1}
    exec(code, names)
    assert names["belief"].mode() == 1 and names["belief"].dtype == np.float32
    code = comparison._in_code(replace(configuration, filter="population")).replace("...", "np.eye(2), np.eye(2)")
    exec(code, {"am": am, "np": np, "n_agents": 3, "actions": 0, "observations": [1, 0, 1]})


def test_json_holds_what_is_printed():
    record = comparison.tradeoff_to_json(SHOWN, command="compare", parameters={"env": "FrozenLake"})
    assert json.loads(json.dumps(record, allow_nan=False))["parameters"] == {"env": "FrozenLake"}
    assert (record["schema"], record["command"], record["sweep"]) == (1, "compare", True)
    assert record["world"]["states"] == 20 and record["world"]["agents"] == 3
    assert record["reference"] == "dense float64"
    assert record["front"] == ["population float32 exact", "sparse float64 exact", "sparse float64 1e-06"]
    assert record["recommended"] == "population float32 exact"
    assert record["left_out"] == [{"configuration": "dense32", "reason": "dense32 failed: MemoryError"}]
    assert record["again"] == SHOWN.command and record["summary"] == comparison.tradeoff_summary(SHOWN)
    for entry, it in zip(record["measurements"], SHOWN.measurements, strict=True):
        assert entry["configuration"] == it.configuration.name and entry["filter"] == it.configuration.filter
        assert (entry["fastest"], entry["slowest"]) == (min(it.repeats), max(it.repeats))
        assert entry["on_front"] == (entry["configuration"] in record["front"])
        for field in ("model_bytes", "belief_bytes_median", "belief_bytes_peak", "peak_rss", "largest_l1"):
            assert entry[field] == getattr(it, field)
        assert entry["decisions_changed"] == it.decisions_changed
