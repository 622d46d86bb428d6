"""A script runs under a profiler as it would alone, and however it ends, what was seen is reported."""

import os
import signal
import subprocess
import sys
import time

import pytest

from agentmem.profiler.report import from_json, to_json
from agentmem.profiler.script import Run
from reference import same_environment

MIB = 2**20


@pytest.fixture
def profiled(tmp_path, capfd, monkeypatch):
    """Run a script under a profiler; its profile, exit code, output and errors."""
    for name, value in same_environment().items():
        monkeypatch.setenv(name, value)

    def run(source, *arguments, **options):
        script = tmp_path / "it.py"
        script.write_text(source)
        with Run(script, arguments, **{"interval": 0.01, **options}) as started:
            profile = started.wait()
            code = started.process.returncode
        assert from_json(to_json(profile)) == profile
        return profile, code, *capfd.readouterr()

    return run


def held(profile):
    return profile.snapshots[-1].agents[0].parts


def test_a_script_that_ends_well(profiled):
    profile, code, output, errors = profiled(
        "import sys, numpy as np\ntable = np.ones(500_000)\nlog = ['x' * 1_000] * 3\nprint(__name__, sys.argv[1:])",
        "--a", "b c",
    )  # fmt: skip
    assert (code, output, errors) == (0, "__main__ ['--a', 'b c']\n", "")
    assert (profile.ended, profile.is_whole) == ("finished", True)
    assert profile.command.endswith("it.py --a 'b c'")
    assert held(profile)["table"] == 4_000_112 and held(profile)["log"] < 2_000
    assert len(profile.samples.seconds) >= 2
    assert [taken.label for taken in profile.snapshots] == ["before the script", "end"]
    assert profile.snapshots[-1].process.rss - profile.snapshots[0].process.rss > 3 * MIB
    assert profile.snapshots[-1].types is not None and profile.snapshots[-1].traced is None


def test_variables_of_functions_are_seen_while_they_run(tmp_path, monkeypatch):
    for name, value in same_environment().items():
        monkeypatch.setenv(name, value)
    script, seen = tmp_path / "it.py", tmp_path / "seen"
    script.write_text(
        "import os, time, numpy as np\n"
        "def main():\n    tables = [np.ones(500_000) for _ in range(3)]\n"
        "    for table in tables:\n        wait(table)\n"
        f"def wait(table):\n    path = {str(seen)!r}\n    while not os.path.exists(path):\n        time.sleep(0.01)\n"
        "main()"
    )
    ends = time.monotonic() + 30
    with Run(script, interval=0.05) as run:
        while not (run.seen and "wait().path" in run.seen.snapshots[-1].parts):
            assert time.monotonic() < ends
            time.sleep(0.05)
        seen.touch()
        profile = run.wait()
    [parts, *_] = [taken.parts for taken in profile.snapshots if "wait().path" in taken.parts]
    assert parts["main().tables"] == 3 * 4_000_112 + 88 and "main().table" not in parts
    assert "main().tables" not in held(profile)  # it has ended
    assert [spot.nbytes for spot in profile.hotspots if spot.name == "main().tables"] == [parts["main().tables"]]


def test_lines_are_traced_when_asked_for(profiled):
    profile, _, _, _ = profiled("kept = [str(k) * 50 for k in range(2_000)]", lines=1)
    [line] = [line for line in profile.snapshots[-1].traced.lines if line.where.endswith("it.py:1")]
    assert line.nbytes > 200_000


def test_it_runs_as_it_would_alone(tmp_path):
    source = (
        "import sys, os, pickle, other\n"
        "class Thing: pass\n"
        "pickle.loads(pickle.dumps(Thing()))\n"
        "main = sys.modules['__main__']\n"
        "print(main.Thing is Thing, __file__, main.__file__, sys.path[0])\n"
        "print(__name__, __doc__, __package__, __builtins__ is main.__builtins__)\n"
        "print(other.here, sys.argv, __spec__, sys.exc_info())\n"
    )
    (tmp_path / "it.py").write_text(source)
    (tmp_path / "other.py").write_text("here = __name__\n")
    alone = subprocess.run([sys.executable, "it.py", "1"], cwd=tmp_path, capture_output=True, text=True)
    code = (
        "from pathlib import Path; from agentmem.profiler.script import Run\n"
        "with Run(Path('it.py'), ['1']) as run: run.wait()"
    )
    command = [sys.executable, "-c", code]
    under = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=same_environment())
    assert under.stdout == alone.stdout and under.stderr == alone.stderr == ""


