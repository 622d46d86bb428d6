"""A script under a profiler, in a process of its own, which may end however it likes.

    Run ---- the script ----> its process: the script as it is, a Profiler beside it
        <--- a file ---       what was seen so far, written anew every second and at the end
        ----> Profile         the last of that, and how the script ended
"""

from __future__ import annotations

import builtins
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import IO, Self

from agentmem.footprint import in_units
from agentmem.profiler.held import BEFORE
from agentmem.profiler.monitor import Profiler
from agentmem.profiler.process import children_peak_rss, peak_rss
from agentmem.profiler.records import Profile
from agentmem.profiler.report import Document, from_json
from agentmem.profiler.states import MOST_OBJECTS, States
from agentmem.profiler.variables import Variables

FINISHED = "finished"


class Run:
    """A script that runs under a profiler; use it in a ``with``, whose end ends the script.

    Parameters
    ----------
    script : Path
        A Python file. It runs as ``python script`` would run it, with this process's input and output.
    arguments : sequence of str
        What it finds in ``sys.argv[1:]``.
    interval : float
        Seconds between two samples.
    lines : int
        Frames that tracemalloc keeps of each allocation; 0: it does not trace.
    output : binary file, optional
        Where its output and errors go, instead of to those of this process.
    """

    __slots__ = ("_began", "_directory", "_state", "command", "process")

    def __init__(
        self,
        script: Path,
        arguments: Sequence[str] = (),
        *,
        interval: float = 0.1,
        lines: int = 0,
        output: IO[bytes] | None = None,
    ) -> None:
        self._directory = TemporaryDirectory(prefix="agentmem-")
        self._state = Path(self._directory.name) / "profile.json"
        self.command = shlex.join([str(script), *arguments])
        code = "from agentmem.profiler.script import _child; _child()"
        options = [str(self._state), str(interval), str(lines), str(script)]
        self._began = time.monotonic()
        command = [sys.executable, "-P", "-c", code, *options, *arguments]
        self.process = subprocess.Popen(command, stdout=output, stderr=output and subprocess.STDOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._directory.cleanup()

    @property
    def seen(self) -> Profile | None:
        """What was seen until the last state that was written; None before there is one."""
        try:
            document: Document = json.loads(self._state.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return from_json(document)

    def let_end(self) -> int | None:
        """The exit code of a script that is about to end: its memory is gone, or it was interrupted, as this process
        was, and has two seconds to say so. None if it goes on.
        """
        try:
            return self.process.wait(2)
        except subprocess.TimeoutExpired:
            return None

    def wait(self) -> Profile:
        """Let the script end, and return what was seen of it; if nothing was, a profile that says so.

        An interrupt goes on to the script: it decides what it does.
        """
        while True:
            try:
                code = self.process.wait()
                break
            except KeyboardInterrupt:
                continue  # the script got it too, from the terminal
        profile = self.seen
        if profile is None:
            profile = Profiler().profile(notes=("nothing was seen: the process ended before the script began",))
        if not profile.is_whole:  # it had no time for a last state
            profile = replace(profile, ended=ending(code), duration=time.monotonic() - self._began)
        return replace(profile, command=self.command)


def ending(code: int) -> str:
    """What a process's exit code, as `subprocess` gives it, says of its end."""
    if code >= 0:
        return f"exited with {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


# ---- in the script's process


def _child() -> None:
    state, interval, lines, script, *arguments = sys.argv[1:]
    main = _main_module(script)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).resolve().parent))
    variables = Variables(main, script)
    profiler = Profiler(variables, interval=float(interval), lines=int(lines), most_objects=MOST_OBJECTS)
    states = States(profiler, Path(state))
    process = os.getpid()
    with profiler:
        resident = profiler.snapshot(BEFORE).process.rss
        states.resident = resident
        states.notes = (
            f"{in_units(resident)} were resident before the script: Python, NumPy and this profiler",
            "variables seen are those of the script and of modules below its directory, and of their functions while "
            "they run, not of coroutines that wait",
        )
        states.start()

        def look_at(error: BaseException) -> None:
            if os.getpid() == process:  # not a fork, in which other threads' locks may be held for ever
                variables.raised = error.__traceback__
                states.look("raised")
                variables.raised = None

        ended, code = _run(main, script, look_at)
        if os.getpid() == process:  # not a fork that came back here
            states.stop()
            profiler.end_samples()  # what comes now is the profiler's
            states.duration = profiler.seconds
            if largest := children_peak_rss():
                # Linux hands a parent's figure down to a child: only a higher one must be a child's.
                had = f": one had {in_units(largest)} resident" if largest > peak_rss() else ""
                states.note(f"of its child processes nothing is in here{had}")
            states.look("end", types=find_spec("pympler") is not None, counters=True)
    if os.getpid() == process:
        states.write(ended)
    sys.exit(code)


def _main_module(script: str) -> ModuleType:
    main = ModuleType("__main__")
    main.__dict__.update(__file__=os.path.abspath(script), __builtins__=builtins, __spec__=None)
    sys.modules["__main__"] = main  # what the script pickles or spawns looks there
    return main


def _run(main: ModuleType, script: str, look_at: Callable[[BaseException], None]) -> tuple[str, int]:
    """How the script ended, and its exit code. What it raises is looked at first."""
    ended, code = FINISHED, 0
    try:
        # Not under this file's `from __future__ import annotations`.
        exec(compile(Path(script).read_bytes(), script, "exec", dont_inherit=True), main.__dict__)
    except SystemExit as end:
        code = _code(end)
        if not isinstance(end.code, int | None):
            with suppress(Exception):  # the script may have closed it
                print(_said(end.code), file=sys.stderr)
        ended = f"exited with {code}" if code else FINISHED
    except BaseException as error:
        error = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)  # without this frame
        code = 130 if isinstance(error, KeyboardInterrupt) else 1
        with suppress(KeyboardInterrupt):
            look_at(error)
        try:
            sys.excepthook(type(error), error, error.__traceback__)
        except SystemExit as end:  # of a hook that the script put there
            code = _code(end)
        except BaseException:  # of the hook: Python goes on to its end, and so does the report
            pass
        ended = f"raised {type(error).__name__}: {_said(error)}".removesuffix(": ").splitlines()[0]
    with suppress(KeyboardInterrupt):
        _wait_for_threads()
    return ended, code


def _code(end: SystemExit) -> int:
    return end.code & 255 if isinstance(end.code, int) else 0 if end.code is None else 1


def _said(value: object) -> str:
    try:
        return str(value)
    except Exception as error:
        return f"(its text raises {type(error).__name__})"


def _wait_for_threads() -> None:
    """As Python does at its end: idle workers of executors are told to go, then threads are waited for."""
    for hook in reversed(getattr(threading, "_threading_atexits", ())):
        hook()
    for thread in threading.enumerate():
        if not thread.daemon and thread is not threading.current_thread():
            thread.join()
