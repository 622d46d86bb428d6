"""Records become JSON and come back; documents are what `schema.json` says; text says what they say."""

import io
import json
from dataclasses import fields, is_dataclass, replace
from importlib import resources

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import agentmem as am
import documents
import test_verification
from agentmem.profiler import (
    Profiler,
    comparison,
    held,
    records,
    report,
    schema,
    tables,
    text,
    throughput,
    worlds,
)
from agentmem.profiler.watching import Grower, Look

SCHEMA = json.loads(resources.files("agentmem.profiler").joinpath("schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
GROWN = (Grower("[heap]", 5, 3),)
LOOKS = [Look(7, "python x.py", 1.0 * k, "99", 1000 + k, 2000, {"files": 3}, 1, GROWN) for k in range(3)]
WALKED = worlds.grid_world(3, 3, agents=1, steps=2, seed=0)
COMPARED = {"file": None, "states": 9, "prune": 1e-9, "agents": 1, "steps": 2, "seed": 0}
BY_HAND = replace(documents.tradeoff(), measurements=documents.tradeoff().measurements[:1])  # dense is recommended
DOCUMENTS = {
    "profile": documents.PROFILE,
    "killed": documents.KILLED,
    "sweep": documents.SWEEP,
    "by hand": comparison.tradeoff_to_json(BY_HAND, command="compare", parameters={}),
    "compare": comparison.to_json(
        WALKED, documents.tradeoff().measurements[:3], command="compare", parameters=COMPARED
    ),
    "throughput": tables.throughput_to_json(
        [*throughput.measure(3, 3, 2, steps=2, seconds=9.0, seed=0)][-1], command="demo", parameters={"agents": 2}
    ),
    "verify": tables.verification_to_json(
        [test_verification.GOOD, test_verification.CROWD, test_verification.RUN],
        command="verify",
        parameters={"seed": 4},
    ),
    "watch": report.of_looks(LOOKS),
    "nothing watched": report.of_looks([]),
    "profiles": report.before_after(documents.PROFILE, documents.KILLED),
    "sweeps": report.before_after(documents.SWEEP, documents.SWEEP),
}


def shown(document, width=80):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(text.to_text(document))
    return console.file.getvalue()


# ---- JSON and back


@pytest.mark.parametrize("profile", [documents.profile(), documents.killed()], ids=["whole", "killed"])
def test_a_profile_comes_back(profile):
    assert report.from_json(json.loads(json.dumps(report.to_json(profile)))) == profile


def test_a_real_profile_comes_back():
    with Profiler([{"x": [1]}, {"x": [2]}], interval=0.01, lines=2, types=True) as profiler:
        with profiler.profile_operation("step"):
            profiler.snapshot("now")
        profile = profiler.profile("me")
    document = json.loads(json.dumps(report.to_json(profile)))
    assert report.from_json(document) == profile
    VALIDATOR.validate(document)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents_are_what_the_schema_says(name):
    VALIDATOR.validate(json.loads(json.dumps(DOCUMENTS[name])))


def test_the_schema_is_sound_and_explains_every_record():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    for name, definition in SCHEMA["$defs"].items():
        assert definition["description"], name
        if name == "Parameters":  # of any command
            continue
        assert definition["additionalProperties"] is False
        assert set(definition["required"]) == set(definition["properties"])
        assert all(field["description"] for field in definition["properties"].values()), name
    for kind in vars(records).values():
        if is_dataclass(kind) and kind.__name__ in SCHEMA["$defs"]:
            assert [field.name for field in fields(kind)] == list(SCHEMA["$defs"][kind.__name__]["properties"])


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_schema_knows_no_more(name):
    document = {**DOCUMENTS[name], "more": 1}
    assert not VALIDATOR.is_valid(document)


# ---- files


def test_a_file_is_read(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(documents.PROFILE))
    assert report.read(path) == documents.PROFILE


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (json.dumps(documents.PROFILE)[:-200], "no whole JSON file"),
        ("", "no whole JSON file"),
        ("\x00\xff", "no whole JSON file"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "not written by a command"),
        ('{"a": 1}', "not written by a command"),
        (json.dumps({**documents.PROFILE, "schema": 99}), "schema 99"),
        (json.dumps({**documents.PROFILE, "profile": {}}), "profile: 'command' expected"),
        (json.dumps({**documents.SWEEP, "more": 1}), "no 'more' expected"),
        (json.dumps({**documents.PROFILE, "schema": True}), "schema: 1 expected"),
        (json.dumps({**documents.SWEEP, "recommended": "x"}), "recommended"),
        (json.dumps({**DOCUMENTS["watch"], "looks": [1]}), r"looks\[0\]: object expected"),
        (json.dumps({**DOCUMENTS["sweeps"], "after": documents.PROFILE}), "compare and a profile"),
        ('{"schema": 1, "command": "verify", "kept": NaN}', "expected"),
    ],
)
def test_a_file_that_is_no_document_is_refused(tmp_path, content, said):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(am.CorruptData, match=said) as raised:
        report.read(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_figures_that_do_not_fit_together_are_refused():
    samples = replace(documents.profile().samples, rss=(1, 2))
    with pytest.raises(ValueError, match="one length"):
        report.from_json(report.to_json(documents.profile(samples=samples)))
    with pytest.raises(ValueError, match="watch given"):
        report.from_json(DOCUMENTS["watch"])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_the_schema_refuses_is_refused(data):
    """Everywhere in every kind of document, by the check that is shipped as by jsonschema's."""
    kind = data.draw(st.sampled_from(["verify", "throughput", "sweep", "compare"]))
    document = json.loads(json.dumps(DOCUMENTS[kind]))
    path = data.draw(st.sampled_from([path for path in everywhere(document) if path]))
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(st.sampled_from([None, 3, -1.5, "x", [], {}, True, [1], {"a": 1}]))
    try:
        schema.check(document)
    except ValueError:
        assert not VALIDATOR.is_valid(document)
    else:
        assert VALIDATOR.is_valid(document)


def test_a_file_may_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        report.read(tmp_path / "none.json")


def everywhere(value, path=()):
    """Paths to every value in a document."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield from everywhere(one, (*path, key))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_profile_is_refused_or_another_profile(data):
    document = json.loads(json.dumps(report.to_json(documents.profile(samples=None))))
    path = data.draw(st.sampled_from([path for path in everywhere(document["profile"]) if path]))
    at = document["profile"]
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = data.draw(st.sampled_from([None, 3, -1.5, "x", [], {}, True, [1], {"a": 1}, 1e400]))
    try:
        profile = report.from_json(document)
    except ValueError as error:
        assert str(error).startswith("profile")
    else:
        VALIDATOR.validate(report.to_json(profile))


# ---- before and after


def test_two_profiles_side_by_side():
    after = documents.profile(duration=10.0, operations=())
    changes = report.before_after(documents.PROFILE, report.to_json(after))["changes"]
    found = {one["what"]: (one["before"], one["after"]) for one in changes}
    assert found["duration"] == (30.0, 10.0)
    assert found["plan: longest call"] == (0.09, None)
    assert found["agents: belief"] == (40_000, 40_000)
    ratios = {one["what"]: one["ratio"] for one in changes}
    assert ratios["duration"] == 1 / 3 and ratios["plan: longest call"] is None and ratios["agents: belief"] == 1.0
    tiny, huge = (report.to_json(documents.profile(duration=seconds)) for seconds in (5e-324, 1e300))
    assert report.before_after(tiny, huge)["changes"][0]["ratio"] is None  # not infinity


def test_parts_of_one_name_count_together():
    [taken, *_] = documents.profile().snapshots
    shared = tuple(records.SharedPart("left.log", nbytes, 2) for nbytes in (1_000, 2_000))
    one, other = (documents.profile(snapshots=(replace(taken, shared=some),)) for some in (shared, shared[:1]))
    changes = report.before_after(report.to_json(one), report.to_json(other))["changes"]
    assert [(c["before"], c["after"]) for c in changes if c["what"] == "shared: left.log"] == [(3_000, 1_000)]


def test_what_was_not_looked_at_is_not_said_to_be_absent():
    [taken, *_] = documents.profile().snapshots
    nothing = replace(taken, label="too many", agents=None, parts=None, shared=None, mapped=None, traced=None)
    nothing = replace(nothing, process=records.ProcessMemory(10**12, 10**12, None))
    document = report.to_json(documents.profile(snapshots=(replace(taken, traced=None), nothing)))
    snapshots = document["profile"]["snapshots"]
    assert held.fullest(snapshots)["label"] == "too many"  # and not the one that could be looked at
    assert "no agents were looked at" in shown(document)


def test_what_is_the_same_is_said_to_be():
    assert "no figure differs" in shown(report.before_after(documents.SWEEP, documents.SWEEP))


def test_what_grew_between_looks_is_shown():
    first, last, rows = held.grown(documents.PROFILE["profile"])
    assert (first["at"], last["at"]) == (9.0, 30.0)
    assert rows == [("log", 20_190, 64_190), ("plan", None, 900)]
    assert "what grew" in shown(documents.PROFILE) and "62.7 KiB" in shown(documents.PROFILE)
    assert held.grown(documents.KILLED["profile"]) is None and "what grew" not in shown(documents.KILLED)
    snapshots = documents.profile().snapshots
    more = records.SharedPart("robot 0.model", 800_000, 21)  # it has one more holder, and takes no more
    shared = documents.profile(snapshots=(*snapshots[:2], replace(snapshots[2], shared=(more,))))
    assert len(held.grown(report.to_json(shared)["profile"])[2]) == 2
    nothing = {"agents": None, "parts": None, "shared": None, "mapped": None}
    lines = [replace(one, **nothing) for one in snapshots]
    grows = records.Line("simulation.py:12", 25 * 2**20, 9)
    lines[2] = replace(lines[2], traced=replace(lines[2].traced, lines=(grows,)))
    found = held.grown(report.to_json(documents.profile(snapshots=tuple(lines)))["profile"])
    assert found[2] == [("simulation.py:12", 20 * 2**20, 25 * 2**20)]
    ended = replace(snapshots[2], at=30.5, label="end", parts={}, shared=(), traced=None)  # functions held it all
    ran = report.to_json(documents.profile(snapshots=(*snapshots, ended)))["profile"]
    assert [taken["at"] for taken in held.grown(ran)[:2]] == [9.0, 30.0] and held.grown(ran)[2] == rows
    assert held.grown({**ran, "is_whole": False}) is None  # what ran when it was killed had let it go
    peak = replace(snapshots[2], at=20.0, parts={"peak": 10**9}, traced=None)
    untraced = replace(snapshots[2], traced=None)
    passed = report.to_json(documents.profile(snapshots=(*snapshots[:2], peak, untraced, ended)))
    assert held.grown(passed["profile"])[1]["at"] == 30.0
    alone = report.to_json(documents.profile(snapshots=documents.profile().snapshots[:1]))
    assert held.grown(alone["profile"]) is None


def test_parts_are_compared_as_when_most_was_held():
    snapshots = documents.profile().snapshots
    ended = replace(snapshots[2], at=30.5, label="end", parts={}, shared=(), traced=None)
    one, other = (report.to_json(documents.profile(snapshots=(*given, ended))) for given in (snapshots[:2], snapshots))
    changes = {change["what"]: change for change in report.before_after(one, other)["changes"]}
    assert (changes["agents: log"]["before"], changes["agents: log"]["after"]) == (20_190, 64_190)


def test_two_sweeps_side_by_side():
    measurements = [{**one, "belief_bytes_median": 1} for one in documents.SWEEP["measurements"]]
    changes = report.before_after(documents.SWEEP, {**documents.SWEEP, "measurements": measurements})["changes"]
    changed = {one["what"]: (one["before"], one["after"]) for one in changes if one["before"] != one["after"]}
    assert changed["sparse float64 exact: belief, median"] == (196, 1) and len(changed) == 4


def test_a_profile_and_a_sweep_are_not_compared():
    with pytest.raises(ValueError, match="profile and a compare"):
        report.before_after(documents.PROFILE, documents.SWEEP)
    with pytest.raises(ValueError, match="watch"):
        report.before_after(DOCUMENTS["watch"], DOCUMENTS["watch"])


# ---- text


@pytest.mark.parametrize("name", DOCUMENTS)
def test_text_fits_a_terminal(name):
    assert shown(DOCUMENTS[name])
    assert max(map(len, shown(DOCUMENTS[name]).splitlines())) <= 80


def test_text_says_what_was_seen():
    said = shown(documents.PROFILE)
    for words in ("simulation.py --agents 20", "finished", "robot 0.model, shared by 20", "growing", "plan", "110 MiB"):
        assert words in said
    [traced] = [line for line in said.splitlines() if line.startswith("traced ")]
    assert "not measured" in traced and "0 B" not in traced


def test_text_says_what_was_not_seen():
    said = shown(documents.KILLED)
    assert "killed by SIGKILL" in said and "its end was not" in said and "not sampled" in said
    said = shown(report.to_json(documents.profile(snapshots=(replace(documents.snapshot(), traced=None, types=None),))))
    assert "not traced" in said and "not counted" in said


def test_markup_in_names_is_text():
    profile = documents.profile(command="[bold]x[/bold]\n[/nothing]", ended="raised [red]")
    said = shown(report.to_json(profile))
    assert "[bold]x[/bold] [/nothing]" in said and "raised [red]" in said
    assert "peak RSS 110 MiB (90.0 MiB before the script), 30.0 s" in text.in_a_line(documents.PROFILE)
    later = report.to_json(documents.profile(snapshots=documents.profile().snapshots[1:]))
    assert "peak RSS 110 MiB, 30.0 s" in text.in_a_line(later)


def test_the_snapshot_is_named_that_tools_were_held_against_each_other_in():
    snapshots = documents.profile().snapshots
    document = report.to_json(documents.profile(snapshots=(*snapshots, replace(snapshots[2], label="the last"))))
    assert "what each tool says, at 'the last'" in shown(document)
    assert "what each tool says\n" in shown(report.to_json(documents.profile(snapshots=())))