def test_a_local_module_does_not_take_the_place_of_a_library(profiled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('mine')")
    profile, code, _, _ = profiled("print(1)")
    assert (profile.ended, code) == ("finished", 0)


def test_a_script_that_raises(profiled):
    profile, code, _, errors = profiled("kept = [0] * 1000\ndef fail():\n    raise ValueError('oh\\nno')\nfail()")
    assert (code, profile.ended) == (1, "raised ValueError: oh")
    assert profile.is_whole and held(profile)["kept"] > 8_000
    assert errors.startswith("Traceback") and "script.py" not in errors and errors.count("it.py") == 2


def test_what_functions_held_that_raised_is_seen(profiled):
    source = "def main():\n    table = list(range(10_000))\n    return table[-1] / 0\nmain()"
    profile, _, _, _ = profiled(source)
    [taken] = [taken for taken in profile.snapshots if taken.label == "raised"]
    assert taken.parts["main().table"] > 300_000 and profile.ended == "raised ZeroDivisionError: division by zero"
    assert "main().table" not in held(profile)


def test_what_variables_do_not_hold_is_said(profiled):
    profile, _, _, _ = profiled("kept = b'x' * 20_000_000\nbelow = type('Hidden', (), {'table': b'y' * 30_000_000})")
    [said] = [note for note in profile.notes if "its variables held" in note]
    more, seen = (float(part.split()[0]) for part in (said.partition("had ")[2], said.partition("held ")[2]))
    assert 45 < more < 60 and 19 < seen < 20


def test_a_script_that_cannot_be_compiled(profiled):
    profile, code, _, errors = profiled("x = (")
    assert code == 1 and profile.ended.startswith("raised SyntaxError") and "it.py" in errors


@pytest.mark.parametrize(
    ("source", "code", "ended"),
    [
        ("import sys; sys.exit()", 0, "finished"),
        ("import sys; sys.exit(0)", 0, "finished"),
        ("import sys; sys.exit(3)", 3, "exited with 3"),
        ("import sys; sys.exit('no')", 1, "exited with 1"),
        ("raise KeyboardInterrupt", 130, "raised KeyboardInterrupt"),
        ("import sys; sys.stderr.close(); sys.exit('gone')", 1, "exited with 1"),
        ("import sys; sys.excepthook = lambda *error: sys.exit(3); raise OSError", 3, "raised OSError"),
    ],
)
def test_a_script_that_exits(profiled, source, code, ended):
    profile, found, _, errors = profiled(source)
    assert (found, profile.ended, profile.is_whole) == (code, ended, True)
    assert ("no" in errors) == ("'no'" in source)


def test_a_script_that_leaves_at_once(profiled):
    profile, code, _, _ = profiled("import os; os._exit(7)")
    assert code == 7 and profile.ended == "exited with 7" and not profile.is_whole


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_script_that_is_killed(profiled, name):
    source = (
        "import os, signal, time, numpy as np, faulthandler\n"
        "kept = np.ones(1_000_000)\ntime.sleep(4)\n"
        f"os.kill(os.getpid(), signal.{name})\ntime.sleep(60)"
    )
    profile, code, _, _ = profiled(source)
    assert code == -getattr(signal, name)
    assert profile.ended == f"killed by {name}" and not profile.is_whole
    assert max(profile.samples.rss) - profile.snapshots[0].process.rss > 7 * MIB  # it was seen growing
    assert profile.samples.seconds[-1] > 0.3


def test_threads_are_waited_for(profiled):
    profile, _, output, _ = profiled(
        "import threading, time\n"
        "def work():\n    time.sleep(0.3)\n    globals().update(late=[0] * 1000)\n    print('late')\n"
        "threading.Thread(target=work).start()"
    )
    assert output == "late\n" and held(profile)["late"] > 8_000


def test_idle_workers_of_an_executor_are_told_to_go(profiled):
    profile, code, output, _ = profiled(
        "from concurrent.futures import ThreadPoolExecutor\n"
        "workers = ThreadPoolExecutor(2)\nprint(workers.submit(lambda: 1).result())"
    )
    assert (code, output, profile.ended) == (0, "1\n", "finished")


def test_threads_are_waited_for_after_an_exit(profiled):
    profile, code, _, _ = profiled(
        "import sys, threading, time\nkept = []\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), kept.extend([0] * 1000))).start()\nsys.exit(3)"
    )
    assert code == 3 and held(profile)["kept"] > 8_000


def test_a_script_of_coroutines_ends(profiled):
    """CPython 3.12.1 would not, had its modules been asked what they refer to."""
    profile, code, _, _ = profiled(
        "import asyncio\nasync def one():\n    await asyncio.sleep(0.01)\n"
        "async def main():\n    await asyncio.gather(*[one() for _ in range(5)])\nasyncio.run(main())"
    )
    assert (code, profile.ended) == (0, "finished") and profile.snapshots[-1].types


def test_annotations_are_what_they_are_alone(profiled):
    _, code, output, _ = profiled("def f(x: int): ...\nprint(f.__annotations__)")
    assert (code, output) == (0, "{'x': <class 'int'>}\n")


@pytest.mark.parametrize(
    ("source", "code", "ended"),
    [
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", 1, "raised E: (its text raises"),
        ("import sys; sys.exit(0.0)", 1, "exited with 1"),
        ("import sys\ndef hook(*_): raise ValueError\nsys.excepthook = hook\nraise KeyError", 1, "raised KeyError"),
        ("class Hostile:\n    def __sizeof__(self): raise ValueError\nkept = Hostile()", 0, "finished"),
        ("class Hostile:\n    def __str__(self): raise ValueError\nglobals()[Hostile()] = 1", 0, "finished"),
    ],
)
def test_hostile_objects_do_not_make_a_script_fail(profiled, source, code, ended):
    profile, found, _, errors = profiled(source)
    assert found == code and profile.ended.startswith(ended) and profile.is_whole
    assert "profiler/" not in errors
    if "Hostile" in source:
        assert profile.snapshots[-1].label == "end" or [note for note in profile.notes if "failed" in note]


def test_many_variables_are_not_looked_at(profiled):
    profile, _, _, _ = profiled("kept = [str(k) for k in range(1_100_000)]")
    assert profile.snapshots[-1].agents is None and profile.snapshots[0].agents is not None
    assert [note for note in profile.notes if "over 1,000,000 objects" in note]


def test_looking_at_many_variables_takes_little_memory(profiled):
    source = "import time\nkept = [str(k) for k in range(400_000)]\ntime.sleep(2)"
    profile, _, _, _ = profiled(source)
    [looks] = [note for note in profile.notes if "were looked at" in note]
    assert held(profile)["kept"] > 20 * MIB
    assert max(profile.samples.rss) - profile.samples.rss[0] < 60 * MIB, looks


def test_children_are_said_to_be_unseen(profiled):
    alone, _, _, _ = profiled("x = 1")
    assert not [note for note in alone.notes if "child" in note]
    source = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = b\"x\" * 90_000_000'])"
    profile, _, _, _ = profiled(source)
    [note] = [note for note in profile.notes if "child" in note]
    assert float(note.rpartition("had ")[2].split()[0]) > 90_000_000 / MIB


def test_a_fork_does_not_report(profiled):
    profile, code, output, _ = profiled(
        "import os, sys\nchild = os.fork()\nif child: os.waitpid(child, 0)\n"
        "print('parent' if child else 'child', flush=True)"
    )
    assert (code, profile.ended) == (0, "finished")
    assert sorted(output.split()) == ["child", "parent"]


def test_leaving_the_with_ends_the_script(tmp_path, monkeypatch):
    for name, value in same_environment().items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "it.py"
    script.write_text("import time\ntime.sleep(60)")
    began = time.monotonic()
    with Run(script) as run:
        directory = run._directory.name
        assert os.path.isdir(directory)
    assert run.process.poll() is not None and time.monotonic() - began < 30
    assert not os.path.exists(directory)


def test_what_was_seen_is_there_meanwhile(tmp_path, monkeypatch):
    for name, value in same_environment().items():
        monkeypatch.setenv(name, value)
    script = tmp_path / "it.py"
    script.write_text("import time\ntime.sleep(60)")
    with Run(script, interval=0.05) as run:
        ends = time.monotonic() + 30
        while (seen := run.seen) is None:
            assert time.monotonic() < ends
            time.sleep(0.05)
        assert seen.ended == "still running" and not seen.is_whole
