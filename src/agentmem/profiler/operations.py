"""What a piece of work takes: time, memory above its start, and what it leaves behind.

    call       | runs |  waits  | runs |        of a generator or a coroutine; of a function it is one stretch
    measured    ------           ------         each stretch by itself

Memory is what tracemalloc traces where it runs, else what the process has resident. Both are the whole process's: what
other threads do meanwhile counts too.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
import time
import tracemalloc
import types
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Literal, Self, TypeVar, cast

from agentmem.profiler import records
from agentmem.profiler.process import peak_rss, rss
from agentmem.profiler.tracing import TRACING

F = TypeVar("F", bound=Callable[..., Any])


class Operation:
    """Measures what is done under one name, any number of times; a context manager and a decorator.

    Functions, generators and coroutines may be decorated; of the latter two only what runs counts, not what waits.
    Blocks may be nested, and run on several threads and tasks. A block in a generator is measured with what others do
    while it is left: decorate the generator instead.

    Raises
    ------
    TypeError
        For what cannot be decorated: an async generator, a class.

    Examples
    --------
    >>> plan = Operation("plan")
    >>> @plan
    ... def think(n):
    ...     return sum(range(n))
    >>> think(10), think(20)
    (45, 190)
    >>> with plan:
    ...     answer = 42
    >>> plan.record.calls
    3
    """

    __slots__ = ("_calls", "_largest", "_lock", "_longest", "_open", "_seconds", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.RLock()
        self._open: list[_Call] = []  # those that run
        self._calls, self._seconds, self._longest = 0, 0.0, 0.0
        self._largest: _Call | None = None

    def __enter__(self) -> Self:
        self._resume(_Call(id(sys._getframe(1))))
        return self

    def __exit__(self, *raised: object) -> None:
        # A block ends in the frame that entered it, a generator's maybe on another thread; an ExitStack's does not.
        frame, place = id(sys._getframe(1)), _place()
        with self._lock:
            blocks = [call for call in self._open if call.frame]
            same = [call for call in blocks if call.frame == frame] or [call for call in blocks if call.place == place]
        if same:
            self._wait(same[-1])
            self._count(same[-1])

    def _resume(self, call: _Call) -> None:
        call.place = _place()
        with self._lock:
            call.is_inner = any(one.place == call.place for one in self._open)
            self._open.append(call)
        call.resume()

    def _wait(self, call: _Call) -> None:
        call.wait()
        with self._lock:
            self._open.remove(call)

    def __call__(self, work: F) -> F:
        """`work` with each of its calls measured."""
        if isinstance(work, staticmethod | classmethod):
            return type(work)(self(work.__func__))
        if inspect.isasyncgenfunction(work) or inspect.isclass(work) or not callable(work):
            raise TypeError(f"{work!r} given; expected a function, a generator function or a coroutine function")
        if inspect.iscoroutinefunction(work):
            drive = types.coroutine(self._drive)

            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                return await drive(work(*args, **kwargs))

            return cast(F, functools.wraps(work)(coroutine))
        if inspect.isgeneratorfunction(work):

            def generator(*args: Any, **kwargs: Any) -> Any:
                return (yield from self._drive(work(*args, **kwargs)))

            return cast(F, functools.wraps(work)(generator))

        def function(*args: Any, **kwargs: Any) -> Any:
            with self:
                return work(*args, **kwargs)

        return cast(F, functools.wraps(work)(function))

    def _drive(self, made: Any) -> Generator[Any, Any, Any]:
        """What a generator or coroutine does, measured while it runs."""
        call = _Call()
        go, given = made.send, None
        try:
            while True:
                self._resume(call)
                try:
                    out = go(given)
                except StopIteration as end:
                    return end.value
                finally:
                    self._wait(call)
                try:
                    go, given = made.send, (yield out)
                except GeneratorExit:
                    made.close()
                    raise
                except BaseException as error:
                    go, given = made.throw, error
        finally:
            self._count(call)

    def _count(self, call: _Call) -> None:
        with self._lock:
            self._calls += 1
            self._seconds += call.seconds - call.inner  # which the outer one has in its own
            self._longest = max(self._longest, call.seconds)
            largest = self._largest
            if largest is None or largest.measured != call.measured or call.size > largest.size:
                self._largest = call

    @property
    def record(self) -> records.Operation:
        """What its calls took until now; those that still run do not count."""
        with self._lock:
            largest = self._largest or _Call()
            return records.Operation(
                name=self.name,
                calls=self._calls,
                seconds=self._seconds,
                longest=self._longest,
                peak=largest.peak if self._calls else None,
                retained=largest.retained,
                measured=largest.measured,
            )


def _place() -> tuple[int, object]:
    """This thread, and the asyncio task that it runs."""
    task = None
    if "asyncio" in sys.modules:
        with suppress(RuntimeError):  # no loop runs
            task = sys.modules["asyncio"].current_task()
    return threading.get_ident(), task


class _Call:
    """One call: seconds it ran, its peak above its start if that is known, and what it left behind, in stretches."""

    __slots__ = ("_began", "_highest", "_least", "_session", "frame", "inner", "is_inner", "measured", "peak", "place",
                 "retained", "seconds")  # fmt: skip

    def __init__(self, frame: int = 0) -> None:
        self.frame = frame  # that entered the block, if it is one
        self.place: tuple[int, object] = (0, None)
        self.seconds, self.retained = 0.0, 0
        self.inner = 0.0  # of the seconds, those within another call of the same name
        self.is_inner = False
        self.peak: int | None = 0
        self.measured: Literal["traced", "rss"] = "traced" if tracemalloc.is_tracing() else "rss"

    def resume(self) -> None:
        if self.measured == "traced":
            self._least = self._highest = TRACING.enter(self)
            self._session = TRACING.session
        else:
            self._least, self._highest = rss(), peak_rss()
        self._began = time.perf_counter()

    def wait(self) -> None:
        seconds = time.perf_counter() - self._began
        self.seconds += seconds
        self.inner += seconds if self.is_inner else 0.0
        if self.measured == "traced":
            now = TRACING.leave(self)
            highest: int | None = self._highest
            if TRACING.session != self._session:  # tracing ended meanwhile
                now = highest = self._least
        else:
            now, most = rss(), peak_rss()
            # The highest mark of the process is this stretch's if it rose; if not, nobody knows how high it went.
            highest = most if most > self._highest else None
        if highest is None:
            self.peak = None
        elif self.peak is not None:
            self.peak = max(self.peak, self.retained + highest - self._least)
        self.retained += now - self._least

    @property
    def size(self) -> int:
        return max(self.peak or 0, self.retained)

    def rise(self, highest: int) -> None:
        self._highest = max(self._highest, highest)
