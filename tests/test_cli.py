"""The commands print their table, write their JSON, and answer wrong input in one line."""

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import agentmem as am
from agentmem import _outputs, cli
from agentmem.profiler import sweep, throughput, worlds
from agentmem.profiler.promises import Limit
from agentmem.profiler.reference_agent import Case, Sizes
from agentmem.profiler.sweep import Measurement
from agentmem.profiler.verification import Inputs, compare, hold
from agentmem.profiler.verification import run as run_for_long

CONFIGURATIONS = ["dense NumPy", "scipy.sparse", "SparseBelief exact", "SparseBelief pruned"]


def run(*arguments):
    return CliRunner().invoke(cli.commands(), [str(argument) for argument in arguments])


@pytest.fixture
def measured(monkeypatch):
    """What would have been measured; nothing is, and every configuration costs one of everything."""
    calls = []

    def measure(world, configurations):
        calls.append((world, configurations))
        for configuration in configurations:
            yield Measurement(configuration, 1, 1, 1, 1, 1, 1.0, 0.0, 0.0, 0.0, 0.0, (1.0,))

    monkeypatch.setattr(sweep, "measure", measure)
    return calls


def test_help_names_the_commands():
    shown = run("--help")
    assert shown.exit_code == 0
    for word in ("Usage: agentmem", "demo", "compare", "verify", "--version"):
        assert word in shown.output
    for command in ("demo", "compare"):
        shown = run(command, "--help")
        assert shown.exit_code == 0
        for option in ("--json FILE", "--seed", "--agents", "--steps"):
            assert option in shown.output
    assert "FrozenLake, Taxi" in shown.output


def test_version():
    assert run("--version").output == f"agentmem, version {am.__version__}\n"


