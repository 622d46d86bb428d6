"""profile, watch and report, as typed: what they print and write, how they end, what they refuse."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import documents
from agentmem import cli
from agentmem.profiler import report
from reference import same_environment

SCHEMA = Path(report.__file__).with_name("schema.json")


def invoke(*arguments):
    return CliRunner().invoke(cli.commands(), [str(argument) for argument in arguments])


def typed(*arguments, cwd):
    command = [sys.executable, "-m", "agentmem", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=same_environment(), cwd=cwd)


@pytest.fixture
def script(tmp_path):
    def write(source):
        path = tmp_path / "it.py"
        path.write_text(source)
        return path

    return write


@pytest.fixture
def written(tmp_path):
    def write(name, document):
        path = tmp_path / name
        path.write_text(json.dumps(document))
        return path

    return write


def hear_interrupts():
    """In a child, before it runs: what a shell starts in the background does not hear them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def long_script(script):
    return script("import time\nprint('began', flush=True)\ntime.sleep(60)")


def begun(*arguments, cwd):
    command = [sys.executable, "-m", "agentmem", *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=same_environment(), cwd=cwd)
    while "began" not in child.stdout.readline():
        assert child.poll() is None
    return child


# ---- profile


def test_profile_writes_two_reports(script, tmp_path):
    path = script("import sys\nkept = ['x' * 1000] * 3 + [str(k) for k in range(9)]\nprint(sys.argv[1:])")
    ran = typed("profile", "--interval", "0.05", "--lines", "1", path, "--steps", "3", "-v", cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "['--steps', '3', '-v']\n"), ran.stderr
    assert "it.py --steps 3 -v finished: peak RSS" in ran.stderr
    assert "written to report.html and report.json" in ran.stderr
    profile = report.from_json(report.read(tmp_path / "report.json"))
    assert profile.ended == "finished" and profile.samples.interval == 0.05
    assert profile.samples.seconds[-1] <= profile.duration + 0.1
    assert profile.snapshots[-1].traced is not None and profile.snapshots[-1].agents[0].parts["kept"] > 1_000
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("source", "code", "ended"),
    [("raise ValueError('oh')", 1, "raised ValueError: oh"), ("import sys; sys.exit(3)", 3, "exited with 3"),
     ("import os, time; time.sleep(1.3); os.kill(os.getpid(), 9)", 137, "killed by SIGKILL")],
)  # fmt: skip
def test_profile_reports_however_a_script_ends(script, tmp_path, source, code, ended):
    ran = typed("profile", "--html", "a.html", "--json", "a.json", script(source), cwd=tmp_path)
    assert ran.returncode == code and ended in ran.stderr
    profile = report.from_json(report.read(tmp_path / "a.json"))
    assert profile.ended == ended and profile.is_whole == ("killed" not in ended)
    assert ended in (tmp_path / "a.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["profile"], "Missing argument 'SCRIPT'"),
        (["profile", "nowhere.py"], "'nowhere.py' does not exist"),
        (["profile", "--interval", "0", __file__], "--interval"),
        (["profile", "--lines", "-1", __file__], "--lines"),
        (["profile", "--html", "nowhere/a.html", __file__], "no directory nowhere"),
        (["watch"], "Missing argument 'PID|SCRIPT'"),
        (["watch", "nowhere.py"], "nowhere.py is no number of a process, and no file"),
        (["watch", "--interval", "x", "1"], "--interval"),
        (["profile", "--line", "1", __file__], "No such option"),
        (["profile", "--html", __file__, __file__], "is named twice"),
        (["profile", "--html", "same", "--json", "same", __file__], "is named twice"),
        (["watch", "--json", __file__, __file__], "is named twice"),
        (["compare", "--json", __file__, __file__], "is named twice"),
        (["watch", "1", "--fast"], "1 is a process, which takes no arguments; options go before it: --fast"),
        (["report"], "Missing argument"),
        (["report", "nowhere.json"], "'nowhere.json' does not exist"),
        (["report", __file__, __file__, __file__], "3 files given"),
        (["report", __file__], "no whole JSON file"),
        (["profile", SCHEMA], "schema.json is no script; to see a report: agentmem report"),
        (["watch", SCHEMA], "schema.json is no script; to see a report: agentmem report"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(arguments, said):
    shown = invoke(*arguments)
    assert shown.exit_code in (1, 2) and said in shown.output and "Traceback" not in shown.output


# ---- watch


def test_watch_shows_a_process_until_it_ends(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watching = subprocess.Popen(
        [sys.executable, "-m", "agentmem", "watch", "--interval", "0.1", "--json", "looks.json", str(child.pid)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=same_environment(), cwd=tmp_path,
    )  # fmt: skip
    lines = [watching.stdout.readline() for _ in range(3)]
    child.kill()
    child.wait()
    _, errors = watching.communicate(timeout=60)
    assert watching.returncode == 0
    assert all("RSS" in line and "peak" in line for line in lines)
    assert f"process {child.pid} ended, after" in errors
    document = report.read(tmp_path / "looks.json")
    assert document["command"] == "watch" and len(document["looks"]) >= 3
    assert invoke("report", tmp_path / "looks.json").exit_code == 0


def test_watch_runs_a_script(script, tmp_path):
    path = script("import sys, time\ntime.sleep(1)\nprint('done', sys.argv[1:], flush=True)\nsys.exit(4)")
    ran = typed("watch", "--interval", "0.1", path, "--a", cwd=tmp_path)
    assert ran.returncode == 4, ran.stderr
    assert "done ['--a']" in ran.stdout and "RSS" in ran.stdout and "it.py --a exited with 4, after" in ran.stderr


def test_watch_ends_at_an_interrupt(script, tmp_path):
    path = script("import time\ntime.sleep(60)")
    watching = subprocess.Popen(
        [sys.executable, "-m", "agentmem", "watch", "--interval", "0.1", str(path)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=same_environment(), cwd=tmp_path,
        start_new_session=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    watching.stdout.readline()
    time.sleep(0.2)
    os.killpg(watching.pid, signal.SIGINT)
    watching.communicate(timeout=60)
    assert watching.returncode == 130


def test_watch_that_is_left_says_that_the_process_goes_on(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watching = subprocess.Popen(
        [sys.executable, "-m", "agentmem", "watch", "--interval", "0.1", str(child.pid)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=same_environment(), cwd=tmp_path,
        preexec_fn=hear_interrupts,
    )  # fmt: skip
    watching.stdout.readline()
    watching.send_signal(signal.SIGINT)
    _, errors = watching.communicate(timeout=60)
    child.kill()
    child.wait()
    assert f"process {child.pid} goes on, after" in errors and watching.returncode == 0


def test_a_command_that_is_to_end_ends_its_script_and_writes_what_it_saw(script, tmp_path):
    profiling = begun("profile", long_script(script), cwd=tmp_path)
    profiling.terminate()
    assert profiling.wait(30) == 143
    assert report.read(tmp_path / "report.json")["profile"]["ended"] == "killed by SIGTERM"
    watching = begun("watch", "--interval", "0.1", "--json", "looks.json", long_script(script), cwd=tmp_path)
    watching.terminate()
    assert watching.wait(30) == 130
    assert report.read(tmp_path / "looks.json")["command"] == "watch"
    profiling.stdout.close()
    watching.stdout.close()


def test_what_an_interrupted_script_says_comes_whole(script, tmp_path):
    path = script(
        "import time\ntry:\n    print('began', flush=True)\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3)\n    print('ended')"
    )
    command = [sys.executable, "-m", "agentmem", "watch", "--interval", "0.1", "--json", "looks.json", path, "-v"]
    watching = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=same_environment(), cwd=tmp_path,
        start_new_session=True, preexec_fn=hear_interrupts,
    )  # fmt: skip
    while "began" not in watching.stdout.readline():
        assert watching.poll() is None
    os.killpg(watching.pid, signal.SIGINT)  # as a terminal does
    assert "ended" in watching.communicate(timeout=30)[0]
    assert report.read(tmp_path / "looks.json")["looks"][0]["command"] == f"{path} -v"


def test_watch_of_no_process():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    shown = invoke("watch", child.pid)
    assert shown.exit_code == 1 and f"there is no process {child.pid}" in shown.output


# ---- report


def test_report_shows_a_file(written):
    shown = invoke("report", written("a.json", documents.PROFILE))
    assert shown.exit_code == 0 and "robot 0.model, shared by 20" in shown.output


def test_report_shows_two_side_by_side(written, tmp_path):
    after = report.to_json(documents.profile(duration=3.0))
    files = written("a.json", documents.PROFILE), written("b.json", after)
    shown = invoke("report", *files, "--json", tmp_path / "c.json")
    assert shown.exit_code == 0 and "10.0x less" in shown.output
    assert report.read(tmp_path / "c.json")["command"] == "report"


@pytest.mark.parametrize("document", [documents.PROFILE, documents.SWEEP], ids=["profile", "sweep"])
def test_report_writes_a_page(written, tmp_path, document):
    files = "--html", tmp_path / "a.html", "--svg", tmp_path / "a.svg"
    shown = invoke("report", written("a.json", document), *files)
    assert shown.exit_code == 0 and shown.output == ""
    assert "<svg" in (tmp_path / "a.html").read_text() and (tmp_path / "a.svg").read_text().startswith("<svg")


def test_report_of_two_kinds_or_without_a_page(written):
    profile, sweep = written("a.json", documents.PROFILE), written("b.json", documents.SWEEP)
    assert "two profiles or two comparisons" in invoke("report", profile, sweep).output
    looks = written("c.json", report.of_looks([]))
    shown = invoke("report", looks, "--html", looks.with_suffix(".html"))
    assert shown.exit_code == 1 and "has no page" in shown.output
    assert "has no chart" in invoke("report", looks, "--svg", looks.with_suffix(".svg")).output


def test_a_report_is_not_written_over(written):
    before, after = written("a.json", documents.PROFILE), written("b.json", documents.KILLED)
    for arguments in ([before, "--html", before], [before, after, "--json", after], [before, "--svg", before]):
        shown = invoke("report", *arguments)
        assert shown.exit_code == 2 and "is named twice" in shown.output
    assert report.read(before) == documents.PROFILE and report.read(after) == documents.KILLED


def test_report_of_a_damaged_file_leaves_the_page_as_it_was(written, tmp_path):
    page = tmp_path / "a.html"
    page.write_text("before")
    broken = written("a.json", documents.PROFILE)
    broken.write_text(broken.read_text()[:-100])
    shown = invoke("report", broken, "--html", page)
    assert shown.exit_code == 1 and "no whole JSON file" in shown.output and page.read_text() == "before"


@pytest.mark.parametrize("missing", ["click", "jinja2", "matplotlib"])
def test_a_missing_extra_is_one_line_before_anything_runs(script, tmp_path, missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['profile', 'it.py']\n"
        "from agentmem.cli import main; main()"
    )
    script("print(1)")
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, env=same_environment(), cwd=tmp_path)
    assert ran.returncode != 0 and ran.stdout == ""
    assert f"{missing} is not installed: pip install 'agentmem-native[" in ran.stderr and "Traceback" not in ran.stderr
