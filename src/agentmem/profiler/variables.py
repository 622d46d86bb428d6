"""The variables of a script, as the agent that a profiler looks at: its own, and those of its functions that run."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from traceback import walk_stack, walk_tb
from types import CodeType, FrameType, ModuleType, TracebackType

from agentmem._core import variables_of
from agentmem.footprint import MAX_PARTS, Parts

AGENTMEM = str(Path(__file__).parents[1])
LIBRARIES = [AGENTMEM, *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
IN_ENVIRONMENTS = {"site-packages", "dist-packages"}
UNNAMED = "(unnamed)"  # a key that is no text


class Variables(Mapping[str, Parts]):
    """One agent, who holds the variables of the moment in which it is asked for: ``table``, ``main().robots``.

    What several of them lead to belongs to the first: the script's own come first, then those of modules beside it, of
    the functions of the main thread, callers before what they called, and of other threads. So a part does not change
    when a variable goes along what another one holds, as in ``for robot in robots``. All calls of a function that run
    are one.

    Parameters
    ----------
    main : module
        In which the script runs.
    script : str
        Its path, as it was given. Modules are its own, and the functions in them, whose files lie below its directory
        and are no library's. Of the variables of functions the first 10,000 are seen.

    Attributes
    ----------
    raised : traceback or None
        Of what ended the script: its functions, which have their variables until that is forgotten.
    """

    def __init__(self, main: ModuleType, script: str) -> None:
        self._main, self._script = main, script
        self._name = f"variables of {os.path.basename(script)}"
        self._directory = Path(script).resolve().parent
        self._libraries = [Path(path).resolve() for path in LIBRARIES]
        self.raised: TracebackType | None = None
        self._prefixes: dict[str, str | None] = {}  # of names, by the file

    def __iter__(self) -> Iterator[str]:
        yield self._name

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> Parts:
        if name != self._name:
            raise KeyError(name)
        return Parts([*_of_module(self._main, ""), *self._in_modules(), *self._in_functions()])

    def _in_modules(self) -> Iterator[tuple[str, object]]:
        """Of the modules that are its own, and imported."""
        for module in list(sys.modules.values()):
            if type(module) is ModuleType and module is not self._main:
                file = vars(module).get("__file__")
                if type(file) is str and (prefix := self._prefix(file)) is not None:
                    yield from _of_module(module, prefix)

    def _in_functions(self) -> list[tuple[str, object]]:
        tops, main = sys._current_frames(), threading.main_thread().ident
        del tops[threading.get_ident()]  # or this frame would have itself, and all that it sees, in a cycle
        calls: list[FrameType] = []
        try:
            for thread in sorted(tops, key=lambda thread: (thread != main, thread)):
                calls += reversed([frame for frame, _ in walk_stack(tops[thread])])
            if self.raised is not None:
                calls += (frame for frame, _ in walk_tb(self.raised))
            found = (
                (f"{prefix}{_called(frame.f_code)}.{name}", value)
                for frame in calls
                if (prefix := self._prefix(frame.f_code.co_filename)) is not None
                for name, value in variables_of(frame).items()
            )
            return list(islice(found, MAX_PARTS))
        finally:
            tops.clear()
            calls.clear()

    def _prefix(self, file: str) -> str | None:
        """What goes before names in a file: in the script nothing, in a module beside it its name; None: not its."""
        if file not in self._prefixes:
            self._prefixes[file] = "" if file == self._script else self._module(file)
        return self._prefixes[file]

    def _module(self, file: str) -> str | None:
        path = Path(os.path.realpath(file))
        is_own = (
            os.path.isabs(file)
            and path.is_relative_to(self._directory)
            and not any(path.is_relative_to(library) for library in self._libraries)
            and not IN_ENVIRONMENTS & set(path.parts)
        )
        if not is_own:
            return None
        names = path.relative_to(self._directory).with_suffix("").parts
        return "".join(f"{name}." for name in names if name != "__init__")


def _of_module(module: ModuleType, prefix: str) -> Iterator[tuple[str, object]]:
    for key, value in vars(module).copy().items():
        name = key if type(key) is str else UNNAMED
        if not (name.startswith("__") and name.endswith("__")):
            yield prefix + name, value


def _called(code: CodeType) -> str:
    return f"{code.co_qualname.replace('<locals>.', '')}()"