def test_compare_prints_and_writes_what_it_measured(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    shown = run(
        "compare", "--env", "FrozenLake", "--agents", 2, "--steps", 5, "--prune", 1e-9, "--json", path
    )
    assert shown.exit_code == 0, shown.output
    record = json.loads(path.read_text())
    for configuration in CONFIGURATIONS:
        assert configuration in shown.stdout
    assert record["summary"] in shown.stdout
    assert record["command"] == "compare"
    assert [entry["configuration"] for entry in record["measurements"]] == CONFIGURATIONS
    assert [entry["prune"] for entry in record["measurements"]] == [None, None, 0.0, 1e-9]
    assert all(entry["largest_difference"] < 1e-7 for entry in record["measurements"][1:])
    assert os.listdir(tmp_path) == ["out.json"]


@pytest.mark.parametrize(
    ("option", "value", "states", "name"),
    [
        ("env", "FrozenLake", 16, "FrozenLake-v1"),
        ("env", "FrozenLake-v1", 16, "FrozenLake-v1"),
        ("env", "frozenlake", 16, "FrozenLake-v1"),
        ("env", "FROZENLAKE-V1", 16, "FrozenLake-v1"),
        ("env", "Taxi", 500, "Taxi-v"),
        ("env", "CliffWalking", 48, "CliffWalking-v"),
        ("states", 1, 1, "1 x 1"),
        ("states", 2, 2, "1 x 2"),
        ("states", 50, 49, "7 x 7"),
        ("states", 1000, 992, "32 x 31"),
        ("states", "1e3", 992, "32 x 31"),
    ],
)
def test_compare_makes_the_world_it_was_asked_for(option, value, states, name, measured, tmp_path):
    path = tmp_path / "out.json"
    shown = run("compare", f"--{option}", value, "--agents", 2, "--steps", 5, "--seed", 7, "--json", path)
    assert shown.exit_code == 0, shown.output
    [(world, configurations)] = measured
    assert world.initial.size == states
    assert world.name.startswith(name)
    assert world.actions.shape == (5, 2)
    assert configurations == sweep.standard_configurations()
    parameters = {
        "file": None, "env": None, "states": None, "workload": None, "prune": None, "agents": 2, "steps": 5, "seed": 7,
    }  # fmt: skip
    given = {"1e3": 1000}.get(value, value)
    assert json.loads(path.read_text())["parameters"] == {**parameters, option: given}


def test_demo_is_the_frozen_lake(measured, tmp_path):
    path = tmp_path / "demo.json"
    shown = run("demo", "--json", path)
    assert shown.exit_code == 0, shown.output
    [(world, configurations)] = measured
    assert world.initial.size == 2500
    assert world.actions.shape == (200, 20)
    assert configurations == sweep.standard_configurations()
    record = json.loads(path.read_text())
    assert record["command"] == "demo"
    assert record["parameters"] == {"agents": 20, "steps": 200, "seed": 0}
    assert run("demo", "--steps", 5).exit_code == 0
    assert measured[1][0].actions.shape == (5, 20)


def is_plain(text):
    return all(character.isprintable() for line in text.splitlines() for character in line)


def test_demo_of_a_population_shows_its_rate_and_bytes(measured, tmp_path):
    path = tmp_path / "out.json"
    shown = run("demo", "--agents", 50, "--steps", 7, "--seed", 3, "--json", path)
    assert shown.exit_code == 0, shown.output
    assert not measured
    record = json.loads(path.read_text())
    assert record["command"] == "demo"
    assert record["parameters"] == {"agents": 50, "steps": 7, "seed": 3}
    assert shown.stdout == record["summary"] + "\n"
    assert [line.partition(":")[0] for line in shown.stderr.splitlines()] == ["step 1", "step 2", "step 4"]
    assert is_plain(shown.output)
    assert max(map(len, shown.output.splitlines())) < 80

    found = record["throughput"]
    assert (found["agents"], found["states"], found["steps"]) == (50, 10_000, 7)
    assert found["bytes_per_agent"] == found["nbytes"] / 50
    assert found["dense_bytes"] == 50 * 10_000 * 8
    assert found["rate"] == pytest.approx(50 * 7 / found["seconds"])
    assert found["later_rate"] == pytest.approx(50 * 6 / (found["seconds"] - found["first_seconds"]))
    assert found["last_rate"] == pytest.approx(50 / found["last_seconds"])
    assert 0 < found["first_seconds"] + found["last_seconds"] <= found["seconds"]
    assert found["walk_seconds"] > 0
    assert found["base_rss"] > 2**20 and 2**20 < found["rss"] <= found["peak_rss"]


def test_demo_holds_what_a_population_holds():
    transition, observation = worlds.slippery_grid(100, 100)
    model = am.Model(transition, observation)
    population, rng = am.Population(model, 30), np.random.default_rng(1)
    walk = worlds.random_walk(transition, observation, rng.integers(10_000, size=30), rng)
    for record in throughput.measure(100, 100, 30, steps=4, seed=1):
        population.update(*next(walk))
        assert (record.nbytes, record.model_bytes) == (population.nbytes, model.nbytes)
        assert record.states_held == population.nnz.mean()
    assert record.steps == 4


def test_a_population_stops_in_time():
    [record] = throughput.measure(3, 3, 2, steps=100, seconds=0, seed=0)
    assert record.steps == 1
    assert record.later_rate is None
    assert record.rate == record.last_rate


def test_demo_of_one_agent():
    shown = run("demo", "--agents", 1, "--steps", 1)
    assert shown.exit_code == 0, shown.output
    assert "without step 1" not in shown.stdout


def test_demo_on_a_terminal_is_live_and_its_summary_plain():
    master, terminal = pty.openpty()
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "agentmem", "demo", "--agents", "1e1", "--steps", "2"],
            env={**os.environ, "TERM": "xterm"},
            stdout=subprocess.PIPE,
            stderr=terminal,
            text=True,
            check=True,
        )
        live = os.read(master, 10_000).decode()
    finally:
        os.close(master)
        os.close(terminal)
    assert "step 2: " in live and "\x1b[" in live
    assert is_plain(shown.stdout) and shown.stdout.startswith("agents ")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--agents", 0), "0 is not in the range"),
        (("--agents", -1), "-1 is not in the range"),
        (("--agents", "1e99"), "is not in the range"),
        (("--agents", "1.5"), "'1.5' is not a valid integer"),
        (("--agents", "many"), "'many' is not a valid integer"),
        (("--agents", 9, "--steps", 0), "0 is not in the range"),
        (("--agents", 9, "--seed", -1), "-1 is not in the range"),
        (("--agents", 9, "--json", "/nowhere/at/all.json"), "there is no directory /nowhere/at"),
    ],
)
def test_wrong_input_to_the_demo_is_a_usage_error(arguments, says):
    shown = run("demo", *arguments)
    assert shown.exit_code == 2
    assert says in shown.output


