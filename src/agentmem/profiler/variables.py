"""The variables of a script, as the agent that a profiler looks at: its own, and those of its functions that run."""

from __future__ import annotations

import os
import sys
import sysconfig
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

from agentmem._core import variables_of
from agentmem.footprint import MAX_PARTS

LIBRARIES = tuple(
    path + os.sep
    for path in {
        str(Path(__file__).parents[1]),
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    }
)
IN_ENVIRONMENTS = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


class Variables(Mapping[str, dict[str, Any]]):
    """One agent, who holds the variables of the moment in which it is asked for: ``table``, ``main().robots``.

    What is an element of a variable before it, as that of a loop, is a part of that one.

    Parameters
    ----------
    main : module
        In which the script runs.
    script : str
        Its path, as it was given. Functions are its own that are defined in it, or in a file below its directory that
        is no library's; in whichever thread they run.
    """

    def __init__(self, main: ModuleType, script: str) -> None:
        self._main, self._script = main, script
        self._name = f"variables of {os.path.basename(script)}"
        self._directory = str(Path(script).resolve().parent).removesuffix(os.sep) + os.sep

    def __iter__(self) -> Iterator[str]:
        yield self._name

    def __len__(self) -> int:
        return 1

    def __getitem__(self, name: str) -> dict[str, Any]:
        if name != self._name:
            raise KeyError(name)
        found = dict(vars(self._main))
        calls: Counter[str] = Counter()
        for frame in self._frames():
            function = f"{frame.f_code.co_qualname.replace('<locals>.', '')}()"
            calls[function] += 1  # a second one: it calls itself, or runs in another thread
            call = function if calls[function] == 1 else f"{function}[{calls[function]}]"
            found |= {f"{call}.{variable}": value for variable, value in variables_of(frame).items()}
        return _without_elements(found)

    def _frames(self) -> Iterator[FrameType]:
        """Of the script's functions that run, those of the main thread first, and callers before what they called."""
        main = threading.main_thread().ident
        for _, frame in sorted(sys._current_frames().items(), key=lambda item: (item[0] != main, item[0])):
            called: list[FrameType] = []
            top: FrameType | None = frame
            while top is not None:
                if self._is_own(top.f_code):
                    called.append(top)
                top = top.f_back
            yield from reversed(called)

    def _is_own(self, code: CodeType) -> bool:
        file = code.co_filename
        if file == self._script:
            return True
        return file.startswith(self._directory) and not (
            file.startswith(LIBRARIES) or any(part in file for part in IN_ENVIRONMENTS)
        )


def _without_elements(variables: dict[str, Any]) -> dict[str, Any]:
    """Without those that hold an element of what one before them holds: the agent of ``for agent in agents``."""
    elements: set[int] = set()
    found = {}
    for name, value in variables.items():
        if id(value) in elements:
            continue
        found[name] = value
        if type(value) in (list, tuple, dict) and len(value) <= MAX_PARTS:
            elements.update(map(id, list(value.values()) if type(value) is dict else value))
    return found