TIGER = """discount: 0.95
values: reward
states: left right
actions: listen open
observations: hear-left hear-right
start: 0.25 0.75
T: listen
identity
T: open
uniform
O: listen
0.85 0.15
0.15 0.85
O: open
uniform
"""


def test_compare_walks_through_a_file(measured, tmp_path):
    path, out = tmp_path / "tiger.pomdp", tmp_path / "out.json"
    path.write_text(TIGER)
    shown = run("compare", path, "--agents", 300, "--steps", 5, "--json", out)
    assert shown.exit_code == 0, shown.output
    [(world, configurations)] = measured
    assert configurations == sweep.standard_configurations()
    assert world.name == "tiger.pomdp"
    assert [table.toarray().tolist() for table in world.transition] == [[[1, 0], [0, 1]], [[0.5, 0.5]] * 2]
    assert [table.toarray().tolist() for table in world.observation_tables()] == [
        [[0.85, 0.15], [0.15, 0.85]], [[0.5, 0.5]] * 2
    ]
    assert world.initial.tolist() == [0.25, 0.75]
    first_heard = world.observations[0][world.actions[0] == 0]  # right: 0.25 x 0.15 + 0.75 x 0.85
    assert 0.55 < first_heard.mean() < 0.8
    parameters = json.loads(out.read_text())["parameters"]
    assert parameters["file"] == str(path) and parameters["states"] is None


def test_compare_measures_a_file(tmp_path):
    path, out = tmp_path / "tiger.pomdp", tmp_path / "out.json"
    path.write_text(TIGER)
    shown = run("compare", path, "--agents", 2, "--steps", 20, "--json", out)
    assert shown.exit_code == 0, shown.output
    record = json.loads(out.read_text())
    assert record["world"]["observations"] == 2
    assert all(entry["largest_difference"] < 1e-12 for entry in record["measurements"][1:])


def test_compare_keeps_one_table_where_all_actions_read_alike(measured, tmp_path):
    path = tmp_path / "alike.pomdp"
    path.write_text(TIGER + "O: *\n1 0\n0 1\n")
    assert run("compare", path, "--agents", 1, "--steps", 1).exit_code == 0
    assert measured[0][0].observation.shape == (2, 2)


def test_a_malformed_file_is_an_error_in_one_line(measured, tmp_path):
    path = tmp_path / "tiger.pomdp"
    path.write_text(TIGER.replace("0.15 0.85", "0.15 -1"))
    shown = run("compare", path)
    assert shown.exit_code == 1
    assert shown.stderr == f"Error: {path}:13: expected a probability, number 4 of 4, found -1\n"
    assert not measured


def test_dense_is_left_out_where_it_does_not_fit(measured):
    shown = run("compare", "--states", 10_000, "--agents", 1, "--steps", 1)
    assert shown.exit_code == 0
    assert "Dense NumPy is left out: its arrays would take 3.7 GiB." in shown.stderr
    assert [configuration.filter for configuration in measured[0][1]] == ["scipy", "sparse", "sparse"]
    assert "largest difference from scipy.sparse" in shown.stdout


@pytest.fixture
def swept(monkeypatch):
    """What children would have measured; none is started."""
    calls = []

    def measure_in_child(directory, configuration, *, compare):
        calls.append((worlds.World.load(Path(directory)), configuration))
        if configuration.name == "sparse float32 1e-06":
            raise RuntimeError(f"{configuration.name} failed: MemoryError")
        time = 3.0 if configuration.filter in ("dense", "scipy") else 1.0 + len(calls) / 1000
        nbytes = {"dense": 300, "scipy": 300, "sparse": 200, "population": 100}[configuration.filter]
        return Measurement(configuration, 9, nbytes, nbytes, 1, 1, time, 0.0, 0.0, 1e-16, 0.0, (time,))

    monkeypatch.setattr(sweep, "measure_in_child", measure_in_child)
    return calls


def test_compare_sweeps(swept, tmp_path):
    path = tmp_path / "out.json"
    arguments = ["--env", "frozenlake", "--agents", 2, "--steps", 5, "--seed", 7]
    shown = run("compare", "--sweep", *arguments, "--json", path)
    assert shown.exit_code == 0, shown.output
    assert swept[0][0].name == "FrozenLake-v1" and swept[0][0].actions.shape == (5, 2)
    configurations = sweep.swept_configurations()
    assert len(swept) == 3 * len(configurations) - 2  # what failed is not tried again
    record = json.loads(path.read_text())
    assert record["command"] == "compare" and record["sweep"] is True
    assert record["parameters"] == {
        "file": None, "env": "frozenlake", "states": None, "workload": None, "prune": None, "agents": 2, "steps": 5,
        "seed": 7, "repeats": 3,
    }  # fmt: skip
    assert [entry["configuration"] for entry in record["measurements"]] == [
        it.name for it in configurations if it.name != "sparse float32 1e-06"
    ]
    assert record["recommended"] == "population float64 exact"
    for entry in record["measurements"]:
        marks = [line[:1] for line in shown.stdout.splitlines() if line[2:].startswith(f"{entry['configuration']} ")]
        assert marks == ["*" if entry["on_front"] else " "]
        assert len(entry["repeats"]) == 3
    assert record["summary"] in shown.stdout
    assert "sparse float32 1e-06 failed: MemoryError" in record["summary"]
    assert record["again"] == (
        "agentmem compare --sweep --env frozenlake --agents 2 --steps 5 --seed 7 --repeats 3"
    )
    again = run(*record["again"].split()[1:], "--json", tmp_path / "again.json")
    assert again.exit_code == 0 and swept[-1][0].observations.tolist() == swept[0][0].observations.tolist()


def test_a_sweep_without_its_reference_is_an_error(monkeypatch):
    def measure_in_child(directory, configuration, *, compare):
        raise RuntimeError(f"{configuration.name} failed: MemoryError")

    monkeypatch.setattr(sweep, "measure_in_child", measure_in_child)
    shown = run("compare", "--sweep", "--states", 4, "--agents", 1, "--steps", 1)
    assert shown.exit_code == 1
    assert "Error: dense float64 failed: MemoryError" in shown.stderr


def test_a_sweep_leaves_dense_out_where_it_does_not_fit(swept):
    shown = run("compare", "--sweep", "--states", 10_000, "--agents", 1, "--steps", 1, "--repeats", 1)
    assert shown.exit_code == 0
    assert [it.filter for _, it in swept[:3]] == ["scipy", "scipy", "sparse"]
    assert "dense float32 is left out: dense float64 arrays would take 3.7 GiB" in shown.stdout


FLEET = """
import numpy as np
import agentmem as am
from agentmem.profiler.worlds import grid_world

def grid():
    return grid_world(2, 3, agents=3, steps=4, seed=0)

def coin():
    return am.Model(np.full((2, 2), 0.5), [[0.9, 0.1], [0.1, 0.9]])

def nothing():
    pass

def broken():
    return 1 / 0
"""


@pytest.mark.parametrize(("name", "states", "shape"), [("grid", 6, (4, 3)), ("coin", 2, (8, 5))])
def test_a_workload_is_found_in_the_current_directory(name, states, shape, measured, swept, tmp_path, monkeypatch):
    (tmp_path / "my_fleet.py").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    arguments = ["compare", "--workload", f"my_fleet:{name}", "--agents", 5, "--steps", 8]
    for more in ([], ["--sweep"]):
        shown = run(*arguments, *more)
        assert shown.exit_code == 0, shown.output
        assert sys.path == path
    assert f"--workload my_fleet:{name} --agents 5 --steps 8 --seed 0 --repeats 3" in shown.stdout
    for world, _ in (measured[0], swept[0]):
        assert world.initial.size == states and world.actions.shape == shape


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("robots", 2, "there is no robots in the module my_fleet"),
        ("nothing", 2, "my_fleet:nothing returned None; expected a World or a Model"),
        ("broken", 1, "my_fleet:broken raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_workload_that_is_none_is_an_error_in_one_line(name, code, says, swept, tmp_path, monkeypatch):
    (tmp_path / "my_fleet.py").write_text(FLEET)
    monkeypatch.chdir(tmp_path)
    shown = run("compare", "--sweep", "--workload", f"my_fleet:{name}")
    assert shown.exit_code == code
    [line] = [line for line in shown.stderr.splitlines() if line.startswith("Error: ")]
    assert line.endswith(says)
    assert "Traceback" not in shown.output and not swept


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "one of FILE, --env NAME, --states N and --workload MODULE:FUNCTION"),
        (("--env", "Taxi", "--states", 9), "one of FILE, --env NAME, --states N and"),
        ((__file__, "--states", 9), "one of FILE, --env NAME, --states N and"),
        (("--workload", "a:b", "--states", 9), "one of FILE, --env NAME, --states N and"),
        (("--sweep",), "one of FILE, --env NAME, --states N and"),
        (("--sweep", "--states", 9, "--prune", 0.1), "leave out --prune"),
        (("--states", 9, "--repeats", 2), "--repeats goes with --sweep"),
        (("--sweep", "--states", 9, "--repeats", 0), "0 is not in the range"),
        (("--workload", "fleet"), "workload 'fleet' given; expected module:function"),
        (("--workload", "no_such_fleet:world"), "there is no module no_such_fleet"),
        (("/nowhere.pomdp",), "'/nowhere.pomdp' does not exist"),
        (("/",), "is a directory"),
        (("--env", "Pong"), "choose from FrozenLake, Taxi, CliffWalking"),
        (("--env", ""), "choose from FrozenLake, Taxi, CliffWalking"),
        (("--states", -4), "-4 is not in the range"),
        (("--states", 0), "0 is not in the range"),
        (("--states", "many"), "'many' is not a valid integer"),
        (("--states", "1.5"), "'1.5' is not a valid integer"),
        (("--states", "1e99"), "is not in the range"),
        (("--states", "inf"), "'inf' is not a valid integer"),
        (("--states", 9, "--agents", 0), "0 is not in the range"),
        (("--states", 9, "--steps", 0), "0 is not in the range"),
        (("--states", 9, "--seed", -1), "-1 is not in the range"),
        (("--states", 9, "--prune", 1), "1.0 is not in the range"),
        (("--states", 9, "--prune", -0.1), "-0.1 is not in the range"),
        (("--states", 9, "--json", "/nowhere/at/all.json"), "there is no directory /nowhere/at"),
        (("--states", 9, "--json", "/"), "is a directory"),
        (("--states", 9, "--json", "/proc/all.json"), "/proc/all.json cannot be written: "),
        (("--states", 9, "--json", "/tmp/" + "n" * 300), "cannot be written: File name too long"),
        ((__file__, "more"), "unexpected extra argument"),
        (("--stats", 9), "No such option"),
    ],
)
def test_wrong_input_is_a_usage_error(arguments, says, measured):
    shown = run("compare", *arguments)
    assert shown.exit_code == 2
    assert says in shown.output
    assert not measured


def test_a_file_that_cannot_be_written_is_an_error_after_the_table(measured, tmp_path, monkeypatch):
    def full(path, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_outputs, "_write_atomically", full)
    shown = run("compare", "--states", 4, "--agents", 1, "--steps", 1, "--json", tmp_path / "out.json")
    assert shown.exit_code == 1
    assert "SparseBelief pruned against" in shown.stdout
    assert "No space left on device" in shown.stderr


def test_a_failing_child_is_an_error(monkeypatch):
    def failing(world, configurations):
        yield from ()
        raise RuntimeError("dense NumPy failed: MemoryError")

    monkeypatch.setattr(sweep, "measure", failing)
    shown = run("compare", "--states", 4)
    assert shown.exit_code == 1
    assert "Error: dense NumPy failed: MemoryError" in shown.stderr


def test_a_write_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "out.json"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError):
        _outputs._write_atomically(path, "\ud800")
    assert path.read_text() == "old"
    link = tmp_path / "link.json"
    link.symlink_to(path)
    _outputs._write_atomically(link, "new")
    assert path.read_text() == "new"
    assert sorted(os.listdir(tmp_path)) == ["link.json", "out.json"]


def test_a_pipe_is_written_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        _outputs._write_atomically(pipe, "figures")
        assert os.read(reader, 100) == b"figures"
        assert pipe.is_fifo()
    finally:
        os.close(reader)


SMALL = Sizes(belief=(64, 96), observation=(48, 64), states=128, strings=100, patch=8)


@pytest.fixture
def plan():
    """What `verify` does at full size, on agents of 150 kB: two kinds, three at once, and a run."""
    inputs, case = Inputs(SMALL, seed=0), Case(0.1, sizes=SMALL)
    return [
        partial(compare, case, inputs, limit=Limit()),
        partial(compare, replace(case, support="clustered"), inputs, limit=Limit()),
        partial(hold, case, 3, inputs, limit=Limit(10**6)),
        partial(run_for_long, case, 2, inputs, steps=10, limit=Limit(10**8)),
    ]


def run_verify(plan, *arguments):
    group = cli.commands()
    group.commands["verify"].callback = partial(cli.verify, plan=plan)
    return CliRunner().invoke(group, ["verify", *map(str, arguments)])


def test_verify_shows_that_promises_are_kept(plan, tmp_path):
    path = tmp_path / "out.json"
    shown = run_verify(plan, "--seed", 0, "--json", path)
    assert shown.exit_code == 0, shown.output
    record = json.loads(path.read_text())
    assert record["command"] == "verify" and record["parameters"] == {"seed": 0} and record["kept"]
    assert [agent["name"] for agent in record["agents"]] == ["10 % random", "10 % clustered"]
    assert record["summary"] in shown.stdout
    for word in ("10 % random", "10 % clustered", "3 agents, 10 % random: ", "2 agents, 10 % random, step 1 to 10: "):
        assert word in shown.stdout
    assert "BROKEN" not in shown.output
    assert shown.stdout.splitlines()[-1] == f"{len(record['promises'])} of {len(record['promises'])} promises kept"


def test_verify_fails_where_a_promise_is_broken(plan, tmp_path):
    path = tmp_path / "out.json"
    plan[2].keywords["limit"] = Limit(1000)
    shown = run_verify(plan, "--json", path)
    assert shown.exit_code == 1
    record = json.loads(path.read_text())
    [broken] = [promise for promise in record["promises"] if not promise["kept"]]
    assert not record["kept"] and broken["most"] == 1000 < broken["found"]
    assert "BROKEN: 3 agents, 10 % random: " in shown.stdout and "promised at most 1,000 B" in shown.stdout


def test_verify_fails_where_an_agent_lost_an_entry(plan):
    record = plan[0]()
    lost = replace(record, differences=replace(record.differences, log=1))
    shown = run_verify([lambda: record, lambda: lost])
    assert shown.exit_code == 1
    assert "BROKEN: 10 % random: entries of the log that differ: 1, promised at most 0" in shown.stdout
    assert run_verify([lambda: record]).exit_code == 0


def test_verify_of_crowds_alone_has_no_table(plan):
    shown = run_verify(plan[2:3])
    assert shown.exit_code == 0
    blank, crowd, verdict = shown.stdout.splitlines()
    assert (blank, verdict) == ("", "1 of 1 promises kept") and crowd.startswith("3 agents, 10 % random: ")


@pytest.mark.parametrize("arguments", [("--seed", -1), ("--json", "/nowhere/at/all.json"), ("--agents", 5), ("more",)])
def test_wrong_input_to_verify_is_a_usage_error(arguments):
    assert run_verify([], *arguments).exit_code == 2


@pytest.mark.parametrize("missing", ["click", "rich", "gymnasium"])
def test_a_missing_package_is_named_in_one_line(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv = ['agentmem', 'demo']\n"
        "from agentmem.cli import main; main()"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert shown.stderr == f"agentmem: {missing} is not installed: pip install 'agentmem-native[demo]'\n"


def test_the_package_runs_as_a_module():
    shown = subprocess.run(
        [sys.executable, "-m", "agentmem", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"agentmem, version {am.__version__}\n"


def test_importing_agentmem_loads_none_of_it():
    code = (
        "import sys, agentmem\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('click', 'rich', 'gymnasium')"
        " or m.startswith(('agentmem.cli', 'agentmem.profiler', 'agentmem.integrations'))])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"
